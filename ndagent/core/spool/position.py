"""Where one output stands in one spool, and the two slots that keep it on disk.

Promises: `Position` is pure arithmetic over sequences, and its `account` adds up by construction: what was appended
since the cursor's start is delivered, pending, filtered, dead-lettered, quarantined or evicted, each event once.
A slot file always holds one whole position: two fixed slots are written in turn, each with a CRC and a generation, into
a file that got its full size when it was made, so that saving works on a full disk and survives a crash at any point.
Refuses: asyncio, segments, deciding when to save.

Slot, at byte 0 and at byte 4096 of `cursors/<name>.cursor`, little-endian: 8 B magic, u16 version, 10 B spool id, then
u64 generation and the counters of `Position` in order, then CRC-32. Magic and version stay where they are in every
later version.
"""

import struct
from contextlib import suppress
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from ndagent.core.spool.files import Files, read_anyway, write_all
from ndagent.core.spool.segment import SPOOL_ID_BYTES, crc32

SLOT_BYTES = 4096
"""A page each: a torn write of one slot cannot touch the other."""
_MAGIC = b"NDcursor"
CURSOR_VERSION = 1


class Account(NamedTuple):
    """appended = delivered + pending + filtered + dead_lettered + quarantined + evicted, since the cursor's start.

    Events that an operator replays count again: they are in `appended` a second time.
    """

    appended: int
    delivered: int
    pending: int
    filtered: int
    dead_lettered: int
    quarantined: int
    evicted: int


@dataclass(frozen=True, slots=True)
class Position:
    """A cursor's state; every move returns a new one. `sequence` is the next event that is not settled."""

    sequence: int
    start: int
    filtered: int = 0
    dead_lettered: int = 0
    quarantined: int = 0
    evicted: int = 0
    replayed: int = 0
    replay_until: int = 0
    resume_at: int = 0

    def read_until(self, sequence: int) -> int:
        """Where a reader that stands at `sequence` must look up: the end of a replay of a range, if it is in one."""
        return self.replay_until if sequence < self.replay_until < self.resume_at else NO_END

    def pending(self, appended_until: int) -> int:
        """Events below `appended_until` that are not settled yet."""
        settled_before = self.resume_at - self.replay_until if self.sequence < self.replay_until else 0
        return appended_until - self.sequence - settled_before

    def account(self, appended_until: int) -> Account:
        """The cursor's ledger while the spool ends at `appended_until`."""
        appended, pending = appended_until - self.start + self.replayed, self.pending(appended_until)
        lost = self.filtered + self.dead_lettered + self.quarantined + self.evicted
        delivered = appended - pending - lost
        return Account(
            appended, delivered, pending, self.filtered, self.dead_lettered, self.quarantined, self.evicted
        )

    def advanced(self, sequence: int, *, filtered: int = 0, dead_lettered: int = 0) -> "Position":
        """Everything below `sequence` is settled, of it so many not delivered; a step back changes nothing."""
        step = self._step(sequence)
        filtered = min(filtered, step)
        dead_lettered = min(dead_lettered, step - filtered)
        moved = replace(self, filtered=self.filtered + filtered, dead_lettered=self.dead_lettered + dead_lettered)
        return moved.moved_to(sequence)

    def quarantined_to(self, sequence: int) -> "Position":
        """The events up to `sequence` cannot be read."""
        return replace(self, quarantined=self.quarantined + self._step(sequence)).moved_to(sequence)

    def evicted_to(self, sequence: int) -> "Position":
        """The events up to `sequence` are gone to make room."""
        return replace(self, evicted=self.evicted + self._step(sequence)).moved_to(sequence)

    def replaying(self, first: int, until: int) -> "Position":
        """Go back to `first`, settle again what lies below `until`, then go on where the cursor stood.

        During a replay the two ranges become one that covers both: nothing promised to be sent again is forgotten.
        """
        resume_at = self.resume_at if self.sequence < self.replay_until else self.sequence
        if self.sequence < self.replay_until:
            first, until = min(first, self.sequence), max(until, self.replay_until)
        until = min(until, resume_at)
        if first >= until:
            return self
        back = replace(self, sequence=first, replay_until=until, resume_at=resume_at)
        return replace(back, replayed=self.replayed + back.pending(resume_at) - self.pending(resume_at))

    def _step(self, sequence: int) -> int:
        """How many events a move to `sequence` settles."""
        return max(self.pending(NO_END) - self.moved_to(sequence).pending(NO_END), 0)

    def moved_to(self, sequence: int) -> "Position":
        """At `sequence`, counting nothing; never back, and never into what lies behind a replay's end."""
        sequence = max(sequence, self.sequence)
        if self.replay_until <= sequence < self.resume_at:
            sequence = self.resume_at
        return replace(self, sequence=sequence)


