"""Spool records to events, in threads, each record once for all the outputs that are near it.

Promises:
  * `decode` never blocks the loop for more than a small record; the compiled codec runs with the GIL released;
  * outputs at the tip share one decoded copy: a ring of at most `ring_bytes` per process, single-flight (the first who
    asks decodes, the others wait for that), an entry leaves once every output of the stream has taken it;
  * nothing is kept for an output that is dead: once it let the ring overflow, the ring only marks for it what went by,
    until it meets a mark and is among the others again;
  * an output that lags decodes alone, so it neither waits for the ring nor pushes others' records out of it;
  * a record that cannot be decoded (its CRC is right, so it was written like that) comes back as Undecodable, never as
    an exception: it is one record's fate, not the output's.
Refuses: order, sending, retrying.
"""

import asyncio
import logging
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.spool import Record
from ndagent.wire.record import NO_PRIORITY, CorruptBody, EventBatch

if TYPE_CHECKING:
    from ndagent.wire.codec import Decoder  # it loads the compiled codec, which an agent does without

log = logging.getLogger(__name__)

INLINE_BYTES = 8 * 1024
"""So little is decoded on the loop: some 10 µs of compiled code against 60 µs for the way to a thread and back."""

JOIN_BELOW_BYTES = 256 * 1024
"""Decoded batches smaller than this are joined, so that one send carries many; larger ones are worth a send each."""


_throttle = Throttle(60.0, clock=time.monotonic)  # a bug that every record meets must not fill the journal

_THREADS = 2
"""Compiled decoding of one record is a core's work; a third thread would only queue for the same two cores."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A record whose bytes have no events to show, and why."""

    record: Record
    reason: str


Decoded = EventBatch | Undecodable
Watch = Callable[[str, Sequence[EventBatch], int], None]
"""Told of what was decoded; on the loop, so it only notes."""


@dataclass(slots=True)
class _Entry:
    """Where a shared record's result is, or will be: `job` gives it at `position`. `takers` have yet to come.

    Without a job it is a mark: nobody but those who are late has yet to come.
    """

    stream: str
    job: "asyncio.Future[list[Decoded]] | None"
    position: int
    takers: int
    size_bytes: int = 0


