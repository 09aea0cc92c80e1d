"""The sources, bounded: a burst of forged addresses pushes out other newcomers, not those that have a rhythm.

Promises: at most `most` sources. Who must make room for a newcomer is the one heard of longest ago among the newcomers;
where there are none, among the established, then among the quiet. What a person named by `sources expect` stays: where
nothing else is left, the newcomer is not taken. Constant work per message heard.
Refuses: clocks, files, deciding who is quiet.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ndcollector.sources.rhythm import Rhythm

Key = tuple[str, str]
"""Name of the sender as the ledger has it, and channel: "" for the sender itself."""

NEVER = -1.0
"""As `Source.expected`: its silence means nothing."""
ENOUGH_PAUSES = 8
"""So many pauses make a rhythm."""
ESTABLISHED_SECONDS = 3600.0
_RATE_SECONDS = 86400.0
_SKEW_SHARE = 0.2


class NoPlace(Exception):
    """All places are taken by sources that stay."""


@dataclass(slots=True, eq=False)
class Source:
    """A sender, or one channel of it. Times are Unix seconds, 0 where there is none."""

    name: str
    channel: str
    since: float  # first heard, or first expected
    input: str = ""  # that it last came through; "" where it never came
    address: str = ""
    stream: str = ""  # of a channel
    framing: int = 0
    format: str = ""
    last_seen: float = 0.0
    events: int = 0
    parse_failures: int = 0
    truncated: int = 0
    framing_errors: int = 0
    skew: float | None = None  # seconds that its clock is ahead of ours
    load: float = 0.0  # events, faded over a day
    expected: float = 0.0  # seconds of silence that a person allows; 0: as learned; or NEVER
    quiet_since: float = 0.0  # when the event that says so was made
    rhythm: Rhythm = field(default_factory=Rhythm)
    is_estimate: bool = False  # `events` of a channel that was not looked at whole
    # Of this process only:
    segment: "OrderedDict[Key, Source] | None" = None
    is_scheduled: bool = False
    is_speaking: bool = False  # an event about it is on its way
    sampled_at: float = 0.0  # when an agent last sent more than was looked at
    wanted_since: float = 0.0  # since when all of its agent's events are searched for this channel
    back_since: float = 0.0  # when a sender was heard again after it was quiet

    @property
    def key(self) -> Key:
        """By which it is found."""
        return self.name, self.channel

    @property
    def is_established(self) -> bool:
        """Whether it has shown a rhythm for long enough to be no passer-by."""
        return self.rhythm.pauses >= ENOUGH_PAUSES and self.last_seen - self.since >= ESTABLISHED_SECONDS

    def heard(self, events: int, now: float, *, listened_since: float) -> None:
        """It sent something. Pauses in which nobody listened teach nothing."""
        before, self.last_seen = self.last_seen, max(self.last_seen, now)
        self.events += events
        self.load = self.load * math.exp(-max(now - before, 0.0) / _RATE_SECONDS) + events if before else float(events)
        if before >= listened_since and before > 0:
            self.rhythm.heard(before, now)

    def not_after(self, now: float) -> None:
        """The clock was set back: what lies ahead of it would count as heard for as long."""
        self.since, self.last_seen = min(self.since, now), min(self.last_seen, now)
        self.quiet_since, self.back_since = min(self.quiet_since, now), min(self.back_since, now)
        self.sampled_at, self.wanted_since = min(self.sampled_at, now), min(self.wanted_since, now)

    def rate(self, now: float) -> float:
        """Events a second, over a day or as long as it is known."""
        age = max(now - self.since, 1.0)
        fade = math.exp(-max(now - self.last_seen, 0.0) / _RATE_SECONDS)
        return self.load * fade / (_RATE_SECONDS * (1 - math.exp(-age / _RATE_SECONDS)))

    def clock_is_ahead(self, seconds: float) -> None:
        """One look at its clock; a few of them are averaged, since messages take their time."""
        self.skew = seconds if self.skew is None else self.skew + (seconds - self.skew) * _SKEW_SHARE


class Table:
    """All sources by key. `gone` is told of each that had to make room."""

    def __init__(self, gone: Callable[[Source], None]) -> None:
        self._all: dict[Key, Source] = {}
        self._channels: dict[str, int] = {}  # by sender, which may come later or be gone before them
        self._newcomers, self._established, self._quiet, self._expected = (
            OrderedDict[Key, Source](), OrderedDict[Key, Source](), OrderedDict[Key, Source](),
            OrderedDict[Key, Source](),
        )  # fmt: skip
        self._gone = gone

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Source]:
        return iter(self._all.values())

    @property
    def quiet(self) -> int:
        """How many are quiet."""
        return len(self._quiet) + sum(source.quiet_since > 0 for source in self._expected.values())

    def get(self, name: str, channel: str = "") -> Source | None:
        """The source, if it is known."""
        return self._all.get((name, channel))

    def channels(self, name: str) -> int:
        """How many channels of a sender are in the table."""
        return self._channels.get(name, 0)

    def of(self, name: str) -> list[Source]:
        """A sender and its channels."""
        return [source for source in self._all.values() if source.name == name]

    def add(self, source: Source, *, most: int) -> bool:
        """Take a newcomer in; False where all places are taken by those that stay."""
        while len(self._all) >= most:
            if not self._make_room():
                return False
        self._all[source.key] = source
        if source.channel:
            self._channels[source.name] = self.channels(source.name) + 1
        self.place(source)
        return True

    def place(self, source: Source) -> None:
        """Put it where it belongs now, as the one heard of last."""
        if source.expected:
            wanted = self._expected
        elif source.quiet_since:
            wanted = self._quiet
        elif source.segment is self._established or source.is_established:
            wanted = self._established
        else:
            wanted = self._newcomers
        if source.segment is wanted:
            wanted.move_to_end(source.key)
            return
        if source.segment is not None:
            del source.segment[source.key]
        wanted[source.key] = source
        source.segment = wanted

    def remove(self, source: Source) -> None:
        """Forget it."""
        del self._all[source.key]
        if source.segment is not None:
            del source.segment[source.key]
        source.segment = None
        if source.channel:
            left = self._channels.pop(source.name) - 1
            if left:
                self._channels[source.name] = left

    def _make_room(self) -> bool:
        for segment in (self._newcomers, self._established, self._quiet):
            if segment:
                leaving = next(iter(segment.values()))
                self.remove(leaving)
                self._gone(leaving)
                return True
        return False
