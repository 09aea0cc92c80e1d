"""What a spool's directory says when it is opened: segments, where the sequences go on, cursors, identity.

Promises: every acknowledged record is kept; nothing here needs an operator. Only the last segment that holds records is
read, so start-up does not depend on the backlog (beside one 44-byte read per segment file). What a crash leaves (a
torn tail, a file without a record) is cut off; what a disk did (a wrong CRC) stays, is quarantined and skipped.
What a killed process wrote but did not sync is synced before anyone reads it. Sequences never go back: where a cursor
is ahead of the recovered tail, they go on at the cursor; and wherever sequences that outputs may have seen could be
given again, the spool gets a new identity, so that no event id is ever given twice.
Refuses: opening a spool that another process has open, or one in a later format.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

from ndagent.core import messages
from ndagent.core.spool.errors import SpoolLocked, UnknownFormat
from ndagent.core.spool.files import Files, read_anyway, write_all
from ndagent.core.spool.position import CURSOR_VERSION, Position, SlotFile
from ndagent.core.spool.quarantine import Quarantine
from ndagent.core.spool.scan import NO_LIMIT, Damage, Found, Segment, list_segments, scan_file
from ndagent.core.spool.segment import (
    FORMAT_VERSION,
    RECORD_HEADER_BYTES,
    SPOOL_ID_BYTES,
    UNSYNCED,
    repair_record_header,
)

log = logging.getLogger(__name__)

CURSOR_SUFFIX = ".cursor"


@dataclass(frozen=True, slots=True)
class Recovered:
    """The state to go on from."""

    segments: list[Segment]
    next_sequence: int
    spool_id: bytes  # what is appended from now on bears it
    known_ids: frozenset[bytes]  # a cursor saved under any other belongs to another spool
    cursors: dict[str, SlotFile]


def lock(files: Files, directory: Path) -> int:
    """The descriptor that holds the spool's lock; raises SpoolLocked."""
    path = directory / "lock"
    try:
        fd = files.create(path)
    except FileExistsError:
        fd = files.open_write(path)
    if files.lock(fd):
        with suppress(OSError):  # a full disk: the lock holds without the number
            write_all(files, fd, [b"%-10d\n" % os.getpid()], 0)
        return fd
    owner = files.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    files.close(fd)
    raise SpoolLocked(f"{directory}: process {owner} has this spool open; stop it, or use another state_dir")


def prepare(
    files: Files, directory: Path, quarantine: Quarantine, random: Callable[[int], bytes], unsynced: bool
) -> tuple[int, Recovered]:
    """Take the lock and recover; the lock's descriptor and the state. Raises SpoolLocked, UnknownFormat, OSError.

    `unsynced`: a power cut may take back what is appended from now on (`durability: os`).
    """
    files.make_directory(directory / "cursors")
    fd = lock(files, directory)
    try:
        recovered = _recover(files, directory, quarantine)
    except BaseException:
        files.close(fd)
        raise
    if unsynced or not recovered.spool_id:
        recovered = replace(recovered, spool_id=random(SPOOL_ID_BYTES))
    return fd, recovered


def _recover(files: Files, directory: Path, quarantine: Quarantine) -> Recovered:
    """Read the directory, cut off what a crash left, and say where to go on; no spool id where a new one is needed."""
    cursors = load_cursors(files, directory / "cursors")
    segments = list_segments(files, directory, likely_id(cursors))
    _refuse_later_formats(segments, cursors.values())
    end, is_certain = _recover_tail(files, segments, quarantine)
    saved = [slots.saved for slots in cursors.values() if slots.saved]
    ahead = max((one.position.sequence for one in saved), default=0)
    if ahead > end:
        log.error(
            "spool %s: cursors stand at event %d but the spool ends at %d; it goes on at %d under a new spool id, and "
            "outputs that were behind count what is missing as quarantined. Was a backup restored, is the disk bad?",
            directory, ahead, end, ahead, extra=messages.SPOOL_WENT_BACK,
        )
    known = {segment.spool_id for segment in segments} or {one.spool_id for one in saved}
    spool_id = b""
    if segments and _make_durable(files, segments[-1]) and is_certain and ahead <= end:
        spool_id = b"" if _was_unsynced(segments[-1]) else segments[-1].spool_id
    return Recovered(segments, max(ahead, end), spool_id, frozenset(known), cursors)


def _make_durable(files: Files, last: Segment) -> bool:
    """Sync what a killed process wrote and did not: outputs will read it now. False where a power cut may take it."""
    try:
        fd = files.open_write(last.path)
        try:
            files.fdatasync(fd)
        finally:
            files.close(fd)
        files.fsync_dir(last.path.parent)
    except OSError as error:
        log.error("spool: %s cannot be synced: %s. Check the disk (dmesg, smartctl)", last.path, error)
        return False
    return True


