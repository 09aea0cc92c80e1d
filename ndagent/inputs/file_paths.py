"""Which files a set of globs means: walking directories, matching names, and what a rotated file was called before.

Promises: a look costs one listing per directory that a glob leads through; names that are not UTF-8 survive it; a link
that leads in circles ends. Refuses: opening files.

Globs: `*`, `?` and `[…]` match within one name, and not a leading dot (as in a shell); `**` as a whole component means
any number of directories, none included, links to directories not followed. On Windows paths are written with `/` here
(`C:/logs/*.log`, `//server/share/*.log`), and names match in any case.
"""

import codecs
import ntpath
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase, translate
from pathlib import Path
from typing import NamedTuple

MAX_DIRECTORIES = 4096
"""Directories listed in one look; a `**` over more than that sees the first ones and says so."""
MAX_DEPTH = 32

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".Z")
"""Never read as text, whatever a glob says; `read_gzip` reads the first kind as what it is."""

_ON_WINDOWS = sys.platform == "win32"
_WILD = re.compile(r"[*?[]")
_ROTATED = re.compile(r"(?:[-._]\d[\d.:_T-]*)+$")


class Found(NamedTuple):
    """A file that a look met; `is_wanted` is False for one that only looks like a rotated sibling of a wanted one."""

    path: str
    status: os.stat_result
    is_wanted: bool
    is_link: bool = False


class Look(NamedTuple):
    """What one look saw: files, the directories that were listed or would be if they existed, and if it saw all."""

    files: list[Found]
    directories: set[str]
    is_complete: bool


def stem(name: str) -> str:
    """What a file was called before it was rotated and compressed: app.log for app.log.1, app.log-20261125.gz."""
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return _ROTATED.sub("", name) or name


def display(path: str) -> str:
    """The path as text: bytes that are not UTF-8 percent-escaped, and then `%` too, so that it can be read back."""
    try:
        path.encode()
    except UnicodeEncodeError:
        escaped = os.fsencode(path.replace("%", "%25"))
        return escaped.decode("utf-8", "percent_escape")
    return path


def _percent_escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)  # noqa: S101 - registered for decoding
    bad = error.object[error.start : error.end]
    return "".join(f"%{byte:02X}" for byte in bad), error.end


codecs.register_error("percent_escape", _percent_escape)


class Globs:
    """Compiled patterns; paths must be absolute."""

    def __init__(self, patterns: Iterable[str], exclude: Iterable[str] = ()) -> None:
        self._patterns = [_split(pattern) for pattern in patterns]
        self._exclude = [_compile_exclude(one) for one in exclude]

    def excludes(self, path: str) -> bool:
        """Whether an `exclude` pattern names it: with a slash the whole path, without one its last part."""
        name = path.rpartition("/")[2]
        return any(pattern.match(path if is_whole else name) for is_whole, pattern in self._exclude)

    def wants(self, path: str) -> bool:
        """Whether a look would find this path, by its text alone."""
        parts = _split(path)
        return any(_matches(parts, pattern) for pattern in self._patterns) and not self.excludes(path)

    def is_sibling(self, path: str) -> bool:
        """Whether the path looks like what rotation makes of a wanted one."""
        directory, _, name = path.rpartition("/")
        before = stem(name)
        return before != name and not name.endswith(COMPRESSED) and self.wants(f"{directory}/{before}")

    def look(self) -> Look:
        """List what is there now."""
        walk = _Walk(self)
        for pattern in self._patterns:
            walk.descend("", pattern, 0)
        return Look(list(walk.files.values()), walk.directories, walk.is_complete)


class _Walk:
    """One look under way."""

    def __init__(self, globs: Globs) -> None:
        self._globs = globs
        self._listings: dict[str, list[os.DirEntry[str]]] = {}
        self.files: dict[str, Found] = {}
        self.directories: set[str] = set()
        self.is_complete = True

    def descend(self, directory: str, pattern: Sequence[str], depth: int) -> None:
        """Everything below `directory` that the rest of a pattern matches."""
        if depth > MAX_DEPTH:
            self.is_complete = False
            return
        part, rest = pattern[0], pattern[1:]
        if part == "**":
            if rest:
                self.descend(directory, rest, depth)
            else:
                self._files(directory, "*")
            for entry in self._list(directory):
                if not entry.name.startswith(".") and _is_directory(entry, follow=False):
                    self.descend(entry.path, pattern, depth + 1)
        elif not rest:
            self._files(directory, part)
        elif _WILD.search(part) is None:
            path = part if _ON_WINDOWS and not directory else f"{directory}/{part}"
            if Path(f"{path}/").is_dir():
                self.descend(path, rest, depth + 1)
            else:
                self.directories.add(directory or "/")  # it may appear here
        else:
            for entry in self._list(directory):
                if _name_matches(entry.name, part) and _is_directory(entry, follow=True):
                    self.descend(entry.path, rest, depth + 1)

    def _list(self, directory: str) -> list[os.DirEntry[str]]:
        listing = self._listings.get(directory)
        if listing is None:
            if len(self._listings) >= MAX_DIRECTORIES:
                self.is_complete = False
                return []
            self.directories.add(directory or "/")
            listing = []
            with suppress(OSError), os.scandir(f"{directory}/") as entries:
                listing = list(entries)
            self._listings[directory] = listing
        return listing

    def _files(self, directory: str, part: str) -> None:
        for entry in self._list(directory):
            path = f"{directory}/{entry.name}"
            if path in self.files and self.files[path].is_wanted:
                continue
            is_wanted = _name_matches(entry.name, part) and not self._globs.excludes(path)
            if not is_wanted and not (_name_matches(stem(entry.name), part) and self._globs.is_sibling(path)):
                continue
            with suppress(OSError):  # gone, or a link to nowhere
                status = Path(path).stat()
                if not stat.S_ISDIR(status.st_mode):
                    self.files[path] = Found(path, status, is_wanted, entry.is_symlink())


