"""Which sources are to be written, and when: what a person or an alert depends on at once, figures within a minute.

Promises: for figures a row is written once a minute at most, SAVE_AT_ONCE of them at a time; bounded by the table.
"""

from collections import OrderedDict
from collections.abc import Sequence

from ndcollector.sources.table import Key

SAVE_EVERY_SECONDS = 60.0
SAVE_AT_ONCE = 1000


class Unsaved:
    """Keys only; whoever writes looks up what stands in the table then."""

    def __init__(self) -> None:
        self._later: OrderedDict[Key, float] = OrderedDict()  # when it is to be saved, earliest first
        self._now: set[Key] = set()
        self._gone: set[Key] = set()

    def soon(self, key: Key, now: float) -> None:
        """Within a minute."""
        if key not in self._later:
            self._later[key] = now + SAVE_EVERY_SECONDS

    def at_once(self, key: Key) -> None:
        """With the next transaction."""
        self._now.add(key)

    def everything_at_once(self) -> None:
        """All of it with the next transaction: the collector stops."""
        self._now.update(self._later)
        self._later.clear()

    def not_after(self, now: float) -> None:
        """The clock was set back: nothing waits for a minute that lies ahead of it."""
        latest = now + SAVE_EVERY_SECONDS
        self._later = OrderedDict((key, min(due, latest)) for key, due in self._later.items())

    def is_gone(self, key: Key) -> None:
        """Its row is to be deleted."""
        self._gone.add(key)
        self._later.pop(key, None)
        self._now.discard(key)

    def take(self, now: float) -> tuple[Sequence[Key], Sequence[Key]]:
        """What is to be written now, and deleted; it counts as done."""
        keys, gone = [*self._now], [*self._gone]
        while self._later and len(keys) < SAVE_AT_ONCE and next(iter(self._later.values())) <= now:
            keys.append(self._later.popitem(last=False)[0])
        self._now.clear()
        self._gone.clear()
        return list(dict.fromkeys(keys)), gone
