"""What the collector has for each agent: its policy, and telling inputs that it is another.

Promises: a change is told agent by agent, a slice at a time, so that signing for a large fleet does not stop the loop.
Refuses: making policies (ndcollector/policy does; it is attached here, or not).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from ndagent.wire.status import PolicyStatus
from ndcollector.agents.member import Member
from ndcollector.policy.store import PolicyStoreError

log = logging.getLogger("agents")

SLICE = 100


class Policies(Protocol):
    """Whoever makes and signs policies (policy.desk.PolicyDesk)."""

    def bundle_for(self, agent: Member, /) -> tuple[str, bytes] | None:
        """Entity tag and signed bundle for this agent now."""

    def subscribe(self, changed: Callable[[str], None], /) -> Callable[[], None]:
        """Call it with the id of each agent that may have another bundle."""

    def reported(self, agent_id: str, report: PolicyStatus, /) -> None:
        """What an agent says about its policy."""

    def agents_changed(self) -> None:
        """Agents are in other groups."""

    def forget(self, agent_id: str, /) -> None:
        """An agent was removed; raises PolicyStoreError."""


class Downlink:
    """One per fleet."""

    def __init__(self) -> None:
        self._policies: Policies | None = None
        self._subscribers: dict[object, Callable[[str], None]] = {}
        self._telling: asyncio.Task[None] | None = None
        self._changed: dict[str, None] = {}

    def attach(self, policies: Policies) -> Callable[[], None]:
        """Hand out these policies from now on; the result ends that."""
        self._policies = policies
        return policies.subscribe(self.changed)

    def bundle(self, member: Member) -> bytes | None:
        """The signed policy for this agent now."""
        found = self._policies.bundle_for(member) if self._policies is not None else None
        return None if found is None else found[1]

    def reported(self, agent_id: str, report: PolicyStatus | None) -> None:
        """Pass an agent's word on."""
        if self._policies is not None and report is not None:
            self._policies.reported(agent_id, report)

    def moved(self) -> None:
        """Agents are in other groups or have other names."""
        if self._policies is not None:
            self._policies.agents_changed()

    def gone(self, agent_ids: Iterable[str]) -> None:
        """Agents were removed."""
        for agent_id in agent_ids if self._policies is not None else ():
            try:
                self._policies.forget(agent_id)  # type: ignore[union-attr]  # looked at above
            except PolicyStoreError as error:
                log.warning("the policy of agent %s, which was removed, is not forgotten: %s", agent_id, error)

    def subscribe(self, changed: Callable[[str], None]) -> Callable[[], None]:
        """Call `changed` with an agent's id when its downlink may be another; the result ends that."""
        token = object()
        self._subscribers[token] = changed
        return lambda: self._subscribers.pop(token, None) and None

    def changed(self, agent_id: str) -> None:
        """Tell everybody about this agent, soon."""
        self._changed[agent_id] = None
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell(), name="telling of policies")

    async def aclose(self) -> None:
        """Stop telling."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait({self._telling})

    async def _tell(self) -> None:
        try:
            while self._changed:
                await asyncio.sleep(0)
                for agent_id in list(self._changed)[:SLICE]:
                    del self._changed[agent_id]
                    self._tell_of(agent_id)
        finally:
            self._telling = None

    def _tell_of(self, agent_id: str) -> None:
        for changed in tuple(self._subscribers.values()):
            try:
                changed(agent_id)
            except Exception:
                log.exception("an input failed to hand on a policy, agents get it when they ask; please report this")