def _split(path: str) -> list[str]:
    """The names of an absolute path; on Windows the first is its drive (C:) or share (//server/share)."""
    if not _ON_WINDOWS:
        return [part for part in path.split("/") if part]
    drive, rest = ntpath.splitdrive(path.replace("\\", "/"))
    return [drive, *(part for part in rest.split("/") if part)]


def _compile_exclude(pattern: str) -> tuple[bool, re.Pattern[str]]:
    """Whether it speaks of whole paths, and what matches it."""
    if _ON_WINDOWS:
        pattern = pattern.replace("\\", "/")
    return "/" in pattern, re.compile(translate(pattern), re.IGNORECASE if _ON_WINDOWS else 0)


def _is_directory(entry: "os.DirEntry[str]", *, follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:
        return False


def _name_matches(name: str, pattern: str) -> bool:
    if name.startswith(".") and not pattern.startswith("."):
        return False
    if _ON_WINDOWS:
        name, pattern = name.casefold(), pattern.casefold()
    return fnmatchcase(name, pattern)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path's components match a pattern's: a table, so that many `**` do not multiply."""
    reach = {0}  # components of the path that the pattern so far may have used up
    for part in pattern:
        if part == "**":
            reach = set(_stretch(reach, parts))
        else:
            reach = {at + 1 for at in reach if at < len(parts) and _name_matches(parts[at], part)}
    return len(parts) in reach


def _stretch(reach: set[int], parts: Sequence[str]) -> Iterator[int]:
    for start in reach:
        yield start
        for at in range(start, len(parts)):
            if parts[at].startswith("."):
                break
            yield at + 1


def path_is_allowed(path: str, allowed_globs: Iterable[str]) -> bool:
    """Whether a path, with every link in it followed, lies where one of these globs says; for `policy_allow`.

    `path` may be a glob itself; its fixed part is resolved. What its wild part may meet through links must be checked
    file by file, by asking again. A path that goes up (`..`) behind a wild part is never allowed, nor a relative one.
    """
    parts = path.split("/")
    wild = next((index for index, part in enumerate(parts) if _WILD.search(part)), len(parts))
    if not path.startswith("/") or "\0" in path or ".." in parts[wild:]:
        return False
    real = _components(f"{os.path.realpath('/'.join(parts[:wild]) or '/')}/{'/'.join(parts[wild:])}")
    return any(one.startswith("/") and _covers(_components(_resolved(one)), real) for one in allowed_globs)


def _resolved(pattern: str) -> str:
    """A glob with the links of its fixed part followed: /var/run/*.log is /run/*.log."""
    parts = pattern.split("/")
    wild = next((index for index, part in enumerate(parts) if _WILD.search(part)), len(parts))
    return f"{os.path.realpath('/'.join(parts[:wild]) or '/')}/{'/'.join(parts[wild:])}"


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _covers(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """As `_matches`, for a path that may be a glob: a wild part of it is only covered by `*` alone, `**`, or itself."""
    reach = {0}
    for index, part in enumerate(pattern):
        if part == "**":
            last = index == len(pattern) - 1
            reach = {to for at in reach for to in range(at + last, len(parts) + 1)}
        else:
            reach = {at + 1 for at in reach if at < len(parts) and _covers_name(part, parts[at])}
    return len(parts) in reach


def _covers_name(pattern: str, name: str) -> bool:
    if _WILD.search(name):
        return name != "**" and pattern in ("*", name)
    return fnmatchcase(name, pattern)


def filesystem_of(path: str, mountinfo: str) -> str:
    """The type of the file system that holds a path, from the text of /proc/self/mountinfo (proc(5)); "" if unknown."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split(" ")[0]
    return kind
