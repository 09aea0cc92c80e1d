"""Events to Kafka record batches: which partition, which key, which timestamp, and what is too large.

    EventBatch ──► for each partition, in order: record batches of at most `batch_bytes`

Promises:
  * key = the host's text (source.ip where an event names no host); partition = murmur2(key) as the Java client takes
    it, modulo the partitions: a host keeps its partition, and events of a partition keep their order;
  * value = the event's line without its LF, byte for byte; timestamp = when we received it, to the second at least;
  * an event that makes a record larger than `record_bytes` is named, not sent;
  * per event one dictionary look-up and one `append`; whoever encodes much yields to the loop in between.
Refuses: sending (kafka_session.py), and knowing which events were acknowledged (kafka_line.py).
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from ndagent.wire.ecs import partition_key
from ndagent.wire.record import EventBatch

YIELD_EVERY = 1024
"""Events encoded before the loop gets a turn: about a millisecond."""

_SAME_TIME_NS = 10**9
"""Events received within a second of each other share a timestamp; beyond, each gets its own, at a price."""

_REPLACED = "\N{REPLACEMENT CHARACTER}".encode()

CreateBatch = Callable[[], Any]
"""AIOKafkaProducer.create_batch."""


@dataclass(frozen=True, slots=True)
class PartitionBatch:
    """Records of one partition, ready to be sent."""

    partition: int
    builder: Any  # aiokafka's BatchBuilder

    @property
    def records(self) -> int:
        """How many there are in it."""
        count: int = self.builder.record_count()
        return count


@dataclass(frozen=True, slots=True)
class Limits:
    """`batch_records` splits batches further, to find the one record that a broker refuses."""

    record_bytes: int
    batch_records: int | None = None


class _Target:
    """One partition's open batch; `append` is the builder's, bound anew with every batch."""

    __slots__ = ("_create", "_found", "append", "builder", "number")

    def __init__(self, number: int, found: list[PartitionBatch], create: CreateBatch) -> None:
        self.number = number
        self._found = found
        self._create = create
        self.open()

    def open(self) -> None:
        """Begin another batch."""
        self.builder = self._create()
        self.append = self.builder.append
        self._found.append(PartitionBatch(self.number, self.builder))


class Encoding:
    """One EventBatch on its way into record batches: `batches` in the order each partition must get them.

    `too_large` are positions in the EventBatch of what was left out.
    """

    def __init__(self, events: EventBatch, *, partitions: int, create: CreateBatch, limits: Limits) -> None:
        self.batches: list[PartitionBatch] = []
        self.too_large: list[int] = []
        self._events = events
        self._create = create
        self._limits = limits
        self._keys = Keys(events, partitions)
        self._targets: dict[int, _Target] = {}

    async def run(self, indexes: Sequence[int] | None, *, headers: bool) -> None:
        """Encode the events at these ascending positions (None: all of them)."""
        if indexes is None and not headers and self._limits.batch_records is None and _came_together(self._events):
            await self._all_alike()
            return
        for count, (index, line) in enumerate(_lines(self._events, indexes), 1):
            self._one(index, line, headers=headers)
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _all_alike(self) -> None:
        """The usual case, spelled out: this loop is what the output costs."""
        events, at = self._events, 0
        ndjson, timestamp = events.ndjson, events.received_at_ns // 1_000_000
        suspicious = self._limits.record_bytes // 2  # a line has its key in it, so a shorter one always fits
        places: dict[bytes, tuple[_Target, bytes]] = {}
        columns = zip(events.lengths, events.host_offsets, events.host_lengths, strict=True)
        for index, (length, host_at, host_length) in enumerate(columns):
            end = at + length
            name = ndjson[at + host_at : at + host_at + host_length]
            place = places.get(name)
            if place is None:
                key, number = self._keys.of(index, ndjson[at:end])
                place = self._target(number), key
                if host_at:  # no name: by origin, and the next one may have another
                    places[name] = place
            target, key = place
            line = ndjson[at : end - 1]
            at = end
            if length > suspicious and _size(key, line) > self._limits.record_bytes:
                self.too_large.append(index)
            elif target.append(timestamp=timestamp, key=key, value=line) is None:
                target.open()
                target.append(timestamp=timestamp, key=key, value=line)
            if index % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)

    def _one(self, index: int, line: bytes, *, headers: bool) -> None:
        key, number = self._keys.of(index, line)
        event = orjson.loads(line)
        timestamp = received_ms(event) or self._events.received_at_ns // 1_000_000
        extra = [("event.id", str(event["event"]["id"]).encode())] if headers else []
        if _size(key, line, extra) > self._limits.record_bytes:
            self.too_large.append(index)
            return
        target = self._target(number)
        is_full = target.builder.record_count() == self._limits.batch_records
        if is_full or target.append(timestamp=timestamp, key=key, value=line, headers=extra) is None:
            target.open()
            target.append(timestamp=timestamp, key=key, value=line, headers=extra)

    def _target(self, number: int) -> _Target:
        target = self._targets.get(number)
        if target is None:
            target = self._targets[number] = _Target(number, self.batches, self._create)
        return target


class Keys:
    """Key and partition of each event of a batch; each host and each origin is worked out once."""

    def __init__(self, events: EventBatch, partitions: int) -> None:
        self._events = events
        self._partitions = partitions
        self._known: dict[bytes | int, tuple[bytes, int]] = {}

    def of(self, index: int, line: bytes) -> tuple[bytes, int]:
        """The record's key and its partition."""
        events = self._events
        at = events.host_offsets[index]
        name = line[at : at + events.host_lengths[index]] if at else events.origins[index]
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self._work_out(index, name, line)
        return found

    def _work_out(self, index: int, name: bytes | int, line: bytes) -> tuple[bytes, int]:
        if isinstance(name, int):
            source = orjson.loads(line).get("source", {})
            key = str(source.get("ip") or source.get("address") or "").encode()
        elif b"\\" not in name and _REPLACED not in name:
            return name, self._events.keys[index] % self._partitions
        else:  # what was hashed is not what stands in the line; a Java client would hash what it sees
            key = str(orjson.loads(b'"%b"' % name)).encode()
        return key, partition_key(key) % self._partitions


