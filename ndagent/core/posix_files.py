"""system_files.py for POSIX; the contracts stand there."""

import fcntl
import os
import sys
from pathlib import Path

assert sys.platform != "win32"  # noqa: S101 - for mypy --platform win32

pread = os.pread
pwritev = os.pwritev
sync_data = os.fdatasync
replace = os.replace


def create(path: Path, mode: int = 0o640) -> int:
    """A new file, open for reading and writing; FileExistsError if there is one."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def open_read(path: Path) -> int:
    """An existing file, open for reading."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def open_write(path: Path) -> int:
    """An existing file, open for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def open_followed(path: str) -> int:
    """A file that somebody else writes, open for reading; a FIFO without a writer does not keep us waiting."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def lock(fd: int, *, wait: bool = False) -> bool:
    """Take the lock; False if another process has it and we are not to wait."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a crash."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def next_data(fd: int, offset: int) -> int:
    """Where data begins at or behind this offset; OSError ENXIO: nothing but a hole up to the end (lseek(2))."""
    return os.lseek(fd, offset, os.SEEK_DATA)
