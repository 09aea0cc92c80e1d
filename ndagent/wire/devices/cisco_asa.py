"""Cisco ASA, FTD, PIX and FWSM: %ASA-<severity>-<number>, and what the numbers below say of connections and users.

Promises: every such message gets its number (event.code), severity and product; of connections built, torn down, denied
and translated, logins, VPN sessions and commands also who, where and what became of it. FTD's 430001 to 430005, which
are names and values, come with all of their names, those without an ECS name under cisco.ftd.
Refuses: telling apart, of a connection torn down, who opened it (the message does not say: the ends are in its order).

After Cisco's "Syslog Messages" guides; numbers that are missing keep their text in `message` alone.
"""

import re
from itertools import islice
from typing import Any, NamedTuple

from ndagent.wire.devices.fields import (
    ALLOWED,
    CONNECTION,
    DENIED,
    ENDED,
    MAX_PAIRS,
    STARTED,
    Family,
    Flat,
    Message,
    address,
    login,
    sort_out,
    split_user,
    transport,
    whole,
)
from ndagent.wire.devices.signatures import Signature
from ndagent.wire.regex import compile_pattern

_HEAD = re.compile(r"%(ASA|FTD|PIX|FWSM)-(?:[A-Za-z_]+-)?([0-7])-(\d{6})")


def _end(name: str, *, mapped: bool = False) -> str:
    """`interface:address/port (mapped/port)(user)`; groups name, name_if, _port, _nat, _nat_port and _user."""
    nat = rf"(?: ?\((?P<{name}_nat>[^\s()/]+)/(?P<{name}_nat_port>\d+)\))?" if mapped else ""
    user = rf"(?: ?\((?!type )(?P<{name}_user>[^()]*)\))?"
    return rf"(?P<{name}_if>[^\s:]+):(?P<{name}>[^\s/()]+)(?:/(?P<{name}_port>\d+))?{nat}{user}"


def _bare(name: str) -> str:
    return rf"(?P<{name}>[^\s/()]+)(?:/(?P<{name}_port>\d+))?(?: ?\((?P<{name}_user>[^()]*)\))?"


