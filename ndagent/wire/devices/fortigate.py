"""Fortinet FortiGate: name=value pairs behind date= and time=, of traffic, security profiles and events.

Promises: pairs of any log type; names without an ECS name stand under fortinet.firewall as they are written. Also what
FortiAnalyzer puts in front (logver=, timestamp=) and FortiMail, FortiWeb and others of Fortinet that write such pairs.
Refuses: FortiGate's CEF and CSV forms (cef.py reads the first).

After the "FortiOS Log Message Reference".
"""

from typing import Any

from ndagent.wire.devices.fields import (
    ALLOWED,
    CONNECTION,
    DENIED,
    ENDED,
    STARTED,
    Family,
    Flat,
    Message,
    login,
    sort_out,
    transport,
    whole,
)
from ndagent.wire.devices.pairs import spaced
from ndagent.wire.devices.signatures import Signature

_NAMES = {
    "srcip": "source.ip", "srcport": "source.port", "srcname": "source.domain", "srcmac": "source.mac",
    "dstip": "destination.ip", "dstport": "destination.port", "dstname": "destination.domain",
    "dstmac": "destination.mac", "transip": "source.nat.ip", "transport": "source.nat.port",
    "tranip": "destination.nat.ip", "tranport": "destination.nat.port", "sentbyte": "source.bytes",
    "rcvdbyte": "destination.bytes", "sentpkt": "source.packets", "rcvdpkt": "destination.packets",
    "srccountry": "source.geo.country_name", "dstcountry": "destination.geo.country_name",
    "srcintf": "observer.ingress.interface.name", "dstintf": "observer.egress.interface.name",
    "devname": "observer.name", "devid": "observer.serial_number", "policyid": "rule.id", "policyname": "rule.name",
    "poluuid": "rule.uuid", "policytype": "rule.ruleset", "logid": "event.code", "device_id": "observer.serial_number",
    "log_id": "event.code", "logdesc": "rule.description", "action": "event.action", "reason": "event.reason",
    "app": "network.application", "service": "network.protocol", "user": "user.name",
    "dstuser": "destination.user.name", "hostname": "url.domain", "url": "url.path",
    "referralurl": "http.request.referrer", "agent": "user_agent.original", "httpmethod": "http.request.method",
    "filename": "file.name", "filehash": "file.hash.sha256", "filesize": "file.size", "qname": "dns.question.name",
    "qtype": "dns.question.type", "level": "log.level", "remip": "source.ip",
}  # fmt: skip
_HEADS = ("date", "time", "tz", "eventtime", "logver", "timestamp")  # the codec has read when and who
_REFUSED = {"deny", "denied", "block", "blocked", "dropped", "drop", "reset", "clear_session", "server-rst-blocked"}
_PASSED = {
    "accept",
    "allow",
    "allowed",
    "detected",
    "monitored",
    "pass",
    "passed",
    "passthrough",
    "permit",
    "permitted",
}
_BEGUN = {"start", "session-start"}
_OVER = {"close", "timeout", "client-rst", "server-rst", "ip-conn"}
_ACTIONS = ((_REFUSED, DENIED), (_PASSED, ALLOWED), (_BEGUN, STARTED), (_OVER, ENDED))
_ATTACKS = {"ips", "virus", "anomaly", "waf"}
_DIRECTIONS = {"incoming": "inbound", "outgoing": "outbound", "inbound": "inbound", "outbound": "outbound"}


def read(message: Message) -> Flat | None:
    """None where it is pairs of somebody else: one of devid, devname, device_id, logid and log_id must be there."""
    flat = sort_out(spaced(message.text), _NAMES, own="fortinet.firewall")
    own = flat["fortinet.firewall"]
    for name in _HEADS:
        own.pop(name, None)
    if not {"observer.name", "observer.serial_number", "event.code"} & flat.keys():
        return None
    kind, action = own.get("type", ""), flat.get("event.action", "")
    flat["event.module"], flat["event.dataset"] = "fortinet", "fortinet.firewall"
    flat["observer.vendor"] = "Fortinet"
    if " devid=" in message.text or " devname=" in message.text:  # FortiMail and others have device_id
        flat["observer.product"], flat["observer.type"] = "Fortigate", "firewall"
    _put_right(flat, own)
    if kind in ("traffic", "utm"):
        flat.update(_what_became(own.get("subtype", ""), action))
        flat["source.user.name"] = flat.pop("user.name", None)
    elif kind == "event":
        flat.update(_event(own, action))
    return flat


def _put_right(flat: Flat, own: dict[str, Any]) -> None:
    """Values that ECS has in another form."""
    if "://" in flat.get("url.path", ""):
        flat["url.original"] = flat.pop("url.path")
    if (protocol := own.pop("proto", None)) is not None:
        flat.update(transport(protocol))
    if (seconds := whole(own.pop("duration", None))) is not None:
        flat["event.duration"] = min(seconds, 10**9) * 10**9
    if "network.protocol" in flat:
        flat["network.protocol"] = flat["network.protocol"].lower()
    flat["network.direction"] = _DIRECTIONS.get(own.get("direction", ""))
    for end in ("source", "destination"):
        if flat.get(f"{end}.geo.country_name") == "Reserved":
            del flat[f"{end}.geo.country_name"]  # a private address


def _what_became(subtype: str, action: str) -> Flat:
    told = next((fields for words, fields in _ACTIONS if action in words), CONNECTION)
    return {**told, "event.category": ["network", "intrusion_detection"]} if subtype in _ATTACKS else told


def _event(own: dict[str, Any], action: str) -> Flat:
    status = own.get("status")
    if action in ("login", "logout"):
        told = login(status == "success" or action == "logout")
        return told if action == "login" else {**told, "event.type": ["end"]}
    outcome = {"success": "success", "failed": "failure", "failure": "failure"}.get(status or "")
    return {"event.category": ["host"], "event.type": ["info"], "event.outcome": outcome}


FAMILY = Family("fortigate", tuple(Signature(starts=one) for one in (b"date=", b"logver=", b"timestamp=")), read)
