"""Request bodies: read within limits of size, pace and memory, and decompressed within a limit.

Promises:
  * a body that declares too much is refused before it is read (with 100-continue: before it is sent), one that turns
    out to be too much as soon as it is;
  * a body that drips is given up: it has `timeout` to begin with, and a second more for every `bytes_per_second` that
    came;
  * all bodies together hold at most `Budget.total_bytes`; whoever comes beyond is told to come again (503);
  * decompressing takes time and memory linear in its limit, whatever the body claims.
Refuses: bodies of several gzip members or zstd frames: each would be a copy of the rest.
"""

import asyncio
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import HttpVersion11, web

from ndcollector.inputs.https_problem import Problem

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RETRY_SECONDS = 1
_WINDOW_LOG = 24  # 16 MiB, which zstd -19 uses; a frame may ask for 2 GiB
_GZIP, _ZLIB, _RAW = 31, 15, -15
_ZLIB_METHOD = 8  # RFC 1950 §2.2: the low nibble of the first byte


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How much of a body is taken, and how slow it may be."""

    max_bytes: int
    timeout_seconds: float
    bytes_per_second: int


class Budget:
    """Bytes that requests may hold together."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0

    def lease(self) -> "Lease":
        """Nothing yet; see Lease."""
        return Lease(self)


class Lease:
    """What one request holds of a Budget."""

    __slots__ = ("_budget", "held_bytes")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held_bytes = 0

    def hold(self, size: int) -> None:
        """Hold this much from now on, more or less than before; raises Problem (503) where there is not enough."""
        used = self._budget.used_bytes + size - self.held_bytes
        if size > self.held_bytes and used > self._budget.total_bytes:
            raise Problem(
                503,
                "no_memory",
                "this collector is handling as much as it may (limits.buffer_bytes)",
                "try again, or use another collector",
                retry_after_seconds=RETRY_SECONDS,
            )
        self._budget.used_bytes = used
        self.held_bytes = size

    def release(self) -> None:
        """Give all of it back."""
        self.hold(0)


async def read_body(request: web.BaseRequest, limits: BodyLimits, lease: Lease) -> bytes:
    """The body as it came. Raises Problem (408, 413, 417, 503), web.RequestPayloadError, ConnectionError."""
    if request.content_length is not None:
        _check_size(request.content_length, limits)
        lease.hold(request.content_length)
    await _continue(request)
    content = request.content
    if content.is_eof():  # it came with its header, as most do
        body = await content.readany()
        _check_size(len(body), limits)
        lease.hold(len(body))
        return body
    return await _read_slowly(request, limits, lease)


async def _read_slowly(request: web.BaseRequest, limits: BodyLimits, lease: Lease) -> bytes:
    loop = asyncio.get_running_loop()
    patience = loop.time() + limits.timeout_seconds
    pieces: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout_at(patience + size / limits.bytes_per_second):
                piece = await request.content.readany()
        except TimeoutError:
            raise Problem(
                408,
                "body_timeout",
                f"of the body {size} bytes came in limits.body_timeout",
                "look at the network between the two, or send less at a time",
            ) from None
        if not piece:
            return b"".join(pieces)
        size += len(piece)
        _check_size(size, limits)
        lease.hold(max(size, lease.held_bytes))
        pieces.append(piece)


def _check_size(size: int, limits: BodyLimits) -> None:
    if size > limits.max_bytes:
        raise too_large(f"the body has more than {limits.max_bytes} bytes")


async def _continue(request: web.BaseRequest) -> None:
    """Let a client that asked first send its body (RFC 9110 §10.1.1)."""
    expect = request.headers.get("Expect")
    if expect is None or request.version < HttpVersion11:
        return
    if expect.lower() != "100-continue":
        raise Problem(417, "unknown_expectation", "Expect is not 100-continue", "leave that header out")
    if not request.content.is_eof():
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the response itself has not begun


def too_large(error: str) -> Problem:
    """413 with the way out."""
    return Problem(413, "too_large", error, "send less at a time: a smaller request would be taken")


def decode(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """The body behind a Content-Encoding. Raises Problem: 413 beyond `max_bytes`, 400 if damaged, 415 if unknown."""
    decoder = _DECODERS.get(encoding)
    if decoder is None:
        known = ", ".join(("identity", *_DECODERS))
        raise Problem(415, "unknown_encoding", "this Content-Encoding is not known", f"use one of: {known}")
    try:
        found, whole, rest = decoder(body, max_bytes + 1)
    except (zlib.error, zstd.ZstdError) as error:
        raise damaged(encoding, str(error)) from None
    if len(found) > max_bytes:
        raise too_large(f"the body has more than {max_bytes} bytes decompressed")
    if not whole:
        raise damaged(encoding, "the end is missing")
    if rest:
        raise damaged(encoding, "something follows its end; one gzip member or zstd frame is taken")
    return found


def damaged(encoding: str, detail: str) -> Problem:
    """400 for a body that cannot be decompressed."""
    return Problem(400, "bad_body", f"the {encoding} body is damaged: {detail}", "send it again")


_Decoded = tuple[bytes, bool, bytes]  # what was found, whether it is all, what follows it


def _zlib_decoder(window: int) -> Callable[[bytes, int], _Decoded]:
    def decoded(body: bytes, most: int) -> _Decoded:
        decompressor = zlib.decompressobj(window)
        found = decompressor.decompress(body, most)
        return found, decompressor.eof, decompressor.unused_data

    return decoded


def _deflate(body: bytes, most: int) -> _Decoded:
    """RFC 9110 §8.4.1.2 means zlib's form; some senders leave its two bytes out."""
    window = _ZLIB if body[:1] and body[0] & 0x0F == _ZLIB_METHOD else _RAW
    return _zlib_decoder(window)(body, most)


def _zstd(body: bytes, most: int) -> _Decoded:
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    found = decompressor.decompress(body, max_length=most)
    return found, decompressor.eof, decompressor.unused_data


_DECODERS: dict[str, Callable[[bytes, int], _Decoded]] = {
    "gzip": _zlib_decoder(_GZIP),
    "deflate": _deflate,
    "zstd": _zstd,
}
