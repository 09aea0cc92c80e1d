"""Rotated files: their names, their compression, how many are kept.

Promises:
  * `events.ndjson` rotates to `events-20260728T141503.000000Z.ndjson`: it sorts before the live file and after every
    older one, and never takes a name that exists, compressed or not;
  * compressing loses nothing at any instruction: temporary file, fsync, rename, fsync of the directory, then unlink;
    where it fails the temporary file goes at once: it may be what fills the disk, and then no next rotation comes;
  * only files with exactly such a name are compressed, deleted, or believed when the last event written is looked for.
Refuses: knowing about events. Everything here runs in the output's housekeeping thread, except `free_name`.
"""

import gzip
import logging
import os
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain, count
from pathlib import Path
from threading import Event
from typing import IO, Literal

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

log = logging.getLogger(__name__)

Compression = Literal["gzip", "zstd"]
SUFFIXES: dict[Compression, str] = {"gzip": ".gz", "zstd": ".zst"}
_PARTIAL = ".partial"
_UNSYNCED = ".unsynced"
_STAMP = r"-\d{8}T\d{6}\.\d{6}Z"
_CHUNK_BYTES = 2**20


def free_name(path: str, now: float) -> str:
    """The name that the live file `path` rotates to at Unix time `now`; later than any rotated file beside it."""
    live = Path(path)
    moment = datetime.fromtimestamp(now, UTC)
    older = rotated_files(path)
    while True:
        name = f"{live.stem}-{moment:%Y%m%dT%H%M%S.%fZ}{live.suffix}"
        if not older or _plain(older[-1].name) < name:
            return str(live.with_name(name))
        # The clock was set back, or this is the same microsecond: stay just behind the newest.
        stamp = _plain(older[-1].name)[len(live.stem) + 1 :].removesuffix(live.suffix)
        moment = datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC) + timedelta(microseconds=1)


def unsynced_name(path: str, now: float) -> str:
    """Where a file goes whose last bytes may not be on the disk: no rotated file's name, and nobody else's.

    `events-20260728T141503.000000Z.unsynced.ndjson`: what was delivered before stands in it, so readers must find it.
    """
    suffix = Path(path).suffix
    start = free_name(path, now).removesuffix(suffix) + _UNSYNCED
    names = chain([start + suffix], (f"{start}-{number}{suffix}" for number in count(2)))
    return next(name for name in names if not os.path.lexists(name))


def rotated_files(path: str) -> list[Path]:
    """The rotated files of the live file `path`, oldest first; both forms where a crash left both."""
    return _matching(path, r"(\.gz|\.zst)?")


def interrupted(directory: Path) -> dict[str, Path]:
    """Live files that a crash caught between the rename and their first line, and the file each had become.

    A compressed one is left out: compressing is so much later that no event in it is still in doubt.
    """
    newest: dict[str, Path] = {}
    plain = re.compile(f"(.+?){_STAMP}([.][^.]*)?")
    for path in sorted(directory.iterdir()):
        match = plain.fullmatch(path.name)
        if match:
            newest[str(path.with_name(match[1] + (match[2] or "")))] = path
    return {live: path for live, path in newest.items() if not Path(live).exists() or not Path(live).stat().st_size}


def tidy(path: str, *, compress: Compression | None, keep: int, stop: Event) -> None:
    """Bring the rotated files of `path` into the wanted form; safe to run again after a crash or an error."""
    try:
        for leftover in _matching(path, r"(\.gz|\.zst)" + re.escape(_PARTIAL)):
            leftover.unlink(missing_ok=True)
        if keep:
            _delete_oldest(path, keep)
        if compress:
            for plain in _matching(path, ""):
                _compress(plain, compress, stop)
    except OSError as error:
        log.warning("rotated files stay as they are until the next rotation: %s", error, extra={"path": path})


def _matching(path: str, suffix: str) -> list[Path]:
    live = Path(path)
    wanted = re.compile(re.escape(live.stem) + _STAMP + re.escape(live.suffix) + suffix)
    with suppress(FileNotFoundError):
        return sorted((p for p in live.parent.iterdir() if wanted.fullmatch(p.name)), key=lambda p: _plain(p.name))
    return []


def _plain(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".zst")


def _delete_oldest(path: str, keep: int) -> None:
    files = rotated_files(path)
    names = sorted({_plain(file.name) for file in files})
    doomed = set(names[:-keep])
    for file in files:
        if _plain(file.name) in doomed:
            file.unlink(missing_ok=True)
            log.info("deleted the oldest rotated file", extra={"path": str(file), "keep": keep})


def _compress(plain: Path, how: Compression, stop: Event) -> None:
    done = plain.with_name(plain.name + SUFFIXES[how])
    partial = done.with_name(done.name + _PARTIAL)
    try:
        if not _pack(plain, partial, how, stop):
            return  # the plain file is whole; the next start removes the partial one and begins again
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    partial.rename(done)
    fsync_directory(plain.parent)
    plain.unlink()


def _pack(plain: Path, partial: Path, how: Compression, stop: Event) -> bool:
    """Write the file anew, compressed and durable; False if it was told to stop before the end."""
    with plain.open("rb") as source, partial.open("wb") as raw:
        status = os.fstat(source.fileno())
        os.fchmod(raw.fileno(), status.st_mode & 0o7777)
        with _packer(raw, how) as packed:
            while chunk := source.read(_CHUNK_BYTES):
                if stop.is_set():
                    return False
                packed.write(chunk)
        raw.flush()
        os.fsync(raw.fileno())
    os.utime(partial, ns=(status.st_atime_ns, status.st_mtime_ns))
    return True


def _packer(raw: IO[bytes], how: Compression) -> gzip.GzipFile | zstd.ZstdFile:
    if how == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6)
    return zstd.ZstdFile(raw, mode="wb", level=3)


def fsync_directory(directory: str | Path) -> None:
    """Make the names in a directory survive a crash; one that is gone needs nothing."""
    with suppress(FileNotFoundError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
