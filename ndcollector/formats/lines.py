"""From one event's fields to its line, and from that to a whole batch; how formats look at fields of any shape.

Promises: as many lines as events, each with its only LF at its end; the arrays that describe events stay as they were,
those that describe bytes of the line are made anew. An event may be any JSON object, whoever wrote it: a field of an
unexpected type is text, none raises.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson

from ndagent.wire.ecs import MAX_HOST_BYTES
from ndagent.wire.record import EventBatch
from ndagent.wire.regex import compile_pattern

Event = dict[str, Any]
Render = Callable[[Event, bytes], bytes]
"""An event and its ECS line without the LF → its line without one."""

_HOST = compile_pattern(rb'"host\.hostname":"([^"\\]*+(?:\\.[^"\\]*+)*+)"')


def each(render: Render, *, name: str) -> Callable[[EventBatch], EventBatch]:
    """A formatter that renders event by event."""

    def apply(events: EventBatch) -> EventBatch:
        lines = [render(load(line), line[:-1]) + b"\n" for line in events.lines()]
        offsets, lengths = _hosts(lines) if name == "flat" else (None, None)
        nothing = bytes(len(lines) * array("I").itemsize)
        return replace(
            events,
            ndjson=b"".join(lines),
            lengths=array("I", map(len, lines)),
            host_offsets=offsets or array("I", nothing),
            host_lengths=lengths or array("H", bytes(len(lines) * 2)),
            format=name,
            are_origins_own=False,
        )

    return apply


def _hosts(lines: list[bytes]) -> tuple["array[int]", "array[int]"]:
    """Where the text of host.hostname stands in flat JSON. Inside a string the key's quotes would be escaped."""
    offsets, lengths = array("I"), array("H")
    for line in lines:
        match = _HOST.search(line)
        start, end = match.span(1) if match is not None else (0, 0)
        found = end - start <= MAX_HOST_BYTES
        offsets.append(start if found else 0)
        lengths.append(end - start if found else 0)
    return offsets, lengths


def behind(header: Render, render: Render) -> Render:
    """One line behind the other."""
    return lambda event, line: header(event, line) + render(event, line)


def load(line: bytes) -> Event:
    """The event of a line; what is no JSON object is its message."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        event = None
    return event if type(event) is dict else {"message": line.rstrip(b"\n").decode("utf-8", "replace")}


def at(event: Event, *path: str) -> Any:
    """What stands there, None where the path leads nowhere."""
    found: Any = event
    for name in path:
        if type(found) is not dict:
            return None
        found = found.get(name)
    return found


def text(event: Event, *path: str) -> str:
    """What stands there as text, a list's entries with commas between; empty where there is nothing."""
    return as_text(at(event, *path))


Column = tuple[str, tuple[str, ...], int]
"""A key of the other format, the ECS field's path, most characters of its text."""


def reader(columns: Sequence[Column]) -> Callable[[Event], list[tuple[str, str]]]:
    """Finds the columns' texts that an event has, those of one ECS object together: most events lack most objects."""
    groups: dict[str, list[tuple[str, tuple[str, ...], int]]] = {}
    for key, path, length in columns:
        groups.setdefault(path[0], []).append((key, path[1:], length))
    listed = list(groups.items())

    def read(event: Event) -> list[tuple[str, str]]:
        found = []
        for first, entries in listed:
            inside = event.get(first)
            if inside is None:
                continue
            for key, path, length in entries:
                value = inside
                for name in path:
                    value = value.get(name) if type(value) is dict else None
                if value is not None and (words := value if type(value) is str else as_text(value)):
                    found.append((key, words[:length]))
        return found

    return read


def as_text(value: Any) -> str:
    """JSON's own words for what is neither text nor a list."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    if type(value) is list and all(type(one) is str for one in value):
        return ",".join(value)
    return as_json(value)


def as_json(value: Any) -> str:
    """Compact JSON; the serialiser has a limit of nesting that the parser has not."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return "(nested too deep)"