_DURATION = r" duration (?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"
_VPN_USER = r"Group <(?P<group>[^>]*)> User <(?P<user>.*)> IP <(?P<a>[^>]*)>"
_BUILT = (
    r"Built (?P<way>inbound|outbound) (?P<protocol>\w+) connection (?P<id>\d+) "
    rf"for {_end('a', mapped=True)} to {_end('b', mapped=True)}"
)
_GONE = (
    rf"Teardown (?P<protocol>\w+) connection (?P<id>\d+) for {_end('a')} to {_end('b')}{_DURATION} "
    r"bytes (?P<bytes>\d+)(?: (?P<reason>.*))?"
)
_ICMP = (
    r"(?:Built|Teardown) (?:(?P<way>inbound|outbound) )?(?P<protocol>ICMPv?6?) connection (?:\d+ )?"
    rf"for faddr {_bare('a')} gaddr (?P<b_nat>[^\s/]+)/(?P<b_nat_port>\d+) laddr {_bare('b')}"
    r"(?: type (?P<type>\d+) code (?P<code>\d+))?"
)
_NAT = (
    rf"(?:Built|Teardown) (?:dynamic|static) (?P<protocol>\w+) translation from {_end('a')} to "
    rf"(?P<b_if>[^\s:(]+)(?:\([^)]*\))?:(?P<a_nat>[^\s/()]+)(?:/(?P<a_nat_port>\d+))?(?:{_DURATION})?"
)
_SRC_DST = (
    rf"Deny (?:(?P<way>inbound) )?(?:protocol )?(?P<protocol>\w+) src {_end('a')} dst {_end('b')}"
    r"(?: \(type (?P<type>\d+), code (?P<code>\d+)\))?(?: by access-group \"(?P<rule>[^\"]*)\")?"
)
_FROM_TO = (
    r"(?:Inbound (?P<protocol>TCP) connection denied|Deny (?:inbound )?(?P<protocol_2>\w+)"
    rf"(?: \(no connection\)| reverse path check)?) from {_bare('a')} to {_bare('b')}"
    r"(?: flags (?P<flags>[A-Z]+(?: [A-Z]+)*))?(?: +on interface (?P<a_if>\S+)| due to (?P<reason>.*))?"
)
_LIST = (
    r"access-list (?P<rule>\S+) (?P<verb>permitted|denied|est-allowed) (?P<protocol>\w+) "
    r"(?P<a_if>[^\s/]+)/(?P<a>[^\s()]+)\((?P<a_port>\d+)\)(?:\((?P<a_user>[^()]*)\))? -> "
    r"(?P<b_if>[^\s/]+)/(?P<b>[^\s()]+)\((?P<b_port>\d+)\)(?:\([^()]*\))? hit-cnt (?P<hits>\d+)"
)
_TO_BOX = (
    rf"(?P<protocol>\w+) (?:access denied by ACL|access permitted|request discarded) from {_bare('a')} "
    r"to (?P<a_if>[^\s:]+):(?P<b>[^\s/]+)(?:/(?P<b_port>\w+))?"
)
_LOGIN = (
    rf"Login (?P<verb>denied|permitted) from {_bare('a')} to (?P<a_if>[^\s:]+):(?P<b>[^\s/]+)/(?P<service>\w+) "
    r"for user \"(?P<user>[^\"]*)\""
)
_AAA = (
    r"AAA user (?:authentication|authorization) (?P<verb>Successful|Rejected) : (?:reason = (?P<reason>[^:]*?) : )?"
    r"(?:server = +(?P<server>\S+)|local database) : user = (?P<user>.*?)(?: : user IP = (?P<a>\S+))? ?\Z"
)
_VPN_END = (
    r"Group = (?P<group>[^,]*), Username = (?P<user>[^,]*), IP = (?P<a>[^\s,]+), Session disconnected\. "
    r"Session Type: (?P<kind>[^,]*), Duration: (?:(?P<days>\d+)d )?"
    r"(?P<hours>\d+)h:(?P<minutes>\d+)m:(?P<seconds>\d+)s, "
    r"Bytes xmt: (?P<sent>\d+), Bytes rcv: (?P<received>\d+), Reason: (?P<reason>.*)"
)
_COMMAND = r"User '(?P<user>[^']*)'(?:, running '[^']*' from IP (?P<a>[^\s,]+),)? executed (?:the )?'(?P<command>.*?)'"
_UNAME = r"User authentication (?P<verb>succeeded|failed): IP [Aa]ddress: (?P<a>[^\s,]+), Uname: (?P<user>\S+)"

_FLOW_END = {**ENDED, "event.action": "flow-expiration"}
_DENY = {**DENIED, "event.action": "firewall-rule"}
_VPN = {"event.category": ["network", "session"], "event.outcome": "success"}
_TOLD: dict[str, tuple[str, Flat]] = {
    **dict.fromkeys(("302013", "302015"), (_BUILT, {**STARTED, "event.action": "flow-creation"})),
    **dict.fromkeys(("302014", "302016"), (_GONE, _FLOW_END)),
    "302020": (_ICMP, {**STARTED, "event.action": "flow-creation"}),
    "302021": (_ICMP, _FLOW_END),
    "305011": (_NAT, {"event.category": ["network"], "event.type": ["start"], "event.action": "nat-translation"}),
    "305012": (_NAT, {"event.category": ["network"], "event.type": ["end"], "event.action": "nat-translation"}),
    **dict.fromkeys(("106010", "106014", "106023"), (_SRC_DST, _DENY)),
    **dict.fromkeys(("106001", "106006", "106007", "106015", "106021"), (_FROM_TO, _DENY)),
    **dict.fromkeys(("106100", "106102", "106103"), (_LIST, {**ALLOWED, "event.action": "firewall-rule"})),
    "710002": (_TO_BOX, {**ALLOWED, "event.action": "firewall-rule"}),
    **dict.fromkeys(("710003", "710005"), (_TO_BOX, _DENY)),
    **dict.fromkeys(("605004", "605005"), (_LOGIN, {**login(True), "event.action": "login"})),
    **dict.fromkeys(
        ("113004", "113005", "113012", "113015"), (_AAA, {**login(True), "event.action": "authentication"})
    ),
    **dict.fromkeys(("611101", "611102"), (_UNAME, {**login(True), "event.action": "authentication"})),
    "113019": (_VPN_END, {**_VPN, "event.type": ["end"], "event.action": "vpn-disconnected"}),
    **dict.fromkeys(("113039", "716001", "722022", "722051"), (_VPN_USER, {**_VPN, "event.type": ["start"]})),
    **dict.fromkeys(("716002", "722023"), (_VPN_USER, {**_VPN, "event.type": ["end"]})),
    **dict.fromkeys(
        ("111008", "111009", "111010"),
        (_COMMAND, {"event.category": ["process"], "event.type": ["info"], "event.action": "command-executed"}),
    ),
}
_DIRECT = {
    "way": "network.direction", "bytes": "network.bytes", "received": "source.bytes", "sent": "destination.bytes",
    "reason": "event.reason", "rule": "rule.name", "command": "process.command_line",
}  # fmt: skip
_FAILED = {"denied", "Rejected", "failed"}
_OWN = {
    "id": "connection_id", "way": "direction", "group": "group_name", "type": "icmp_type", "code": "icmp_code",
    "flags": "tcp_flags", "hits": "hit_count", "kind": "session_type", "server": "aaa_server", "service": "service",
}  # fmt: skip


