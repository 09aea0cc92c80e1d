"""Events as Kafka record batches, message format v2 (kafka.apache.org, "Record Batch"): the pure twin of _kafka.pxi.

    batch   61 B  base offset i64 · length i32 · leader epoch i32 · magic i8 · CRC u32 · attributes i16 · last offset
                  delta i32 · first, max timestamp i64 · producer id i64, epoch i16, sequence i32 · count i32
    record  length · attributes i8 · timestamp delta · offset delta · key · value · headers  (numbers: zigzag varints)

Promises:
  * value = the event's line without its LF, byte for byte; key = the host's text (source.ip where an event names none);
    partition = murmur2(key) as the Java client takes it, modulo the partitions: a host keeps its partition;
  * events of a partition keep their order in batches of at most `batch_bytes` before compression (one record at least);
  * an event whose record is larger than `record_bytes` is named, and in no batch;
  * the CRC of a batch's records is taken once: `join_crc32c` puts it behind the header's, which is known only later.
Refuses: compression and the header (who sends it knows the producer), the device's clock: times are the caller's.
"""

import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import orjson

from ndagent.wire.ecs import partition_key
from ndagent.wire.record import EventBatch

HEADER = struct.Struct(">qiibIhiqqqhii")
CHECKED_FROM = 21
"""Bytes of a batch in front of what its CRC covers."""

RECORD_OVERHEAD = 21
"""The most that a record has besides key, value and headers: three varints and the attributes."""

ID_HEADER = b"event.id"
_SOURCE = re.compile(rb'"source":\{"ip":"([^"\\]+)"')
_REPLACED = "\N{REPLACEMENT CHARACTER}".encode()
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected
_ONE = 1 << 31  # x^0 in that order of bits


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """Bytes of a batch and of a record alone in its batch; `batch_records` splits further, to find a refused record."""

    batch_bytes: int
    record_bytes: int
    batch_records: int | None = None


class RecordBatch(NamedTuple):
    """Records of one partition; `data` has room for the header (zeros) in front of them."""

    partition: int
    records: int
    first_ms: int
    max_ms: int
    data: bytearray


class Strays(NamedTuple):
    """Events whose key does not stand in their line as it is: ascending positions, keys, and the keys' murmur2."""

    positions: "array[int]"
    keys: list[bytes]
    hashes: "array[int]"


class Stamps(NamedTuple):
    """Times in milliseconds, one for each event or one for all; `ids` go into a header each, None: no headers."""

    times_ms: "array[int]"
    ids: Sequence[bytes] | None = None


def find_strays(events: EventBatch) -> "array[int]":
    """Positions of events without host, or whose host's text has escapes or replaced bytes: not what was hashed."""
    found = array("I")
    starts = accumulate(events.lengths, initial=0)
    for index, (start, at, length) in enumerate(zip(starts, events.host_offsets, events.host_lengths, strict=False)):
        name = events.ndjson[start + at : start + at + length]
        if not at or b"\\" in name or _REPLACED in name:
            found.append(index)
    return found


def strays_of(events: EventBatch, positions: "array[int]") -> Strays:
    """The keys of those events; each text is worked out once, and each origin where nobody else stands behind it."""
    known: dict[tuple[bool, bytes] | int, tuple[bytes, int]] = {}
    origins = events.origins if events.are_origins_own else None
    strays = Strays(positions, [], array("I"))
    starts = list(accumulate(events.lengths, initial=0)) if positions else []
    for index in positions:
        at = events.host_offsets[index]
        if origins is not None and not at and (found := known.get(origins[index])) is not None:
            strays.keys.append(found[0])
            strays.hashes.append(found[1])
            continue
        line = events.ndjson[starts[index] : starts[index + 1]]
        name = bool(at), line[at : at + events.host_lengths[index]] if at else _source(line)
        found = known.get(name)
        if found is None:
            key = str(orjson.loads(b'"%b"' % name[1])).encode() if at else name[1]
            found = known[name] = key, partition_key(key)
        if origins is not None and not at:
            known[origins[index]] = found
        strays.keys.append(found[0])
        strays.hashes.append(found[1])
    return strays


def _source(line: bytes) -> bytes:
    """Whose connection it was; whose traffic, where the event does not say that. Events of others may say anything."""
    if line.count(b'"source":{') == 1 and (found := _SOURCE.search(line)):  # no need to parse it
        return found[1]
    event = orjson.loads(line)
    for source in (_member(_member(event, "log"), "source"), _member(event, "source")):
        address = source.get("ip") or source.get("address")
        if isinstance(address, str) and address:
            return address.encode()
    return b""


def _member(event: dict[str, Any], name: str) -> dict[str, Any]:
    found = event.get(name)
    return found if isinstance(found, dict) else {}


