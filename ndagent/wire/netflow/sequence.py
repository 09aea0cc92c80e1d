"""What an exporter numbered and we never saw: gaps, later repaired by what was only late.

The unit differs: NetFlow v5 numbers flows, v9 datagrams (RFC 3954 §5.1), IPFIX data records (RFC 7011 §3.1). In each
the number in a header plus what is in the datagram is the next header's number, modulo 2**32.

Promises: `missing - late` is what is lost; both only grow. An exporter that begins anew (its uptime or its number falls
back while its clock goes on, or, where there is no uptime, its number leaps to near zero) has no gap; nor has one
about whose last datagram we could not say how much was in it.
Refuses: forgetting that numbers wrap.
"""

from typing import NamedTuple

_WRAP = 2**32
LATE_WITHIN = 4096
"""A number that lies so little behind the expected one is late; one further behind is a new beginning."""
UPTIME_WRAPS_WITHIN_MS = 3600_000
"""Milliseconds of uptime wrap after 49 days: one that falls from the last to the first hour of them goes on."""


FIRST_NUMBERS = 65536
"""IPFIX tells no uptime: a number below this one, further ahead than as much again, is a beginning and no gap."""


class Passed(NamedTuple):
    """What one datagram says about the way."""

    missing: int = 0
    late: int = 0
    is_restart: bool = False


class Sequence:
    """The numbers of one exporter's observation domain."""

    __slots__ = ("_expected", "_lost", "_second", "_uptime_ms")

    def __init__(self) -> None:
        self._expected: int | None = None
        self._lost = 0  # missing and not late yet: no more than that can come late
        self._second = 0
        self._uptime_ms: int | None = None

    def take(self, number: int, count: int | None, *, second: int, uptime_ms: int | None) -> Passed:
        """`number` is the header's, `count` what the datagram adds to it (None: not known), `second` its clock."""
        expected = self._expected
        ahead = 0 if expected is None else (number - expected) % _WRAP
        if expected is not None and self._is_late(ahead, second):
            found = min(self._lost, 1 if count is None else count)
            self._lost -= found
            return Passed(late=found)
        restarted = expected is not None and (
            ahead >= _WRAP // 2
            or (uptime_ms is None and number < FIRST_NUMBERS < ahead)
            or self._fell_back(uptime_ms, second)
        )
        self._expected = None if count is None else (number + count) % _WRAP
        self._second, self._uptime_ms = second, uptime_ms
        if restarted:
            self._lost = 0
            return Passed(is_restart=True)
        self._lost += ahead
        return Passed(missing=ahead)

    def _is_late(self, ahead: int, second: int) -> bool:
        """A little behind, and written no later than what we saw: a restart takes its time."""
        return ahead >= _WRAP - LATE_WITHIN and second <= self._second

    def _fell_back(self, uptime_ms: int | None, second: int) -> bool:
        before = self._uptime_ms
        if uptime_ms is None or before is None or uptime_ms >= before or second < self._second:
            return False
        return not (before > _WRAP - UPTIME_WRAPS_WITHIN_MS and uptime_ms < UPTIME_WRAPS_WITHIN_MS)
