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

log = logging.getLogger("agents")

SLICE = 100


class Policies(Protocol):
    """Whoever makes and signs policies (policy.desk.PolicyDesk)."""

    def bundle_for(self, agent: Member, /) -> tuple[str, bytes] | None:
        """Entity tag and signed bundle for this agent now."""

    def subscribe(self, callback: Callable[[], None], /) -> Callable[[], None]:
        """Call it when agents may have other bundles."""

    def reported(self, agent_id: str, report: PolicyStatus, /) -> None:
        """What an agent says about its policy."""

    def agents_changed(self) -> None:
        """Agents are in other groups."""


class Downlink:
    """`members` gives all agents that may get something."""

    def __init__(self, members: Callable[[], Iterable[Member]]) -> None:
        self._members = members
        self._policies: Policies | None = None
        self._subscribers: dict[object, Callable[[str], None]] = {}
        self._telling: asyncio.Task[None] | None = None
        self._again = False

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

    def subscribe(self, changed: Callable[[str], None]) -> Callable[[], None]:
        """Call `changed` with an agent's id when its downlink may be another; the result ends that."""
        token = object()
        self._subscribers[token] = changed
        return lambda: self._subscribers.pop(token, None) and None

    def changed(self) -> None:
        """Tell everybody, soon; a change while they are told makes another round."""
        self._again = True
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell(), name="telling of policies")

    async def aclose(self) -> None:
        """Stop telling."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait({self._telling})

    async def _tell(self) -> None:
        try:
            while self._again:
                self._again = False
                for number, member in enumerate(list(self._members()), 1):
                    self._tell_of(member.id)
                    if number % SLICE == 0:
                        await asyncio.sleep(0)
        finally:
            self._telling = None

    def _tell_of(self, agent_id: str) -> None:
        for changed in tuple(self._subscribers.values()):
            try:
                changed(agent_id)
            except Exception:
                log.exception("an input failed to hand on a policy, agents get it when they ask; please report this")
