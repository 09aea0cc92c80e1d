"""The pure twin of the compiled decoder: a record body in, an EventBatch out; the readable specification.

Promises: every message of a section becomes exactly one line, whatever its bytes; the same body, arguments and
settings give the same bytes, here and in `_codec`; time is linear in the body. Refuses: clocks, I/O, and bodies whose
sections do not hold the messages they count (CorruptBody).

One trailing LF, CR or NUL is no part of a message; where LF ends it, one CR or NUL before that (RFC 6587 §3.4.2 and
what senders do). A message with a valid PRI is RFC 5424 if VERSION 1 follows, else RFC 3164 (also if VERSION is all
that it has of RFC 5424: "1 Mar 15 …"); one without, and one without anything behind its PRI, is a parse failure. PRI is
1 to 3 digits up to 191 (RFC 5424 §6.2.1), leading zeros accepted.
"""

import re
from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from ndagent.wire import rfc3164, rfc5424
from ndagent.wire.ecs import (
    DecodeSettings,
    Fields,
    Line,
    LineContext,
    OriginCache,
    PreparedOrigin,
    build_line,
    have_sources,
    line_context,
    partition_key,
)
from ndagent.wire.ecs_lines import EcsLines
from ndagent.wire.event_names import NameLines, name_lines
from ndagent.wire.record import NO_PRIORITY, SECTION, Body, CorruptBody, EventBatch, Flags, Framing, unpack_body
from ndagent.wire.times import received_text

if TYPE_CHECKING:
    from ndagent.wire.devices.enrich import Devices

_PRI = re.compile(rb"<([0-9]{1,3}+)>")
_FRAME = re.compile(rb"([0-9]{1,10}+) ")
_ONLY_VERSION = re.compile(rb"1 ++(?=(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec) ++[0-9])", re.IGNORECASE)
_TRIM = (b"\n", b"\r", b"\0")


