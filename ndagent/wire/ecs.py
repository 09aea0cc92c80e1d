"""One parsed message as one line of Elastic Common Schema JSON: settings, fragments, and the line itself.

Promises:
  * keys and their order are fixed (the module `decoder` and the compiled twin write the same bytes);
  * an absent field is an absent key, except `message`, which is always there;
  * text that is not UTF-8 gets U+FFFD where Python's "replace" puts it, and whatever `keep_original` says the exact
    bytes stand in `event.original_base64`: a replaced byte is evidence that exists nowhere else downstream.
Refuses: parsing (rfc5424.py, rfc3164.py), I/O, clocks.

Choices a reader may wonder about:
  * severity names are the lower-cased first words of RFC 5424 table 2 (emergency … debug) and facility names the
    keywords every syslog implementation uses for table 1 (kern … local7), whose entries are sentences;
  * strings are escaped as orjson does it: `"`, backslash and bytes below 0x20, short forms for \\b \\t \\n \\f \\r.
"""

import ipaddress
import struct
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import orjson

from ndagent.wire.record import Origin
from ndagent.wire.times import Zone, load_zone

ECS_VERSION = b"8.17.0"
ORIGINS_CACHED = 4096
"""Prepared origins kept by one decoder; when full it starts over. A connection has its own origin (peer port)."""
HOSTS_CACHED = 4096
"""Partition keys the pure twin keeps: hosts repeat, and murmur2 in Python costs as much as the rest of a line."""
HOST_CACHED_BYTES = 255
"""Longer hosts (RFC 5424 §6 allows none) are not worth remembering and would make that table large."""

FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
SEVERITIES = ("emergency", "alert", "critical", "error", "warning", "notice", "informational", "debug")
MAX_HOST_BYTES = 0xFFFF
"""A host whose JSON text is longer is not indexed in EventBatch (its arrays are 16 bit); the line has it whole."""


def _priority_fragment(priority: int, version: bytes) -> bytes:
    facility, severity = divmod(priority, 8)
    return (
        b',"log":{"syslog":{"priority":%d%b,"facility":{"code":%d,"name":"%b"},"severity":{"code":%d,"name":"%b"}'
        % (priority, version, facility, FACILITIES[facility].encode(), severity, SEVERITIES[severity].encode())
    )


PRIORITIES_RFC3164 = tuple(_priority_fragment(priority, b"") for priority in range(192))
PRIORITIES_RFC5424 = tuple(_priority_fragment(priority, b',"version":"1"') for priority in range(192))

_SOURCE = b',"source":'
_TAG_NAMES = (b'"_truncated"', b'"_framing_error"', b'"_parse_failure"')
TAGS = (
    b"",
    *(
        b',"tags":[%b]' % b",".join(name for bit, name in enumerate(_TAG_NAMES) if flags >> bit & 1)
        for flags in range(1, 8)
    ),
)
"""By section flags, plus 4 for a parse failure."""
PARSE_FAILURE = 4


@dataclass(frozen=True)
class DecodeSettings:
    """How bytes become events; the `decode:` section of the configuration.

    `origins` are (pattern, time zone) pairs, first match wins: a pattern that reads as an IP network is matched against
    the peer's address, any other as a glob against the origin's identity. `timezone` is for everybody else.
    `agent_version` is that of the agent that decodes, empty in a collector. Raises ValueError for a time zone that does
    not exist.

    `devices` are the families (ndagent.wire.devices) whose messages get more fields, `origin_devices` (pattern, family)
    pairs as `origins`: what an origin sends is of that family, "none" of none, "" told by signature like everybody's.
    `device_fields` says whether what a family calls source and observer takes their places (devices/enrich.py).
    """

    observer_name: str
    keep_original: Literal["always", "on_error", "never"] = "on_error"
    timezone: str = "UTC"
    origins: tuple[tuple[str, str], ...] = ()
    agent_version: str = ""
    devices: tuple[str, ...] = ()
    origin_devices: tuple[tuple[str, str], ...] = ()
    device_fields: Literal["added", "elastic"] = "added"

    def __post_init__(self) -> None:
        for name in (self.timezone, *(zone for _, zone in self.origins)):
            try:
                load_zone(name)
            except (KeyError, ValueError, OSError) as error:
                remedy = "use an IANA name such as Europe/Berlin"
                raise ValueError(f"time zone {name!r} does not exist; {remedy}") from error

    def zone(self, origin: Origin) -> Zone:
        """The time zone in which this origin's clocks are read where a message does not say."""
        return load_zone(_first(self._zone_rules, origin) or self.timezone)

    def device(self, origin: Origin) -> str:
        """The family that this origin's messages are of, "none", or "" where they tell it themselves."""
        return _first(self._device_rules, origin)

    @cached_property
    def _zone_rules(self) -> list[tuple["_Match", str]]:
        return [(_match(pattern), name) for pattern, name in self.origins]

    @cached_property
    def _device_rules(self) -> list[tuple["_Match", str]]:
        return [(_match(pattern), name) for pattern, name in self.origin_devices]


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Match = Callable[[_Address | None, str], bool]


