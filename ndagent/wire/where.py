"""One expression grammar for output `where`, API queries, streams and tap: `severity <= 4 and host glob fw-*`.

    wanted = compile_where("severity <= warning and not host glob 'test-*'")      raises WhereError with the column
    wanted.matches(event, stream="security_events", origin="nd:device:fw-1")      one decoded event
    wanted.select(batch)                                                          positions in an EventBatch

Promises:
  * compiled once; a Where is immutable and may be used from any thread;
  * `select` gives what `matches` gives for each line, and answers severity, facility, host, origin and stream from the
    batch's arrays: JSON is parsed only for the events whose verdict hangs on something else;
  * time linear in the event, memory bounded, whatever the expression and the event (see where_match.py).
Refuses: I/O, clocks, changing events.

An absent field passes no comparison, so `!=`, which is `not ==`, holds for it. Of an array any element may pass.

The arrays are judged all at once with masks, whole numbers that have one byte for each event: `severity <= 4` is one
`bytes.translate`, `and` is `&`. A verdict is a pair of masks (certainly yes, certainly no); what is in neither of them
after the whole expression was judged is the rest that needs its JSON.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate, compress
from typing import NamedTuple

import orjson

from ndagent.wire.record import CorruptBody, EventBatch, Origin
from ndagent.wire.where_parse import (
    FACILITY,
    HOST,
    HOST_NAME,
    ORIGIN,
    SEVERITY,
    STREAM,
    All,
    Any,
    Comparison,
    Node,
    Not,
    Path,
    WhereError,
    parse,
)

__all__ = ["Where", "WhereError", "compile_where", "origin_of"]

ORIGINS_CACHED = 4096
_PRIORITIES = 192  # RFC 5424 §6.2.1
_FROM_PRIORITY: Mapping[Path, Callable[[int], int]] = {
    SEVERITY: lambda priority: priority & 7,
    FACILITY: lambda priority: priority >> 3,
    ("log", "syslog", "priority"): lambda priority: priority,
}

_Event = Mapping[str, object]
_Matches = Callable[[_Event, str, str], bool]


class _Masks(NamedTuple):
    """Per event one byte, 0 or 1: certainly yes, certainly no."""

    yes: int
    no: int


_Judge = Callable[["_View"], _Masks]
_UNKNOWN = _Masks(0, 0)


def compile_where(text: str) -> "Where":
    """The expression, ready to use; raises WhereError that says where it is wrong."""
    return Where(text, parse(text))


class Where:
    """A compiled expression; `str()` gives its text back. Made by `compile_where`."""

    __slots__ = ("_judge", "_matches", "_text")

    def __init__(self, text: str, node: Node) -> None:
        self._text = text
        self._matches = _matcher(node)
        self._judge = _judge(node)

    def __str__(self) -> str:
        return self._text

    def matches(self, event: _Event, *, stream: str = "", origin: str = "") -> bool:
        """Whether a decoded event passes; `origin` is `Origin.identity`. Empty means absent, as for any field."""
        return self._matches(event, stream, origin)

    def judge(self, events: EventBatch) -> tuple[bytes, bytes]:
        """What the arrays tell: per event 1 where it certainly passes; per event 1 where `matches` must be asked."""
        view = _View(events)
        yes, no = self._judge(view)
        return yes.to_bytes(view.count, "little"), (view.ones ^ yes ^ no).to_bytes(view.count, "little")

    def select(self, events: EventBatch) -> list[int]:
        """The ascending positions of the events that pass."""
        yes, rest = self.judge(events)
        positions = range(len(events))
        if 1 not in rest:
            return list(compress(positions, yes))
        starts = list(accumulate(events.lengths, initial=0))
        asked = compress(positions, rest)
        passed = [position for position in asked if self.matches_line(events, position, starts[position])]
        return sorted([*compress(positions, yes), *passed])

    def matches_line(self, events: EventBatch, position: int, start: int) -> bool:
        """`matches` for one event of a batch, whose line begins at `start`."""
        event = orjson.loads(events.ndjson[start : start + events.lengths[position]])
        return self._matches(event, events.stream, origin_of(events.origin_blobs[events.origins[position]]))


@lru_cache(ORIGINS_CACHED)
def origin_of(blob: bytes) -> str:
    """The identity in a packed origin; empty where it is none."""
    try:
        return Origin.unpack(blob).identity
    except CorruptBody:
        return ""


# ---- one event


def _matcher(node: Node) -> _Matches:
    if isinstance(node, Comparison):
        return _comparison(node)
    if isinstance(node, Not):
        part = _matcher(node.part)
        return lambda event, stream, origin: not part(event, stream, origin)
    parts = [_matcher(part) for part in node.parts]
    if isinstance(node, All):
        return lambda event, stream, origin: all(part(event, stream, origin) for part in parts)
    return lambda event, stream, origin: any(part(event, stream, origin) for part in parts)


def _comparison(node: Comparison) -> _Matches:
    path, test = node.path, node.test
    if path == STREAM:
        return lambda _event, stream, _origin: bool(stream) and test(stream)
    if path == ORIGIN:
        return lambda _event, _stream, origin: bool(origin) and test(origin)
    if path == HOST:
        return lambda event, _stream, _origin: any(map(test, _hosts(event)))
    flat = ".".join(path)
    return lambda event, _stream, _origin: any(map(test, _values(event, path, flat)))


def _hosts(event: _Event) -> list[object]:
    """What the decoder indexes as an event's host: its name where it has no hostname (empty is as good as none)."""
    found = [value for value in _values(event, HOST, ".".join(HOST)) if value]
    return found or [value for value in _values(event, HOST_NAME, ".".join(HOST_NAME)) if value]


