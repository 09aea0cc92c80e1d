"""One journal entry as one line of ECS JSON.

Promises: the field table of docs and reference is `_TABLE` below, in code; `message` is always there; bytes of MESSAGE
that are not UTF-8 get U+FFFD and the exact ones stand in event.original_base64; an entry that was cut is tagged
_truncated. With `all_fields` what has no ECS name stands below `journald.` under its own name in lower case (a trusted
field keeps its underscore: `_SELINUX_CONTEXT` and a forged `SELINUX_CONTEXT` are two things). Refuses: I/O, clocks.

`@timestamp` is when the sender wrote the entry (_SOURCE_REALTIME_TIMESTAMP), else when journald took it.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import orjson

from ndagent.inputs.ecs_batch import timestamp
from ndagent.inputs.journald_cursor import Cursor
from ndagent.inputs.journald_export import Entry
from ndagent.wire.ecs import FACILITIES, SEVERITIES

_TABLE: Mapping[bytes, tuple[str, ...]] = {
    b"_UID": ("user", "id"),
    b"_GID": ("user", "group", "id"),
    b"_AUDIT_LOGINUID": ("user", "audit", "id"),
    b"_EXE": ("process", "executable"),
    b"_CMDLINE": ("process", "command_line"),
    b"_SYSTEMD_UNIT": ("systemd", "unit"),
    b"_SYSTEMD_USER_UNIT": ("systemd", "user_unit"),
    b"_SYSTEMD_SLICE": ("systemd", "slice"),
    b"_TRANSPORT": ("systemd", "transport"),
    b"_BOOT_ID": ("host", "boot", "id"),
    b"CODE_FILE": ("log", "origin", "file", "name"),
    b"CODE_FUNC": ("log", "origin", "function"),
    b"SYSLOG_IDENTIFIER": ("log", "syslog", "appname"),
    b"MESSAGE_ID": ("event", "code"),
}
_SPECIAL = (
    b"MESSAGE", b"PRIORITY", b"SYSLOG_FACILITY", b"SYSLOG_PID", b"_PID", b"_COMM", b"_HOSTNAME", b"CODE_LINE",
    b"_SOURCE_REALTIME_TIMESTAMP", b"N_DROPPED",
)  # fmt: skip
"""Read by code below rather than by the table. `_COMM` names the process where the sender did not."""

_MAPPED = frozenset(_TABLE) | frozenset(_SPECIAL)
_DROPPED = b"a596d6fe7bfa4994828e72309e95d61e"  # SD_MESSAGE_JOURNAL_DROPPED: "Suppressed N messages from …"
_MISSED = b"e9bf28e6e834481bb6f48f548ad13606"  # SD_MESSAGE_JOURNAL_MISSED: "Missed N kernel messages"
_FIRST_NUMBER = re.compile(rb"\d{1,9}")


def event_line(entry: Entry, *, base: Mapping[str, Any], created: str, all_fields: bool) -> bytes:
    """The event, LF included; `base` has what all events of the input share (ecs, agent, host), `created` RFC 3339."""
    fields = entry.fields
    event: dict[str, Any] = {"kind": "event", "module": "journald", "dataset": "journald.log", "created": created}
    document: dict[str, Any] = {"@timestamp": _moment(fields) or created, **base, "event": event}
    document["host"] = host = dict(base["host"])
    if b"_HOSTNAME" in fields:
        host["hostname"] = host["name"] = entry.text(b"_HOSTNAME")
    for name, (*path, leaf) in _TABLE.items():
        if name in fields:
            place = document
            for step in path:
                place = place.setdefault(step, {})
            place[leaf] = fields[name].decode("utf-8", "replace")
    _process(entry, document)
    _log(entry, document)
    message = fields.get(b"MESSAGE", b"")
    try:
        document["message"] = message.decode()
    except UnicodeDecodeError:
        document["message"] = message.decode("utf-8", "replace")
        event["original_base64"] = b64encode(message).decode()
    if entry.is_cut:
        document["tags"] = ["_truncated"]
    if all_fields:
        document["journald"] = _others(entry)
    return orjson.dumps(document) + b"\n"


def gap_line(*, base: Mapping[str, Any], created: str, after: Cursor, missing: int | None) -> bytes:
    """The event that says that entries after this one are not there any more; filters might have left them out."""
    count = "entries" if missing is None else f"{missing} entries"
    message = f"{count} of the journal were gone before they were read"
    document = {
        "@timestamp": created,
        **base,
        "message": message,
        "event": {
            "kind": "pipeline_error", "module": "journald", "dataset": "journald.log", "created": created,
            "action": "events_lost", "reason": "removed_from_journal",
        },
        "journald": {"gap": {"after_cursor": after.text} | ({} if missing is None else {"entries": missing})},
    }  # fmt: skip
    return orjson.dumps(document) + b"\n"


def lost_at_source(entry: Entry) -> tuple[str, int] | None:
    """(reason, how many) if the entry is journald's own word that it lost messages; nobody else can say that."""
    code = entry.fields.get(b"MESSAGE_ID")
    if code not in (_DROPPED, _MISSED) or entry.fields.get(b"_TRANSPORT") != b"driver":
        return None
    number = _FIRST_NUMBER.search(entry.fields.get(b"N_DROPPED") or entry.fields.get(b"MESSAGE", b""))
    reason = "rate_limited_by_journald" if code == _DROPPED else "missed_by_journald"
    return reason, int(number[0]) if number else 1


def _moment(fields: Mapping[bytes, bytes]) -> str | None:
    for name in (b"_SOURCE_REALTIME_TIMESTAMP", b"__REALTIME_TIMESTAMP"):
        value = fields.get(name, b"")
        if value.isdigit() and len(value) < 18:
            return timestamp(int(value) / 1_000_000)
    return None


def _process(entry: Entry, document: dict[str, Any]) -> None:
    name = entry.text(b"SYSLOG_IDENTIFIER") or entry.text(b"_COMM")
    pid = _number(entry.fields.get(b"_PID") or entry.fields.get(b"SYSLOG_PID"))
    if name or pid is not None:
        process = document.setdefault("process", {})
        if name:
            process["name"] = name
        if pid is not None:
            process["pid"] = pid


def _log(entry: Entry, document: dict[str, Any]) -> None:
    severity, facility = _number(entry.fields.get(b"PRIORITY")), _number(entry.fields.get(b"SYSLOG_FACILITY"))
    line = _number(entry.fields.get(b"CODE_LINE"))
    log = document.setdefault("log", {})
    syslog = log.setdefault("syslog", {})
    if severity is not None and severity < len(SEVERITIES):
        syslog["severity"] = {"code": severity, "name": SEVERITIES[severity]}
        log["level"] = SEVERITIES[severity]
    if facility is not None and facility < len(FACILITIES):
        syslog["facility"] = {"code": facility, "name": FACILITIES[facility]}
        if "severity" in syslog:
            syslog["priority"] = facility * 8 + syslog["severity"]["code"]
    if b"SYSLOG_PID" in entry.fields:
        syslog["procid"] = entry.text(b"SYSLOG_PID")
    if line is not None:
        log.setdefault("origin", {}).setdefault("file", {})["line"] = line
    if not syslog:
        del log["syslog"]
    if not log:
        del document["log"]


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) < 11 else None


def _others(entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in entry.fields:
        if name.startswith(b"__") or (name in _MAPPED and name not in entry.repeated):
            continue
        values = [value.decode("utf-8", "replace") for value in entry.repeated.get(name, [entry.fields[name]])]
        found[name.decode("utf-8", "replace").lower()] = values if len(values) > 1 else values[0]
    return found
