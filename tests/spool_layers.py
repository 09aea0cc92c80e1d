"""File layers for spool tests: one that fails on command, one that forgets what was not synced.

Both stand on real files in a temporary directory; only what a disk or a power cut would do is simulated.
"""

import errno
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

from ndagent.core.spool.files import OsFiles
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section, unpack_body

ORIGIN = Origin("test", "192.0.2.1", 514)


def batch(*messages: str, received_at_ns: int = 1_000_000_000) -> Batch:
    """A batch of LF-framed messages."""
    payload = "".join(message + "\n" for message in messages).encode()
    section = Section(ORIGIN, Framing.LF, Flags.NONE, len(payload), len(messages))
    return Batch("test", "syslog", received_at_ns, [section], [payload])


def messages(record) -> list[str]:
    """What `batch` put in."""
    return bytes(unpack_body(record.body).payload).decode().splitlines()


class TrackedFiles(OsFiles):
    """Knows which path a descriptor stands for."""

    def __init__(self) -> None:
        self.paths: dict[int, Path] = {}

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self.paths[fd] = path
        return fd

    def open_read(self, path: Path) -> int:
        fd = super().open_read(path)
        self.paths[fd] = path
        return fd

    def open_write(self, path: Path) -> int:
        fd = super().open_write(path)
        self.paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self.paths.pop(fd, None)
        super().close(fd)


class FaultyFiles(TrackedFiles):
    """Fails when told to: `fail("fdatasync", errno.EIO)` fails the next one on a segment."""

    def __init__(self) -> None:
        super().__init__()
        self.planned: dict[str, list[tuple[int, str]]] = {}
        self.space_bytes: int | None = None
        self.write_at_most: int | None = None
        self.bad_bytes: range | None = None
        self.bad_suffix = ".seg"
        self.sync_gate = threading.Event()
        self.sync_gate.set()
        self.syncs: list[tuple[int, Path]] = []
        self.synced_directories: list[Path] = []

    def fail(self, operation: str, number: int, *, times: int = 1, on: str = ".seg") -> None:
        self.planned.setdefault(operation, []).extend([(number, on)] * times)

    def _maybe_fail(self, operation: str, path: Path) -> None:
        planned = self.planned.get(operation, [])
        if planned and path.name.endswith(planned[0][1]):
            number, _ = planned.pop(0)
            raise OSError(number, os.strerror(number), str(path))

    def create(self, path: Path) -> int:
        self._maybe_fail("create", path)
        return super().create(path)

    def open_read(self, path: Path) -> int:
        self._maybe_fail("open_read", path)
        return super().open_read(path)

    def writev(self, fd: int, pieces: Sequence[bytes], offset: int) -> int:
        path = self.paths[fd]
        self._maybe_fail("writev", path)
        allowed = sum(map(len, pieces))
        if self.write_at_most is not None:
            allowed = min(allowed, self.write_at_most)
        if self.space_bytes is not None and path.suffix == ".seg":
            allowed = min(allowed, self.space_bytes)
            if allowed == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            self.space_bytes -= allowed
        return super().writev(fd, [b"".join(pieces)[:allowed]], offset)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        path = self.paths[fd]
        bad = self.bad_bytes
        if path.suffix == self.bad_suffix and bad and offset < bad.stop and offset + length > bad.start:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return super().pread(fd, length, offset)

    def fdatasync(self, fd: int) -> None:
        self.syncs.append((fd, self.paths[fd]))
        self.sync_gate.wait()
        self._maybe_fail("fdatasync", self.paths[fd])
        super().fdatasync(fd)

    def truncate(self, fd: int, length: int) -> None:
        self._maybe_fail("truncate", self.paths[fd])
        if self.space_bytes is not None and self.paths[fd].suffix == ".seg":
            self.space_bytes += max(os.fstat(fd).st_size - length, 0)
        super().truncate(fd, length)

    def unlink(self, path: Path) -> None:
        self._maybe_fail("unlink", path)
        if self.space_bytes is not None and path.suffix == ".seg":
            self.space_bytes += path.stat().st_size
        super().unlink(path)

    def rename(self, source: Path, target: Path) -> None:
        self._maybe_fail("rename", source)
        super().rename(source, target)

    def fsync_dir(self, path: Path) -> None:
        self._maybe_fail("fsync_dir", path)
        super().fsync_dir(path)
        self.synced_directories.append(path)


class PowerCut(BaseException):
    """Raised by every operation after the power went; nothing in the spool may catch it."""


class CrashFiles(TrackedFiles):
    """Remembers what was synced; `crash` leaves that and a random part of the rest, as a power cut does."""

    def __init__(self) -> None:
        super().__init__()
        self.synced: dict[Path, bytes] = {}
        self.named: set[Path] = set()
        self.operations_left: int | None = None

    def _count(self) -> None:
        if self.operations_left is not None:
            self.operations_left -= 1
            if self.operations_left < 0:
                raise PowerCut

    def create(self, path: Path) -> int:
        self._count()
        return super().create(path)

    def writev(self, fd: int, pieces: Sequence[bytes], offset: int) -> int:
        self._count()
        return super().writev(fd, pieces, offset)

    def fdatasync(self, fd: int) -> None:
        self._count()
        super().fdatasync(fd)
        self.synced[self.paths[fd]] = self.paths[fd].read_bytes()

    def truncate(self, fd: int, length: int) -> None:
        self._count()
        super().truncate(fd, length)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)

    def fsync_dir(self, path: Path) -> None:
        self._count()
        super().fsync_dir(path)
        self.named = {name for name in self.named if name.parent != path} | set(path.iterdir())

    def crash(self, root: Path, chance: random.Random, *, holes: bool) -> None:
        """Make the directory look as it might after the power came back; descriptors must be closed by then.

        `holes`: unsynced pages may be missing although later ones, or the file's length, survived.
        """
        self.operations_left = None
        live = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for path in live.keys() | {name for name in self.named if name in self.synced}:
            if path.name == "lock":
                continue
            if path not in self.named and chance.random() < 0.5:
                path.unlink(missing_ok=True)
            elif path in live:
                path.write_bytes(_remains(self.synced.get(path, b""), live[path], chance, holes=holes))
            elif chance.random() < 0.5:  # its deletion was not synced
                path.write_bytes(self.synced[path])
        self.synced = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        self.named = set(self.synced)


def _remains(synced: bytes, live: bytes, chance: random.Random, *, holes: bool) -> bytes:
    """The synced bytes, and of what came after any prefix, perhaps with a hole."""
    if live[: len(synced)] != synced:  # overwritten in place (cursor slots): page by page, old or new
        pages = range(0, max(len(live), len(synced)), 4096)
        return b"".join(chance.choice((synced, live))[at : at + 4096] for at in pages)
    kept = bytearray(live[: chance.randint(len(synced), len(live))])
    if holes and len(kept) > len(synced):
        first, end = sorted(chance.randint(len(synced), len(kept)) for _ in range(2))
        kept[first:end] = bytes(end - first)
    return bytes(kept)
