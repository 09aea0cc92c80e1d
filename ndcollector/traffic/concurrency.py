"""How many requests at a time an endpoint bears: additive increase, multiplicative decrease.

    limit + 1     a round in which all places were taken and answers came as fast as before
    limit * 0.9   a round whose answers took longer than usual (TOLERANCE times the running mean)
    limit / 2     a round in which the endpoint pushed back: 429, 503, a timeout

A round is as long as a request takes, so that each change is judged by requests that were made after it.

Promises: never below `minimum` nor above `maximum`; time is passed in. The idea is Vector's adaptive request
concurrency and TCP's before it. Refuses: waiting (pool.py does), counting what the endpoint did not answer for its own
reasons (a cancelled request says nothing).
"""

from ndcollector.traffic.config import ConcurrencyConfig

_START = 4
TOLERANCE = 2.5
"""Batches differ in size by as much, and a collection of garbage there must not halve the rate here."""

_SMOOTHING = 0.3
_SHORTEST_ROUND_SECONDS = 0.05
_SLOWER, _PUSHED_BACK = 0.9, 0.5


class Concurrency:
    """One endpoint's places."""

    def __init__(self, config: ConcurrencyConfig) -> None:
        self._config = config
        self.limit = float(min(max(_START, config.minimum), config.maximum) if config.adaptive else config.maximum)
        self.outstanding = 0
        self._usual_seconds = 0.0
        self._round_ends_at = 0.0
        self._count = 0
        self._seconds = 0.0
        self._was_full = False
        self._was_pushed_back = False

    @property
    def has_room(self) -> bool:
        """Whether one more request may be made."""
        return self.outstanding < int(self.limit)

    def begin(self) -> None:
        """A request is made."""
        self.outstanding += 1
        self._was_full = self._was_full or not self.has_room

    def withdrawn(self) -> None:
        """A request was given up by us: nothing is known."""
        self.outstanding -= 1

    def done(self, seconds: float | None, *, pushed_back: bool, now: float) -> None:
        """A request was answered after so long, or failed (None: how long that took says nothing)."""
        self.outstanding -= 1
        if not self._config.adaptive:
            return
        if seconds is not None:
            self._count += 1
            self._seconds += seconds
        self._was_pushed_back = self._was_pushed_back or pushed_back
        if now >= self._round_ends_at:
            self._end_round(now)

    def _end_round(self, now: float) -> None:
        usual = self._usual_seconds
        mean = self._seconds / self._count if self._count else usual
        usual = usual or mean
        if self._was_pushed_back:
            self._set(self.limit * _PUSHED_BACK)
        elif mean > TOLERANCE * usual:
            self._set(self.limit * _SLOWER)
        elif self._was_full:
            self._set(self.limit + 1)
        self._usual_seconds = usual + _SMOOTHING * (mean - usual)
        self._round_ends_at = now + max(mean, _SHORTEST_ROUND_SECONDS)
        self._count, self._seconds = 0, 0.0
        self._was_full = self._was_pushed_back = False

    def _set(self, limit: float) -> None:
        self.limit = min(max(limit, self._config.minimum), self._config.maximum)
