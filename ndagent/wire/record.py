"""What travels between input, spool, decoder and output: Batch in, EventBatch out, and the bytes of a record body.

Promises:
  * a Batch keeps the bytes as they came (raw first), who sent them and when; nothing here parses a message;
  * `pack_body` / `unpack_body` are exact inverses, and unpacking hostile bytes raises CorruptBody, nothing else;
  * an EventBatch is one NDJSON buffer plus parallel arrays: outputs slice it, they do not re-encode.
Refuses: I/O, clocks, logging, asyncio.

Body layout (integers little-endian), the part of a spool record behind its header:

    u32   head length
    head  msgpack [body version, format, [origin blob, ...]] and, where the batch has one, its checkpoint:
          [input name, position] with a position of bytes, or of a map of parts (bytes → bytes, empty = forgotten)
    u32   number of sections
    16 B  per section: u32 origin index, u32 byte length, u32 message count, u8 framing, u8 flags, u16 zero
    ...   payload: the sections' bytes, one after the other

Origins stand once per record however many sections name them; a blob is `Origin.packed`, so a decoder can cache by it.
"""

import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag
from functools import cached_property
from typing import NamedTuple

import msgpack

BODY_VERSION = 1
_U32 = struct.Struct("<I")
SECTION = struct.Struct("<IIIBBH")

AGENT_URI = "URI:nd:agent:"
"""How an agent's identity begins among the SAN entries of its certificate."""

NO_PRIORITY = 255
"""In EventBatch.priorities: the message had no valid PRI (valid ones are 0 to 191, RFC 5424 §6.2.1)."""


class CorruptBody(ValueError):
    """A record body that does not have the layout above; its CRC may well have been right."""


class Framing(IntEnum):
    """How messages stand in a section's bytes."""

    OCTET_COUNTED = 1  # RFC 6587 §3.4.1: "LEN SP MSG", counts included
    LF = 2  # RFC 6587 §3.4.2: each message followed by one LF
    WHOLE = 3  # the section is exactly one message, bare


class Flags(IntFlag):
    """What the input knows about every message of a section and the bytes alone do not say."""

    NONE = 0
    TRUNCATED = 1  # longer than max_message_bytes, or the connection ended inside it
    FRAMING_ERROR = 2  # bytes between two frames that belonged to neither
    UNACKNOWLEDGED = 4  # taken without telling the sender (MQTT QoS 0): what was lost on the way, nobody knows
    OWN = 8  # ECS that an input of this process wrote, as event_names.py wants it: it needs its id and nothing else


@dataclass(frozen=True)
class Origin:
    """Who sent the bytes: the input that took them, the peer's address, and its certificate.

    `subject` (RFC 4514 text), `serial` (upper-case hex) and `names` (SAN entries as "DNS:…", "IP:…", "URI:…") are empty
    where there was no certificate. `identity` is what limits, ledgers and sources count by. `spool_id` is the agent's
    spool that may name these events, once the input has checked that it is that agent's; `clock_skew_seconds` is how
    far the agent's clock was ahead of ours (rounded, so that it seldom changes).
    """

    input: str
    address: str
    port: int
    subject: str = ""
    serial: str = ""
    names: tuple[str, ...] = ()
    spool_id: str = ""
    clock_skew_seconds: int = 0

    @cached_property
    def packed(self) -> bytes:
        """The origin as it stands in a record (msgpack array), computed once per connection."""
        fields = [self.input, self.address, self.port, self.subject, self.serial, list(self.names)]
        if self.spool_id or self.clock_skew_seconds:
            fields += [self.spool_id, self.clock_skew_seconds]
        return bytes(msgpack.packb(fields))

    @property
    def identity(self) -> str:
        """The first SAN of kind URI, else the subject, else the address: stable while ports change."""
        uris = (name[4:] for name in self.names if name.startswith("URI:"))
        return next(uris, self.subject or self.address)

    @property
    def agent_id(self) -> str:
        """The agent's id from its certificate, empty for everybody else."""
        uris = (name[len(AGENT_URI) :] for name in self.names if name.startswith(AGENT_URI))
        return next(uris, "")

    @classmethod
    def unpack(cls, blob: bytes) -> "Origin":
        """Inverse of `packed`; raises CorruptBody."""
        try:
            name, address, port, subject, serial, names, *agent = msgpack.unpackb(blob)
            spool_id, skew = agent or ("", 0)
            known = (str(name), str(address), int(port), str(subject), str(serial), tuple(map(str, names)))
            return cls(*known, str(spool_id), int(skew))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise CorruptBody(f"origin: {error}") from error


