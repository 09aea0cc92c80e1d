"""The sources view of a running collector: told of commits and of decoded events, it knows who sends and who is quiet.

    ledger ──heard──► who sent how many ┐ once a second
    decoding ─decoded─► what they say   ┴─► table ──► rows of ledger.db, with the ledger's own transaction
                                              └─ silence ──► alerts ──accept──► spool (stream alerts)

Promises:
  * `heard` and `decoded` only note; all work is done once a second, in slices, and bounded: NEWCOMERS a second;
  * a source that goes quiet raises one event, and one when it is back, whatever is killed meanwhile (alerts.py);
  * what nobody listened to is nobody's silence: restarts, inputs that are down or no longer configured, a spool without
    room, jumps of the clock, and for channels outputs that lag (channels are seen only in decoded events);
  * at most `max_sources`, `max_channels` of each agent; who had to make room, and who was passed over, is counted.
Refuses: counting for the proof (the ledger does; what is lost after a kill here is a minute of figures).
(Past 400 lines: one table that commits, decoded events, silence and operators all change; what is separable stands
beside it.)
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ndagent.core.interfaces import Accept
from ndagent.core.metrics import Metrics
from ndagent.wire.record import CorruptBody, EventBatch, Origin
from ndcollector.ledger.fresh import Fresh
from ndcollector.ledger.origins import name_of
from ndcollector.sources.alerts import INPUT, Alerts, Notice, Said, What
from ndcollector.sources.changes import SourceChanges
from ndcollector.sources.config import SourcesConfig
from ndcollector.sources.facts import Facts, Region, channels_in, needle_of, said_by
from ndcollector.sources.listening import Listening
from ndcollector.sources.rows import plain, row_of, source_of
from ndcollector.sources.silence import Silence, allowed, is_watched
from ndcollector.sources.table import ENOUGH_PAUSES, Key, NoPlace, Source, Table
from ndcollector.sources.unsaved import Unsaved

log = logging.getLogger("sources")

NEWCOMERS = 1000
"""Unknown senders taken up in a second, some 18 ms of work; a flood of forged addresses is passed over beyond that.
One that the table has is none, whatever port it sends from: passed over, it would be called quiet."""
MOST_HEARD = 100_000
"""Packed origins of one second, beside those that are known; UDP has one for each port of a sender."""
LATE_SECONDS = 3.0
"""So long after an event was received its channel is known to have spoken, if no output lags."""
OTHERS = "(others)"
_SLICE = 250
_CACHED_BLOBS = 65_536
_LONGEST_CHANNEL = 128


AlertsEnd = Callable[[], tuple[str, int]]
"""The id and next sequence of the spool of alerts."""


class Heard(NamedTuple):
    """Of one sender in one second."""

    events: int
    framing: int
    truncated: int
    framing_errors: int


_NOTHING = Heard(0, 0, 0, 0)


class Sources:
    """One per collector: `load` with the ledger, `run` beside it."""

    def __init__(
        self,
        config: Callable[[], SourcesConfig],
        *,
        node_name: str,
        metrics: Metrics,
        listening: Callable[[], Collection[str]],
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._listening = Listening(listening, clock=clock, monotonic=monotonic)
        self._clock = clock
        self._table = Table(self._make_room)
        self._silence = Silence(config, self._listened_since)
        self._alerts_end: AlertsEnd | None = None
        self._alerts = Alerts(
            node_name=node_name,
            metrics=metrics,
            next_sequence=lambda: self._alerts_end()[1] if self._alerts_end else 0,
            said=self._was_said,
        )
        self._by_blob: dict[bytes, Source | None] = {}
        self._heard: dict[bytes, Heard] = {}
        self._heard_at = 0.0
        self._facts, self._older = Facts(), Facts()
        self._in_doubt: set[Source] = set()
        self._wanted: dict[bytes, tuple[bytes, ...]] = {}
        self._received: dict[str, int] = {}  # stream → up to where it was received, decoded, and when that came in
        self._decoded: dict[str, tuple[int, float]] = {}
        self._looked: dict[str, tuple[int, float]] = {}  # of that what was taken up
        self._seen: dict[str, tuple[int, float]] = {}  # and will be next
        self._unsaved = Unsaved()
        self._newcomers = NEWCOMERS

    def __len__(self) -> int:
        return len(self._table)

    # ---- with the ledger's file

    def load(self, rows: Iterable[tuple[Any, ...]], said: Mapping[Key, Said]) -> None:
        """Take up what was saved, and what was said after that. Raises ValueError, TypeError for what is no row."""
        most = self._config().max_sources
        now = self._clock()
        for row in rows:
            source = source_of(row)
            source.not_after(now)
            self._table.add(source, most=most)
        for (name, channel), last in said.items():
            found, at = self._table.get(name, channel), min(last.at, now)
            if found is None and last.what == "quiet":  # it was never saved
                found = self._add(Source(name, channel, at, last_seen=at, input=last.input))
            if found is not None:
                found.quiet_since = at if last.what == "quiet" else 0.0
                found.last_seen = max(found.last_seen, 0.0 if last.what == "quiet" else at)
                self._table.place(found)
                self._unsaved.at_once(found.key)
        self._silence.again(iter(self._table), now)

    def attach(self, alerts_end: AlertsEnd) -> None:
        """Say from now on who is quiet and who is back; `alerts_end` is where the spool ends that takes it."""
        self._alerts_end = alerts_end

    def changes(self, *, everything: bool) -> SourceChanges:
        """What is to be written now; it counts as written from here on."""
        keys, gone = self._unsaved.take(self._clock())
        found = iter(self._table) if everything else (self._table.get(*key) for key in keys)
        rows = [row_of(source) for source in found if source is not None]
        said = None if self._alerts_end is None else (self._alerts_end()[0], self._alerts.said_until)
        return SourceChanges(rows, gone, said, everything)

    def save_all(self) -> None:
        """Have everything that changed written by the next `changes`: the collector stops."""
        self._unsaved.everything_at_once()

    # ---- what it is told

    def heard(self, stream: str, fresh: Fresh) -> None:
        """What a spool has just committed."""
        self._received[stream] = fresh.position
        self._heard_at = max(self._heard_at, fresh.last_ns / 1e9)
        heard, flagged, framings = self._heard, fresh.flagged, fresh.framings
        for blob, count in fresh.events.items():
            known = heard.get(blob, _NOTHING)
            if known is _NOTHING and len(heard) >= MOST_HEARD and blob not in self._by_blob:
                self._pass_over()
                continue
            truncated, errors = flagged.get(blob, (0, 0))
            heard[blob] = Heard(known[0] + count, framings[blob], known[2] + truncated, known[3] + errors)

    def decoded(self, stream: str, batches: Sequence[EventBatch], end: int) -> None:
        """Records that were decoded for the first time, up to a sequence."""
        for batch in batches:
            self._facts.take(batch, self._wanted)
        if batches:
            self._decoded[stream] = end, batches[-1].received_at_ns / 1e9

    # ---- what operators ask

    def plain(self, pattern: str | None = None, *, only_quiet: bool = False) -> list[dict[str, object]]:
        """Sources whose name matches, the sender before its channels."""
        now = self._clock()
        found = [
            source for source in self._table
            if (pattern is None or fnmatchcase(source.name, pattern)) and (source.quiet_since or not only_quiet)
        ]  # fmt: skip
        return [self._row(source, now) for source in sorted(found, key=lambda one: one.key)]

    def expect(self, name: str, channel: str, seconds: float) -> dict[str, object]:
        """Let so much silence be allowed: 0 as learned, NEVER any; one that never came is awaited from now on.

        Raises LookupError where there is nothing to set back, NoPlace.
        """
        now = self._clock()
        source = self._table.get(name_of(name), channel[:_LONGEST_CHANNEL])
        if source is None:
            if not seconds:
                raise LookupError(f"no source {name!r}")
            source = Source(name_of(name), channel[:_LONGEST_CHANNEL], now, expected=seconds)
            if not self._table.add(source, most=self._config().max_sources):
                raise NoPlace("all sources.max_sources places are taken by sources that are expected")
        source.expected = seconds
        self._table.place(source)
        self._unsaved.at_once(source.key)
        self._silence.anew(source, now)
        return self._row(source, now)

    def forget(self, name: str, channel: str | None) -> int:
        """Forget a source with its channels, or one channel; how many those were. Raises LookupError."""
        found = [one for one in self._table.of(name_of(name)) if channel in (None, one.channel)]
        if not found:
            raise LookupError(f"no source {name!r}")
        for source in found:
            self._table.remove(source)
            self._unsaved.is_gone(source.key)
        return len(found)

    def _row(self, source: Source, now: float) -> dict[str, object]:
        allows = None
        if is_watched(source):
            allows = allowed(source, self._config(), since=min(self._silence.since(source), now), now=now)
        return {**plain(source, now), "quiet_after_seconds": allows}

    # ---- life

    async def run(self, accept: Accept) -> None:
        """Look once a second, and say what is to be said, until cancelled."""
        saying = asyncio.create_task(self._alerts.run(accept), name="sources: alerts")
        looking = asyncio.create_task(self._look(), name="sources")
        try:
            done, _ = await asyncio.wait({saying, looking}, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        finally:
            looking.cancel()
            saying.cancel()
            try:
                await asyncio.wait({looking, saying})
            except asyncio.CancelledError:
                saying.cancel()
                await asyncio.wait({looking, saying})
                raise

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self.tick()

    async def tick(self) -> None:
        """Take up what was noted, and see who is quiet."""
        now = self._clock()
        if self._listening.look(now):
            for known in self._table:
                known.not_after(now)
            self._unsaved.not_after(now)
            self._silence.again(iter(self._table), now)
        heard, self._heard = self._heard, {}
        # The ledger may tell of a newcomer a second after its events were decoded: those of the last second can wait.
        facts, self._older, self._facts = self._older, self._facts, Facts()
        self._looked, self._seen = self._seen, dict(self._decoded)
        at, self._heard_at = min(self._heard_at or now, now), 0.0  # ahead of us if the clock was set back since then
        items, self._newcomers = iter(heard.items()), NEWCOMERS
        while some := list(itertools.islice(items, _SLICE)):
            for blob, what in some:
                source = self._of(blob, at)
                if source is not None:
                    self._take_up(source, what, at)
            await asyncio.sleep(0)
        self._take_facts(facts, now)
        self._judge(now)
        self._metrics.sources.set(len(self._table))
        self._metrics.sources_quiet.set(self._table.quiet)

    # ---- taking up

    def _of(self, blob: bytes, at: float) -> Source | None:
        """The sender of a packed origin; None for our own, and for newcomers that are passed over."""
        if blob in self._by_blob:
            known = self._by_blob[blob]
            if known is None or known.segment is not None:
                return known
        return self._find(blob, at)

    def _known(self, blob: bytes) -> Source | None:
        """The sender of a packed origin that was heard before."""
        source = self._by_blob.get(blob)
        return source if source is not None and source.segment is not None else None

    def _find(self, blob: bytes, now: float) -> Source | None:
        """The sender of a packed origin, a newcomer where it is not known; None for our own and where all is taken."""
        try:
            origin = Origin.unpack(blob)
        except CorruptBody:
            return None
        source = None
        if origin.input != INPUT:
            name = name_of(origin.identity)
            source = self._table.get(name) or self._newcomer(name, now)
            if source is None:
                return None  # not remembered: there may be room the next time
            source.input, source.address = origin.input, origin.address[:64]
            if origin.agent_id:
                source.skew = float(origin.clock_skew_seconds)
        if len(self._by_blob) >= _CACHED_BLOBS:
            self._by_blob.clear()
        self._by_blob[blob] = source
        return source

    def _newcomer(self, name: str, now: float) -> Source | None:
        self._newcomers -= 1
        if self._newcomers < 0:
            self._pass_over()
            return None
        return self._add(Source(name, "", now))

    def _add(self, source: Source) -> Source | None:
        if self._table.add(source, most=self._config().max_sources):
            return source
        self._pass_over()
        return None

    def _take_up(self, source: Source, what: Heard, at: float) -> None:
        source.framing = int(what.framing)
        source.truncated += what.truncated
        source.framing_errors += what.framing_errors
        self._hear(source, what.events, at)

    def _hear(self, source: Source, events: int, at: float) -> None:
        """It spoke: learn from it, let it be back, watch it from now on."""
        before = source.last_seen or source.since
        listened_since = math.inf if self._is_distorted(source, at) else self._listened_since(source)
        source.heard(events, at, listened_since=listened_since)
        if source.wanted_since:
            source.wanted_since = 0.0
            self._in_doubt.discard(source)
        if source.quiet_since and not source.is_speaking:
            source.back_since = at
            self._say(source, "back", at, since=before)
        self._table.place(source)
        self._silence.watch(source, at)
        self._unsaved.soon(source.key, at)

    def _is_distorted(self, source: Source, at: float) -> bool:
        """A channel's pause that is unusually long only because its agent sent more than was looked at."""
        sender = self._table.get(source.name) if source.channel else None
        if sender is None or sender.sampled_at < source.last_seen or source.rhythm.pauses < ENOUGH_PAUSES:
            return False
        return at - source.last_seen > 2 * source.rhythm.usual(at, at)

    def _take_facts(self, facts: Facts, now: float) -> None:
        for blob, count in facts.failures.items():
            if source := self._known(blob):
                source.parse_failures += count
        for blob, sample in facts.samples.items():
            if source := self._known(blob):
                said = said_by(sample.line)
                source.format = said.format or source.format
                if said.skew is not None:
                    source.clock_is_ahead(said.skew)
        for region in facts.regions:
            if source := self._known(region.blob):
                self._take_region(source, region, now)
        for blob, needle in facts.found:
            for source in [one for one in self._in_doubt if needle_of(one.channel) == needle]:
                if (sender := self._known(blob)) is not None and sender.name == source.name:
                    self._hear(source, 1, now)

    def _take_region(self, sender: Source, region: Region, now: float) -> None:
        most = self._config().max_channels
        received = min(region.received, now)  # see tick
        if region.share < 1:
            sender.sampled_at = received
        for channel, events in channels_in(region.lines).items():
            name = channel[:_LONGEST_CHANNEL]
            source = self._table.get(sender.name, name)
            if source is None and self._table.channels(sender.name) >= most:
                name = OTHERS
                source = self._table.get(sender.name, name)
            if source is None and most:
                source = self._add(Source(sender.name, name, received))
            if source is not None and source.segment is not None:
                source.input, source.address, source.stream = sender.input, sender.address, region.stream
                source.is_estimate |= region.share < 1
                self._hear(source, round(events / region.share), received)

    # ---- who is quiet

    def _judge(self, now: float) -> None:
        if self._alerts.is_full:
            return
        for source in list(self._silence.overdue(now)):
            until = self._in_doubt_until(source, now) if source.channel else 0.0
            if until > now:
                self._silence.postpone(source, until, now)
            else:
                self._say(source, "quiet", now, since=self._silence.since(source))
        self._want()

    def _in_doubt_until(self, source: Source, now: float) -> float:
        """A channel may have spoken unnoticed: its outputs lag, or its agent sent more than was looked at.

        Or its agent is silent as a whole, which is told of once, and not for each of its channels.
        """
        due = self._silence.due(source, now)
        if self._looked_until(source, now) < due:
            return now + LATE_SECONDS
        sender, since = self._table.get(source.name), self._silence.since(source)
        if sender is None:
            return now
        if sender.last_seen < due and not source.expected and is_watched(sender):
            return now + LATE_SECONDS
        if sender.sampled_at <= since:
            return now
        if not source.wanted_since:
            source.wanted_since = now
            self._in_doubt.add(source)
        return source.wanted_since + allowed(source, self._config(), since=since, now=now)

    def _looked_until(self, source: Source, now: float) -> float:
        """Up to when a channel's events were looked at: now, unless the outputs of its stream lag."""
        end, at = self._looked.get(source.stream, (0, self._listening.began))
        return now if end >= self._received.get(source.stream, 0) else at

    def _want(self) -> None:
        """From now on search all that comes from their agents for channels in doubt."""
        self._wanted = {}
        self._in_doubt = {one for one in self._in_doubt if one.segment is not None and not one.quiet_since}
        if not self._in_doubt:
            return
        needles: dict[str, tuple[bytes, ...]] = {}
        for one in self._in_doubt:
            needles[one.name] = (*needles.get(one.name, ()), needle_of(one.channel))
        known = ((blob, source) for blob, source in self._by_blob.items() if source is not None)
        self._wanted = {blob: needles[source.name] for blob, source in known if source.name in needles}

    def _say(self, source: Source, what: What, now: float, *, since: float) -> None:
        usual = 0.0 if source.expected else source.rhythm.usual(since, since)
        if self._config().alerts and self._alerts_end is not None:
            self._alerts.say(source, what, now=now, since=since, usual=usual)
        else:
            self._was_said(Notice(source, what, now, source.events, b""))

    def _was_said(self, notice: Notice) -> None:
        """It is durable, or nobody wants to know."""
        source = notice.source
        source.quiet_since = notice.at if notice.what == "quiet" else 0.0
        if source.segment is None:
            return  # it had to make room, or was forgotten, meanwhile
        self._table.place(source)
        self._unsaved.at_once(source.key)
        if source.quiet_since and source.events > notice.events:  # it spoke while that was on its way
            self._say(source, "back", source.last_seen, since=source.quiet_since)
        self._silence.watch(source, self._clock())

    def _make_room(self, source: Source) -> None:
        self._metrics.sources_evicted.inc()
        self._unsaved.is_gone(source.key)

    def _pass_over(self) -> None:
        self._metrics.sources_passed_over.inc()

    # ---- since when we listen

    def _listened_since(self, source: Source) -> float:
        """One that is expected and never came may come through any input; a channel has its agent's time."""
        since = self._listening.since(source.input)
        sender = self._table.get(source.name) if source.channel else None
        return since if sender is None else max(since, sender.back_since)
