"""How often a source speaks, learned: by the hour of the week, and robust against bursts, nights and outages.

A moment picked at random falls into a long pause rather than into a short one, so pauses count by their length. What is
learned is their mean in the logarithm, exp(Σ pause · ln pause / Σ pause). Of a source that speaks every minute that is
a minute; of one that sends fifty messages within a minute and then rests for half an hour it is nearly the half hour:
bursts do not hide pauses. And of one that speaks every second and was dead for ten minutes it is three seconds.

    recent   over the last hour or so: known after a few pauses, follows a change soon
    hours    one figure for each of the 168 hours of a week (UTC), each week moved a third of the way, in the logarithm,
             so that one outage of a day makes of a second not a day but a minute

What is usual at a moment is the larger of the two; at an hour that was never lived through, the largest figure of the
same hour on other days stands in. Nights, weekends and weekly jobs are therefore part of the rhythm after one of each.

Promises: pure; 1 KB for a source that has been there for an hour, nothing before; constant work per message heard, and
at most one step per hour of silence. Refuses: clocks, and knowing when nobody listened: callers leave such pauses out.
"""

import math
from array import array

HOUR_SECONDS = 3600
HOURS = 168
_RECENT_SECONDS = 3600.0
_SHARE = 0.3
_ENOUGH_SECONDS = 900.0
"""An hour of which less was heard says nothing about that hour."""
_LEAST_SECONDS = 1.0
"""Sources are looked at once a second; also what keeps the logarithm finite."""


class Rhythm:
    """Of one source. Times are Unix seconds."""

    __slots__ = ("_hour", "_logs", "_sum", "hours", "pauses", "recent_logs", "recent_sum")

    def __init__(self) -> None:
        self.pauses = 0
        self.recent_sum = self.recent_logs = 0.0  # Σ pause and Σ pause · ln pause, faded
        self.hours: array[float] | None = None  # HOURS seconds; 0 = never lived through
        self._hour = -1  # that _sum and _logs are of
        self._sum = self._logs = 0.0

    def heard(self, last: float, now: float) -> None:
        """It spoke at both times and not in between, and we listened."""
        pause = now - last
        if pause <= 0:
            return
        self.pauses += 1
        fade, weight = math.exp(-pause / _RECENT_SECONDS), min(pause, _RECENT_SECONDS)
        logarithm = math.log(max(pause, _LEAST_SECONDS))
        self.recent_sum = self.recent_sum * fade + weight
        self.recent_logs = self.recent_logs * fade + weight * logarithm
        self._spread(last, now, logarithm)

    def usual(self, since: float, now: float) -> float:
        """The longest of the usual pauses at any time in between; 0 where nothing was learned yet."""
        recent = math.exp(self.recent_logs / self.recent_sum) if self.recent_sum else 0.0
        if self.hours is None:
            return recent
        first, last = int(min(since, now) // HOUR_SECONDS), int(now // HOUR_SECONDS)
        passed = range(max(first, last - HOURS + 1), last + 1)
        return max(recent, *map(self._usual_at, passed))

    def _usual_at(self, hour: int) -> float:
        assert self.hours is not None  # noqa: S101 - `usual` looked
        known = self.hours[hour % HOURS]
        return known or max(self.hours[hour % 24 :: 24])

    def _spread(self, last: float, now: float, logarithm: float) -> None:
        """Give each hour its share of the pause; hours that are over are learned from."""
        hour, end = int(last // HOUR_SECONDS), int(now // HOUR_SECONDS)
        if end - hour > HOURS:  # a week and more: every hour of the week alike
            hour, last = end - HOURS, float((end - HOURS) * HOUR_SECONDS)
        while True:
            if hour != self._hour:
                self._close()
                self._hour = hour
            share = min(now, (hour + 1) * HOUR_SECONDS) - last
            self._sum += share
            self._logs += share * logarithm
            if hour == end:
                return
            hour += 1
            last = float(hour * HOUR_SECONDS)

    def _close(self) -> None:
        """The hour is over: learn from it."""
        seconds, logs = self._sum, self._logs
        self._sum = self._logs = 0.0
        if seconds < _ENOUGH_SECONDS:
            return
        if self.hours is None:
            self.hours = array("f", bytes(4 * HOURS))
        found = logs / seconds
        place = self._hour % HOURS
        known = self.hours[place]
        self.hours[place] = math.exp(math.log(known) * (1 - _SHARE) + found * _SHARE if known else found)
