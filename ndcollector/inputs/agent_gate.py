"""What agents' inputs ask the fleet: may this agent speak, and what is there for it. The fleet is ndcollector/agents.

Promises of whoever implements it: every call returns at once (no waiting for disk or network), and raises nothing.
"""

from collections.abc import Callable
from typing import Protocol

from ndagent.wire.enrolment import Answer, EnrolRequest, RenewRequest


class Gate(Protocol):
    """The inventory and what hangs on it, as far as the inputs of agents need it."""

    def admit(self, agent_id: str, *, spool_id: str, run_id: str, address: str) -> str | None:
        """Why this agent may not send, or None. Called as it connects (both ids empty) and for each envelope.

        None with a spool id means that this spool is that agent's: its event ids are kept.
        """

    def seen(self, agent_id: str, *, address: str, transport: str, clock_skew: float | None = None) -> None:
        """The agent is connected over `transport` ("mqtt", "https"), or just sent.

        `clock_skew` is its clock minus ours, in seconds, where that was measured.
        """

    def status(self, agent_id: str, document: bytes) -> None:
        """What the agent reports of itself (see ndagent.wire.status), as it came."""

    def relayed_status(self, agent_id: str, document: bytes) -> None:
        """Like `status`, but through a broker: it may come late, so it says nothing about clocks and clones."""

    def public_keys(self, agent_id: str) -> tuple[bytes, ...]:
        """Public keys (SubjectPublicKeyInfo, DER) of its certificates that are good now, the newest first."""

    def lost(self, agent_id: str, document: bytes) -> None:
        """Its connection ended without a word; `document` is the will that it left for this case, b"" if none."""

    def downlink(self, agent_id: str) -> bytes | None:
        """The signed policy that is meant for this agent now."""

    def subscribe(self, changed: Callable[[str], None]) -> Callable[[], None]:
        """Call `changed` with an agent's id when its downlink is another; the result ends that."""

    def audit(self, kind: str, **fields: str) -> None:
        """Something that a person may have to answer for, such as a publish to another agent's topic."""


class Enroller(Protocol):
    """Who gives agents their certificates; every call may raise ndcollector.agents.enrolment.EnrolmentRefused."""

    async def enrol(self, request: EnrolRequest, address: str) -> Answer:
        """A certificate for whoever has a good token."""

    async def renew(self, agent_id: str, request: RenewRequest, serial: str, address: str = "") -> Answer:
        """The next certificate of this agent, which came with the one of this serial number (upper-case hex)."""

    def authorities(self) -> str:
        """The CA certificates (PEM) that agents are to check collectors with."""