class Decoder:
    """Decodes record bodies. Safe to call from several threads."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._origins = OriginCache(settings)
        self._devices = make_devices(settings)

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
        """The events of one record. `sequence` is its first event's, `received_at_ns` Unix time.

        Raises CorruptBody where the body's layout is wrong or a section does not hold the messages it counts.
        """
        record = open_body(body)
        if record.format == "ecs":
            return decode_ecs(record, self._settings, self._origins, stream, spool_id, sequence, received_at_ns, replay)
        context = line_context(self._settings, spool_id=spool_id, received=received_text(received_at_ns))
        prepared = [self._origins.get(blob) for blob in record.origins]
        collected = _Collector(sequence, received_at_ns // 10**9, context, self._devices)
        at = 0
        for index, length, count, framing, flags, _ in SECTION.iter_unpack(record.table):
            messages = split_messages(bytes(record.payload[at : at + length]), framing=framing, count=count)
            collected.add(messages, flags=flags & _KNOWN_FLAGS, index=index, origin=prepared[index])
            at += length
        collected.enrich()
        events = _as_batch(
            collected, record, stream=stream, spool_id=spool_id, received_at_ns=received_at_ns, replay=replay
        )
        return replace(events, are_origins_own=have_sources(prepared))


def make_devices(settings: DecodeSettings) -> "Devices | None":
    """The families of devices that the settings name; None where they name none, and then nothing of it is loaded."""
    if not settings.devices and not settings.origin_devices:
        return None
    from ndagent.wire.devices.enrich import Devices  # an agent has no use for it

    return Devices(settings)


_KNOWN_FLAGS = int(Flags.TRUNCATED | Flags.FRAMING_ERROR)


def decode_ecs(
    record: Body,
    settings: DecodeSettings,
    cache: OriginCache,
    stream: str,
    spool_id: str,
    sequence: int,
    received_at_ns: int,
    replay: bool,
    name: NameLines = name_lines,
) -> EventBatch:
    """A record of format `ecs`: the same code for both twins (ecs_lines.py), but for `name`. Raises CorruptBody."""
    context = line_context(settings, spool_id=spool_id, received=received_text(received_at_ns))
    prepared = [cache.get(blob) for blob in record.origins]
    found = EcsLines(sequence=sequence, spool_id=spool_id, context=context, origins=prepared, name_lines=name)
    at = 0
    for index, length, count, framing, flags, _ in SECTION.iter_unpack(record.table):
        payload = bytes(record.payload[at : at + length])
        at += length
        if not found.add_own(payload, count=count, framing=framing, flags=flags, index=index):
            found.add(split_messages(payload, framing=framing, count=count), flags=flags, index=index)
    return _as_batch(found, record, stream=stream, spool_id=spool_id, received_at_ns=received_at_ns, replay=replay)


def _as_batch(
    found: "_Collector | EcsLines", record: Body, *, stream: str, spool_id: str, received_at_ns: int, replay: bool
) -> EventBatch:
    return EventBatch(
        stream=stream,
        spool_id=spool_id,
        sequences=range(found.first, found.first + len(found.lines)),
        received_at_ns=received_at_ns,
        ndjson=b"".join(found.lines),
        lengths=array("I", map(len, found.lines)),
        priorities=bytes(found.priorities),
        host_offsets=found.host_offsets,
        host_lengths=found.host_lengths,
        keys=found.keys,
        origins=found.origins,
        origin_blobs=tuple(record.origins),
        replay=replay,
        parse_failures=found.failures,
    )


def open_body(body: bytes | memoryview) -> Body:
    """Take the body apart; both twins start with it. Raises CorruptBody."""
    record = unpack_body(body)
    if record.format not in ("syslog", "ecs"):
        raise CorruptBody(f"format {record.format!r}: this program reads 'syslog' and 'ecs'")
    for index, length, count, framing, _flags, _zero in SECTION.iter_unpack(record.table):
        # A message takes at least one byte ("\n") or two ("0 "): a hostile count must not size our arrays.
        most = 1 if framing == Framing.WHOLE else length // (2 if framing == Framing.OCTET_COUNTED else 1)
        if count > most or (framing == Framing.WHOLE and count != 1):
            raise CorruptBody(f"section of origin {index}: {length} bytes cannot hold {count} messages")
    return record


def split_messages(payload: bytes, *, framing: int, count: int) -> list[bytes]:
    """The messages of one section, trimmed. Raises CorruptBody where they are not as many as counted."""
    if framing == Framing.WHOLE:
        found = [payload]
    elif framing == Framing.LF:
        found = payload.split(b"\n")
        if not found[-1]:
            found.pop()
    else:
        found = list(_octet_counted(payload))
    if len(found) != count:
        raise CorruptBody(f"section counts {count} messages and holds {len(found)}")
    trim = _TRIM[1:] if framing == Framing.LF else _TRIM
    return [message[:-1] if message.endswith(trim) else message for message in found]


def _octet_counted(payload: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(payload):
        frame = _FRAME.match(payload, at)
        end = frame.end() + int(frame[1]) if frame else 0
        if frame is None or end > len(payload):
            raise CorruptBody(f"section: no whole octet-counted message at byte {at}")
        yield payload[frame.end() : end]
        at = end


class _Collector:
    """Lines and the arrays parallel to them, growing message by message."""

    def __init__(self, sequence: int, near: int, context: LineContext, devices: "Devices | None") -> None:
        self.first, self._near, self._context, self._devices = sequence, near, context, devices
        self._hits: list[tuple[int, int]] = []  # places of the events that a family of devices knows, and which
        self.lines: list[bytes] = []
        self.failures: int | None = None  # as many as have no priority
        self.priorities = bytearray()
        self.host_offsets, self.host_lengths = array("I"), array("H")
        self.keys, self.origins = array("I"), array("I")

    def add(self, messages: list[bytes], *, flags: int, index: int, origin: PreparedOrigin) -> None:
        """One line for each message of one section."""
        for raw in messages:
            priority, fields = parse_message(raw, origin=origin, near=self._near)
            line: Line = build_line(
                fields,
                raw=raw,
                priority=priority,
                flags=flags,
                sequence=self.first + len(self.lines),
                context=self._context,
                origin=origin,
            )
            self._note(fields, origin)
            self.lines.append(line.json)
            self.priorities.append(NO_PRIORITY if priority is None else priority)
            self.host_offsets.append(line.host_offset)
            self.host_lengths.append(line.host_length)
            self.keys.append(origin.key if fields.host is None else partition_key(fields.host))
            self.origins.append(index)


    def _note(self, fields: Fields, origin: PreparedOrigin) -> None:
        if self._devices is not None and (family := self._devices.family(fields, origin.device)) is not None:
            self._hits.append((len(self.lines), family))

    def enrich(self) -> None:
        """Give the events that a family knows what it says of them."""
        if self._devices is not None and self._hits:
            hits, families = zip(*self._hits, strict=True)
            lengths = array("I", map(len, self.lines))
            ndjson = self._devices.enrich(b"".join(self.lines), lengths, hits, families)
            ends = list(accumulate(lengths, initial=0))
            self.lines = [ndjson[start:end] for start, end in pairwise(ends)]


def parse_message(raw: bytes, *, origin: PreparedOrigin, near: int) -> tuple[int | None, Fields]:
    """PRI (None without a valid one) and the fields of one trimmed message."""
    match = _PRI.match(raw)
    if match is None or (priority := int(match[1])) > 191:
        return None, Fields(raw, error=b"no valid PRI" if raw else b"empty message")
    text = raw[match.end() :]
    if not text:
        return priority, Fields(text, error=b"nothing behind PRI")
    if (version := _ONLY_VERSION.match(text)) is not None:
        text = text[version.end() :]
    elif text.startswith(rfc5424.VERSION):
        return priority, rfc5424.parse(text, zone=origin.zone, near=near)
    return priority, rfc3164.parse(text, zone=origin.zone, near=near)
