"""Data sets that came before their template: kept for a while, bounded in bytes, the oldest out first.

UDP reorders, and a collector that starts between two announcements has nothing to read records with.

Promises: what is put is taken or dropped, once. Refuses: clocks (seconds come in), decoding.
"""

from collections import OrderedDict, deque
from typing import NamedTuple

from ndagent.wire.netflow.packets import Header

OVERHEAD_BYTES = 600
"""What a set costs besides its content."""

Key = tuple[str, int, int, int]
"""Exporter's address, version, domain, template id."""


class Waiting(NamedTuple):
    """A data set and the header it came under."""

    key: Key
    header: Header
    content: bytes
    until: float


class Held:
    """See the module."""

    def __init__(self, *, most_bytes: int, seconds: float) -> None:
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._next = 0
        self._sets: OrderedDict[int, Waiting] = OrderedDict()  # by the number they came as
        self._numbers: dict[Key, deque[int]] = {}
        self.held_bytes = 0

    def put(self, key: Key, header: Header, content: bytes, *, now: float) -> int:
        """Keep it; how many sets had to go for that."""
        self._sets[self._next] = Waiting(key, header, content, now + self._seconds)
        self._numbers.setdefault(key, deque()).append(self._next)
        self._next += 1
        self.held_bytes += len(content) + OVERHEAD_BYTES
        dropped = 0
        while self.held_bytes > self._most_bytes:
            self._drop_oldest()
            dropped += 1
        return dropped

    def take(self, key: Key) -> list[Waiting]:
        """All that wait for this template, oldest first; they are the caller's now."""
        found = [self._sets.pop(number) for number in self._numbers.pop(key, ())]
        self.held_bytes -= sum(len(one.content) + OVERHEAD_BYTES for one in found)
        return found

    def expire(self, now: float) -> int:
        """Drop what has waited long enough; how many sets that were."""
        dropped = 0
        while self._sets and next(iter(self._sets.values())).until <= now:
            self._drop_oldest()
            dropped += 1
        return dropped

    def clear(self) -> int:
        """Drop all; how many sets that were."""
        dropped = len(self._sets)
        self._sets.clear()
        self._numbers.clear()
        self.held_bytes = 0
        return dropped

    def _drop_oldest(self) -> None:
        _, gone = self._sets.popitem(last=False)
        numbers = self._numbers[gone.key]
        numbers.popleft()  # both are in the order of `put`
        if not numbers:
            del self._numbers[gone.key]
        self.held_bytes -= len(gone.content) + OVERHEAD_BYTES
