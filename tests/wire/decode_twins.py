"""What the decoding tests share: bodies made of messages, and a decoder call with the arguments that rarely matter."""

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section, pack_body

Decode = Callable[..., EventBatch]
"""decode(settings, body, **arguments) through one twin."""

ORIGIN = Origin("syslog_tls", "192.0.2.50", 6514)
NOON_NS = 1_710_504_000_123_456_000  # 2024-03-15T12:00:00.123456Z
ARGUMENTS: dict[str, Any] = {
    "stream": "security_events",
    "spool_id": "k3v9",
    "sequence": 46655,
    "received_at_ns": NOON_NS,
}
PURE_ONLY = os.environ.get("ND_PURE_CODEC") == "1"


def decoder_class(twin: str) -> Any:
    """The decoder of the "pure" or the "compiled" twin; the latter must have been built, or the test fails."""
    return import_module("ndagent.wire.decoder" if twin == "pure" else "ndagent.wire._codec").Decoder


def twin_decode(twin: str) -> Decode:
    """A Decode through this twin."""

    def decode(settings: DecodeSettings, body: bytes, **arguments: Any) -> EventBatch:
        batch: EventBatch = decoder_class(twin)(settings).decode(body, **{**ARGUMENTS, **arguments})
        return batch

    return decode


def octet_counted(message: bytes) -> bytes:
    """The message as RFC 6587 §3.4.1 frames it."""
    return b"%d %b" % (len(message), message)


def section(
    payload: bytes, *, framing: Framing, flags: Flags = Flags.NONE, count: int = 1, origin: Origin = ORIGIN
) -> tuple[Section, bytes]:
    """A section and its bytes."""
    return Section(origin, framing, flags, len(payload), count), payload


def body_of_sections(sections: Sequence[tuple[Section, bytes]]) -> bytes:
    """A record body of these sections."""
    batch = Batch("security_events", "syslog", NOON_NS, [s for s, _ in sections], [payload for _, payload in sections])
    return b"".join(pack_body(batch))


def one_section(payload: bytes, *, framing: Framing, flags: Flags = Flags.NONE, count: int = 1) -> bytes:
    """A record body of one section."""
    return body_of_sections([section(payload, framing=framing, flags=flags, count=count)])


def body_of(frames: Sequence[bytes], *, framing: Framing) -> bytes:
    """A record body of one section with these frames."""
    return one_section(b"".join(frames), framing=framing, count=len(frames))


def messages_body(messages: Sequence[bytes]) -> bytes:
    """A record body in which every message is a section of its own, as UDP inputs make it."""
    return body_of_sections([section(message, framing=Framing.WHOLE) for message in messages])
