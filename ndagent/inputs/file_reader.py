"""One round of reading: a piece of each file that has news, as one batch of events.

Promises: each file gets its turn, a busy one no more of a round than others; a round holds at most MAX_EVENTS events
and about ROUND_BYTES of text, however many files there are; nothing that a round found out counts before its steps are
applied, which is after its batch is durable. What is lost of a file is an event, a count and a line in the log.
Refuses: asyncio. A round runs in a thread.
"""

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ndagent.core import messages
from ndagent.core.system_files import pread
from ndagent.inputs.file_events import Events
from ndagent.inputs.file_gzip import GzipText
from ndagent.inputs.file_identity import (
    HEAD_BYTES,
    MARK_BYTES,
    NOTHING,
    Place,
    Print,
    Remembered,
    Within,
    print_head,
    print_mark,
)
from ndagent.inputs.file_lines import TRUNCATED, Encoding, Splitter, Taken, encoding_of
from ndagent.inputs.file_table import Say, Table
from ndagent.inputs.file_tail import START, Piece, Replaced, Tail
from ndagent.wire.times import received_text

CHUNK_BYTES = 256 * 1024
ROUND_BYTES = 1024 * 1024
MAX_EVENTS = 8192
"""As in the batcher: a record is decoded whole."""


class Step(NamedTuple):
    """What a round found out about one file, to be applied once its events are durable."""

    tail: Tail
    place: Place
    head: Print
    status: os.stat_result
    at_end: bool
    has_rest: bool = False
    again_at: float | None = None
    restarts: bool = False
    is_finished: bool = False
    first: bytes = b""

    @property
    def seen_bytes(self) -> int:
        """The file's size, for the checkpoint; of a compressed file only once it is read, so that a start goes on."""
        return 0 if self.tail.key.is_gzip and not self.at_end else self.status.st_size


@dataclass(slots=True)
class Round:
    """Events of one round, and what to apply when they are durable."""

    now_ns: int
    lines: list[bytes] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    read_bytes: int = 0
    truncated: int = 0
    lost: int = 0  # gaps, each of which stands among the lines too
    is_full: bool = False  # there is more to read at once


class Waits(NamedTuple):
    """How long what has no end yet is waited for, in seconds."""

    rest: float  # close_partial_after
    group: float  # multiline.flush_after; as `rest` without multi-line events
    retry: float  # scan_interval


