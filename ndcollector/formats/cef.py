r"""ArcSight Common Event Format, CEF:0, by "Implementing ArcSight Common Event Format", version 23.

    CEF:0|Vendor|Product|Version|Signature ID|Name|Severity|key=value key=value …

Promises:
  * header: `|` and `\` escaped, no line breaks; extension: `\` and `=` escaped, line breaks as \n and \r;
  * keys are the dictionary's, each at most once, each value within the dictionary's length (cut, in characters, before
    it is escaped) and type: an address that is no IPv4 goes where IPv6 ones go, one that is neither is left out;
  * what has no key of its own stands in cs1 to cs6 and cn1, with labels that are its ECS names.
Refuses: the other way round. Fields that are not in the tables below are left out; docs/formats.md shows the tables.

Severity: emergency 10, alert 9, critical 8, error 7, warning 5, notice 3, informational 2, debug 1, none said: Unknown.
"""

import re
from collections.abc import Iterator

from ndcollector.formats import FormatConfig
from ndcollector.formats.ends import by_traffic
from ndcollector.formats.lines import Column, Event, Render, at, reader, text
from ndcollector.formats.syslog_header import severity
from ndcollector.formats.times import epoch_ms

SEVERITIES = ("10", "9", "8", "7", "5", "3", "2", "1")
"""By syslog severity; 0-3 is Low, 4-6 Medium, 7-8 High, 9-10 Very-High."""

TEXTS: tuple[Column, ...] = (
    ("externalId", ("event", "id"), 40),
    ("cat", ("event", "category"), 1023),
    ("act", ("event", "action"), 63),
    ("outcome", ("event", "outcome"), 63),
    ("reason", ("event", "reason"), 1023),
    ("dvchost", ("host", "hostname"), 100),
    ("deviceProcessName", ("process", "name"), 1023),
    ("deviceFacility", ("log", "syslog", "facility", "name"), 1023),
    ("shost", ("source", "domain"), 1023),
    ("suser", ("source", "user", "name"), 1023),
    ("dhost", ("destination", "domain"), 1023),
    ("duser", ("user", "name"), 1023),
    ("duid", ("user", "id"), 1023),
    ("proto", ("network", "transport"), 31),
    ("app", ("network", "protocol"), 31),
    ("request", ("url", "original"), 1023),
    ("requestMethod", ("http", "request", "method"), 1023),
    ("fname", ("file", "name"), 1023),
    ("filePath", ("file", "path"), 1023),
    ("fileHash", ("file", "hash", "sha256"), 255),
)
"""CEF key, ECS field, most characters (extension dictionary)."""

NUMBERS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("dvcpid", ("process", "pid"), 2**31 - 1),
    ("dpt", ("destination", "port"), 65535),
)
"""CEF key, ECS field, largest value."""

CUSTOM: tuple[Column, ...] = (
    ("cs1", ("log", "syslog", "msgid"), 4000),
    ("cs2", ("log", "syslog", "structured_data"), 4000),
    ("cs3", ("agent", "id"), 4000),
    ("cs4", ("tls", "client", "subject"), 4000),
    ("cs5", ("tags",), 4000),
    ("cs6", ("event", "dataset"), 4000),
)
"""Strings whose label is the ECS name."""

_texts, _customs = reader(TEXTS), reader(CUSTOM)
_LABELS = {key: (f"{key}Label", ".".join(path)) for key, path, _ in CUSTOM}
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?!$)|$)){4}", re.ASCII)
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}")


def make(config: FormatConfig) -> Render:
    """See the module."""
    device = "|".join(map(_header, config.device))
    start, length = f"CEF:0|{device}|", config.message_length

    def render(event: Event, _line: bytes) -> bytes:
        event = by_traffic(event)
        signature = text(event, "event", "code") or text(event, "log", "syslog", "msgid") or _kind(event)
        name = text(event, "event", "action") or text(event, "rule", "name") or _kind(event)
        code = severity(event)
        header = f"{start}{_header(signature)}|{_header(name[:512])}|{'Unknown' if code is None else SEVERITIES[code]}|"
        pairs = [f"{key}={_value(value)}" for key, value in _extension(event, length)]
        return (header + " ".join(pairs)).encode()

    return render


def _kind(event: Event) -> str:
    """What a device calls its messages where it has no better name for them."""
    return text(event, "process", "name") or text(event, "event", "dataset") or "event"


def _extension(event: Event, message_length: int) -> Iterator[tuple[str, str]]:
    moment = epoch_ms(text(event, "@timestamp"))
    if moment is not None:
        yield "rt", str(moment)
    yield from _texts(event)
    for key, path, largest in NUMBERS:
        number = at(event, *path)
        if type(number) is int and 0 <= number <= largest:
            yield key, str(number)
    yield from _addresses(event)
    for key, value in _customs(event):
        yield key, value
        yield _LABELS[key]
    sequence = at(event, "event", "sequence")
    if type(sequence) is int:
        yield from (("cn1", str(sequence)), ("cn1Label", "event.sequence"))
    if message := text(event, "message"):
        yield "msg", message[:message_length]


def _addresses(event: Event) -> Iterator[tuple[str, str]]:
    """Of a relayed syslog message source.ip is the device that sent it; elsewhere, and if log.source is that, it is
    the traffic's."""
    sender = text(event, "log", "source", "ip")
    is_syslog = at(event, "log", "syslog") is not None and not sender
    device = sender or (text(event, "source", "ip") if is_syslog else _first(at(event, "host", "ip")))
    yield from _address(device, "dvc", "c6a1", "Device IPv6 Address")
    if not is_syslog:
        yield from _address(text(event, "source", "ip"), "src", "c6a2", "Source IPv6 Address")
        port = at(event, "source", "port")
        if type(port) is int and 0 <= port <= 65535:
            yield "spt", str(port)
    yield from _address(text(event, "destination", "ip"), "dst", "c6a3", "Destination IPv6 Address")


def _first(value: object) -> str:
    found = value[0] if type(value) is list and value else value
    return found if type(found) is str else ""


def _address(address: str, key: str, key_ipv6: str, label: str) -> Iterator[tuple[str, str]]:
    if _IPV4.fullmatch(address):
        yield key, address
    elif ":" in address and _IPV6.fullmatch(address):
        yield from ((key_ipv6, address), (f"{key_ipv6}Label", label))


def _header(value: str) -> str:
    return value[:1023].replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("\r", " ")


def _value(value: str) -> str:
    return value.replace("\\", "\\\\").replace("=", "\\=").replace("\n", "\\n").replace("\r", "\\r")
