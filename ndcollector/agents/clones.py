"""Clones: two hosts with one agent's key, told by what only one process can do.

Promises: pure and bounded; the clock comes in (monotonic seconds). Refuses: acting on it. A clone's events are taken,
because nobody knows which of the two is the real one; both show as suspected until a person has looked.

Two signs:
  * an agent makes a random run id at each start, so an older one that speaks again after a newer one was heard belongs
    to a second process. Within `GRACE_SECONDS` it does not count: what the older process had sent before it died may
    be read after the newer one's first words;
  * one run id that comes from two addresses by turns, more often than a change of network explains: a copy of a
    running machine.
"""

GRACE_SECONDS = 10.0
MAX_RUNS = 8
RETURNS = 6
"""Returns to an address it had left, within `RETURN_SECONDS`, that are a sign."""
RETURN_SECONDS = 300.0
_MAX_ADDRESSES = 4


class Runs:
    """The run ids of one agent."""

    __slots__ = ("_ids", "_newest_since")

    def __init__(self, ids: tuple[str, ...] = ()) -> None:
        """`ids` as they were kept, the newest last."""
        self._ids = ids[-MAX_RUNS:]
        self._newest_since = float("-inf")  # known from before this collector's start: no grace

    @property
    def ids(self) -> tuple[str, ...]:
        """The newest last."""
        return self._ids

    @property
    def current(self) -> str:
        """The newest; empty if none was heard."""
        return self._ids[-1] if self._ids else ""

    def is_strange(self, run_id: str, now: float) -> bool:
        """Take note of a run id; whether it is a sign."""
        if run_id not in self._ids:
            self._ids = (*self._ids[1 - MAX_RUNS :], run_id)
            self._newest_since = now
            return False
        return run_id != self._ids[-1] and now - self._newest_since > GRACE_SECONDS


class Addresses:
    """Where one agent's current run comes from."""

    __slots__ = ("_current", "_known", "_returns")

    def __init__(self) -> None:
        self._current = ""
        self._known: dict[str, float] = {}  # address → when it was last left
        self._returns: tuple[float, ...] = ()

    @property
    def current(self) -> str:
        """The last one; empty if none was heard."""
        return self._current

    @property
    def known(self) -> tuple[str, ...]:
        """Those of late."""
        return (*self._known, self._current)

    def is_strange(self, address: str, now: float) -> bool:
        """Take note of an address; whether it is a sign."""
        if address == self._current:
            return False
        if self._current:
            self._known[self._current] = now
        is_return = now - self._known.pop(address, float("-inf")) < RETURN_SECONDS
        self._current = address
        if len(self._known) > _MAX_ADDRESSES:
            del self._known[next(iter(self._known))]
        if not is_return:
            return False
        self._returns = (*self._returns[1 - RETURNS :], now)
        return len(self._returns) == RETURNS and now - self._returns[0] < RETURN_SECONDS

    def start_anew(self) -> None:
        """Another run: where the last one was says nothing about it."""
        self._known.clear()
        self._returns = ()