class Decoding:
    """Shared by all outputs of a process; `ring_bytes` bounds what it keeps beyond what they hold.

    `watch` is shown what was decoded, each record once (again after a restart, if it waited): stream, batches, and the
    sequence behind the last.
    """

    def __init__(self, decoder: "Decoder", *, metrics: Metrics, ring_bytes: int, watch: "Watch | None" = None) -> None:
        self._decoder = decoder
        self._metrics = metrics
        self._ring_bytes = ring_bytes
        self._watch = watch
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
        self._ring: OrderedDict[tuple[str, int], _Entry] = OrderedDict()
        self._held_bytes = 0
        self._tips: dict[str, int] = {}  # stream → where the furthest record decoded so far ends
        self._consumers: dict[str, int] = {}  # stream → outputs that read it
        self._late: dict[str, int] = {}  # stream → how many of them are behind what the ring holds
        self._counted: dict[str, int] = {}  # stream → up to where parse failures are counted

    def beside(self, decoder: "Decoder") -> "Decoding":
        """Another one for outputs that need their events decoded otherwise; failures are counted once for both."""
        other = Decoding(decoder, metrics=self._metrics, ring_bytes=self._ring_bytes, watch=self._watch)
        other._counted = self._counted
        return other

    def join(self, stream: str) -> None:
        """Announce an output that will read this stream: only records with several readers are kept."""
        self._consumers[stream] = self._consumers.get(stream, 0) + 1

    def close(self) -> None:
        """Let the threads end; running ones finish their record first."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._ring.clear()

    async def decode(self, stream: str, records: Sequence[Record], *, replay: bool) -> list[Decoded]:
        """One result per record, in order. Replayed records are decoded alone: they carry a mark of their own."""
        shared = [None if replay else self._take(record) for record in records]
        missing = [record for record, entry in zip(records, shared, strict=True) if entry is None]
        job = self._start(stream, missing, replay=replay) if missing else None
        found: list[Decoded] = []
        position = 0
        for taken in shared:
            if taken is not None:
                found.append((await asyncio.shield(taken[0]))[taken[1]])
            elif job is not None:
                found.append((await asyncio.shield(job))[position])
                position += 1
        return found

    def _take(self, record: Record) -> "tuple[asyncio.Future[list[Decoded]], int] | None":
        """Who gives a record's result, and its place in that; None: it must be decoded."""
        key = (record.spool_id, record.sequence)
        entry = self._ring.get(key)
        if entry is None:
            return None
        taken = None if entry.job is None else (entry.job, entry.position)
        if taken is None:  # one that was late is here
            self._late[entry.stream] = max(0, self._late.get(entry.stream, 0) - 1)
        entry.takers -= 1
        if entry.takers == 0:
            self._drop(key)
        elif taken is not None and taken[0].done():
            self._keep_for_others(entry)
        return taken

    def _keep_for_others(self, entry: _Entry) -> None:
        """Or only a mark, where all who have yet to come are late."""
        if entry.takers <= self._late.get(entry.stream, 0):
            entry.job = None

    def _start(self, stream: str, records: list[Record], *, replay: bool) -> "asyncio.Future[list[Decoded]]":
        loop = asyncio.get_running_loop()
        job: asyncio.Future[list[Decoded]]
        if sum(len(record.body) for record in records) <= INLINE_BYTES:
            job = loop.create_future()
            job.set_result(decode_all(self._decoder, stream, records, replay=replay))
        else:
            work = self._threads.submit(decode_all, self._decoder, stream, records, replay=replay)
            job = asyncio.wrap_future(work, loop=loop)
        if not replay and records[0].sequence >= self._tips.get(stream, 0):
            self._tips[stream] = records[-1].end
            if records[0].sequence >= self._counted.get(stream, 0):
                self._counted[stream] = records[-1].end
                job.add_done_callback(lambda done: self._look(stream, done, records[-1].end))
            others = self._consumers.get(stream, 1) - 1
            if others > 0:
                self._share(stream, records, job, takers=others)
        return job

    def _look(self, stream: str, job: "asyncio.Future[list[Decoded]]", end: int) -> None:
        """Count failures, and show `watch`: once per record in a process's life, however many outputs decode it."""
        if job.cancelled() or job.exception() is not None:
            return
        batches = [result for result in job.result() if isinstance(result, EventBatch)]
        found = sum(map(_parse_failures, batches))
        if found:
            self._metrics.parse_failures.labels(stream).inc(found)
        if self._watch is not None:
            self._watch(stream, batches, end)

    def _share(self, stream: str, records: list[Record], job: "asyncio.Future[list[Decoded]]", *, takers: int) -> None:
        keys = [(record.spool_id, record.sequence) for record in records]
        self._ring.update({key: _Entry(stream, job, position, takers) for position, key in enumerate(keys)})
        job.add_done_callback(lambda done: self._weigh(keys, done))

    def _weigh(self, keys: list[tuple[str, int]], job: "asyncio.Future[list[Decoded]]") -> None:
        """Now that sizes are known: count what is kept, forget the oldest beyond the limit."""
        failed = job.cancelled() or job.exception() is not None
        for position, key in enumerate(keys):
            entry = self._ring.get(key)
            if entry is None or entry.job is not job:
                continue
            if failed:
                self._drop(key)
                continue
            result = job.result()[position]
            entry.size_bytes = len(result.ndjson) if isinstance(result, EventBatch) else len(result.record.body)
            self._held_bytes += entry.size_bytes
            self._keep_for_others(entry)
        while self._held_bytes > self._ring_bytes and self._ring:
            self._let_go(next(iter(self._ring)))

    def _let_go(self, key: tuple[str, int]) -> None:
        """The ring is full; whoever has not taken this by now is late."""
        entry = self._ring[key]
        if entry.job is not None and entry.job.done():
            self._late[entry.stream] = max(entry.takers, self._late.get(entry.stream, 0))
        self._drop(key)

    def _drop(self, key: tuple[str, int]) -> None:
        self._held_bytes -= self._ring.pop(key).size_bytes