def _was_unsynced(segment: Segment) -> bool:
    """With `durability: os` the tail that outputs saw may be gone, and its sequences must not name other events."""
    return segment.header is not None and bool(segment.header.flags & UNSYNCED)


def _refuse_later_formats(segments: list[Segment], cursors: Iterable[SlotFile]) -> None:
    """Before anything is written: a cursor that is not understood would begin again, over what it says now."""
    for slots in cursors:
        if slots.later_version:
            raise UnknownFormat(slots.path, what="cursor", found=slots.later_version, known=CURSOR_VERSION)
    for segment in segments:
        if segment.header is not None and segment.header.version > FORMAT_VERSION:
            raise UnknownFormat(segment.path, what="spool", found=segment.header.version, known=FORMAT_VERSION)


def _recover_tail(files: Files, segments: list[Segment], quarantine: Quarantine) -> tuple[int, bool]:
    """The sequence after the last record, and whether that is certain; takes files without a record off the list."""
    next_sequence = 0
    while segments and segments[-1].base >= next_sequence:
        last = segments[-1]
        next_sequence = max(next_sequence, last.base)
        end, is_certain = _recover_segment(files, last, quarantine)
        if end is not None:
            return max(next_sequence, end), is_certain
        files.unlink(segments.pop().path)
    return next_sequence, True


def _recover_segment(files: Files, segment: Segment, quarantine: Quarantine) -> tuple[int | None, bool]:
    """The sequence after the segment's last record, damaged ones included (None if it never held one); if certain."""
    end: int | None = None
    is_certain = True
    for item in scan_file(files, segment, NO_LIMIT):
        if isinstance(item, Found):
            end = item.header.end
        elif item.torn:
            _cut(files, segment, item.offset)
        else:
            quarantine.report(segment, item)
            count = _lost_count(files, segment, item)
            is_certain = count is not None
            end = item.sequence + (count or 1)
    return end, is_certain


def _cut(files: Files, segment: Segment, length: int) -> None:
    log.info("spool: cut %d bytes of an unfinished write off %s", segment.size - length, segment.path)
    fd = files.open_write(segment.path)
    try:
        files.truncate(fd, length)
    finally:
        files.close(fd)
    segment.size = length


def _lost_count(files: Files, segment: Segment, damage: Damage) -> int | None:
    """Events in a damaged record: told by the next header, or by its own less one flipped bit, or not at all."""
    if damage.end is not None:
        return damage.end - damage.sequence
    fd = files.open_read(segment.path)
    try:
        header = repair_record_header(read_anyway(files, fd, RECORD_HEADER_BYTES, damage.offset), segment.salt)
    finally:
        files.close(fd)
    return header.events if header is not None and header.sequence == damage.sequence else None


def load_cursors(files: Files, directory: Path) -> dict[str, SlotFile]:
    """Every cursor by its name; `saved` is None where both slots are damaged. A file never finished is not one yet."""
    cursors = {}
    for name in sorted(files.listdir(directory)):
        if name.endswith(CURSOR_SUFFIX):
            slots = SlotFile(files, directory / name)
            if slots.load():
                cursors[unquote(name.removesuffix(CURSOR_SUFFIX))] = slots
    return cursors


def likely_id(cursors: Mapping[str, SlotFile]) -> bytes:
    """The spool id as the cursors know it, for segments that have lost it."""
    return next((slots.saved.spool_id for slots in cursors.values() if slots.saved), b"")


def cursor_path(directory: Path, name: str) -> Path:
    """Where a cursor's slots are; any name is safe."""
    return directory / "cursors" / f"{quote(name, safe='')}{CURSOR_SUFFIX}"


def adopt(directory: Path, name: str, slots: SlotFile, recovered: Recovered, first: int) -> Position:
    """Where a cursor found on disk goes on. One that cannot be trusted begins again: events repeat, none is missed."""
    if slots.saved is not None and slots.saved.spool_id in recovered.known_ids:
        position = slots.saved.position
        if position.sequence < first:
            log.error(
                "%s: cursor %s: events from %d to %d are not there any more and count as evicted; they were given up "
                "to make room (on_full: drop_oldest, or delivered while this could not be saved), or somebody removed "
                "files",
                directory, name, position.sequence, first - 1, extra=messages.EVENTS_EVICTED,
            )
        return position.evicted_to(first)
    why = "both slots are damaged" if slots.saved is None else "it belongs to another spool"
    log.warning("%s: cursor %s starts again at event %d (events may repeat): %s", directory, name, first, why)
    return Position(first, first)
