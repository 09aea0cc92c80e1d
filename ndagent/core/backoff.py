"""How long to wait before the next try: attempt in, seconds out, nothing else.

Promises: full jitter (each wait is drawn evenly from 0 to a bound that doubles), so that many senders that failed
together do not come back together. Refuses: sleeping, counting attempts, the global random generator (tenacity's wait
strategies draw from it, which is why they are not used here).
"""

from collections.abc import Callable

_MOST_DOUBLINGS = 60  # beyond any sane maximum, and keeps 2.0**attempt finite for an output that fails for months


def full_jitter(
    attempt: int, *, initial_seconds: float, maximum_seconds: float, random: Callable[[], float]
) -> float:
    """Seconds to wait after failure number `attempt` (0 is the first); `random` draws evenly from [0, 1)."""
    bound = min(maximum_seconds, initial_seconds * 2.0 ** min(attempt, _MOST_DOUBLINGS))
    return random() * bound
