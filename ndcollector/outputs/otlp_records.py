"""Events as OpenTelemetry log records: which field goes where, and the bytes of an ExportLogsServiceRequest.

    ECS                              OTLP
    @timestamp                       time_unix_nano
    event.created (when received)    observed_time_unix_nano
    log.syslog.severity.code         severity_number (Logs Data Model, Appendix B), severity_text is its name
    message                          body
    host.name                        resource attribute host.name            (Appendix A: RFC5424 HOSTNAME)
    service.name, else the app-name  resource attribute service.name         (Appendix A: RFC5424 APP-NAME)
    observer.*                       resource attributes of that name
    event.id                         attribute log.record.uid                (semantic conventions, general logs)
    event.original                   attribute log.record.original           (the same)
    everything else                  attributes of the dotted ECS name
    the stream                       attribute ndcollector.stream of the scope `ndcollector`

Promises:
  * a record for each event, in order within its resource; nothing of an event is left out, in whatever form it is;
  * attribute names are flat and dotted: so are OpenTelemetry's own, and what backends index. Where names are the
    device's and no schema's (log.syslog.structured_data) the map stays a map, as in OpenTelemetry's syslog receiver;
  * names of a record are unique (the specification demands it): {"a.b": 1, "a": {"b": 2}} becomes a.b = [1, 2];
  * a time that cannot be told in nanoseconds since 1970 stays an attribute.
Refuses: trace and span ids (an event has none), I/O. Called in threads; its tables may be shared by several.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from typing import Any

import orjson

from ndagent import __version__
from ndagent.wire import otlp
from ndagent.wire.ecs import SEVERITIES
from ndagent.wire.record import NO_PRIORITY, CorruptBody, EventBatch, Origin

SEVERITY_NUMBERS = (21, 19, 18, 17, 13, 10, 9, 5)
"""By syslog severity, emergency to debug: OpenTelemetry Logs Data Model, Appendix B."""

JSON_FORMATS = ("ecs", "flat")
"""What a line is a JSON object in; any other is text, which goes into the body as it is."""

_CACHED = 16384
"""Attributes remembered: most of an event's repeat what the one before had."""
_CACHED_BYTES = 160
_DEPTH = 12  # nothing in ECS is deeper than six
_MAPS = frozenset({"log.syslog.structured_data", "message"})  # a body may be a map as well
_OBSERVER = ("name", "type", "product")
_RESOURCE = ("host.name", "service.name", *(f"observer.{name}" for name in _OBSERVER))

_SEVERITY = tuple(
    b"\x10" + otlp.varint(number) + otlp.message(0x1A, name.encode())  # severity_number = 2, severity_text = 3
    for number, name in zip(SEVERITY_NUMBERS, SEVERITIES, strict=True)
)
_ResourceKey = tuple[str | None, ...]
_Record = tuple[_ResourceKey, bytes]


class _IrregularError(Exception):
    """The names of an event may meet (one has a dot in it): they must be looked at all together."""


class _Name:
    """What is known of one name: itself in full, the attributes it had, and the names below it."""

    __slots__ = ("below", "full", "is_map", "values")

    def __init__(self, full: str) -> None:
        self.full = full
        self.is_map = full in _MAPS or full.count(".") >= _DEPTH
        self.values: dict[str | int, bytes] = {}  # value → LogRecord.attributes = 6
        self.below: dict[str, _Name] = {}


