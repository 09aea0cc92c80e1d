"""The agent's one output: a batch goes to one of its collectors, by whichever way and to whichever address answers.

    send ──► body, compressed once ──► first target that is up ──(Unavailable)──► next one ──► … ──► Unavailable

Promises:
  * every try of a batch carries the same key and the same event ids, over any protocol, so that a collector stores it
    once and receivers can tell a repeat;
  * a target that failed is not used while another one is up; it is probed in the background, with full jitter between
    tries, and taken back when it answers, so that traffic returns to the preferred one by itself;
  * rate and bandwidth stay below what is configured, whatever has gathered in the spool.
Refuses: waiting for a collector to come back (the delivery chain around it does), storing anything.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from ndagent.core.backoff import full_jitter
from ndagent.core.interfaces import Unavailable
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
        self._limits: list[tuple[Rate, Callable[[Header, bytes], int]]] = []
        if config.events_per_second:
            self._limits.append((self._rate(config.events_per_second), lambda header, _: header.count))
        if config.bytes_per_second:
            self._limits.append((self._rate(config.bytes_per_second), lambda _, body: len(body)))
        self.endpoint = ""
        """Where the last batch or report went; empty while nothing answers."""

    def _rate(self, per_second: int) -> Rate:
        return Rate(per_second, burst=per_second, clock=self._clock, sleep=self._sleep)

    async def send(self, events: EventBatch) -> None:
        """See Output."""
        header = self._seal(events)
        body = compress(events.ndjson)
        for rate, amount in self._limits:
            await rate.take(amount(header, body))
        await self._through_one(lambda one: one.send(seal(header, body, sign=one.sign), header))

    async def report(self, document: bytes) -> None:
        """Hand a status report to a collector that is up; raises Unavailable."""
        await self._through_one(lambda transport: transport.report(document))

    async def sync(self) -> None:
        """See Output: an acknowledged batch is on the collector's disk."""

    async def renew(self) -> None:
        """Certificates or endpoints changed: find the targets anew, with new connections."""
        self._discovered_at = None
        await self._replace([])

    async def aclose(self) -> None:
        """See Output."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing})
        await self._replace([])

    async def _through_one(self, call: Callable[[Transport], Awaitable[None]]) -> None:
        reasons: list[str] = []
        retry_after: list[float] = []
        for way in await self._candidates():
            try:
                await call(way.transport)
            except Unavailable as error:
                reasons.append(error.reason)
                retry_after += [error.retry_after_seconds] if error.retry_after_seconds else []
                self._note_failure(way, error.reason)
            else:
                self._note_answer(way)
                return
        self.endpoint = ""
        raise Unavailable("; ".join(reasons) or "no collector is known", min(retry_after, default=None))

    async def _candidates(self) -> list[Way]:
        """Those that are up; where none is, all of them: a probe may be a while off."""
        await self._discover()
        return [way for way in self._ways if way.is_up] or list(self._ways)

    async def _discover(self) -> None:
        async with self._discovering:
            now = self._clock()
            due = self._discovered_at is None or now - self._discovered_at >= self._config.rediscover_every
            if not due:
                return
            known = {way.target: way for way in self._ways}
            ways = [known.get(target) or Way(target, self._open_way(target)) for target in await self._targets()]
            if ways or not self._ways:
                await self._replace(ways)
            self._discovered_at = now

    async def _replace(self, ways: list[Way]) -> None:
        old, self._ways = self._ways, ways
        gone = [way.transport.aclose() for way in old if way not in ways]
        await asyncio.gather(*gone, return_exceptions=True)

    def _note_answer(self, way: Way) -> None:
        way.is_up, way.failures = True, 0
        if self.endpoint != str(way.target):
            self.endpoint = str(way.target)
            log.info("sending to %s", self.endpoint)

    def _note_failure(self, way: Way, reason: str) -> None:
        if way.is_up and len(self._ways) > 1:
            log.warning("%s; the next collector is used until it is back", reason)
        pause = full_jitter(
            way.failures, initial_seconds=_FIRST_PAUSE_SECONDS, maximum_seconds=_LONGEST_PAUSE_SECONDS,
            random=self._random,
        )  # fmt: skip
        way.is_up, way.failures, way.probe_at = False, way.failures + 1, self._clock() + pause
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe_those_away(), name="collector: probing")

    async def _probe_those_away(self) -> None:
        """Until every target is up: ask those whose pause is over."""
        while away := [way for way in self._ways if not way.is_up]:
            for way in away:
                if way.probe_at <= self._clock():
                    await self._probe(way)
            await self._sleep(_LOOK_SECONDS)

    async def _probe(self, way: Way) -> None:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await way.transport.probe()
        except (Unavailable, TimeoutError) as error:
            self._note_failure(way, str(error))
            return
        way.is_up, way.failures = True, 0
        log.info("%s is back", way.target)
