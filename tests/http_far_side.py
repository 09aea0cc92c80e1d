"""An HTTP/1.1 server that does what a test tells it: by hand, on a raw socket, so that it can do everything wrong.

`reply` says what a request gets: the bytes of an answer, or a coroutine function that is given the connection.
"""

import asyncio
import contextlib
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from backports import zstd

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Received:
    """A whole request; header names are lower-case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def plain(self) -> bytes:
        """The body without its content coding."""
        coding = self.headers.get("content-encoding", "")
        if coding == "gzip":
            return gzip.decompress(self.body)
        return zstd.decompress(self.body) if coding == "zstd" else self.body


Reply = Callable[[Received], bytes | Act]


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of an answer; underscores in names stand for hyphens."""
    fields = {"Content-Length": str(len(body))} | {name.replace("_", "-"): text for name, text in headers.items()}
    lines = "".join(f"{name}: {text}\r\n" for name, text in fields.items())
    return f"HTTP/1.1 {status} Why\r\n{lines}\r\n".encode() + body


async def silence(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await reader.read()


async def close(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Close without an answer."""


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Break off with a RST."""
    import socket
    import struct

    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def cut(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Break off without the end that TLS has for that."""
    writer.transport.abort()


def says(data: bytes, *, then: Act = close) -> Act:
    """Write this, whatever it is, and then something else."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await then(reader, writer)

    return act


def bomb(size: int) -> bytes:
    """An answer whose gzip is a thousandth of what it holds."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return answer(200, compressor.compress(bytes(size)) + compressor.flush(), Content_Encoding="gzip")


@dataclass
class FarSide:
    """Listens between `start` and `stop`; keeps its port over both."""

    reply: Reply = lambda _request: answer(200)
    context: ssl.SSLContext | None = None
    act: Act | None = None  # instead of reading requests and asking `reply`
    requests: list[Received] = field(default_factory=list)
    port: int = 0
    connections: int = 0

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self.under_way = self.most_under_way = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self.context else ''}://localhost:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=self.context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and break off what is under way."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for talk in tuple(self._talks):
            talk.cancel()
        if self._talks:
            await asyncio.wait(tuple(self._talks))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                if self.act is not None:
                    return await self.act(reader, writer)
                while True:
                    await self._one(reader, writer)
        finally:
            self._talks.discard(task)
            writer.transport.abort() if self.context is None else writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Received(method, path, headers, body)
        self.requests.append(request)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            reply = self.reply(request)
            await self._say(reply, reader, writer)
        finally:
            self.under_way -= 1


    @staticmethod
    async def _say(reply: bytes | Act, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An answer, after which the connection stays; whatever else is done ends it."""
        if isinstance(reply, bytes):
            writer.write(reply)
            return await writer.drain()
        await reply(reader, writer)
        raise EOFError


@asynccontextmanager
async def far_side(
    reply: Reply | None = None, *, context: ssl.SSLContext | None = None, act: Act | None = None
) -> AsyncIterator[FarSide]:
    """One that listens."""
    made = FarSide(context=context, act=act)
    if reply is not None:
        made.reply = reply
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def until(is_so: Callable[[], object], *, seconds: float = 20.0) -> None:
    """Return once it is so."""
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.005)