class Encoder:
    """Batches to request bodies. What it remembers of names and values is bounded, and starts over when it is full."""

    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}
        self._held = 0

    def encode(self, events: EventBatch) -> bytes:
        """The body of a request that holds these events."""
        made = self._from_json(events) if events.format in JSON_FORMATS else _from_text(events)
        grouped: dict[_ResourceKey, list[bytes]] = defaultdict(list)
        for resource, record in made:
            grouped[resource].append(b"\x12" + otlp.varint(len(record)) + record)  # ScopeLogs.log_records = 2
        scope = _scope(events.stream)
        return b"".join([_resource_logs(resource, scope, records) for resource, records in grouped.items()])

    def _from_json(self, events: EventBatch) -> Iterator[_Record]:
        for line in events.lines():
            try:
                yield self._record(line)
            except (orjson.JSONDecodeError, otlp.TooDeepError):  # half a surrogate pair, say: the line goes on as it is
                yield (), _body(line[:-1])

    def _record(self, line: bytes) -> _Record:
        """By the shape that nearly all events have; by their dotted names where that does not do."""
        if self._held >= _CACHED:
            self._names, self._held = {}, 0
        try:
            return self._nested(_object(line))
        except _IrregularError:
            return _dotted(flatten(_object(line)))

    def _nested(self, event: dict[str, Any]) -> _Record:
        inner, host, log = _part(event, "event"), _part(event, "host"), _part(event, "log")
        observer, service = _part(event, "observer"), _part(event, "service")
        syslog = _part(log, "syslog")
        if "record" in log:
            raise _IrregularError  # log.record.uid may be taken
        app = _text(service, "name") or syslog.get("appname")
        program = app if isinstance(app, str) else None
        resource = (_text(host, "name"), program, *[_text(observer, name) for name in _OBSERVER])
        parts = _front(event, syslog_severity=_part(syslog, "severity").get("code"))
        seen = _moment(inner, "created", 0x59)  # observed_time_unix_nano = 11
        for name, meaning in (("id", "log.record.uid"), ("original", "log.record.original")):
            if name in inner and not _part(inner, name):  # a map with something in it has names of its own
                parts.append(otlp.message(0x32, otlp.attribute(meaning, inner.pop(name))))
        for name, part in (("event", inner), ("host", host), ("observer", observer), ("service", service)):
            if not part and event.get(name) is part:
                del event[name]  # emptied here; one that came empty is another object
        self._walk(event, self._names, "", parts)
        return resource, b"".join([*parts, seen])

    def _walk(self, members: dict[str, Any], names: dict[str, _Name], prefix: str, parts: list[bytes]) -> None:
        for key, found in members.items():
            name = names.get(key) or self._learn(key, names, prefix)
            kind = found.__class__
            if kind is str or kind is int:  # by class: True == 1 would be found under the same key
                parts.append(name.values.get(found) or self._made(name, found))
            elif kind is dict and found and not name.is_map:
                self._walk(found, name.below, name.full + ".", parts)
            else:
                parts.append(otlp.message(0x32, otlp.attribute(name.full, found)))

    def _learn(self, key: str, names: dict[str, _Name], prefix: str) -> _Name:
        if "." in key:
            raise _IrregularError
        name = _Name(prefix + key)
        if self._held < _CACHED:
            names[key] = name
            self._held += 1
        return name

    def _made(self, name: _Name, found: str | int) -> bytes:
        made = otlp.message(0x32, otlp.attribute(name.full, found))
        if len(made) <= _CACHED_BYTES and self._held < _CACHED:
            name.values[found] = made
            self._held += 1
        return made


def _dotted(event: dict[str, Any]) -> _Record:
    """As Encoder._nested, of an event's members by dotted name: slower, and right whatever names there are."""
    severity = event.get("log.syslog.severity.code")
    app = _text(event, "service.name") or event.get("log.syslog.appname")
    observer = [_text(event, f"observer.{name}") for name in _OBSERVER]
    resource = (_text(event, "host.name"), app if isinstance(app, str) else None, *observer)
    parts = _front(event, syslog_severity=severity)
    seen = _moment(event, "event.created", 0x59)
    for name, meaning in (("event.id", "log.record.uid"), ("event.original", "log.record.original")):
        if name in event and meaning not in event:
            event[meaning] = event.pop(name)
    parts += [otlp.message(0x32, otlp.attribute(name, found)) for name, found in event.items()]
    return resource, b"".join([*parts, seen])


def _front(event: dict[str, Any], *, syslog_severity: Any) -> list[bytes]:
    """What a record has of its own, taken out of the event: time, severity, body."""
    parts = [_moment(event, "@timestamp", 0x09)]  # time_unix_nano = 1
    if syslog_severity.__class__ is int and 0 <= syslog_severity < 8:
        parts.append(_SEVERITY[syslog_severity])
    if "message" in event:
        parts.append(otlp.message(0x2A, otlp.value(event.pop("message"))))  # body = 5
    return parts


def _moment(members: dict[str, Any], name: str, tag: int) -> bytes:
    """A time as a field, taken out; nothing, and it stays, where it cannot be told in nanoseconds."""
    at = nanoseconds(members.get(name))
    if at is None:
        return b""
    del members[name]
    return otlp.fixed64(tag, at)


def _part(members: dict[str, Any], name: str) -> dict[str, Any]:
    """A member that is a map with something in it; else one that is nobody's."""
    found = members.get(name)
    return found if found.__class__ is dict and found else {}


