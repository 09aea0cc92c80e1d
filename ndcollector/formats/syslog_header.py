"""The header of a syslog message from an event's fields: RFC 5424 whole, RFC 3164 as receivers expect it of CEF.

Promises: every field is within its grammar whatever the event holds: no PRI above 191, no space or control character in
a field, the RFC's lengths, "-" for what there is not. An event that never was syslog gets facility user, the severity
its log.level names, else informational.
Refuses: STRUCTURED-DATA and MSG (rfc5424.py).
"""

import re
from datetime import UTC, datetime
from typing import Literal

from ndagent.wire.ecs import SEVERITIES
from ndcollector.formats.lines import Event, Render, at, text
from ndcollector.formats.times import MONTHS, utc_of

NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_USER = 1
_INFORMATIONAL = 6
_OTHER_WORDS = {
    "emerg": 0, "fatal": 0, "crit": 2, "err": 3, "warn": 4, "info": 6, "information": 6, "verbose": 7, "trace": 7,
}  # fmt: skip
SEVERITY_OF = {word: code for code, word in enumerate(SEVERITIES)} | _OTHER_WORDS
"""log.level, lower case → severity (RFC 5424 table 2)."""

_NO_PRINTUSASCII = re.compile(r"[^!-~]")
_TIMESTAMP = re.compile(
    r"(\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)"
    r"(\.\d{1,6})?\d*(Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)


def header_of(kind: Literal["rfc3164", "rfc5424"]) -> Render:
    """What stands in front of a message of another format, with the space behind it."""
    if kind == "rfc3164":
        return lambda event, _line: f"<{priority(event)}>{_bsd_time(event)} {host(event)} ".encode()
    return lambda event, _line: f"{rfc5424_header(event)} - ".encode()


def rfc5424_header(event: Event) -> str:
    """RFC 5424 §6.2, up to MSGID."""
    return (
        f"<{priority(event)}>1 {_timestamp(event)} {host(event)} {_field(_app(event), 48)} "
        f"{_field(_procid(event), 128)} {_field(_msgid(event), 32)}"
    )


def severity(event: Event) -> int | None:
    """0 to 7 where the event says so, as syslog or in log.level."""
    code = at(event, "log", "syslog", "severity", "code")
    if type(code) is int and 0 <= code <= 7:
        return code
    value = at(event, "log", "syslog", "priority")
    if type(value) is int and 0 <= value <= 191:
        return value % 8
    return SEVERITY_OF.get(text(event, "log", "level").lower())


def priority(event: Event) -> int:
    """PRI: the message's own, else made of what there is (0 to 191, §6.2.1)."""
    value = at(event, "log", "syslog", "priority")
    if type(value) is int and 0 <= value <= 191:
        return value
    facility = at(event, "log", "syslog", "facility", "code")
    known = severity(event)
    return (facility if type(facility) is int and 0 <= facility <= 23 else _USER) * 8 + (
        _INFORMATIONAL if known is None else known
    )


def host(event: Event) -> str:
    """HOSTNAME, at most 255 characters (§6.2.4)."""
    name = text(event, "log", "syslog", "hostname") or text(event, "host", "hostname") or text(event, "host", "name")
    return _field(name, 255)


def _app(event: Event) -> str:
    name = text(event, "log", "syslog", "appname") or text(event, "process", "name")
    return name or text(event, "service", "name") or text(event, "event", "dataset")


def _procid(event: Event) -> str:
    return text(event, "log", "syslog", "procid") or text(event, "process", "pid")


def _msgid(event: Event) -> str:
    return text(event, "log", "syslog", "msgid") or text(event, "event", "code")


def _field(value: str, length: int) -> str:
    """PRINTUSASCII of at most this length, NILVALUE for nothing."""
    if not (value.isascii() and value.isprintable()) or " " in value:
        value = _NO_PRINTUSASCII.sub("_", value)
    return value[:length] or "-"


def _timestamp(event: Event) -> str:
    """TIMESTAMP has at most six digits behind the point (§6.2.3)."""
    found = _TIMESTAMP.fullmatch(text(event, "@timestamp"))
    return f"{found[1]}{found[2] or ''}{found[3]}" if found else "-"


def _bsd_time(event: Event) -> str:
    """RFC 3164 §4.1.2, in UTC; an event without a time gets the first second of 1970, which is plainly none."""
    moment = utc_of(text(event, "@timestamp")) or NO_TIME
    return f"{MONTHS[moment.month - 1]} {moment.day:2d} {moment:%H:%M:%S}"
