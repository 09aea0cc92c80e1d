"""The files of one input: found, told apart, renamed, copied, gone, forgotten.

Promises:
  * a file is taken up once, whatever names it has, and goes on where it was read to, renamed or after a restart too;
  * what rotation made of a wanted file between two looks is read too, although no glob names it: a new inode whose name
    is a wanted one with a number or date behind it (`app.log.1`, `app.log-20261125`);
  * a copy of a file (copytruncate, gzip) is recognised by its content and its name, waits while the original is there,
    and goes on where the original was read to when that one was cut;
  * at most `max_open_files` are open: the one that was idle longest is closed and keeps its position;
  * at most `max_files` are known: gone ones are forgotten first, then new ones are refused, and that is said.
Refuses: reading content beyond what identity needs. All of it runs in one thread at a time. (Past 400 lines: one
table, whose rows are taken up, renamed, copied and forgotten by rules that must be read together.)
"""

import errno
import os
import stat
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple, Protocol

from ndagent.core.system_files import pread
from ndagent.inputs.file_copies import is_beginning, is_continued, text_of, was_beginning
from ndagent.inputs.file_gzip import GzipText
from ndagent.inputs.file_identity import HEAD_BYTES, Key, Place, Remembered, Within, print_head
from ndagent.inputs.file_paths import COMPRESSED, Found, Globs, Look, display, stem
from ndagent.inputs.file_tail import Tail, find_by_inode, open_as

SETTLED_SECONDS = 2.0
"""A compressed file is read once it has not changed for so long: it is written in one go."""

COMPRESSED_SECONDS = 60.0
"""So long one that is gone and was read may turn out to be in a compressed file that is still to be read."""

_UNTIMED = b"1"
"""What versions before this one kept for the moment of the last batch; they did not say which files were over."""
_NEVER = 1 << 63
_NOT_THERE = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}


class Say(Protocol):
    """How trouble with a path is told, once until it is over."""

    def __call__(self, path: str, trouble: str | None, remedy: str = "") -> None:
        """None: it is over."""


Guard = Callable[[int], str | None]
"""Why this open file must not be read; None if it may."""


class Limits(NamedTuple):
    """See the settings of the same names."""

    max_files: int
    max_open_files: int
    gone_seconds: float  # rotate_wait
    forget_seconds: float  # forget_after
    read_gzip: bool
    start_at_end: bool
    line_end: bytes = b"\n"


