"""A small MQTT client for tests: writes packets of 3.1.1 and 5 by the letter of the standard, reads a server's.

Independent of the product's codec on purpose; it checks nothing, so it can also write what no client may.
"""

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

V311, V5 = 4, 5
Properties = Sequence[tuple[int, bytes]]


def variable(value: int) -> bytes:
    """§1.5.5."""
    written = b""
    while True:
        value, low = divmod(value, 128)
        if not value:
            return written + bytes((low,))
        written += bytes((low | 128,))


def text(value: str | bytes) -> bytes:
    """§1.5.4."""
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + variable(len(body)) + body


def properties(values: Properties = ()) -> bytes:
    body = b"".join(bytes((name,)) + value for name, value in values)
    return variable(len(body)) + body


@dataclass
class Writer:
    """Packets of one version."""

    version: int

    def _properties(self, values: Properties) -> bytes:
        return properties(values) if self.version == V5 else b""

    def connect(
        self,
        client_id: str = "",
        *,
        clean: bool = True,
        keep_alive: int = 60,
        will: tuple[str, bytes] | None = None,
        will_qos: int = 0,
        will_values: Properties = (),
        values: Properties = (),
        name: str | None = None,
        password: bytes | None = None,
    ) -> bytes:
        flags = clean << 1 | (will is not None) << 2 | will_qos << 3 | (name is not None) << 7
        flags |= (password is not None) << 6
        body = text("MQTT") + bytes((self.version, flags)) + u16(keep_alive) + self._properties(values)
        body += text(client_id)
        if will is not None:
            body += self._properties(will_values) + text(will[0]) + text(will[1])
        if name is not None:
            body += text(name)
        if password is not None:
            body += text(password)
        return packet(0x10, body)

    def publish(
        self,
        topic: str,
        payload: bytes,
        packet_id: int = 0,
        *,
        qos: int = 1,
        dup: bool = False,
        retain: bool = False,
        values: Properties = (),
    ) -> bytes:
        body = text(topic) + (u16(packet_id) if qos else b"") + self._properties(values) + payload
        return packet(0x30 | dup << 3 | qos << 1 | retain, body)

    def puback(self, packet_id: int) -> bytes:
        return packet(0x40, u16(packet_id))

    def subscribe(self, packet_id: int, *filters: tuple[str, int], values: Properties = ()) -> bytes:
        body = b"".join(text(topic) + bytes((options,)) for topic, options in filters)
        return packet(0x82, u16(packet_id) + self._properties(values) + body)

    def unsubscribe(self, packet_id: int, *topics: str) -> bytes:
        return packet(0xA2, u16(packet_id) + self._properties(()) + b"".join(map(text, topics)))

    def disconnect(self, reason: int = 0, values: Properties = ()) -> bytes:
        if self.version == V311 or (not reason and not values):
            return packet(0xE0, b"")
        return packet(0xE0, bytes((reason,)) + (properties(values) if values else b""))


PINGREQ = packet(0xC0, b"")


def split(data: bytes) -> list[tuple[int, bytes]]:
    """Whole packets: first byte and body of each."""
    found = []
    while data:
        size, at = 0, 1
        while True:
            size |= (data[at] & 127) << 7 * (at - 1)
            at += 1
            if data[at - 1] < 128:
                break
        assert len(data) >= at + size, "a packet is cut"
        found.append((data[0], data[at : at + size]))
        data = data[at + size :]
    return found


class Client:
    """A blocking client over TLS; use it in a thread."""

    def __init__(self, context: ssl.SSLContext, port: int, *, version: int = V5, timeout: float = 15) -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        try:
            self.socket = context.wrap_socket(raw, server_hostname="localhost")
        except BaseException:
            raw.close()
            raise
        self.write = Writer(version)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send(self, *packets: bytes) -> None:
        self.socket.sendall(b"".join(packets))

    def read(self) -> tuple[int, bytes] | None:
        """The next packet, first byte and body; None at the end of the connection."""
        try:
            first = self._file.read(1)
            if not first:
                return None
            size, shift = 0, 0
            while True:
                byte = self._file.read(1)[0]
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            return first[0], self._file.read(size)
        except (ConnectionError, ssl.SSLError):
            return None

    def connect(self, client_id: str, **kwargs: object) -> tuple[int, bytes] | None:
        """CONNECT, and what came back."""
        self.send(self.write.connect(client_id, **kwargs))  # type: ignore[arg-type]
        return self.read()
