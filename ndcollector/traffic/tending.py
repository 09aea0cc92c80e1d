"""What has to be done now and then beside the work: look for endpoints, ask how they are, read files anew.

Promises: each chore runs in a task of its own until `aclose`, pauses for as long as it says itself, and goes on after a
bug, which is logged with its traceback. Refuses: knowing what the chores are.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

_AFTER_A_BUG_SECONDS = 60.0

Chore = Callable[[], Awaitable[float]]
"""Does it once; returns after how many seconds to do it again."""


class Tending:
    """Some chores."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, chore: Chore, *, after_seconds: float = 0.0) -> None:
        """Do it from now on, the first time after so long."""
        self._tasks.append(asyncio.create_task(self._repeat(chore, after_seconds)))

    async def aclose(self) -> None:
        """Stop; safe at any time."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, chore: Chore, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                seconds = await chore()
            except Exception:  # noqa: BLE001 - whatever it is, the chore must be done again
                self._log.exception("unexpected error beside the sends, which go on. Please report this traceback")
                seconds = _AFTER_A_BUG_SECONDS