def _lines(events: EventBatch, indexes: Sequence[int] | None) -> Iterator[tuple[int, bytes]]:
    """Position and line, without the LF."""
    ndjson, at = events.ndjson, 0
    if indexes is None:
        for index, length in enumerate(events.lengths):
            yield index, ndjson[at : at + length - 1]
            at += length
        return
    wanted = set(indexes)
    for index, length in enumerate(events.lengths):
        if index in wanted:
            yield index, ndjson[at : at + length - 1]
        at += length


def partition_of_each(events: EventBatch, indexes: Sequence[int] | None, partitions: int) -> list[tuple[int, int]]:
    """(position, partition) of the events, as `encode` places them."""
    keys = Keys(events, partitions)
    return [(index, keys.of(index, line)[1]) for index, line in _lines(events, indexes)]


def position_of(
    events: EventBatch, indexes: Sequence[int] | None, partitions: int, *, partition: int, place: int
) -> int:
    """The position in the EventBatch of a partition's record number `place`."""
    placed = partition_of_each(events, indexes, partitions)
    return [index for index, its in placed if its == partition][place]


def _came_together(events: EventBatch) -> bool:
    """Whether one timestamp is true enough for all: batches of a quiet hour are joined before they are sent."""
    last = events.ndjson[-events.lengths[-1] :]
    return abs(received_ms(orjson.loads(last)) * 1_000_000 - events.received_at_ns) < _SAME_TIME_NS


def received_ms(event: dict[str, Any]) -> int:
    """event.created in milliseconds; 0, the epoch, is further from any truth than a second."""
    try:
        return int(datetime.fromisoformat(event["event"]["created"]).timestamp() * 1000)
    except (KeyError, TypeError, ValueError):
        return 0


def _size(key: bytes, line: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> int:
    """Upper bound of a batch with this record alone."""
    size: int = DefaultRecordBatchBuilder.estimate_size_in_bytes(key, line, list(headers))
    return size
