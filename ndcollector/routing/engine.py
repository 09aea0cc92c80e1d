"""What an output's `where`, `sample` and `transform` make of a batch. A pure function, to be called in any thread.

    EventBatch ──where──► ──sample──► ──steps──► Routed: events for the output · filtered · failed

Promises:
  * the same batch has the same result whenever it comes again; order is kept, no event is added, each is accounted for;
  * `where` is answered from the batch's arrays as far as it goes; only events that a step may change are decoded;
  * a line that no step changes leaves byte for byte. One exception: an event that a step of `redact`, `drop_fields` or
    `hash` looked at, and whose line says more than it decodes to (a key twice, spaces), is written anew, since such a
    line could carry past the step what it takes away;
  * an event on which a step fails goes to the dead letters as it came: it is neither sent unchanged nor lost;
  * the arrays fit the lines: lengths, priorities and hosts are those of what is sent. Keys stay those of the host that
    the event came from, so that a renamed or hashed host's events keep their order and their partition.
Refuses: I/O, threads (routes.py).
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import orjson

from ndagent.core.interfaces import Routed
from ndagent.wire.ecs import MAX_HOST_BYTES
from ndagent.wire.record import NO_PRIORITY, EventBatch
from ndagent.wire.where import compile_where, origin_of
from ndcollector.routing.config import RoutedConfig
from ndcollector.routing.paths import Event
from ndcollector.routing.sample import Lot
from ndcollector.routing.steps import Step, compile_steps

FAILED = "transform_failed"
"""How the reason of a dead letter begins whose event is as it was before any step: it must be routed to be sent."""


def make_engine(config: RoutedConfig, *, sampled: bool = True) -> "Engine | None":
    """What these settings ask for; None where that is every event as it is. `sampled` False keeps all: for tests."""
    wants_sample = sampled and config.sample is not None
    return Engine(config, sampled=sampled) if config.where or wants_sample or config.transform else None


class Engine:
    """Compiled settings; immutable."""

    def __init__(self, config: RoutedConfig, *, sampled: bool = True) -> None:
        sample = config.sample if sampled else None
        self._where = None if config.where is None else compile_where(config.where)
        self._sampled = None if sample is None or sample.where is None else compile_where(sample.where)
        self._lot = None if sample is None else Lot(sample)
        self._steps = compile_steps(config.transform)

    def __call__(self, events: EventBatch) -> Routed:
        """Which of the events are for the output, and how."""
        kept = range(len(events)) if self._where is None else self._where.select(events)
        if self._lot is not None:
            kept = self._drawn(events, kept, self._lot)
        if len(kept) == len(events):
            return self._changed(events)
        routed = self._changed(events.select(kept))
        return replace(routed, filtered=_origins_besides(events, kept))

    def _drawn(self, events: EventBatch, kept: Sequence[int], lot: Lot) -> list[int]:
        concerned = None if self._sampled is None else set(self._sampled.select(events))
        starts = list(accumulate(events.lengths, initial=0))

        def stays(position: int) -> bool:
            if concerned is not None and position not in concerned:
                return True
            return lot.keeps(events, position, events.ndjson[starts[position] : starts[position + 1]])

        return [position for position in kept if stays(position)]

    def _changed(self, events: EventBatch) -> Routed:
        """Every event carried through the steps that may concern it."""
        work = _Work(events)
        for position, steps in _concerned(self._steps, events):
            work.carry_out(position, steps)
        return work.result()


def _origins_besides(events: EventBatch, kept: Sequence[int]) -> "array[int]":
    """The origins of the events that are not kept."""
    left_out = bytearray(b"\1" * len(events))
    for position in kept:
        left_out[position] = 0
    return array("I", [origin for origin, is_out in zip(events.origins, left_out, strict=True) if is_out])


def _concerned(steps: Sequence[Step], events: EventBatch) -> Iterator[tuple[int, Sequence[Step]]]:
    """The positions of events that some step may change, each with the steps from the first such one on.

    As long as no step has changed an event it is what the batch's arrays say it is, so only the first needs asking.
    """
    first = [len(steps)] * len(events)
    for number in reversed(range(len(steps))):
        for position in _candidates(steps[number], events):
            first[position] = number
    tails = [steps[number:] for number in range(len(steps))]
    return ((position, tails[number]) for position, number in enumerate(first) if number < len(steps))


def _candidates(step: Step, events: EventBatch) -> Iterator[int] | Sequence[int]:
    if step.where is None:
        return range(len(events)) if step.hint is None else _lines_with(step.hint, events)
    yes, asked = step.where.judge(events)
    found = (position for position in range(len(events)) if yes[position] or asked[position])
    if step.hint is None:
        return found
    hinted = set(_lines_with(step.hint, events))
    return (position for position in found if position in hinted)


def _lines_with(hint: Any, events: EventBatch) -> Iterator[int]:
    """Positions of lines with a match: one search through the whole buffer, from hit to hit."""
    at = position = 0
    end = events.lengths[0] if len(events) else 0
    while (found := hint.search(events.ndjson, at)) is not None:
        while found.start() >= end:
            position += 1
            end += events.lengths[position]
        yield position
        at = end


@dataclass(slots=True)
class _Work:
    """A batch while its events are changed."""

    events: EventBatch
    lines: list[bytes] | None = None  # taken apart once one is to be changed
    changed: dict[int, Event] = field(default_factory=dict)  # decoded, for the arrays
    failed: dict[str, list[int]] = field(default_factory=dict)

    def carry_out(self, position: int, steps: Sequence[Step]) -> None:
        """The steps, on one event; what they raise is that event's fate alone."""
        if self.lines is None:
            self.lines = self.events.lines()
        line = self.lines[position]
        try:
            event = orjson.loads(line)
            if self._apply(event, steps, position) or (_hides(steps) and orjson.dumps(event) != line[:-1]):
                self.lines[position] = orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
                self.changed[position] = _described(event)
        except MemoryError:
            raise  # says nothing about the event: the output waits and asks again
        except Exception as error:  # noqa: BLE001 - a bug in a step must neither lose an event nor let it out unchanged
            self.failed.setdefault(f"{FAILED}: {type(error).__name__}: {error}"[:300], []).append(position)

    def _apply(self, event: Event, steps: Sequence[Step], position: int) -> bool:
        changed = False
        for step in steps:
            if step.where is not None and not step.where.matches(
                event,
                stream=self.events.stream,
                origin=origin_of(self.events.origin_blobs[self.events.origins[position]]),
            ):
                continue
            changed |= step.apply(event)
        return changed

    def result(self) -> Routed:
        """The batch as it is sent."""
        events = self.events
        if self.lines is None or not (self.changed or self.failed):
            return Routed(events)
        failed = [(events.select(positions), reason) for reason, positions in self.failed.items()]
        sent = self._rewritten(self.lines) if self.changed else events
        lost = {position for positions in self.failed.values() for position in positions}
        if lost:
            sent = sent.select([position for position in range(len(events)) if position not in lost])
        return Routed(sent, failed=failed)

    def _rewritten(self, lines: list[bytes]) -> EventBatch:
        events = self.events
        priorities = bytearray(events.priorities)
        offsets, widths = array("I", events.host_offsets), array("H", events.host_lengths)
        for position, event in self.changed.items():
            offsets[position], widths[position] = host_place(event, lines[position])
            if not _has_priority(event, priorities[position]):
                priorities[position] = NO_PRIORITY
        return replace(
            events,
            ndjson=b"".join(lines),
            lengths=array("I", map(len, lines)),
            priorities=bytes(priorities),
            host_offsets=offsets,
            host_lengths=widths,
            are_origins_own=False,
        )


