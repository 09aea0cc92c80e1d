"""The agent's decoder: events that its own inputs made get their `event.id`, and nothing else happens to them.

Promises:
  * the events are those that ecs_lines.py would give, name for name and value for value; only where `event.id` stands
    among the members of `event` differs: first;
  * a line costs a look for `"event":{` and a joining of bytes, some 0.8 µs; parsing it and writing it anew costs four
    times as much, and the compiled codec, which the collector's decoder comes with, 2.5 MB of memory;
  * a record that is not like that (`event` stands in it twice or not at all, a section with flags) is decoded by
    ecs_lines.py.
Refuses: records that other hosts' lines are in: that those lines are JSON, with an `event` that has no id, is what
the contract of `ndagent.inputs` says of ours.

`"event":{"` cannot stand inside a JSON string, since its quotes would be escaped there. So one occurrence is the
`event` that every input gives, and a second one, in a member of the same name further down, is seen.

Priorities, hosts and keys are not filled in: they serve outputs that route and partition, and an agent has one that
does neither.
"""

from array import array

from ndagent.wire.decoder import decode_ecs, open_body, split_messages
from ndagent.wire.ecs import DecodeSettings, OriginCache, base36
from ndagent.wire.record import NO_PRIORITY, SECTION, Body, EventBatch

_EVENT = b'"event":{"'
_HUNDREDS = 36 * 36
_LAST_DIGITS = [base36(number).rjust(2, b"0") for number in range(_HUNDREDS)]


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


def _named(record: Body, spool_id: bytes, sequence: int) -> "tuple[list[bytes] | None, array[int]]":
    """The lines with their ids and, parallel to them, origins; None where a line is not as we make them."""
    lines: list[bytes] = []
    origins = array("I")
    at = 0
    for index, length, count, framing, flags, _ in SECTION.iter_unpack(record.table):
        messages = split_messages(bytes(record.payload[at : at + length]), framing=framing, count=count)
        at += length
        if flags or record.format != "ecs":
            return None, origins
        for raw, number in zip(messages, _base36_from(sequence + len(lines), count), strict=True):
            head, event, rest = raw.partition(_EVENT)
            if not event or _EVENT in rest:
                return None, origins
            lines.append(b'%b"event":{"id":"%b-%b","%b\n' % (head, spool_id, number, rest))
        origins.extend(array("I", [index]) * count)
    return lines, origins


def _base36_from(first: int, count: int) -> list[bytes]:
    """`base36` of so many numbers in a row."""
    found: list[bytes] = []
    while len(found) < count:
        high, low = divmod(first + len(found), _HUNDREDS)
        tails = _LAST_DIGITS[low : low + count - len(found)]
        if high:
            head = base36(high)
            found += [head + tail for tail in tails]
        else:
            found += [tail.lstrip(b"0") or b"0" for tail in tails]
    return found
