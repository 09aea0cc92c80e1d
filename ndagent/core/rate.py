"""A token bucket that makes its caller wait.

Promises: never more than `burst` and `per_second` times the time that passed; who asks for more than a burst waits for
the difference; a wait that is cancelled gives back what it asked for. Refuses: refusing.
"""

from collections.abc import Awaitable, Callable


class Rate:
    """One bucket; `clock` gives seconds and never jumps. Callers that wait at the same time are served in turn."""

    def __init__(
        self,
        per_second: float,
        *,
        burst: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._clock = clock
        self._sleep = sleep
        self._at = clock()

    async def take(self, amount: float = 1.0) -> None:
        """Return when so much more may pass."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        self._tokens -= amount
        if self._tokens < 0:
            try:
                await self._sleep(-self._tokens / self._per_second)
            except BaseException:
                self._tokens += amount
                raise
