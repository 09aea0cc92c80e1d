"""The `file` output without asyncio: routes the lines of a batch to files, appends, rotates, makes durable.

Promises:
  * no buffer of its own: what `write` returned for stands in the file for every reader;
  * each file holds a stream's events in sequence order and each at most once: an event whose sequence the file already
    has (a retry, or a start after a crash) is skipped; `replay` batches are written whatever the file holds. Lines that
    do not name their event (text formats) are known while the file is open; after that they may come twice;
  * a write that fails leaves whole lines only, at the latest when the file is opened again;
  * a file that was deleted or moved away is noticed at every write and made anew; lines that raced with the deletion
    are written again;
  * after a failed fdatasync the file is not trusted any more: it ends at its last durable byte and the rest is written
    to a new one (the kernel may have marked the failed pages clean); one that a killed process left is put aside whole,
    and what comes again is written again.
Refuses: threads of its own. All methods run in one thread, in the order of the calls; only `Pending.flush` (see
file_log.py) may run beside them.
"""

import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from ndagent.core import messages
from ndagent.wire.record import EventBatch
from ndcollector.outputs.file_log import (
    Disk,
    LogFile,
    Pending,
    UnsyncedFileError,
    lock_file,
    make_directories,
    open_log,
)
from ndcollector.outputs.file_path import PathTemplate
from ndcollector.outputs.file_recovery import ECS_LINES, LineShape, last_sequence, trim_half_line
from ndcollector.outputs.file_rotation import free_name, interrupted, unsynced_name
from ndcollector.outputs.file_routing import Lines, route

log = logging.getLogger(__name__)

_COPY_BYTES = 4 * 2**20
_KNOWN_FILES = 10_000
"""Closed files whose contents are remembered, some 600 bytes each; of others the end is read when they are opened."""


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """What the configuration says, as the writer needs it."""

    template: PathTemplate
    max_bytes: int | None
    every_seconds: float | None
    max_open_files: int
    file_mode: int
    dir_mode: int
    sync_each_send: bool
    shape: LineShape = ECS_LINES


