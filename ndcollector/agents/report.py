"""An agent's report (wire/status.py) as the inventory keeps it."""

from ndagent.wire.status import AgentStatus
from ndcollector.agents.inventory import Report


def report_of(status: AgentStatus, document: bytes, *, now: float) -> Report:
    """The report and the sums that `agents ls` shows. The lag is by the agent's own clock, whatever that shows."""
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
