"""The agent's decoder: events that its own inputs made get their `event.id`, and nothing else happens to them.

Syslog that devices sent to the agent is the exception: it is spooled as it came, and decoded by the collector's own
codec, which is loaded when the first such record is met.

Promises:
  * the events are those that ecs_lines.py would give, name for name and value for value; only where `event.id` stands
    among the members of `event` differs: first;
  * a line costs some 0.8 µs (event_names.py); parsing it and writing it anew costs four times as much, and the compiled
    codec, which the collector's decoder comes with, 2.5 MB of memory;
  * a record that is not like that (`event` stands in it twice or not at all, a section with flags) is decoded by
    ecs_lines.py.
Refuses: records that other hosts' lines are in: that those lines are JSON, with an `event` that has no id, is what
the contract of `ndagent.inputs` says of ours.

Priorities, hosts and keys are not filled in: they serve outputs that route and partition, and an agent has one that
does neither.
"""

from array import array
from functools import cached_property
from typing import TYPE_CHECKING

from ndagent.wire.decoder import decode_ecs, open_body, split_messages
from ndagent.wire.ecs import DecodeSettings, OriginCache
from ndagent.wire.event_names import named
from ndagent.wire.record import NO_PRIORITY, SECTION, Body, EventBatch, Flags

if TYPE_CHECKING:
    from ndagent.wire.codec import Decoder

_OWN = int(Flags.OWN)


class OwnDecoder:
    """Decodes the records of an agent's spool. Safe to call from several threads."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._origins = OriginCache(settings)

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
        """The events of one record; arguments and errors as for decoder.py."""
        record = open_body(body)
        if record.format == "syslog":
            return self._codec.decode(
                body, stream=stream, spool_id=spool_id, sequence=sequence, received_at_ns=received_at_ns, replay=replay
            )
        lines, origins = _named(record, spool_id.encode(), sequence)
        if lines is None:
            return decode_ecs(record, self._settings, self._origins, stream, spool_id, sequence, received_at_ns, replay)
        count = len(lines)
        return EventBatch(
            stream=stream,
            spool_id=spool_id,
            sequences=range(sequence, sequence + count),
            received_at_ns=received_at_ns,
            ndjson=b"".join(lines),
            lengths=array("I", map(len, lines)),
            priorities=bytes((NO_PRIORITY,)) * count,
            host_offsets=array("I", bytes(4 * count)),
            host_lengths=array("H", bytes(2 * count)),
            keys=array("I", bytes(4 * count)),
            origins=origins,
            origin_blobs=tuple(record.origins),
            replay=replay,
            parse_failures=0,
        )

    @cached_property
    def _codec(self) -> "Decoder":
        """Two threads may both make one; either will do."""
        from ndagent.wire.codec import make_decoder  # most agents have no use for it

        return make_decoder(self._settings)


def _named(record: Body, spool_id: bytes, sequence: int) -> "tuple[list[bytes] | None, array[int]]":
    """The lines with their ids and, parallel to them, origins; None where a line is not as we make them."""
    lines: list[bytes] = []
    origins = array("I")
    at = 0
    for index, length, count, framing, flags, _ in SECTION.iter_unpack(record.table):
        messages = split_messages(bytes(record.payload[at : at + length]), framing=framing, count=count)
        at += length
        if flags & ~_OWN or record.format != "ecs":
            return None, origins
        found = named(messages, spool_id=spool_id, first=sequence + len(lines))
        if found is None:
            return None, origins
        lines += found
        origins.extend(array("I", [index]) * count)
    return lines, origins
