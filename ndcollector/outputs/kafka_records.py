"""Events to record batches that aiokafka sends as they are: compressed, checksummed, all of it beside the loop.

    EventBatch ──► for each partition, in order: PartitionBatches of at most `batch_bytes`

Promises:
  * keys, partitions, order and limits as ndagent/wire/kafka_records.py has them;
  * a record's timestamp is when we received the event, to the second where we decoded it; no event that another machine
    made can say a time before its batch came, which would expire too soon, or after now, which brokers refuse;
  * more than a few events are encoded in a thread, which compiled code and compression leave to run by itself;
  * aiokafka takes a PartitionBatch for one of its BatchBuilders. What it says of the producer goes into the header, the
    records behind it are neither copied nor read again: the CRC is joined from the header's and theirs.
Refuses: sending (kafka_session.py), and knowing which events were acknowledged (kafka_line.py).
"""

import asyncio
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import orjson
from aiokafka.codec import lz4_encode, zstd_encode

from ndagent.wire.codec import record_codec
from ndagent.wire.kafka_records import (
    CHECKED_FROM,
    HEADER,
    RecordBatch,
    RecordLimits,
    Stamps,
    partitions_of,
    strays_of,
)
from ndagent.wire.record import EventBatch

INLINE_BYTES = 16 * 1024
"""So little is encoded on the loop: less than the way to a thread and back takes."""

_SAME_TIME_NS = 10**9
"""Events received within a second of each other share a timestamp; beyond, each gets its own, at a price."""

_CODECS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "lz4": (3, partial(lz4_encode, level=1)),  # aiokafka's 9 takes nine times as long, and zstd is better at either
    "zstd": (4, zstd_encode),
}
"""The batch attributes' low bits (KIP-98, KIP-110), and who compresses."""
_TRANSACTIONAL = 0x10
_MAGIC = 2
_NO_LEADER_EPOCH = -1
_CRC = struct.Struct(">I")
_CRC_AT = CHECKED_FROM - _CRC.size
_AFTER_LENGTH = 12

_codec = record_codec()


@dataclass(frozen=True, slots=True)
class BatchForm:
    """What all batches of a session have in common."""

    batch_bytes: int
    compression: str | None
    is_transactional: bool


class PartitionBatch:
    """Records of one partition, ready to be sent; the methods without a word are those of aiokafka's BatchBuilder."""

    __slots__ = ("_attributes", "_crc", "_data", "_times_ms", "partition", "records")

    def __init__(self, batch: RecordBatch, form: BatchForm) -> None:
        self.partition = batch.partition
        self.records = batch.records
        self._times_ms = batch.first_ms, batch.max_ms
        self._data = batch.data
        self._attributes = _TRANSACTIONAL if form.is_transactional else 0
        if form.compression is not None:
            number, compress = _CODECS[form.compression]
            packed = compress(bytes(memoryview(batch.data)[HEADER.size :]))
            if HEADER.size + len(packed) < len(batch.data):
                self._data = bytearray(HEADER.size) + packed
                self._attributes |= number
        self._crc = _codec.crc32c(memoryview(self._data)[HEADER.size :])

    def size(self) -> int:
        return len(self._data)

    def record_count(self) -> int:
        return self.records

    def closed(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        data, last = self._data, self.records - 1
        HEADER.pack_into(
            data, 0, 0, len(data) - _AFTER_LENGTH, _NO_LEADER_EPOCH, _MAGIC, 0, self._attributes, last,
            *self._times_ms, producer_id, producer_epoch, base_sequence, self.records,
        )  # fmt: skip
        front = _codec.crc32c(data[CHECKED_FROM : HEADER.size])
        _CRC.pack_into(data, _CRC_AT, _codec.join_crc32c(front, self._crc, len(data) - HEADER.size))

    def _build(self) -> bytearray:
        return self._data


@dataclass(frozen=True, slots=True)
class Encoding:
    """An EventBatch as `batches`, in the order in which each partition must get them.

    `too_large` are positions in the EventBatch of what was left out.
    """

    batches: list[PartitionBatch]
    too_large: list[int]


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """How events become batches; `batch_records` splits further, to find the one record that a broker refuses."""

    form: BatchForm
    partitions: int
    record_bytes: int
    headers: bool
    now_ms: int
    batch_records: int | None = None


async def encode(events: EventBatch, indexes: Sequence[int] | None, settings: EncodeSettings) -> Encoding:
    """Encode the events at these ascending positions (None: all of them)."""
    work = partial(_encode, events, indexes, settings)
    return work() if len(events.ndjson) <= INLINE_BYTES else await asyncio.to_thread(work)


def _encode(events: EventBatch, indexes: Sequence[int] | None, settings: EncodeSettings) -> Encoding:
    chosen = events if indexes is None else events.select(indexes)
    if not len(chosen):
        return Encoding([], [])
    form = settings.form
    batches, too_large = _codec.encode_records(
        chosen,
        partitions=settings.partitions,
        strays=strays_of(chosen, _codec.find_strays(chosen)),
        stamps=_stamps(chosen, settings),
        limits=RecordLimits(form.batch_bytes, settings.record_bytes, settings.batch_records),
    )
    named = too_large if indexes is None else [indexes[position] for position in too_large]
    return Encoding([PartitionBatch(batch, form) for batch in batches], named)


def partition_of_each(events: EventBatch, indexes: Sequence[int] | None, partitions: int) -> list[tuple[int, int]]:
    """(position, partition) of the events, as `encode` places them."""
    found = partitions_of(events, strays_of(events, _codec.find_strays(events)), partitions)
    return [(index, found[index]) for index in (range(len(events)) if indexes is None else indexes)]


def position_of(
    events: EventBatch, indexes: Sequence[int] | None, partitions: int, *, partition: int, place: int
) -> int:
    """The position in the EventBatch of a partition's record number `place`."""
    placed = partition_of_each(events, indexes, partitions)
    return [index for index, its in placed if its == partition][place]


def _stamps(events: EventBatch, settings: EncodeSettings) -> Stamps:
    earliest = events.received_at_ns // 1_000_000
    latest = max(earliest, settings.now_ms)
    if not settings.headers and _came_together(events):
        return Stamps(array("q", [earliest]))
    times, ids = array("q"), []
    for event in map(orjson.loads, events.lines()):
        times.append(min(max(earliest, received_ms(event)), latest))
        if settings.headers:
            ids.append(_id_of(event))
    return Stamps(times, ids if settings.headers else None)


def _came_together(events: EventBatch) -> bool:
    """Whether one timestamp is true enough for all: batches of a quiet hour are joined before they are sent."""
    last = events.ndjson[-events.lengths[-1] :]
    return abs(received_ms(orjson.loads(last)) * 1_000_000 - events.received_at_ns) < _SAME_TIME_NS


def received_ms(event: dict[str, Any]) -> int:
    """When the event says that it came: event.ingested is ours, of agents' events, event.created of those we decoded.

    0, the epoch, is further from any truth than a second.
    """
    about = event.get("event")
    if not isinstance(about, dict):
        return 0
    try:
        return int(datetime.fromisoformat(about.get("ingested") or about["created"]).timestamp() * 1000)
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0


def _id_of(event: dict[str, Any]) -> bytes:
    """Empty where a route has taken it away."""
    about = event.get("event")
    return str(about.get("id", "")).encode() if isinstance(about, dict) else b""
