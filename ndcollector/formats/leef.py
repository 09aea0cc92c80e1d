"""IBM's Log Event Extended Format, LEEF 2.0, by the "LEEF Format Guide, version 2".

    LEEF:2.0|Vendor|Product|Version|EventID|x09|key=value<delimiter>key=value …

Promises: the predefined keys where there is one, each at most once; devTime with its devTimeFormat, in UTC and to the
millisecond; the delimiter stands between attributes and nowhere else. LEEF has no escapes: a delimiter or a line break
inside a value becomes a space, a bar inside the EventID too.
Refuses: other fields than those of the table; docs/formats.md shows it.

sev is 1 to 10: emergency 10, alert 9, critical 8, error 7, warning 5, notice 3, informational 2, debug 1.
"""

from collections.abc import Iterator

from ndcollector.formats import FormatConfig
from ndcollector.formats.cef import SEVERITIES
from ndcollector.formats.ends import by_traffic
from ndcollector.formats.lines import Column, Event, Render, at, reader, text
from ndcollector.formats.syslog_header import severity
from ndcollector.formats.times import MONTHS, utc_of

TIME_FORMAT = "MMM dd yyyy HH:mm:ss.SSS zzz"
"""As SimpleDateFormat of Java reads it; one of the forms the guide names."""

_LONGEST = 4096
"""Characters of an attribute; the guide names no limit, QRadar cuts a payload at 4096 by default."""

ATTRIBUTES: tuple[Column, ...] = (
    ("cat", ("event", "category"), _LONGEST),
    ("identHostName", ("host", "hostname"), _LONGEST),
    ("usrName", ("user", "name"), _LONGEST),
    ("domain", ("user", "domain"), _LONGEST),
    ("srcPort", ("source", "port"), _LONGEST),
    ("dst", ("destination", "ip"), _LONGEST),
    ("dstPort", ("destination", "port"), _LONGEST),
    ("proto", ("network", "transport"), _LONGEST),
    ("action", ("event", "action"), _LONGEST),
    ("outcome", ("event", "outcome"), _LONGEST),
    ("url", ("url", "original"), _LONGEST),
    ("resource", ("file", "path"), _LONGEST),
    ("process", ("process", "name"), _LONGEST),
    ("pid", ("process", "pid"), _LONGEST),
    ("facility", ("log", "syslog", "facility", "name"), _LONGEST),
    ("msgid", ("log", "syslog", "msgid"), _LONGEST),
    ("structuredData", ("log", "syslog", "structured_data"), _LONGEST),
    ("agentId", ("agent", "id"), _LONGEST),
    ("tlsSubject", ("tls", "client", "subject"), _LONGEST),
    ("tags", ("tags",), _LONGEST),
    ("eventId", ("event", "id"), _LONGEST),
)
"""LEEF key, ECS field; from `action` to `eventId` the keys are custom ones.

`src` is the device of a relayed syslog message that tells of no traffic, elsewhere the traffic's source.
"""

_read = reader(ATTRIBUTES)
_DELIMITERS = {"tab": ("x09", "\t"), "^": ("^", "^")}


def make(config: FormatConfig) -> Render:
    """See the module."""
    shown, delimiter = _DELIMITERS[config.delimiter]
    start = f"LEEF:2.0|{'|'.join(config.device)}|"

    def render(event: Event, _line: bytes) -> bytes:
        event = by_traffic(event)
        pairs = [f"{key}={_clean(value, delimiter)}" for key, value in _attributes(event)]
        return f"{start}{_clean(_event_id(event), '|')}|{shown}|{delimiter.join(pairs)}".encode()

    return render


def _clean(value: str, delimiter: str) -> str:
    return value.replace(delimiter, " ").replace("\n", " ").replace("\r", " ")


def _event_id(event: Event) -> str:
    """What QRadar tells kinds of events apart by."""
    found = text(event, "event", "code") or text(event, "log", "syslog", "msgid") or text(event, "event", "action")
    return (found or text(event, "process", "name") or text(event, "event", "dataset") or "event")[:255]


def _attributes(event: Event) -> Iterator[tuple[str, str]]:
    moment = utc_of(text(event, "@timestamp"))
    if moment is not None:
        milliseconds = moment.microsecond // 1000
        clock = f"{moment.day:02d} {moment.year:04d} {moment:%H:%M:%S}.{milliseconds:03d}"
        yield "devTime", f"{MONTHS[moment.month - 1]} {clock} UTC"
        yield "devTimeFormat", TIME_FORMAT
    code = severity(event)
    if code is not None:
        yield "sev", SEVERITIES[code]
    if source := text(event, "source", "ip"):
        yield "src", source
    is_syslog = at(event, "log", "syslog") is not None and at(event, "log", "source") is None
    for key, value in _read(event):
        if key != "srcPort" or not is_syslog:  # there it is the port of the connection that brought it here
            yield key, value
    if message := text(event, "message"):
        yield "msg", message