class Reader:
    """Makes rounds; `encoding` is the configured one, `say` tells trouble with a path once."""

    def __init__(
        self, table: Table, splitter: Splitter, events: Events, *, name: str, encoding: str, waits: Waits, say: Say,
        gzip_max_bytes: int, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._table = table
        self._splitter = splitter
        self._events = events
        self._encoding = encoding
        self._waits = waits
        self._say = say
        self._gzip_max_bytes = gzip_max_bytes
        self._clock = clock
        self._log = logging.getLogger(name)
        self._text: tuple[Tail, GzipText] | None = None  # one at a time: it holds a window of text
        self._turn = 0

    def round(self, now: float) -> Round:
        """Read what there is news of; `now` is the loop's clock."""
        result = Round(int(self._clock() * 1e9))
        ready = [tail for tail in self._table.tails.values() if self._is_ready(tail, now)]
        first = self._turn % len(ready) if ready else 0
        for index, tail in enumerate(ready[first:] + ready[:first]):
            if result.read_bytes >= ROUND_BYTES or len(result.lines) > MAX_EVENTS // 2:
                result.is_full = True
                self._turn = first + index  # the others begin the next round
                break
            self._read(tail, result, now)
        return result

    def apply(self, result: Round, now: float) -> None:
        """The round is durable: move on."""
        for step in result.steps:
            tail = step.tail
            if step.restarts or step.status.st_size != tail.size:
                tail.changed_at = now
            tail.saw(step.status)
            tail.place, tail.head = step.place, step.head
            tail.has_rest, tail.again_at, tail.is_finished = step.has_rest, step.again_at, step.is_finished
            tail.has_news = not step.at_end
            tail.is_new = False
            tail.first = step.first or tail.first
            if step.restarts:
                tail.encoding, tail.copy_of, tail.hole_end, tail.first = None, None, 0, b""

    def parts(self, result: Round) -> dict[bytes, bytes]:
        """What the round changes in the checkpoint."""
        parts = {
            step.tail.key.pack(): Remembered(
                step.place, step.head, step.tail.path, step.seen_bytes, step.tail.is_over
            ).pack()
            for step in result.steps
            if (step.place, step.head) != (step.tail.place, step.tail.head) or step.is_finished
        }
        noted = {
            key: Remembered(tail.place, tail.head, tail.path, tail.size, tail.is_over).pack()
            for key, tail in self._table.noted.items()
        }
        return {**noted, **dict.fromkeys(self._table.dropped_parts - parts.keys(), b""), **parts}

    def next_deadline(self) -> float | None:
        """When the first rest will have waited long enough."""
        return min((tail.again_at for tail in self._table.tails.values() if tail.again_at is not None), default=None)

    def _is_ready(self, tail: Tail, now: float) -> bool:
        if tail.retry_at > now:
            return False
        return tail.has_news or (tail.again_at is not None and tail.again_at <= now)

    def _read(self, tail: Tail, result: Round, now: float) -> None:
        try:
            self._table.open(tail)
            if tail.key.is_gzip:
                self._read_gzip(tail, result)
            else:
                self._read_plain(tail, result, now)
            self._say(tail.path, None)
        except Replaced:
            self._replaced(tail, result, now)
        except FileNotFoundError:
            self._vanished(tail, result, now)
        except OSError as error:
            tail.retry_at = now + self._waits.retry
            self._table.let_go(tail)  # a stale handle heals only by opening anew
            remedy = "check the disk or the mount"
            if error.errno == errno.EACCES:
                remedy = "give the agent's user read access to it"
            elif error.errno == errno.EPERM:
                remedy = "policy_allow.paths in ndagent.yaml says what a policy may have read"
            self._say(tail.path, f"it cannot be read: {error.strerror}", remedy)

    def _read_plain(self, tail: Tail, result: Round, now: float) -> None:
        if (tail.is_new or tail.copy_of is not None) and self._waits_for_original(tail):
            return
        piece = tail.read(max(CHUNK_BYTES, self._splitter.piece_bytes))
        first = tail.first_bytes(piece)
        head = print_head(first) if len(first) > tail.head.length else tail.head
        if piece.status.st_size < tail.size:
            self._cut_behind(tail, piece, result)
        encoding = self._encoding_of(tail, piece)
        skipped = encoding.mark_bytes if tail.place.position == 0 else 0
        hole = piece.data and not piece.at_end and piece.data.count(0) == len(piece.data)
        if hole and not tail.place.within & Within.SKIPPED:
            self._pass_hole(tail, piece, head, result, now)
            return
        changed_at = tail.changed_at if piece.status.st_size == tail.size else now
        is_final = piece.at_end and self._table.is_final(tail, now)
        quiet_for = now - changed_at if piece.at_end else 0.0
        taken = self._take(piece.data[skipped:], encoding, tail, quiet_for=quiet_for, is_final=is_final)
        used = taken.used + skipped if taken.used else 0
        self._deliver(tail, taken, result, base=tail.place.position + skipped)
        place = Place(tail.place.position + used, self._mark(tail, piece, used), taken.within)
        has_more = taken.has_more or not piece.at_end
        result.read_bytes += used
        result.is_full |= has_more
        has_rest = taken.has_rest and not has_more
        later = [changed_at + wait for wait in (self._waits.group, self._waits.rest) if quiet_for < wait]
        again_at = min(later, default=None) if has_rest else None
        result.steps.append(
            Step(tail, place, head, piece.status, not has_more, has_rest, again_at, is_finished=is_final, first=first)
        )

    def _take(self, data: bytes, encoding: Encoding, tail: Tail, *, quiet_for: float, is_final: bool) -> Taken:
        return self._splitter.take(
            data, encoding, tail.place.within, most=MAX_EVENTS,
            take_rest=is_final or quiet_for >= self._waits.rest, take_group=is_final or quiet_for >= self._waits.group,
        )  # fmt: skip

    def _deliver(self, tail: Tail, taken: Taken, result: Round, *, base: int) -> None:
        if taken.nul_bytes:
            self._log.warning(
                "%s: %d NUL bytes before byte %d are skipped: the file was cut under a writer that does not append, or "
                "a crash zeroed them", tail.name, taken.nul_bytes, base + taken.used,
            )
        result.truncated += sum(1 for tag in taken.tags.values() if tag & TRUNCATED)
        now = received_text(result.now_ns)
        result.lines += self._events.lines(
            taken, path=tail.name, base=base, now=now, now_seconds=result.now_ns // 10**9
        )

    def _mark(self, tail: Tail, piece: Piece, used: int) -> Print:
        if used >= MARK_BYTES:
            return print_mark(piece.data[used - MARK_BYTES : used])
        return print_mark(piece.before + piece.data[:used]) if used else tail.place.mark

    def _encoding_of(self, tail: Tail, piece: Piece) -> Encoding:
        if tail.place.position == 0:
            return encoding_of(self._encoding, piece.data[:4])
        if tail.encoding is None:
            tail.encoding = encoding_of(self._encoding, pread(tail.fd, 4, 0))
        return tail.encoding

    def _pass_hole(self, tail: Tail, piece: Piece, head: Print, result: Round, now: float) -> None:
        """A piece of NUL bytes only, with more behind it."""
        end = tail.behind_hole(piece.status.st_size)
        result.read_bytes += len(piece.data)
        if end is None:
            is_whole = tail.hole_end >= piece.status.st_size
            result.is_full |= not is_whole
            is_final = is_whole and self._table.is_final(tail, now)
            result.steps.append(Step(tail, tail.place, head, piece.status, is_whole, True, is_finished=is_final))
            return
        width = len(self._encoding_of(tail, piece).line_end)
        end -= end % width
        self._log.warning(
            "%s: %d NUL bytes from byte %d are skipped: the file was cut under a writer that does not append, or a "
            "crash zeroed them", tail.name, end - tail.place.position, tail.place.position,
        )
        result.is_full = True
        result.steps.append(Step(tail, tail.place_at(end), head, piece.status, at_end=False))

    # ---- copies and compressed files

    def _waits_for_original(self, tail: Tail) -> bool:
        """Whether it is a copy of a file that is still followed: what it holds is read there; an empty one may be."""
        status = os.fstat(tail.fd)
        if tail.copy_of is not None and not self._table.is_copy(tail, tail.copy_of):
            tail.copy_of = None  # it goes ways of its own
            return False
        if status.st_size > 0:
            tail.copy_of = tail.copy_of or self._table.original_of(tail, None)
        waits = tail.copy_of is not None or status.st_size == 0
        if waits:
            tail.has_news = False
            tail.saw(status)
        return waits

    def _read_gzip(self, tail: Tail, result: Round) -> None:
        status = os.fstat(tail.fd)
        length = max(CHUNK_BYTES, self._splitter.piece_bytes)
        place, head = tail.place, tail.head
        if tail.is_new:
            original = self._table.original_of(tail, self._open_text(tail, status, anew=True))
            if original is not None:
                self._went_into(original)
            if original is not None and original.has_news and original.fd >= 0:
                tail.has_news = False  # it is still being read where it was; the next look asks again
                return
            place = place if original is None else original.place
            head = print_head(self._open_text(tail, status, anew=True).at(0, HEAD_BYTES))
        text = self._open_text(tail, status)
        if tail.encoding is None:
            tail.encoding = encoding_of(self._encoding, text.at(0, 4) if text.position == 0 else b"")
        skipped = tail.encoding.mark_bytes if place.position == 0 else 0
        data = text.at(place.position, length)
        at_end = text.at_end and len(data) < length
        taken = self._splitter.take(
            data[skipped:], tail.encoding, place.within, most=MAX_EVENTS, take_rest=at_end, take_group=at_end
        )
        used = taken.used + skipped if taken.used else 0
        self._deliver(tail, taken, result, base=place.position + skipped)
        is_done = at_end and not taken.has_more
        if is_done and text.problem:
            self._log.warning(
                "%s: %s after %d bytes of text; what came before is read, compress it again if the rest matters",
                tail.path, text.problem, place.position + used,
            )
        mark = print_mark(data[:used]) if used else place.mark
        result.read_bytes += used
        result.is_full |= not is_done
        place = Place(place.position + used, mark, taken.within)
        result.steps.append(Step(tail, place, head, status, is_done, is_finished=is_done))

    def _open_text(self, tail: Tail, status: os.stat_result, *, anew: bool = False) -> GzipText:
        known = self._text if self._text is not None and self._text[0] is tail and not anew else None
        if known is None or status.st_size != tail.size or known[1].fd != tail.fd:
            self._text = known = (tail, GzipText(tail.fd, max_bytes=self._gzip_max_bytes))
        return known[1]

    def _went_into(self, original: Tail) -> None:
        """A compressed file is read on from where this one was read to: that it is gone itself is no loss then."""
        if original.fd >= 0 or original.size > original.place.position:
            return
        try:
            self._table.open(original)
        except FileNotFoundError:
            original.has_news = original.has_rest = False
            original.again_at = None
            self._table.over(original)
        except OSError:
            return  # it is said when it is to be read

    # ---- loss

    def _replaced(self, tail: Tail, result: Round, now: float) -> None:
        """Cut or written anew: start over, and say what is known of what is gone."""
        status = os.fstat(tail.fd)
        unread = max(tail.size - tail.place.position, 0)
        copies = self._table.copies_of(tail, now)
        rescued = [copy for copy in copies if self._release(copy, tail, result)]
        was_other = tail.is_over and unread == 0 and not rescued
        if not was_other:
            where = f"; its copy {rescued[0].path} is read on from there" if rescued else ""
            self._lose(
                tail, result, unread=0 if rescued else unread,
                what=f"was cut or replaced at byte {tail.place.position}{where}; what was written after the last look "
                "and before that is lost",
                remedy="rotate by renaming (logrotate: create instead of copytruncate), which loses nothing",
            )  # fmt: skip
        result.is_full = True
        tail.is_over = False  # what is there now was not read yet
        result.steps.append(Step(tail, START, NOTHING, status, at_end=False, restarts=True))

    def _cut_behind(self, tail: Tail, piece: Piece, result: Round) -> None:
        """What was delivered still stands; of the rest, some is gone."""
        self._lose(
            tail, result, unread=tail.size - piece.status.st_size, what=f"was cut behind byte {tail.place.position}",
            remedy="rotate by renaming (logrotate: create instead of copytruncate), which loses nothing",
        )  # fmt: skip

    def _release(self, copy: Tail, tail: Tail, result: Round) -> bool:
        """Let a copy go on where its original was; whether it has more than that."""
        self._table.open(copy)
        status = os.fstat(copy.fd)
        place = copy.place_at(min(tail.place.position, status.st_size))
        if place.position == tail.place.position:
            place = place._replace(within=tail.place.within)
        head = print_head(pread(copy.fd, HEAD_BYTES, 0))
        result.steps.append(Step(copy, place, head, status, at_end=False, restarts=True))
        return status.st_size > tail.place.position

    def _vanished(self, tail: Tail, result: Round, now: float) -> None:
        """Not open, and nowhere to be found; unless it was gone before, and read, something may have been missed."""
        tail.has_news = tail.has_rest = False
        tail.again_at = None
        unread = max(tail.size - tail.place.position, 0)
        if tail.key.is_gzip or (tail.is_over and not unread):
            return
        if not unread and self._table.may_be_compressed(tail, now):
            tail.has_news, tail.retry_at = True, now + self._waits.retry
            return
        what = "was removed before it was read to its end"
        if not unread:
            what = "was removed or compressed while nobody looked; what was written since the last look may be lost"
        remedy = "keep rotated files a while (logrotate: delaycompress, rotate 2)"
        self._lose(tail, result, unread=unread, what=what, remedy=remedy)
        tail.size = tail.place.position
        self._table.over(tail)
        if unread:
            self._table.dropped_parts.add(tail.key.pack())

    def _lose(self, tail: Tail, result: Round, *, unread: int, what: str, remedy: str) -> None:
        now = received_text(result.now_ns)
        message = f"{tail.name} {what}: {unread} bytes known to be unread, seen at {now.decode()}"
        self._log.error("%s; %s", message, remedy, extra=messages.LINES_LOST)
        result.lost += 1
        result.lines.append(
            self._events.trouble(path=tail.name, message=message, offset=tail.place.position, now=now)
        )
