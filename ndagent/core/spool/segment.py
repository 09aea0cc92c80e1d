"""The bytes of a segment: its header, its record headers, its file name. Pure functions over bytes.

Promises: what `pack_…` writes `parse_…` reads back, and anything else parses to None; nothing here trusts a length or a
count before its CRC was checked. A record header carries a CRC of its own, so that a damaged body still tells how many
sequences it held. That CRC starts from the spool's identity: bytes that a sender made look like a record, or that an
older spool left on the disk, are never taken for one.
Refuses: files, clocks, decoding of bodies.

Segment header, 44 bytes, little-endian (this layout and its CRC stay the same in every later format version, so that an
older program can say what it met):

    8 B   magic "NDspool\\0"         u16  format version      u16  flags (1: written without fdatasync)
    10 B  spool id                  2 B  zero                u64  base sequence
    u64   created at, Unix ns       u32  CRC-32 of the above

Record header, 40 bytes, followed by the body:

    4 B   magic "NDr\\xb1"           u16  version             u16  zero
    u32   body length               u32  body CRC-32         u64  base sequence
    u32   count                     u64  received at, ns     u32  CRC-32 of the above, started from CRC-32(spool id)
"""

import re
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

try:
    from isal.isal_zlib import crc32  # the same value as zlib's, several times faster; both release the GIL
except ImportError:
    from zlib import crc32

FORMAT_VERSION = 1
SEGMENT_MAGIC = b"NDspool\0"
RECORD_MAGIC = b"NDr\xb1"
UNSYNCED = 1
SPOOL_ID_BYTES = 10

_SEGMENT = struct.Struct("<8sHH10s2xQQ")
_RECORD = struct.Struct("<4sHHIIQIQ")
_CRC = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _SEGMENT.size + _CRC.size
RECORD_HEADER_BYTES = _RECORD.size + _CRC.size

_NAME = re.compile(r"(\d{20})-(\d{4,})\.seg")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

T = TypeVar("T")

__all__ = ["crc32"]


class SegmentHeader(NamedTuple):
    """What the first 44 bytes of a segment say."""

    version: int
    flags: int
    spool_id: bytes
    base: int
    created_at_ns: int


class RecordHeader(NamedTuple):
    """What the 40 bytes before a body say."""

    length: int
    body_crc: int
    sequence: int
    events: int
    received_at_ns: int

    @property
    def end(self) -> int:
        """The sequence after this record's last event."""
        return self.sequence + self.events


def pack_segment_header(header: SegmentHeader) -> bytes:
    """The header as it stands at the start of a file."""
    fields = (header.version, header.flags, header.spool_id, header.base, header.created_at_ns)
    head = _SEGMENT.pack(SEGMENT_MAGIC, *fields)
    return head + _CRC.pack(crc32(head))


def parse_segment_header(data: bytes | memoryview) -> SegmentHeader | None:
    """Inverse of `pack_segment_header`; None where the CRC or the magic is wrong. The caller judges the version."""
    if len(data) < SEGMENT_HEADER_BYTES:
        return None
    magic, version, flags, spool_id, base, created_at_ns = _SEGMENT.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _SEGMENT.size)
    if magic != SEGMENT_MAGIC or crc != crc32(data[: _SEGMENT.size]):
        return None
    return SegmentHeader(version, flags, spool_id, base, created_at_ns)


def salt_of(spool_id: bytes) -> int:
    """Where the CRC of this spool's record headers starts."""
    return int(crc32(spool_id))


def pack_record_header(header: RecordHeader, salt: int) -> bytes:
    """The 40 bytes before a body."""
    length, body_crc, sequence, events, received_at_ns = header
    head = _RECORD.pack(RECORD_MAGIC, FORMAT_VERSION, 0, length, body_crc, sequence, events, received_at_ns)
    return head + _CRC.pack(crc32(head, salt))


def parse_record_header(data: bytes | memoryview, salt: int) -> RecordHeader | None:
    """Inverse of `pack_record_header`; None for anything that this spool did not write."""
    if len(data) < RECORD_HEADER_BYTES or data[:4] != RECORD_MAGIC:
        return None
    (crc,) = _CRC.unpack_from(data, _RECORD.size)
    if crc != crc32(data[: _RECORD.size], salt):
        return None
    _magic, version, _zero, length, body_crc, sequence, events, received_at_ns = _RECORD.unpack_from(data)
    return RecordHeader(length, body_crc, sequence, events, received_at_ns) if version == FORMAT_VERSION else None


def repair_record_header(data: bytes | memoryview, salt: int) -> RecordHeader | None:
    """The header that one flipped bit made unreadable, or None.

    Only used to learn how many events a damaged last record held: behind any other record the next one tells.
    """
    return _with_one_bit_back(data[:RECORD_HEADER_BYTES], lambda bits: parse_record_header(bits, salt))


def repair_segment_header(data: bytes | memoryview) -> SegmentHeader | None:
    """The same for a segment's header: only for its spool id, without which no record in the file proves itself."""
    return _with_one_bit_back(data[:SEGMENT_HEADER_BYTES], parse_segment_header)


def _with_one_bit_back(data: bytes | memoryview, parse: Callable[[bytes], T | None]) -> T | None:
    damaged = bytearray(data)
    for bit in range(len(damaged) * 8):
        damaged[bit >> 3] ^= 1 << (bit & 7)
        if (header := parse(bytes(damaged))) is not None:
            return header
        damaged[bit >> 3] ^= 1 << (bit & 7)
    return None


def segment_name(base: int, attempt: int) -> str:
    """File name of the `attempt`-th segment that starts at `base` (above 0 only after a failed write)."""
    return f"{base:020d}-{attempt:04d}.seg"


def parse_segment_name(name: str) -> tuple[int, int] | None:
    """(base, attempt), which is also the order of segments; None for other files."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def spool_id_text(spool_id: bytes) -> str:
    """The 80 bits as 16 base-36 digits, as they stand in event.id."""
    number, digits = int.from_bytes(spool_id, "big"), ""
    for _ in range(16):
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits
