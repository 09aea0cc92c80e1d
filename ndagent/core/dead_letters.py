"""Dead letters: events that an output's far side will never take, kept in a file per output for a person to judge.

`<directory>/<output>.ndjson`, one JSON object a line:

    {"time": …, "output": …, "stream": …, "spool_id": …, "sequence": …, "reason": …, "response": …, "event": {…}}
    {"time": …, …, "sequence": …, "reason": "corrupt_body: …", "count": …, "body_base64": …}

That is format 1. A later one begins each letter with its number, `{"format":2,`; such a file is refused
(`check_format`) and such a letter, in a file of ours, stays where it is.

`"unrouted": true` stands in letters of events that could not be changed as they must be before they are sent, and holds
them as they came. `response` is there where the far side's answer is known, `origin` where who sent the event is.

Promises:
  * `append` returns after fsync, so a cursor may pass; before that the events are still the spool's;
  * the file holds at most `max_bytes` (one write into an empty file always fits); when it is full `append` raises
    Unavailable with the remedy: the output waits, nothing is dropped (what a replay moves is let in, and while it waits
    for the output twice as much);
  * a half line that a crash or a full disk left is cut before the next write: its event was unsettled and comes again.

The file is opened anew for each write: a person may rename, truncate or remove it at any time, and a descriptor whose
fsync failed is never used again; a program puts another file in its place only inside `still`. `gone_bytes` is what of
the file no longer counts: a replay has sent it, and the file is written anew without it when the replay ends.
Refuses: deleting, reading, retrying (Delivery retries).
"""

import asyncio
import base64
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path

import orjson

from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics
from ndagent.core.settings import format_size
from ndagent.core.spool.errors import UnknownFormat
from ndagent.wire.record import CorruptBody, EventBatch, Origin

_NAME = re.compile(r"\w[\w.-]*")
FORMAT = 1
_FORMAT_KEY = re.compile(rb'\{"format":(\d+)')
_TAIL_BYTES = 64 * 1024  # how far back per step to look for the last line feed


_locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
"""By file: a reload makes a new object while a thread of the old one may be at work in the file."""


def is_name(output: str) -> bool:
    """Whether an output of this name can have a dead-letter file."""
    return _NAME.fullmatch(output) is not None


