"""One open file of the `file` output: how it is opened, locked, and made durable.

Promises: a file that was opened ends with a whole line, is durable as it stands (events it holds are not written
again), and is written by nobody else; only regular files are touched.
Refuses: knowing which lines go where (file_routing.py) and when it is time for another file (file_writer.py).
"""

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from ndcollector.outputs.file_recovery import ForeignFileError, LineShape, trim_half_line
from ndcollector.outputs.file_rotation import fsync_directory

_libc = ctypes.CDLL(None, use_errno=True)
_opened = count()
_MANY_FILES = 16
"""From here on one syncfs(2) is cheaper than a journal commit per file, though it writes out what others have dirty."""


class UnsyncedFileError(OSError):
    """A file could not be synced when it was opened: it may hold lines that no disk has (a kill came before a sync)."""


class Disk:
    """The system calls that tests make fail."""

    def write(self, fd: int, data: memoryview) -> int:
        """As os.write."""
        return os.write(fd, data)

    def fdatasync(self, fd: int) -> None:
        """As os.fdatasync."""
        os.fdatasync(fd)

    def syncfs(self, fd: int) -> None:
        """As syncfs(2), which Python lacks; reports failed writes since Linux 5.8."""
        if _libc.syncfs(fd):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@dataclass(slots=True, eq=False)
class LogFile:
    """One open file. `passed` holds, per spool id, the last sequence that the file has."""

    path: str
    fd: int
    size: int
    identity: tuple[int, int]  # st_dev, st_ino
    synced: int  # bytes known to be durable
    period: int | None = None  # which rotation period its lines belong to
    passed: dict[str, int] = field(default_factory=dict)
    torn: bool = False  # a failed write left a half line that could not be cut off yet
    suspect: bool = False  # its last fdatasync failed
    opened: int = field(default_factory=lambda: next(_opened))  # in the order of opening; see Pending

    def unlock(self) -> None:
        """Let another open of this file lock it; closing is not enough while a sync holds a duplicate."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the lock and the descriptor."""
        self.unlock()
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Pending:
    """What one sync has to make durable; `flush` may run in another thread while writes go on.

    `files` stand in the order of their opening: of a failure that somebody has heard of, syncfs(2) tells only those
    descriptors that were open by then, so that a success speaks for files opened later and for no other.
    """

    files: Sequence[tuple[LogFile, int, int]]  # file, a descriptor of our own, bytes written so far
    settled: Mapping[str, int]  # spool id → first sequence not written yet
    directories: frozenset[str]
    disk: Disk

    def flush(self) -> None:
        """Sync everything, a failure does not keep the others from it; raises the last OSError."""
        failed: OSError | None = None
        one_call = len(self.files) >= _MANY_FILES
        synced_devices: set[int] = set()
        for file, fd, size in self.files:
            try:
                if not one_call:
                    self.disk.fdatasync(fd)
                elif file.identity[0] not in synced_devices:
                    self.disk.syncfs(fd)
                    synced_devices.add(file.identity[0])
                if file.suspect:  # the kernel reports a failure once, and a rotation's sync has got it meanwhile
                    failed = OSError(errno.EIO, os.strerror(errno.EIO), file.path)
                else:
                    file.synced = max(file.synced, size)
            except OSError as error:
                file.suspect = True
                failed = OSError(error.errno, error.strerror, file.path)
            finally:
                os.close(fd)
        for directory in self.directories:
            fsync_directory(directory)
        if failed:
            raise failed


def open_log(path: str, disk: Disk, *, create_mode: int | None, shape: LineShape) -> LogFile:
    """Open the file for appending, whole and durable as it stands; raises OSError, ForeignFileError, UnsyncedFileError.

    `create_mode` None means that it must exist.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC  # O_RDWR: the tail is read, and a FIFO does not block
    fd = os.open(path, flags if create_mode is None else flags | os.O_CREAT, create_mode or 0)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ForeignFileError(0, "not a regular file; choose another path", path)
        lock_file(fd, path)
        if create_mode is not None:
            os.fchmod(fd, create_mode)  # the configuration decides, not the umask
        size = trim_half_line(fd, path, shape)
        if size:
            _sync_what_was_found(disk, fd)
    except OSError as error:
        os.close(fd)
        raise type(error)(error.errno, error.strerror, path) from error
    return LogFile(path, fd, size, (status.st_dev, status.st_ino), synced=size)


def _sync_what_was_found(disk: Disk, fd: int) -> None:
    try:
        disk.fdatasync(fd)
    except OSError as error:
        raise UnsyncedFileError(error.errno, error.strerror) from error


def make_directories(directory: Path, mode: int) -> set[str]:
    """Make what is missing of the path; returns the directories that got a new name and want an fsync."""
    if directory.is_dir():
        return set()
    touched = make_directories(directory.parent, mode)
    directory.mkdir(mode, exist_ok=True)
    directory.chmod(mode)
    return touched | {str(directory.parent)}


def lock_file(fd: int, path: str) -> None:
    """Claim the file for this output; raises ForeignFileError where another holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ForeignFileError(
            error.errno, "another output or process writes it; give each output a path of its own", path
        ) from error
