"""How fast an output may send: token buckets for events and bytes, shared by its streams.

Promises:
  * in any second at most twice a second's worth (the burst and what came with time), in the long run the rate;
  * waiting is no failure: it stands inside the breaker and outside the timeout, and a cancel gives the tokens back;
  * `finish` ends at once for sends that only wait: they have not begun, and are cancelled by whoever stops them.
A send that fails has used what it took: it was traffic. Refuses: splitting what one send carries (`pieces` is for who
makes the sends).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import accumulate

from ndagent.core.interfaces import Output
from ndagent.core.rate import Rate
from ndagent.core.settings import RateConfig
from ndagent.wire.record import EventBatch


class Paced:
    """An Output that sends no faster than its rate; without one it adds nothing."""

    def __init__(
        self,
        output: Output,
        config: RateConfig,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        def bucket(per_second: float | None) -> Rate | None:
            return None if per_second is None else Rate(per_second, burst=per_second, clock=clock, sleep=sleep)

        self._output = output
        self._events = bucket(config.events_per_second)
        self._bytes = bucket(config.bytes_per_second)
        self._sending = 0
        self._changed = asyncio.Event()
        self._is_finishing = False

    @property
    def is_limited(self) -> bool:
        """Whether there is a rate."""
        return self._events is not None or self._bytes is not None

    async def send(self, events: EventBatch) -> None:
        """As the wrapped output, when its turn has come."""
        if not self.is_limited:
            return await self._output.send(events)
        if self._events is not None:
            await self._events.take(len(events))
        if self._bytes is not None:
            await self._bytes.take(len(events.ndjson))
        await self._until(lambda: not self._is_finishing)
        self._sending += 1
        try:
            await self._output.send(events)
        finally:
            self._sending -= 1
            self._wake()

    def begin(self) -> None:
        """Sends may begin."""
        self._is_finishing = False
        self._wake()

    async def finish(self) -> None:
        """Let no send begin, and return when none is under way; never without a rate (nobody waits here then)."""
        self._is_finishing = True
        await self._until(lambda: self.is_limited and not self._sending)

    async def sync(self) -> None:
        """As the wrapped output."""
        await self._output.sync()

    async def aclose(self) -> None:
        """As the wrapped output."""
        await self._output.aclose()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def pieces(events: EventBatch, rate: RateConfig) -> Iterator[EventBatch]:
    """The events in pieces of at most a second's worth, at least one event each, so that a rate is a steady stream."""
    most_events = len(events) if rate.events_per_second is None else max(1, int(rate.events_per_second))
    most_bytes = len(events.ndjson) if rate.bytes_per_second is None else rate.bytes_per_second
    if len(events) <= most_events and len(events.ndjson) <= most_bytes:
        yield events
        return
    start, start_bytes = 0, 0
    ends = list(accumulate(events.lengths))
    for position, end in enumerate(ends):
        if position > start and (position - start >= most_events or end - start_bytes > most_bytes):
            yield events.select(range(start, position))
            start, start_bytes = position, ends[position - 1]
    yield events.select(range(start, len(events)))
