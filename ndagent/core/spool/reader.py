"""A cursor's reads from segment files, in a thread: from a place in a segment to whole records.

Promises: at most `max_bytes` are read ahead (one record at least, whatever its size); nothing past the segment's
durable end or its limit is looked at; damage is reported to the quarantine and skipped, so a chunk always gets further.
Refuses: knowing about cursors or the loop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ndagent.core.spool.files import Files
from ndagent.core.spool.quarantine import Quarantine
from ndagent.core.spool.record import Record
from ndagent.core.spool.scan import HOP_BYTES, Damage, Found, Segment, Span, Window, scan, scan_file, whole, with_body
from ndagent.core.spool.segment import RecordHeader, spool_id_text


class Place(NamedTuple):
    """Where the next record of a sequential reader starts, and the least sequence that it can have."""

    segment: Segment
    offset: int
    sequence: int


class Chunk(NamedTuple):
    """What one read found: records in order, the sequence to go on at (a gap if above the last record's end), where."""

    records: list[Record]
    sequence: int
    place: Place | None


@dataclass(frozen=True, slots=True)
class Request:
    """What to read: `size` and `limit`, the segment's end, are fixed by the loop thread before the hop.

    Only records that begin below `until`.
    """

    segment: Segment
    place: Place | None
    size: int
    sequence: int
    limit: int
    until: int
    max_bytes: int


def read_chunk(files: Files, request: Request, quarantine: Quarantine) -> Chunk:
    """Records from `request.sequence` on, out of one segment. Raises OSError."""
    fd = files.open_read(request.segment.path)
    try:
        place = request.place or _locate(Window(files, fd, request.size, HOP_BYTES), request)
        return _collect(Window(files, fd, request.size, request.max_bytes), place, request, quarantine)
    finally:
        files.close(fd)


def _locate(window: Window, request: Request) -> Place:
    """Where the record that holds the sequence starts, or the damage that swallowed it."""
    segment, size = request.segment, request.size
    for item in scan(window, _span(Place(segment, whole(segment, 0).offset, segment.base), request)):
        first, end = (item.header.sequence, item.header.end) if isinstance(item, Found) else (item.sequence, item.end)
        if end is None or end > request.sequence:
            return Place(segment, item.offset, first)
    return Place(segment, size, request.sequence)


def _span(place: Place, request: Request) -> Span:
    return Span(place.offset, request.size, place.sequence, request.limit, place.segment.salt)


def _collect(window: Window, place: Place, request: Request, quarantine: Quarantine) -> Chunk:
    segment = request.segment
    name = spool_id_text(segment.spool_id)
    records: list[Record] = []
    used, sequence, offset = 0, request.sequence, place.offset
    end = min(request.limit, request.until)
    for item in scan(window, _span(place, request)):
        if (item.header.sequence if isinstance(item, Found) else item.sequence) >= end:
            break
        length = item.end_offset - item.offset if isinstance(item, Found) else item.length
        if records and used + length > request.max_bytes:
            return Chunk(records, sequence, Place(segment, item.offset, sequence))
        used += length
        offset = item.offset + length
        checked = with_body(window, item) if isinstance(item, Found) and item.header.end > sequence else item
        if isinstance(checked, Damage):
            quarantine.report(segment, checked)
            sequence = max(sequence, min(checked.end or end, end))
        elif checked.header.end > sequence:
            header = checked.header
            records.append(Record(header.sequence, header.events, header.received_at_ns, checked.body, name))
            sequence = header.end
    sequence = max(sequence, end)
    return Chunk(records, sequence, Place(segment, offset, sequence))


def sequence_at(files: Files, segments: Sequence[tuple[Segment, int]], received_at_ns: int) -> int:
    """The first event of the first record received at or after this time; where the last segment ends if none was.

    Costs one header per segment and the headers of one segment. Raises OSError.
    """
    newest_before = 0
    for index, (segment, limit) in enumerate(segments):
        first = next(_headers(files, segment, limit), None)
        if first is not None and first.received_at_ns < received_at_ns:
            newest_before = index
    end = segments[0][0].base if segments else 0
    for segment, limit in segments[newest_before:]:
        for header in _headers(files, segment, limit):
            if header.received_at_ns >= received_at_ns:
                return header.sequence
            end = header.end
    return end


def _headers(files: Files, segment: Segment, limit: int) -> Iterator[RecordHeader]:
    try:
        for item in scan_file(files, segment, limit, bodies=False):
            if isinstance(item, Found):
                yield item.header
    except FileNotFoundError:  # every cursor has passed it meanwhile
        return
