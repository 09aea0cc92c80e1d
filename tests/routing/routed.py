"""For tests of routing: batches through the real decoder, and outputs' settings without an output."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ndagent.core.interfaces import Routed
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section, pack_body
from ndcollector.routing.config import RoutedConfig
from ndcollector.routing.engine import make_engine

SPOOL = "k7"
FIREWALL = Origin("syslog_tls", "192.0.2.7", 40000, names=("URI:nd:device:fw-1",))


def syslog(*messages: bytes, origin: Origin = FIREWALL, sequence: int = 0, **settings: Any) -> EventBatch:
    """These messages as the decoder gives them with these settings."""
    return _decoded(messages, "syslog", origin, sequence, **{"keep_original": "always", **settings})


def ecs(*events: Mapping[str, Any] | bytes, sequence: int = 0) -> EventBatch:
    """These events (or lines) as they come from a sender of ECS."""
    lines = [one if isinstance(one, bytes) else orjson.dumps(one) for one in events]
    return _decoded(lines, "ecs", FIREWALL, sequence)


def _decoded(messages: Sequence[bytes], form: str, origin: Origin, sequence: int, **settings: Any) -> EventBatch:
    sections = [Section(origin, Framing.WHOLE, Flags.NONE, len(message), 1) for message in messages]
    body = b"".join(pack_body(Batch("security_events", form, 1_767_225_600 * 10**9, sections, list(messages))))
    return make_decoder(DecodeSettings("c", **settings)).decode(
        body, stream="security_events", spool_id=SPOOL, sequence=sequence, received_at_ns=1_767_225_600 * 10**9
    )


def route(events: EventBatch, **settings: Any) -> Routed:
    """What an output with these settings gets of the events."""
    engine = make_engine(RoutedConfig(type="test", **settings))
    return Routed(events) if engine is None else engine(events)


def sent(events: EventBatch, **settings: Any) -> list[dict[str, Any]]:
    """The events that an output with these settings is sent, decoded."""
    found = route(events, **settings)
    assert not found.failed
    return [orjson.loads(line) for line in found.events.lines()]


def only(events: EventBatch, *steps: dict[str, Any]) -> dict[str, Any]:
    """The one event behind these steps."""
    (event,) = sent(events, transform=list(steps))
    return event
