"""The agent's one output: a batch goes to one of its collectors, by whichever way and to whichever address answers.

    send ──► body, compressed once ──► first target that is up ──(Unavailable)──► next one ──► … ──► Unavailable

Promises:
  * every try of a batch carries the same key and the same event ids, over any protocol: an input of a collector stores
    it once, and receivers can tell a repeat that came by another way;
  * a target that failed, or did not answer within `timeout`, is not used while another one is up; it is probed in the
    background, with full jitter between tries, and taken back when it answers, so that traffic returns to the preferred
    one by itself; what it asked for in Retry-After is kept, by sends and probes;
  * names are resolved again beside the sends, which do not wait for DNS once there is a target;
  * rate and bandwidth stay below what is configured, whatever has gathered in the spool.
Refuses: waiting for a collector to come back (the delivery chain around it does), storing anything.

Waiting for the rate is no failure: whoever calls `send` must not limit its time (app.py gives the chain around it a
day).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from ndagent.core import messages
from ndagent.core.backoff import full_jitter
from ndagent.core.interfaces import LONGEST_RETRY_AFTER_SECONDS, Rejected, Unavailable
from ndagent.core.log import Throttle
from ndagent.core.rate import Rate
from ndagent.core.settings import ByteSize, Duration, OutputConfig
from ndagent.outputs import Target, Transport
from ndagent.wire.envelope import Header, compress, seal
from ndagent.wire.record import EventBatch

log = logging.getLogger("collector")

NAME = "collector"
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 60.0
_LOOK_SECONDS = 1.0
_PROBE_SECONDS = 15.0
_SAY_EVERY_SECONDS = 10.0


class DeliveryConfig(OutputConfig):
    """How batches are made and sent, whichever way they go."""

    type: Literal["collector"] = Field(default="collector", description="The collectors: the only output of an agent.")
    on_full: Literal["block", "drop_oldest"] = Field(
        default="drop_oldest",
        description="When the spool is full: give up the oldest events (counted, and told to the collector), or let "
        "the inputs wait.",
    )
    in_flight: int = Field(default=4, ge=1, le=64, description="Sends under way at a time per stream.")
    batch_bytes: ByteSize = Field(
        default=256 * 1024, ge=1024, le=4 << 20, description="Events sent together, at most about this many bytes."
    )
    batch_age: Duration = Field(
        default=0.2, ge=0, le=60, description="How long a batch that is not full waits for more events."
    )
    balance: Literal["spread", "ordered"] = Field(
        default="spread",
        description="Which collector comes first. `spread`: each agent has an order of its own, so that a fleet uses "
        "them all. `ordered`: the first that is configured, the others only while it is away.",
    )
    events_per_second: int | None = Field(default=None, ge=1, description="At most so many events in the long run.")
    bytes_per_second: ByteSize | None = Field(
        default=None, ge=1024, description="At most so many bytes on the network in the long run."
    )
    rediscover_every: Duration = Field(
        default=60.0, ge=1, description="How often names and SRV records are resolved anew."
    )


@dataclass(slots=True, eq=False)
class Way:
    """One target with its transport, and how it has been doing."""

    target: Target
    transport: Transport
    is_up: bool = True
    failures: int = 0
    probe_at: float = 0.0
    not_before: float = 0.0  # what its Retry-After asked for


class Collector:
    """An Output. `seal` makes the header of a batch; `open_way` makes the transport of a target."""

    def __init__(
        self,
        config: DeliveryConfig,
        *,
        targets: Callable[[], Awaitable[list[Target]]],
        open_way: Callable[[Target], Transport],
        seal: Callable[[EventBatch], Header],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        random: Callable[[], float],
    ) -> None:
        self._config = config
        self._targets = targets
        self._open_way = open_way
        self._seal = seal
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._ways: list[Way] = []
        self._discovering = asyncio.Lock()
        self._discovered_at: float | None = None
        self._probing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=clock)
        self._limits: list[tuple[Rate, Callable[[Header, bytes], int]]] = []
        if config.events_per_second:
            self._limits.append((self._rate(config.events_per_second), lambda header, _: header.count))
        if config.bytes_per_second:
            self._limits.append((self._rate(config.bytes_per_second), lambda _, packed: len(packed)))
        self.endpoint = ""
        """Where the last batch or report went; empty while nothing answers."""

    def _rate(self, per_second: int) -> Rate:
        return Rate(per_second, burst=per_second, clock=self._clock, sleep=self._sleep)

    async def send(self, events: EventBatch) -> None:
        """See Output."""
        header = self._seal(events)
        body = compress(events.ndjson)
        bare = seal(header, body)
        for rate, amount in self._limits:
            await rate.take(amount(header, bare))

        def packed_for(way: Transport) -> bytes:
            sign = way.sign
            return bare if sign is None else seal(header, body, sign=sign)

        await self._through_one(lambda one: one.send(packed_for(one), header))

    async def report(self, document: bytes) -> None:
        """Hand a status report to a collector that is up; raises Unavailable, also where it cannot be read there."""
        try:
            await self._through_one(lambda transport: transport.report(document))
        except Rejected as error:
            raise Unavailable(error.reason) from error  # which says nothing about what becomes of events

    async def sync(self) -> None:
        """See Output: an acknowledged batch is on the collector's disk."""

    async def renew(self) -> None:
        """Certificates or endpoints changed: find the targets anew, with new connections."""
        async with self._discovering:
            self._discovered_at = None
            await self._replace([])

    async def aclose(self) -> None:
        """See Output."""
        self._closed = True
        tasks = {task for task in (self._probing, self._looking) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._replace([])

    async def _through_one(self, call: Callable[[Transport], Awaitable[None]]) -> None:
        """By the first way that does it. Targets may change meanwhile: what is there now counts."""
        reasons: list[str] = []
        tried: set[Way] = set()
        while (way := await self._next_way(tried)) is not None:
            tried.add(way)
            try:
                await self._in_time(way, call)
            except Unavailable as error:
                reasons.append(error.reason)
                self._note_failure(way, error)
            else:
                self._note_answer(way)
                return
        self.endpoint = ""
        raise Unavailable("; ".join(reasons) or self._nobody(), self._retry_after())

    async def _in_time(self, way: Way, call: Callable[[Transport], Awaitable[None]]) -> None:
        limit = asyncio.timeout(self._config.timeout)
        try:
            async with limit:
                await call(way.transport)
        except TimeoutError:
            raise Unavailable(f"{way.target}: no answer within {self._config.timeout:g} s") from None

    async def _next_way(self, tried: set[Way]) -> Way | None:
        """One that is up; where none is, any that did not ask for more time: a probe may be a while off."""
        await self._discover()
        now = self._clock()
        ways = [way for way in self._ways if way.is_up] or [way for way in self._ways if way.not_before <= now]
        return next((way for way in ways if way not in tried), None)

    def _nobody(self) -> str:
        return "every collector asked for more time" if self._ways else "no collector is known"

    def _retry_after(self) -> float | None:
        """When the first one may be tried again; None where one of them asked for no time."""
        wait = min((way.not_before - self._clock() for way in self._ways), default=0.0)
        return wait if wait > 0 else None

    async def _discover(self) -> None:
        """See to it that there are targets; those that are known are used while others are looked for."""
        now, at = self._clock(), self._discovered_at
        if at is not None and now - at < self._config.rediscover_every:
            return
        if not self._ways:
            await self._look()
        elif self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_again(), name="collector: discovery")

    async def _look_again(self) -> None:
        try:
            await self._look()
        except Unavailable as error:
            log.debug("no new targets: %s", error.reason)

    async def _look(self) -> None:
        async with self._discovering:
            found = await self._targets()
            if self._closed:
                raise Unavailable("the output is closed")
            known = {way.target: way for way in self._ways}
            if found or not self._ways:
                await self._replace([known.get(one) or Way(one, self._open_way(one)) for one in found])
            self._discovered_at = self._clock() if found else None

    async def _replace(self, ways: list[Way]) -> None:
        old, self._ways = self._ways, ways
        gone = [way.transport.aclose() for way in old if way not in ways]
        await asyncio.gather(*gone, return_exceptions=True)

    def _note_answer(self, way: Way) -> None:
        way.is_up, way.failures, way.not_before = True, 0, 0.0
        if self.endpoint != str(way.target):
            self.endpoint = str(way.target)
            log.info("sending to %s", self.endpoint, extra=messages.SENDING_TO)

    def _note_failure(self, way: Way, error: Unavailable) -> None:
        now = self._clock()
        if error.retry_after_seconds:
            way.not_before = now + min(error.retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS)
        if not way.is_up and now < way.probe_at:
            return  # one of several sends that failed together
        if way.is_up and len(self._ways) > 1 and self._throttle.allow(way.target) is not None:
            log.warning("%s; the next collector is used until it is back", error.reason, extra=messages.COLLECTOR_LEFT)
        pause = full_jitter(
            way.failures, initial_seconds=_FIRST_PAUSE_SECONDS, maximum_seconds=_LONGEST_PAUSE_SECONDS,
            random=self._random,
        )  # fmt: skip
        way.is_up, way.failures, way.probe_at = False, way.failures + 1, max(now + pause, way.not_before)
        if not self._closed and (self._probing is None or self._probing.done()):
            self._probing = asyncio.create_task(self._probe_those_away(), name="collector: probing")

    async def _probe_those_away(self) -> None:
        """Until every target is up: ask those whose pause is over, all of them at a time."""
        while away := [way for way in self._ways if not way.is_up]:
            now = self._clock()
            await asyncio.gather(*(self._probe(way) for way in away if way.probe_at <= now))
            await self._sleep(_LOOK_SECONDS)

    async def _probe(self, way: Way) -> None:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await way.transport.probe()
        except Unavailable as error:
            self._note_failure(way, error)
        except TimeoutError:
            self._note_failure(way, Unavailable(f"{way.target}: no answer within {_PROBE_SECONDS:g} s"))
        except Exception:
            log.exception("%s cannot be probed; please report this traceback", way.target)
            self._note_failure(way, Unavailable("see the traceback"))
        else:
            way.is_up = True  # its failures are forgotten when it takes something: it may answer and refuse
            if self._throttle.allow((way.target, "back")) is not None:
                log.info("%s is back", way.target)
