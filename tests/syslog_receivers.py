"""Receivers of syslog in this process, doing what a test tells them: RFC 5425 over mTLS, and RELP by a script.

Their parsers are their own, and strict: a frame that is not what the RFC or the RELP document says is an error here.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from tests.contract.tcp_output import ScriptedServer
from tests.events import sequences_in
from tls_peers import CLIENT, DAY, Authority, Files

READ_BYTES = 64 * 1024


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
    """Keeps what it reads. `pause` stops reading, `manner` is what it does with a new connection."""

    def __init__(self, context: ssl.SSLContext, *, framing: str = "octet_counted") -> None:
        self.context = context
        self.framing = framing
        self.manner = "read"  # or "close", or "hold": never reads
        self.messages: list[bytes] = []
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self.context, limit=READ_BYTES
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As a killed process: the listener and every connection are gone at once, unread bytes with them."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open.values():
            writer.transport.abort()
        await self.quiet()

    async def quiet(self) -> None:
        """Until every connection has ended."""
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        self.connections += 1
        try:
            if self.manner == "hold":
                writer.transport.pause_reading()
                await writer.wait_closed()
            if self.manner == "read":
                async for message in _frames(reader, self.framing):
                    self.messages.append(message)
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            pass  # the sender gave up amid a frame: it will send it again
        finally:
            del self._open[task]
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()


async def _frames(reader: asyncio.StreamReader, framing: str) -> AsyncIterator[bytes]:
    """RFC 5425 §4.3: MSG-LEN is decimal without leading zeros, one space, and exactly so many octets."""
    while (head := await _until(reader, b"\n" if framing == "lf" else b" ")) is not None:
        if framing == "lf":
            yield head
            continue
        assert re.fullmatch(rb"[1-9]\d*", head), head
        yield await reader.readexactly(int(head))


async def _until(reader: asyncio.StreamReader, end: bytes) -> bytes | None:
    """What stands before `end`; None where the connection ends between two frames."""
    try:
        return (await reader.readuntil(end))[:-1]
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None


class RelpReceiver(ScriptedServer):
    """RELP; its script is asked about each message, and OK is 200, NEVER 500, LATER a status that RELP has not."""

    offers = b"200 OK\nrelp_version=0\nrelp_software=test\ncommands=syslog"

    def __init__(self) -> None:
        super().__init__()
        self.sessions = 0
        self._open: set[asyncio.StreamWriter] = set()

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
                if command == b"open":
                    assert b"relp_version=0" in data.split(b"\n")
                    _respond(writer, number, self.offers)
                elif command == b"close":
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
        answer = self.script(sequences)
        self.silent = answer == "silence"
        if answer in ("OK", "keep and close"):
            self.kept += sequences
        if answer in ("silence", "close", "keep and close"):
            return False
        words = {"OK": b"200 OK", "NEVER": b"500 refused"}
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
