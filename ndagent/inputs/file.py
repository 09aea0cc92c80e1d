"""Text files: followed while they grow, through rotation of every kind, every line once.

Promises
    1. Positions travel in the batches that carry the lines (`Batch.checkpoint`): a kill -9 at any instruction neither
       skips a line nor brings one twice into the spool.
    2. A file is known by device, inode and content, not by its name: renamed it is read to its end (and on, for
       `rotate_wait`), removed it is read to its end if it was open, a copy or a compressed copy is not read again.
    3. copytruncate loses what is written between its copy and its cut, by nature. Every cut is an event
       (`event.kind: pipeline_error`), a count and a line in the log; what the copy still has is read there.
    4. While the spool takes nothing, nothing is read. Memory does not depend on the number of files or on their size:
       what waits for its end (a half line, half a multi-line event) waits in its file.
    5. A file that cannot be read, or is none, is said once with the remedy, and tried again.
Refuses: files that are no regular files, names without a path, following a directory link inside `**`.

The parts: file_paths.py (globs), file_watch.py (inotify), file_table.py (which files there are, which is which),
file_tail.py and file_gzip.py (reading one), file_lines.py (bytes to lines), file_events.py (lines to ECS),
file_reader.py (a round over all files), file_identity.py (what is remembered).

A last line without its end is held for `close_partial_after`, then delivered, tagged _truncated; should its end come
after all, the rest is an event of its own, tagged _continued. A multi-line event's bytes are passed when it is whole.
"""

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, field_validator

from ndagent.core.interfaces import Accept
from ndagent.core.progress import Signs
from ndagent.core.settings import ByteSize, ConfigPath, Duration, Settings
from ndagent.inputs import InputContext
from ndagent.inputs.file_events import Events
from ndagent.inputs.file_lines import Multiline, Splitter, check_encoding, encoding_of
from ndagent.inputs.file_paths import Globs
from ndagent.inputs.file_reader import Reader, Round, Waits
from ndagent.inputs.file_table import Limits, Table
from ndagent.inputs.file_watch import Watcher
from ndagent.wire.record import Batch, Checkpoint, Flags, Framing, Origin, Section
from ndagent.wire.times import Zone, load_zone

STREAM = "security_events"
GATHER_SECONDS = 0.5
"""After a round that found the end of every file: what is written meanwhile shares the next record, its fsync and its
send. Files that grow all the time cost CPU by the round: at 0.2 s, 100 lines/s took 1.6 % of a core, now 0.9."""
LOOK_PAUSE_SECONDS = 0.2
"""Between two looks for files at the least."""
LOOK_SHARE = 10
"""A look is not repeated before this many times its own duration have passed."""
MAX_TROUBLES = 1024
"""Paths whose trouble is told one by one; a directory of sockets must not fill the journal."""

T = TypeVar("T")


class MultilineConfig(Settings):
    """Lines that belong together: a stack trace, a wrapped message."""

    pattern: str = Field(
        max_length=4096, description="A regular expression (RE2), found anywhere in a line unless anchored with ^."
    )
    match: Literal["starts", "continues"] = Field(
        default="starts", description="Whether a line with the pattern begins an event or belongs to the one before."
    )
    max_lines: int = Field(default=500, ge=2, le=4096, description="Longer events are cut, tagged _truncated.")
    max_bytes: ByteSize = Field(
        default=256 * 1024, ge=1024, le=16 << 20, description="Longer events are cut, tagged _truncated."
    )
    flush_after: Duration = Field(
        default=5.0, gt=0, description="An event is complete when nothing was added to its file for so long."
    )

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        _search(pattern)
        return pattern

    @property
    def rules(self) -> Multiline:
        """What the splitter works with."""
        search = _search(self.pattern)
        begins = search if self.match == "starts" else lambda line: not search(line)
        return Multiline(begins, self.max_lines, self.max_bytes)