def _first(rules: "list[tuple[_Match, str]]", origin: Origin) -> str:
    """What the first rule that matches gives; "" where none does."""
    address = _ip(origin.address)
    return next((given for matches, given in rules if matches(address, origin.identity)), "")


def _match(pattern: str) -> _Match:
    try:
        network = ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return lambda _, identity: fnmatchcase(identity, pattern)
    return lambda address, _: address is not None and address in network


def _ip(text: str) -> _Address | None:
    """The address without its zone ("%eth0"), IPv4 where it is IPv4 in IPv6 clothes; None where it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class Voucher(NamedTuple):
    """What the collector knows of an agent's events better than the events do."""

    agent_id: str  # from its certificate
    id_prefix: str  # of event ids that its spool may give; empty: none
    clock_skew_seconds: int


class PreparedOrigin(NamedTuple):
    """What all events of one origin share, made once: the fragment behind `event`, the fallback key, the time zone."""

    suffix: bytes
    key: int
    zone: Zone
    voucher: Voucher | None = None  # of an agent
    device: str = ""  # DecodeSettings.device


class OriginCache:
    """Prepared origins by their packed form, at most ORIGINS_CACHED of them. Safe to call from several threads."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._observer = _observer(settings)
        self._prepared: dict[bytes, PreparedOrigin] = {}

    def get(self, blob: bytes) -> PreparedOrigin:
        """The prepared form of this origin. Raises CorruptBody where the blob is not an origin."""
        prepared = self._prepared.get(blob)
        if prepared is None:
            prepared = self._prepare(Origin.unpack(blob))
            if len(self._prepared) >= ORIGINS_CACHED:
                self._prepared.clear()
            self._prepared[blob] = prepared
        return prepared

    def _prepare(self, origin: Origin) -> PreparedOrigin:
        address = _ip(origin.address)
        source: dict[str, object] = {"ip": str(address)} if address else {"address": origin.address}
        if origin.port > 0:
            source["port"] = origin.port
        text = str(address or origin.address)
        suffix = _SOURCE + orjson.dumps(source) if text else b""
        client: dict[str, object] = {"subject": origin.subject} if origin.subject else {}
        if origin.serial:
            client["x509"] = {"serial_number": origin.serial}
        if client:
            suffix += b',"tls":' + orjson.dumps({"client": client})
        zone = self._settings.zone(origin)
        key, device = partition_key(text.encode()), self._settings.device(origin)
        return PreparedOrigin(suffix + self._observer, key, zone, _voucher(origin), device)


def have_sources(prepared: Sequence[PreparedOrigin]) -> bool:
    """Whether each event of these origins names its sender (a Unix socket's has no address)."""
    return all(origin.suffix.startswith(_SOURCE) for origin in prepared)


def _observer(settings: DecodeSettings) -> bytes:
    """Who made the event; the id of an agent is the collector's to say, by its certificate."""
    name = quote_text(settings.observer_name)
    if not settings.agent_version:
        return b',"observer":{"name":%b,"type":"collector","product":"ndcollector"}' % name
    observer = b',"observer":{"name":%b,"type":"agent","product":"ndagent"}' % name
    return observer + b',"agent":{"type":"ndagent","version":%b}' % quote_text(settings.agent_version)


def _voucher(origin: Origin) -> Voucher | None:
    if not origin.agent_id:
        return None
    return Voucher(origin.agent_id, f"{origin.spool_id}-" if origin.spool_id else "", origin.clock_skew_seconds)


class Fields(NamedTuple):
    """One message taken apart. Bytes as sent; None where the message has none (or NILVALUE)."""

    message: bytes
    timestamp: bytes | None = None  # RFC 3339 UTC text; None: use the receive time
    host: bytes | None = None
    app: bytes | None = None
    procid: bytes | None = None
    msgid: bytes | None = None
    structured_data: bytes | None = None  # JSON text
    rfc5424: bool = False
    error: bytes | None = None  # why this is a parse failure, as JSON-safe text


class LineContext(NamedTuple):
    """What all lines of one record share."""

    received: bytes  # RFC 3339 UTC text
    event_head: bytes  # ,"event":{"id":"<spool id>-
    event_tail: bytes  # ,"created":"…","kind":"event"
    keep_always: bool
    keep_on_error: bool


def line_context(settings: DecodeSettings, *, spool_id: str, received: bytes) -> LineContext:
    """The shared fragments for one record."""
    return LineContext(
        received=received,
        event_head=b',"event":{"id":' + quote_text(spool_id)[:-1] + b"-",
        event_tail=b',"created":"%b","kind":"event"' % received,
        keep_always=settings.keep_original == "always",
        keep_on_error=settings.keep_original != "never",
    )


class Line(NamedTuple):
    """One event's JSON with its LF, and where in it the text of host.hostname stands (0, 0 where absent)."""

    json: bytes
    host_offset: int
    host_length: int


def build_line(
    fields: Fields,
    *,
    raw: bytes,
    priority: int | None,
    flags: int,
    sequence: int,
    context: LineContext,
    origin: PreparedOrigin,
) -> Line:
    """The event's line. `raw` is the whole message, `flags` the section's (record.Flags)."""
    parts = [
        b'{"@timestamp":"%b","ecs":{"version":"%b"},"message":%b'
        % (fields.timestamp or context.received, ECS_VERSION, quote(fields.message))
    ]
    host_offset = host_length = 0
    host, app, procid = fields.host, fields.app, fields.procid
    host_json = app_json = b""
    if host is not None:
        host_json = quote(host)
        if len(host_json) - 2 <= MAX_HOST_BYTES:
            host_offset, host_length = len(parts[0]) + len(b',"host":{"hostname":"'), len(host_json) - 2
        parts.append(b',"host":{"hostname":%b,"name":%b}' % (host_json, host_json))
    if app is not None:
        app_json = quote(app)
    parts.append(_process(app_json, procid))
    if priority is not None:
        parts.append((PRIORITIES_RFC5424 if fields.rfc5424 else PRIORITIES_RFC3164)[priority])
        parts.append(_syslog(host_json, app_json, fields))
    parts.append(b'%b%b","sequence":%d%b' % (context.event_head, base36(sequence), sequence, context.event_tail))
    if context.keep_always or (context.keep_on_error and (flags or fields.error)):
        parts.append(b',"original":' + quote(raw))
    if not _is_utf8(raw):
        parts.append(b',"original_base64":"%b"' % b2a_base64(raw, newline=False))
    parts += (b"}", origin.suffix)
    if fields.error:
        parts.append(b',"error":{"message":"%b"}' % fields.error)
        flags |= PARSE_FAILURE
    parts += (TAGS[flags], b"}\n")
    return Line(b"".join(parts), host_offset, host_length)


def _process(app_json: bytes, procid: bytes | None) -> bytes:
    """process.name and process.pid; 18 digits always fit the 64-bit integer that ECS keeps a pid in."""
    pid = int(procid) if procid is not None and procid.isdigit() and len(procid) <= 18 else None
    if pid is None:
        return b',"process":{"name":%b}' % app_json if app_json else b""
    if app_json:
        return b',"process":{"name":%b,"pid":%d}' % (app_json, pid)
    return b',"process":{"pid":%d}' % pid


def _syslog(host_json: bytes, app_json: bytes, fields: Fields) -> bytes:
    """The rest of log.syslog behind the severity."""
    parts = []
    if host_json:
        parts.append(b',"hostname":' + host_json)
    if app_json:
        parts.append(b',"appname":' + app_json)
    if fields.procid is not None:
        parts.append(b',"procid":' + quote(fields.procid))
    if fields.msgid is not None:
        parts.append(b',"msgid":' + quote(fields.msgid))
    if fields.structured_data is not None:
        parts.append(b',"structured_data":' + fields.structured_data)
    parts.append(b"}}")
    return b"".join(parts)


def _is_utf8(raw: bytes) -> bool:
    if raw.isascii():
        return True
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def quote(raw: bytes) -> bytes:
    """Bytes from the wire as a JSON string with its quotes."""
    return orjson.dumps(raw.decode("utf-8", "replace"))


def quote_text(text: str) -> bytes:
    """Our own text as a JSON string with its quotes."""
    return quote(text.encode("utf-8", "replace"))


_DIGITS = b"0123456789abcdefghijklmnopqrstuvwxyz"


def base36(number: int) -> bytes:
    """A sequence as event.id shows it."""
    digits = bytearray()
    while True:
        number, digit = divmod(number, 36)
        digits.append(_DIGITS[digit])
        if not number:
            return bytes(digits[::-1])


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 (seed 0x9747b28c), unsigned; the Java client's partitioner hashes keys with it."""
    mask, multiplier = 0xFFFFFFFF, 0x5BD1E995
    value = 0x9747B28C ^ len(data)
    words = len(data) // 4
    for (word,) in struct.iter_unpack("<I", data[: words * 4]):
        scrambled = word * multiplier & mask
        scrambled ^= scrambled >> 24
        value = (value * multiplier & mask) ^ (scrambled * multiplier & mask)
    tail = data[words * 4 :]
    if tail:
        value = (value ^ int.from_bytes(tail, "little")) * multiplier & mask
    value = (value ^ value >> 13) * multiplier & mask
    return value ^ value >> 15


def partition_key(data: bytes) -> int:
    """Kafka's `toPositive(murmur2(data))`: partition = key % partitions puts an event where the Java client would."""
    return _remembered_key(data) if len(data) <= HOST_CACHED_BYTES else murmur2(data) & 0x7FFFFFFF


@lru_cache(HOSTS_CACHED)
def _remembered_key(data: bytes) -> int:
    return murmur2(data) & 0x7FFFFFFF
