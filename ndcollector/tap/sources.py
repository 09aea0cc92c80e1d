"""Where a tap's events come from: the newest records of the spools, or the batches that an output took.

Promises: neither makes the pipeline wait. `unseen` counts the events that passed while nobody looked.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from itertools import groupby
from typing import Protocol

from ndagent.core.decoding import INLINE_BYTES, Undecodable, decode_all, join_small
from ndagent.core.interfaces import Output
from ndagent.core.spool import Record, Spool
from ndagent.core.spool.position import NO_END
from ndagent.core.waiting import first
from ndagent.wire.codec import Decoder
from ndagent.wire.record import CorruptBody, EventBatch, Origin, unpack_body

TAKE_BYTES = 256 * 1024
"""Taken at a time, or one batch."""


class Source(Protocol):
    """What a tap looks at."""

    unseen: int

    async def ready(self) -> None:
        """Return when there may be something to take."""

    async def take(self) -> list[EventBatch]:
        """What is there; does not wait for more."""


class AtSpools:
    """Everything that becomes durable from now on, of all inputs or of one.

    It reads the spools' memory of their newest records. Should they have moved on beyond that memory, so does this.
    """

    def __init__(self, spools: Mapping[str, Spool], decoder: Decoder, *, input_name: str | None) -> None:
        self.unseen = 0
        self._spools = spools
        self._decoder = decoder
        self._input_name = input_name
        self._next = {stream: spool.readable for stream, spool in spools.items()}

    async def ready(self) -> None:
        """See Source."""
        await first(*(spool.wait_readable(self._next[stream]) for stream, spool in self._spools.items()))

    async def take(self) -> list[EventBatch]:
        """See Source."""
        batches: list[EventBatch] = []
        for stream, spool in self._spools.items():
            records = [record for record in self._read(stream, spool) if self._is_wanted(record)]
            if sum(len(record.body) for record in records) <= INLINE_BYTES:
                decoded = decode_all(self._decoder, stream, records, replay=False)
            else:
                decoded = await asyncio.to_thread(decode_all, self._decoder, stream, records, replay=False)
            self.unseen += sum(one.record.count for one in decoded if isinstance(one, Undecodable))
            batches += [self._of_input(one) for one in decoded if isinstance(one, EventBatch)]
        return join_small(batches)

    def _read(self, stream: str, spool: Spool) -> list[Record]:
        start = self._next[stream]
        records = spool.read_tip(start, NO_END, TAKE_BYTES)
        if records:
            self._next[stream] = records[-1].end
        else:
            self.unseen += spool.readable - start
            self._next[stream] = spool.readable
        return records

    def _is_wanted(self, record: Record) -> bool:
        """Whether any of it came through the input; tells before decoding. What nobody can tell is decoded."""
        if self._input_name is None:
            return True
        try:
            return any(Origin.unpack(blob).input == self._input_name for blob in unpack_body(record.body).origins)
        except CorruptBody:
            return True

    def _of_input(self, events: EventBatch) -> EventBatch:
        if self._input_name is None:
            return events
        is_from = [Origin.unpack(blob).input == self._input_name for blob in events.origin_blobs]
        if all(is_from):
            return events
        return events.select([position for position, origin in enumerate(events.origins) if is_from[origin]])


class AtOutput:
    """What an output took from now on, held in at most `buffer_bytes` (or one batch) until it is looked at."""

    def __init__(self, name: str, buffer_bytes: int) -> None:
        self.name = name
        self.unseen = 0
        self._buffer_bytes = buffer_bytes
        self._batches: deque[EventBatch] = deque()
        self._bytes = 0
        self._ready = asyncio.Event()

    def offer(self, events: EventBatch) -> None:
        """Show this batch, or count it where there is no room; never waits."""
        size = len(events.ndjson)
        if self._batches and self._bytes + size > self._buffer_bytes:
            self.unseen += len(events)
            return
        self._batches.append(events)
        self._bytes += size
        self._ready.set()

    async def ready(self) -> None:
        """See Source."""
        await self._ready.wait()

    async def take(self) -> list[EventBatch]:
        """See Source."""
        taken: list[EventBatch] = []
        size = 0
        while self._batches and (not taken or size + len(self._batches[0].ndjson) <= TAKE_BYTES):
            taken.append(self._batches.popleft())
            size += len(taken[-1].ndjson)
        self._bytes -= size
        if not self._batches:
            self._ready.clear()
        runs = groupby(taken, key=lambda batch: (batch.stream, batch.spool_id, batch.replay))
        return [batch for _, run in runs for batch in join_small(list(run))]


class OutputTaps:
    """The taps at outputs; `open` is empty as long as nobody taps."""

    def __init__(self) -> None:
        self.open: tuple[AtOutput, ...] = ()

    def add(self, tap: AtOutput) -> None:
        """Show it what its output takes."""
        self.open = (*self.open, tap)

    def remove(self, tap: AtOutput) -> None:
        """No more."""
        self.open = tuple(one for one in self.open if one is not tap)


class Tapped:
    """An output that shows what the far side took: each event once, however often it was tried."""

    def __init__(self, output: Output, name: str, taps: OutputTaps) -> None:
        self._output = output
        self._name = name
        self._taps = taps

    async def send(self, events: EventBatch) -> None:
        """As the wrapped output."""
        await self._output.send(events)
        for tap in self._taps.open:
            if tap.name == self._name:
                tap.offer(events)

    async def sync(self) -> None:
        """As the wrapped output."""
        await self._output.sync()

    async def aclose(self) -> None:
        """As the wrapped output."""
        await self._output.aclose()