def _search(pattern: str) -> Callable[[str], bool]:
    import re2  # linear in any line, whatever the pattern; not needed without multi-line events

    options = re2.Options()
    options.log_errors = False
    try:
        search = re2.compile(pattern, options).search
    except re2.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression that RE2 takes: {error}") from error
    return lambda line: search(line) is not None


class Config(Settings):
    """Settings of a file input."""

    type: Literal["file"] = Field(default="file", description="Follow text files.")
    paths: tuple[ConfigPath, ...] = Field(
        min_length=1, description="Files or globs: *, ?, […] within a name, ** for any number of directories."
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="Globs of what not to read: with a slash of whole paths, without one of names."
    )
    start: Literal["beginning", "end"] = Field(
        default="beginning",
        description="Where files begin that are there at the very first start; later ones are read from the beginning.",
    )
    encoding: str = Field(
        default="utf-8", description="utf-8, utf-16, latin-1, cp1252 …; a byte order mark says more than this."
    )
    parse: Literal["none", "syslog"] = Field(
        default="none", description="syslog: lines have the time, host and process of RFC 3164 or 5424."
    )
    timezone: str = Field(
        default="local", description="In which syslog times without a zone are read; local, or an IANA name."
    )
    dataset: str | None = Field(default=None, description="event.dataset of the events; null means the input's name.")
    multiline: MultilineConfig | None = Field(default=None, description="Lines that belong together; null: none do.")
    max_line_bytes: ByteSize = Field(
        default=65536, ge=256, le=16 << 20, description="A longer line is cut and tagged _truncated."
    )
    close_partial_after: Duration = Field(
        default=60.0, gt=0, description="A last line without its end is delivered when nothing was added for so long."
    )
    rotate_wait: Duration = Field(
        default=30.0, ge=0, description="How long a renamed or removed file is still followed."
    )
    forget_after: Duration = Field(
        default=86400.0, gt=0, description="How long the position of a file that is gone is remembered."
    )
    max_open_files: int = Field(
        default=256, ge=2, description="Open at a time; the one idle longest is closed and keeps its position."
    )
    max_files: int = Field(default=10000, ge=1, description="Followed at a time; beyond that new ones are refused.")
    watch: Literal["auto", "poll"] = Field(
        default="auto", description="auto: by inotify, by polling where that is not possible; poll: always."
    )
    poll_interval: Duration = Field(default=1.0, ge=0.05, description="How often to look where inotify does not tell.")
    scan_interval: Duration = Field(default=10.0, ge=0.05, description="How often to look for new files all the same.")
    read_gzip: bool = Field(default=False, description="Read .gz files that the globs match, once, from the beginning.")
    gzip_max_bytes: ByteSize = Field(
        default=1 << 30, ge=1 << 16, description="A .gz file is read up to this much text, against bombs."
    )

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, name: str) -> str:
        return check_encoding(name)

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, name: str) -> str:
        try:
            if name != "local":
                load_zone(name)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"time zone {name!r} does not exist; write local, or an IANA name") from error
        return name


def build(name: str, config: Config, context: InputContext) -> "FileInput":
    """The input, not reading yet."""
    return FileInput(name, config, context)


