"""What the inventory's rows are in Python: an agent, its certificates, and what was heard of it.

Promises: plain frozen data; times are Unix seconds. Refuses: the database.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ndagent.wire.enrolment import HostFacts
from ndagent.wire.status import AgentStatus
from ndcollector.pki.store import Certificate


@dataclass(frozen=True, slots=True)
class Agent:
    """One row: who it is, and what was last heard of it. `runs` are ids of its processes, the newest last."""

    id: str
    name: str
    hostname: str
    os: str
    os_name: str
    architecture: str
    version: str
    group: str
    roles: tuple[str, ...]
    origin: str
    token_id: str | None
    enrolled_at: float
    first_seen: float | None
    last_seen: float | None
    address: str
    transport: str
    runs: tuple[str, ...]
    clock_skew: float | None
    pending_events: int | None
    pending_bytes: int | None
    lag_seconds: float | None
    policy_version: int | None
    policy_result: str | None
    trust_bundle: str
    endpoint: str | None
    status_at: float | None
    revoked_at: float | None
    revoked_reason: str | None
    clone_at: float | None
    clone_reason: str | None


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate of an agent. `spki` is its public key (DER); None where it is not known."""

    serial: str
    issuer: str
    not_before: float
    not_after: float
    spki: bytes | None
    revoked_at: float | None = None

    @classmethod
    def of(cls, entry: Certificate, spki: bytes | None) -> "Held":
        """From the PKI's index."""
        begin, end = entry.not_before.timestamp(), entry.not_after.timestamp()
        revoked_at = None if entry.revoked_at is None else entry.revoked_at.timestamp()
        return cls(entry.serial, entry.issuer, begin, end, spki, revoked_at)

    def is_current(self, now: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and now < self.not_after


@dataclass(frozen=True, slots=True)
class Newcomer:
    """An agent as it is added."""

    id: str
    facts: HostFacts
    origin: str
    group: str = ""
    roles: tuple[str, ...] = ()
    token_id: str | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """What the daemon has heard of an agent since it last wrote; None means nothing new of that kind."""

    id: str
    first_seen: float | None
    last_seen: float | None
    address: str
    transport: str
    runs: tuple[str, ...]
    clock_skew: float | None
    report: "Report | None" = None


@dataclass(frozen=True, slots=True)
class Report:
    """An agent's own words, taken apart."""

    status: bytes
    status_at: float
    hostname: str
    os: str
    version: str
    pending_events: int
    pending_bytes: int
    lag_seconds: float
    policy_version: int | None
    policy_result: str | None
    trust_bundle: str
    endpoint: str
    shed: Sequence[tuple[str, int, int, int]] = field(default_factory=tuple)  # input, since_ns, until_ns, events


@dataclass(frozen=True, slots=True)
class Remembered:
    """An agent as the daemon has it in memory."""

    newcomer: Newcomer
    name: str
    held: Sequence[Held]
    spools: Sequence[str]
    revoked_at: float | None
    clone_at: float | None


def report_of(status: AgentStatus, document: bytes, *, now: float) -> Report:
    """A report as it is kept, with the sums that `agents ls` shows; the lag is by the agent's own clock."""
    oldest = min((one.oldest_at_ns for one in status.spools if one.oldest_at_ns), default=status.sent_at_ns)
    policy = status.policy
    return Report(
        status=document,
        status_at=now,
        hostname=status.hostname,
        os=status.os,
        version=status.version,
        pending_events=sum(one.pending_events for one in status.spools),
        pending_bytes=sum(one.bytes for one in status.spools),
        lag_seconds=max(0.0, (status.sent_at_ns - oldest) / 1e9),
        policy_version=policy.version if policy is not None else None,
        policy_result=policy.result if policy is not None else None,
        trust_bundle=status.trust_bundle,
        endpoint=status.endpoint,
        shed=tuple((one.input, one.since_ns, one.until_ns, one.events) for one in status.shed),
    )