class Section(NamedTuple):
    """A run of whole messages from one origin in one framing; `length` bytes of the payload."""

    origin: Origin
    framing: Framing
    flags: Flags
    length: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody wants of a section


class Checkpoint(NamedTuple):
    """How far an input had read when it handed over a batch: in one record with the lines, so never before or behind.

    `position` is the input's own bytes, or, for an input that has many (one per file), only the parts that the batch
    changed; a part of b"" is forgotten.
    """

    input: str
    position: bytes | Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Batch:
    """What an input hands to `Accept` and one spool record holds.

    `received_at_ns` is Unix time in nanoseconds. `payload` is the sections' bytes in order, in as many pieces as the
    input happened to have: the sum of the pieces is the sum of the section lengths (`pack_body` checks).
    """

    stream: str
    format: str
    received_at_ns: int
    sections: Sequence[Section]
    payload: Sequence[bytes]
    checkpoint: Checkpoint | None = None

    @property
    def count(self) -> int:
        """Messages in the batch."""
        return sum(section.count for section in self.sections)

    @property
    def length(self) -> int:
        """Payload bytes in the batch."""
        return sum(map(len, self.payload))


@dataclass(frozen=True, slots=True)
class Body:
    """A record body taken apart for decoding: the section table stays packed for the compiled codec."""

    format: str
    origins: Sequence[bytes]  # Origin.packed blobs
    table: memoryview  # SECTION structs
    payload: memoryview
    checkpoint: Checkpoint | None = None

    def sections(self) -> list[Section]:
        """The table as Section tuples; raises CorruptBody."""
        origins = [Origin.unpack(blob) for blob in self.origins]
        try:
            return [
                Section(origins[index], Framing(framing), Flags(flags), length, count)
                for index, length, count, framing, flags, _ in SECTION.iter_unpack(self.table)
            ]
        except (IndexError, ValueError) as error:
            raise CorruptBody(f"section table: {error}") from error


def pack_body(batch: Batch) -> list[bytes]:
    """The batch as the pieces of a record body, ready for one writev; the payload is not copied."""
    indexes: dict[bytes, int] = {}
    table = bytearray()
    total = 0
    for section in batch.sections:
        index = indexes.setdefault(section.origin.packed, len(indexes))
        table += SECTION.pack(index, section.length, section.count, section.framing, section.flags, 0)
        total += section.length
    if total != batch.length:
        raise ValueError(f"batch: sections name {total} bytes, the payload has {batch.length}")
    checkpoint = [] if batch.checkpoint is None else [batch.checkpoint]
    head = msgpack.packb([BODY_VERSION, batch.format, list(indexes), *checkpoint])
    return [_U32.pack(len(head)), head, _U32.pack(len(batch.sections)), bytes(table), *batch.payload]


def unpack_body(body: bytes | memoryview) -> Body:
    """Inverse of `pack_body` up to the split of the payload; raises CorruptBody, nothing else."""
    view = memoryview(body)
    try:
        (head_length,) = _U32.unpack_from(view, 0)
        table_at = 4 + head_length
        version, batch_format, origins, *rest = msgpack.unpackb(view[4:table_at], use_list=True)
        (sections,) = _U32.unpack_from(view, table_at)
    except (ValueError, TypeError, struct.error, msgpack.UnpackException) as error:
        raise CorruptBody(f"head: {error}") from error
    if version != BODY_VERSION:
        raise CorruptBody(f"body version {version!r}, this program reads {BODY_VERSION}")
    payload_at = table_at + 4 + sections * SECTION.size
    if payload_at > len(view) or not isinstance(batch_format, str) or not _are_blobs(origins):
        raise CorruptBody("head: lengths or types do not fit")
    checkpoint = _checkpoint(*rest) if len(rest) == 1 else None
    if rest and checkpoint is None:
        raise CorruptBody("head: the checkpoint is none")
    result = Body(batch_format, origins, view[table_at + 4 : payload_at], view[payload_at:], checkpoint)
    _check_table(result)
    return result


