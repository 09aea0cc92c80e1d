"""One output's way through one spool: read ahead, settle, save.

Promises: `read` returns whole records in order, from behind the last sync only, and waits where there is none; memory
is bounded by `max_bytes` (or one record, if that is larger). `advance` moves the settled prefix; what the reader found
missing or damaged in between is counted as quarantined when the prefix passes it. Segments are held for the lesser of
the settled and the saved position, so a crash never finds the saved one gone.
Refuses: saving by itself. The caller first makes its output durable, then calls `save`.

All methods belong to the loop thread; reading files and saving hop to a thread.
"""

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Literal

from ndagent.core import messages
from ndagent.core.spool.position import NO_END, Account, Position, Saved, SlotFile
from ndagent.core.spool.reader import Chunk, Place
from ndagent.core.spool.record import Record

if TYPE_CHECKING:
    from ndagent.core.spool.spool import Spool

log = logging.getLogger(__name__)

OnFull = Literal["block", "drop_oldest"]


class Cursor:
    """Made by `Spool.cursor`. One `read` at a time."""

    def __init__(
        self, spool: "Spool", name: str, slots: SlotFile, position: Position, *, found: Saved | None = None
    ) -> None:
        self.name = name
        self.found = found  # what was on disk when the spool was opened
        self.on_full: OnFull = "block"
        self._spool = spool
        self._slots = slots
        self._position = position
        self._next = position.sequence
        self._place: Place | None = None
        self._gaps: deque[tuple[int, int]] = deque()
        self._epoch = 0
        self._saving = asyncio.Lock()
        self._save_failed = False

    @property
    def sequence(self) -> int:
        """The first event that is not settled."""
        return self._position.sequence

    @property
    def position(self) -> Position:
        """Where it stands and what it has counted, as of now."""
        return self._position

    @property
    def saved(self) -> Saved | None:
        """What is on disk; None where nothing whole is."""
        return self._slots.saved

    @property
    def replay_until(self) -> int:
        """Events below it that are still to be settled are replays that an operator asked for."""
        return self._position.replay_until

    @property
    def unsaved(self) -> bool:
        """Whether a crash now would go back behind `sequence`."""
        saved = self._slots.saved
        return saved is None or saved.position != self._position or saved.spool_id != self._spool.identity

    @property
    def held_from(self) -> int:
        """No event from here on may be deleted; nothing before it is saved under the spool's present identity."""
        saved = self._slots.saved
        if saved is None:
            return self._position.sequence
        return min(self._position.sequence, saved.position.sequence) if saved.spool_id == self._spool.identity else 0

    @property
    def needs_from(self) -> int:
        """As `held_from`, for when space is short: what is settled and only cannot be saved must not stop the inputs.

        The full disk that refuses the slot may be full of just these segments (file systems that copy on write need
        room for it). Should a crash come before a save works again, the start counts what was given up as evicted.
        """
        return self._position.sequence if self._save_failed else self.held_from

    def account(self) -> Account:
        """The ledger since this cursor's start, computed from sequences."""
        return self._position.account(self._spool.next_sequence)

    async def read(self, max_bytes: int) -> list[Record]:
        """The next whole records, about `max_bytes` of them and at least one; waits for it.

        The first one may begin below `sequence` where that stands inside a record (after a restart, or a replay from
        the middle of one): its earlier events are settled. Raises SpoolClosed once the spool is closed.
        """
        while True:
            self._skip()
            records = self._spool.read_tip(self._next, self._position.read_until(self._next), max_bytes)
            if records:
                self._place = self._spool.place_behind(records[-1])
                self._next = records[-1].end
            elif self._next < self._spool.readable:
                records = await self._read_file(max_bytes)
            else:
                await self._spool.wait_readable(self._next)
            if records:
                return records

    async def wait(self) -> int:
        """Wait until there is something to read; how many events that is, gaps included. Raises SpoolClosed."""
        self._skip()
        if self._next >= self._spool.readable:
            await self._spool.wait_readable(self._next)
        return self._spool.readable - self._next

    def resume(self, position: Position) -> None:
        """Go on at a position that was durable elsewhere when a crash kept it from being saved here.

        Before the first read only. What the spool no longer holds of it counts as evicted.
        """
        self._position = position.evicted_to(self._spool.first_sequence)
        self.rewind()

    def rewind(self) -> None:
        """The next read starts again at `sequence`."""
        self._next = self._position.sequence
        self._restart()

    def advance(self, sequence: int, *, filtered: int = 0, dead_lettered: int = 0) -> None:
        """Everything below `sequence` is settled; of the newly settled, so many were filtered or dead-lettered.

        Going back changes nothing. Damaged or missing events in between count as quarantined by themselves.
        """
        while self._gaps and self._gaps[0][0] < sequence:
            first, end = self._gaps.popleft()
            filtered, dead_lettered = self._settle(first, filtered, dead_lettered)
            self._position = self._position.quarantined_to(end)
        self._settle(sequence, filtered, dead_lettered)
        self._settle_gaps()

    def evict(self, sequence: int) -> int:
        """Give up everything below `sequence` to make room; returns how many events that cost."""
        before = self._position.evicted
        self._position = self._position.evicted_to(sequence)
        while self._gaps and self._gaps[0][1] <= self._position.sequence:
            self._gaps.popleft()
        if self._next < self._position.sequence:
            self._next = self._position.sequence
            self._restart()
        return self._position.evicted - before

    def replay(self, from_sequence: int, until: int | None = None) -> int:
        """Settle the events from here on again (those below `until` only, if given); returns how many that is.

        Events that are no longer in the spool are left out. `save` afterwards makes it last.
        """
        first = max(from_sequence, self._spool.first_sequence)
        before = self._position.replayed
        self._position = self._position.replaying(first, NO_END if until is None else until)
        self.rewind()
        return self._position.replayed - before

    async def save(self) -> None:
        """Write the position to disk and delete what nobody needs any more.

        A failure is logged once, leaves `unsaved` true, and costs no more than repeated events after a crash.
        """
        async with self._saving:
            position = self._position
            try:
                await asyncio.to_thread(self._slots.save, self._spool.identity, position)
            except OSError as error:
                if not self._save_failed:
                    log.error(
                        "cursor %s of spool %s: cannot save to %s: %s; delivery goes on, but a crash now would send "
                        "events again, or count as evicted what had to make room. Check the disk",
                        self.name, self._spool.stream, self._slots.path, error,
                        extra=messages.DISK_FAILED,
                    )
                self._save_failed = True
                return
            if self._save_failed:
                log.info("cursor %s of spool %s: saving works again", self.name, self._spool.stream)
            self._save_failed = False
        self._spool.trim()

    def _settle(self, sequence: int, filtered: int, dead_lettered: int) -> tuple[int, int]:
        """Advance to a place before any gap; returns the counts that belong behind it."""
        before = self._position
        self._position = after = before.advanced(sequence, filtered=filtered, dead_lettered=dead_lettered)
        filtered -= after.filtered - before.filtered
        return filtered, dead_lettered - (after.dead_lettered - before.dead_lettered)

    def _restart(self) -> None:
        self._place = None
        self._epoch += 1
        self._gaps.clear()

    def _skip(self) -> None:
        """Pass what need not be read: the stretch between a replay's end and where the cursor stood before it."""
        position = self._position
        if position.replay_until <= self._next < position.resume_at:
            self._next, self._place = position.resume_at, None

    async def _read_file(self, max_bytes: int) -> list[Record]:
        epoch = self._epoch
        until = self._position.read_until(self._next)
        chunk = await self._spool.read_chunk(self._place, self._next, until, max_bytes)
        if epoch != self._epoch:  # rewound or evicted meanwhile
            return []
        self._note_gaps(chunk)
        self._place = chunk.place
        self._next = max(self._next, chunk.sequence)
        self._settle_gaps()
        return chunk.records

    def _note_gaps(self, chunk: Chunk) -> None:
        sequence = self._next
        for record in chunk.records:
            if record.sequence > sequence:
                self._gaps.append((sequence, record.sequence))
            sequence = max(sequence, record.end)
        if chunk.sequence > sequence:
            self._gaps.append((sequence, chunk.sequence))

    def _settle_gaps(self) -> None:
        """A gap with nothing unsettled before it is passed at once: no advance would ever come for it."""
        while self._gaps and self._gaps[0][0] <= self._position.sequence:
            self._position = self._position.quarantined_to(self._gaps.popleft()[1])