class DeadLetters:
    """The dead-letter file of one output. Safe to call from many tasks; `clock` gives Unix seconds.

    `command` is that of this program which looks at dead letters, where it has one.
    """

    def __init__(
        self,
        directory: Path,
        *,
        output: str,
        max_bytes: int,
        clock: Callable[[], float],
        metrics: Metrics | None = None,
        command: str = "",
    ) -> None:
        if not is_name(output):
            raise ValueError(f"output {output!r}: a dead-letter file needs a name of letters, digits, _ - and .")
        self.path = directory / f"{output}.ndjson"
        self.look = f"{command} show {output}" if command else f"cat {self.path}"
        """What to type to see them."""
        self.max_bytes = max_bytes
        self.gone_bytes = 0
        self.appended_events = 0
        """Since this object was made; the writing thread's."""
        self.left_events = 0
        """Replayed or purged since this object was made; the loop's."""
        self.first_events: int | None = None
        """In the file when this object was made; None until somebody has counted them."""
        self.output = output
        self._clock = clock
        self._metrics = metrics
        self._has_room = asyncio.Event()
        self._awaiting = 0
        self._is_listed = False  # this process has made the file's directory entry durable
        self._lock = _locks[self.path]  # held by the writing thread: a cancelled caller must not let a second one in

    def check_format(self) -> None:
        """Raise UnknownFormat for a file that a later version wrote, or wrote to last; reads two lines' beginnings."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            return
        try:
            found = max(later_format(_line_at(descriptor, place)) for place in (0, _last_line(descriptor)))
        finally:
            os.close(descriptor)
        if found:
            raise UnknownFormat(self.path, what="dead-letter", found=found, known=FORMAT)

    async def append(
        self,
        events: EventBatch,
        *,
        reason: str,
        reasons: Sequence[str] | None = None,
        response: str | None = None,
        is_moved: bool = False,
        is_routed: bool = True,
    ) -> None:
        """Keep rejected events; returns after fsync. Raises Unavailable if the file is full or cannot be written.

        `reasons` are the events' own, one for each; `reason` is that of all where they have none. `is_moved` is for
        letters of this file that are about to be gone from their old place: the limit is not asked. Not `is_routed`
        are events as they came, before the output's route.
        """
        answer: dict[str, object] = {} if response is None else {"response": _text(response)}
        if not is_routed:
            answer["unrouted"] = True
        origins = [_origin(blob) for blob in events.origin_blobs]
        whys = reasons or repeat(reason, len(events))
        letters = (  # made in the thread: a far side may refuse ten thousand at once
            self._head(events.stream, events.spool_id, sequence, why)
            | origins[origin]
            | answer
            | {"event": orjson.Fragment(line[:-1])}
            for sequence, line, why, origin in zip(events.sequences, events.lines(), whys, events.origins, strict=True)
        )
        await asyncio.to_thread(self._write, letters, len(events), is_moved)

    async def append_body(
        self,
        body: bytes,
        *,
        stream: str,
        spool_id: str,
        sequence: int,
        count: int,
        reason: str,
        received_at_ns: int | None = None,
        is_moved: bool = False,
    ) -> None:
        """Keep a record that cannot be decoded, as it is; otherwise as `append`."""
        head = self._head(stream, spool_id, sequence, reason)
        received = {} if received_at_ns is None else {"received_at_ns": received_at_ns}
        letter = head | {"count": count} | received | {"body_base64": base64.b64encode(body).decode("ascii")}
        await asyncio.to_thread(self._write, [letter], count, is_moved)

    # ---- how full, and room again

    @property
    def size_bytes(self) -> int:
        """Bytes that count: the file without what is gone."""
        try:
            return max(0, self.path.stat().st_size - self.gone_bytes)
        except FileNotFoundError:
            return 0

    @property
    def events(self) -> int | None:
        """In the file, without those that are gone; None until they are counted."""
        return None if self.first_events is None else self.first_events + self.appended_events - self.left_events

    @property
    def fill(self) -> float:
        """Share of the limit in use."""
        return self.size_bytes / self.max_bytes

    def note(self) -> None:
        """Tell the metrics."""
        if self._metrics is not None:
            self._metrics.dead_letters_bytes.labels(self.output).set(self.size_bytes)
            self._metrics.dead_letters_fill.labels(self.output).set(self.fill)
            if self.events is not None:
                self._metrics.dead_letters.labels(self.output).set(self.events)

    def made_room(self) -> None:
        """Letters have left: whoever waits for room tries now."""
        self.note()
        self._has_room.set()
        self._has_room = asyncio.Event()

    async def until_room(self) -> None:
        """Return when letters have left."""
        await self._has_room.wait()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Letters can leave only once the output gets on: it may have twice the room meanwhile, or each would wait for
        the other. Not more: after a replay of the spool the output may have far to go, and the disk is the spool's too.
        """
        self._awaiting += 1
        self.made_room()
        try:
            yield
        finally:
            self._awaiting -= 1

    @contextmanager
    def still(self) -> Iterator[Path]:
        """Nothing is appended meanwhile; enter it in a thread, and leave soon."""
        with self._lock:
            yield self.path

    def _head(self, stream: str, spool_id: str, sequence: int, reason: str) -> dict[str, object]:
        time = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        place = {"stream": stream, "spool_id": spool_id, "sequence": sequence}
        return {"time": time, "output": self.output, **place, "reason": _text(reason)}

    def _write(self, letters: Iterable[dict[str, object]], events: int, is_moved: bool) -> None:
        data = b"".join([orjson.dumps(letter, option=orjson.OPT_APPEND_NEWLINE) for letter in letters])
        try:
            with self._lock:
                self._append_durably(data, is_limited=not is_moved)
                self.appended_events += events
                self.note()
        except OSError as error:
            raise Unavailable(f"dead-letter file {self.path}: {error.strerror}; free or repair the disk") from error

    def _append_durably(self, data: bytes, *, is_limited: bool) -> None:
        if not self.path.parent.is_dir():
            self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            sync_directory(self.path.parent.parent)
        self._is_listed = self._is_listed and self.path.exists()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(self.path, flags, 0o640)
        try:
            end = _cut_half_line(descriptor)
            counted = end - self.gone_bytes
            limit = 2 * self.max_bytes if self._awaiting else self.max_bytes
            if is_limited and counted > 0 and counted + len(data) > limit:
                raise Unavailable(
                    f"dead-letter file {self.path} is full ({format_size(limit)}); this output waits until "
                    f"you look at it ({self.look}) and purge it, or raise dead_letter_max_bytes"
                )
            _write_or_undo(descriptor, data, end)
        finally:
            os.close(descriptor)
        if not self._is_listed:
            sync_directory(self.path.parent)
            self._is_listed = True


def _text(words: str) -> str:
    """As JSON can hold it: half a surrogate pair, which Python makes of bytes that are no text, has no place there."""
    return words.encode("utf-8", "replace").decode()


def _cut_half_line(descriptor: int) -> int:
    """Truncate behind the last line feed; returns the file's length."""
    whole = whole_lines_end(descriptor)
    if whole < os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, whole)
    return whole


def later_format(line: bytes) -> int:
    """The format of a letter that a later version wrote; 0 for any other line."""
    found = _FORMAT_KEY.match(line)
    return int(found[1]) if found is not None and int(found[1]) > FORMAT else 0


def _line_at(descriptor: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, 64)


def _last_line(descriptor: int) -> int:
    """Where the last whole line begins."""
    end = whole_lines_end(descriptor)
    return whole_lines_end(descriptor, end - 1) if end else 0


def whole_lines_end(descriptor: int, below: int | None = None) -> int:
    """Where the last whole line (of those before `below`) ends: what follows is half, or is being written."""
    whole = os.fstat(descriptor).st_size if below is None else below
    while whole:
        start = max(0, whole - _TAIL_BYTES)
        os.lseek(descriptor, start, os.SEEK_SET)
        line_feed = os.read(descriptor, whole - start).rfind(b"\n")
        if line_feed >= 0:
            whole = start + line_feed + 1
            break
        whole = start
    return whole


def _write_or_undo(descriptor: int, data: bytes, end: int) -> None:
    """All of it and durable, or as if it had not been tried (the next write cuts what could not be undone)."""
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, end)
        raise


def _origin(blob: bytes) -> dict[str, object]:
    """Who sent it, by the name that limits and ledgers count by."""
    try:
        return {"origin": Origin.unpack(blob).identity}
    except CorruptBody:
        return {}


def sync_directory(directory: Path) -> None:
    """Make names in it survive a crash."""
    if os.name == "nt":
        return  # Windows makes a directory entry durable with the file; a directory cannot be opened there
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
