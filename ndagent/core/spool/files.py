"""The seam between the spool and the operating system: every file operation that it makes, and no other.

Promises: each method is one system call or one obvious few; errors are the OSError of that call. Tests put a layer here
that runs out of space, fails to sync or forgets what was not synced.
Refuses: policy (who retries and what an error means stands in writer.py and spool.py), and what Windows does
differently (system_files.py).
"""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ndagent.core import system_files

PAGE_BYTES = 4096
IOV_MAX = 1024
"""POSIX lets a system take as few as 16 pieces in one writev; Linux takes 1024 and fails with EINVAL above."""


class Files(Protocol):
    """File operations, by descriptor where the file is open and by path where it is not."""

    def create(self, path: Path) -> int:
        """A new file, open for reading and writing; FileExistsError if there is one."""

    def open_read(self, path: Path) -> int:
        """An existing file, open for reading."""

    def open_write(self, path: Path) -> int:
        """An existing file, open for reading and writing."""

    def close(self, fd: int) -> None:
        """Let go of a descriptor."""

    def writev(self, fd: int, pieces: Sequence[bytes], offset: int) -> int:
        """Write at most IOV_MAX pieces at `offset`; returns how many bytes were taken, which may be fewer."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes from `offset`."""

    def fdatasync(self, fd: int) -> None:
        """Return once the file's data, and the size needed to read it, are on the device."""

    def truncate(self, fd: int, length: int) -> None:
        """Cut the file."""

    def unlink(self, path: Path) -> None:
        """Remove the file's name."""

    def rename(self, source: Path, target: Path) -> None:
        """Move a file, replacing the target."""

    def make_directory(self, path: Path) -> None:
        """Make the directory and its parents, for the owner's eyes only, to survive a crash; fine if it is there."""

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a directory survive a crash."""

    def listdir(self, path: Path) -> list[str]:
        """The names in a directory; empty if there is none."""

    def size(self, path: Path) -> int:
        """Bytes in a file."""

    def modified_at(self, path: Path) -> float:
        """When a file was last written, Unix seconds."""

    def lock(self, fd: int) -> bool:
        """Take the exclusive lock that lasts until the descriptor is closed; False if another process has it."""


class OsFiles:
    """The real thing; the contracts stand in Files."""

    def create(self, path: Path) -> int:
        return system_files.create(path)

    def open_read(self, path: Path) -> int:
        return system_files.open_read(path)

    def open_write(self, path: Path) -> int:
        return system_files.open_write(path)

    def close(self, fd: int) -> None:
        os.close(fd)

    def writev(self, fd: int, pieces: Sequence[bytes], offset: int) -> int:
        return system_files.pwritev(fd, pieces, offset)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return system_files.pread(fd, length, offset)

    def fdatasync(self, fd: int) -> None:
        system_files.sync_data(fd)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def rename(self, source: Path, target: Path) -> None:
        system_files.replace(source, target)

    def make_directory(self, path: Path) -> None:
        if not path.is_dir():
            self.make_directory(path.parent)
            path.mkdir(mode=0o750, exist_ok=True)
            self.fsync_dir(path.parent)

    def fsync_dir(self, path: Path) -> None:
        system_files.sync_directory(path)

    def listdir(self, path: Path) -> list[str]:
        try:
            return [entry.name for entry in path.iterdir()]
        except FileNotFoundError:
            return []

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def modified_at(self, path: Path) -> float:
        return path.stat().st_mtime

    def lock(self, fd: int) -> bool:
        return system_files.lock(fd)


def read_anyway(files: Files, fd: int, length: int, offset: int) -> bytes:
    """As `pread`, but a page that the device cannot read comes as 0xFF: no header, and not the zeros of a crash."""
    try:
        return files.pread(fd, length, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    if length <= PAGE_BYTES - offset % PAGE_BYTES:
        return b"\xff" * length
    end, pieces = offset + length, []
    while offset < end:
        stop = min(offset - offset % PAGE_BYTES + PAGE_BYTES, end)
        pieces.append(read_anyway(files, fd, stop - offset, offset))
        offset = stop
    return b"".join(pieces)


def write_all(files: Files, fd: int, pieces: Sequence[bytes], offset: int) -> int:
    """Write every piece from `offset` on, through short writes; returns the offset behind them. Raises OSError."""
    for start in range(0, len(pieces), IOV_MAX):
        group = pieces[start : start + IOV_MAX]
        while group:
            written = files.writev(fd, group, offset)
            offset += written
            group = _rest(group, written)
    return offset


def _rest(pieces: Sequence[bytes], written: int) -> list[bytes]:
    """What a write left over: nothing, as a rule."""
    if written == sum(map(len, pieces)):
        return []
    for index, piece in enumerate(pieces):
        if written < len(piece):
            return [piece[written:], *pieces[index + 1 :]]
        written -= len(piece)
    return []


def replace_whole(files: Files, path: Path, data: bytes) -> None:
    """A file with these contents in place of the one there is: written aside, synced, renamed. Raises OSError."""
    aside = path.with_suffix(".new")
    with suppress(FileNotFoundError):
        files.unlink(aside)
    fd = files.create(aside)
    try:
        write_all(files, fd, [data], 0)
        files.fdatasync(fd)
    finally:
        files.close(fd)
    files.rename(aside, path)
    files.fsync_dir(path.parent)
