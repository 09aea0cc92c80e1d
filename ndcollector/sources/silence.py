"""When a source counts as quiet; looked at only when it may be due.

    silent   from the last message on, or from when we began to listen again: a restart, an input that was down, a spool
             without room and a clock that jumped are no silence of anybody
    quiet    after `quiet_factor` times the longest of the usual pauses in that time, within `shortest_quiet` and
             `longest_quiet` (but never before twice the usual pause), or after what `sources expect` says

Promises: a heap of the moments at which something may be due, one for each source that is watched: work only for those,
at least once an hour for each, since nights end. Refuses: clocks, and raising anything.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator

from ndcollector.sources.config import SourcesConfig
from ndcollector.sources.rhythm import HOUR_SECONDS
from ndcollector.sources.table import ENOUGH_PAUSES, NEVER, Source

AT_ONCE = 500
"""Sources that are judged at a time: some microseconds each, on the loop."""
AGAIN_SECONDS = 10.0


def is_watched(source: Source) -> bool:
    """Whether its silence can mean something, now or after the time of learning."""
    if source.expected:
        return source.expected != NEVER
    return source.rhythm.pauses >= ENOUGH_PAUSES


def allowed(source: Source, config: SourcesConfig, *, since: float, now: float) -> float:
    """So many seconds of silence are nothing unusual, of a source that is watched."""
    if source.expected:
        return source.expected
    usual = source.rhythm.usual(since, now)
    longest = max(config.longest_quiet, 2 * usual)
    return max(config.shortest_quiet, min(config.quiet_factor * usual, longest))


class Silence:
    """`listening` says since when we listen to a source; `config` may change at any time."""

    def __init__(self, config: Callable[[], SourcesConfig], listening: Callable[[Source], float]) -> None:
        self._config = config
        self._listening = listening
        self._heap: list[tuple[float, int, Source]] = []
        self._numbers = itertools.count()

    def watch(self, source: Source, now: float) -> None:
        """See to it that the source is judged when it may be due; nothing if it is seen to already."""
        if not source.is_scheduled and not source.quiet_since and not source.is_speaking and is_watched(source):
            self._schedule(source, self.due(source, now), now)

    def again(self, sources: Iterator[Source], now: float) -> None:
        """Forget all moments and begin anew: the clock jumped."""
        for _, _, source in self._heap:
            source.is_scheduled = False
        self._heap.clear()
        for source in sources:
            self.watch(source, now)

    def anew(self, source: Source, now: float) -> None:
        """A person changed what is allowed of one: some ms among 20 000, where judging all of them took 80."""
        if source.is_scheduled:
            self._heap = [entry for entry in self._heap if entry[2] is not source]
            heapq.heapify(self._heap)
            source.is_scheduled = False
        self.watch(source, now)

    def since(self, source: Source) -> float:
        """From when on its silence counts."""
        return max(source.last_seen or source.since, self._listening(source))

    def due(self, source: Source, now: float) -> float:
        """When it will be quiet if it says nothing until then, as far as is known now; never while nobody listens."""
        config, since = self._config(), self.since(source)
        if math.isinf(since):
            return since
        due = since + allowed(source, config, since=since, now=now)
        return due if source.expected else max(due, source.since + config.learn)

    def overdue(self, now: float) -> Iterator[Source]:
        """Those that are quiet now, AT_ONCE moments of the heap at most; they are watched no more."""
        for _ in range(AT_ONCE):
            if not self._heap or self._heap[0][0] > now:
                return
            source = heapq.heappop(self._heap)[2]
            source.is_scheduled = False
            if source.segment is None or source.quiet_since or source.is_speaking or not is_watched(source):
                continue
            due = self.due(source, now)
            if due <= now:
                yield source
            else:
                self._schedule(source, due, now)

    def postpone(self, source: Source, until: float, now: float) -> None:
        """Judge it again then: it was due, and is in doubt."""
        self._schedule(source, until, now)

    def _schedule(self, source: Source, due: float, now: float) -> None:
        """Nobody listens to it: that may be over soon. An hour ends: what is usual may change."""
        source.is_scheduled = True
        latest = now + AGAIN_SECONDS if math.isinf(due) else (now // HOUR_SECONDS + 1) * HOUR_SECONDS
        heapq.heappush(self._heap, (min(due, latest), next(self._numbers), source))