class FileWriter:
    """All files of one output. `tidy` is told the path of a live file whose rotated files may need care."""

    def __init__(
        self,
        settings: WriterSettings,
        *,
        clock: Callable[[], float],
        tidy: Callable[[str], None],
        disk: Disk | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._tidy = tidy
        self._disk = disk or Disk()
        self._open: OrderedDict[str, LogFile] = OrderedDict()
        self._leaving: list[LogFile] = []  # no longer written to, not yet durable
        self._directories: set[str] = set()  # with new names, not yet durable
        self._cut_off: OrderedDict[Path, dict[str, Path]] = OrderedDict()  # see _before
        self._rotated: OrderedDict[str, dict[str, int]] = OrderedDict()  # what a file had that has no successor yet
        self._settled: dict[str, int] = {}  # spool id → first sequence that is not known to be durable
        self._written: dict[str, int] = {}  # spool id → first sequence that is not written
        self._unsynced: set[str] = set()  # could not be synced when they were opened, nor put aside yet
        self._known: OrderedDict[str, tuple[tuple[int, int], int, dict[str, int]]] = OrderedDict()  # see _close

    def write(self, events: EventBatch) -> None:
        """Append the events to their files; raises OSError naming the file. What was written stays written."""
        if not len(events):
            return
        self._settled.setdefault(events.spool_id, events.sequences[0])
        self._repair()
        for path, lines in route(events, self._settings.template):
            self._append(path, lines, events)
        self._written[events.spool_id] = max(self._written.get(events.spool_id, 0), events.sequences[-1] + 1)
        if self._settings.sync_each_send:
            self._sync()

    def begin_sync(self) -> Pending:
        """What must reach the disk so that everything written so far survives a crash; raises OSError."""
        self._repair()
        files: list[tuple[LogFile, int, int]] = []
        try:
            for file in sorted([*self._open.values(), *self._leaving], key=lambda file: file.opened):
                if file.size > file.synced:
                    files += [(file, os.dup(file.fd), file.size)]  # kept even if a later dup fails
        except OSError:
            for _, fd, _ in files:
                os.close(fd)
            raise
        return Pending(files, dict(self._written), frozenset(self._directories), self._disk)

    def end_sync(self, pending: Pending) -> None:
        """After a flush that succeeded: let go of what was only kept for it."""
        self._directories -= pending.directories
        for spool_id, sequence in pending.settled.items():
            self._settled[spool_id] = max(self._settled[spool_id], sequence)
        for file in [file for file in self._leaving if file.synced >= file.size]:
            self._leaving.remove(file)
            self._close(file)

    def _sync(self) -> None:
        pending = self.begin_sync()
        pending.flush()
        self.end_sync(pending)

    def close(self) -> None:
        """Close every file; nothing is synced."""
        for file in [*self._open.values(), *self._leaving]:
            file.close()
        self._open.clear()
        self._leaving.clear()

    # Appending.

    def _append(self, path: str, lines: Lines, events: EventBatch) -> None:
        file = self._file(path)
        passed = self._passed(file, events.spool_id)
        if not events.replay and lines.sequences[0] <= passed:
            _, lines = lines.split(bisect_right(lines.sequences, passed))
        while lines.lengths:
            file = self._make_room(file, lines.lengths[0])
            now, later = lines.split(self._fitting(file, lines))
            if self._write(file, now, events.spool_id):
                lines = later
            else:
                file = self._file(path)

    def _fitting(self, file: LogFile, lines: Lines) -> int:
        """How many lines go in before the file is full; at least one, a line is never split."""
        room = len(lines.data) if self._settings.max_bytes is None else self._settings.max_bytes - file.size
        if len(lines.data) <= room:
            return len(lines.lengths)
        return max(1, bisect_right(list(accumulate(lines.lengths)), room))

    def _write(self, file: LogFile, lines: Lines, spool_id: str) -> bool:
        """False if the file was deleted since it was looked up: nobody would ever see these lines."""
        done = 0
        try:
            while done < len(lines.data):
                done += self._disk.write(file.fd, lines.data[done:])
        except OSError as error:
            self._pass(file, self._cut_back(file, lines, done), spool_id)
            raise OSError(error.errno, error.strerror, file.path) from error
        file.size += done
        return self._pass(file, lines, spool_id)

    def _pass(self, file: LogFile, lines: Lines, spool_id: str) -> bool:
        """Never write these lines again, unless the file with them is gone."""
        if os.fstat(file.fd).st_nlink == 0:
            return False
        if lines.lengths:
            file.passed[spool_id] = max(file.passed.get(spool_id, -1), lines.sequences[-1])
        return True

    def _cut_back(self, file: LogFile, lines: Lines, done: int) -> Lines:
        """After a failed write: keep the whole lines, and say which those are."""
        ends = list(accumulate(lines.lengths))
        whole = bisect_right(ends, done)
        try:
            os.ftruncate(file.fd, file.size + (ends[whole - 1] if whole else 0))
        except OSError:
            file.torn = True
        file.size = os.fstat(file.fd).st_size
        return lines.split(whole)[0]

    # Opening, leaving, rotating.

    def _file(self, path: str) -> LogFile:
        """The open file at this path, opened or made anew where it is not the one we knew."""
        file, identity, known = self._open.get(path), _identity(path), {}
        if file is not None and file.identity != identity:
            log.info("file was moved away or deleted, a new one is made", extra={"path": path})
            known = file.passed
            self._leave(file)
            file = None
        if file is None:
            while len(self._open) >= self._settings.max_open_files:
                self._leave(next(iter(self._open.values())))
            file = self._open[path] = self._back(path, identity) or self._open_file(path)
            file.passed.update(self._rotated.pop(path, known))
            if file.size and not self._settings.template.by_host:  # a crash may have left work; hosts can be too many
                self._tidy(path)
        self._open.move_to_end(path)
        file.size = os.fstat(file.fd).st_size  # smaller after logrotate's copytruncate
        file.synced = min(file.synced, file.size)
        if file.torn:
            file.size, file.torn = trim_half_line(file.fd, path, self._settings.shape), False
        return file

    def _back(self, path: str, identity: tuple[int, int] | None) -> LogFile | None:
        """A file that is still waiting for its sync: one inode must not have two entries."""
        for file in self._leaving:
            if file.path == path and file.identity == identity:
                lock_file(file.fd, path)
                self._leaving.remove(file)
                return file
        return None

    def _open_file(self, path: str) -> LogFile:
        try:
            file = self._open_found(path)
        except FileNotFoundError:
            file = self._create(path)
        except UnsyncedFileError:
            self._put_aside(path)
            file = self._create(path)
        file.period = self._period(os.fstat(file.fd).st_mtime) if file.size else None
        identity, size, passed = self._known.pop(path, (None, -1, {}))
        if (identity, size) == (file.identity, file.size):
            file.passed = passed
        return file

    def _open_found(self, path: str) -> LogFile:
        if path in self._unsynced:
            raise UnsyncedFileError
        return open_log(path, self._disk, create_mode=None, shape=self._settings.shape)

    def _create(self, path: str) -> LogFile:
        settings, parent = self._settings, Path(path).parent
        self._directories |= make_directories(parent, settings.dir_mode)
        file = open_log(path, self._disk, create_mode=settings.file_mode, shape=settings.shape)
        self._directories.add(str(parent))
        return file

    def _put_aside(self, path: str) -> None:
        """A second fdatasync would succeed without having written anything: what is in doubt has to come again.

        The name is that of no rotated file: whoever looks for the last events written must not find them there.
        """
        self._unsynced.add(path)
        aside = unsynced_name(path, self._clock())
        with suppress(FileNotFoundError):
            Path(path).rename(aside)
        self._directories.add(str(Path(path).parent))
        self._unsynced.discard(path)
        log.error(
            "the file as it was found could not be synced: put aside, events that may not be on disk are written "
            "again; check the disk", extra={**messages.FILE_SEALED, "path": aside},
        )

    def _passed(self, file: LogFile, spool_id: str) -> int:
        """The last sequence of this spool that the file (or, while it is empty, the one rotated last) holds."""
        passed = file.passed.get(spool_id)
        if passed is None and not self._settings.shape.is_numbered:
            passed = file.passed[spool_id] = -1
        if passed is None:
            settled = self._settled[spool_id]
            passed = last_sequence(file.fd, file.path, spool_id=spool_id, settled=settled)
            before = self._before(file)
            if before:
                with suppress(FileNotFoundError), before.open("rb") as rotated:
                    passed = last_sequence(rotated.fileno(), str(before), spool_id=spool_id, settled=settled)
            file.passed[spool_id] = passed
        return passed

    def _before(self, file: LogFile) -> Path | None:
        """The rotated file that an empty one continues, if a crash came between the two.

        A directory is listed once: hosts made up by the thousand must not cost a listing each.
        """
        if file.size:
            return None
        directory = Path(file.path).parent
        if directory not in self._cut_off:
            self._cut_off[directory] = interrupted(directory)
            if len(self._cut_off) > self._settings.max_open_files:
                self._cut_off.popitem(last=False)
        return self._cut_off[directory].pop(file.path, None)

    def _leave(self, file: LogFile) -> None:
        """Stop writing to a file; it stays open until it is durable, and no more than max_open_files such wait."""
        del self._open[file.path]
        if file.size <= file.synced or os.fstat(file.fd).st_nlink == 0:
            self._close(file)
            return
        file.unlock()
        self._leaving.append(file)
        if len(self._leaving) > self._settings.max_open_files:
            self._sync()

    def _close(self, file: LogFile) -> None:
        """Let go of a file that is durable, and remember what it holds: with {host} it may be back with each batch."""
        self._known[file.path] = file.identity, file.size, file.passed
        self._known.move_to_end(file.path)
        if len(self._known) > _KNOWN_FILES:
            self._known.popitem(last=False)
        file.close()

    def _make_room(self, file: LogFile, next_line_bytes: int) -> LogFile:
        """The file to write the next line to: this one, or after a rotation a new one."""
        settings, period = self._settings, self._period(self._clock())
        full = settings.max_bytes is not None and file.size + next_line_bytes > settings.max_bytes
        over = file.period is not None and period is not None and period > file.period
        if file.size and (full or over):
            file = self._rotate(file)
        if file.period is None:
            file.period = period
        return file

    def _period(self, now: float) -> int | None:
        return int(now // self._settings.every_seconds) if self._settings.every_seconds else None

    def _rotate(self, file: LogFile) -> LogFile:
        # Durable before the next file gets its first line: a start after a crash trusts the newest line it finds.
        try:
            self._disk.fdatasync(file.fd)
        except OSError as error:
            file.suspect = True
            raise OSError(error.errno, error.strerror, file.path) from error
        file.synced = file.size
        Path(file.path).rename(free_name(file.path, self._clock()))
        self._directories.add(str(Path(file.path).parent))
        self._leave(file)
        self._rotated[file.path] = file.passed
        if len(self._rotated) > self._settings.max_open_files:
            self._rotated.popitem(last=False)
        fresh = self._file(file.path)
        self._tidy(file.path)
        return fresh

    # After a failed fdatasync.

    def _repair(self) -> None:
        """Write what a failed fdatasync left in doubt to a new file, read from the page cache, and seal the old one."""
        for file in [file for file in [*self._open.values(), *self._leaving] if file.suspect]:
            if _identity(file.path) == file.identity:
                Path(file.path).rename(free_name(file.path, self._clock()))
                self._directories.add(str(Path(file.path).parent))
            if self._open.get(file.path) is file:
                del self._open[file.path]
                self._leaving.append(file)
            fresh = self._file(file.path)
            self._copy_tail(file, fresh)
            for spool_id, passed in file.passed.items():
                fresh.passed[spool_id] = max(passed, fresh.passed.get(spool_id, -1))
            os.ftruncate(file.fd, file.synced)
            file.size, file.suspect = file.synced, False
            self._leaving.remove(file)
            file.close()
            log.error(
                "fdatasync failed: sealed the file at its last durable byte and wrote the rest anew; check the disk",
                extra={**messages.FILE_SEALED, "path": file.path},
            )

    def _copy_tail(self, file: LogFile, fresh: LogFile) -> None:
        start, at = fresh.size, file.synced
        try:
            while at < file.size:
                block = os.pread(file.fd, min(_COPY_BYTES, file.size - at), at)
                if not block:
                    break  # somebody cut the file
                done = self._disk.write(fresh.fd, memoryview(block))
                at += done
        except OSError as error:
            os.ftruncate(fresh.fd, start)
            raise OSError(error.errno, error.strerror, fresh.path) from error
        fresh.size += at - file.synced


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
