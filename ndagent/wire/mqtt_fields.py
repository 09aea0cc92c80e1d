"""MQTT's data types (§1.5): read from one packet's bytes, and written.

Promises: reading never goes past the packet, takes the shortest form of a length only, and refuses text that is not
UTF-8 or holds U+0000; whatever is wrong is an MqttError. Refuses: knowing what the fields mean.
"""

import struct

from ndagent.wire.mqtt_codes import malformed

MAX_VARIABLE_BYTES = 4
MAX_VARIABLE = 268_435_455
"""The largest variable byte integer (§1.5.5), hence the largest packet behind its fixed header."""

_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")


class Fields:
    """Reads one packet's fields, one after the other, from `view[at:end]`."""

    __slots__ = ("at", "end", "view")

    def __init__(self, view: memoryview, at: int = 0, end: int | None = None) -> None:
        self.view = view
        self.at = at
        self.end = len(view) if end is None else end

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self.end - self.at

    def _take(self, size: int) -> int:
        at = self.at
        if self.end - at < size:
            raise malformed("a field is longer than its packet")
        self.at = at + size
        return at

    def byte(self) -> int:
        """§1.5.1: one byte."""
        return self.view[self._take(1)]

    def two_bytes(self) -> int:
        """§1.5.2: a two byte integer."""
        return int(_U16.unpack_from(self.view, self._take(2))[0])

    def four_bytes(self) -> int:
        """§1.5.3: a four byte integer."""
        return int(_U32.unpack_from(self.view, self._take(4))[0])

    def variable(self) -> int:
        """§1.5.5: a variable byte integer."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:  # [MQTT-1.5.5-1]
                    raise malformed("a variable byte integer is written in more bytes than it needs")
                return value
        raise malformed("a variable byte integer has more than four bytes")

    def binary(self) -> bytes:
        """§1.5.6: binary data, at most 65 535 bytes."""
        size = self.two_bytes()
        at = self._take(size)
        return bytes(self.view[at : at + size])

    def text(self) -> str:
        """§1.5.4: a UTF-8 encoded string."""
        return decode_text(self.binary())

    def pair(self) -> tuple[str, str]:
        """§1.5.7: a UTF-8 string pair."""
        return self.text(), self.text()

    def packet_id(self) -> int:
        """§2.2.1: never zero [MQTT-2.2.1-3]."""
        value = self.two_bytes()
        if not value:
            raise malformed("packet identifier 0")
        return value

    def finish(self) -> None:
        """Refuse bytes behind the last field."""
        if self.at != self.end:
            raise malformed(f"{self.left} bytes behind the last field")


def decode_text(data: bytes) -> str:
    """Text from its bytes; raises MqttError."""
    try:
        text = data.decode()  # refuses surrogates too [MQTT-1.5.4-1]
    except UnicodeDecodeError:
        raise malformed("text is not UTF-8") from None
    if "\0" in text:  # [MQTT-1.5.4-2]
        raise malformed("text holds U+0000")
    return text


def write_variable(value: int) -> bytes:
    """§1.5.5; at most MAX_VARIABLE."""
    if value < 0x80:
        return bytes((value,))
    if value > MAX_VARIABLE:
        raise ValueError(f"{value} is beyond a variable byte integer")
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def write_two_bytes(value: int) -> bytes:
    """§1.5.2."""
    return _U16.pack(value)


def write_four_bytes(value: int) -> bytes:
    """§1.5.3."""
    return _U32.pack(value)


def write_binary(data: bytes) -> bytes:
    """§1.5.6; struct.error past 65 535 bytes."""
    return _U16.pack(len(data)) + data


def write_text(text: str) -> bytes:
    """§1.5.4; struct.error past 65 535 bytes."""
    return write_binary(text.encode())
