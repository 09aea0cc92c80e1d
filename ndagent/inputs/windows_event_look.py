"""Looking into a channel for records by their numbers, beside its subscription: is one there, what is in a hole.

Promises: a bookmark is tried first, which Windows finds at once; a query, for which it reads the channel from one end
to the other, only for numbers between those of the oldest and the newest record, and not again for FUTILE_SECONDS after
one that found nothing, nor for FAILED_SECONDS after one that failed before it found anything. Refuses: forwarded
events, whose numbers are another machine's.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ndagent.inputs.windows_event_api import SLOW, EventLog, EventLogError
from ndagent.inputs.windows_event_place import Place, record_of, written_bookmark

FUTILE_SECONDS = 10.0
FAILED_SECONDS = 120.0
"""Counted from the failure, and longer than the longest pause before the channel is tried again: else a query that
always takes too long would be made each time, and the channel would stand still."""


class Look:
    """Into one channel; `place` gives the place that it was read to, whose bookmark is Windows' own."""

    def __init__(
        self, channel: str, log: EventLog, *, place: Callable[[], Place | None], monotonic: Callable[[], float]
    ) -> None:
        self._channel = channel
        self._log = log
        self._place = place
        self._monotonic = monotonic
        self._futile_until = 0.0

    def edge(self, *, newest_first: bool) -> int | None:
        """The number of the oldest or the newest record; None where there are none. Raises EventLogError."""
        event = self._log.first(self._channel, newest_first=newest_first)
        return None if event is None else self._log.mark(event).record

    def record(self, number: int) -> str | None:
        """The XML of the record that has this number now; None also if that takes too long. Raises EventLogError."""
        with suppress(EventLogError):  # it is gone, or Windows does not find it so
            event = next(self._log.at(self._channel, self._bookmark(number)), None)
            if event is not None and record_of(xml := self._log.xml(event)) == number:
                return xml
        oldest, newest = self.edge(newest_first=False), self.edge(newest_first=True)
        if oldest is None or newest is None or not oldest <= number <= newest:
            return None
        try:
            event = self._log.first(self._channel, f"*[System[(EventRecordID={number})]]")
        except EventLogError as error:
            if error.number != SLOW:
                raise
            return None  # then all is read again, and what is known passed over
        return None if event is None else self._log.xml(event)

    def between(self, first: int, last: int) -> Iterator[Any]:
        """The records of a hole, as far as they are there. Raises EventLogError; asked again, it then gives up."""
        with suppress(EventLogError):
            yield from self._behind(first, last)
            return
        now, oldest = self._monotonic(), self.edge(newest_first=False)
        if now < self._futile_until or oldest is None or last < oldest:
            return
        self._futile_until = now + FUTILE_SECONDS
        query = f"*[System[(EventRecordID>={first} and EventRecordID<={last})]]"
        try:
            for event in self._log.select(self._channel, query):
                self._futile_until = 0.0
                yield event
        except EventLogError:
            if self._futile_until:  # what it did find is progress: the rest is asked for again
                self._futile_until = self._monotonic() + FAILED_SECONDS
            raise

    def _behind(self, first: int, last: int) -> Iterator[Any]:
        """The same, behind the bookmark of the record before them."""
        for event in self._log.at(self._channel, self._bookmark(first - 1), offset=1):
            number = record_of(self._log.xml(event))
            if number is None or not first <= number <= last:
                return
            yield event

    def _bookmark(self, number: int) -> str:
        place = self._place()
        is_its_own = place is not None and place.record == number and place.bookmark
        return place.bookmark if place is not None and is_its_own else written_bookmark(self._channel, number)
