"""Syslog framing over a byte stream (RFC 6587): bytes in, runs of whole messages out. Compiled twin: _framing.pxi.

Promises:
  * octet counting or LF is decided once per connection: digits, a space and `<` is octet counting, anything else is LF;
  * no byte of a message is changed or lost unseen: an over-long message is cut at `max_message_bytes` and flagged
    TRUNCATED, bytes that belong to no frame come out as one message flagged FRAMING_ERROR, a part frame at the end of
    input is flagged TRUNCATED;
  * the messages depend on the bytes, never on how they were split over feeds; one feed of good frames is one chunk;
  * linear time and at most `max_message_bytes` + 23 bytes kept, whatever is sent: search positions outlive a feed.
Refuses: parsing a message, I/O, raising on any input.

After a framing error (a non-digit where a count must stand, more than 10 digits, a count beyond MAX_FRAME_BYTES) the
framer looks for an LF or for a plausible "digits SP <" and goes on there.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from ndagent.wire.record import Flags, Framing

MAX_FRAME_BYTES = 16 * 2**20
"""A larger count is no count: senders of such messages are not known, and after a slip a date such as 20260101 would
otherwise swallow 20 MB of good frames. Also the largest `max_message_bytes`."""

COUNT_DIGITS = 10
DETECT_DIGITS = 20  # so that "99999999999 <" is seen as a broken count and not as a line
_SYNC_BYTES = COUNT_DIGITS + 2  # "digits SP <"

_DETECT_OCTETS = re.compile(rb"[0-9]{1,%d} <" % DETECT_DIGITS)
_DETECT_MORE = re.compile(rb"[0-9]{1,%d} ?" % DETECT_DIGITS)
_COUNT = re.compile(rb"([0-9]{1,%d}) " % COUNT_DIGITS)
_COUNT_MORE = re.compile(rb"[0-9]{0,%d}" % COUNT_DIGITS)
_COUNT_AT_END = re.compile(rb"(?<![0-9])([0-9]{1,%d}) \Z" % COUNT_DIGITS)
_MARK = re.compile(rb"[\n<]")
_BLANK = b"\r\n\0"  # what devices pad with; a message of nothing else is none


class Chunk(NamedTuple):
    """`count` whole messages in one framing. OCTET_COUNTED: frames with their counts as they came; LF: lines, each
    ending in LF; WHOLE: one bare message. The flags hold for every message in it."""

    framing: Framing
    flags: Flags
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    payload: bytes


class _Chunks:
    """Gathers the chunks of one feed: adjacent messages of one framing become one chunk."""

    __slots__ = ("_count", "_framing", "_pieces", "done")

    def __init__(self) -> None:
        self.done: list[Chunk] = []
        self._framing = Framing.LF
        self._pieces: list[bytes] = []
        self._count = 0

    def run(self, framing: Framing, piece: bytes, count: int) -> None:
        if count:
            self._framing = framing
            self._pieces.append(piece)
            self._count += count

    def whole(self, flags: Flags, message: bytes) -> None:
        self.flush()
        self.done.append(Chunk(Framing.WHOLE, flags, 1, message))

    def flush(self) -> list[Chunk]:
        if self._count:
            self.done.append(Chunk(self._framing, Flags.NONE, self._count, b"".join(self._pieces)))
            self._pieces, self._count = [], 0
        return self.done


class Framer:
    """One connection's framing. `feed` what was read, `close` once at the end of input.

    `framing` is None until decided; `framing_errors` counts the places where framing was lost.
    """

    __slots__ = ("_limit", "_scanned", "_skip", "_step", "_tail", "framing", "framing_errors")

    def __init__(self, max_message_bytes: int) -> None:
        if not 1 <= max_message_bytes <= MAX_FRAME_BYTES:
            raise ValueError(f"max_message_bytes is {max_message_bytes}, must be 1 to {MAX_FRAME_BYTES}")
        self.framing: Framing | None = None
        self.framing_errors = 0
        self._limit = max_message_bytes
        self._tail = bytearray()
        self._scanned = 0  # bytes of the tail that are known to hold no end of line or sync mark
        self._skip = 0  # bytes of an over-long frame still to come
        self._step: Callable[[Framer, _Chunks], bool] = Framer._detect  # not bound: no reference cycle

    @property
    def pending_bytes(self) -> int:
        """Bytes kept for a message that is not complete yet."""
        return len(self._tail)

    def feed(self, data: bytes | memoryview) -> list[Chunk]:
        """The messages that `data` completed."""
        self._tail += data
        chunks = _Chunks()
        while self._step(self, chunks):
            pass
        return chunks.flush()

    def close(self) -> list[Chunk]:
        """What the tail means at the end of input: a last line is a message, a part frame a truncated one."""
        tail, self._tail = bytes(self._tail), bytearray()
        chunks = _Chunks()
        if self._step is Framer._garbage:
            self._emit_garbage(chunks, tail)
        elif self._step is Framer._frames:
            count = _COUNT.match(tail)
            if tail:
                # A count without a byte behind it is kept as it is: there is nothing else to show.
                chunks.whole(Flags.TRUNCATED, tail[count.end() :] or tail if count else tail)
        elif tail.strip(_BLANK):
            chunks.whole(Flags.NONE, tail)
        return chunks.flush()

    # Each step consumes what it can from the front of the tail and returns whether another step may go further.

    def _detect(self, _chunks: _Chunks) -> bool:
        if not self._tail or _DETECT_MORE.fullmatch(self._tail):
            return False
        octets = _DETECT_OCTETS.match(self._tail) is not None
        self.framing, self._step = (Framing.OCTET_COUNTED, Framer._frames) if octets else (Framing.LF, Framer._lines)
        return True

    def _lines(self, chunks: _Chunks) -> bool:
        tail, limit = self._tail, self._limit
        run = start = count = 0
        search = self._scanned
        while (end := tail.find(b"\n", search, start + limit + 1)) >= 0:
            if tail[start] in _BLANK and not tail[start:end].strip(_BLANK):
                chunks.run(Framing.LF, bytes(tail[run:start]), count)
                run, count = end + 1, 0
            else:
                count += 1
            search = start = end + 1
        chunks.run(Framing.LF, bytes(tail[run:start]), count)
        del tail[:start]
        self._scanned = len(tail)
        if len(tail) <= limit:
            return False
        chunks.whole(Flags.TRUNCATED, bytes(tail[:limit]))
        self._scanned = 0
        self._step = Framer._skip_line
        return True

    def _skip_line(self, _chunks: _Chunks) -> bool:
        end = self._tail.find(b"\n")
        if end < 0:
            self._tail.clear()
            return False
        del self._tail[: end + 1]
        self._step = Framer._lines
        return True

    def _frames(self, chunks: _Chunks) -> bool:
        tail, limit = self._tail, self._limit
        run = start = count = 0
        while (header := _COUNT.match(tail, start)) and (length := int(header[1])) <= limit:
            body = header.end()
            end = body + length
            if end > len(tail):
                break
            if length == 0 or (tail[body] in _BLANK and not tail[body:end].strip(_BLANK)):
                chunks.run(Framing.OCTET_COUNTED, bytes(tail[run:start]), count)
                run, count = end, 0
            else:
                count += 1
            start = end
        chunks.run(Framing.OCTET_COUNTED, bytes(tail[run:start]), count)
        del tail[:start]
        return self._odd_frame(chunks)

    def _odd_frame(self, chunks: _Chunks) -> bool:
        """The tail does not start with a whole frame of allowed size: wait for it, cut it, or call it an error."""
        header = _COUNT.match(self._tail)
        if header is None:
            waits = _COUNT_MORE.fullmatch(self._tail) is not None
        else:
            length, body = int(header[1]), header.end()
            waits = length <= MAX_FRAME_BYTES and len(self._tail) < body + min(length, self._limit)
            if not waits and length <= MAX_FRAME_BYTES:
                chunks.whole(Flags.TRUNCATED, bytes(self._tail[body : body + self._limit]))
                del self._tail[: body + self._limit]
                self._skip = length - self._limit
                self._step = Framer._skip_bytes
                return True
        if waits:
            return False
        self.framing_errors += 1
        self._step = Framer._garbage
        return True

    def _skip_bytes(self, _chunks: _Chunks) -> bool:
        skipped = min(self._skip, len(self._tail))
        del self._tail[:skipped]
        self._skip -= skipped
        if self._skip:
            return False
        self._step = Framer._frames
        return True

    def _garbage(self, chunks: _Chunks) -> bool:
        tail, window = self._tail, self._limit + _SYNC_BYTES
        while mark := _MARK.search(tail, self._scanned, window):
            at = mark.start()
            self._scanned = at + 1
            end, resume = (at, at + 1) if tail[at] == 0x0A else _count_before(tail, at)
            if end >= 0:
                self._emit_garbage(chunks, bytes(tail[:end]))
                del tail[:resume]
                self._scanned = 0
                self._step = Framer._frames
                return True
        self._scanned = min(len(tail), window)
        if len(tail) < window:
            return False
        self._emit_garbage(chunks, bytes(tail[: self._limit]))
        del tail[: self._limit]
        self._scanned -= self._limit
        return True

    def _emit_garbage(self, chunks: _Chunks, garbage: bytes) -> None:
        for start in range(0, len(garbage), self._limit):
            piece = garbage[start : start + self._limit]
            if piece.strip(_BLANK):
                chunks.whole(Flags.FRAMING_ERROR, piece)


def _count_before(tail: bytearray, at: int) -> tuple[int, int]:
    """Where garbage ends and frames resume if a plausible "digits SP" stands right before `at`, else (-1, -1)."""
    count = _COUNT_AT_END.search(tail, max(0, at - _SYNC_BYTES + 1), at)
    if count is None or not 0 < int(count[1]) <= MAX_FRAME_BYTES:
        return -1, -1
    return count.start(), count.start()
