"""Which events of a batch a tap shows, and the line that each one becomes.

Promises: an event is decoded from JSON only where the filter cannot do without; a line of an output or a stream is the
output's line, byte for byte. Refuses: time and waiting (hub.py): `lines` is a generator so that its caller may pause.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, compress
from operator import or_
from typing import Literal

import orjson

from ndagent.wire.record import EventBatch
from ndagent.wire.where import Where, origin_of

Point = Literal["input", "output", "stream"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to see: at `name`, or with None (streams only) at all of them.

    `share` is how much of it (more than 0, at most 1), `limit` the number of events after which the tap ends.
    """

    point: Point = "stream"
    name: str | None = None
    where: Where | None = None
    share: float = 1.0
    limit: int | None = None


class Look:
    """One tap's eyes. `random` draws evenly from [0, 1)."""

    def __init__(self, wish: Wish, random: Callable[[], float]) -> None:
        self._wish = wish
        self._random = random
        self._shown = 0
        self._left_out = self._gap()  # events that may be shown, but are not, before the next one is

    @property
    def is_done(self) -> bool:
        """Whether the limit is reached."""
        return self._wish.limit is not None and self._shown >= self._wish.limit

    def lines(self, events: EventBatch) -> Iterator[bytes | None]:
        """For each event that was looked at its line, or None where it is not shown."""
        where = self._wish.where
        starts: list[int] = []
        for position, is_certain in self._sampled(_candidates(where, events)):
            if self.is_done:
                return
            starts = starts or list(accumulate(events.lengths, initial=0))
            start = starts[position]
            if is_certain or where is None or where.matches_line(events, position, start):
                self._shown += 1
                line = events.ndjson[start : starts[position + 1]]
                yield _as_it_came(line, events, position) if self._wish.point == "input" else line
            else:
                yield None

    def _sampled(self, candidates: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """A fair share. Candidates are drawn, not matches: the same share of them, and less work for the filter."""
        for candidate in candidates:
            if self._left_out:
                self._left_out -= 1
                continue
            self._left_out = self._gap()
            yield candidate

    def _gap(self) -> int:
        """How many in a row are left out where each is shown with probability `share`: geometric."""
        share = self._wish.share
        return 0 if share >= 1 else int(math.log(1 - self._random()) / math.log1p(-share))


def _candidates(where: Where | None, events: EventBatch) -> Iterable[tuple[int, int]]:
    """The positions that may be shown, each with whether that is certain."""
    if where is None:
        return zip(range(len(events)), b"\1" * len(events), strict=True)
    yes, rest = where.judge(events)
    return compress(enumerate(yes), map(or_, yes, rest))


def _as_it_came(line: bytes, events: EventBatch, position: int) -> bytes:
    """The message with who sent it and when, as one line; `line` was decoded with `keep_original: always`."""
    decoded = orjson.loads(line)
    event = decoded["event"]
    shown: dict[str, object] = {
        "received_at": event["created"],
        "stream": events.stream,
        "origin": origin_of(events.origin_blobs[events.origins[position]]),
        "source": decoded.get("source"),
        "tags": decoded.get("tags"),
        "raw": event.get("original"),
        "raw_base64": event.get("original_base64"),
    }
    known = {key: value for key, value in shown.items() if value is not None}
    return orjson.dumps(known, option=orjson.OPT_APPEND_NEWLINE)
