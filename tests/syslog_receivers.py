"""Receivers of syslog in this process, doing what a test tells them: RFC 5425 over mTLS, and RELP by a script.

Their parsers are their own, and strict: a frame that is not what the RFC or the RELP document says is an error here.
"""

import asyncio
import io
import re
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

from tls_peers import CLIENT, DAY, Authority, Files

from tests.contract.tcp_output import ScriptedServer
from tests.events import sequences_in


class Site:
    """Certificates of a receiver and of us, below one directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.files = Files(directory)
        self.admit(self.files.authority)

    def admit(self, authority: Authority, *, days: int = 365) -> None:
        """Give us a certificate of this authority."""
        pair = authority.issue("nd-client", names=["DNS:client.example.net"], usage=[CLIENT], until=days * DAY)
        pair.write(self.directory / "client.crt", self.directory / "client.key")

    def tls(self, **others: object) -> dict[str, object]:
        """The output's settings."""
        paths = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}
        return {key: self.directory / name for key, name in paths.items()} | others

    @property
    def receiver(self) -> dict[str, Path]:
        """What a receiver is configured with."""
        return {
            "ca": self.directory / "ca.crt",
            "cert": self.directory / "server.crt",
            "key": self.directory / "server.key",
        }

    def context(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A receiver that wants certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.receiver["cert"], self.receiver["key"])
        context.load_verify_locations(self.receiver["ca"])
        context.verify_mode = ssl.CERT_REQUIRED
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context


class TlsReceiver:
    """Keeps what it reads; `manner` is what it does with a new connection.

    Blocking, with a thread for each connection, as a receiver that is a process of its own: it refuses with an alert,
    and `stop` takes every connection that the kernel has for it, as a kill does.
    """

    def __init__(self, context: ssl.SSLContext, *, framing: str = "octet_counted") -> None:
        self.context = context
        self.framing = framing
        self.manner = "read"  # or "close", or "hold": never reads
        self.messages: list[bytes] = []
        self.connections = 0
        self.port = 0
        self._listener: socket.socket | None = None
        self._open: dict[threading.Thread, socket.socket] = {}
        self._stopped = threading.Event()

    async def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._stopped = threading.Event()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    async def stop(self) -> None:
        """As a killed process: the listener and every connection are gone at once, unread bytes with them."""
        self._stopped.set()
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for connection in list(self._open.values()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        await self.quiet()

    async def quiet(self) -> None:
        """Until every connection has ended."""
        while self._open:
            await asyncio.sleep(0.005)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the end
            while True:
                connection, _ = listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._open[thread] = connection.dup()
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError), self.context.wrap_socket(connection, server_side=True) as secured:
                self.connections += 1
                if self.manner == "hold":
                    self._stopped.wait()
                if self.manner == "read":
                    self._read(secured)
        finally:
            connection.close()
            self._open.pop(threading.current_thread()).close()

    def _read(self, secured: ssl.SSLSocket) -> None:
        """RFC 5425 §4.3: MSG-LEN is decimal without leading zeros, one space, and exactly so many octets."""
        with secured.makefile("rb") as stream:
            if self.framing == "lf":
                self.messages += (line[:-1] for line in stream if line.endswith(b"\n"))
                return
            while length := _until_space(stream):
                assert re.fullmatch(rb"[1-9]\d*", length), length
                message = stream.read(int(length))
                if len(message) == int(length):
                    self.messages.append(message)


def _until_space(stream: io.BufferedIOBase) -> bytes:
    found = b""
    while (byte := stream.read(1)) not in (b"", b" "):
        found += byte
    return found if byte else b""


async def _until(reader: asyncio.StreamReader, end: bytes) -> bytes | None:
    """What stands before `end`; None where the connection ends between two frames."""
    try:
        return (await reader.readuntil(end))[:-1]
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None


class RelpReceiver(ScriptedServer):
    """RELP; its script is asked about each message, and OK is 200, NEVER 500, LATER a status that RELP has not,
    WORDLESS none at all.
    """

    offers = b"200 OK\nrelp_version=0\nrelp_software=test\ncommands=syslog"

    def __init__(self) -> None:
        super().__init__()
        self.sessions = 0
        self.received: list[int] = []
        self.closed_in_order = 0
        self.mute = False
        """Does not even answer `open`."""
        self.refusal = b"500 refused"
        self.holding = False
        self.held: list[tuple[asyncio.StreamWriter, int, bytes]] = []
        """Messages that get no answer while `holding`, until `release`."""
        self._open: set[asyncio.StreamWriter] = set()

    def release(self) -> None:
        """Answer what was held, and what comes from now on."""
        self.holding, held = False, self.held
        self.held = []
        for writer, number, data in held:
            self._message(writer, number, data)

    def close_sessions(self) -> None:
        """As a server that is told to stop."""
        for writer in self._open:
            writer.write(b"0 serverclose 0\n")
            writer.close()

    async def stop(self) -> None:
        """The sessions end with the listener."""
        await super().stop()
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        self._open.add(writer)
        expected = 1
        try:
            while frame := await _relp_frame(reader):
                number, command, data = frame
                assert number == expected, "transaction numbers follow each other"
                expected += 1
                if self.mute:
                    await reader.read()
                if command == b"open":
                    assert b"relp_version=0" in data.split(b"\n")
                    _respond(writer, number, self.offers)
                elif command == b"close":
                    self.closed_in_order += 1
                    _respond(writer, number, b"")
                    writer.write(b"0 serverclose 0\n")
                    return
                elif not self._message(writer, number, data):
                    await reader.read() if self.silent else None
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client gave up: its business
        finally:
            self._open.discard(writer)
            writer.close()

    def _message(self, writer: asyncio.StreamWriter, number: int, data: bytes) -> bool:
        """Whether the session goes on."""
        sequences = sequences_in(data)
        if self.holding:
            self.held.append((writer, number, data))
            return True
        self.received += sequences
        answer = self.script(sequences)
        self.silent = answer == "silence"
        if answer in ("OK", "keep and close"):
            self.kept += sequences
        if answer in ("silence", "close", "keep and close"):
            return False
        words = {"OK": b"200 OK", "NEVER": self.refusal, "WORDLESS": b""}
        _respond(writer, number, words.get(answer.partition(" ")[0], b"503 busy"))
        return True


async def _relp_frame(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes] | None:
    number = await _until(reader, b" ")
    if number is None:
        return None
    command = (await reader.readuntil(b" "))[:-1]
    length = b""
    while (byte := await reader.readexactly(1)).isdigit():
        length += byte
    data = await reader.readexactly(int(length)) if byte == b" " else b""
    if byte == b" ":
        byte = await reader.readexactly(1)
    assert byte == b"\n"
    return int(number), command, data


def _respond(writer: asyncio.StreamWriter, number: int, data: bytes) -> None:
    writer.write(b"%d rsp %d%b%b\n" % (number, len(data), b" " if data else b"", data))