NO_END = 1 << 63
_COUNTERS = len(fields(Position))
_SLOT = struct.Struct(f"<8sH{SPOOL_ID_BYTES}sQ{_COUNTERS}Q")
_VERSION = struct.Struct("<H")
_CRC = struct.Struct("<I")


class Saved(NamedTuple):
    """A position as a slot holds it."""

    generation: int
    spool_id: bytes
    position: Position


def pack_slot(saved: Saved) -> bytes:
    """A slot's bytes."""
    head = _SLOT.pack(_MAGIC, CURSOR_VERSION, saved.spool_id, saved.generation, *astuple(saved.position))
    return head + _CRC.pack(crc32(head))


def parse_slot(data: bytes) -> Saved | None:
    """Inverse of `pack_slot`; None for anything else."""
    if len(data) < _SLOT.size + _CRC.size or data[:8] != _MAGIC:
        return None
    if _CRC.unpack_from(data, _SLOT.size)[0] != crc32(data[: _SLOT.size]):
        return None
    _magic, version, spool_id, generation, *counters = _SLOT.unpack_from(data)
    return Saved(generation, spool_id, Position(*counters)) if version == CURSOR_VERSION else None


def later_version(data: bytes) -> int:
    """The version of a slot that a later program wrote; 0 for any other, one with a flipped bit there included."""
    if len(data) < _SLOT.size + _CRC.size or data[:8] != _MAGIC:
        return 0
    (version,) = _VERSION.unpack_from(data, 8)
    if version <= CURSOR_VERSION:
        return 0
    was = data[:8] + _VERSION.pack(CURSOR_VERSION) + data[10:]
    return 0 if _CRC.unpack_from(was, _SLOT.size)[0] == crc32(was[: _SLOT.size]) else int(version)


class SlotFile:
    """One cursor's file. A descriptor is never used again after a failed sync: each save opens the file anew."""

    def __init__(self, files: Files, path: Path) -> None:
        self._files = files
        self.path = path
        self.saved: Saved | None = None
        self.later_version = 0
        """Of a slot that this program cannot read and must not write over; 0 where there is none."""

    def load(self) -> bool:
        """Take the newest whole slot as `saved`; None if both are damaged. False for a file that was never finished."""
        fd = self._files.open_read(self.path)
        try:
            pages = [read_anyway(self._files, fd, SLOT_BYTES, at) for at in (0, SLOT_BYTES)]
        finally:
            self._files.close(fd)
        slots = [slot for page in pages if (slot := parse_slot(page))]
        self.saved = max(slots, key=lambda slot: slot.generation, default=None)
        self.later_version = max(map(later_version, pages))
        return any(page.strip(b"\0") for page in pages)

    def save(self, spool_id: bytes, position: Position) -> None:
        """Write the older slot and sync it; raises OSError, and then the newer slot still stands."""
        generation = self.saved.generation + 1 if self.saved else 1
        saved = Saved(generation, spool_id, position)
        fd, made = self._open()
        try:
            if self.saved is None and self._files.size(self.path) < 2 * SLOT_BYTES:
                write_all(self._files, fd, [bytes(2 * SLOT_BYTES)], 0)
            write_all(self._files, fd, [pack_slot(saved)], generation % 2 * SLOT_BYTES)
            self._files.fdatasync(fd)
        except OSError:
            if made:
                with suppress(OSError):
                    self._files.unlink(self.path)
            raise
        finally:
            self._files.close(fd)
        if made:
            self._files.fsync_dir(self.path.parent)
        self.saved = saved

    def _open(self) -> tuple[int, bool]:
        try:
            return self._files.open_write(self.path), False
        except FileNotFoundError:
            return self._files.create(self.path), True
