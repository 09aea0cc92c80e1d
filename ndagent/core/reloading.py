"""Reloads that somebody asked for: by a signal, a saved file, or a command that waits for the outcome.

Promises: who asks while a reload runs gets the outcome of the next one, because that one may have read the files before
they were what they are now; requests that come together are one reload. Refuses: reloading (the composition root does).
"""

import asyncio
from collections.abc import Awaitable, Callable

Reload = Callable[[], Awaitable[str | None]]
"""Does it; why it was refused, None where it was done."""


class ReloadRequests:
    """`wanted` is set while somebody wants one."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self._waiting: list[asyncio.Future[str | None]] = []

    def ask(self) -> None:
        """Want one, and do not wait for it."""
        self.wanted.set()

    async def outcome(self) -> str | None:
        """Want one; returns once it is over: why it was refused, None where it was done."""
        waiting: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self.ask()
        return await waiting

    async def serve(self, reload: Reload) -> None:
        """Reload once for all who asked until now, and tell those who wait."""
        self.wanted.clear()
        waiting, self._waiting = self._waiting, []
        _tell(waiting, await reload())

    def give_up(self, why: str) -> None:
        """There will be none any more."""
        waiting, self._waiting = self._waiting, []
        _tell(waiting, why)


def _tell(waiting: "list[asyncio.Future[str | None]]", refusal: str | None) -> None:
    for one in waiting:
        if not one.done():  # it may have hung up
            one.set_result(refusal)
