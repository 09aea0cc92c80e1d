"""What a file says about its own past: how far it is whole, and which event it holds last.

Promises:
  * a half line at the end (a crash, a full disk) is cut off, found by reading backwards in bounded steps;
  * zeros inside the part that was never synced (some file systems show them after a loss of power, with good lines
    behind) end the search: what stands behind them counts as not written. JSON never holds a NUL;
  * lines of a text format say nothing of their event: what begins a half line of theirs is told by `LineShape`, and
    where events end nobody can read, so after a crash those since the last saved cursor are written again;
  * `last_sequence` answers from `event.id`, or from `ndcollector.position` where an agent's spool gave the id, by
    finding it as JSON and not as text a message could have forged.
Refuses: cutting a file whose end does not look like this output's work; it may be anybody's.
"""

import logging
import os
from dataclasses import dataclass

import orjson

log = logging.getLogger(__name__)

_STEP_BYTES = 4 * 2**20
"""One backward read: an event has some 500 KiB at most, unless `max_message_bytes` was raised."""
_SCAN_BYTES = 256 * 2**20
"""How far back a spool's last event is looked for: more than is ever written between two saved cursors. Also the
longest line that can be told from a foreign file: twice 16 MiB, each byte of it escaped, stays below."""


class ForeignFileError(OSError):
    """The file at this path was not written by this output, so it is neither cut nor appended to."""


@dataclass(frozen=True, slots=True)
class LineShape:
    """What the lines of a file look like: the bytes that one of ours may begin with, and whether it names its event.

    Of lines that may begin with anything (`raw` messages) a half one that is not surely ours is ended, not cut.
    """

    begins: bytes = b"{"
    is_numbered: bool = True
    may_be_anything: bool = False


ECS_LINES = LineShape()


def trim_half_line(fd: int, path: str, shape: LineShape = ECS_LINES) -> int:
    """Cut the file behind its last line feed and return its size; raises ForeignFileError rather than destroy."""
    size = os.fstat(fd).st_size
    if not size or os.pread(fd, 1, size - 1) == b"\n":
        return size
    end = _last_line(fd, size)
    if end < 0 or os.pread(fd, 1, end) not in {bytes([byte]) for byte in shape.begins + b"\0"}:
        if shape.may_be_anything:
            log.warning("ended a half line, its event will come again", extra={"path": path})
            return size + os.write(fd, b"\n")
        raise ForeignFileError(0, "its last line is no event; move the file away or choose another path", path)
    os.ftruncate(fd, end)
    log.warning("cut a half line, its event will come again", extra={"path": path, "cut_bytes": size - end})
    return end


def _last_line(fd: int, size: int) -> int:
    """Where the last line begins; -1 where it is longer than any event."""
    at = size
    while at > 0 and size - at < _SCAN_BYTES:
        start = max(0, at - _STEP_BYTES)
        found = os.pread(fd, at - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
    return -1 if at else 0


def last_sequence(fd: int, path: str, *, spool_id: str, settled: int) -> int:
    """Sequence of the last whole event of this spool in the file, -1 where there is none.

    Events below `settled` are known to be on disk, so the look back for damage ends there.
    """
    marker = f'"{spool_id}-'.encode()
    end = size = os.fstat(fd).st_size
    found, step = -1, _STEP_BYTES
    while end > 0 and size - end < _SCAN_BYTES:
        start = max(0, end - step)
        block = os.pread(fd, end - start, start)
        if start:
            whole = block.find(b"\n") + 1
            if whole in (0, len(block)) and step < _SCAN_BYTES:
                step *= 2  # no line begins in it
                continue
            start, block = start + whole, block[whole:]
        nul = block.find(b"\0")
        if nul >= 0:
            # Nothing is cut: lines of another stream may stand behind it. Twice is better than never.
            block, found = block[: block.rfind(b"\n", 0, nul) + 1], -1
            log.warning("a line was damaged by a crash, events from there on come again", extra={"path": path})
        if found < 0:
            found = _sequence(block, marker, last=True)
        if 0 <= _sequence(block, marker, last=False) < settled or start >= end:
            break
        end = start
    return found


def _sequence(block: bytes, marker: bytes, *, last: bool) -> int:
    """Sequence of the block's first or last event of the spool that `marker` names, else -1."""
    low, high = 0, len(block)
    while (at := block.rfind(marker, low, high) if last else block.find(marker, low, high)) >= 0:
        begin, stop = block.rfind(b"\n", 0, at) + 1, block.find(b"\n", at) + 1
        sequence = _parse(block[begin:stop], marker)
        if sequence >= 0:
            return sequence
        # The marker stood elsewhere in that line: a message may hold any text, only not as our event.id.
        low, high = (low, begin) if last else (stop, high)
    return -1


def _parse(line: bytes, marker: bytes) -> int:
    try:
        event = orjson.loads(line)
    except ValueError:
        return -1
    return max(_named(event, "event", "id", marker), _named(event, "ndcollector", "position", marker))


def _named(event: object, section: str, key: str, marker: bytes) -> int:
    try:
        spool, _, sequence = event[section][key].rpartition("-")  # type: ignore[index]  # whatever it is, it is tried
        return int(sequence, 36) if spool.encode() == marker[1:-1] else -1
    except (ValueError, KeyError, TypeError, AttributeError):
        return -1
