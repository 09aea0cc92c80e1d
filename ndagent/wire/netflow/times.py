"""When a flow began and ended: event.start, event.end and event.duration, out of whichever elements say so.

Promises: milliseconds where the exporter has no finer ones, microseconds where it has; a duration only where both ends
are known and in their order; what no calendar has is left out. Columns of sound milliseconds, which is nearly all that
there is, are written without a call per flow. Refuses: clocks; uptimes count from what header or options say.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from operator import add, neg, sub
from typing import Any, NamedTuple

from ndagent.wire.netflow.elements import IANA, Kind
from ndagent.wire.netflow.parts import Context, Maker, Part, Stepped, Values, mapped
from ndagent.wire.netflow.steps import Op, Step
from ndagent.wire.netflow.values import LAST_SECOND, SECONDS, ntp_microseconds, time_text

_STARTS = ((152, Kind.MILLISECONDS), (154, Kind.MICROSECONDS), (156, Kind.NANOSECONDS), (150, Kind.SECONDS))
_ENDS = ((153, Kind.MILLISECONDS), (155, Kind.MICROSECONDS), (157, Kind.NANOSECONDS), (151, Kind.SECONDS))
_WRAP = 2**32
LAST_MS = LAST_SECOND * 1000
_FRACTIONS = tuple(b".%03dZ" % millisecond for millisecond in range(1000))
_SPAN = b',"start":"%b%b","end":"%b%b","duration":%d'
_DURATION = b',"duration":%d'

Times = Sequence[int | None]
"""None: not known."""
_Read = Callable[[Sequence[Any], Context], Times]


class _Moments(NamedTuple):
    """A column of instants: Unix milliseconds, or microseconds where the exporter is so exact."""

    read: _Read
    is_exact: bool = False
    step: Step | None = None  # the twin's for one column: Op.SPAN or Op.UPTIME_SPAN

    def microseconds(self, columns: Sequence[Any], context: Context) -> Times:
        """In either case."""
        found = self.read(columns, context)
        return found if self.is_exact else [None if at is None else at * 1000 for at in found]


class FlowTimes:
    """For one template; `used` are the columns that `part` tells."""

    def __init__(self, places: Mapping[tuple[int, int], int], *, has_uptime: bool) -> None:
        """`has_uptime`: the context will say the exporter's uptime."""
        self._places = places
        self._has_uptime = has_uptime
        self.used: set[int] = set()
        self.part = Part(b"%b", (maker,)) if (maker := self._maker()) is not None else Part(b"", ())
        """Members of `event`, each with the comma before it."""

    def _maker(self) -> Maker | None:
        start, end = self._moments(_STARTS, 158, 22), self._moments(_ENDS, 159, 21)
        length = self._at(161) if start is None or end is None else None
        if start is not None and end is not None:
            return _both(start, end)
        if start is not None:
            return _from(start, length)
        if end is not None:
            return _until(end, length)
        return None if length is None else mapped(length, lambda milliseconds: _DURATION % (milliseconds * 1_000_000))

    def _at(self, number: int) -> int | None:
        at = self._places.get((IANA, number))
        if at is not None:
            self.used.add(at)
        return at

    def _moments(self, absolute: Sequence[tuple[int, Kind]], delta: int, uptime: int) -> _Moments | None:
        """Out of the first element that is there."""
        for number, kind in absolute:
            at = self._at(number)
            if at is not None:
                return _READ[kind](at)
        at = self._at(delta)
        if at is not None:
            return _Moments(lambda columns, context: [context.export_us - one for one in columns[at]], is_exact=True)
        return self._of_uptime(uptime)

    def _of_uptime(self, number: int) -> _Moments | None:
        at, boot = self._places.get((IANA, number)), self._places.get((IANA, 160))
        if at is None:
            return None
        if self._has_uptime or boot is not None:
            self.used.add(at)  # else it stays told as it is: until somebody says when it began, it is no time
        if boot is not None:
            return _Moments(lambda columns, _: list(map(add, columns[boot], columns[at])))
        return _Moments(
            lambda columns, context: _since_boot(columns[at], context), step=Step(Op.UPTIME_SPAN, (at,))
        )


