"""How a part of the daemon fails to start, and how one that runs is kept running.

Promises: a Supervised part that fails is started again after a pause with jitter, and the others go on; what the
machine is to blame for (OSError) is said in words once a minute, what we are to blame for with its traceback; after
`stop` it never comes back. Refuses: restarting a part that ended well.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from ndagent.core import messages
from ndagent.core.backoff import full_jitter
from ndagent.core.log import Throttle

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_SAY_EVERY_SECONDS = 60.0


class StartError(Exception):
    """A part cannot start; the text names the thing, the place and the remedy."""


def in_words(error: Exception) -> str:
    """An error as people read it: of an OSError the file and the reason, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


class Supervised:
    """One part, running from now on in a task of its own."""

    def __init__(
        self, name: str, run: Callable[[], Awaitable[None]], *, fields: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`fields` are given with each line about it."""
        self.name = name
        self._fields = {**messages.PART_FAILED, **fields}
        self.failure: str | None = None
        """Why it does not run at the moment; None while it does."""
        self._run_once = run
        self._clock = asyncio.get_running_loop().time
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=self._clock)
        self._task = asyncio.create_task(self._run(), name=name)

    @property
    def has_ended(self) -> bool:
        """Whether it will never run again: it returned, or was stopped."""
        return self._task.done()

    async def stop(self, patience_seconds: float | None = None) -> bool:
        """Cancel it and wait; after `patience_seconds` cancel once more, which means: at once. False if that was so."""
        self._task.cancel()
        _, late = await asyncio.wait({self._task}, timeout=patience_seconds)
        if late:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=patience_seconds)
        return not late

    async def _run(self) -> None:
        attempt = 0
        while True:
            began = self._clock()
            try:
                return await self._run_once()
            except Exception as error:
                if self._is_stopping():
                    log.exception("%s failed while it stopped; please report this traceback", self.name)
                    return None
                self._report(error)
            attempt = 0 if self._clock() - began > _LONGEST_PAUSE_SECONDS else attempt
            await asyncio.sleep(_pause_seconds(attempt))
            attempt += 1
            self.failure = None

    def _report(self, error: Exception) -> None:
        self.failure = in_words(error)
        if not isinstance(error, OSError):
            log.error(
                "%s failed and is started again; please report this traceback", self.name, exc_info=error,
                extra=self._fields,
            )
        elif self._throttle.allow(self.failure) is not None:
            log.error("%s: %s; it is started again by itself", self.name, self.failure, extra=self._fields)

    @staticmethod
    def _is_stopping() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0


def _pause_seconds(attempt: int) -> float:
    return full_jitter(
        attempt, initial_seconds=_FIRST_PAUSE_SECONDS, maximum_seconds=_LONGEST_PAUSE_SECONDS, random=random.random
    )
