"""Which segments there are, who still needs them, and what is given up when there is no room.

Promises, in this order when space is short: segments that every cursor has passed go first (the replay window is a wish
that yields before anyone has to wait); then cursors with `on_full: drop_oldest` give up the oldest segment, if no
blocking cursor needs it, and count its events as evicted; then appends wait. The last segment is all that such a cursor
has: whoever makes room says whether it may go too. From 80 % of `max_bytes` on, the log names the cursor that holds the
space; below 70 % it says that this is over. With no cursor at all nothing is given up. `max_age` gives up the same way
what is too old.
Refuses: touching files. What may go is listed in `garbage`, which the commit thread deletes before it writes; what that
cost an output is listed in `given_up`, for whoever wants to look into the files before.
"""

import logging
from bisect import bisect_right
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from ndagent.core import messages
from ndagent.core.settings import format_size
from ndagent.core.spool.config import SpoolConfig
from ndagent.core.spool.cursor import Cursor
from ndagent.core.spool.position import Position
from ndagent.core.spool.scan import NO_LIMIT, Segment

log = logging.getLogger(__name__)

ALERT_FROM = 0.8
ALERT_UNTIL = 0.7


class GivenUp(NamedTuple):
    """Events of one segment, from `first` to before `end`, that a cursor lost to make room or to age.

    `before` is where the cursor stood: in a replay not all between the two was still to be settled.
    """

    cursor: str
    segment: Segment
    first: int
    end: int
    before: Position


class Room:
    """One per spool; belongs to the loop thread."""

    def __init__(
        self, segments: list[Segment], *, stream: str, config: SpoolConfig, clock: Callable[[], float]
    ) -> None:
        self.segments = segments
        self.total_bytes = sum(segment.size for segment in segments)
        self.garbage: list[Path] = []
        self.given_up: list[GivenUp] = []
        self.held_from = NO_LIMIT  # see Spool.hold
        self._stream = stream
        self._max_bytes = config.max_bytes
        self._replay_window_seconds = config.replay_window
        self._max_age_seconds = config.max_age
        self._clock = clock
        self._alerted = False
        self._evicting = False

    def find(self, sequence: int, readable: int) -> tuple[Segment, int]:
        """The segment that holds the sequence, and where the next one begins."""
        index = max(bisect_right(self.segments, sequence, key=lambda segment: segment.base) - 1, 0)
        return self.segments[index], min(self._end(index, readable), readable)

    def grew(self, segment: Segment, size: int) -> None:
        """A commit to this segment succeeded."""
        if not self.segments or self.segments[-1] is not segment:
            self.segments.append(segment)
        self.total_bytes += size - segment.size
        segment.size = size
        segment.changed_at = self._clock()

    def reclaim(
        self, target_bytes: int, cursors: Collection[Cursor], next_sequence: int, *, spare_last: bool = False
    ) -> bool:
        """Give up what may be given up until no more than `target_bytes` are left; whether that was enough.

        `spare_last`: the last segment goes only if that costs nobody an event.
        """
        while self.total_bytes > target_bytes and self.segments:
            if not self._give_up_first(cursors, next_sequence, at_no_cost=spare_last and len(self.segments) == 1):
                break
        return self.total_bytes <= target_bytes

    def expire(self, cursors: Collection[Cursor], next_sequence: int) -> bool:
        """Give up whole segments that are older than `max_age`; whether any was. The newest one stays."""
        oldest = self._clock() - self._max_age_seconds
        expired = False
        while len(self.segments) > 1 and self.segments[0].changed_at < oldest:
            if not self._give_up_first(cursors, next_sequence):
                break
            expired = True
        return expired

    def _give_up_first(self, cursors: Collection[Cursor], next_sequence: int, *, at_no_cost: bool = False) -> bool:
        """Drop the oldest segment, at the cost of the cursors that let it; False where one does not, or none may."""
        end = self._end(0, next_sequence)
        holders = [cursor for cursor in cursors if cursor.needs_from < end]
        if not cursors or (holders and at_no_cost) or any(cursor.on_full == "block" for cursor in holders):
            return False
        for cursor in holders:
            self._evict(cursor, end)
        self._drop_first()
        return True

    def trim(self, cursors: Collection[Cursor], next_sequence: int) -> bool:
        """Give up what every cursor has passed and the replay window no longer keeps; whether anything was."""
        if not cursors:
            return False
        held_from = min(self.held_from, *(cursor.held_from for cursor in cursors))
        oldest = self._clock() - self._replay_window_seconds
        trimmed = False
        while len(self.segments) > 1 and self._end(0, next_sequence) <= held_from:
            if self._replay_window_seconds and self.segments[0].changed_at > oldest:
                break
            self._drop_first()
            trimmed = True
        return trimmed

    def watch(self, cursors: Collection[Cursor], next_sequence: int) -> None:
        """Say once that space runs short, who holds it, and when that is over."""
        used = self.total_bytes / self._max_bytes
        if used >= ALERT_FROM and not self._alerted:
            self._alerted = True
            log.warning(
                "spool %s: %d %% of spool.max_bytes (%s) in use; %s",
                self._stream, used * 100, format_size(self._max_bytes), self.holder(cursors, next_sequence),
                extra=messages.SPOOL_FILLING,
            )
        elif used < ALERT_UNTIL and self._alerted:
            self._alerted = self._evicting = False
            log.info(
                "spool %s: below %d %% of spool.max_bytes again", self._stream, ALERT_UNTIL * 100,
                extra=messages.SPOOL_HAS_ROOM,
            )

    def holder(self, cursors: Collection[Cursor], next_sequence: int) -> str:
        """Who needs the oldest segment, for the log."""
        slowest = min(cursors, key=lambda cursor: cursor.held_from, default=None)
        if slowest is None:
            return "no output reads it"
        return f"output {slowest.name} holds it, {next_sequence - slowest.sequence} events behind"

    def _evict(self, cursor: Cursor, end: int) -> None:
        before = cursor.position
        evicted = cursor.evict(end)
        if evicted:
            self.given_up.append(GivenUp(cursor.name, self.segments[0], before.sequence, end, before))
        if evicted and not self._evicting:
            self._evicting = True
            log.error(
                "spool %s: output %s loses its oldest events to room or age, %d so far (on_full: drop_oldest). Bring "
                "the output back, or raise spool.max_bytes and spool.max_age", self._stream, cursor.name, evicted,
                extra=messages.EVENTS_EVICTED,
            )

    def _drop_first(self) -> None:
        segment = self.segments.pop(0)
        self.total_bytes -= segment.size
        self.garbage.append(segment.path)

    def _end(self, index: int, next_sequence: int) -> int:
        return self.segments[index + 1].base if index + 1 < len(self.segments) else next_sequence
