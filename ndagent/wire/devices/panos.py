"""Palo Alto Networks PAN-OS: comma-separated TRAFFIC, THREAT, SYSTEM and CONFIG logs in the default layouts.

Promises: columns by their place, which PAN-OS has kept since 8.0 and only appended to, so older and newer logs are read
alike; a log with fewer columns gives what it has; a log of another type its type and serial. Logs behind an RFC 5424
header, and Cortex's, are the same. Columns without an ECS name stand under panw.panos, named as Elastic does.
Refuses: custom layouts (they cannot be told from the columns: `decode.devices` can leave panos out).

After "Syslog Field Descriptions" in the PAN-OS administrator's guide.
"""

import csv
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from ndagent.wire.devices.fields import (
    ALLOWED,
    DENIED,
    ENDED,
    STARTED,
    Family,
    Flat,
    Message,
    split_user,
    transport,
    whole,
)
from ndagent.wire.devices.signatures import Signature

_HEAD_COLUMNS = 7  # FUTURE_USE, receive time, serial, type, subtype, FUTURE_USE, generated time
_MAX_COLUMNS = 256
_FLOW = {
    7: "source.ip", 8: "destination.ip", 9: "source.nat.ip", 10: "destination.nat.ip", 11: "rule.name",
    14: "network.application", 15: ".virtual_sys", 16: "observer.ingress.zone", 17: "observer.egress.zone",
    18: "observer.ingress.interface.name", 19: "observer.egress.interface.name", 20: ".log_profile", 22: ".flow_id",
    24: "source.port", 25: "destination.port", 26: "source.nat.port", 27: "destination.nat.port", 28: ".flags",
    30: ".action",
}  # fmt: skip
_TRAFFIC = {
    **_FLOW, 31: "network.bytes", 32: "source.bytes", 33: "destination.bytes", 34: "network.packets",
    37: ".url_category", 39: ".sequence_number", 40: ".action_flags", 41: "source.geo.name", 42: "destination.geo.name",
    44: "source.packets", 45: "destination.packets", 46: ".endreason", 51: ".vsys_name", 52: ".device_name",
    53: ".action_source",
}  # fmt: skip
_THREAT = {
    **_FLOW, 31: ".threat_file_or_url", 33: ".url_category", 34: ".severity", 36: ".sequence_number",
    37: ".action_flags", 38: "source.geo.name", 39: "destination.geo.name", 41: ".content_type",
    43: "file.hash.sha256", 46: "user_agent.original", 47: "file.type", 48: ".xff", 49: "http.request.referrer",
    51: "email.subject", 58: ".vsys_name", 59: ".device_name",
    63: "http.request.method",
}  # fmt: skip
_SYSTEM = {
    7: ".virtual_sys", 8: "event.code", 9: ".object", 12: ".module", 13: ".severity", 14: ".description",
    15: ".sequence_number", 16: ".action_flags", 21: ".vsys_name", 22: ".device_name",
}  # fmt: skip
_CONFIG = {
    7: "source.ip", 8: ".virtual_sys", 9: ".command", 10: "user.name", 11: ".client_type", 12: ".result",
    13: ".configuration_path", 14: ".sequence_number", 15: ".action_flags", 20: ".vsys_name", 21: ".device_name",
}  # fmt: skip
_FLOW_ACTIONS = {"start": "flow_started", "end": "flow_terminated", "drop": "flow_dropped", "deny": "flow_denied"}
_THREAT_ACTIONS = {
    "data": "data_match", "file": "file_match", "flood": "flood_detected", "packet": "packet_attack",
    "scan": "scan_detected", "spyware": "spyware_detected", "url": "url_filtering", "ml-virus": "virus_detected",
    "virus": "virus_detected", "vulnerability": "exploit_detected", "wildfire": "wildfire_verdict",
    "wildfire-virus": "wildfire_virus_detected",
}  # fmt: skip
_SEVERITIES = {"informational": 5, "low": 4, "medium": 3, "high": 2, "critical": 1}
_PASSED = {"allow", "alert", "continue", "override", "allow-override"}
_UNTRANSLATED = ("", "0.0.0.0", "::")
_FILES = {"file", "virus", "ml-virus", "wildfire", "wildfire-virus", "data"}


def read(message: Message) -> Flat | None:
    """None for what has not the seven columns in front that every log has."""
    row = _columns(message.text)
    if len(row) <= _HEAD_COLUMNS or not row[3].isalpha() or not row[3].isupper():
        return None
    kind, subtype = row[3], row[4]
    flat: Flat = {
        "event.module": "panw",
        "event.dataset": "panw.panos",
        "observer.vendor": "Palo Alto Networks",
        "observer.product": "PAN-OS",
        "observer.type": "firewall",
        "observer.serial_number": row[2],
    }
    own: dict[str, Any] = {"type": kind, "sub_type": subtype}
    flat["panw.panos"] = own
    if (layout := _LAYOUTS.get(kind)) is None:
        return flat
    row += [""] * (_MOST_COLUMNS - len(row))
    flat.update(zip(layout.ecs, layout.ecs_of(row), strict=True))
    own.update((name, value) for name, value in zip(layout.own, layout.own_of(row), strict=True) if value)
    layout.more(row, subtype, flat, own)
    if category := own.pop("url_category", None):
        own["url"] = {"category": category}
    return flat