def _hides(steps: Sequence[Step]) -> bool:
    return any(step.hides for step in steps)


def _described(event: Event) -> Event:
    """What the arrays say of an event."""
    return {name: event[name] for name in ("host", "log") if name in event}


def host_place(event: Event, line: bytes) -> tuple[int, int]:
    """Where in its line the host's text stands, and its length; 0, 0 where there is none, or too long a one."""
    host = event.get("host")
    name = (host.get("hostname") or host.get("name")) if isinstance(host, dict) else None
    if not isinstance(name, str) or not name:
        return 0, 0
    text = orjson.dumps(name)
    offset = line.find(text) + 1  # any place with this text will do: readers look at nothing else
    return (offset, len(text) - 2) if offset and len(text) - 2 <= MAX_HOST_BYTES else (0, 0)


_PRIORITY: Callable[[Any], Any] = lambda syslog: (  # noqa: E731
    syslog["priority"], syslog["facility"]["code"], syslog["severity"]["code"],
)  # fmt: skip


def _has_priority(event: Event, priority: int) -> bool:
    """Whether the event still says what the array says of it; where it does not, its JSON has to be asked."""
    try:
        return bool(_PRIORITY(event["log"]["syslog"]) == (priority, priority >> 3, priority & 7))
    except (KeyError, TypeError):
        return False