def _parse_failures(batch: EventBatch) -> int:
    return batch.priorities.count(NO_PRIORITY) if batch.parse_failures is None else batch.parse_failures


def decode_all(decoder: "Decoder", stream: str, records: Sequence[Record], *, replay: bool) -> list[Decoded]:
    """Decode record by record; what fails becomes Undecodable. Runs in any thread."""
    return [_decode_one(decoder, stream, record, replay=replay) for record in records]


def _decode_one(decoder: "Decoder", stream: str, record: Record, *, replay: bool) -> Decoded:
    try:
        events = decoder.decode(
            record.body,
            stream=stream,
            spool_id=record.spool_id,
            sequence=record.sequence,
            received_at_ns=record.received_at_ns,
            replay=replay,
        )
    except CorruptBody as error:
        return Undecodable(record, f"corrupt_body: {error}")
    except MemoryError:
        raise  # says nothing about the record: the output waits and asks again
    except Exception as bug:  # a bug in a parser must cost one record's form, not the output's life
        silenced = _throttle.allow(type(bug))
        if silenced is not None:
            log.exception(
                "the decoder failed at sequence %d of stream %s; the record goes to the dead letters of each output. "
                "Please report this traceback", record.sequence, stream, extra={"silenced": silenced},
            )
        return Undecodable(record, f"decoder_failed: {type(bug).__name__}: {bug}")
    if len(events) != record.count:
        # The ledger counts in sequences: a record that yields more or fewer events would make it lie.
        return Undecodable(record, f"corrupt_body: {len(events)} events where the record says {record.count}")
    return events


def join_small(batches: Sequence[EventBatch], *, below_bytes: int = JOIN_BELOW_BYTES) -> list[EventBatch]:
    """The batches of one stream in order, runs of those smaller than `below_bytes` joined into one."""
    joined: list[EventBatch] = []
    run: list[EventBatch] = []
    for batch in filter(len, batches):
        if len(batch.ndjson) < below_bytes:
            run.append(batch)
            continue
        joined += [*_as_one(run), batch]
        run = []
    return [*joined, *_as_one(run)]


def _as_one(run: list[EventBatch]) -> list[EventBatch]:
    if len(run) < 2:
        return run
    origins, blobs = _merge_origins(run)
    return [
        replace(
            run[0],
            sequences=_merge_sequences([batch.sequences for batch in run]),
            received_at_ns=min(batch.received_at_ns for batch in run),
            ndjson=b"".join([batch.ndjson for batch in run]),
            lengths=_merge("I", [batch.lengths for batch in run]),
            priorities=b"".join([batch.priorities for batch in run]),
            host_offsets=_merge("I", [batch.host_offsets for batch in run]),
            host_lengths=_merge("H", [batch.host_lengths for batch in run]),
            keys=_merge("I", [batch.keys for batch in run]),
            origins=origins,
            origin_blobs=blobs,
            are_origins_own=all(batch.are_origins_own for batch in run),
        )
    ]


def _merge(typecode: str, parts: Sequence["array[int]"]) -> "array[int]":
    merged = array(typecode)
    for part in parts:
        merged.extend(part)
    return merged


def _merge_sequences(parts: Sequence[Sequence[int]]) -> Sequence[int]:
    """A range where the parts are ranges without gaps (quarantined records leave gaps), else a list."""
    follows = all(before[-1] + 1 == after[0] for before, after in pairwise(parts))
    if follows and all(isinstance(part, range) for part in parts):
        return range(parts[0][0], parts[-1][-1] + 1)
    return list(chain.from_iterable(parts))


def _merge_origins(run: Sequence[EventBatch]) -> tuple["array[int]", Sequence[bytes]]:
    """Origins stand once however many batches name them; the indexes are moved only where they change."""
    known: dict[bytes, int] = {}
    merged: array[int] = array("I")
    for batch in run:
        moved = [known.setdefault(blob, len(known)) for blob in batch.origin_blobs]
        if moved == list(range(len(moved))):
            merged.extend(batch.origins)
        elif len(moved) == 1:
            merged.extend(array("I", moved) * len(batch))
        else:
            merged.extend(array("I", map(moved.__getitem__, batch.origins)))
    return merged, tuple(known)
