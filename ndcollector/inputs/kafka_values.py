"""Values of Kafka records as batches for the spool: a pure function.

Promises: every value becomes one event in the order given, its bytes unchanged; a batch holds at most BATCH_EVENTS
events and ends soon after BATCH_BYTES. A value longer than `max_message_bytes` is cut and marked truncated.
Values without a line feed share a section, one value a line; the others stand in a section each.
Refuses: reading a value (raw first; the decoder's job), and records without one (tombstones): they hold no event, the
caller counts them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ndagent.wire.record import Batch, Flags, Framing, Origin, Section

BATCH_EVENTS = 8192
BATCH_BYTES = 2**20
"""As other inputs' batches: a record of the spool is decoded whole."""


@dataclass(frozen=True, slots=True)
class ValueSettings:
    """What all batches of an input share."""

    stream: str
    format: str
    max_message_bytes: int


@dataclass(slots=True)
class _Open:
    """The batch that is being filled, and in `lines` the values that will be its next section."""

    sections: list[Section] = field(default_factory=list)
    payload: list[bytes] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    events: int = 0
    length: int = 0

    def add(self, origin: Origin, value: bytes, flags: Flags) -> None:
        self.events += 1
        self.length += len(value) + 1
        if flags or b"\n" in value:
            self.end_lines(origin)
            self.sections.append(Section(origin, Framing.WHOLE, flags, len(value), 1))
            self.payload.append(value)
        else:
            self.lines.append(value)

    def end_lines(self, origin: Origin) -> None:
        if not self.lines:
            return
        count, self.lines = len(self.lines), [*self.lines, b""]
        payload = b"\n".join(self.lines)
        self.sections.append(Section(origin, Framing.LF, Flags.NONE, len(payload), count))
        self.payload.append(payload)
        self.lines = []


def batches_of(
    runs: Iterable[tuple[Origin, Sequence[bytes]]], *, received_at_ns: int, settings: ValueSettings
) -> list[Batch]:
    """The batches for these values, run after run; one run's values come from one partition."""
    found: list[_Open] = []
    current = _Open()
    for origin, values in runs:
        for value in values:
            flags = Flags.NONE
            if len(value) > settings.max_message_bytes:
                value, flags = value[: settings.max_message_bytes], Flags.TRUNCATED  # noqa: PLW2901 - the same value, cut
            current.add(origin, value, flags)
            if current.events >= BATCH_EVENTS or current.length >= BATCH_BYTES:
                current.end_lines(origin)
                found.append(current)
                current = _Open()
        current.end_lines(origin)
    if current.events:
        found.append(current)
    return [Batch(settings.stream, settings.format, received_at_ns, one.sections, one.payload) for one in found]
