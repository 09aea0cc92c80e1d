"""What decoded events say of their senders: collected chunk by chunk, looked at once a second, within fixed bounds.

    samples    one line of a sender a second: format, clock
    failures   events that could not be parsed, by sender; all are counted
    regions    agents' lines, in which their channels (datasets, event logs) are counted

Promises: `take` costs some microseconds for a chunk whose senders were seen in this second, and nothing per event
unless events could not be parsed; at most SAMPLES lines and REGION_BYTES are kept. An agent that sends more than its
share in a second is looked at in part, and what is counted of its channels is an estimate (`Region.share`); a channel
about which there is doubt is searched in all that comes (`wanted`), which stops at its first event.
Refuses: believing. Whatever stands in an event is its sender's word: names are cut, and bounded in number elsewhere.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, compress, groupby
from typing import Any, NamedTuple

import orjson

from ndagent.wire.record import AGENT_URI, NO_PRIORITY, EventBatch

SAMPLES = 200
REGION_BYTES = 1 << 20
AGENT_BYTES = 128 << 10
"""A second's share of one agent: some two hundred events, more than most send."""
LOOKS = 2000
"""Senders of joint chunks that are looked at in a second."""
FAILING = 20_000
_LONGEST_LINE = 65_536
_LONGEST_CHANNEL = 128
_DATASET = re.compile(rb'"dataset":"([^"\\]{1,128})"')
_EVENT_LOG = re.compile(rb'"channel":"([^"\\]{1,128})"')
_WINLOG = b'"winlog":{'
_AGENT = AGENT_URI.encode()

Wanted = Mapping[bytes, Sequence[bytes]]
"""Needles by packed origin."""


class Sample(NamedTuple):
    """One event of a sender, and when its chunk was received (Unix seconds)."""

    line: bytes
    received: float


class Region(NamedTuple):
    """Lines of one agent; `share` of all that it sent in this chunk."""

    blob: bytes
    stream: str
    lines: bytes
    share: float
    received: float


class Facts:
    """Of one second. Keys are packed origins."""

    def __init__(self) -> None:
        self.samples: dict[bytes, Sample] = {}
        self.failures: dict[bytes, int] = {}
        self.regions: list[Region] = []
        self.found: set[tuple[bytes, bytes]] = set()
        """Packed origin and needle, of what was wanted."""
        self._looks = LOOKS
        self._bytes = REGION_BYTES
        self._of_agent: dict[bytes, int] = {}

    def take(self, batch: EventBatch, wanted: Wanted) -> None:
        """Note what there is to note of a decoded record. `wanted`: needles to search by packed origin."""
        blobs = batch.origin_blobs
        received = batch.received_at_ns / 1e9
        if not len(batch):
            return
        if len(blobs) == 1:
            self._failed(blobs[0], _failures(batch))
            self._take_lines(blobs[0], batch.stream, batch.ndjson, received, wanted)
            return
        if _failures(batch):
            self._failed_of_several(batch)
        if self._looks > 0:
            self._looks -= len(blobs)
            self._take_of_several(batch, received, wanted)

    def _take_of_several(self, batch: EventBatch, received: float, wanted: Wanted) -> None:
        unseen, agents = [], False
        for index, blob in enumerate(batch.origin_blobs):
            if blob not in self.samples:
                unseen.append(index)
            agents |= _AGENT in blob and (self._of_agent.get(blob, 0) < AGENT_BYTES or blob in wanted)
        if unseen and len(self.samples) < SAMPLES:
            self._sample_some(batch, unseen, received)
        if agents:
            for blob, lines in _runs(batch):
                if _AGENT in blob:
                    self._look_at_agent(blob, batch.stream, lines, received, wanted)

    def _take_lines(self, blob: bytes, stream: str, lines: bytes, received: float, wanted: Wanted) -> None:
        if blob not in self.samples and len(self.samples) < SAMPLES:
            self._sample(blob, lines[lines.rfind(b"\n", 0, len(lines) - 1) + 1 :], received)
        if _AGENT in blob:
            self._look_at_agent(blob, stream, lines, received, wanted)

    def _sample_some(self, batch: EventBatch, indexes: Sequence[int], received: float) -> None:
        """The first line of each of these senders."""
        places = dict(zip(reversed(batch.origins), range(len(batch) - 1, -1, -1), strict=True))
        ends = list(accumulate(batch.lengths))
        for index in indexes[: SAMPLES - len(self.samples)]:
            if (place := places.get(index)) is not None:
                line = batch.ndjson[ends[place] - batch.lengths[place] : ends[place]]
                self._sample(batch.origin_blobs[index], line, received)

    def _sample(self, blob: bytes, line: bytes, received: float) -> None:
        if len(line) <= _LONGEST_LINE:
            self.samples[blob] = Sample(line, received)

    def _look_at_agent(self, blob: bytes, stream: str, lines: bytes, received: float, wanted: Wanted) -> None:
        self._take_region(blob, stream, lines, received)
        for needle in wanted.get(blob, ()):
            if (blob, needle) not in self.found and needle in lines:
                self.found.add((blob, needle))

    def _take_region(self, blob: bytes, stream: str, lines: bytes, received: float) -> None:
        used = self._of_agent.get(blob, 0)
        room = min(AGENT_BYTES - used, self._bytes)
        part = lines if len(lines) <= room else lines[: lines.rfind(b"\n", 0, max(room, 0)) + 1]
        self._of_agent[blob] = used + len(part)
        self._bytes -= len(part)
        if part or len(self.regions) < SAMPLES:
            self.regions.append(Region(blob, stream, part, len(part) / len(lines), received))

    def _failed(self, blob: bytes, events: int) -> None:
        if events and (blob in self.failures or len(self.failures) < FAILING):
            self.failures[blob] = self.failures.get(blob, 0) + events

    def _failed_of_several(self, batch: EventBatch) -> None:
        if batch.parse_failures is None:
            failed = map(NO_PRIORITY.__eq__, batch.priorities)
            counts = Counter(compress(batch.origins, failed))
        else:  # events that came as ECS, where a priority says nothing
            lines = batch.lines()
            counts = Counter(compress(batch.origins, (b'"_parse_failure"' in line for line in lines)))
        for index, events in counts.items():
            self._failed(batch.origin_blobs[index], events)


