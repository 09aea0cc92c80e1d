"""One file that is followed, and reading a piece of it.

Promises: `read` returns what stands at the position only if the bytes before it are still those that were read last;
otherwise it raises Replaced, so that nothing written over old content passes for its continuation. Between reads
nothing of a file is kept in memory but this. Opening never blocks on a FIFO and never follows a path to another file.
Refuses: deciding when to read, and what becomes of the bytes.
"""

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from ndagent.core.system_files import next_data, open_followed, pread
from ndagent.inputs.file_identity import HEAD_BYTES, NOTHING, Key, Place, Print, print_mark
from ndagent.inputs.file_lines import Encoding

_HOLE_STEP_BYTES = 1 << 20
_HOLE_STEPS = 64
"""A hole without an end in sight is looked through so far in one go, then others have their turn."""


START = Place()


class Replaced(Exception):
    """The file is not what it was: cut, written anew, or another one under the same inode."""


class Piece(NamedTuple):
    """Bytes from the position on; `before` are those that its mark covers. `at_end`: there were no more."""

    data: bytes
    before: bytes
    at_end: bool
    status: os.stat_result


@dataclass(slots=True, eq=False)
class Tail:
    """What is known of one file. Times are of the loop's clock (seconds)."""

    key: Key
    path: str  # where it is now, as far as known
    name: str  # the path that its events name: where it was when it was found
    place: Place = START
    head: Print = NOTHING
    size: int = 0  # as last seen
    modified_ns: int = 0
    fd: int = -1
    encoding: Encoding | None = None
    has_news: bool = True  # something to read, as far as known
    has_rest: bool = False  # bytes behind the position wait for their end
    again_at: float | None = None  # when they will have waited long enough
    is_finished: bool = False  # read after nobody writes to it any more
    changed_at: float = 0.0  # when it last grew
    gone_at: float | None = None  # since when no wanted path leads to it
    is_over: bool = False  # that, and it was read to its end
    retry_at: float = 0.0
    hole_end: int = 0  # NUL bytes were looked through up to here
    copy_of: "Tail | None" = None
    is_link: bool = False  # what is written to it happens in another directory
    first: bytes = b""  # what `head` is of, while the file is open
    is_new: bool = True  # nothing was read of it yet: it may be a copy of another

    def saw(self, status: os.stat_result) -> bool:
        """Note size and time; whether they have changed."""
        has_changed = (status.st_size, status.st_mtime_ns) != (self.size, self.modified_ns)
        self.size, self.modified_ns = status.st_size, status.st_mtime_ns
        return has_changed

    def close(self) -> None:
        """Let go of the file; the position stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd, self.first = -1, b""

    def read(self, length: int) -> Piece:
        """Up to `length` bytes from the position; raises Replaced, OSError."""
        position, back = self.place.position, self.place.mark.length
        status = os.fstat(self.fd)
        data = pread(self.fd, back + length, position - back)
        if status.st_size < position or not self.place.mark.fits(data[:back]):
            raise Replaced
        return Piece(data[back:], data[:back], len(data) < back + length, status)

    def first_bytes(self, piece: Piece) -> bytes:
        """How the file begins, as far as it is known with this piece; raises Replaced where that has changed.

        Of the piece itself where that stands at the beginning: a second look may find the file cut already.
        """
        if len(self.first) >= HEAD_BYTES:
            return self.first
        if self.place.position == len(piece.before):
            data = piece.before + piece.data[:HEAD_BYTES]
        else:
            data = pread(self.fd, HEAD_BYTES, 0)
        if len(data) < self.head.length:
            return self.first
        if not self.head.fits(data):
            raise Replaced
        return data[:HEAD_BYTES]

    def behind_hole(self, size: int) -> int | None:
        """Where something else than NUL stands next; None while that is not known (`hole_end`: how far we looked)."""
        at = max(self.hole_end, self.place.position)
        try:
            at = max(at, next_data(self.fd, at))
        except OSError as error:
            if error.errno == errno.ENXIO:  # lseek(2): nothing but a hole up to the end
                self.hole_end = size
                return None
        for _ in range(_HOLE_STEPS):
            data = pread(self.fd, _HOLE_STEP_BYTES, at)
            left = data.lstrip(b"\0")
            at += len(data) - len(left)
            self.hole_end = at
            if left:
                return at
            if not data:
                return None
        return None

    def place_at(self, position: int) -> Place:
        """A place with the mark of what stands before it now."""
        length = min(position, HEAD_BYTES)
        return Place(position, print_mark(pread(self.fd, length, position - length)))


def open_as(path: str, key: Key) -> int:
    """A descriptor of the regular file that this key means; raises OSError (ESTALE if another file is there)."""
    fd = open_followed(path)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != key[:2]:
        os.close(fd)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
    return fd


def find_by_inode(path: str, key: Key) -> str | None:
    """Where in its directory a file is now, that was at `path`."""
    directory = os.path.dirname(path)  # noqa: PTH120 - paths stay text here: not all are UTF-8
    with suppress(OSError), os.scandir(f"{directory.rstrip('/')}/") as entries:
        for entry in entries:
            if entry.inode() == key.inode and entry.is_file(follow_symlinks=False):
                status = os.stat(entry.path, follow_symlinks=False)  # noqa: PTH116 - what a listing says has no inode on Windows
                if (status.st_dev, status.st_ino) == key[:2]:
                    return entry.path
    return None