def partitions_of(events: EventBatch, strays: Strays, partitions: int) -> list[int]:
    """Where `encode_records` puts each event."""
    found = [key % partitions for key in events.keys]
    for index, key in zip(strays.positions, strays.hashes, strict=True):
        found[index] = key % partitions
    return found


class _Open:
    """A batch that takes more."""

    def __init__(self, partition: int, first_ms: int) -> None:
        self.partition = partition
        self.records = 0
        self.first_ms = self.max_ms = first_ms
        self.data = bytearray(HEADER.size)

    def put(self, content: bytes, time_ms: int, limits: RecordLimits) -> bool:
        """Whether there was room."""
        body = b"\0" + varint(time_ms - self.first_ms) + varint(self.records) + content
        record = varint(len(body)) + body
        is_full = self.records == limits.batch_records or len(self.data) + len(record) > limits.batch_bytes
        if self.records and is_full:
            return False
        self.data += record
        self.records += 1
        self.max_ms = max(self.max_ms, time_ms)
        return True


def encode_records(
    events: EventBatch, *, partitions: int, strays: Strays, stamps: Stamps, limits: RecordLimits
) -> tuple[list[RecordBatch], list[int]]:
    """(batches in the order in which each partition must get them, positions of events that are too large).

    Raises ValueError where the arrays do not fit the events.
    """
    _check(events, stamps)
    batches: list[_Open] = []
    newest: dict[int, _Open] = {}
    too_large: list[int] = []
    places = partitions_of(events, strays, partitions)
    times = stamps.times_ms if len(stamps.times_ms) == len(events) else stamps.times_ms * len(events)
    for index, (content, time_ms) in enumerate(zip(_contents(events, strays, stamps), times, strict=True)):
        if HEADER.size + RECORD_OVERHEAD + len(content) > limits.record_bytes:
            too_large.append(index)
            continue
        partition = places[index]
        batch = newest.get(partition)
        if batch is None or not batch.put(content, time_ms, limits):
            batch = newest[partition] = _Open(partition, time_ms)
            batches.append(batch)
            batch.put(content, time_ms, limits)
    return [RecordBatch(one.partition, one.records, one.first_ms, one.max_ms, one.data) for one in batches], too_large


def _check(events: EventBatch, stamps: Stamps) -> None:
    count = len(events)
    columns = events.lengths, events.host_offsets, events.host_lengths
    if not len(events.host_offsets) == len(events.host_lengths) == len(events.keys) == count:
        raise ValueError("arrays of different lengths")
    if sum(events.lengths) != len(events.ndjson) or any(
        not length or at + size > length for length, at, size in zip(*columns, strict=True)
    ):
        raise ValueError("the arrays do not fit the events")
    if len(stamps.times_ms) not in {1, count}:
        raise ValueError(f"{len(stamps.times_ms)} times for {count} events")
    if stamps.ids is not None and len(stamps.ids) != count:
        raise ValueError(f"{len(stamps.ids)} ids for {count} events")


def _contents(events: EventBatch, strays: Strays, stamps: Stamps) -> Iterator[bytes]:
    """Key, value and headers of each event's record."""
    odd = dict(zip(strays.positions, strays.keys, strict=True))
    for index, line in enumerate(events.lines()):
        at = events.host_offsets[index]
        key = odd[index] if index in odd else line[at : at + events.host_lengths[index]]
        headers = b"\0" if stamps.ids is None else b"\2" + sized(ID_HEADER) + sized(stamps.ids[index])
        yield sized(key) + sized(line[:-1]) + headers


def sized(data: bytes) -> bytes:
    """The bytes behind their number."""
    return varint(len(data)) + data


def varint(value: int) -> bytes:
    """Zigzag: small numbers of either sign are short (protobuf's sint64)."""
    rest = value << 1 if value >= 0 else ~(value << 1)
    found = bytearray()
    while rest > 0x7F:
        found.append(rest & 0x7F | 0x80)
        rest >>= 7
    found.append(rest)
    return bytes(found)


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC-32C (RFC 3720 §12.1)."""
    table = _table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> list[int]:
    found = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        found.append(crc)
    return found


def join_crc32c(front: int, back: int, back_bytes: int) -> int:
    """The CRC of two pieces from each one's: the front's, shifted over the back's length (a product modulo P)."""
    factor, power, left = _ONE, _ONE >> 8, back_bytes  # power: x^8, one byte
    while left:
        if left & 1:
            factor = _product(factor, power)
        power = _product(power, power)
        left >>= 1
    return _product(factor, front) ^ back


def _product(a: int, b: int) -> int:
    found = 0
    while a:
        if a & _ONE:
            found ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return found
