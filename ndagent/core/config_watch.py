"""Tells when a configuration was saved: the main file, or one in the conf.d beside it.

Promises: a save by replacing the file (editors, package managers) and one through a symbolic link are seen; a conf.d
that is made later is seen; one save is told once, however long the file stays wrong; other files in the directory are
not told. Refuses: following `${file:…}` (a reload reads those, see docs/configuration.md).
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

from ndagent.core.watching import changes, looks


async def saves(path: Path, *, look_every_seconds: float | None = None) -> AsyncGenerator[None, None]:
    """Yield once at the start (it may have been saved since it was read), then after each save, until cancelled.

    With `look_every_seconds` nobody is asked to tell: the files are looked at that often.
    """
    seen = None
    told = changes(lambda: _folders(path)) if look_every_seconds is None else looks(look_every_seconds)
    async with aclosing(told):
        while True:
            now = _stamps(path)
            if now != seen:
                seen = now
                yield
            await anext(told)


def _folders(path: Path) -> set[Path]:
    return {path.parent, path.resolve().parent, path.parent / "conf.d"}


def _stamps(path: Path) -> frozenset[tuple[Path, int, int, int]]:
    """What tells one state of the files from another."""
    files = [path]
    with suppress(OSError):
        files += (path.parent / "conf.d").iterdir()
    found = set()
    for file in files:
        with suppress(OSError):
            status = file.stat()
            found.add((file, status.st_ino, status.st_size, status.st_mtime_ns))
    return frozenset(found)