def read(message: Message) -> Flat | None:
    """The number's fields, and those of its text where the text is as Cisco's guide has it."""
    text = message.text
    head = _HEAD.match(message.app)
    if head is None:
        head = _HEAD.match(text)
        if head is None:
            return None
        text = text[head.end() :].lstrip(": ")
    product, severity, number = head.groups()
    kind = "ftd" if product == "FTD" else "asa"
    flat: Flat = {
        "event.module": f"cisco_{kind}",
        "event.dataset": f"cisco_{kind}.log",
        "event.code": number,
        "event.severity": int(severity),
        "observer.vendor": "Cisco",
        "observer.product": product.lower(),
        "observer.type": "firewall",
    }
    if "430000" < number < "430006":
        return {**flat, **_threat_defence(text, number)}
    reader = _READERS.get(number)
    found = reader.pattern.match(text) if reader else None
    if reader is not None and found is not None:
        flat |= reader.fixed
        flat |= _told(reader, found.groupdict(), own=f"cisco.{kind}")
    return flat


class _Reader(NamedTuple):
    """A pattern, what it always means, and the groups that it has of those that are a field as they stand."""

    pattern: re.Pattern[str]
    fixed: Flat
    direct: list[tuple[str, str]]
    own: list[tuple[str, str]]


def _reader(pattern: str, fixed: Flat) -> _Reader:
    compiled = re.compile(pattern)
    direct, own = ([pair for pair in of.items() if pair[0] in compiled.groupindex] for of in (_DIRECT, _OWN))
    return _Reader(compiled, fixed, direct, own)


_READERS = {number: _reader(pattern, fixed) for number, (pattern, fixed) in _TOLD.items()}


class _Paths(NamedTuple):
    """Where one end's parts go."""

    ip: str
    port: str
    nat: str
    nat_port: str
    user: str
    domain: str
    interface: str


def _paths(end: str, side: str) -> _Paths:
    names = {"ip": "ip", "port": "port", "nat": "nat.ip", "nat_port": "nat.port", "user": "user.name"}
    ends = {part: f"{end}.{name}" for part, name in names.items()}
    return _Paths(**ends, domain=f"{end}.user.domain", interface=f"observer.{side}.interface.name")


_SOURCE, _DESTINATION = _paths("source", "ingress"), _paths("destination", "egress")


def _told(reader: _Reader, part: dict[str, Any], *, own: str) -> Flat:
    flat: Flat = {path: part[group] for group, path in reader.direct}
    flat[own] = {name: part[group] for group, name in reader.own if part[group]}
    outbound = part.get("way") == "outbound"  # then the second end opened it, which ASA names last
    _place(flat, part, "a", _DESTINATION if outbound else _SOURCE)
    _place(flat, part, "b", _SOURCE if outbound else _DESTINATION)
    if (protocol := part.get("protocol") or part.get("protocol_2")) is not None:
        flat.update(transport(protocol))
        if "icmp" in protocol.lower():  # what stands where ports do is ICMP's identifier
            flat["source.port"] = flat["destination.port"] = None
    if part.get("hours") is not None:
        flat["event.duration"] = _seconds(part) * 10**9
    if user := part.get("user"):
        flat["user.name"], flat["user.domain"] = split_user(user)
    if part.get("verb") in _FAILED:
        flat.update(DENIED if part.get("rule") else {"event.outcome": "failure"})
    return flat


