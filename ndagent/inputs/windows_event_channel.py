"""One channel of the event log, read by pulling: what comes, in order, and what should have come and did not.

Promises: every record behind the place is handed out, and its place with it. Record numbers of a channel that is read
whole have no holes, so a hole is looked into (EvtQuery by number) and only what is not there is told: a gap. A log that
was cleared is told as that: its numbers began anew, or the record that announces it (1102, 104) came before the hole.
A subscription that is silent while the channel moves on is made anew, from the third time on from the channel's
beginning, passing over what was handed out. After a failure the next `open` goes on behind the last place.
Refuses: threads, the loop, what an event means. Forwarded events carry the numbers of the machine they were written on,
and a query leaves records out on purpose: there only what made room before it was read is noticed.

All methods run in one thread at a time. (Past 250 lines: opening, pulling and the order of numbers share state.)
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

from ndagent.inputs.ecs_batch import timestamp
from ndagent.inputs.windows_event_api import (
    NEXT_TIMEOUT_MS,
    NO_SUCH_PLACE,
    SLOW,
    EventLog,
    EventLogError,
    Mark,
    Subscription,
)
from ndagent.inputs.windows_event_lines import MISSING, OVERWRITTEN, UNREADABLE
from ndagent.inputs.windows_event_look import Look
from ndagent.inputs.windows_event_loss import Pulled, Reading, Teller
from ndagent.inputs.windows_event_place import Place, moment_of, record_of, written_bookmark
from ndagent.wire.winevent import parse
from ndagent.wire.winevent_ecs import event_line

EVERYTHING = "*"
FORWARDED = "forwardedevents"
DOUBT_SECONDS = 60.0
"""A record that cannot be rendered is read again, in case it was the machine: for others within so long it was not."""
SUSPECT_SECONDS = 1.0
"""A record that is there and does not come for so long is not coming."""
CLEARED_SECONDS = 3600.0
"""So long the word of another channel that this one was cleared explains a hole."""
MAX_CLEARED = 1024
"""Channels that others said were cleared."""
_STALLS_UNTIL_ANEW = 2


class Channel:
    """See the module."""

    def __init__(self, name: str, reading: Reading, log: EventLog, place: Place | None) -> None:
        self.name = name
        self.has_news = True
        self.stalls = 0
        """So often in a row it had to be subscribed to anew, because nothing came."""
        self._reading = reading
        self._log = log
        self._tell = Teller(name, reading)
        self._look = Look(name, log, place=lambda: self._place, monotonic=reading.monotonic)
        self._place = place
        self._subscription: Subscription | None = None
        self._is_local = name.lower() != FORWARDED
        self._is_numbered = self._is_local and reading.query == EVERYTHING
        self._last: int | None = None  # the newest record that was looked at, and its time
        self._moment = ""
        self._cleared_at = 0  # the last record before the log was cleared, while it is not known how numbers go on
        self._ahead: deque[Any] = deque()
        self._refill: Iterator[Any] | None = None
        self._is_refilled = False  # what is missing before the next record was looked for
        self._is_repeating = False  # what comes was handed out before
        self._failure: EventLogError | None = None
        self._no_doubt_until = 0.0
        self._count = reading.batch_events
        self._active_at = 0.0
        self._suspect: int | None = None
        self._reached: Any | None = None  # the newest record, when nothing that the query wants was missing

    @property
    def signal(self) -> Any:
        """Set when there is news; None while the channel is not subscribed to."""
        return self._subscription.signal if self._subscription else None

    def open(self) -> Pulled:
        """Subscribe. What was lost or cleared meanwhile is in the answer. Raises EventLogError."""
        pulled, before = Pulled(self.name), self._place
        try:
            if self._place is None:
                self._place = pulled.place = self._first_place()
            self._last = 0 if self._place.is_new and self._is_numbered else None
            self._cleared_at = 0 if self._place.bookmark else self._place.record
            self._moment, self._is_repeating = "", False
            after = self._look_ahead(self._place, pulled) if self._place.bookmark else None
            self._subscription = self._subscribe(after)
        except EventLogError:
            self._place = before  # what was found is found again, and told then
            raise
        self.has_news = True
        self._active_at = self._reading.monotonic()
        return pulled

    def close(self) -> None:
        """End the subscription; the next `open` goes on behind the place."""
        if self._subscription is not None:
            self._log.close(self._subscription)
        self._subscription, self._refill, self._failure, self._suspect = None, None, None, None
        self._is_refilled = False
        self._ahead.clear()

    def was_absent(self) -> list[Pulled]:
        """The channel is not there: if nothing was read of it yet, all of it will be, once it is."""
        if self._place is not None:
            return []
        self._place = Place(is_new=True)
        return [Pulled(self.name, place=self._place)]

    def make_batches_smaller(self) -> bool:
        """The events of one batch were too much for Windows; whether there is a smaller one."""
        self._count, before = max(1, self._count // 2), self._count
        return self._count < before

    def pull(self) -> Pulled:
        """Up to a batch of what came. Raises EventLogError; nothing that was in the answer is lost by that."""
        pulled = Pulled(self.name)
        if self._failure is not None or self._subscription is None:
            raise self._failure or EventLogError("EvtNext", 0, "not subscribed")
        self._log.reset(self._subscription.signal)  # before looking: what comes from now on sets it again
        taken = ""
        event: Any = None
        for _ in range(4 * self._reading.batch_events):
            try:
                one = self._next(self._subscription)
                xml = "" if one is None else self._take(one, pulled)
            except EventLogError as error:
                if event is None:
                    raise
                self._failure = error  # first what came before it
                break
            if one is None:
                self.has_news = False
                break
            if xml:
                event, taken = one, xml
            if len(pulled.lines) >= self._reading.batch_events:
                break
        if event is not None:
            self._place = pulled.place = self._place_of(event, taken)
        if event is not None or pulled.repeated:
            self._active_at, self._suspect = self._reading.monotonic(), None
            self.stalls = 0 if event is not None else self.stalls
        return pulled

    def is_stalled(self) -> bool:
        """Whether something came behind our last record and not to us. Asks only when it was quiet for a while."""
        now = self._reading.monotonic()
        if self._subscription is None or self.wait_seconds() > 0:
            return False
        self._active_at = now
        query = self._reading.query
        has_others = self._is_local and not self._is_numbered
        reached = self._log.first(self.name, newest_first=True) if has_others else None  # before the look for news
        try:
            newest = self._log.first(self.name, query, newest_first=True, timeout_ms=NEXT_TIMEOUT_MS)
        except EventLogError as error:
            if error.number != SLOW:
                raise
            return False  # the query's last match is far back, and nothing newer was seen on the way
        known = self._last if self._is_local and self._last else self._place.record if self._place else 0
        number = known if newest is None else self._log.mark(newest).record
        is_anew = number < known and query == EVERYTHING  # with another, the place may be of a record it leaves out
        if number <= known and not is_anew:
            self._suspect, self._reached = None, reached
            return False
        if self._suspect is None:
            self._suspect, self.has_news = number, True  # it may have come just now
            return False
        self.stalls += 1
        return True

    def passed(self) -> Pulled:
        """How far the channel was seen to hold nothing that the query wants: from there on a restart has to look."""
        pulled = Pulled(self.name)
        event, self._reached = self._reached, None
        if event is not None:
            place = self._place_of(event, self._log.xml(event))
            if self._place is not None and place.record > max(self._place.record, self._last or 0):
                self._place = pulled.place = place
                self._last, self._moment = place.record, place.moment
        return pulled

    def wait_seconds(self) -> float:
        """Until `is_stalled` has something to do."""
        quiet = SUSPECT_SECONDS if self._suspect is not None else self._reading.check_seconds
        return max(0.0, self._active_at + quiet - self._reading.monotonic())

    def _subscribe(self, after: str | None) -> Subscription:
        query = self._reading.query
        if after is None:
            return self._log.subscribe(self.name, query, after=None)
        try:
            return self._log.subscribe(self.name, query, after=after, strict=True)
        except EventLogError as error:
            if error.number not in NO_SUCH_PLACE:
                raise
        # It was left out by the query; and some servers say so though the record is there (vector issue 26120).
        return self._log.subscribe(self.name, query, after=after)

    def _first_place(self) -> Place:
        """Where to begin, as configured."""
        start = self._reading.start
        if start == "beginning":
            return Place()
        query = EVERYTHING
        if isinstance(start, float):
            query = f"*[System[TimeCreated[timediff(@SystemTime) > {round(start * 1000)}]]]"
        try:
            event = self._log.first(self.name, query, newest_first=True)
        except EventLogError as error:
            if error.number != SLOW or query == EVERYTHING:
                raise
            words = "%s: so long a log that the place of `start` was not found in time; reading from its beginning"
            self._reading.log.warning(words, self.name)
            return Place()
        return Place() if event is None else self._place_of(event, self._log.xml(event))

    def _place_of(self, event: Any, xml: str) -> Place:
        number = record_of(xml) if self._is_local else None
        try:
            mark = self._log.mark(event)
        except EventLogError:
            if number is None:
                raise
            mark = Mark(written_bookmark(self.name, number), number)
        return Place(mark.bookmark, mark.record if number is None else number, moment_of(xml))

    def _look_ahead(self, place: Place, pulled: Pulled) -> str | None:
        """The bookmark to subscribe after; None for the channel's beginning. Tells what became of the log since."""
        self._last, self._moment = place.record, place.moment
        record = self._look.record(place.record) if self._is_local else None
        is_same = record is not None and moment_of(record) == place.moment
        if is_same and self.stalls <= _STALLS_UNTIL_ANEW:
            return place.bookmark
        newest, oldest, is_new = self._look.edge(newest_first=True), self._look.edge(newest_first=False), False
        is_anew = newest is None or oldest is None or newest < place.record
        if is_anew or (record is not None and not is_same):
            is_new = newest is not None  # an empty log may go on with its numbers
            self._was_cleared(None, pulled, begins_anew=is_new)
        elif oldest is not None and oldest <= place.record:
            # Missing in the middle, or silent though it is there: what was handed out is passed over.
            self._is_repeating = self._is_local
            return None if self._is_local else place.bookmark
        elif oldest is not None and oldest > place.record + 1 and not self._is_numbered:
            self._tell.gap(place.record + 1, None, OVERWRITTEN, pulled)
            self._last = None
        else:
            return None  # the hole is seen when the first record comes
        self._cleared_at = place.record if is_anew else 0
        self._place = pulled.place = Place(record=self._cleared_at, is_new=is_new)  # told once
        return None

    def _next(self, subscription: Subscription) -> Any | None:
        """The next event: of a hole that is looked into, or of the subscription."""
        if self._refill is not None:
            event = next(self._refill, None)
            if event is not None:
                return event
            self._refill, self._is_refilled = None, True
        if not self._ahead:
            self._ahead.extend(self._log.next(subscription.handle, self._count))
        return self._ahead.popleft() if self._ahead else None

    def _take(self, event: Any, pulled: Pulled) -> str:
        """Add the event's line and give its XML; empty if it is no news, or not its turn yet."""
        try:
            xml = self._log.xml(event)
        except EventLogError as error:
            self._unreadable(event, error, pulled)
            return ""
        number = record_of(xml)
        clears = self._cleared_by(xml) if self._is_local and "<LogFileCleared" in xml else ""
        if self._is_local and number is not None:
            if not self._is_next(event, number, pulled):
                return ""
            self._last, self._moment, self._is_refilled = number, moment_of(xml), False
            if clears == self.name.lower():
                self._reading.cleared.pop(clears, None)  # it explains what is before it, no more
        self._add(event, xml, pulled)
        return xml

    def _add(self, event: Any, xml: str, pulled: Pulled) -> None:
        reading, why = self._reading, ""
        pulled.read_bytes += 2 * len(xml)
        if reading.wants_words:
            xml, why = self._log.words(event, xml)
        created = timestamp(reading.unix())
        line = event_line(xml, created=created, rules=reading.rules, channel=self.name, unrendered=why)
        pulled.lines.append(line)
        pulled.unrendered += bool(why)
        pulled.truncated += b'"_truncated"' in line

    def _is_next(self, event: Any, number: int, pulled: Pulled) -> bool:
        """Whether it is this record's turn: not what was handed out, nor while a hole before it is looked into."""
        last = self._last
        if last is None and not (self._is_numbered and number <= self._cleared_at):
            return True
        last = last or 0
        if number <= last:
            self._is_repeating = self._is_repeating or self._is_there(last)
            if self._is_repeating:
                pulled.repeated += 1
                return False
            self._was_cleared(None, pulled, begins_anew=True)
            last = 0
        self._is_repeating = False
        if number == last + 1 or not self._is_numbered:
            return True
        if self._refill is None and not self._is_refilled:
            self._ahead.appendleft(event)
            self._refill = self._look.between(last + 1, number - 1)
            return False
        self._hole(last + 1, number - 1, pulled)
        return True

    def _is_there(self, last: int) -> bool:
        """Whether the log still has the record that was the newest one: then lower numbers are old ones."""
        record = self._look.record(last)
        return record is not None and moment_of(record) == self._moment

    def _hole(self, first: int, last: int, pulled: Pulled) -> None:
        heard = self._reading.cleared.get(self.name.lower())
        if heard is not None and self._reading.monotonic() - heard < CLEARED_SECONDS:
            self._was_cleared(last - first + 1, pulled, begins_anew=False)
            return
        oldest = self._look.edge(newest_first=False)
        self._tell.gap(first, last, OVERWRITTEN if oldest is None or oldest > last else MISSING, pulled)

    def _was_cleared(self, unread: int | None, pulled: Pulled, *, begins_anew: bool) -> None:
        """What comes next is the first record of a new log; its number is 1 if they begin anew, else any."""
        self._reading.cleared.pop(self.name.lower(), None)
        self._tell.cleared(self._last or 0, unread, pulled)
        self._last, self._is_repeating = 0 if begins_anew and self._is_numbered else None, False

    def _cleared_by(self, xml: str) -> str:
        """The channel that this event says was cleared, in lower case; noted for whoever reads that one."""
        event = parse(xml, max_value_chars=1024)
        if event.system.get("Provider.Name") != "Microsoft-Windows-Eventlog":
            return ""
        channel = str(event.user_data.get("Channel") or event.system.get("Channel", "")).lower()
        if len(self._reading.cleared) < MAX_CLEARED:
            self._reading.cleared[channel] = self._reading.monotonic()
        return channel

    def _unreadable(self, event: Any, error: EventLogError, pulled: Pulled) -> None:
        """Windows has the record and cannot render it: in its turn its number is told instead. Raises the error."""
        now = self._reading.monotonic()
        if now >= self._no_doubt_until:
            self._no_doubt_until = now + DOUBT_SECONDS
            raise error  # out of memory, perhaps: it is read again from here on
        try:
            number = self._log.mark(event).record
        except EventLogError:
            number = (self._last or 0) + 1
        if self._is_local and not self._is_next(event, number, pulled):
            return
        self._tell.gap(number, number, UNREADABLE, pulled, why=str(error))
        if self._is_local:
            self._last, self._moment, self._is_refilled = number, "", False
