"""Since when we listen: what nobody listened to is nobody's silence, and no pause to learn from.

Promises: an input counts as listening from the look that finds it so; one that is down or not configured, or any while
a spool has no room, does not. A wall clock that jumped against the monotonic one begins everything anew.
"""

import logging
import math
from collections.abc import Callable, Collection

log = logging.getLogger("sources")

JUMP_SECONDS = 5.0


class Listening:
    """`inputs` gives the names of those that take data now."""

    def __init__(
        self, inputs: Callable[[], Collection[str]], *, clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._inputs = inputs
        self._monotonic = monotonic
        self._since: dict[str, float] = {}
        self.began = clock()
        self._offset = self.began - monotonic()

    def look(self, now: float) -> bool:
        """Note who listens; True if the clock jumped since the last look."""
        offset = now - self._monotonic()
        jump, self._offset = offset - self._offset, offset
        jumped = abs(jump) > JUMP_SECONDS
        if jumped:
            log.warning("the clock jumped by %.0f s; every source's silence counts from now", jump)
            self.began = now
            self._since.clear()
        self._since = {name: self._since.get(name, now) for name in set(self._inputs())}
        return jumped

    def since(self, input_name: str) -> float:
        """Without end where it does not listen; of no input in particular since the start."""
        return self._since.get(input_name, math.inf) if input_name else self.began