def _values(event: _Event, path: Path, flat: str) -> Iterator[object]:
    """What stands at the path; where nothing does, under the whole dotted name, as some senders write it."""
    found = False
    for value in _at(event, path):
        found = True
        yield value
    if not found and flat in event:
        yield from _at(event, (flat,))


def _at(node: object, path: Path) -> Iterator[object]:
    """Every value at the path, through arrays of objects; null is as good as absent."""
    for depth, name in enumerate(path):
        if isinstance(node, list):
            for item in node:
                if isinstance(item, dict):
                    yield from _at(item, path[depth:])
            return
        if not isinstance(node, dict):
            return
        node = node.get(name)
    if isinstance(node, list):
        yield from (item for item in node if item is not None)
    elif node is not None:
        yield node


# ---- a batch's arrays


class _View:
    """A batch while it is judged."""

    __slots__ = ("count", "events", "ones")

    def __init__(self, events: EventBatch) -> None:
        self.events = events
        self.count = len(events)
        self.ones = int.from_bytes(b"\1" * self.count, "little")

    def masks(self, verdicts: bytes) -> _Masks:
        """From one verdict per event: 1 yes, 0 no."""
        yes = int.from_bytes(verdicts, "little")
        return _Masks(yes, self.ones ^ yes)

    def all(self, verdict: bool) -> _Masks:
        """The same verdict for every event."""
        return _Masks(self.ones, 0) if verdict else _Masks(0, self.ones)


def _judge(node: Node) -> _Judge:
    if isinstance(node, Comparison):
        return _judge_comparison(node)
    if isinstance(node, Not):
        part = _judge(node.part)
        return lambda view: _Masks(*reversed(part(view)))
    return _judge_all([_judge(part) for part in node.parts], inverted=isinstance(node, Any))


def _judge_all(parts: list[_Judge], *, inverted: bool) -> _Judge:
    """Yes where all are yes, no where any is no; inverted (`or` by De Morgan) the other way round."""

    def judge(view: _View) -> _Masks:
        both, either = view.ones, 0
        for part in parts:
            yes, no = part(view)
            if inverted:
                yes, no = no, yes
            both &= yes
            either |= no
        return _Masks(either, both) if inverted else _Masks(both, either)

    return judge


def _judge_comparison(node: Comparison) -> _Judge:
    path, test = node.path, node.test
    if path in _FROM_PRIORITY:
        return _judge_priority(node)
    if path == HOST:
        return lambda view: _judge_host(view, node)
    if path == STREAM:
        return lambda view: view.all(bool(view.events.stream) and test(view.events.stream))
    if path == ORIGIN:
        return lambda view: _judge_origin(view, node)
    return lambda _view: _UNKNOWN


def _judge_priority(node: Comparison) -> _Judge:
    """A message without a valid PRI may still be an event with a severity: its JSON knows."""
    value = _FROM_PRIORITY[node.path]
    verdicts = [node.test(value(priority)) for priority in range(_PRIORITIES)]
    rest = bytes(256 - _PRIORITIES)
    yes, no = bytes(verdicts) + rest, bytes(not one for one in verdicts) + rest

    def judge(view: _View) -> _Masks:
        priorities = view.events.priorities
        return _Masks(
            int.from_bytes(priorities.translate(yes), "little"), int.from_bytes(priorities.translate(no), "little")
        )

    return judge


def _judge_origin(view: _View, node: Comparison) -> _Masks:
    identities = map(origin_of, view.events.origin_blobs)
    verdicts = [bool(identity) and node.test(identity) for identity in identities]
    return view.masks(bytes(map(verdicts.__getitem__, view.events.origins)))


def _judge_host(view: _View, node: Comparison) -> _Masks:
    """Each distinct host once; where none is indexed its JSON is asked if it speaks of one: too long, or a list."""
    events, test = view.events, node.test
    known: dict[bytes, bool] = {}
    yes, no = bytearray(view.count), bytearray(view.count)
    starts = accumulate(events.lengths, initial=0)
    places = zip(starts, events.host_offsets, events.host_lengths, events.lengths, strict=False)
    for position, (start, offset, length, line) in enumerate(places):
        if not offset:
            text = events.ndjson[start : start + line]
            no[position] = b'"host' not in text and b"\\u" not in text
            continue
        text = events.ndjson[start + offset : start + offset + length]
        verdict = known.get(text)
        if verdict is None:
            verdict = known[text] = test(orjson.loads(b'"%b"' % text))
        (yes if verdict else no)[position] = 1
    return _Masks(int.from_bytes(yes, "little"), int.from_bytes(no, "little"))
