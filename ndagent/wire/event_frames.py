"""Each event between words made of its own fields: bodies of HTTP requests. The pure twin of _frames.pxi.

    frame = (b'{"create":{"_id":"', Part.ID, b'"}}\\n', Part.LINE, b"\\n")
    {"create":{"_id":"4k2…-1a"}}
    {"@timestamp":"2026-11-25T10:00:00.25Z",…}

Promises:
  * the event itself is copied byte for byte; nothing is parsed where a line looks as our decoder writes it;
  * `event.id` and `@timestamp` are those of the event, never of something inside it that is named alike: whoever could
    put his own id in their place would have his neighbour's event taken for delivered;
  * an event without an id (a transform took it) has the one of its place in the spool, one without a time that can be
    read the time when its batch was received: both the same whenever it is sent again;
  * the twins give the same bytes (tests/wire/test_event_frames.py).
Refuses: text that is no JSON (ID, TIME and EPOCH would not be found), and changing an event.

A line "looks as ours" if it is one JSON object without white space between tokens, whose keys `@timestamp` and `event`
(or `event.id`) stand there once and without escapes, and whose values have none. All others go through orjson.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import NamedTuple

import orjson

from ndagent.wire.ecs import base36
from ndagent.wire.record import EventBatch


class Part(IntEnum):
    """What of an event stands in a frame."""

    LINE = 1  # the event without its line feed
    ID = 2  # event.id as JSON text, without quotes
    HOST = 3  # the host's name as JSON text, without quotes; the origin's default where the event has none
    EPOCH = 4  # @timestamp in Unix seconds with its fraction; the receive time for one before 1970


class TimeSlice(NamedTuple):
    """Characters of @timestamp (YYYY-MM-DDThh:mm:ss…Z); below 19, so that every time has them."""

    start: int
    stop: int


Piece = bytes | Part | TimeSlice
Frame = Sequence[Piece]

TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z")
TIME_SLICE_END = 19
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


class Fields(NamedTuple):
    """What a frame can ask of one event: `time` in the form of TIME, `identity` as JSON text."""

    time: bytes
    identity: bytes
    epoch: bytes


def frame_events(events: EventBatch, frame: Frame, *, hosts: Sequence[bytes]) -> bytes:
    """The events in their frames, one after the other.

    `hosts` has, for each of `origin_blobs`, the JSON text for an event that names no host. Raises ValueError where the
    arrays do not fit the events, or the frame is none.
    """
    _check(events, frame, hosts)
    parts: list[bytes] = []
    for index, line in enumerate(events.lines()):
        fields = read_fields(line, events, index)
        for piece in frame:
            if isinstance(piece, bytes):
                parts.append(piece)
            elif isinstance(piece, TimeSlice):
                parts.append(fields.time[piece.start : piece.stop])
            elif piece is Part.LINE:
                parts.append(line[:-1])
            elif piece is Part.ID:
                parts.append(fields.identity)
            elif piece is Part.HOST:
                at = events.host_offsets[index]
                parts.append(line[at : at + events.host_lengths[index]] if at else hosts[events.origins[index]])
            else:
                parts.append(fields.epoch)
    return b"".join(parts)


def check_frame(frame: Frame) -> None:
    """Raise ValueError for a frame that asks for what not every time has."""
    for piece in frame:
        if isinstance(piece, TimeSlice) and not 0 <= piece.start <= piece.stop <= TIME_SLICE_END:
            raise ValueError(f"{piece} is outside of what every time has")


def _check(events: EventBatch, frame: Frame, hosts: Sequence[bytes]) -> None:
    check_frame(frame)
    count = len(events)
    parallel = (events.host_offsets, events.host_lengths, events.origins, events.sequences)
    if any(len(one) != count for one in parallel):
        raise ValueError("arrays of different lengths")
    if count and len(hosts) <= max(events.origins):
        raise ValueError(f"{len(hosts)} hosts are too few for the origins")
    columns = zip(events.lengths, events.host_offsets, events.host_lengths, strict=True)
    if sum(events.lengths) != len(events.ndjson) or any(not size or at + name > size for size, at, name in columns):
        raise ValueError("the arrays do not fit the events")


def read_fields(line: bytes, events: EventBatch, index: int) -> Fields:
    """The fields of one event, however it is written."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        document = {}
    event = document.get("event")
    identity = event.get("id") if isinstance(event, dict) else None
    if not isinstance(identity, str) or not identity:
        identity = document.get("event.id")
    if not isinstance(identity, str) or not identity:
        identity = f"{events.spool_id}-{base36(events.sequences[index]).decode()}"
    received = received_text(events)
    time = _time(document.get("@timestamp")) or received
    return Fields(time, orjson.dumps(identity)[1:-1], epoch(time) or epoch(received))


def received_text(events: EventBatch) -> bytes:
    """When the batch was received, in the form of TIME."""
    return _text(_EPOCH + timedelta(microseconds=events.received_at_ns // 1000))


def epoch(time: bytes) -> bytes:
    """A time in the form of TIME as Unix seconds; empty before 1970."""
    seconds = (datetime.fromisoformat(time[:TIME_SLICE_END].decode() + "+00:00") - _EPOCH) // _SECOND
    return b"%d%b" % (seconds, time[TIME_SLICE_END:-1]) if seconds >= 0 else b""


def _time(value: object) -> bytes | None:
    """The value in the form of TIME, if it is an instant at all (RFC 3339 §5.6: offsets too)."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        if TIME.fullmatch(value.encode()):
            return value.encode()
        return _text(moment.astimezone(UTC)) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):  # UnicodeEncodeError is a ValueError
        return None


def _text(moment: datetime) -> bytes:
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds").encode() + b"Z"
