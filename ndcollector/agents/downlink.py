"""What the collector has for each agent: its policy, and telling inputs that it is another.

Promises: an input that fails to hand a policy on does not keep it from the others.
Refuses: making policies (ndcollector/policy does; it is attached here, or not).
"""

import logging
from collections.abc import Callable
from typing import Protocol

from ndagent.wire.status import PolicyStatus
from ndcollector.agents.member import Member

log = logging.getLogger("agents")


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


class Downlink:
    """One per fleet."""

    def __init__(self) -> None:
        self._policies: Policies | None = None
        self._subscribers: dict[object, Callable[[str], None]] = {}

    def attach(self, policies: Policies) -> Callable[[], None]:
        """Hand out these policies from now on; the result ends that."""
        self._policies = policies
        return policies.subscribe(self._tell_of)

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

    def _tell_of(self, agent_id: str) -> None:
        for changed in tuple(self._subscribers.values()):
            try:
                changed(agent_id)
            except Exception:
                log.exception("an input failed to hand on a policy, agents get it when they ask; please report this")
