"""The spool's engine: gathers appends, commits them together, wakes readers.

Promises: `append` returns once its batch is durable, in the order of the calls, and never drops: it waits while there
is no room. One commit runs at a time, in a thread of its own that no reader ever uses; while it runs, appends gather.
A disk that is full or fails is tried again for as long as it takes, and said once.
Refuses: parsing bodies, saving cursors by itself. The design stands in the package's docstring. (Past 400 lines: one
state machine, whose append, commit, failure and close must be read together; everything separable stands beside it.)
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from ndagent.core import messages
from ndagent.core.metrics import Metrics
from ndagent.core.progress import Signs
from ndagent.core.spool.config import SpoolConfig
from ndagent.core.spool.cursor import Cursor, OnFull
from ndagent.core.spool.errors import SpoolClosed
from ndagent.core.spool.files import Files, OsFiles
from ndagent.core.spool.position import Position, SlotFile
from ndagent.core.spool.quarantine import Quarantine
from ndagent.core.spool.reader import Chunk, Place, Request, read_chunk, sequence_at
from ndagent.core.spool.record import Entry, Record
from ndagent.core.spool.recovery import Recovered, adopt, cursor_path, prepare
from ndagent.core.spool.room import GivenUp, Room
from ndagent.core.spool.scan import MISSING, NO_LIMIT, Damage
from ndagent.core.spool.segment import SEGMENT_HEADER_BYTES, spool_id_text
from ndagent.core.spool.tip import Tip
from ndagent.core.spool.trouble import Trouble
from ndagent.core.spool.writer import NO_SPACE, Writer
from ndagent.wire.record import Batch, pack_body

log = logging.getLogger(__name__)

T = TypeVar("T")

COMMIT_BYTES = 8 << 20
"""One commit takes at most this much (or one record), so that its first append does not wait for a long queue."""
RECORD_BYTES_MAX = 1 << 30
"""Far above any input's limit, and what the u32 length in a record header can hold."""
SEGMENTS_AT_LEAST = 8
"""A small spool has smaller segments: room is made a segment at a time."""
LAST_SEGMENT_SECONDS = 10.0
"""A disk must have been full for so long before `on_full: drop_oldest` gives up the last segment: it may be all that
waits, and fullness is often a matter of moments (a log before it is rotated, a package being unpacked)."""


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What comes in from outside, so that tests can replace it."""

    stream: str
    config: SpoolConfig
    metrics: Metrics
    files: Files
    clock: Callable[[], float]
    quarantine: Quarantine
    retry_seconds: float
    patience_seconds: float
    mourn: Callable[[Files, Sequence[GivenUp]], None] | None


class Spool:
    """One stream's log on disk. Made by `open`; all methods belong to the loop that opened it."""

    def __init__(
        self, directory: Path, recovered: Recovered, lock_fd: int, thread: ThreadPoolExecutor, around: _Surroundings
    ) -> None:
        config = around.config
        self.stream = around.stream
        self.directory = directory
        self.spool_id = spool_id_text(recovered.spool_id)
        self.next_sequence = self.readable = recovered.next_sequence
        self._around = around
        self._config = config
        self._files = around.files
        self._thread = thread
        self._lock_fd = lock_fd
        self._segment_bytes = min(config.segment_bytes, config.max_bytes // SEGMENTS_AT_LEAST)
        self._id = recovered.spool_id
        self._writer = Writer(
            around.files, directory, spool_id=self._id, durability=config.durability, clock=around.clock
        )
        self._room = Room(recovered.segments, stream=around.stream, config=config, clock=around.clock)
        self._rotate = True  # a recovered segment is never appended to
        self.witness: Callable[[Sequence[Entry]], None] | None = None  # told of each commit: what is durable now
        self._known_ids = recovered.known_ids
        self._cursors: dict[str, Cursor] = {}
        self._pending: list[Entry] = []
        self._tip = Tip(config.tip_bytes, self.spool_id)
        self._waiting: set[asyncio.Future[None]] = set()
        self._wake = asyncio.Event()
        self._freed = asyncio.Event()
        self._closing = False
        self._jobs_begun = self._jobs_done = 0  # handed to the commit thread, which does one at a time
        self._failures = 0
        self._full_since: float | None = None  # by the loop's clock: the disk had no room in each commit since
        full = around.metrics.spool_full.labels(self.stream)
        self._trouble = Trouble(self.stream, max_bytes=config.max_bytes, full=full)
        self._bytes = around.metrics.spool_bytes.labels(self.stream)
        self._commit_seconds = around.metrics.commit_seconds.labels(self.stream)
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        stream: str,
        config: SpoolConfig,
        metrics: Metrics,
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        retry_seconds: float = 1.0,
        patience_seconds: float = LAST_SEGMENT_SECONDS,
        mourn: Callable[[Files, Sequence[GivenUp]], None] | None = None,
        held_from: int = NO_LIMIT,
    ) -> "Spool":
        """Recover what is there and start the commit thread.

        Raises SpoolLocked, UnknownFormat, OSError; damaged data is never a reason. `retry_seconds`: how long to wait
        before a disk that failed or is full is tried again. `patience_seconds`: how long a disk must have been full
        before the last segment is given up. `mourn` is told of events that an output lost to make room, in the commit
        thread, while their files are still there. `held_from`: as `hold`, from the beginning.
        """
        files = files or OsFiles()
        quarantine = Quarantine(
            files, directory / "quarantine", stream=stream, max_bytes=config.quarantine_bytes, metrics=metrics
        )
        thread = ThreadPoolExecutor(1, thread_name_prefix=f"spool-{stream}")
        try:
            loop = asyncio.get_running_loop()
            unsynced = config.durability == "os"
            fd, recovered = await loop.run_in_executor(thread, prepare, files, directory, quarantine, random, unsynced)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        around = _Surroundings(
            stream, config, metrics, files, clock, quarantine, retry_seconds, patience_seconds, mourn
        )
        spool = cls(directory, recovered, fd, thread, around)
        spool._room.held_from = held_from
        await spool._start(recovered)
        return spool

    async def append(self, batch: Batch) -> None:
        """Return once the batch is durable. Waits while there is no room.

        A cancelled wait withdraws the batch, unless it is being written at that moment.

        Raises SpoolClosed (not stored), ValueError (sections and payload disagree, or beyond 1 GiB).
        """
        count = batch.count
        if count == 0:
            return
        if self._closing:
            raise SpoolClosed(f"spool {self.stream} is closed")
        entry = Entry(pack_body(batch), count=count, received_at_ns=batch.received_at_ns)
        if entry.length > RECORD_BYTES_MAX:
            raise ValueError(f"batch of {entry.length} bytes; a spool record holds at most {RECORD_BYTES_MAX}")
        if self.witness is not None:
            entry.sections = batch.sections
        self._pending.append(entry)
        self._wake.set()
        await entry.done

    def cursor(self, name: str, *, start: str = "earliest", on_full: OnFull = "block") -> Cursor:
        """The output's cursor: the one on disk, or a new one that begins at `start` (earliest or latest).

        A new cursor is on disk when this returns; if the disk refuses, it is `unsaved` and a later save makes it.
        """
        if (cursor := self._cursors.get(name)) is None:
            first = self.next_sequence if start == "latest" else self.first_sequence
            slots = SlotFile(self._files, cursor_path(self.directory, name))
            position = Position(first, first)
            with suppress(OSError):
                slots.save(self.identity, position)
            cursor = self._cursors[name] = Cursor(self, name, slots, position)
        cursor.on_full = on_full
        return cursor

    @property
    def cursors(self) -> Mapping[str, Cursor]:
        """Every cursor that holds segments, those that no output has asked for yet included."""
        return MappingProxyType(self._cursors)

    def retire_unused(self, names: Collection[str]) -> None:
        """Put aside the cursors of outputs that the configuration no longer names; they hold no segments any more."""
        for name in [name for name in self._cursors if name not in names]:
            cursor = self._cursors.pop(name)
            path = cursor_path(self.directory, name)
            log.warning(
                "spool %s: no output is named %s any more; its cursor goes to cursors/retired and %d undelivered "
                "events are no longer kept for it", self.stream, name, cursor.account().pending,
                extra=messages.OUTPUT_RETIRED,
            )
            with suppress(OSError):  # it is retired again at the next start
                self._files.make_directory(path.parent / "retired")
                self._files.rename(path, path.parent / "retired" / path.name)
                self._files.fsync_dir(path.parent)
        self.trim()

    async def sequence_at(self, received_at_ns: int) -> int:
        """The first event received at or after this time, for a replay from a time. Raises OSError."""
        segments = list(self._room.segments)
        limits = [*(segment.base for segment in segments[1:]), self.readable]
        described = list(zip(segments, limits, strict=False))
        return await asyncio.to_thread(sequence_at, self._files, described, received_at_ns)

    async def aclose(self) -> None:
        """Finish what can be written, close the files, give up the lock. Cursors are saved by whoever moves them."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        self._freed.set()
        await self._tasks[0]
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.readable < self.next_sequence:
            await self._sync()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close_files)
        self._thread.shutdown()
        closed = SpoolClosed(f"spool {self.stream} was closed")
        for future in [*(entry.done for entry in self._pending), *self._waiting]:
            if not future.done():
                future.set_exception(closed)
        self._pending.clear()

    # What cursors use.

    @property
    def identity(self) -> bytes:
        """What a cursor is saved under, and known by at the next start: the id that the newest segment bears."""
        return (self._room.segments[-1].spool_id if self._room.segments else b"") or self._id

    @property
    def spool_ids(self) -> set[str]:
        """Ids that its events may have: its own, and those of older segments."""
        return {self.spool_id, *(spool_id_text(segment.spool_id) for segment in self._room.segments)}

    @property
    def known_ids(self) -> frozenset[bytes]:
        """The ids that its segments, or else its cursors, bore when it was opened; none where it was made anew."""
        return self._known_ids

    @property
    def own_id(self) -> bytes:
        """The id that what is appended from now on bears."""
        return self._id

    @property
    def first_sequence(self) -> int:
        """The oldest event that is still there (next_sequence if there is none)."""
        return self._room.segments[0].base if self._room.segments else self.next_sequence

    @property
    def total_bytes(self) -> int:
        """Bytes in segments, what `max_bytes` limits."""
        return self._room.total_bytes

    @property
    def is_full(self) -> bool:
        """Whether appends wait, for room or for the disk."""
        return self._trouble.present

    def signs(self) -> Signs:
        """See core/progress.py: work is what the commit thread has in its hands, not what waits for room."""
        return Signs(self._jobs_begun > self._jobs_done, self._jobs_done)

    def read_tip(self, sequence: int, until: int, max_bytes: int) -> list[Record]:
        """Records from memory that begin below `until`, if the one that begins here is there."""
        return self._tip.read(sequence, min(self.readable, until), max_bytes)

    def place_behind(self, record: Record) -> Place | None:
        """Where the next record stands on disk."""
        return self._tip.place_behind(record)

    async def read_chunk(self, place: Place | None, sequence: int, until: int, max_bytes: int) -> Chunk:
        """Records that begin below `until`, from a segment file; a file that is gone is one whole gap.

        A disk that fails is tried again for as long as it takes.
        """
        failed = False
        while self._room.segments:  # else all was given up meanwhile, and the cursor has been moved on
            segment, limit = self._room.find(sequence, self.readable)
            known = place if place is not None and place.segment is segment else None
            request = Request(segment, known, segment.size, sequence, limit, until, max_bytes)
            try:
                return await asyncio.to_thread(read_chunk, self._files, request, self._around.quarantine)
            except FileNotFoundError:
                if segment in self._room.segments:  # else it was given up meanwhile, and the cursor has been moved on
                    gone = Damage(0, 0, sequence, min(limit, until), MISSING)
                    await asyncio.to_thread(self._around.quarantine.report, segment, gone)
                return Chunk([], min(limit, until), None)
            except OSError as error:
                if not failed:
                    log.error(
                        "spool %s: cannot read %s: %s; it is tried again for as long as it takes, nothing is lost. "
                        "Check the disk (dmesg, smartctl)", self.stream, segment.path, error,
                        extra=messages.DISK_FAILED,
                    )
                failed = True
                await asyncio.sleep(self._around.retry_seconds)
        return Chunk([], sequence, None)

    async def wait_readable(self, sequence: int) -> None:
        """Return once an event with this sequence may be read. Raises SpoolClosed."""
        while sequence >= self.readable:
            if self._closing:
                raise SpoolClosed(f"spool {self.stream} is closed")
            future = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)

    def trim(self) -> None:
        """Delete what nobody needs any more; called when a cursor was saved."""
        if self._room.trim(self._cursors.values(), self.next_sequence):
            self._watch()
        self._freed.set()
        if self._room.garbage:
            self._wake.set()

    def hold(self, sequence: int) -> None:
        """Keep everything from here on, though every cursor has passed it, until it is held further on.

        For readers that are not outputs (checkpoints.py). It yields to a need for space, as the replay window does.
        """
        self._room.held_from = sequence
        self.trim()

    # The engine.

    async def _start(self, recovered: Recovered) -> None:
        for name, slots in recovered.cursors.items():
            position = adopt(self.directory, name, slots, recovered, self.first_sequence)
            self._cursors[name] = Cursor(self, name, slots, position, found=slots.saved)
        await self._save_cursors()  # not before all are there: a save deletes what no cursor needs
        self._watch()
        self._tasks.append(asyncio.create_task(self._run(), name=f"spool-{self.stream}"))
        if self._config.max_age:
            self._tasks.append(asyncio.create_task(self._expire_forever(), name=f"spool-{self.stream}-age"))
        if self._config.durability == "interval":
            self._tasks.append(asyncio.create_task(self._sync_forever(), name=f"spool-{self.stream}-sync"))

    async def _save_cursors(self) -> None:
        for cursor in [cursor for cursor in self._cursors.values() if cursor.unsaved]:
            await cursor.save()

    async def _run(self) -> None:
        while True:
            self._pending = [entry for entry in self._pending if not entry.done.cancelled()]
            if not self._pending:
                self._full_since = None
                self._trouble.ends("nobody waits any more")
                await self._idle()
            elif job := self._take():
                await self._commit(job)
            else:
                await self._wait("max_bytes")
            if self._closing and (not self._pending or self._trouble.present):
                return

    async def _in_thread(self, job: Callable[..., T], *arguments: object) -> T:
        self._jobs_begun += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, job, *arguments)
        finally:
            self._jobs_done += 1

    async def _idle(self) -> None:
        self._wake.clear()
        if self._room.garbage:
            await self._mourn()
            await self._in_thread(self._writer.remove, self._garbage())
        elif not self._closing:
            await self._wake.wait()

    async def _mourn(self) -> None:
        """Let whoever counts what was given up look at the files before they go."""
        given_up, self._room.given_up = self._room.given_up, []
        if not given_up or self._around.mourn is None:
            return
        try:
            await self._in_thread(self._around.mourn, self._files, given_up)
        except Exception:
            log.exception("spool %s: what was given up is not told in detail; please report this", self.stream)

    async def _expire_forever(self) -> None:
        """Give up what is too old; a segment is begun anew often enough for age to mean something."""
        pause = min(max(self._config.max_age / SEGMENTS_AT_LEAST, 0.1), 60.0)
        while True:
            await asyncio.sleep(pause)
            newest = self._room.segments[-1].header if self._room.segments else None
            if newest and self._around.clock() - newest.created_at_ns / 1e9 > self._config.max_age / SEGMENTS_AT_LEAST:
                self._rotate = True
            if self._room.expire(self._cursors.values(), self.next_sequence):
                self._watch()
                self._freed.set()
                self._wake.set()

    def _garbage(self) -> list[Path]:
        garbage, self._room.garbage = self._room.garbage, []
        return garbage

    def _plan(self) -> tuple[int, int]:
        """Bytes that the segment to write to has, header included, and bytes that may still be written to it."""
        active = self._room.segments[-1] if self._room.segments and not self._rotate else None
        if active is None or active.size + self._pending[0].length > self._segment_bytes:
            self._rotate = True
            return SEGMENT_HEADER_BYTES, self._config.max_bytes - self._room.total_bytes - SEGMENT_HEADER_BYTES
        return active.size, self._config.max_bytes - self._room.total_bytes

    def _take(self) -> list[Entry]:
        """The pending entries that one commit can hold; none while there is no room for the first."""
        first = self._pending[0].length
        start, free = self._plan()
        if first > free:
            self._reclaim(self._room.total_bytes - (first - free))
            start, free = self._plan()
        if first > free and self._room.segments:  # a record larger than the whole spool is let into an empty one
            return []
        room, sequence, taken = min(free, COMMIT_BYTES, self._segment_bytes - start), self.next_sequence, 0
        for entry in self._pending:
            room -= entry.length
            if room < 0 and taken:
                break
            entry.sequence = sequence
            sequence += entry.count
            taken += 1
        job, self._pending = self._pending[:taken], self._pending[taken:]
        return job

    def _reclaim(self, target_bytes: int, *, spare_last: bool = False) -> bool:
        cursors = self._cursors.values()
        enough = self._room.reclaim(target_bytes, cursors, self.next_sequence, spare_last=spare_last)
        self._rotate = self._rotate or not self._room.segments
        return enough

    async def _commit(self, job: list[Entry]) -> None:
        await self._mourn()
        if self._is_last_of_old_id_gone():
            await self._in_thread(self._writer.remove, self._garbage(), True)  # first: it would not know them either
            await self._save_cursors()
        rotate, garbage = self._rotate, self._garbage()
        if rotate and self.readable < self.next_sequence:
            await self._sync()  # `interval`: the segment is left for good
        started = time.perf_counter()
        try:
            segment, size = await self._in_thread(self._writer.commit, job, rotate, garbage)
        except Exception as error:  # noqa: BLE001 - whatever it is, no append may be forgotten
            self._pending[:0] = job
            self._rotate = self._writer.closed
            await self._failed(error)
            return
        self._commit_seconds.observe(time.perf_counter() - started)
        self._rotate = False
        self._failures = 0
        self._full_since = None
        identity = self.identity
        self._room.grew(segment, size)
        if self.identity != identity:
            self._tasks.append(asyncio.create_task(self._save_cursors(), name=f"spool-{self.stream}-cursors"))
        offset = size
        for entry in reversed(job):
            entry.segment, entry.end_offset = segment, offset
            offset -= entry.length
        self._tip.add(job)
        self.next_sequence = job[-1].sequence + job[-1].count
        if self.witness is not None:
            self.witness(job)
        if self._config.durability != "interval":
            self._publish(self.next_sequence)
        for entry in job:
            if not entry.done.done():  # its caller may have been cancelled
                entry.done.set_result(None)
        self._trouble.ends("takes events again")
        self._watch()

    def _is_last_of_old_id_gone(self) -> bool:
        """Space was so short that no segment is left, and cursors are saved under an id that only those bore.

        A start that finds the first segment of our own id, and no other, would not know them.
        """
        saved = [cursor.saved for cursor in self._cursors.values()]
        return not self._room.segments and any(one is not None and one.spool_id != self._id for one in saved)

    def _publish(self, readable: int) -> None:
        self.readable = max(self.readable, readable)
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def _sync_forever(self) -> None:
        while True:
            await asyncio.sleep(self._config.interval)
            if self.readable < self.next_sequence:
                await self._sync()

    async def _sync(self) -> None:
        until = self.next_sequence
        try:
            await self._in_thread(self._writer.sync)
        except OSError as error:
            self._rotate = True
            log.error(
                "spool %s: fdatasync failed: %s; up to %d events written since the last one may not survive a power "
                "cut. Check the disk", self.stream, error, until - self.readable, extra=messages.DISK_FAILED,
            )
        self._publish(until)

    async def _failed(self, error: Exception) -> None:
        """A commit failed. Its batches wait; the first time they go to a new segment at once."""
        self._failures += 1
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            if not self._reclaim(self._room.total_bytes - 1, spare_last=not self._was_full_for_long()):
                await self._wait("disk full")
            return
        if self._failures == 1:
            log.error(
                "spool %s: writing to %s failed: %s; nothing acknowledged is lost, the batch goes to a new segment. "
                "Check the disk (dmesg, smartctl)", self.stream, self.directory, error, extra=messages.DISK_FAILED,
            )
            return
        await self._wait("disk error")

    def _was_full_for_long(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._full_since is None:
            self._full_since = now
        return now - self._full_since >= self._around.patience_seconds

    async def _wait(self, kind: str) -> None:
        """Let appends wait until room was made or it is time to look again."""
        self._trouble.begins(kind, self._room.holder(self._cursors.values(), self.next_sequence))
        if self._closing:
            return
        self._freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._around.retry_seconds):
                await self._freed.wait()

    def _watch(self) -> None:
        self._bytes.set(self._room.total_bytes)
        self._room.watch(self._cursors.values(), self.next_sequence)

    def _close_files(self) -> None:
        self._writer.close()
        self._writer.remove(self._garbage())
        self._files.close(self._lock_fd)
