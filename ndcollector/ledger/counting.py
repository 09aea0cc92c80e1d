"""Whose events stand in a range of a spool, from the records' heads alone: nothing is decoded, no payload is read.

Promises: works beside whoever has the spool open (files may go meanwhile); what is damaged, gone or does not add up to
its record's count is left out, so that the caller sees it missing from the sum. About a hundredth of the work of
reading the events. Refuses: checking bodies against their CRC, which would mean to read them.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

from ndagent.core.spool.files import Files
from ndagent.core.spool.recovery import likely_id, load_cursors
from ndagent.core.spool.scan import HOP_BYTES, NO_LIMIT, Found, Segment, Window, list_segments, scan, whole
from ndagent.core.spool.segment import RECORD_HEADER_BYTES
from ndagent.wire.record import BODY_VERSION, SECTION

_U32 = struct.Struct("<I")
_WORDS = SECTION.size // 4  # a section is four u32; the first is the origin, the third the count


@dataclass(slots=True)
class Counted:
    """Events by packed origin, and when the first and last of each were received (Unix nanoseconds)."""

    events: dict[bytes, int] = field(default_factory=dict)
    times: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    def add(self, counts: Mapping[bytes, int], received_at_ns: int) -> None:
        """What one record holds."""
        for blob, count in counts.items():
            known = self.events.get(blob)
            self.events[blob] = count if known is None else known + count
            if known is None:
                self.times[blob] = (received_at_ns, received_at_ns)
            else:
                first, last = self.times[blob]
                self.times[blob] = (min(first, received_at_ns), max(last, received_at_ns))


def count_range(files: Files, directory: Path, first: int, end: int) -> Counted:
    """Everything between the two sequences that is still there and readable. Raises OSError."""
    found = Counted()
    segments = list_segments(files, directory, likely_id(load_cursors(files, directory / "cursors")))
    limits = [*(segment.base for segment in segments[1:]), NO_LIMIT]
    for segment, limit in zip(segments, limits, strict=True):
        if limit > first and segment.base < end:
            with suppress(FileNotFoundError):
                count_segment(files, segment, first, min(limit, end), found, limit=limit)
    return found


def count_segment(
    files: Files, segment: Segment, first: int, end: int, into: Counted, *, limit: int | None = None
) -> None:
    """The part of one segment; `limit` is where the next one begins (`end` if not given). Raises OSError."""
    for found, counts in _records(files, segment, end if limit is None else limit):
        header = found.header
        if header.sequence >= end:
            return
        if header.end > first:
            into.add(_between(counts, first - header.sequence, end - header.sequence), header.received_at_ns)


def _records(files: Files, segment: Segment, limit: int) -> Iterator[tuple[Found, list[tuple[bytes, int]]]]:
    fd = files.open_read(segment.path)
    try:
        window = Window(files, fd, segment.size, HOP_BYTES)
        for item in scan(window, whole(segment, limit)):
            if isinstance(item, Found) and (counts := _table(window, item)) is not None:
                yield item, counts
    finally:
        files.close(fd)


def _table(window: Window, found: Found) -> list[tuple[bytes, int]] | None:
    """(packed origin, events) of each section in order; None where the head is not one, or tells another sum."""
    at, end = found.offset + RECORD_HEADER_BYTES, found.end_offset
    try:
        (head_bytes,) = _U32.unpack(window.at(at, 4))
        if at + 8 + head_bytes > end:
            return None
        version, _format, origins, *_ = msgpack.unpackb(window.at(at + 4, head_bytes))
        (sections,) = _U32.unpack(window.at(at + 4 + head_bytes, 4))
        table_at = at + 8 + head_bytes
        if version != BODY_VERSION or table_at + sections * SECTION.size > end:
            return None
        words = window.at(table_at, sections * SECTION.size).cast("I") if sections else memoryview(b"")
        indexes, counts = words[0::_WORDS].tolist(), words[2::_WORDS].tolist()
        result = [(bytes(origins[index]), count) for index, count in zip(indexes, counts, strict=True)]
    except (ValueError, TypeError, IndexError, struct.error, msgpack.UnpackException):
        return None
    return result if sum(counts) == found.header.events else None


def _between(sections: Iterable[tuple[bytes, int]], first: int, end: int) -> dict[bytes, int]:
    """Events by origin of a record's sections, of those at positions from `first` to before `end` in it."""
    counts: Counter[bytes] = Counter()
    position = 0
    for blob, count in sections:
        inside = min(position + count, end) - max(position, first)
        if inside > 0:
            counts[blob] += inside
        position += count
    return counts
