"""What devices' clocks mean: wall time and zone to UTC, the year a device left out, and the text of an instant.

Promises:
  * an instant that exists comes out as RFC 3339 UTC with the fraction as sent (up to 9 digits; none stays none);
    one that cannot exist (30 February, 25:00, year 0) is None and the caller uses the receive time;
  * second 60 becomes 59.999999: RFC 5424 §6.2.3 forbids it, devices send it on leap seconds;
  * a date without a year gets the latest year that puts it at most SLACK_SECONDS after its reception, which turns
    December/January right in both directions;
  * a wall time that a zone has twice (clock set back) is the one nearer to the reception; one that it skips (clock set
    forward) counts from the offset before the change.
Refuses: clocks; the receive time always comes in as an argument.

Both codec twins work on the same Zone tables (changes from 1970 to 2100, found by asking zoneinfo), so that they cannot
disagree with each other about a zone.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache, lru_cache
from zoneinfo import ZoneInfo

SLACK_SECONDS = 3 * 86400
"""How far in the future a date without a year may lie before it is taken to be last year's."""

SECONDS_CACHED = 4096
"""Seconds whose reading and writing is remembered: the messages of one second say the same."""

_DAY = 86400
_WEEK = 7 * _DAY
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - instants here are counted in UTC throughout
_EPOCH_ORDINAL = _EPOCH.toordinal()
_FIRST, _LAST = 0, (date(2100, 1, 1).toordinal() - _EPOCH_ORDINAL) * _DAY
_EVER = -(2**62)  # a start that is before every instant

_HOURS = {
    -10: "HST", -9: "AKST", -8: "PST AKDT", -7: "MST PDT", -6: "CST MDT", -5: "EST CDT", -4: "EDT AST",
    -3: "ADT BRT ART", 0: "UTC GMT UT WET Z", 1: "CET MET WEST BST", 2: "EET CEST MEST SAST",
    3: "MSK EEST TRT", 4: "GST", 5: "PKT", 7: "WIB ICT",
    8: "AWST HKT SGT PHT", 9: "JST KST", 10: "AEST", 11: "AEDT", 12: "NZST", 13: "NZDT",
}  # fmt: skip
ABBREVIATIONS: dict[bytes, int] = {n.encode(): h * 3600 for h, names in _HOURS.items() for n in names.split()}
"""Zone abbreviations and their seconds east of UTC. A zone's own go before these: IST in Asia/Jerusalem."""
ABBREVIATIONS |= {b"IST": 19800, b"ACST": 34200, b"ACDT": 37800, b"NST": -12600, b"NDT": -9000}

POSIX_ZONES = {
    "EST5EDT": "America/New_York", "CST6CDT": "America/Chicago", "MST7MDT": "America/Denver",
    "PST8PDT": "America/Los_Angeles",
}  # fmt: skip
"""Names that are abbreviation and rule in one; devices send them as they stand in their configuration. With the place
whose zone it is: since 2024b they are only links, which Debian 13 keeps in a package of their own (tzdata-legacy)."""


@dataclass(frozen=True, slots=True, eq=False)
class Zone:
    """Offsets from UTC in seconds: `offsets[i]` holds from `starts[i]` (Unix seconds) until the next start."""

    starts: "array[int]"  # 'q'
    offsets: "array[int]"  # 'q'
    abbreviations: dict[bytes, int]

    def offset_at(self, utc: int) -> int:
        """Seconds east of UTC at this instant."""
        return self.offsets[bisect_right(self.starts, utc) - 1]

    def to_utc(self, wall: int, near: int) -> int:
        """The instant at which a clock of this zone shows `wall` (Unix seconds as if it were UTC)."""
        before, after = self.offset_at(wall - _DAY), self.offset_at(wall + _DAY)
        first, second = wall - before, wall - after
        if before == after:
            return first
        first_exists, second_exists = self.offset_at(first) == before, self.offset_at(second) == after
        if first_exists and second_exists:
            return second if abs(second - near) < abs(first - near) else first
        return second if second_exists else first


@cache  # at most one per minute of offset in either direction
def fixed_zone(offset: int) -> Zone:
    """A zone that never changes, `offset` seconds east of UTC."""
    return Zone(array("q", [_EVER]), array("q", [offset]), ABBREVIATIONS)


@cache
def load_zone(name: str) -> Zone:
    """The zone with this IANA name. Raises ZoneInfoNotFoundError or ValueError (a KeyError resp. ValueError)."""
    zone = ZoneInfo(POSIX_ZONES.get(name, name))

    def local(utc: int) -> tuple[int, str]:
        moment = datetime.fromtimestamp(utc, zone)
        return int((moment.utcoffset() or timedelta()).total_seconds()), moment.tzname() or ""

    starts, offsets, own = array("q", [_EVER]), array("q", [local(_FIRST)[0]]), {}
    low = _FIRST
    for high in range(_FIRST + _WEEK, _LAST, _WEEK):
        offset, abbreviation = local(high)
        if offset != offsets[-1]:
            starts.append(_first_change(low, high, lambda utc: local(utc)[0]))
            offsets.append(offset)
        if abbreviation.isalpha() and len(abbreviation) <= 8:
            own[abbreviation.encode()] = offset
        low = high
    return Zone(starts, offsets, ABBREVIATIONS | own)


def _first_change(low: int, high: int, offset_at: Callable[[int], int]) -> int:
    """The first second in (low, high] with another offset than at low; at high it is another."""
    was = offset_at(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if offset_at(middle) == was else (low, middle)
    return high


def wall_seconds(year: int, month: int, day: int, *, clock: tuple[int, int, int]) -> int | None:
    """A date and (hour, minute, second) as seconds since 1970 on that clock; None where there is no such time."""
    hour, minute, second = clock
    if hour > 23 or minute > 59 or second > 60:
        return None
    try:
        days = date(year, month, day).toordinal() - _EPOCH_ORDINAL
    except ValueError:
        return None
    return days * _DAY + hour * 3600 + minute * 60 + min(second, 59)


def infer_year(month: int, day: int, *, clock: tuple[int, int, int], zone: Zone, near: int) -> int | None:
    """The instant of a date without a year, seen from its reception at `near` (Unix seconds)."""
    this_year = (_EPOCH + timedelta(seconds=near)).year
    for year in (this_year + 1, this_year, this_year - 1):
        wall = wall_seconds(year, month, day, clock=clock)
        if wall is not None and (utc := zone.to_utc(wall, near)) <= near + SLACK_SECONDS:
            return utc
    return None


def instant_text(utc: int, *, second: int, fraction: bytes) -> bytes | None:
    """RFC 3339 UTC; `second` is the one the device wrote (60 is special), `fraction` its digits after the point."""
    text = _second_text(utc)
    if text is None:
        return None
    if second == 60:
        fraction = b"999999"
    return text + b"." + fraction[:9] + b"Z" if fraction else text + b"Z"


@lru_cache(SECONDS_CACHED)
def _second_text(utc: int) -> bytes | None:
    try:
        return (_EPOCH + timedelta(seconds=utc)).isoformat().encode()
    except OverflowError:
        return None


def received_text(received_at_ns: int) -> bytes:
    """The receive time as RFC 3339 UTC, always with microseconds."""
    moment = _EPOCH + timedelta(microseconds=received_at_ns // 1000)
    return moment.isoformat(timespec="microseconds").encode() + b"Z"
