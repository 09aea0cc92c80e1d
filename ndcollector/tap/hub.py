"""All taps of a process: how many there may be, and when they may work.

Promises: see the package. Work is done in turns: one tap at a time, about SLICE_SECONDS long, followed by a pause nine
times as long, however many taps there are. Turns are on the loop's own thread on purpose: a thread busy in
Python would make the loop wait for the interpreter after each of its system calls.
Refuses: knowing HTTP (route.py) or the configuration.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from itertools import chain
from typing import Protocol

import orjson

from ndagent.core.delivery import Sleep
from ndagent.core.interfaces import Output
from ndagent.core.spool import Spool
from ndcollector.decoding import Decoder
from ndcollector.tap.look import Look, Wish
from ndcollector.tap.sources import AtOutput, AtSpools, OutputTaps, Source, Tapped

SHARE = 0.1
"""Of the loop's time, for all taps together."""
SLICE_SECONDS = 0.002
SHORTEST_PAUSE_SECONDS = 0.001
"""Behind the shortest slice: it pays for writing what was found, too."""
PIECE_BYTES = 64 * 1024
SPEAK_EVERY_SECONDS = 1.0
"""Writing is how a reader that has gone is found out."""
_LOOKS_PER_GLANCE_AT_THE_CLOCK = 32


class TooManyTaps(Exception):
    """No place for another tap."""


class Decoders(Protocol):
    """Decoders as the configuration now has them."""

    def __call__(self, *, keep_original: bool) -> Decoder:
        """One that keeps every message as it came, or as much of it as outputs get."""


class Taps:
    """One per process; belongs to the loop. `decoders` is asked each time a tap is opened."""

    def __init__(
        self,
        spools: Mapping[str, Spool],
        decoders: Decoders,
        *,
        most: int,
        buffer_bytes: int,
        clock: Callable[[], float],
        sleep: Sleep,
        random: Callable[[], float],
    ) -> None:
        self._spools = spools
        self._decoders = decoders
        self._most = most
        self._buffer_bytes = buffer_bytes
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._turn = asyncio.Lock()
        self._at_outputs = OutputTaps()
        self._readers: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        """Taps open now."""
        return len(self._readers)

    def over(self, output: Output, name: str) -> Output:
        """The output, with a place to tap it."""
        return Tapped(output, name, self._at_outputs)

    @asynccontextmanager
    async def open(self, wish: Wish) -> AsyncIterator[AsyncIterator[bytes]]:
        """Pieces of NDJSON, one at least every second or so, from now on until the limit or the block's end.

        Each event is an object; an array `["unseen", N]` says how many events passed unseen so far. The task that opens
        a tap is cancelled when the collector stops. Raises TooManyTaps.
        """
        if len(self._readers) >= self._most:
            raise TooManyTaps(f"{self._most} taps are open, and admin.max_taps allows no more")
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine, and those run in tasks
        source = self._source(wish)
        if isinstance(source, AtOutput):
            self._at_outputs.add(source)
        self._readers.add(task)
        try:
            async with aclosing(self._pieces(source, Look(wish, self._random))) as pieces:
                yield pieces
        finally:
            self._readers.discard(task)
            if isinstance(source, AtOutput):
                self._at_outputs.remove(source)

    async def aclose(self) -> None:
        """End every tap."""
        readers = list(self._readers)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    def _source(self, wish: Wish) -> Source:
        if wish.point == "output":
            return AtOutput(wish.name or "", self._buffer_bytes)
        if wish.point == "input":
            return AtSpools(self._spools, self._decoders(keep_original=True), input_name=wish.name)
        wanted = {stream: spool for stream, spool in self._spools.items() if wish.name in (None, stream)}
        return AtSpools(wanted, self._decoders(keep_original=False), input_name=None)

    async def _pieces(self, source: Source, look: Look) -> AsyncGenerator[bytes, None]:
        told_at = self._clock()
        lines: Iterator[bytes | None] | None = None
        while not look.is_done:
            if lines is None:
                lines = await self._next(source, look)
            else:
                async with self._working() as until:
                    piece, lines = self._slice(lines, until)
                if piece:
                    yield piece
            if self._clock() - told_at >= SPEAK_EVERY_SECONDS:
                told_at = self._clock()
                yield _unseen(source)
        yield _unseen(source)

    async def _next(self, source: Source, look: Look) -> Iterator[bytes | None] | None:
        """Lines of what has come; None if nothing came in a second."""
        try:
            async with asyncio.timeout(SPEAK_EVERY_SECONDS):
                await source.ready()
        except TimeoutError:
            return None
        async with self._working():
            batches = await source.take()
        return chain.from_iterable(map(look.lines, batches))

    def _slice(self, lines: Iterator[bytes | None], until: float) -> tuple[bytes, Iterator[bytes | None] | None]:
        """Lines for one turn, and the rest of them, if there is one."""
        found: list[bytes] = []
        size = 0
        for number, line in enumerate(lines, 1):
            if line is not None:
                found.append(line)
                size += len(line)
            if size >= PIECE_BYTES or (number % _LOOKS_PER_GLANCE_AT_THE_CLOCK == 0 and self._clock() >= until):
                return b"".join(found), lines
        return b"".join(found), None

    @asynccontextmanager
    async def _working(self) -> AsyncIterator[float]:
        """A turn; the value is when it should end."""
        async with self._turn:
            began = self._clock()
            yield began + SLICE_SECONDS
            worked = self._clock() - began
            await self._sleep(max(SHORTEST_PAUSE_SECONDS, worked * (1 / SHARE - 1)))


def _unseen(source: Source) -> bytes:
    return orjson.dumps(["unseen", source.unseen], option=orjson.OPT_APPEND_NEWLINE)
