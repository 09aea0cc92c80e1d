"""Linux's packet filter: what the LOG targets of iptables and nftables, and UFW, have the kernel write.

Promises: addresses, interfaces, ports and flags by Elastic's iptables names; the prefix that the rule's author chose
stands in iptables.prefix. The kernel never says what became of a packet: the event is denied or allowed where the
prefix says so (DROP, BLOCK, REJECT, DENY; ACCEPT, ALLOW).
Refuses: the packet inside an ICMP error, which stands in brackets.
"""

import re

from ndagent.wire.devices.fields import ALLOWED, DENIED, Family, Flat, Message, sort_out, transport
from ndagent.wire.devices.pairs import spaced
from ndagent.wire.devices.signatures import Signature

_NAMES = {
    "SRC": "source.ip", "DST": "destination.ip", "SPT": "source.port", "DPT": "destination.port",
    "IN": "observer.ingress.interface.name", "OUT": "observer.egress.interface.name", "LEN": "network.bytes",
}  # fmt: skip
_OWN = {
    "TOS": "tos", "PREC": "precedence_bits", "TTL": "ttl", "ID": "id", "WINDOW": "tcp_window",
    "RES": "tcp_reserved_bits", "TYPE": "icmp_type", "CODE": "icmp_code", "MARK": "mark",
    "PHYSIN": "physical_input_device", "PHYSOUT": "physical_output_device", "HOPLIMIT": "ttl", "FLOWLBL": "flow_label",
    "UID": "uid", "GID": "gid",
}  # fmt: skip
_UPTIME = re.compile(r"\[ *\d+\.\d+\] ")
_FLAGS = re.compile(r" (SYN|ACK|FIN|RST|PSH|URG|ECE|CWR)(?= |\Z)")
_REFUSED = re.compile(r"DROP|BLOCK|REJECT|DENY|DENIED|INVALID", re.IGNORECASE)
_PASSED = re.compile(r"ACCEPT|ALLOW|PERMIT", re.IGNORECASE)


def read(message: Message) -> Flat | None:
    """None where IN=, SRC= or DST= is missing."""
    text = message.text
    uptime = _UPTIME.match(text)
    prefix, begin, rest = text[uptime.end() if uptime else 0 :].partition("IN=")
    outer = f"{begin}{rest}".partition(" [SRC=")[0]
    flat = sort_out(spaced(outer), _NAMES, own="iptables", first_counts=True)  # UDP has a LEN of its own
    if not begin or "source.ip" not in flat or "destination.ip" not in flat:
        return None
    found = flat["iptables"]
    own = {name: found[key] for key, name in _OWN.items() if key in found}
    own["prefix"] = prefix.strip()
    if flags := _FLAGS.findall(outer):
        own["tcp_flags"] = flags
    flat["iptables"] = {name: value for name, value in own.items() if value}
    flat["event.module"], flat["event.dataset"], flat["event.category"] = "iptables", "iptables.log", ["network"]
    flat["event.type"] = ["connection"]
    if _REFUSED.search(prefix):
        flat.update({**DENIED, "event.action": "drop"})
    elif _PASSED.search(prefix):
        flat.update({**ALLOWED, "event.action": "accept"})
    flat["network.type"] = "ipv6" if ":" in flat["source.ip"] else "ipv4"
    if protocol := found.get("PROTO"):
        flat.update(transport(protocol))
    if len(addresses := found.get("MAC", "")) == _MAC_CHARACTERS:
        flat["destination.mac"], flat["source.mac"] = addresses[:17], addresses[18:35]
    return flat


_MAC_CHARACTERS = 14 * 3 - 1  # destination, source and type of an Ethernet frame, colons between the bytes
FAMILY = Family("netfilter", (Signature(app=b"kernel", contains=b"SRC="),), read)
