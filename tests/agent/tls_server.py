"""A TLS server on loopback that does what a test tells it, and a proxy that does CONNECT; both count what is open."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tls_peers import SERVER, Files, Pair

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Open:
    """What a server has seen."""

    port: int = 0
    connections: int = 0
    open: int = 0
    errors: list[str] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def serving(talk: Talk, context: ssl.SSLContext | None = None, *, host: str = "127.0.0.1") -> AsyncIterator[Open]:
    """Runs `talk` for each connection, and closes it after; failed handshakes are nobody's."""
    seen = Open()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        seen.connections += 1
        seen.open += 1
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await talk(reader, writer)
        finally:
            seen.open -= 1
            tasks.discard(task)
            writer.transport.abort() if context is None else writer.close()

    server = await asyncio.start_server(connected, host, 0, ssl=context)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tuple(tasks))


async def head(reader: asyncio.StreamReader) -> bytes:
    """A request's line and fields, its body read as well."""
    found = await reader.readuntil(b"\r\n\r\n")
    length = [line for line in found.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if length:
        await reader.readexactly(int(length[0].split(b":")[1]))
    return found


class Site:
    """A PKI, and contexts for both sides."""

    def __init__(self, directory: Path, *, certificate_required: bool = False) -> None:
        self.files = Files(directory)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pair: Pair = self.files.authority.issue(
            "collector", names=["DNS:localhost", "IP:127.0.0.1", "IP:::1"], usage=[SERVER]
        )
        pair.write(directory / "s.crt", directory / "s.key")
        self.server.load_cert_chain(directory / "s.crt", directory / "s.key")
        if certificate_required:
            self.server.load_verify_locations(directory / "ca.crt")
            self.server.verify_mode = ssl.CERT_REQUIRED
        self.client = self.files.client(None)


def relay(seen_heads: list[bytes]) -> Talk:
    """A proxy that does CONNECT to wherever it is asked."""

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        seen_heads.append(request)
        host, _, port = request.split()[1].decode().rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            far_writer.transport.abort()

    return proxy


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    raise EOFError
