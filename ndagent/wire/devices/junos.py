"""Juniper Junos: structured data of junos@2636, and SRX's RT_FLOW sessions in the older form without it.

Promises: of every message with Junos's structured data the ECS fields of its parameters, whatever its tag; parameters
without an ECS name stay where the decoder put them, in log.syslog.structured_data, and are not written twice.
Refuses: the unstructured form of other messages than RT_FLOW_SESSION_CREATE, _CLOSE and _DENY.

After "Session log entries" in Junos's security policy guide and the System Log Explorer's parameter names.
"""

import re
from typing import Any

from ndagent.wire.devices.fields import ALLOWED, DENIED, ENDED, STARTED, Family, Flat, Message, login, transport, whole
from ndagent.wire.devices.signatures import Signature

_PARAMETERS = {
    "source-address": "source.ip", "source-port": "source.port", "destination-address": "destination.ip",
    "destination-port": "destination.port", "nat-source-address": "source.nat.ip",
    "nat-source-port": "source.nat.port", "nat-destination-address": "destination.nat.ip",
    "nat-destination-port": "destination.nat.port", "source-zone-name": "observer.ingress.zone",
    "destination-zone-name": "observer.egress.zone", "source-zone": "observer.ingress.zone",
    "destination-zone": "observer.egress.zone", "packet-incoming-interface": "observer.ingress.interface.name",
    "interface-name": "observer.ingress.interface.name", "source-interface-name": "observer.ingress.interface.name",
    "destination-interface-name": "observer.egress.interface.name", "policy-name": "rule.name",
    "rulebase-name": "rule.ruleset", "bytes-from-client": "source.bytes", "bytes-from-server": "destination.bytes",
    "packets-from-client": "source.packets", "packets-from-server": "destination.packets",
    "service-name": "network.protocol", "application": "network.application",
    "application-name": "network.application", "reason": "event.reason",
    "attack-name": "rule.description", "url": "url.original", "obj": "url.path", "hostname": "url.domain",
    "filename": "file.name", "file-name": "file.name", "sample-sha256": "file.hash.sha256",
    "malware-info": "threat.software.name", "http-host": "url.domain", "client-ip": "source.ip",
}  # fmt: skip
_USERS = ("username", "user")
_NONE = ("", "N/A", "None", "UNKNOWN", "unknown", "UNCONFIGURED", "SERVICE_IDP")
_ADDRESS = r"(?P<{0}>[^\s/]+)/(?P<{0}_port>\d+)"
_PAIR = _ADDRESS.format("a") + r"->" + _ADDRESS.format("b") + r"(?: 0x[0-9a-f]+)?"
_TRANSLATED = _ADDRESS.format("c") + r"->" + _ADDRESS.format("d") + r"(?: 0x[0-9a-f]+)?"
_POLICY = r"(?P<protocol>\d+)(?:\(\d+\))? (?P<rule>\S+) (?P<from>\S+) (?P<to>\S+)"
_SESSION = re.compile(
    rf"session (?:created|closed(?: (?P<reason>[^:]*):)?) {_PAIR} (?P<service>\S+) {_TRANSLATED}"
    rf" .{{1,200}}? {_POLICY} (?P<id>\d+)"
    r"(?: (?P<sent_packets>\d+)\((?P<sent>\d+)\) (?P<packets>\d+)\((?P<received>\d+)\) (?P<seconds>\d+))?(?= |\Z)"
)
_SESSION_DENIED = re.compile(rf"session denied {_PAIR} (?P<service>\S+) {_POLICY}")
_TAG = re.compile(r"(RT_FLOW_SESSION_(?:CREATE|CLOSE|DENY)(?:_LS)?): ")
_FLOWS = {
    "CREATE": {**STARTED, "event.action": "flow_started"},
    "CLOSE": {**ENDED, "event.action": "flow_close"},
    "DENY": {**DENIED, "event.action": "flow_deny"},
}


