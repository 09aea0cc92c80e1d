"""Waiting for files to change: told by the kernel, and looking once in a while anyway.

Promises: `changes` yields after files in its directories were saved, made or deleted (a burst is one change), and at
least every `look_every_seconds`, because not every file system tells. A directory that is made, or made anew, later is
watched from then on. Where the kernel cannot watch (no inotify instance left) it only looks, and says so once.
Refuses: saying what changed. Whoever is told compares.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchfiles import Change

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 60.0

_QUIET_MS, _LONGEST_BURST_MS = 200, 800


async def changes(
    directories: Callable[[], Iterable[Path]], *, look_every_seconds: float = LOOK_EVERY_SECONDS
) -> AsyncGenerator[None, None]:
    """Yield when something may have changed in the directories (not below them), until cancelled."""
    can_watch = True
    while True:
        there = _there(directories())
        if not there or not can_watch:
            await asyncio.sleep(look_every_seconds)
            yield
            continue
        try:
            async with aclosing(_told_by_the_kernel(there, look_every_seconds)) as told:
                async for changed in told:
                    yield
                    made_anew = any(Path(path) in there for _, path in changed)  # the watch went with the old one
                    if made_anew or _there(directories()) != there:
                        break
        except OSError as error:
            can_watch = False
            log.warning(
                "cannot watch for changed files (%s); looking every %.0fs instead. Is sysctl "
                "fs.inotify.max_user_instances used up?", error, look_every_seconds,
            )


async def looks(every_seconds: float) -> AsyncGenerator[None, None]:
    """Yield every so often, until cancelled: for whoever would rather look than pay for being told (3 MB, measured)."""
    while True:
        await asyncio.sleep(every_seconds)
        yield


async def _told_by_the_kernel(
    directories: Iterable[Path], look_every_seconds: float
) -> "AsyncGenerator[set[tuple[Change, str]], None]":
    from watchfiles import awatch  # late: an agent only looks

    told = awatch(
        *directories,
        watch_filter=None,
        recursive=False,
        step=_QUIET_MS,
        debounce=_LONGEST_BURST_MS,
        rust_timeout=round(look_every_seconds * 1000),
        yield_on_timeout=True,
    )
    async with aclosing(told):
        async for changed in told:
            yield changed


def _there(directories: Iterable[Path]) -> frozenset[Path]:
    return frozenset(path for path in directories if path.is_dir())