class FileInput:
    """See the module."""

    def __init__(self, name: str, config: Config, context: InputContext) -> None:
        self._name = name
        self._config = config
        self._context = context
        self._log = logging.getLogger(name)
        self._origin = Origin(name, "", 0)
        self._globs = Globs([path.absolute().as_posix() for path in config.paths], config.exclude)
        self._troubles: dict[str, str] = {}
        self._unsaved: dict[bytes, bytes] = {}
        self._no_look_before = 0.0
        self._is_reading = False
        self._turns = 0
        for total in (context.metrics.received, context.metrics.received_bytes, context.metrics.truncated):
            total.labels(name)  # there from the start: a rate needs the zero

    def signs(self) -> Signs:
        """See core/progress.py; between two turns there is nothing to read."""
        return Signs(self._is_reading, self._turns)

    def trouble(self) -> str:
        """What is wrong with files that are still there, the first of them named; "" if nothing is."""
        troubles = dict(self._troubles)  # the reader's thread changes it meanwhile
        there = [one for one in troubles if not os.path.isabs(one) or os.path.lexists(one)]  # noqa: PTH117 - text paths
        if not there:
            return ""
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        return f"{there[0]}: {troubles[there[0]]}{more}"

    async def start(self) -> None:
        """Nothing to open: a file that is not there yet is no fault."""

    async def run(self, accept: Accept) -> None:
        """Follow the files until cancelled."""
        config = self._config
        loop = asyncio.get_running_loop()
        guard = self._context.guard
        may_read = functools.partial(guard, self._name) if guard is not None else None
        self._table = Table(self._globs, self._limits(), self._say, may_read)
        self._reader = self._make_reader()
        self._unsaved = {}
        parts = self._context.checkpoints.parts(self._name)
        self._table.restore(parts, loop.time())
        self._watcher = Watcher(self._name, self._opens, use_inotify=config.watch == "auto")
        self._look_at = self._poll_at = loop.time()
        try:
            if not parts:
                self._unsaved[b""] = _moment(int(self._context.clock() * 1e9))  # what appears from now on is new
            while True:
                self._watcher.check()
                await self._turn(accept)
        finally:
            self._table.close()
            await self._watcher.aclose()

    async def _turn(self, accept: Accept) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._is_reading = True
        watcher, table, config = self._watcher, self._table, self._config
        watcher.wake.clear()
        if began >= self._look_at or (watcher.has_structure_changed and began >= self._no_look_before):
            await self._look(began)
        written, has_lost = watcher.take_written()
        table.written(written)
        if began >= self._poll_at or has_lost:
            self._poll_at = began + config.poll_interval
            silent = list(table.tails.values()) if watcher.is_polling or has_lost else table.unwatched()
            await _in_thread(table.poll, silent)
            table.tidy(began)
        result = await _in_thread(self._reader.round, began)
        await self._hand_on(result, accept)
        self._is_reading = False
        self._turns += 1
        if not result.is_full:
            await self._gather(began + GATHER_SECONDS)
            await self._wait(loop.time())

    async def _gather(self, until: float) -> None:
        """Until then, but files that come and go are looked at as soon as they may be: a kill must find them known."""
        loop = asyncio.get_running_loop()
        while (left := until - loop.time()) > 0:
            await asyncio.sleep(min(left, LOOK_PAUSE_SECONDS))
            if self._watcher.has_structure_changed:
                return

    async def _look(self, now: float) -> None:
        watcher, config = self._watcher, self._config
        watcher.has_structure_changed = False
        look = await _in_thread(self._globs.look)
        if watcher.watch(look.directories):  # between looking and watching, something may have appeared
            look = await _in_thread(self._globs.look)
        arrivals = watcher.take_arrivals()
        self._unsaved |= await _in_thread(self._table.look, look, arrivals, now)
        took = asyncio.get_running_loop().time() - now
        self._no_look_before = now + max(LOOK_PAUSE_SECONDS, LOOK_SHARE * took)
        interval = config.poll_interval if watcher.is_polling else config.scan_interval
        self._look_at = now + max(interval, LOOK_SHARE * took)
        if self._unsaved:
            await self._context.checkpoints.note(Checkpoint(self._name, self._unsaved), stream=STREAM)
            self._unsaved = {}

    async def _hand_on(self, result: Round, accept: Accept) -> None:
        parts = self._reader.parts(result)
        if result.lines:
            payload = b"".join(result.lines)
            section = Section(self._origin, Framing.LF, Flags.NONE, len(payload), len(result.lines))
            checkpoint = Checkpoint(self._name, {**self._unsaved, **parts, b"": _moment(result.now_ns)})
            await accept(Batch(STREAM, "ecs", result.now_ns, [section], [payload], checkpoint))
            self._unsaved = {}
            self._count(result)
        else:
            self._unsaved |= parts
            if self._table.noted:  # which files are over: after a stop without that, they would be missed
                await self._context.checkpoints.note(Checkpoint(self._name, self._unsaved), stream=STREAM)
                self._unsaved = {}
        self._table.dropped_parts -= parts.keys()
        self._table.noted.clear()
        self._reader.apply(result, asyncio.get_running_loop().time())

    def _count(self, result: Round) -> None:
        metrics = self._context.metrics
        metrics.received.labels(self._name).inc(len(result.lines) + result.lost)
        metrics.received_bytes.labels(self._name).inc(result.read_bytes)
        if result.truncated:
            metrics.truncated.labels(self._name).inc(result.truncated)
        if result.lost:
            metrics.count_drop(input=self._name, reason="file_replaced", events=result.lost)

    async def _wait(self, now: float) -> None:
        """Until something happens, or it is time to look."""
        watcher, config = self._watcher, self._config
        until = self._look_at
        if watcher.has_structure_changed:
            until = min(until, self._no_look_before)
        if (deadline := self._reader.next_deadline()) is not None:
            until = min(until, deadline)
        if watcher.is_polling or self._table.unwatched():
            until = min(until, now + config.poll_interval)
        watcher.listen()
        try:
            async with asyncio.timeout(max(until - now, 0)):
                await watcher.wake.wait()
        except TimeoutError:
            return

    def _opens(self, path: str) -> bool:
        return self._globs.wants(path) or self._globs.is_sibling(path)

    def _say(self, path: str, trouble: str | None, remedy: str = "") -> None:
        """Say trouble once, and once that it is over; called for every file that is read, so quick if there is none."""
        if trouble is None:
            if self._troubles and self._troubles.pop(path, None) is not None:
                self._log.info("%s: readable again", path)
            return
        if self._troubles.get(path) == trouble:
            return
        if len(self._troubles) >= MAX_TROUBLES and path not in self._troubles:
            path, trouble, remedy = "more files", "they are in trouble too, and not named any more", "narrow the globs"
            if path in self._troubles:
                return
        self._troubles[path] = trouble
        self._log.warning("%s: %s; %s", path, trouble, remedy)

    def _limits(self) -> Limits:
        config = self._config
        return Limits(
            max_files=config.max_files,
            max_open_files=config.max_open_files,
            gone_seconds=config.rotate_wait,
            forget_seconds=config.forget_after,
            read_gzip=config.read_gzip,
            start_at_end=config.start == "end",
            line_end=encoding_of(config.encoding, b"").line_end,
        )

    def _make_reader(self) -> Reader:
        config = self._config
        multiline = config.multiline
        rest = config.close_partial_after
        return Reader(
            self._table,
            Splitter(max_line_bytes=config.max_line_bytes, multiline=multiline.rules if multiline else None),
            Events(self._context.host, dataset=config.dataset or self._name, zone=self._zone()),
            name=self._name,
            encoding=config.encoding,
            waits=Waits(rest, multiline.flush_after if multiline else rest, config.scan_interval),
            say=self._say,
            gzip_max_bytes=config.gzip_max_bytes,
            clock=self._context.clock,
        )

    def _zone(self) -> Zone | None:
        if self._config.parse != "syslog":
            return None
        name = self._config.timezone
        return load_zone(local_zone_name() if name == "local" else name)


def _moment(now_ns: int) -> bytes:
    """The part of the checkpoint that belongs to no file: when something was read last. That there is one says that
    this is no first start.
    """
    return b"%d" % now_ns


def local_zone_name() -> str:
    """The IANA name of this machine's time zone; UTC where it cannot be told."""
    target = Path("/etc/localtime").resolve()
    name = str(target).partition("/zoneinfo/")[2] or time.tzname[0]
    try:
        load_zone(name)
    except (KeyError, ValueError, OSError):
        return "UTC"
    return name


async def _in_thread(job: Callable[..., T], *arguments: object) -> T:
    """The job's result; a cancel waits for its end, since what it works with is closed next."""
    task = asyncio.get_running_loop().run_in_executor(None, functools.partial(job, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
