"""Events for eyes: one line each, in which nothing can command the terminal or pretend to be another line.

Promises: control characters, line separators and bidirectional controls come out escaped; the only escape sequences are
our colours. Refuses: completeness (`--format ndjson` has all of it).
"""

import re
from collections.abc import Mapping
from typing import Any

from ndagent.core.log import printable

_DIM, _RED, _YELLOW, _PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
_ERROR, _WARNING = 3, 4  # RFC 5424 §6.2.1, table 2
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def pretty(event: Mapping[str, Any], *, raw: bool, colour: bool) -> str:
    """A decoded event, or with `raw` a message as an input received it, as one line without its line feed."""
    when, head, text, severity = _as_it_came(event) if raw else _decoded(event)
    text += f"  {' '.join(map(str, event['tags']))}" if isinstance(event.get("tags"), list) else ""
    head, text, when = printable(head), printable(text), printable(when)
    if not colour:
        return f"{when} {head}: {text}"
    shade = _RED if severity <= _ERROR else _YELLOW if severity == _WARNING else ""
    return f"{_DIM}{when}{_PLAIN} {shade}{head}{_PLAIN}: {text}"


def safe_json(line: bytes) -> str:
    """A line of JSON for a terminal: the same value, what a terminal may obey written as \\u escapes."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode("utf-8", "replace").rstrip("\n"))


def _decoded(event: Mapping[str, Any]) -> tuple[str, str, str, int]:
    syslog, process = _part(event, "log", "syslog"), _part(event, "process")
    facility, severity = _part(syslog, "facility"), _part(syslog, "severity")
    who = _part(event, "host").get("hostname") or _part(event, "source").get("ip") or "-"
    pid = f"[{process['pid']}]" if "pid" in process else ""
    kind = f" {facility.get('name', '-')}.{severity['name']}" if "name" in severity else ""
    head = f"{who} {process.get('name') or '-'}{pid}{kind}"
    return str(event.get("@timestamp", "-")), head, str(event.get("message", "")), _as_number(severity.get("code"))


def _as_it_came(event: Mapping[str, Any]) -> tuple[str, str, str, int]:
    source = _part(event, "source")
    origin = event.get("origin", "")
    peer = f"{source.get('ip', '-')}:{source.get('port', '-')}"
    return str(event["received_at"]), f"{peer} {origin}".rstrip(), str(event.get("raw", "")), _as_number(None)


def _part(event: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The object at this place, empty where there is none: an agent's event may have anything there."""
    found: Any = event
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _as_number(severity: object) -> int:
    return severity if isinstance(severity, int) else _WARNING + 1
