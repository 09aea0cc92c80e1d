"""What inputs that make ECS events themselves have in common: the fields of every event, and lines as a Batch.

Promises: the constants of an event are built once; a batch of lines is one section, its position beside it. Refuses:
`event.id` and `agent.id` (see ndagent.inputs).
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ndagent import __version__
from ndagent.inputs import HostFacts
from ndagent.wire.ecs import ECS_VERSION
from ndagent.wire.record import Batch, Checkpoint, Flags, Framing, Origin, Section


def base_fields(host: HostFacts) -> dict[str, Any]:
    """`ecs`, `agent` and `host` of an event made on this machine."""
    return {
        "ecs": {"version": ECS_VERSION.decode()},
        "agent": {"type": "ndagent", "version": __version__},
        "host": {"hostname": host.hostname, "name": host.name},
    }


def batch_of(
    lines: Sequence[bytes],
    *,
    origin: Origin,
    received_at_ns: int,
    stream: str = "security_events",
    position: bytes | Mapping[bytes, bytes] | None = None,
) -> Batch:
    """Lines (each with its LF) as one batch; `position` is where the input has read to with the last of them."""
    payload = b"".join(lines)
    section = Section(origin, Framing.LF, Flags.NONE, len(payload), len(lines))
    checkpoint = None if position is None else Checkpoint(origin.input, position)
    return Batch(stream, "ecs", received_at_ns, [section], [payload], checkpoint)


def timestamp(unix: float) -> str:
    """RFC 3339 in UTC with microseconds, as `@timestamp` and event.created have it."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
