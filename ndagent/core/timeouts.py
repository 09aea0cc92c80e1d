"""asyncio.timeout() inside a task that is being cancelled, as Python has it since 3.11.3. Debian 12 has 3.11.2.

There a limit that runs out while a cancelled task cleans up raises CancelledError and not TimeoutError, so that whoever
catches TimeoutError to go on with the clean-up never does: connections stay open, positions are not saved
(https://github.com/python/cpython/issues/102780).

Promises: it is mended for all of the process, other people's libraries too, from the import of `ndagent.core` on.
Refuses: to touch a Python that has it right.
"""

import asyncio
from types import TracebackType
from typing import Any


def mend() -> None:
    """Do it, where it is needed."""
    if "cancelling" not in asyncio.Timeout.__aenter__.__code__.co_names:
        _replace(asyncio.Timeout)


def _replace(timeout: Any) -> None:
    enter, leave = timeout.__aenter__, timeout.__aexit__

    async def __aenter__(self: Any) -> Any:  # noqa: N807 - takes the place of that one
        entered = await enter(self)
        self._cancels_before = self._task.cancelling()
        return entered

    async def __aexit__(  # noqa: N807 - takes the place of that one
        self: Any, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        handled: bool | None = await leave(self, kind, error, traceback)
        has_new_cancel = self._task.cancelling() > self._cancels_before
        if self.expired() and kind is asyncio.CancelledError and not has_new_cancel:
            raise TimeoutError from error
        return handled

    timeout.__aenter__, timeout.__aexit__ = __aenter__, __aexit__
