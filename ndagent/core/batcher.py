"""Gathers chunks of many connections into batches while earlier batches are being made durable.

Promises:
  * order: chunks reach `accept` in the order of `add`, hence in the order of each connection;
  * at most two accepts at a time: one is being synced while the next is written; what comes meanwhile shares a batch;
  * back-pressure: above `buffer_bytes` the input is told to pause, below half of it to go on; nothing is dropped;
  * what was added and could not be made durable (a stop that ran out of time) is counted as dropped, never silent.
Refuses: threads, I/O, waiting in `add`: protocols call it from the loop.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from ndagent.core import messages
from ndagent.core.interfaces import Accept
from ndagent.core.metrics import Metrics
from ndagent.core.progress import Signs
from ndagent.wire.framing import Chunk
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section

IN_FLIGHT = 2
MAX_BATCH_EVENTS = 8192
"""A record is decoded whole: a MiB of two-byte messages would become 250 MB of events. Cut at the next chunk."""
CHUNK_OVERHEAD_BYTES = 256  # what a chunk costs besides its payload: hostile ones are a few bytes each
MAX_GATHER_SECONDS = 1.0  # one received_at per batch: behind a blocked spool a new batch begins each second


class _Open:
    """The batch that is being filled; adjacent chunks of one origin, framing and flags become one section."""

    __slots__ = ("cost", "counts", "events", "heads", "length", "lengths", "opened_at", "payload")

    def __init__(self, opened_at: float) -> None:
        self.opened_at = opened_at
        self.heads: list[tuple[Origin, Framing, Flags]] = []
        self.lengths: list[int] = []
        self.counts: list[int] = []
        self.payload: list[bytes] = []
        self.length = 0
        self.events = 0
        self.cost = 0

    def continues(self, origin: Origin, framing: Framing, flags: Flags) -> bool:
        """Whether a chunk belongs to the last section; a WHOLE message is a section by itself."""
        last = self.heads[-1]
        return last[0] is origin and last[1] is framing and last[2] is flags and framing is not Framing.WHOLE

    def sealed(self, stream: str, batch_format: str) -> Batch:
        sections = [
            Section(origin, framing, flags, length, count)
            for (origin, framing, flags), length, count in zip(self.heads, self.lengths, self.counts, strict=True)
        ]
        return Batch(stream, batch_format, int(self.opened_at * 1e9), sections, self.payload)


class Batcher:
    """`add` from protocols; `run` beside them; `finish` when no more will be added.

    `paused(True)` is called when the input must stop reading, `paused(False)` when it may go on.
    """

    def __init__(
        self,
        accept: Accept,
        *,
        name: str,
        paused: Callable[[bool], None],
        metrics: Metrics,
        clock: Callable[[], float],
        stream: str = "security_events",
        format: str = "syslog",  # noqa: A002 - the batch's word for it
        max_batch_bytes: int = 2**20,
        buffer_bytes: int = 16 * 2**20,
    ) -> None:
        self._accept = accept
        self._name = name
        self._set_paused = paused
        self._metrics = metrics
        for total in (metrics.received, metrics.truncated):
            total.labels(name)  # there from the start: a rate needs the zero
        metrics.paused.labels(name).set(0)
        self._clock = clock
        self._stream = stream
        self._format = format
        self._max_batch_bytes = max_batch_bytes
        self._buffer_bytes = buffer_bytes
        self._open: _Open | None = None
        self._sealed: deque[_Open] = deque()
        self._ready = asyncio.Event()
        self._finished = False
        self._over = False  # nobody hands on any more
        self._paused = False
        self._settled = 0
        self.buffered_bytes = 0
        """What is added and not durable yet, chunk overhead included."""

    def add(self, origin: Origin, chunk: Chunk, *, beside_bytes: int = 0) -> None:
        """Take whole messages; the caller goes on reading until it is told to pause.

        `beside_bytes` are kept with them besides their payload, until they are durable.
        """
        now, current = self._clock(), self._open
        if current is None:
            current = self._open = _Open(now)
            self._ready.set()
        elif (
            current.length >= self._max_batch_bytes
            or current.events >= MAX_BATCH_EVENTS
            or now - current.opened_at > MAX_GATHER_SECONDS
        ):
            self._sealed.append(current)
            current = self._open = _Open(now)
        framing, flags, count, payload = chunk
        length = len(payload)
        if current.heads and current.continues(origin, framing, flags):
            current.lengths[-1] += length
            current.counts[-1] += count
        else:
            current.heads.append((origin, framing, flags))
            current.lengths.append(length)
            current.counts.append(count)
        current.payload.append(payload)
        current.length += length
        current.events += count
        cost = length + CHUNK_OVERHEAD_BYTES + beside_bytes
        current.cost += cost
        self.buffered_bytes += cost
        if not self._paused and self.buffered_bytes > self._buffer_bytes:
            self._pause(True)

    async def run(self) -> None:
        """Hand batches on until `finish` was called and all are durable. What `accept` raises ends it."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(IN_FLIGHT):
                    group.create_task(self._hand_on())
        finally:
            self._over = True
            self._count_rest()

    def signs(self) -> Signs:
        """See core/progress.py; a pause that outlives what it was for is work, too."""
        return Signs(self.buffered_bytes > 0 or self._paused, self._settled)

    def finish(self) -> None:
        """No more `add`: `run` returns when everything is durable. What was added after it had failed is counted."""
        self._finished = True
        self._ready.set()
        if self._over:
            self._count_rest()

    async def _hand_on(self) -> None:
        while True:
            current = self._next()
            if current is None:
                if self._finished:
                    return
                self._ready.clear()
                await self._ready.wait()
                continue
            batch = current.sealed(self._stream, self._format)
            try:
                await self._accept(batch)
            except BaseException:
                self._sealed.appendleft(current)  # _count_rest counts it
                raise
            self._settle(batch, current.cost)

    def _next(self) -> _Open | None:
        if self._sealed:
            return self._sealed.popleft()
        current, self._open = self._open, None
        return current

    def _settle(self, batch: Batch, cost: int) -> None:
        self._settled += 1
        self._metrics.received.labels(self._name).inc(batch.count)
        truncated = sum(section.count for section in batch.sections if section.flags & Flags.TRUNCATED)
        if truncated:
            self._metrics.truncated.labels(self._name).inc(truncated)
        self.buffered_bytes -= cost
        if self._paused and self.buffered_bytes <= self._buffer_bytes // 2:
            self._pause(False)

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        self._metrics.paused.labels(self._name).set(paused)
        self._set_paused(paused)

    def _count_rest(self) -> None:
        """What is left now was never acknowledged by the spool: say so."""
        rest = [*self._sealed, *([self._open] if self._open else [])]
        self._sealed.clear()
        self._open = None
        events = sum(one.events for one in rest)
        if events:
            self._metrics.received.labels(self._name).inc(events)
            self._metrics.count_drop(input=self._name, reason="stopped", events=events)
            logging.getLogger(self._name).error(
                "stopped with %d events that the spool had not taken; give the spool room (spool.max_bytes) "
                "or the stop more time",
                events, extra=messages.EVENTS_LOST_AT_STOP,
            )
