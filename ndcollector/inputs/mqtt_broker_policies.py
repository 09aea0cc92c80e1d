"""Puts each agent's signed policy where it looks for it: retained, on the broker that it speaks through.

Promises: only agents that were heard over this broker get one there; one publish at a time, acknowledged by the broker,
and changes that come meanwhile count once, as of then; after each new connection an agent's next message has its policy
published anew, because a broker may have lost what it retained.
Refuses: making policies. The broker can read a policy, and it can keep one back; it cannot change one: agents verify
the signature, and refuse older versions.
"""

import asyncio
import logging
from collections.abc import Callable

from ndagent.core.log import Throttle
from ndagent.wire.routes import Channel, topic
from ndcollector.inputs.agent_gate import Gate
from ndcollector.inputs.mqtt_broker_link import BrokerError, Link

_SAY_SECONDS = 600.0


class Policies:
    """`heard` and `changed` at any time; `start_anew`, then `run`, for each connection."""

    def __init__(self, gate: Gate, *, log: logging.Logger, clock: Callable[[], float]) -> None:
        self._gate = gate
        self._log = log
        self._throttle = Throttle(_SAY_SECONDS, clock=clock)
        self._published: dict[str, bytes] = {}  # by agent; verified ones only, so bounded by the inventory
        self._waiting: dict[str, None] = {}
        self._is_wanted = asyncio.Event()

    def start_anew(self) -> None:
        """What is retained at the broker is not known any more."""
        self._published.clear()
        self._waiting.clear()

    def heard(self, agent_id: str) -> None:
        """A verified message of this agent came over the broker."""
        if agent_id not in self._published:
            self._published[agent_id] = b""
            self.changed(agent_id)

    def changed(self, agent_id: str) -> None:
        """Its policy may be another."""
        if agent_id in self._published:
            self._waiting[agent_id] = None
            self._is_wanted.set()

    async def run(self, link: Link) -> None:
        """Publish over this connection until it is lost or this is cancelled."""
        while link.error is None:
            while self._waiting:
                agent_id = next(iter(self._waiting))
                del self._waiting[agent_id]
                await self._publish(link, agent_id)
            self._is_wanted.clear()
            await self._is_wanted.wait()

    async def _publish(self, link: Link, agent_id: str) -> None:
        policy = self._gate.downlink(agent_id)
        if policy is None or policy == self._published.get(agent_id):
            return
        try:
            await link.publish_retained(topic(agent_id, Channel.POLICY), policy)
        except BrokerError as error:
            if link.error is None and self._throttle.allow("policy") is not None:
                self._log.warning("the policy of agent %s is not published: %s", agent_id, error)
            return
        self._published[agent_id] = policy
