"""A batch that goes out in parts: cut where it is too large, taken apart where the far side refuses something in it.

Promises:
  * what the far side has taken is noted (traffic/taken.py), so that whatever follows sends the rest alone;
  * a number by which the far side names a bad event is a hint, no verdict: the event is sent alone, and only one that
    is refused alone is guilty. A hint that is off by one costs a request and no evidence;
  * the search ends with `until`: what was found so far is told, and the machine sends what is left.
Refuses: knowing any protocol (`send` does), and bisecting where nothing is known of a refusal: the machine does that.

Where many are bad, hints cost a request each with all that follows; after HINTS_FOLLOWED of them halves are tried.
"""

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import pairwise

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.wire.record import EventBatch
from ndcollector.traffic.size_limit import SizeLimit
from ndcollector.traffic.taken import Taken

HINTS_FOLLOWED = 4


class TooLarge(Exception):
    """A part whose body the far side finds too large."""

    def __init__(self, reason: str, response: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.response = response


class Spoiled(Exception):
    """A part that was refused because of one event in it, which `suspect` names where the far side did."""

    def __init__(self, reason: str, suspect: int | None, response: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.suspect = suspect
        self.response = response


Send = Callable[[EventBatch], Awaitable[None]]
"""Returns once the far side has the part; raises Unavailable, Rejected (of positions in the part), or those above."""


class Parts:
    """How one output sends; `clock` gives seconds and never jumps."""

    def __init__(self, send: Send, *, limit: SizeLimit, taken: Taken, clock: Callable[[], float]) -> None:
        self._send = send
        self._limit = limit
        self._taken = taken
        self._clock = clock

    async def send(self, events: EventBatch, *, until: float) -> None:
        """Return once the far side has all of them; raises Unavailable or Rejected. `until`: see the module."""
        rest = self._taken.rest(events)
        parts = [rest] if len(rest) else []
        search = _Search(events)
        while parts:
            part = parts.pop(0)
            if search.began and self._clock() >= until:
                search.verdict()
                raise Unavailable(f"one of {len(part)} events is refused, and there was no time to find out which")
            pieces = cut(part, self._limit.most_bytes(self._clock()))
            if len(pieces) > 1:
                parts = [*pieces, *parts]
                continue
            try:
                await self._send(part)
            except (TooLarge, Spoiled) as refusal:
                if isinstance(refusal, TooLarge) and len(part) > 1:
                    self._limit.refused(len(part.ndjson), self._clock())
                parts = [*search.refused(part, refusal), *parts]
            except Rejected as refusal:
                raise as_positions(refusal, part, events) from refusal
            else:
                if part is not events:
                    self._taken.note(part)
        search.verdict()
        self._taken.forget(events)


class _Search:
    """For the bad events of one batch."""

    def __init__(self, events: EventBatch) -> None:
        self._events = events
        self._hints = 0
        self._guilty: dict[int, str] = {}
        self._response: str | None = None
        self.began = False

    def refused(self, part: EventBatch, refusal: TooLarge | Spoiled) -> list[EventBatch]:
        """What to send instead of it; nothing where it was a single event, which is guilty then."""
        self.began = True
        if len(part) == 1:
            self._guilty[bisect_left(self._events.sequences, part.sequences[0])] = refusal.reason
            self._response = refusal.response
            return []
        middle = suspect = len(part) // 2
        if isinstance(refusal, Spoiled) and refusal.suspect is not None and self._hints < HINTS_FOLLOWED:
            suspect, self._hints = refusal.suspect, self._hints + 1
        is_named = suspect != middle and 0 <= suspect < len(part)
        ends = [0, suspect, suspect + 1, len(part)] if is_named else [0, middle, len(part)]
        return [part.select(range(a, b)) for a, b in pairwise(ends) if a < b]

    def verdict(self) -> None:
        """Raise Rejected with the guilty, if there are any."""
        if self._guilty:
            first = next(iter(self._guilty.values()))
            raise Rejected(first, reasons=self._guilty, response=self._response)


def cut(events: EventBatch, most_bytes: int) -> list[EventBatch]:
    """In parts of at most so many bytes, or of one event."""
    if len(events.ndjson) <= most_bytes or len(events) == 1:
        return [events]
    return [events.select(places) for places in _runs(events.lengths, most_bytes)]


def _runs(lengths: Sequence[int], most_bytes: int) -> Iterator[range]:
    start = total = 0
    for position, length in enumerate(lengths):
        if total + length > most_bytes and position > start:
            yield range(start, position)
            start, total = position, 0
        total += length
    yield range(start, len(lengths))


def as_positions(refusal: Rejected, part: EventBatch, events: EventBatch) -> Rejected:
    """The refusal of a part as one of the batch; an unknown position stays unknown, but where there is only one."""
    indexes = [0] if refusal.indexes is None and len(part) == 1 else refusal.indexes
    if indexes is None or part is events:
        return refusal
    places = {index: bisect_left(events.sequences, part.sequences[index]) for index in indexes}
    reasons = {places[index]: refusal.reasons.get(index, refusal.reason) for index in indexes}
    return Rejected(refusal.reason, reasons=reasons, response=refusal.response)
