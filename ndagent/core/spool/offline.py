"""Looking into a spool without opening it: what `ndcollector spool ls | verify | export | replay` stand on.

Promises: everything but `replay` only reads, works while a daemon has the spool open, and never disturbs it: what that
one is just writing (the last segment's torn tail) is not damage, and files that it deletes meanwhile are left out.
`replay` needs the lock, so it moves a cursor only where no daemon does.
Refuses: printing, decoding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ndagent.core.spool.files import Files, OsFiles
from ndagent.core.spool.position import CURSOR_VERSION, NO_END, Saved
from ndagent.core.spool.reader import sequence_at
from ndagent.core.spool.record import Record
from ndagent.core.spool.recovery import cursor_path, likely_id, load_cursors, lock
from ndagent.core.spool.scan import NO_LIMIT, Damage, Found, Segment, list_segments, scan_file
from ndagent.core.spool.segment import FORMAT_VERSION, SEGMENT_HEADER_BYTES, spool_id_text


class Finding(NamedTuple):
    """Something damaged: where, which events (None where nothing tells), and what."""

    path: Path
    offset: int
    first: int
    end: int | None
    what: str


@dataclass(frozen=True, slots=True)
class SegmentSummary:
    """One segment for `ls`; times are Unix nanoseconds, None where there is no record."""

    name: str
    size_bytes: int
    first: int
    end: int
    oldest_ns: int | None
    newest_ns: int | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A spool for `ls`; a cursor whose slots are both damaged is None."""

    spool_id: str
    next_sequence: int
    segments: list[SegmentSummary]
    cursors: dict[str, Saved | None]


def verify(directory: Path, files: Files | None = None) -> list[Finding]:
    """Everything that is damaged, in order; empty if the spool is clean."""
    files = files or OsFiles()
    findings: list[Finding] = []
    for segment, limit in _with_limits(_segments(files, directory)):
        found = _verify_segment(files, segment, limit)
        if found and limit == NO_LIMIT:  # it may grow while it is read: only what is still so now is damage
            again = set(_verify_segment(files, segment, limit))
            found = [finding for finding in found if finding in again]
        findings += found
    for name, slots in load_cursors(files, directory / "cursors").items():
        if slots.saved is None:
            what = f"cursor {name}: no slot is whole; it would start again"
            if slots.later_version:
                what = f"cursor {name}: has version {slots.later_version}, this program reads up to {CURSOR_VERSION}"
            findings.append(Finding(slots.path, 0, 0, None, what))
    return findings


def summarise(directory: Path, files: Files | None = None) -> Summary:
    """Segments and cursors; hops over record headers, so it costs little even on a large spool."""
    files = files or OsFiles()
    segments = _segments(files, directory)
    summaries = [_summarise_segment(files, segment, limit) for segment, limit in _with_limits(segments)]
    cursors = {name: slots.saved for name, slots in load_cursors(files, directory / "cursors").items()}
    ahead = [saved.position.sequence for saved in cursors.values() if saved]
    next_sequence = max([0, *ahead, *(summary.end for summary in summaries)])
    return Summary(spool_id_text(segments[-1].spool_id) if segments else "", next_sequence, summaries, cursors)


def records(directory: Path, first: int, end: int, files: Files | None = None) -> Iterator[Record | Finding]:
    """The records that hold events from `first` to below `end`, and what is damaged between them."""
    files = files or OsFiles()
    for segment, limit in _with_limits(_segments(files, directory)):
        if limit <= first or segment.base >= end:
            continue
        name = spool_id_text(segment.spool_id)
        for item in scan_file(files, segment, limit):
            if isinstance(item, Damage):
                if not (item.torn and limit == NO_LIMIT):
                    yield _finding(segment, item, limit)
            elif item.header.end > first and item.header.sequence < end:
                header = item.header
                yield Record(header.sequence, header.events, header.received_at_ns, item.body, name)


def find_time(directory: Path, received_at_ns: int, files: Files | None = None) -> int:
    """The first event received at or after this time."""
    files = files or OsFiles()
    return sequence_at(files, _with_limits(_segments(files, directory)), received_at_ns)


def replay(directory: Path, output: str, first: int, until: int | None, files: Files | None = None) -> int:
    """Set the output's cursor back on a spool that no process has open; returns how many events come again.

    Raises SpoolLocked (a daemon has it: ask that one), LookupError (no such cursor), OSError.
    """
    files = files or OsFiles()
    fd = lock(files, directory)
    try:
        slots = load_cursors(files, directory / "cursors").get(output)
        if slots is None or slots.saved is None:
            raise LookupError(f"{cursor_path(directory, output)}: no such cursor; `spool ls` shows what there is")
        segments = _segments(files, directory)
        oldest = segments[0].base if segments else slots.saved.position.sequence
        before = slots.saved.position
        after = before.replaying(max(first, oldest), NO_END if until is None else until)
        if after != before:
            slots.save(slots.saved.spool_id, after)
        return after.replayed - before.replayed
    finally:
        files.close(fd)


def _segments(files: Files, directory: Path) -> list[Segment]:
    return list_segments(files, directory, likely_id(load_cursors(files, directory / "cursors")))


def _with_limits(segments: list[Segment]) -> list[tuple[Segment, int]]:
    limits = [segment.base for segment in segments[1:]] + [NO_LIMIT]
    return list(zip(segments, limits, strict=False))


def _finding(segment: Segment, damage: Damage, limit: int) -> Finding:
    end = damage.end if damage.end is not None else (None if limit == NO_LIMIT else limit)
    return Finding(segment.path, damage.offset, damage.sequence, end, damage.reason)


def _verify_segment(files: Files, segment: Segment, limit: int) -> list[Finding]:
    last = limit == NO_LIMIT
    if segment.header is not None and segment.header.version > FORMAT_VERSION:
        return [Finding(segment.path, 0, segment.base, None, f"format {segment.header.version}: a later version's")]
    findings = []
    if segment.header is None and not (last and segment.size < SEGMENT_HEADER_BYTES) and segment.base < limit:
        findings.append(Finding(segment.path, 0, segment.base, None, "the segment header is damaged"))
    try:
        damage = [item for item in scan_file(files, segment, limit) if isinstance(item, Damage)]
    except FileNotFoundError:  # every cursor has passed it meanwhile
        return []
    return findings + [_finding(segment, item, limit) for item in damage if not (item.torn and last)]


def _summarise_segment(files: Files, segment: Segment, limit: int) -> SegmentSummary:
    end = segment.base
    times: list[int] = []
    try:
        for item in scan_file(files, segment, limit, bodies=False):
            if isinstance(item, Found):
                times = [times[0] if times else item.header.received_at_ns, item.header.received_at_ns]
                end = item.header.end
            elif not item.torn:
                end = item.end or end
    except FileNotFoundError:
        pass
    oldest, newest = (times[0], times[1]) if times else (None, None)
    return SegmentSummary(segment.path.name, segment.size, segment.base, end, oldest, newest)