def _place(flat: Flat, part: dict[str, Any], key: str, paths: _Paths) -> None:
    """One end and the interface that it is behind (a name with a colon in it is told by what is left of it)."""
    interface, found, number = part.get(f"{key}_if"), part.get(key), part.get(f"{key}_port")
    if found and ":" in found and address(found) is None:
        more, _, rest = found.rpartition(":")
        if address(rest) is not None:
            interface, found = f"{interface}:{more}", rest
    flat[paths.ip], flat[paths.port], flat[paths.interface] = found, number, interface
    if user := part.get(f"{key}_user"):
        flat[paths.user], flat[paths.domain] = split_user(user)
    translated = part.get(f"{key}_nat"), part.get(f"{key}_nat_port")
    if translated != (found, number):  # ASA writes the real ones where nothing is translated
        flat[paths.nat], flat[paths.nat_port] = translated


def _seconds(part: dict[str, Any]) -> int:
    days, hours, minutes, seconds = (whole(part.get(name)) or 0 for name in ("days", "hours", "minutes", "seconds"))
    return min(((days * 24 + hours) * 60 + minutes) * 60 + seconds, 10**9)


# ---- FTD's connection, intrusion, file and malware events ----

_PAIR = compile_pattern(
    r"([A-Z][A-Za-z0-9_]*+): ((?:[^,]++|,(?! [A-Z][A-Za-z0-9_]*+: ))*+)(?:, |\Z)|[A-Za-z0-9_]++|.", re.DOTALL
)
_FTD = {
    "SrcIP": "source.ip", "DstIP": "destination.ip", "SrcPort": "source.port", "DstPort": "destination.port",
    "NAT_InitiatorIP": "source.nat.ip", "NAT_ResponderIP": "destination.nat.ip", "InitiatorBytes": "source.bytes",
    "ResponderBytes": "destination.bytes", "InitiatorPackets": "source.packets",
    "ResponderPackets": "destination.packets", "IngressInterface": "observer.ingress.interface.name",
    "EgressInterface": "observer.egress.interface.name", "IngressZone": "observer.ingress.zone",
    "EgressZone": "observer.egress.zone", "ApplicationProtocol": "network.protocol",
    "WebApplication": "network.application", "User": "user.name", "URL": "url.original",
    "HTTPReferer": "http.request.referrer", "UserAgent": "user_agent.original", "ReferencedHost": "url.domain",
    "FileName": "file.name", "FileSize": "file.size", "FileSHA256": "file.hash.sha256",
    "AccessControlRuleName": "rule.name", "ACPolicy": "rule.ruleset", "SID": "rule.id", "Message": "rule.description",
    "DNSQuery": "dns.question.name", "ThreatName": "threat.software.name",
}  # fmt: skip
_ACTIONS = ((("Block", "Deny", "Dropped", "Reset"), DENIED), (("Allow", "Trust", "Monitor", "Would"), ALLOWED))
_KINDS = {"430001": ["intrusion_detection"], "430005": ["malware"]}


def _is_pair(match: re.Match[str]) -> bool:
    return match[1] is not None


def _threat_defence(text: str, number: str) -> Flat:
    """`Name: value, Name: value`; a value may have commas, but none before a further name."""
    pairs = [(match[1], match[2]) for match in islice(filter(_is_pair, _PAIR.finditer(text)), MAX_PAIRS)]
    flat = sort_out(pairs, _FTD, own="cisco.ftd")
    own = flat["cisco.ftd"]
    if protocol := own.pop("Protocol", None):
        flat.update(transport(protocol))
    if (seconds := whole(own.pop("ConnectionDuration", None))) is not None:
        flat["event.duration"] = min(seconds, 10**9) * 10**9
    action = own.get("AccessControlRuleAction") or own.get("InlineResult") or ""
    flat.update(next((told for words, told in _ACTIONS if action.startswith(words)), CONNECTION))
    flat["event.category"] = ["network", *_KINDS.get(number, [])]
    flat["event.action"] = action.lower().replace(" ", "-")
    return flat


_NAMES = ("ASA", "FTD", "PIX", "FWSM")
FAMILY = Family(
    "cisco_asa",
    tuple(Signature(**{place: f"%{name}-".encode()}) for name in _NAMES for place in ("app_starts", "starts")),
    read,
)