def _failures(batch: EventBatch) -> int:
    return batch.priorities.count(NO_PRIORITY) if batch.parse_failures is None else batch.parse_failures


def _runs(batch: EventBatch) -> Iterator[tuple[bytes, bytes]]:
    """The lines of each sender, where one stands several times the first run of them is one of several."""
    at = start = 0
    for index, run in groupby(batch.origins):
        count = sum(1 for _ in run)
        end = start + sum(batch.lengths[at : at + count])
        yield batch.origin_blobs[index], batch.ndjson[start:end]
        at, start = at + count, end


def channels_in(lines: bytes) -> Counter[str]:
    """Events by channel: the dataset that an event says, and beside it the Windows event log."""
    found: Counter[bytes] = Counter(_DATASET.findall(lines))
    if _WINLOG in lines:
        found.update(_EVENT_LOG.findall(lines))
    return Counter({name.decode("utf-8", "replace"): events for name, events in found.items()})


def needle_of(channel: str) -> bytes:
    """What stands in every event of a channel, whichever kind it is."""
    return b'":"' + channel.encode() + b'"'


class Said(NamedTuple):
    """What one event tells of its sender."""

    format: str
    skew: float | None


def said_by(line: bytes) -> Said:
    """Of a decoded event; nothing of one that is no object."""
    try:
        event = orjson.loads(line)
        syslog, details = _inner(event, "log", "syslog"), _inner(event, "event")
        dataset = _text(details.get("dataset")) or _text(details.get("module"))
        if "_parse_failure" in event.get("tags", ()):
            return Said("unparsed", None)
        if not syslog:
            return Said("netflow" if "netflow" in event else dataset or "ecs", None)
        kind = "rfc5424" if "version" in syslog else "rfc3164"
        return Said(f"{kind} {dataset}".rstrip(), _skew(event.get("@timestamp"), details.get("created")))
    except (ValueError, TypeError, AttributeError):
        return Said("", None)


def _inner(event: Any, *path: str) -> dict[str, Any]:
    for key in path:
        event = event.get(key)
        if event is None:
            return {}
    return event if isinstance(event, dict) else {}


def _text(value: object) -> str:
    return value[:_LONGEST_CHANNEL] if isinstance(value, str) else ""


def _skew(said: Any, received: Any) -> float | None:
    """By how much its clock is ahead; None where it did not say the time, and we took ours."""
    if said is None or received is None or said == received:
        return None
    return (datetime.fromisoformat(said) - datetime.fromisoformat(received)).total_seconds()
