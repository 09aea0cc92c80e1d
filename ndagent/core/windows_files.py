"""system_files.py for Windows; the contracts stand there. By the Win32 API itself, because the C library's `open` keeps
others from renaming or deleting what we have open: a log could not rotate, a spool segment not go.

What keeps the spool's promise here
  * `sync_data` is FlushFileBuffers, which returns when the file's data and its metadata are on the device. NTFS writes
    the record that made the file to its journal before, so a synced file has its name (SQLite stands on the same):
    there is no directory to sync.
  * `replace` is MoveFileEx with MOVEFILE_WRITE_THROUGH: it returns when the move itself is on the device. A virus
    scanner or a reader that has either file open for a moment is waited for (REPLACE_TRIES).
  * `lock` locks a byte that no file has, as locks bind readers here; Windows frees it with the process.
  * A full disk and a full quota are ENOSPC, as the spool expects.
"""

import ctypes
import errno
import msvcrt
import os
import sys
import time
from collections.abc import Sequence
from ctypes import wintypes
from pathlib import Path

assert sys.platform == "win32"  # noqa: S101 - for mypy, which reads what follows with --platform win32 only

REPLACE_TRIES, _REPLACE_PAUSE_SECONDS = 20, 0.05
_READ, _WRITE = 0x80000000, 0x40000000  # GENERIC_READ, GENERIC_WRITE
_SHARE_ALL = 0x7  # FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE
_CREATE_NEW, _OPEN_EXISTING = 1, 3
_NORMAL = 0x80  # FILE_ATTRIBUTE_NORMAL
_REPLACE_THROUGH = 0x1 | 0x8  # MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH
_LOCK_AT_ONCE, _LOCK_EXCLUSIVE = 0x1, 0x2
_LOCK_OFFSET = 1 << 62
_INVALID_HANDLE = wintypes.HANDLE(-1).value
_DISK = 1  # FILE_TYPE_DISK
_ACCESS_DENIED, _SHARING_VIOLATION, _LOCK_VIOLATION = 5, 32, 33
_HANDLE_EOF, _HANDLE_DISK_FULL, _DISK_FULL, _QUOTA = 38, 39, 112, 1295


class _Overlapped(ctypes.Structure):
    _fields_ = (
        ("internal", ctypes.c_void_p),
        ("internal_high", ctypes.c_void_p),
        ("offset", wintypes.DWORD),
        ("offset_high", wintypes.DWORD),
        ("event", wintypes.HANDLE),
    )


_kernel = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel.CreateFileW.restype = wintypes.HANDLE
_kernel.CreateFileW.argtypes = (
    wintypes.LPCWSTR, wintypes.DWORD, wintypes.DWORD, ctypes.c_void_p, wintypes.DWORD, wintypes.DWORD, wintypes.HANDLE,
)  # fmt: skip
_in_or_out = (wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD, wintypes.LPDWORD, ctypes.POINTER(_Overlapped))
_kernel.ReadFile.argtypes = _in_or_out
_kernel.WriteFile.argtypes = _in_or_out
_kernel.MoveFileExW.argtypes = (wintypes.LPCWSTR, wintypes.LPCWSTR, wintypes.DWORD)
_kernel.GetFileType.argtypes = (wintypes.HANDLE,)
_kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
_kernel.LockFileEx.argtypes = (
    wintypes.HANDLE, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, ctypes.POINTER(_Overlapped),
)  # fmt: skip


def create(path: Path, mode: int = 0o640) -> int:  # noqa: ARG001 - the directory's ACL says who may read
    """A new file, open for reading and writing; FileExistsError if there is one."""
    return _open(path, _READ | _WRITE, _CREATE_NEW)


def open_read(path: Path) -> int:
    """An existing file, open for reading."""
    return _open(path, _READ, _OPEN_EXISTING)


def open_write(path: Path) -> int:
    """An existing file, open for reading and writing."""
    return _open(path, _READ | _WRITE, _OPEN_EXISTING)


def open_followed(path: str) -> int:
    """A file that somebody else writes, who may go on to write, rename and delete it; no pipe and no device."""
    return _open(path, _READ, _OPEN_EXISTING)


def _open(path: str | Path, access: int, disposition: int) -> int:
    handle = _kernel.CreateFileW(str(path), access, _SHARE_ALL, None, disposition, _NORMAL, None)
    if handle in (None, _INVALID_HANDLE):
        raise _failed(path)
    if _kernel.GetFileType(handle) != _DISK:
        _kernel.CloseHandle(handle)
        raise OSError(errno.EINVAL, "is no file on a disk", str(path))
    return msvcrt.open_osfhandle(handle, os.O_NOINHERIT | (0 if access & _WRITE else os.O_RDONLY))


def pread(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes from `offset`."""
    buffer = ctypes.create_string_buffer(length) if length else None
    done = wintypes.DWORD()
    if buffer is None:
        return b""
    if not _kernel.ReadFile(msvcrt.get_osfhandle(fd), buffer, length, ctypes.byref(done), ctypes.byref(_at(offset))):
        if ctypes.get_last_error() == _HANDLE_EOF:
            return b""
        raise _failed()
    return buffer.raw[: done.value]


def pwritev(fd: int, pieces: Sequence[bytes], offset: int) -> int:
    """Write the pieces at `offset`; returns how many bytes were taken, which may be fewer."""
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    done = wintypes.DWORD()
    handle = msvcrt.get_osfhandle(fd)
    if not _kernel.WriteFile(handle, bytes(data), len(data), ctypes.byref(done), ctypes.byref(_at(offset))):
        raise _failed()
    return done.value


def sync_data(fd: int) -> None:
    """FlushFileBuffers: data, size and name are on the device."""
    os.fsync(fd)


def sync_directory(path: Path) -> None:
    """Nothing to do: see the module. A directory that is not there is told all the same."""
    path.stat()


def replace(source: str | Path, target: str | Path) -> None:
    """Move a file, replacing the target, and return when the move is on the device."""
    for tries_left in range(REPLACE_TRIES, 0, -1):
        if _kernel.MoveFileExW(str(source), str(target), _REPLACE_THROUGH):
            return
        error = _failed(target)
        if tries_left == 1 or error.winerror not in (_ACCESS_DENIED, _SHARING_VIOLATION):
            raise error
        time.sleep(_REPLACE_PAUSE_SECONDS)


def lock(fd: int, *, wait: bool = False) -> bool:
    """Take the lock; False if another process has it and we are not to wait."""
    flags = _LOCK_EXCLUSIVE | (0 if wait else _LOCK_AT_ONCE)
    if _kernel.LockFileEx(msvcrt.get_osfhandle(fd), flags, 0, 1, 0, ctypes.byref(_at(_LOCK_OFFSET))):
        return True
    error = _failed()
    if error.winerror == _LOCK_VIOLATION:
        return False
    raise error


def next_data(fd: int, offset: int) -> int:
    """Holes are read here like what they mean, NUL bytes; at the end there is nothing more."""
    if offset >= os.fstat(fd).st_size:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return offset


def _at(offset: int) -> _Overlapped:
    return _Overlapped(None, None, offset & 0xFFFFFFFF, offset >> 32, None)


def _failed(path: str | Path | None = None) -> OSError:
    code = ctypes.get_last_error()
    if code in (_HANDLE_DISK_FULL, _QUOTA):
        code = _DISK_FULL
    words = ctypes.FormatError(code).strip()
    return OSError(0, words, str(path), code) if path is not None else OSError(0, words, None, code)