def _object(line: bytes) -> dict[str, Any]:
    """What a line holds; one that holds no object is its message (a transform's doing)."""
    found = orjson.loads(line)
    return found if isinstance(found, dict) else {"message": found}


def _text(event: dict[str, Any], name: str) -> str | None:
    """A member that becomes the resource's, taken out; one that is no text stays where it is."""
    if event.get(name).__class__ is str:
        return str(event.pop(name))
    return None


def flatten(event: dict[str, Any]) -> dict[str, Any]:
    """The event's members by dotted name; maps that are data, empty ones, and what is too deep stay maps."""
    flat: dict[str, Any] = {}
    _spread(event, "", flat, _DEPTH)
    return flat


def _spread(members: dict[str, Any], prefix: str, flat: dict[str, Any], depth: int) -> None:
    for key, found in members.items():
        name = prefix + key
        if found.__class__ is dict and found and depth and name not in _MAPS:
            _spread(found, name + ".", flat, depth - 1)
        elif name in flat:
            flat[name] = [flat[name], found]
        else:
            flat[name] = found


def nanoseconds(text: Any) -> int | None:
    """Unix time from RFC 3339 text, up to nine digits of it; None where it is none, or before 1970."""
    if not isinstance(text, str) or not text.isascii():
        return None
    if text[-1:] != "Z":
        return _with_offset(text)
    seconds = _seconds(text[:19])
    if seconds is None or seconds < 0:
        return None
    digits = text[20:-1]
    if text[19:] == "Z":
        return seconds * 1_000_000_000
    if text[19] != "." or not digits.isdigit() or len(digits) > 9:
        return None
    return seconds * 1_000_000_000 + int(digits.ljust(9, "0"))


@lru_cache(4096)
def _seconds(text: str) -> int | None:
    """Events of a second, and batches of an hour, say the same."""
    try:
        return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None


def _with_offset(text: str) -> int | None:
    """Agents' own events may have any offset; microseconds are as fine as those get."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    if at.tzinfo is None or (since := at - datetime(1970, 1, 1, tzinfo=UTC)).days < 0:
        return None
    return ((since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def _from_text(events: EventBatch) -> Iterator[_Record]:
    """What is known of an event beside its text: when its batch came, from where, how severe, and its sequence."""
    seen = otlp.fixed64(0x59, events.received_at_ns)
    address = [_address(blob) for blob in events.origin_blobs]
    rows = zip(events.lines(), events.priorities, events.sequences, events.origins or repeat(0), strict=False)
    for line, priority, sequence, origin in rows:
        parts = [_SEVERITY[priority & 7]] if priority != NO_PRIORITY else []
        parts.append(_body(line.removesuffix(b"\n")))
        parts.append(otlp.message(0x32, otlp.attribute("event.sequence", sequence)))
        if origin < len(address) and address[origin]:
            parts.append(otlp.message(0x32, otlp.attribute("source.address", address[origin])))
        yield (), b"".join([*parts, seen])


def _address(blob: bytes) -> str:
    try:
        return Origin.unpack(blob).address
    except CorruptBody:
        return ""


def _body(line: bytes) -> bytes:
    """LogRecord.body = 5: text, or bytes where they are no UTF-8."""
    try:
        return otlp.message(0x2A, otlp.text_value(line.decode()))
    except UnicodeDecodeError:
        return otlp.message(0x2A, otlp.bytes_value(line))


def _resource_logs(resource: _ResourceKey, scope: bytes, records: list[bytes]) -> bytes:
    """ExportLogsServiceRequest.resource_logs = 1: resource = 1, scope_logs = 2."""
    named = [(name, found) for name, found in zip(_RESOURCE, resource, strict=False) if found is not None]
    attributes = b"".join([otlp.message(0x0A, otlp.attribute(name, found)) for name, found in named])
    scope_logs = otlp.message(0x12, b"".join([scope, *records]))
    return otlp.message(0x0A, otlp.message(0x0A, attributes) + scope_logs)


@lru_cache(64)
def _scope(stream: str) -> bytes:
    """ScopeLogs.scope = 1: InstrumentationScope name = 1, version = 2, attributes = 3."""
    body = otlp.message(0x0A, b"ndcollector") + otlp.message(0x12, __version__.encode())
    return otlp.message(0x0A, body + otlp.message(0x1A, otlp.attribute("ndcollector.stream", stream)))
