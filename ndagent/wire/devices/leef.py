"""IBM's Log Event Extended Format, 1.0 and 2.0: LEEF:…|vendor|product|version|id|attributes with tabs between them.

Promises: header and attributes, those without an ECS name under leef.attributes. LEEF 2.0's own delimiter, a character
or its code (x5E, 0x5E). Tabs that a relay has made #011 (rsyslog does) are tabs.
Refuses: devTime (the syslog header has the time; the attribute stands in leef.attributes).

After IBM's "LEEF event components" and "Predefined LEEF event attributes".
"""

import re
from itertools import islice

from ndagent.wire.devices.fields import MAX_PAIRS, Family, Flat, Message, sort_out, transport
from ndagent.wire.devices.signatures import Signature

_HEADER = re.compile(r"LEEF:\s?([12](?:\.0)?)\|([^|]*)\|([^|]*)\|([^|]*)\|([^|\t]*)(?:\||(?=\t))")
_DELIMITER = re.compile(r"(?:(?:0?x([0-9A-Fa-f]{1,4}))|([^\w\s=|]|))\|")
_ECS = {
    "src": "source.ip", "srcPort": "source.port", "srcMAC": "source.mac", "srcBytes": "source.bytes",
    "srcPackets": "source.packets", "srcPostNAT": "source.nat.ip", "srcPostNATPort": "source.nat.port",
    "dst": "destination.ip", "dstPort": "destination.port", "dstMAC": "destination.mac",
    "dstBytes": "destination.bytes", "dstPackets": "destination.packets", "dstPostNAT": "destination.nat.ip",
    "dstPostNATPort": "destination.nat.port", "totalPackets": "network.packets", "usrName": "user.name",
    "domain": "user.domain", "groupName": "group.name", "policy": "rule.name", "url": "url.original",
    "sev": "event.severity", "action": "event.action", "reason": "event.reason",
}  # fmt: skip


def read(message: Message) -> Flat | None:
    """None without a whole header."""
    text = f"LEEF:{message.text}" if message.app == "LEEF" else message.text  # "LEEF: 1.0|" reads as a program's name
    header = _HEADER.match(text)
    if header is None:
        return None
    version, vendor, product, product_version, identity = header.groups()
    rest, delimiter = text[header.end() :], "\t"
    if version.startswith("2"):
        rest, delimiter = _delimited(rest)
    if delimiter == "\t" and "\t" not in rest:
        rest = rest.replace("#011", "\t")
    parts = islice((part.partition("=") for part in rest.split(delimiter)), MAX_PAIRS)
    flat = sort_out(((name.strip(), value.strip()) for name, _, value in parts), _ECS, own="leef.attributes")
    if protocol := flat["leef.attributes"].pop("proto", None):
        flat.update(transport(protocol))
    flat["leef.version"] = version
    flat["event.module"], flat["event.dataset"], flat["event.code"] = "leef", "leef.log", identity
    flat["observer.vendor"], flat["observer.product"], flat["observer.version"] = vendor, product, product_version
    return flat


def _delimited(rest: str) -> tuple[str, str]:
    """LEEF 2.0 may say its delimiter in a field of its own; without one it is the tab."""
    found = _DELIMITER.match(rest)
    if found is None:
        return rest, "\t"
    code, character = found.groups()
    return rest[found.end() :], chr(int(code, 16)) if code else character or "\t"


FAMILY = Family(
    "leef", (Signature(starts=b"LEEF:"), Signature(app=b"LEEF", starts=b"1"), Signature(app=b"LEEF", starts=b"2")), read
)
