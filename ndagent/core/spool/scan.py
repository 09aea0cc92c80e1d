"""Reading a segment file from front to back: whole records, and what is damaged between them.

Promises: one pass, memory bounded by the window or the largest record; anything that does not prove itself by its CRCs
is a `Damage` with its place, and reading goes on at the next header that does. A page that the device cannot read is a
damaged record, neither a reader that stops for good nor the end of the file.
Refuses: deciding what damage means. Recovery truncates, a cursor counts, `verify` prints.

A segment ends where the next one begins: records at or above `limit` (the next segment's base) are what a failed write
left behind, and are never read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ndagent.core.spool.files import Files, read_anyway
from ndagent.core.spool.segment import (
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    SEGMENT_HEADER_BYTES,
    RecordHeader,
    SegmentHeader,
    crc32,
    parse_record_header,
    parse_segment_header,
    parse_segment_name,
    repair_segment_header,
    salt_of,
)

WINDOW_BYTES = 1 << 20
HOP_BYTES = 1 << 16
"""What is read at a time when only headers matter."""
NO_LIMIT = 1 << 63


@dataclass(slots=True)
class Segment:
    """A segment file as the engine knows it: `size` is how far readers may go."""

    path: Path
    base: int
    header: SegmentHeader | None
    spool_id: bytes
    size: int
    changed_at: float

    @property
    def salt(self) -> int:
        """Where the CRC of its record headers starts."""
        return salt_of(self.spool_id)


class Found(NamedTuple):
    """A record whose header is whole; its body, once it was read, too."""

    header: RecordHeader
    offset: int
    body: memoryview = memoryview(b"")

    @property
    def end_offset(self) -> int:
        """Where the next record starts."""
        return self.offset + RECORD_HEADER_BYTES + self.header.length


class Damage(NamedTuple):
    """Bytes that are not a whole record. `end` is the sequence behind them if the bytes themselves tell."""

    offset: int
    length: int
    sequence: int
    end: int | None
    reason: str
    torn: bool = False  # the file ends inside it: what a crash during a write leaves


class Window:
    """A bounded view on a file that moves forward with its reader."""

    def __init__(self, files: Files, fd: int, end: int, chunk_bytes: int) -> None:
        self._files = files
        self._fd = fd
        self._end = end
        self._chunk_bytes = chunk_bytes
        self._start = 0
        self._data = memoryview(b"")

    def at(self, offset: int, length: int) -> memoryview:
        """`length` bytes from `offset`, fewer only at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._data):
            wanted = min(max(length, self._chunk_bytes), self._end - offset)
            self._data = memoryview(read_anyway(self._files, self._fd, wanted, offset))
            self._start, begin = offset, 0
        return self._data[begin : begin + length]


@dataclass(frozen=True, slots=True)
class Span:
    """What to scan of a segment: from `offset`, where `sequence` is expected, to byte `end`, below `limit`."""

    offset: int
    end: int
    sequence: int
    limit: int
    salt: int


def whole(segment: Segment, limit: int) -> Span:
    """All of a segment."""
    return Span(SEGMENT_HEADER_BYTES, segment.size, segment.base, limit, segment.salt)


def scan(window: Window, span: Span) -> Iterator[Found | Damage]:
    """Records and damage in order, hopping over the bodies (see `with_body`)."""
    offset, sequence = span.offset, span.sequence
    while offset < span.end:
        header = parse_record_header(window.at(offset, RECORD_HEADER_BYTES), span.salt)
        if header is not None and header.sequence >= span.limit:
            return
        if header is None or header.sequence < sequence:
            if sequence >= span.limit:
                return  # the next segment begins here: the rest is what a failed write left behind
            damage = _unreadable(window, span, offset, sequence)
            yield damage
            offset += damage.length
            continue
        end = offset + RECORD_HEADER_BYTES + header.length
        if end > span.end:
            yield Damage(offset, span.end - offset, header.sequence, header.end, "cut short", torn=True)
            return
        if header.end > span.limit:  # it could not be read when the next segment was begun, and now it can
            yield Damage(offset, end - offset, header.sequence, span.limit, "it reaches into the next segment")
            return
        yield Found(header, offset)
        offset, sequence = end, header.end


