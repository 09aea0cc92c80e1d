"""The dispatcher that runs now: begun again after a failure, ended and begun anew by a reload.

Promises: `now` is the one that serves, so nobody keeps one that has ended; a failure that nobody foresaw costs a pause
with jitter, and cursors are on disk. Refuses: building (who makes it knows outputs and spools).
"""

import asyncio
from collections.abc import Callable

from ndagent.core.dispatcher import Dispatcher
from ndagent.core.supervision import Supervised
from ndagent.core.waiting import first


class Dispatching:
    """One per process. `make` gives a dispatcher for the outputs and spools as they are then; one runs once."""

    def __init__(self, make: Callable[[], Dispatcher]) -> None:
        self._make = make
        self._now: Dispatcher | None = None
        self._running: Supervised | None = None

    @property
    def now(self) -> Dispatcher:
        """The one that serves; there from `start` on."""
        assert self._now is not None  # noqa: S101 - whoever asks comes after `start`
        return self._now

    @property
    def is_well(self) -> bool:
        """Whether it runs, and not only because it is about to be tried again."""
        return self._running is not None and self._running.failure is None

    def start(self) -> None:
        """Make one and run it until `stop`."""
        self._now = self._make()
        self._running = Supervised("outputs", self._run)

    async def stop(self, drain_seconds: float, *, hurry: asyncio.Event | None = None) -> None:
        """Deliver for at most so long, or until `hurry` is set, and end; nothing if it was never started."""
        if self._running is None:
            return
        draining = self.now.drain(drain_seconds)
        await (draining if hurry is None else first(draining, hurry.wait()))
        await self._running.stop()

    async def _run(self) -> None:
        try:
            await self.now.run()
        except Exception:
            self._now = self._make()
            raise