_READ: Mapping[Kind, Callable[[int], _Moments]] = {
    Kind.SECONDS: lambda at: _Moments(lambda columns, _: [value * 1000 for value in columns[at]]),
    Kind.MILLISECONDS: lambda at: _Moments(lambda columns, _: columns[at], step=Step(Op.SPAN, (at,))),
    Kind.MICROSECONDS: lambda at: _Moments(lambda columns, _: list(map(ntp_microseconds, columns[at])), is_exact=True),
    Kind.NANOSECONDS: lambda at: _Moments(lambda columns, _: list(map(ntp_microseconds, columns[at])), is_exact=True),
}


def _since_boot(values: Sequence[int], context: Context) -> Times:
    """Milliseconds of the exporter's uptime, which wrap after 49 days; a flow may end a little after the header."""
    if context.uptime_ms is not None:
        now, export_ms = context.uptime_ms, context.export_us // 1000
        if now - min(values) < _WRAP // 2 and max(values) - now < _WRAP // 2:
            return [export_ms - now + value for value in values]
        return [export_ms - ((now - value + _WRAP // 2) % _WRAP - _WRAP // 2) for value in values]
    if context.boot_us is not None:
        boot_ms = context.boot_us // 1000
        return [boot_ms + value for value in values]
    return [None] * len(values)


# ---- texts


def _both(start: _Moments, end: _Moments) -> Maker:
    if not start.is_exact and not end.is_exact:
        return _of_milliseconds(start, end)
    return lambda columns, context: map(_span, start.microseconds(columns, context), end.microseconds(columns, context))


def _of_milliseconds(start: _Moments, end: _Moments) -> Maker:
    def made(columns: Sequence[Any], context: Context) -> Values:
        return _spans(start.read(columns, context), end.read(columns, context))

    near, far = start.step, end.step
    if near is None or far is None or near.op is not far.op:
        return made
    return Stepped(made, Step(near.op, near.at + far.at))


def _from(start: _Moments, length: int | None) -> Maker:
    def made(columns: Sequence[Any], context: Context) -> Values:
        found = start.microseconds(columns, context)
        if length is None:
            return map(_time, repeat(b"start"), found)
        return map(_span, found, map(_later, found, columns[length]))

    return made


def _until(end: _Moments, length: int | None) -> Maker:
    def made(columns: Sequence[Any], context: Context) -> Values:
        found = end.microseconds(columns, context)
        if length is None:
            return map(_time, repeat(b"end"), found)
        return map(_span, map(_later, found, map(neg, columns[length])), found)

    return made


def _later(at: int | None, milliseconds: int) -> int | None:
    return None if at is None else at + milliseconds * 1000


def _spans(starts: Times, ends: Times) -> Iterable[bytes]:
    """`_span` for columns of milliseconds."""
    if None in starts or None in ends or not _are_sound(starts, ends):  # type: ignore[arg-type]  # no None is left
        return [
            _span(None if start is None else start * 1000, None if end is None else end * 1000)
            for start, end in zip(starts, ends, strict=True)
        ]
    return map(
        _SPAN.__mod__,
        zip(
            [SECONDS[at // 1000] for at in starts],  # type: ignore[operator]  # as above
            [_FRACTIONS[at % 1000] for at in starts],  # type: ignore[operator]
            [SECONDS[at // 1000] for at in ends],  # type: ignore[operator]
            [_FRACTIONS[at % 1000] for at in ends],  # type: ignore[operator]
            [length * 1_000_000 for length in map(sub, ends, starts)],
            strict=True,
        ),
    )


def _are_sound(starts: Sequence[int], ends: Sequence[int]) -> bool:
    return min(starts) >= 0 and max(ends) <= LAST_MS and min(map(sub, ends, starts)) >= 0


def _time(key: bytes, at: int | None) -> bytes:
    text = b"" if at is None else time_text(at)
    return b',"%b":"%b"' % (key, text) if text else b""


def _span(start: int | None, end: int | None) -> bytes:
    """Members of `event`, from microseconds."""
    texts = _time(b"start", start) + _time(b"end", end)
    if start is None or end is None or end < start or not time_text(start) or not time_text(end):
        return texts
    return texts + _DURATION % ((end - start) * 1000)
