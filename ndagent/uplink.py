"""Builds the collector output: discovery, transports and envelope headers from configuration and identity.

Promises: an agent that is not enrolled has an output that says so and waits. Refuses: sending (outputs/collector.py).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from importlib import import_module

from ndagent.config import AgentConfig
from ndagent.core.interfaces import Unavailable
from ndagent.identity import Identity
from ndagent.membership import Membership
from ndagent.outputs import OUTPUTS, Target, Transport, TransportConfig, TransportContext
from ndagent.outputs.collector import Collector
from ndagent.outputs.discovery import Discovery
from ndagent.wire.envelope import Header
from ndagent.wire.record import EventBatch


class Uplink:
    """What the collector output is made of, asked anew whenever targets are looked for."""

    def __init__(
        self, config: AgentConfig, membership: Membership, *, run_id: str, offer: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._config = config
        self._membership = membership
        self._run_id = run_id
        self._offer = offer
        self._discovery: Discovery | None = None
        self._discovered_for: Identity | None = None

    def collector(self) -> Collector:
        """The output; make it on the running loop."""
        return Collector(
            self._config.delivery,
            targets=self._targets,
            open_way=self._open_way,
            seal=self._seal,
            clock=asyncio.get_running_loop().time,
            sleep=asyncio.sleep,
            random=random.random,
        )

    async def _targets(self) -> list[Target]:
        identity = self._identity()
        if self._discovery is None or self._discovered_for is not identity:
            spread = identity.agent_id if self._config.delivery.balance == "spread" else None
            clock = asyncio.get_running_loop().time
            proxied = {name for name, one in self._config.outputs.items() if getattr(one, "proxy", None)}
            self._discovery = Discovery(self._endpoints(identity), spread=spread, proxied=proxied, clock=clock)
            self._discovered_for = identity
        return await self._discovery.targets()

    def _endpoints(self, identity: Identity) -> dict[str, tuple[str, ...]]:
        """By name of the way, in the order of the configuration."""
        found: dict[str, tuple[str, ...]] = {}
        for name, settings in self._config.outputs.items():
            assert isinstance(settings, TransportConfig)  # noqa: S101 - the registry's models all are
            told = identity.endpoints.mqtt if settings.type == "mqtt" else identity.endpoints.https
            found[name] = told if settings.endpoints is None else settings.endpoints
        return found

    def _open_way(self, target: Target) -> Transport:
        settings = self._config.outputs[target.protocol]
        assert isinstance(settings, TransportConfig)  # noqa: S101 - as above
        context = TransportContext(
            agent_id=self._identity().agent_id,
            run_id=self._run_id,
            tls=lambda: self._membership.tls,
            pair=lambda: self._membership.pair,
            offer=self._offer,
        )
        transport: Transport = import_module(OUTPUTS[settings.type]).build(settings, context, target)
        return transport

    def _seal(self, events: EventBatch) -> Header:
        return Header(
            stream=events.stream,
            spool_id=events.spool_id,
            first=events.sequences[0],
            last=events.sequences[-1],
            count=len(events),
            length=len(events.ndjson),
            sent_at_ns=time.time_ns(),
            agent_id=self._identity().agent_id,
            run_id=self._run_id,
        )

    def _identity(self) -> Identity:
        if self._membership.identity is None:
            raise Unavailable("this agent is not enrolled: ndagent enroll --url https://COLLECTOR:8443 --token TOKEN")
        return self._membership.identity