def _are_blobs(origins: object) -> bool:
    return isinstance(origins, list) and all(isinstance(blob, bytes) for blob in origins)


def _checkpoint(found: object) -> Checkpoint | None:
    """The head's fourth element as a checkpoint; None where it has not that shape."""
    if not isinstance(found, list) or len(found) != 2 or not isinstance(found[0], str):
        return None
    name, position = found
    parts = [*position.keys(), *position.values()] if isinstance(position, dict) else [position]
    return Checkpoint(name, position) if all(isinstance(part, bytes) for part in parts) else None


def _check_table(body: Body) -> None:
    """The compiled codec trusts indexes and lengths, so they are proved here, once per record."""
    total = 0
    for index, length, _count, framing, _flags, _zero in SECTION.iter_unpack(body.table):
        if index >= len(body.origins) or not Framing.OCTET_COUNTED <= framing <= Framing.WHOLE:
            raise CorruptBody(f"section table: origin {index} or framing {framing} out of range")
        total += length
    if total != len(body.payload):
        raise CorruptBody(f"section table names {total} bytes, the payload has {len(body.payload)}")


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Decoded events as an output gets them.

    `ndjson` holds one ECS object a line, each line ending in LF; the arrays run parallel to the lines.
    """

    stream: str
    spool_id: str
    sequences: Sequence[int]  # a range where contiguous; ascending always
    received_at_ns: int  # of the oldest event: the batch's age
    ndjson: bytes
    lengths: "array[int]"  # 'I': bytes of each line, LF included
    priorities: bytes  # PRI of each event, or NO_PRIORITY
    host_offsets: "array[int]"  # 'I': where host.hostname's text starts inside its line; 0 = absent
    host_lengths: "array[int]"  # 'H': bytes of that text as it stands in the JSON (escapes included)
    keys: "array[int]"  # 'I': Kafka's murmur2 (31 bits) of the host, else of source.ip
    origins: "array[int]"  # 'I': index into origin_blobs
    origin_blobs: Sequence[bytes] = field(default_factory=tuple)
    replay: bool = False  # an operator asked for these again: outputs must not suppress them
    parse_failures: int | None = None  # None: as many as have NO_PRIORITY, which events that came as ECS may lack
    format: str = "ecs"  # what a line is: "ecs" and "flat" are JSON objects, any other is text without line feeds
    are_origins_own: bool = False  # each event's source is still its origin's: none came as ECS, none was changed

    def __len__(self) -> int:
        return len(self.lengths)

    def lines(self) -> list[bytes]:
        """The events as separate lines (LF included); for outputs that must look at each one."""
        found, start = [], 0
        for length in self.lengths:
            found.append(self.ndjson[start : start + length])
            start += length
        return found

    def select(self, indexes: Sequence[int]) -> "EventBatch":
        """The events at these ascending positions, as a batch of their own; a range costs no more than a copy."""
        if isinstance(indexes, range) and indexes.step == 1:
            return self._run(indexes.start, indexes.stop)
        lines = self.lines()
        pick = indexes
        return EventBatch(
            stream=self.stream,
            spool_id=self.spool_id,
            sequences=[self.sequences[i] for i in pick],
            received_at_ns=self.received_at_ns,
            ndjson=b"".join([lines[i] for i in pick]),
            lengths=array("I", [self.lengths[i] for i in pick]),
            priorities=bytes([self.priorities[i] for i in pick]),
            host_offsets=array("I", [self.host_offsets[i] for i in pick]),
            host_lengths=array("H", [self.host_lengths[i] for i in pick]),
            keys=array("I", [self.keys[i] for i in pick]),
            origins=array("I", [self.origins[i] for i in pick]),
            origin_blobs=self.origin_blobs,
            replay=self.replay,
            format=self.format,
            are_origins_own=self.are_origins_own,
        )

    def _run(self, start: int, stop: int) -> "EventBatch":
        first_byte = sum(self.lengths[:start])
        return replace(
            self,
            sequences=self.sequences[start:stop],
            ndjson=self.ndjson[first_byte : first_byte + sum(self.lengths[start:stop])],
            lengths=self.lengths[start:stop],
            priorities=self.priorities[start:stop],
            host_offsets=self.host_offsets[start:stop],
            host_lengths=self.host_lengths[start:stop],
            keys=self.keys[start:stop],
            origins=self.origins[start:stop],
            parse_failures=None,
        )