def read(message: Message) -> Flat | None:
    """None for a message of another form than the two."""
    parameters = {name: _first(value) for name, value in message.parameters.items()}
    tag = message.msgid
    flat: Flat | None = None
    if parameters:
        flat = {path: parameters[name] for name, path in _PARAMETERS.items() if parameters.get(name, "") not in _NONE}
        flat["user.name"] = next((parameters[name] for name in _USERS if parameters.get(name, "") not in _NONE), None)
        if (protocol := parameters.get("protocol-id") or parameters.get("protocol-name", "")) not in _NONE:
            flat.update(transport(protocol))
        flat["event.duration"] = _nanoseconds(parameters.get("elapsed-time"))
    elif (head := _TAG.match(message.text)) is not None:
        tag = head[1]
        flat = _unstructured(message.text[head.end() :])
    if flat is None:
        return None
    for end in ("source", "destination"):
        if (flat.get(f"{end}.nat.ip"), flat.get(f"{end}.nat.port")) == (flat.get(f"{end}.ip"), flat.get(f"{end}.port")):
            flat.pop(f"{end}.nat.ip", None)  # Junos writes the real ones where nothing is translated
            flat.pop(f"{end}.nat.port", None)
    flat.update({"event.module": "juniper", "event.dataset": "juniper.srx", "observer.vendor": "Juniper"})
    if message.app.startswith("RT_"):
        flat["observer.product"], flat["observer.type"] = "SRX", "firewall"
    flat["juniper.srx"] = {"process": message.app, "tag": tag, **flat.pop("juniper.srx", {})}
    flat["event.code"] = tag
    flat.update(_told(tag, parameters))
    return flat


def _first(value: Any) -> str:
    return str(value[0]) if isinstance(value, list) else str(value)


def _told(tag: str, parameters: dict[str, str]) -> Flat:
    if tag.startswith(("RT_FLOW_SESSION_", "APPTRACK_SESSION_")):
        return _FLOWS.get(tag.split("_")[3 if tag.startswith("RT") else 2], {})
    action = parameters.get("action", "").lower()
    refused = action.startswith(("drop", "close", "deny", "block", "reject")) or tag.endswith(("_BLOCKED", "_DENY"))
    if tag.startswith(("IDP_", "RT_SCREEN", "AAMW_", "AV_", "WEBFILTER_", "ANTISPAM_", "SECINTEL_")):
        kind = DENIED if refused or tag.startswith("RT_SCREEN") else ALLOWED
        return {**kind, "event.category": ["network", "intrusion_detection"], "event.action": action or tag.lower()}
    if tag in ("SSHD_LOGIN_FAILED", "LOGIN_FAILED", "UI_LOGIN_EVENT", "UI_AUTH_EVENT"):
        return {**login(not tag.endswith("FAILED")), "event.action": "login"}
    return {}


def _nanoseconds(seconds: str | None) -> int | None:
    found = whole(seconds)
    return None if found is None else min(found, 10**9) * 10**9


def _unstructured(text: str) -> Flat | None:
    found = _SESSION.match(text) or _SESSION_DENIED.match(text)
    if found is None:
        return None
    part = found.groupdict()
    return {
        "source.ip": part["a"],
        "source.port": part["a_port"],
        "destination.ip": part["b"],
        "destination.port": part["b_port"],
        "source.nat.ip": part.get("c"),
        "source.nat.port": part.get("c_port"),
        "destination.nat.ip": part.get("d"),
        "destination.nat.port": part.get("d_port"),
        "network.protocol": None if part["service"] in _NONE else part["service"],
        **transport(part["protocol"]),
        "rule.name": part["rule"],
        "observer.ingress.zone": part["from"],
        "observer.egress.zone": part["to"],
        "event.reason": part.get("reason"),
        "event.duration": _nanoseconds(part.get("seconds")),
        "source.packets": part.get("sent_packets"),
        "source.bytes": part.get("sent"),
        "destination.packets": part.get("packets"),
        "destination.bytes": part.get("received"),
        "juniper.srx": {"session_id": part["id"]} if part.get("id") else {},
    }


FAMILY = Family(
    "junos", (Signature(data=b"junos@"), Signature(app_starts=b"RT_FLOW", starts=b"RT_FLOW_SESSION_")), read
)