class Table:
    """See the module."""

    def __init__(self, globs: Globs, limits: Limits, say: Say, guard: Guard | None = None) -> None:
        self.tails: dict[Key, Tail] = {}
        self.directories: set[str] = set()
        self.dropped_parts: set[bytes] = set()
        """Parts of the checkpoint that are to be forgotten."""
        self.noted: dict[bytes, Tail] = {}
        """Those that are to be saved although nothing was read."""
        self._globs = globs
        self._limits = limits
        self._say = say
        self._guard = guard
        self._open: OrderedDict[Key, Tail] = OrderedDict()  # idle longest first
        self._siblings: set[Key] | None = None  # as of the last look
        self._by_inode: dict[int, list[Tail]] = defaultdict(list)
        self._is_first_start = True
        self._known_until_ns = _NEVER
        self._fresh: list[Tail] = []  # taken up since the last look

    def restore(self, parts: Mapping[bytes, bytes], now: float) -> None:
        """Take up what a checkpoint says; what cannot be read of it is said and those files begin as new ones."""
        self._is_first_start = not parts
        moment = parts.get(b"", _UNTIMED)
        is_of_before = moment == _UNTIMED or not moment.isdigit()
        self._known_until_ns = _NEVER if is_of_before else int(moment)
        for packed, part in parts.items():
            if not packed:
                continue
            try:
                key, known = Key.unpack(packed), Remembered.unpack(part)
            except ValueError as error:
                self._say("checkpoint", str(error), "the file it was for is read from its beginning")
                continue
            shown = self._shown(known.path)
            is_new = not (known.place.position or known.head.length)  # and may be a copy
            tail = Tail(key, known.path, shown, known.place, known.head, known.size, is_new=is_new)
            tail.changed_at, tail.has_news, tail.is_over = now, not key.is_gzip, known.is_over or is_of_before
            tail.gone_at = now if known.is_over else None
            if tail.is_over != known.is_over:
                self.noted[packed] = tail  # or the next start, which has a moment, would miss it
            self._add(tail)

    def close(self) -> None:
        """Let go of every file."""
        for tail in self._open.values():
            tail.close()
        self._open.clear()

    # ---- what there is

    def look(self, look: Look, arrivals: Iterable[tuple[str, int]], now: float) -> dict[bytes, bytes]:
        """Take up what a look saw and what was opened on arrival; parts to note at once.

        Those of new files, so that one that is gone after a restart is missed, and where `start: end` begins.
        """
        self.directories = look.directories
        if not look.is_complete:
            self._say("globs", "they lead through too many directories, not all were looked at", "write narrower ones")
        by_key = self._readable(look.files)
        self._arrive(arrivals, now)
        successors = self._missed_siblings(by_key) if self._siblings is None else None
        noted: dict[bytes, bytes] = {}
        for key, names in sorted(by_key.items(), key=lambda item: item[1][0].status.st_mtime_ns):
            tail = self._same(key, names[0].path) or self._moved_device(key, names)
            if tail is not None:
                self._seen(tail, names)
                continue
            is_missed = key in successors if successors is not None else key not in (self._siblings or ())
            if names[0].is_wanted or is_missed:
                tail = self._take_up(key, names[0], now)
                if tail is not None and self._limits.start_at_end and self._is_first_start:
                    noted |= self._start_at_end(tail, names[0].status)
        wanted = {key for key, names in by_key.items() if names[0].is_wanted}
        self._siblings = by_key.keys() - wanted
        for key, tail in self.tails.items():
            if key not in wanted and tail.gone_at is None:
                tail.gone_at = now
        self._is_first_start = False
        fresh, self._fresh = self._fresh, []
        return {tail.key.pack(): Remembered(tail.place, tail.head, tail.path, 0).pack() for tail in fresh} | noted

    def _readable(self, files: list[Found]) -> dict[Key, list[Found]]:
        """Regular files by key, wanted names first; what is no file that can be read is refused and said."""
        by_key: dict[Key, list[Found]] = {}
        for found in files:
            if not stat.S_ISREG(found.status.st_mode):
                if found.is_wanted:
                    self._say(found.path, "it is no regular file (FIFO, socket or device)", "exclude it")
                continue
            if not found.status.st_ino:  # Windows then knows it from the directory only
                self._say(found.path, "another program has it open for itself alone", "let it share the file")
                continue
            is_gzip = found.path.endswith(".gz")
            if found.path.endswith(COMPRESSED) and not (is_gzip and self._limits.read_gzip and found.is_wanted):
                continue
            key = Key(found.status.st_dev, found.status.st_ino, is_gzip)
            by_key.setdefault(key, []).append(found)
        for names in by_key.values():
            names.sort(key=lambda found: not found.is_wanted)
        return by_key

    def _arrive(self, arrivals: Iterable[tuple[str, int]], now: float) -> None:
        for path, fd in arrivals:
            status = os.fstat(fd)
            key = Key(status.st_dev, status.st_ino)
            tail = self._same(key, path)
            is_fit = stat.S_ISREG(status.st_mode) and not path.endswith(COMPRESSED)
            if tail is None and is_fit and key not in (self._siblings or ()):
                tail = self._add_new(key, path, now)
            if tail is None or tail.fd >= 0:
                os.close(fd)
                continue
            tail.has_news = True
            if self._guard is not None and self._guard(fd) is not None:
                os.close(fd)  # it is said when it is to be read
                continue
            self._hold(tail, fd)

    def _same(self, key: Key, path: str) -> Tail | None:
        """The file of this key; one that was read, closed and gone is forgotten where another has got its inode."""
        tail = self.tails.get(key)
        if tail is None or tail.gone_at is None or tail.fd >= 0 or tail.size > tail.place.position:
            return tail
        try:
            fd = self._open_as(path, key)
        except OSError:
            return tail
        is_other = not tail.key.is_gzip and not is_continued(fd, tail)
        os.close(fd)
        if is_other:
            self._forget(tail)
        return None if is_other else tail

    def _seen(self, tail: Tail, names: list[Found]) -> None:
        found = next((one for one in names if one.path == tail.path), names[0])
        tail.path, tail.is_link = found.path, found.is_link
        if found.is_wanted:
            tail.gone_at = None
            if tail.is_over:  # back under a wanted name
                tail.is_over = False
                self.noted[tail.key.pack()] = tail
        status = found.status
        if tail.key.is_gzip:
            is_settled = time.time() - status.st_mtime >= SETTLED_SECONDS
            tail.has_news |= is_settled and status.st_size != tail.size
        else:
            tail.has_news |= (status.st_size, status.st_mtime_ns) != (tail.size, tail.modified_ns)

    def _take_up(self, key: Key, found: Found, now: float) -> Tail | None:
        tail = self._add_new(key, found.path, now)
        if tail is None:
            return None
        tail.is_new = not self._is_first_start
        tail.is_link = found.is_link
        if not found.is_wanted:
            tail.gone_at = now
        if key.is_gzip:
            tail.has_news = time.time() - found.status.st_mtime >= SETTLED_SECONDS
            return tail
        tail.size = found.status.st_size
        if len(self._open) < self._limits.max_open_files:
            with suppress(OSError):  # it is tried again, and said, when it is to be read
                self.open(tail)
        return tail

    def _add_new(self, key: Key, path: str, now: float) -> Tail | None:
        if len(self.tails) >= self._limits.max_files and not self._forget_oldest():
            trouble = f"{self._limits.max_files} files are followed, others that the globs match are not"
            self._say("max_files", trouble, "raise max_files")
            return None
        tail = Tail(key, path, self._shown(path), changed_at=now)
        self._add(tail)
        self._fresh.append(tail)
        return tail

    def _shown(self, path: str) -> str:
        """The path that a file's events name: of a rotated one that no glob has, what it was called before."""
        return display(path if self._globs.wants(path) else _family(path))

    def _add(self, tail: Tail) -> None:
        self.tails[tail.key] = tail
        self._by_inode[tail.key.inode].append(tail)

    def _start_at_end(self, tail: Tail, found: os.stat_result) -> dict[bytes, bytes]:
        """Pass over what a file holds at the first start; of a line that is not ended, the rest too."""
        if tail.key.is_gzip:
            tail.has_news, tail.size = False, found.st_size
            return {tail.key.pack(): Remembered(tail.place, tail.head, tail.path, tail.size).pack()}
        try:
            self.open(tail)
            status = os.fstat(tail.fd)
            data = pread(tail.fd, HEAD_BYTES, 0)
            end = self._limits.line_end
            is_ended = pread(tail.fd, len(end), max(status.st_size - len(end), 0)) == end or not status.st_size
            place = tail.place_at(status.st_size)
        except OSError:
            return {}  # unreadable: it is said when it is to be read
        tail.head = print_head(data)
        tail.place = place if is_ended else Place(place.position, place.mark, Within.SKIPPED)
        tail.saw(status)
        return {tail.key.pack(): Remembered(tail.place, tail.head, tail.path, tail.size).pack()}

    def _moved_device(self, key: Key, names: list[Found]) -> Tail | None:
        """The same inode under another device number (they change between starts), if name and beginning agree."""
        for tail in self._by_inode.get(key.inode, ()):
            if tail.fd >= 0 or tail.key.is_gzip != key.is_gzip or tail.key.device == key.device:
                continue
            if any(found.path == tail.path for found in names):
                with suppress(OSError):
                    fd = self._open_as(tail.path, key)
                    fits = tail.head.fits(pread(fd, HEAD_BYTES, 0))
                    os.close(fd)
                    if fits:
                        self.dropped_parts.add(tail.key.pack())
                        del self.tails[tail.key]
                        tail.key = key
                        self.tails[key] = tail
                        return tail
        return None

    def _missed_siblings(self, by_key: Mapping[Key, list[Found]]) -> set[Key]:
        """At a restart: rotated files that came while nobody looked.

        Newer than a rotated one that we know and is still there, or than all that was read: also where nothing is
        known of what they were called before, which came and was rotated meanwhile.
        """
        for key, names in by_key.items():
            self._same(key, names[0].path)  # forgets whose inode another file has got
        oldest: dict[str, int] = {}
        for key, names in by_key.items():
            if key in self.tails and not names[0].is_wanted:
                family = _family(names[0].path)
                oldest[family] = min(oldest.get(family, names[0].status.st_mtime_ns), names[0].status.st_mtime_ns)
        return {
            key for key, names in by_key.items()
            if key not in self.tails and not names[0].is_wanted
            and names[0].status.st_mtime_ns > min(oldest.get(_family(names[0].path), _NEVER), self._known_until_ns)
        }  # fmt: skip

    # ---- open files

    def open(self, tail: Tail) -> None:
        """Have the file open; raises OSError, FileNotFoundError where it is nowhere to be found."""
        if tail.fd >= 0:
            self._open.move_to_end(tail.key)
            return
        try:
            fd = self._open_as(tail.path, tail.key)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            moved = find_by_inode(tail.path, tail.key)
            if moved is None:
                raise FileNotFoundError(error.errno, "it is not there any more", tail.path) from error
            fd = self._open_as(moved, tail.key)
            if not _is_moved(tail, moved, fd):
                os.close(fd)
                raise FileNotFoundError(error.errno, "another file has its inode", tail.path) from error
            tail.path = moved
        self._hold(tail, fd)

    def _open_as(self, path: str, key: Key) -> int:
        fd = open_as(path, key)
        reason = self._guard(fd) if self._guard is not None else None
        if reason is None:
            return fd
        os.close(fd)
        raise OSError(errno.EPERM, reason, path)

    def _hold(self, tail: Tail, fd: int) -> None:
        while len(self._open) >= self._limits.max_open_files:
            _, idle = self._open.popitem(last=False)
            status = os.fstat(idle.fd)
            if not status.st_nlink and idle.place.position >= status.st_size:
                self.over(idle)  # or it would be missed: whoever writes to its name writes to another file
            idle.close()
        tail.fd = fd
        self._open[tail.key] = tail

    def let_go(self, tail: Tail) -> None:
        """Close a file that fails; it is opened anew when its turn comes."""
        if self._open.pop(tail.key, None) is not None:
            tail.close()

    @property
    def open_files(self) -> int:
        """How many files are open."""
        return len(self._open)

    def unwatched(self) -> list[Tail]:
        """Files of which no event may tell: those under another name, and links."""
        return [tail for tail in self.tails.values() if tail.is_link or (tail.gone_at is not None and tail.fd >= 0)]

    def written(self, paths: Collection[str]) -> None:
        """Somebody wrote to these."""
        for tail in self.tails.values():
            if tail.path in paths:
                tail.has_news = True

    def poll(self, tails: Iterable[Tail]) -> None:
        """Ask files whether they have changed."""
        for tail in tails:
            if tail.gone_at is not None and tail.fd < 0:
                continue
            with suppress(OSError):
                status = os.fstat(tail.fd) if tail.fd >= 0 else os.stat(tail.path)  # noqa: PTH116 - text paths
                if (status.st_size, status.st_mtime_ns) != (tail.size, tail.modified_ns) and not tail.key.is_gzip:
                    tail.has_news = True

    # ---- copies

    def original_of(self, tail: Tail, text: GzipText | None) -> Tail | None:
        """The file that this one, which is open, is a copy of: a name made from that one's, and the same content."""
        if text is None and stem(_name(tail.path)) == _name(tail.path):
            return None
        family = _family(tail.path)
        others = [
            other for other in self.tails.values()
            if other is not tail and other.copy_of is None and not other.key.is_gzip
            and _family(other.path) == family and other.path != tail.path
        ]  # fmt: skip
        if text is not None:
            return text_of(text, others)
        begins = pread(tail.fd, HEAD_BYTES, 0)
        likely = [other for other in others if len(begins) < other.head.length or other.head.fits(begins)]
        return next((other for other in likely if self.is_copy(tail, other)), None)

    def may_be_compressed(self, tail: Tail, now: float) -> bool:
        """Whether a compressed file that may be this one, which is gone, is still to be read."""
        if tail.gone_at is not None and now - tail.gone_at >= COMPRESSED_SECONDS:
            return False
        family = _family(tail.path)
        return any(
            other.key.is_gzip and other.is_new and not other.size and other.gone_at is None
            and _family(other.path) == family
            for other in self.tails.values()
        )  # fmt: skip

    def is_copy(self, tail: Tail, other: Tail) -> bool:
        """Whether all of an open file is the beginning of another, or of what that one was before it was cut."""
        try:
            if tail.key in self.tails:
                self.open(tail)  # of the two that may be open at least, none is closed for the other
            self.open(other)
            return is_beginning(tail.fd, other.fd) or was_beginning(tail, other)
        except OSError:
            return False

    def copies_of(self, tail: Tail, now: float) -> list[Tail]:
        """The copies that wait for it, and any that stands beside it unnoticed yet."""
        directory, family = os.path.dirname(tail.path), _family(tail.path)  # noqa: PTH120 - text paths
        with suppress(OSError), os.scandir(directory or "/") as entries:
            for entry in entries:
                path = f"{directory}/{entry.name}"
                if _family(path) == family and path != tail.path and not entry.name.endswith(COMPRESSED):
                    status = os.stat(path)  # noqa: PTH116 - text paths; a listing has no inodes on Windows
                    key = Key(status.st_dev, status.st_ino)
                    known = self.tails.get(key)
                    if stat.S_ISREG(status.st_mode) and known is None:
                        self._try_copy(key, path, tail, now)
                    elif known is not None and known.is_new and known.copy_of is None:
                        known.copy_of = tail if self.is_copy(known, tail) else None
        return [other for other in self.tails.values() if other.copy_of is tail]

    def _try_copy(self, key: Key, path: str, tail: Tail, now: float) -> None:
        with suppress(OSError):
            copy = Tail(key, path, tail.name, fd=self._open_as(path, key), is_new=False, has_news=False)
            if not tail.head.length or not self.is_copy(copy, tail) or len(self.tails) >= self._limits.max_files:
                copy.close()
                return
            fd, copy.fd = copy.fd, -1
            copy.copy_of, copy.gone_at = tail, None if self._globs.wants(path) else now
            self._add(copy)
            self._hold(copy, fd)

    # ---- the end

    def tidy(self, now: float) -> None:
        """Close what was gone long enough and is read, forget what was gone for longer."""
        for tail in list(self.tails.values()):
            if tail.gone_at is None or tail.has_news:
                continue
            if not tail.key.is_gzip:
                self.over(tail)
            gone_for = now - tail.gone_at
            if gone_for >= self._limits.gone_seconds and tail.has_rest and not tail.is_finished and tail.fd >= 0:
                tail.has_news = True  # its last line gets no end any more
            elif gone_for >= self._limits.gone_seconds and tail.fd >= 0:
                self.let_go(tail)
            elif gone_for >= self._limits.forget_seconds and tail.fd < 0:
                self._forget(tail)

    def over(self, tail: Tail) -> None:
        """It is gone, and what could be read of it was: found missing after a restart, that is no news."""
        if not tail.is_over:
            tail.is_over = True
            self.noted[tail.key.pack()] = tail

    def is_final(self, tail: Tail, now: float) -> bool:
        """Whether nobody will write to it any more."""
        return tail.gone_at is not None and now - tail.gone_at >= self._limits.gone_seconds

    def _forget_oldest(self) -> bool:
        gone = [tail for tail in self.tails.values() if tail.gone_at is not None and not tail.has_news]
        if not gone:
            return False
        self._forget(min(gone, key=lambda tail: tail.gone_at or 0.0))
        return True

    def _forget(self, tail: Tail) -> None:
        self.let_go(tail)
        del self.tails[tail.key]
        family = self._by_inode[tail.key.inode]
        family.remove(tail)
        if not family:
            del self._by_inode[tail.key.inode]
        for other in self.tails.values():
            if other.copy_of is tail:
                other.copy_of, other.has_news = None, True
        self.dropped_parts.add(tail.key.pack())


def _is_moved(tail: Tail, path: str, fd: int) -> bool:
    """Whether an open file under another name is this one, and not one that got its inode and nobody asked to read."""
    if tail.key.is_gzip or _family(path) == _family(tail.path):
        return True
    return tail.head.length > 0 and is_continued(fd, tail)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _family(path: str) -> str:
    """Directory and name before rotation: what all rotated forms of one file share."""
    directory, _, name = path.rpartition("/")
    return f"{directory}/{stem(name)}"
