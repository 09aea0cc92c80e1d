"""A process that appends to a spool and says on stdout what was acknowledged, until it is killed.

    kill_spool.py DIRECTORY FIRST [POINT NTH]

Messages are numbered from FIRST on; each acknowledged number is a line. Without POINT somebody else kills it. With one
it kills itself (SIGKILL) when it reaches the named point for the NTH time: the points stand in POINTS and are places
between two file operations, reached through the spool's own seam.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from spool_layers import batch

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig
from ndagent.core.spool.files import OsFiles

POINTS = (
    "before_write", "half_written", "after_write", "after_sync", "before_dir_sync", "after_dir_sync",
    "segment_created", "segment_deleted", "cursor_slot_written", "cursor_synced",
)  # fmt: skip


class KillingFiles(OsFiles):
    """Real files, with an end."""

    def __init__(self, point: str, nth: int) -> None:
        self._point = point
        self._left = nth
        self._cursors: set[int] = set()

    def reached(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def create(self, path: Path) -> int:
        fd = super().create(path)
        if path.suffix == ".seg":
            self.reached("segment_created")
        return fd

    def open_write(self, path: Path) -> int:
        fd = super().open_write(path)
        if path.suffix == ".cursor":
            self._cursors.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self._cursors.discard(fd)
        super().close(fd)

    def writev(self, fd: int, pieces: Sequence[bytes], offset: int) -> int:
        if fd in self._cursors:
            written = super().writev(fd, pieces, offset)
            self.reached("cursor_slot_written")
            return written
        self.reached("before_write")
        if self._point == "half_written":
            data = b"".join(pieces)
            offset_written = super().writev(fd, [data[: len(data) // 2]], offset)
            self.reached("half_written")
            return offset_written
        written = super().writev(fd, pieces, offset)
        self.reached("after_write")
        return written

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        self.reached("cursor_synced" if fd in self._cursors else "after_sync")

    def fsync_dir(self, path: Path) -> None:
        self.reached("before_dir_sync")
        super().fsync_dir(path)
        self.reached("after_dir_sync")

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.reached("segment_deleted")


async def main(directory: Path, first: int, point: str, nth: int) -> None:
    config = SpoolConfig(segment_bytes=8192, max_bytes=64 << 20, tip_bytes=4096)
    files = KillingFiles(point, nth)
    spool = await Spool.open(directory, stream="test", config=config, metrics=Metrics(), files=files)
    spool.cursor("keeps").advance(0)
    moving = spool.cursor("moves", start="latest")
    if point == "segment_deleted":
        spool.retire_unused(["moves"])
    numbers = iter(range(first, first + 1_000_000))

    async def append() -> None:
        for number in numbers:
            await spool.append(batch(f"{number}:" + "x" * (number % 700)))
            os.write(1, b"%d\n" % number)

    async def follow() -> None:
        while True:
            records = await moving.read(16384)
            moving.advance(records[-1].end)
            await moving.save()

    await asyncio.gather(*[append() for _ in range(8)], follow())


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "none", "1"]
    asyncio.run(main(Path(arguments[0]), int(arguments[1]), arguments[2], int(arguments[3])))