def _columns(text: str) -> list[str]:
    """Quoted where they have commas; a quote inside one is doubled (RFC 4180)."""
    if '"' not in text:
        return text.split(",")[:_MAX_COLUMNS]
    return next(csv.reader([text.replace("\n", " ").replace("\r", " ")]), [])[:_MAX_COLUMNS]


def _flow(row: list[str], flat: Flat) -> None:
    """What traffic and threats have in common; without translation the NAT columns are 0.0.0.0, :: or 0."""
    for end, user in (("source", 12), ("destination", 13)):
        translated = flat.get(f"{end}.nat.ip"), flat.get(f"{end}.nat.port")
        if translated[0] in _UNTRANSLATED or translated == (flat.get(f"{end}.ip"), flat.get(f"{end}.port")):
            flat[f"{end}.nat.ip"] = flat[f"{end}.nat.port"] = None
        if row[user]:
            flat[f"{end}.user.name"], flat[f"{end}.user.domain"] = split_user(row[user])
    if row[29]:
        flat.update(transport(row[29]))


def _traffic(row: list[str], subtype: str, flat: Flat, own: dict[str, Any]) -> None:
    _flow(row, flat)
    flat.update({"start": STARTED, "end": ENDED, "drop": DENIED, "deny": DENIED}.get(subtype, ALLOWED))
    flat["event.action"] = _FLOW_ACTIONS.get(subtype, subtype)
    if (seconds := whole(row[36])) is not None:
        flat["event.duration"] = min(seconds, 10**9) * 10**9
    flat["event.reason"] = own.get("endreason")


def _threat(row: list[str], subtype: str, flat: Flat, own: dict[str, Any]) -> None:
    _flow(row, flat)
    flat["event.category"] = ["intrusion_detection", "network"] + (["malware"] if "virus" in subtype else [])
    flat["event.type"] = ["allowed" if own["action"] in _PASSED else "denied"] if "action" in own else []
    flat["event.outcome"] = "success"
    flat["event.action"] = _THREAT_ACTIONS.get(subtype, subtype)
    flat["event.severity"] = _SEVERITIES.get(own.get("severity", ""))
    if row[32]:
        name, bracket, number = row[32].rpartition("(")  # "Name of the threat(12345)"
        told = {"name": name, "id": number.rstrip(")")} if bracket else {"name": row[32]}
        own["threat"] = {key: value for key, value in told.items() if value}
        flat["rule.id"] = told.get("id")
    mail = {"sender": row[50], "recipient": row[52]}
    if any(mail.values()):
        own["email"] = {key: value for key, value in mail.items() if value}
    flat["network.direction"] = {"client-to-server": "inbound", "server-to-client": "outbound"}.get(row[35])
    what = own.get("threat_file_or_url")
    flat["url.original" if subtype == "url" else "file.name" if subtype in _FILES else "url.path"] = what


def _system(_row: list[str], subtype: str, flat: Flat, own: dict[str, Any]) -> None:
    flat["event.category"], flat["event.type"] = ["host"], ["info"]
    flat["event.action"], flat["event.severity"] = subtype, _SEVERITIES.get(own.get("severity", ""))


def _config(_row: list[str], _subtype: str, flat: Flat, own: dict[str, Any]) -> None:
    flat["event.category"], flat["event.type"] = ["configuration"], ["change"]
    flat["event.action"] = own.get("command")
    flat["event.outcome"] = {"Succeeded": "success", "Failed": "failure", "Unauthorized": "failure"}.get(
        own.get("result", "")
    )


class _Layout(NamedTuple):
    """The columns of one type of log: ECS fields, panw.panos's, and what is more than a column by its name."""

    ecs: tuple[str, ...]
    ecs_of: Callable[[list[str]], tuple[str, ...]]
    own: tuple[str, ...]
    own_of: Callable[[list[str]], tuple[str, ...]]
    more: Callable[[list[str], str, Flat, dict[str, Any]], None]


def _layout(columns: dict[int, str], more: Callable[[list[str], str, Flat, dict[str, Any]], None]) -> _Layout:
    ecs = {place: name for place, name in columns.items() if name[0] != "."}
    own = {place: name[1:] for place, name in columns.items() if name[0] == "."}
    return _Layout(tuple(ecs.values()), _picker(*ecs), tuple(own.values()), _picker(*own), more)


def _picker(*places: int) -> Callable[[list[str]], tuple[str, ...]]:
    """itemgetter gives the item itself where there is one place."""
    return itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)


_LAYOUTS = {
    "TRAFFIC": _layout(_TRAFFIC, _traffic),
    "THREAT": _layout(_THREAT, _threat),
    "SYSTEM": _layout(_SYSTEM, _system),
    "CONFIG": _layout(_CONFIG, _config),
}
_MOST_COLUMNS = max(*_TRAFFIC, *_THREAT, *_SYSTEM, *_CONFIG) + 1
FAMILY = Family("panos", (Signature(starts=b"1,20"),), read)