def with_body(window: Window, found: Found) -> Found | Damage:
    """The record with its body, or the damage that its CRC shows."""
    header = found.header
    body = window.at(found.offset + RECORD_HEADER_BYTES, header.length)
    if len(body) == header.length and crc32(body) == header.body_crc:
        return Found(header, found.offset, body)
    length = found.end_offset - found.offset
    return Damage(found.offset, length, header.sequence, header.end, "the body does not match its CRC")


def _unreadable(window: Window, span: Span, offset: int, sequence: int) -> Damage:
    """The bytes from `offset` to the next header that proves itself, or to the end."""
    found = _next_header(window, span, offset + 1, sequence)
    if found is not None:
        return Damage(offset, found[0] - offset, sequence, found[1].sequence, "the header is damaged")
    length = span.end - offset
    torn = _is_zero(window, offset + RECORD_HEADER_BYTES, span.end)  # a body is never all zeros, a hole is
    return Damage(offset, length, sequence, None, "cut short" if torn else "the header is damaged", torn=torn)


def _next_header(window: Window, span: Span, offset: int, sequence: int) -> tuple[int, RecordHeader] | None:
    while offset + RECORD_HEADER_BYTES <= span.end:
        view = bytes(window.at(offset, min(WINDOW_BYTES, span.end - offset)))
        at = view.find(RECORD_MAGIC)
        while at >= 0 and (at + RECORD_HEADER_BYTES <= len(view)):
            header = parse_record_header(view[at : at + RECORD_HEADER_BYTES], span.salt)
            if header is not None and sequence <= header.sequence:
                return offset + at, header
            at = view.find(RECORD_MAGIC, at + 1)
        offset += at if at > 0 else max(len(view) - len(RECORD_MAGIC) + 1, 1)
    return None


def _is_zero(window: Window, offset: int, end: int) -> bool:
    while offset < end:
        view = bytes(window.at(offset, min(WINDOW_BYTES, end - offset)))
        if view.count(0) != len(view):
            return False
        offset += len(view)
    return True


def list_segments(files: Files, directory: Path, likely_id: bytes = b"") -> list[Segment]:
    """The segments of a spool in order: one small read each, however large they are.

    Where a header is damaged the file's name tells the base, and a neighbour the spool id, or a cursor (`likely_id`).
    Files that vanish meanwhile (a live spool deletes what all cursors passed) are left out.
    """
    named = [(key, name) for name in files.listdir(directory) if (key := parse_segment_name(name))]
    segments = []
    for (base, _attempt), name in sorted(named):
        try:
            segments.append(_describe(files, directory / name, base))
        except FileNotFoundError:
            continue
    known = next((segment.spool_id for segment in segments if segment.spool_id), likely_id)
    for segment in segments:
        segment.spool_id = known = segment.spool_id or known
    return segments


def _describe(files: Files, path: Path, base: int) -> Segment:
    fd = files.open_read(path)
    try:
        data = Window(files, fd, SEGMENT_HEADER_BYTES, 0).at(0, SEGMENT_HEADER_BYTES)
    finally:
        files.close(fd)
    header = parse_segment_header(data)
    proven = header or repair_segment_header(data)
    spool_id = proven.spool_id if proven else b""
    return Segment(path, base, header, spool_id, files.size(path), files.modified_at(path))


def scan_file(files: Files, segment: Segment, limit: int, *, bodies: bool = True) -> Iterator[Found | Damage]:
    """All of a segment file, opened and closed here; without `bodies` theirs are neither read nor checked."""
    fd = files.open_read(segment.path)
    try:
        window = Window(files, fd, segment.size, WINDOW_BYTES if bodies else HOP_BYTES)
        for item in scan(window, whole(segment, limit)):
            yield with_body(window, item) if bodies and isinstance(item, Found) else item
    finally:
        files.close(fd)
