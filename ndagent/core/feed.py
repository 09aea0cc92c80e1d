"""One stream into one output: read behind the cursor, decode, keep a window of sends, know what is settled.

    spool ──read──► records ──decode──► parts ──route──► [ slot | slot | slot | slot ]   window, at most `in_flight`
                                                            │ done: delivered, filtered or dead-lettered
                            cursor.sequence ≤ settled ◄─────┘ the contiguous prefix of done slots

Promises:
  * `settled` passes an event only after the far side owns it, its dead letter is on disk, or the output's route says
    that it is not for this output; parts are routed one after the other, so they start out in order;
  * the cursor moves only in `confirm`, which the dispatcher calls after `output.sync()`: a crash, a cancel or a failed
    sync at any point sends again and loses nothing;
  * at most `in_flight` sends and about `in_flight * batch_bytes` of decoded events are held, whatever the output does
    (a single record that decodes to more goes alone), and one read ahead of them; no batch waits to fill, unless
    `batch_age` lets it, and then for no longer;
  * with `in_flight: 1` every send ends before the next one starts, so events arrive in sequence order through any
    failure; with more, a failed send is repeated while later ones proceed.
Refuses: knowing why an event is filtered (the route does, see interfaces.py).
"""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from ndagent.core.decoding import JOIN_BELOW_BYTES, Decoded, Decoding, Undecodable, join_small
from ndagent.core.delivery import Delivery
from ndagent.core.interfaces import Journal, Routed
from ndagent.core.spool import Record, Spool
from ndagent.core.tally import Tally
from ndagent.core.waiting import first
from ndagent.wire.record import EventBatch

_EXPANSION = 4
"""ECS JSON is three to four times the syslog text it came from: how much less to read than may be decoded."""
_LINE_BYTES = 512
"""What a line has besides its message: the shortest messages decode to two hundred times their size."""
_HOUR_NS = 3600 * 10**9
_LOOK_SECONDS = 1.0
"""How often a batch that waits for more looks whether it is full."""


class Mark(NamedTuple):
    """How far a feed had settled at one moment, and how many of those events were not delivered."""

    sequence: int
    filtered: int
    dead_lettered: int


class Lag(NamedTuple):
    """How far a feed is behind: where its settled prefix ends, and when the oldest event in the window was received."""

    settled: int
    oldest_received_at_ns: int | None


@dataclass(slots=True)
class _Slot:
    """A send under way, or done and waiting for the ones before it."""

    end: int  # sequence behind its last event
    size_bytes: int
    received_at_ns: int
    filtered: int = 0
    dead_lettered: int = 0
    is_done: bool = False
    tally: Tally | None = None


class Feed:
    """Runs until cancelled; `run` may be called again after it ended and starts from the cursor."""

    def __init__(
        self, *, stream: str, spool: Spool, delivery: Delivery, decoding: Decoding, journal: Journal | None = None
    ) -> None:
        config = delivery.config
        self.cursor = spool.cursor(delivery.name, start=config.start, on_full=config.on_full)
        self.stream = stream
        self._spool = spool
        self._delivery = delivery
        self._decoding = decoding
        self._journal = journal
        self._tally = Tally()  # of settled events that no mark covers yet
        self._marked: list[tuple[int, Tally]] = []
        decoding.join(stream)
        self._read_bytes = max(1, config.batch_bytes // _EXPANSION)
        self._batch_bytes = config.batch_bytes
        self._join_below_bytes = config.batch_bytes if config.fills_batches else JOIN_BELOW_BYTES
        self._most_slots = config.in_flight
        self._most_bytes = config.in_flight * config.batch_bytes
        self._slots: deque[_Slot] = deque()
        self._held_bytes = 0
        self._settled = self.cursor.sequence
        self._filtered = self._dead_lettered = 0  # among the settled events not yet confirmed
        self._moved = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()

    async def run(self) -> None:
        """Feed the output until cancelled; raises what nobody foresaw, after cancelling the sends under way."""
        self.forget()
        self._delivery.begin()
        async with asyncio.TaskGroup() as sends:
            self._reading = sends.create_task(self._read_on(sends))

    async def finish(self) -> None:
        """Begin no more sends, and return when those under way have ended."""
        if self._reading is not None:
            self._reading.cancel()
        await first(self._until(lambda: not self._slots), self._delivery.finish())

    def hurry(self) -> None:
        """From now on no batch waits for more events: there will be none."""
        self._hurried.set()

    def forget(self) -> None:
        """Back to the cursor: what was settled since the last `confirm` will be sent again."""
        self._slots.clear()
        self._held_bytes = 0
        self.cursor.rewind()
        self._settled = self.cursor.sequence
        self._filtered = self._dead_lettered = 0
        self._tally = Tally()
        self._marked.clear()

    @property
    def is_unconfirmed(self) -> bool:
        """Whether `confirm` and `save` have something to do."""
        return self._settled > self.cursor.sequence or self.cursor.unsaved

    def mark(self) -> Mark:
        """What is settled now; take it before `output.sync()`, hand it to `confirm` after."""
        self._marked.append((self._settled, self._tally))
        self._tally = Tally()
        return Mark(self._settled, self._filtered, self._dead_lettered)

    @property
    def lag(self) -> Lag:
        """For operators; the window is empty only while nothing waits."""
        oldest = self._slots[0].received_at_ns if self._slots else None
        return Lag(max(self._settled, self.cursor.sequence), oldest)

    def confirm(self, mark: Mark) -> None:
        """Let the cursor pass what is settled and synced, and the journal note it; `save` makes it last."""
        before = self.cursor.position
        self._filtered -= mark.filtered
        self._dead_lettered -= mark.dead_lettered
        self.cursor.advance(mark.sequence, filtered=mark.filtered, dead_lettered=mark.dead_lettered)
        tally = Tally()
        while self._marked and self._marked[0][0] <= mark.sequence:
            tally.merge(self._marked.pop(0)[1])
        if self._journal is not None:
            self._journal.settled(self.stream, self.cursor, before, tally)

    async def save(self) -> None:
        """Write the cursor down, if it is not."""
        if self.cursor.unsaved:
            await self.cursor.save()

    async def until_progress(self) -> None:
        """Return when there is something to confirm."""
        await self._until(lambda: self.is_unconfirmed)

    def is_coming(self, spool_id: str, sequence: int) -> bool:
        """Whether the cursor has still to pass this event."""
        return sequence >= self.cursor.sequence and spool_id in self._spool.spool_ids

    @property
    def is_caught_up(self) -> bool:
        """Whether everything in the spool is settled (the cursor passes a damaged end by itself)."""
        return max(self._settled, self.cursor.sequence) >= self._spool.next_sequence

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._moved.wait()

    def _has_room(self) -> bool:
        return not self._slots or (len(self._slots) < self._most_slots and self._held_bytes < self._most_bytes)

    async def _read_on(self, sends: asyncio.TaskGroup) -> None:
        while True:
            if self._delivery.config.batch_age:
                await self._gather()
            await self._forward(await self.cursor.read(self._read_bytes), sends)

    async def _gather(self) -> None:
        """Let a batch that would be small wait for what comes meanwhile; a backlog fills its batches as it is."""
        left = self._delivery.config.batch_age
        while await self.cursor.wait() * _LINE_BYTES < self._batch_bytes and left > 0 and not self._hurried.is_set():
            await first(self._delivery.sleep(min(left, _LOOK_SECONDS)), self._hurried.wait())
            left -= _LOOK_SECONDS

    async def _forward(self, records: Sequence[Record], sends: asyncio.TaskGroup) -> None:
        for (is_replay, *_), run in groupby(records, key=self._kind):
            for portion in _portions(run, self._batch_bytes):
                decoded = await self._decoding.decode(self.stream, portion, replay=is_replay)
                parts = _parts(self._unsettled(decoded), join_below_bytes=self._join_below_bytes)
                for part in self._paced(parts):
                    await self._until(self._has_room)
                    routed = await self._route(part)
                    slot = self._open(part, _held_bytes(routed))
                    if self._journal is not None and not is_replay:
                        slot.tally = Tally()
                    sends.create_task(self._settle(routed, slot))

    def _kind(self, record: Record) -> tuple[bool, str, int]:
        """Records that may share a batch: an operator's replay is marked, a spool id is part of the events' ids.

        Where batches are filled, they end with the hour too: what a batch is filed under must not depend on its cut.
        """
        hour = record.received_at_ns // _HOUR_NS if self._delivery.config.fills_batches else 0
        return record.sequence < self.cursor.replay_until, record.spool_id, hour

    def _unsettled(self, decoded: list[Decoded]) -> list[Decoded]:
        """A cursor may stand inside the first record (a replay began or ended there): leave out what is behind it."""
        oldest, floor = decoded[0], self.cursor.sequence
        if isinstance(oldest, Undecodable) or not len(oldest) or oldest.sequences[0] >= floor:
            return decoded
        return [oldest.select(range(bisect_left(oldest.sequences, floor), len(oldest))), *decoded[1:]]

    def _paced(self, parts: Iterable[Decoded]) -> Iterator[Decoded]:
        for part in parts:
            yield from (part,) if isinstance(part, Undecodable) else self._delivery.pieces(part)

    async def _route(self, part: Decoded) -> Routed | Undecodable:
        """Which of the part's events the output gets, and how; what has no events to show is nobody's to filter."""
        if isinstance(part, Undecodable):
            return part
        route = self._delivery.route
        return Routed(part) if route is None else await route(part)

    def _open(self, part: Decoded, size_bytes: int) -> _Slot:
        if isinstance(part, Undecodable):
            slot = _Slot(part.record.end, size_bytes, part.record.received_at_ns)
        else:
            slot = _Slot(part.sequences[-1] + 1, size_bytes, part.received_at_ns)
        self._slots.append(slot)
        self._held_bytes += slot.size_bytes
        return slot

    async def _settle(self, routed: Routed | Undecodable, slot: _Slot) -> None:
        if isinstance(routed, Undecodable):
            slot.dead_lettered = await self._bury(routed)
            buried: Sequence[int] = ()
        else:
            slot.filtered = len(routed.filtered)
            buried = await self._deliver(routed)
            slot.dead_lettered = len(buried)
        if slot.tally is not None:
            _count(slot.tally, routed, buried)
        slot.is_done = True
        while self._slots and self._slots[0].is_done:
            done = self._slots.popleft()
            self._held_bytes -= done.size_bytes
            self._settled = done.end
            self._filtered += done.filtered
            self._dead_lettered += done.dead_lettered
            if done.tally is not None:
                self._tally.merge(done.tally)
        self._moved.set()
        self._moved = asyncio.Event()  # a new one for the next move: who waited on the old one is awake

    async def _deliver(self, routed: Routed) -> list[int]:
        """Send what is to be sent, bury what cannot be; the result is the sequences of the dead letters."""
        buried: list[int] = []
        for events, reason in routed.failed:
            buried += await self._delivery.bury(events, reason)
        if len(routed.events):
            buried += await self._delivery.deliver(routed.events)
        return buried

    async def _bury(self, part: Undecodable) -> int:
        record = part.record
        await self._delivery.bury_body(
            bytes(record.body),
            stream=self.stream,
            spool_id=record.spool_id,
            sequence=record.sequence,
            count=record.count,
            reason=part.reason,
            received_at_ns=record.received_at_ns,
        )
        return record.count


def _count(tally: Tally, routed: Routed | Undecodable, buried: Sequence[int]) -> None:
    """Whose events a part held, and what became of them; `buried` are the dead letters' sequences."""
    if isinstance(routed, Undecodable):
        tally.add_dead_record(routed.record.body)
        return
    dead = set(buried)
    tally.add_filtered(routed.filtered, routed.events.origin_blobs)
    for events, _reason in routed.failed:
        tally.add_events(events, dead=events.sequences)
        dead.difference_update(events.sequences)
    tally.add_events(routed.events, dead=sorted(dead))


def _held_bytes(routed: Routed | Undecodable) -> int:
    if isinstance(routed, Undecodable):
        return len(routed.record.body)
    return len(routed.events.ndjson) + sum(len(events.ndjson) for events, _ in routed.failed)


def _portions(records: Iterable[Record], most_bytes: int) -> Iterator[list[Record]]:
    """Runs of records that decode to about `most_bytes` together; one that decodes to more goes alone."""
    portion: list[Record] = []
    size = 0
    for record in records:
        grown = len(record.body) + record.count * _LINE_BYTES
        if portion and size + grown > most_bytes:
            yield portion
            portion, size = [], 0
        portion.append(record)
        size += grown
    yield portion


def _parts(decoded: Sequence[Decoded], *, join_below_bytes: int) -> list[Decoded]:
    """What is sent together: small batches joined, an undecodable record by itself."""
    parts: list[Decoded] = []
    run: list[EventBatch] = []
    for result in decoded:
        if isinstance(result, EventBatch):
            run.append(result)
        else:
            parts += [*join_small(run, below_bytes=join_below_bytes), result]
            run = []
    return parts + join_small(run, below_bytes=join_below_bytes)
