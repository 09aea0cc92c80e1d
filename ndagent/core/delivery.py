"""From an Output that may fail to one that does not: Retry(Breaker(Timeout(output))), and dead letters behind it.

`wrap` builds the chains, one for each stream over the one plug, `Delivery` is what the machine calls.

                    ┌─ security_events: Retry(Breaker( ─┐
    Delivery ── PerStream                               ├── Paced(Timeout(output))
                    └─ alerts:          Retry(Breaker( ─┘

Promises:
  * an event given to `Delivery.deliver` ends with the far side or in the dead-letter file, or the call does not return;
  * there is no last try: what is in the spool waits as long as it takes, full jitter between tries, the far side's
    Retry-After as the lower bound, and no longer than the far side is down (a closing breaker ends the wait);
  * what holds one stream back (its topic is missing, its route is refused) holds back no other one of the same output;
  * Rejected costs only the guilty: named ones at once, unnamed ones after about log2 sends each;
  * an output is called with a stream's events for the first time in the order in which they were given, also where an
    open breaker lets only one by: what keeps order inside must get it in order;
  * at most `in_flight` calls of a stream at a time, whoever sends: a replay of dead letters takes turns with the spool;
  * waiting for a rate limit is no failure, and keeps no stop waiting (`finish`);
  * one log line when a stream's sends fail and one when they work again, none per event.
Refuses: order between concurrent sends (an output that promises order pipelines inside), and to try `sync` again: what
a failed fsync left behind is unknown, so the caller must send again instead.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from ndagent.core import messages
from ndagent.core.backoff import full_jitter
from ndagent.core.breaker import Breaker, BreakerOpen
from ndagent.core.dead_letters import DeadLetters
from ndagent.core.interfaces import LONGEST_RETRY_AFTER_SECONDS, Output, Rejected, Route, Unavailable
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.pace import Paced, pieces
from ndagent.core.settings import OutputConfig, RateConfig, RetryConfig
from ndagent.core.waiting import Place, first
from ndagent.wire.record import EventBatch

_SAY_EVERY_SECONDS = 60.0
_WARN_FILL = 0.8

Bury = Callable[[EventBatch, Rejected, Sequence[str]], Awaitable[None]]
"""Returns once these rejected events, each with its own reason, are kept."""

Sleep = Callable[[float], Awaitable[None]]


def wrap(
    output: Output,
    *,
    name: str,
    config: OutputConfig,
    metrics: Metrics,
    clock: Callable[[], float],
    sleep: Sleep,
    random: Callable[[], float],
) -> "PerStream":
    """The whole of it. `clock` gives seconds and never jumps; `random` draws evenly from [0, 1)."""
    timed = Timeout(output, name=name, seconds=config.timeout, metrics=metrics, clock=clock)
    paced = Paced(timed, rate_of(config), clock=clock, sleep=sleep)
    metrics.unavailable.labels(name)  # there from the start: a rate needs the zero

    def chain(stream: str) -> Retry:
        breaker = Breaker(paced, name=name, stream=stream, config=config.breaker, metrics=metrics, clock=clock)
        return Retry(breaker, name=name, stream=stream, config=config, clock=clock, sleep=sleep, random=random)

    return PerStream(paced, chain)


def rate_of(config: OutputConfig) -> RateConfig:
    """The rate limit of an output; those of agents have none."""
    found: RateConfig = getattr(config, "rate", RateConfig())
    return found


class PerStream:
    """An Output whose streams fail, wait and recover each by itself; `chain` makes a stream's when it first sends.

    There are as many as the machine has spools.
    """

    def __init__(self, output: Paced, chain: "Callable[[str], Retry]") -> None:
        self.pace = output
        self._output = output
        self._chain = chain
        self._chains: dict[str, Retry] = {}

    async def send(self, events: EventBatch) -> None:
        """Return once the far side owns the events; raises Rejected, never Unavailable."""
        chain = self._chains.get(events.stream)
        if chain is None:
            chain = self._chains[events.stream] = self._chain(events.stream)
        await chain.send(events)

    async def sync(self) -> None:
        """As the wrapped output: one try (see the module's refusal); how it ends opens no breaker."""
        await self._output.sync()

    async def aclose(self) -> None:
        """As the wrapped output; a breaker that is no more has no state to show."""
        chains, self._chains = self._chains, {}
        for chain in chains.values():
            chain.retire()
        await self._output.aclose()


class Timeout:
    """An Output whose calls end in time: a late one is cancelled and Unavailable. Measures each send."""

    def __init__(
        self, output: Output, *, name: str, seconds: float, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._output = output
        self._seconds = seconds
        self._clock = clock
        self._duration = metrics.send_seconds.labels(name)
        self._sent_bytes = metrics.sent_bytes.labels(name)

    async def send(self, events: EventBatch) -> None:
        """As the wrapped output, within `seconds`."""
        started = self._clock()
        try:
            await self._in_time(self._output.send(events))
        finally:
            self._duration.observe(self._clock() - started)
        self._sent_bytes.inc(len(events.ndjson))

    async def sync(self) -> None:
        """As the wrapped output, within `seconds`."""
        await self._in_time(self._output.sync())

    async def aclose(self) -> None:
        """As the wrapped output: closing is bounded by whoever stops the program."""
        await self._output.aclose()

    async def _in_time(self, call: Awaitable[None]) -> None:
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                await call
        except TimeoutError as error:
            if not limit.expired():
                raise  # the output's own, such as ETIMEDOUT from a socket
            raise Unavailable(f"no answer within {self._seconds:g}s") from error


class Retry:
    """Sends a stream's events again until the far side takes or rejects them. The only part that waits."""

    def __init__(
        self,
        output: Breaker,
        *,
        name: str,
        stream: str,
        config: OutputConfig,
        clock: Callable[[], float],
        sleep: Sleep,
        random: Callable[[], float],
    ) -> None:
        self._output = output
        self._stream = stream
        self._config = config.retry
        self._turns = asyncio.Semaphore(config.in_flight)  # in the order of asking; nobody waits inside
        self._newcomers = asyncio.Lock()  # of the sends that the output has not been called with yet
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._log = logging.getLogger(name)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=clock)
        self._failing_since: float | None = None  # None also while a flapping far side has been reported often enough

    async def send(self, events: EventBatch) -> None:
        """Return once the far side owns the events; raises Rejected, never Unavailable."""
        async with Place(self._newcomers) as place:
            await self._send(events, place)

    async def _send(self, events: EventBatch, place: Place) -> None:
        attempt = 0
        while True:
            try:
                await self._try(events, place)
            except Rejected:
                self._note_answer()
                raise
            except BreakerOpen as refused:
                await self._pause(refused.retry_after_seconds or 0.0)
            except Unavailable as error:
                self._note_failure(error)
                await self._wait(attempt, error)
                attempt += 1
            else:
                return self._note_answer()

    async def _try(self, events: EventBatch, place: Place) -> None:
        async with self._turns:
            permit = self._output.admit()
            place.leave()  # whoever is next goes on once this one waits, and by then the output knows its events
            await self._output.call(permit, events)

    def retire(self) -> None:
        """Nothing will be sent any more."""
        self._output.retire()

    async def _wait(self, attempt: int, error: Unavailable) -> None:
        if error.retry_after_seconds:
            await self._sleep(min(error.retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS))
        await self._pause(_jitter(attempt, self._config, self._random))

    async def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the breaker closes: waiting on for a far side that is back helps nobody."""
        await first(self._sleep(seconds), self._output.until_closed())

    def _note_failure(self, error: Unavailable) -> None:
        if self._failing_since is None and self._throttle.allow("failing") is not None:
            self._failing_since = self._clock()
            self._log.warning(
                "not delivering stream %s: %s; its events wait in the spool and are sent again",
                self._stream, error.reason, extra=messages.NOT_DELIVERING,
            )

    def _note_answer(self) -> None:
        if self._failing_since is not None:
            self._log.info(
                "delivering again stream %s after %.0fs", self._stream, self._clock() - self._failing_since,
                extra=messages.DELIVERING_AGAIN,
            )
            self._failing_since = None


def _jitter(attempt: int, config: RetryConfig, random: Callable[[], float]) -> float:
    return full_jitter(attempt, initial_seconds=config.initial, maximum_seconds=config.maximum, random=random)


class Delivery:
    """One configured output as the machine sees it: wrapped, with its dead letters.

    `output` is what `wrap` made. The composition root makes one per output; `pause` is the wait of whoever restarts
    after a failure that sending again cannot heal. `route` says which events are for this output and how they look
    there; None: all, as they are.
    """

    def __init__(
        self,
        output: Output,
        *,
        name: str,
        config: OutputConfig,
        dead_letters: DeadLetters,
        clock: Callable[[], float],
        sleep: Sleep,
        random: Callable[[], float],
        route: Route | None = None,
        pace: Paced | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.sleep = sleep
        self.route = route
        self.dead_letters = dead_letters
        self.failed_syncs = 0
        """A sync that failed leaves in doubt what everybody had sent: who syncs later must have seen this number."""
        self._output = output
        self._pace = pace
        self._syncing = asyncio.Lock()
        self._is_filling = False
        self._random = random
        self._log = logging.getLogger(name)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=clock)

    def pieces(self, events: EventBatch) -> Iterable[EventBatch]:
        """The events as they are to be sent: with a rate limit, no more at a time than a second's worth."""
        return pieces(events, rate_of(self.config))

    async def deliver(self, events: EventBatch, *, bury: Bury | None = None) -> list[int]:
        """Return once each event is the far side's or a dead letter; the result is the sequences of the latter.

        `bury` is for who keeps them elsewhere than in this output's file.
        """
        dead_lettered: list[int] = []
        parts = [events]
        while parts:
            part = parts.pop()
            try:
                await self._output.send(part)
            except Rejected as refusal:
                guilty = _guilty(part, refusal)
                if guilty is None:
                    middle = len(part) // 2
                    parts += [part.select(range(middle, len(part))), part.select(range(middle))]
                    continue
                named = part.select(guilty)
                reasons = [refusal.reasons.get(index, refusal.reason) for index in guilty]
                await (bury or self._bury)(named, refusal, reasons)
                dead_lettered += named.sequences
                if innocent := sorted(set(range(len(part))).difference(guilty)):
                    parts.append(part.select(innocent))
        return dead_lettered

    async def bury(self, events: EventBatch, reason: str) -> Sequence[int]:
        """Return once events that must not be sent as they are are dead letters; the result is their sequences."""
        place = partial(self.dead_letters.append, events, reason=reason, is_routed=False)
        await self.until_written(place)
        self._say(f"{len(events)} events of stream {events.stream} could not be changed as configured ({reason})")
        return events.sequences

    async def bury_body(
        self,
        body: bytes,
        *,
        stream: str,
        spool_id: str,
        sequence: int,
        count: int,
        reason: str,
        received_at_ns: int | None = None,
    ) -> None:
        """Return once a record that cannot be decoded is a dead letter."""
        place = partial(self.dead_letters.append_body, body, stream=stream, spool_id=spool_id, sequence=sequence)
        await self.until_written(partial(place, count=count, reason=reason, received_at_ns=received_at_ns))
        self._say(f"{count} events of stream {stream} from sequence {sequence} cannot be decoded ({reason})")

    async def sync(self) -> None:
        """Make what `deliver` returned for survive a crash; raises whatever the output does, and then send again."""
        async with self._syncing:
            try:
                await self._output.sync()
            except BaseException:
                self.failed_syncs += 1
                raise

    def begin(self) -> None:
        """Sends may begin: after a `finish`, for the next run."""
        if self._pace is not None:
            self._pace.begin()

    async def finish(self) -> None:
        """Let no send begin that waits for the rate limit, and return when none is under way; never without a limit."""
        if self._pace is None:
            await asyncio.Event().wait()
        else:
            await self._pace.finish()

    async def pause(self, attempt: int) -> None:
        """Sleep as before try number `attempt` + 1 of a send."""
        await self.sleep(_jitter(attempt, self.config.retry, self._random))

    async def aclose(self) -> None:
        """Close the output."""
        await self._output.aclose()

    async def _bury(self, events: EventBatch, refusal: Rejected, reasons: Sequence[str]) -> None:
        place = partial(self.dead_letters.append, events, reason=refusal.reason, reasons=reasons)
        await self.until_written(partial(place, response=refusal.response))
        self._say(f"{len(events)} events rejected by the destination ({reasons[0]})")

    async def until_written(self, write: Callable[[], Awaitable[None]]) -> None:
        """A full or failing dead-letter file holds up this output, and only this one, until a person has made room."""
        attempt = 0
        while True:
            try:
                await write()
            except Unavailable as error:
                if self._throttle.allow("blocked") is not None:
                    self._log.error("output blocked: %s", error.reason, extra=messages.OUTPUT_BLOCKED)
            else:
                return self._warn_of_filling()
            await first(self.pause(attempt), self.dead_letters.until_room())
            attempt += 1

    def _warn_of_filling(self) -> None:
        fill = self.dead_letters.fill
        if fill >= _WARN_FILL and not self._is_filling:
            self._log.warning(
                "dead letters fill %.0f %% of dead_letter_max_bytes; at 100 %% this output is blocked. Look at them "
                "(%s), mend the cause, then send them again or remove them", 100 * fill, self.dead_letters.look,
                extra=messages.DEAD_LETTERS_FILLING,
            )
        self._is_filling = fill >= _WARN_FILL

    def _say(self, what: str) -> None:
        silenced = self._throttle.allow("buried")
        if silenced is not None:
            self._log.error(
                "%s; kept in %s, see: %s", what, self.dead_letters.path, self.dead_letters.look,
                extra={**messages.DEAD_LETTERS, "silenced": silenced},
            )


def _guilty(events: EventBatch, refusal: Rejected) -> Sequence[int] | None:
    """Positions the far side named, or the only one there is; None where halves must be tried to find out."""
    named = sorted({index for index in refusal.indexes or () if 0 <= index < len(events)})
    if named:
        return named
    return [0] if len(events) <= 1 else None
