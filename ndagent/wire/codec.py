"""One decision: the compiled codec where it was built, its pure twin otherwise or when ND_PURE_CODEC=1 says so.

Promises: both give the same bytes, so callers never ask which one they have, except to say it once at start.
"""

import os
from array import array
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import EventBatch

if TYPE_CHECKING:
    from ndagent.wire.event_frames import Frame
    from ndagent.wire.framing import Framer
    from ndagent.wire.kafka_records import RecordBatch, RecordLimits, Stamps, Strays
    from ndagent.wire.netflow.steps import Plan

PURE_VARIABLE = "ND_PURE_CODEC"


class Decoder(Protocol):
    """What make_decoder gives; thread-safe, the compiled one lets other threads run while it works."""

    def decode(
        self,
        body: bytes | memoryview,
        *,
        stream: str,
        spool_id: str,
        sequence: int,
        received_at_ns: int,
        replay: bool = False,
    ) -> EventBatch:
        """The events of one record body; raises CorruptBody."""


class RecordCodec(Protocol):
    """What record_codec gives: the functions of kafka_records.py that have a twin; all but the last leave the GIL."""

    def find_strays(self, events: EventBatch) -> "array[int]":
        """Positions of events whose key is not the host's text as it stands in the line."""

    def encode_records(
        self, events: EventBatch, *, partitions: int, strays: "Strays", stamps: "Stamps", limits: "RecordLimits"
    ) -> "tuple[list[RecordBatch], list[int]]":
        """Batches in order, and positions of events that are too large."""

    def crc32c(self, data: bytes | bytearray | memoryview) -> int:
        """CRC-32C of the bytes."""

    def join_crc32c(self, front: int, back: int, back_bytes: int) -> int:
        """The CRC of two pieces from each one's."""


class FrameCodec(Protocol):
    """What frame_codec gives: event_frames.py's function that has a twin, which leaves the GIL."""

    def frame_events(self, events: EventBatch, frame: "Frame", *, hosts: Sequence[bytes]) -> bytes:
        """The events in their frames, one after the other."""


class FlowWriter(Protocol):
    """What flow_writer gives: the lines of a set of flow records, by a plan."""

    def write(
        self, content: memoryview, *, head: bytes, observer: bytes, about: bytes, rate: int, export_ms: int,
        uptime_ms: int,
    ) -> bytes:  # fmt: skip
        """A line for each whole record; the arguments are parts.Context's."""


def _load() -> Any:
    if os.environ.get(PURE_VARIABLE) == "1":
        return None
    try:
        _codec = import_module("ndagent.wire._codec")  # absent where no compiler was; has no types
    except ImportError:
        return None
    return _codec


_compiled = _load()


def codec_name() -> Literal["compiled", "pure"]:
    """Which twin this process runs; said once at start."""
    return "pure" if _compiled is None else "compiled"


def make_framer(max_message_bytes: int) -> "Framer":
    """A framer for one connection; a message longer than this is cut."""
    if _compiled is not None:
        return _compiled.Framer(max_message_bytes)  # type: ignore[no-any-return]  # the extension has no types
    from ndagent.wire.framing import Framer  # only the twin that runs is loaded

    return Framer(max_message_bytes)


def make_decoder(settings: DecodeSettings) -> Decoder:
    """A decoder with these settings, for any number of records and threads."""
    if _compiled is not None:
        return _compiled.Decoder(settings)  # type: ignore[no-any-return]  # the extension has no types
    from ndagent.wire.decoder import Decoder as PureDecoder  # only the twin that runs is loaded

    return PureDecoder(settings)


def record_codec() -> RecordCodec:
    """Kafka's record batches."""
    found: Any = _compiled if _compiled is not None else import_module("ndagent.wire.kafka_records")
    return found  # type: ignore[no-any-return]  # modules are not checked against protocols


def frame_codec() -> FrameCodec:
    """Bodies of HTTP requests."""
    found: Any = _compiled if _compiled is not None else import_module("ndagent.wire.event_frames")
    return found  # type: ignore[no-any-return]  # modules are not checked against protocols


def flow_writer(plan: "Plan") -> FlowWriter | None:
    """Of this plan (netflow/steps.py); None without the compiled codec: lines.py then goes through columns."""
    return None if _compiled is None else _compiled.FlowWriter(plan)
