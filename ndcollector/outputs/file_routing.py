"""Which lines of a batch go to which file of the `file` output.

Promises: an event's path is a function of the event alone (its stream, its host, the hour it was received), so that an
event which is sent again meets its own file; within a file lines keep their order.
Refuses: touching the disk.

A path without {host} costs nothing per event: the batch's NDJSON is passed on as it is. With {host}, and in the batch
that an hour ends in, the lines are sorted in Python, about 1 µs per event.
"""

from array import array
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from ndagent.wire.record import EventBatch
from ndcollector.outputs.file_path import PathTemplate


class Lines(NamedTuple):
    """Lines for one file, their lengths and sequences in parallel."""

    data: memoryview
    lengths: Sequence[int]
    sequences: Sequence[int]

    def split(self, count: int) -> tuple["Lines", "Lines"]:
        """The first `count` lines, and the others."""
        size = sum(self.lengths[:count]) if count < len(self.lengths) else len(self.data)
        first = Lines(self.data[:size], self.lengths[:count], self.sequences[:count])
        return first, Lines(self.data[size:], self.lengths[count:], self.sequences[count:])


def route(events: EventBatch, template: PathTemplate) -> Iterator[tuple[str, Lines]]:
    """Path and lines for each file that gets some."""
    first = last = ""
    if template.by_date:
        received = datetime.fromtimestamp(events.received_at_ns // 10**9, UTC).isoformat()[:13]
        first = _hour(events.ndjson[: events.lengths[0]], received)
        last = _hour(events.ndjson[-events.lengths[-1] :], received)
    if not template.by_host and first == last:
        path = template.expand(stream=events.stream, host="", hour=first)
        yield path, Lines(memoryview(events.ndjson), events.lengths, events.sequences)
        return
    lines = events.lines()
    by_path: dict[str, list[int]] = {}
    paths: dict[tuple[bytes, str], str] = {}
    for index, line in enumerate(lines):
        at = events.host_offsets[index] if template.by_host else 0
        key = line[at : at + events.host_lengths[index]] if at else b"", first if first == last else _hour(line, first)
        path = paths.get(key, "")
        if not path:
            host, hour = key
            path = paths[key] = template.expand(stream=events.stream, host=host.decode("utf-8", "replace"), hour=hour)
        by_path.setdefault(path, []).append(index)  # hosts that differ in unsafe characters only share a file
    for path, found in by_path.items():
        data = memoryview(b"".join([lines[i] for i in found]))
        yield path, Lines(data, array("I", [events.lengths[i] for i in found]), [events.sequences[i] for i in found])


def _hour(line: bytes, default: str) -> str:
    """The hour of `event.created`: when the event was received, UTC."""
    try:
        return str(orjson.loads(line)["event"]["created"])[:13]
    except (ValueError, KeyError, TypeError):
        return default
