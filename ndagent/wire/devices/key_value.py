"""name=value pairs of any device: SonicWall, Sophos and Meraki by signature, others where decode.origins says so.

Promises: the names that many vendors use for the same things become ECS fields, all others stand under key_value.
SonicWall's address:port:interface is taken apart.
Refuses: a message with less than two pairs (it is a sentence with an equals sign), and vendors' words for what became
of a connection: event.action is theirs.
"""

import re

from ndagent.wire.devices.fields import Family, Flat, Message, sort_out, transport
from ndagent.wire.devices.pairs import spaced
from ndagent.wire.devices.signatures import Signature

_SOURCE = {
    "ip": "src srcip src_ip source source_ip saddr",
    "port": "sport srcport src_port spt source_port",
    "mac": "srcmac src_mac smac",
}
_DESTINATION = {
    "ip": "dst dstip dst_ip destination destination_ip daddr",
    "port": "dport dstport dst_port dpt destination_port",
    "mac": "dstmac dst_mac dmac",
}
_NAMES = {
    **{name: f"source.{field}" for field, names in _SOURCE.items() for name in names.split()},
    **{name: f"destination.{field}" for field, names in _DESTINATION.items() for name in names.split()},
    "tran_src_ip": "source.nat.ip", "tran_src_port": "source.nat.port", "tran_dst_ip": "destination.nat.ip",
    "tran_dst_port": "destination.nat.port", "sent": "source.bytes", "sent_bytes": "source.bytes",
    "bytes_sent": "source.bytes", "rcvd": "destination.bytes", "recv_bytes": "destination.bytes",
    "received_bytes": "destination.bytes", "bytes_received": "destination.bytes", "user": "user.name",
    "usr": "user.name", "user_name": "user.name", "username": "user.name", "action": "event.action",
    "act": "event.action", "log_subtype": "event.action", "reason": "event.reason", "rule": "rule.name",
    "rule_name": "rule.name", "fw_rule_id": "rule.id", "policy": "rule.name", "fw_rule_name": "rule.name",
    "app_name": "network.application", "url": "url.original", "domain": "url.domain",
    "file_name": "file.name", "filename": "file.name", "user_agent": "user_agent.original",
    "in_interface": "observer.ingress.interface.name", "out_interface": "observer.egress.interface.name",
    "device_name": "observer.name", "dvchost": "observer.hostname", "sn": "observer.serial_number",
    "device_id": "observer.serial_number", "log_id": "event.code", "m": "event.code", "direction": "network.direction",
}  # fmt: skip
_WITH_PORT = re.compile(r"([0-9.]{7,15}):(\d{1,5})(?::([^:]*))?")
_LEAST_PAIRS = 2


def read(message: Message) -> Flat | None:
    """None where it is less than two pairs."""
    pairs = list(spaced(message.text))
    if len(pairs) < _LEAST_PAIRS:
        return None
    flat = sort_out(pairs, _NAMES, own="key_value")
    own = flat["key_value"]
    for end, side in (("source", "ingress"), ("destination", "egress")):
        found = _WITH_PORT.match(flat.get(f"{end}.ip", ""))
        if found is not None:
            flat[f"{end}.ip"], flat[f"{end}.port"] = found[1], found[2]
            flat.setdefault(f"observer.{side}.interface.name", found[3])
    if protocol := own.pop("protocol", None) or own.pop("proto", None):
        name, slash, service = protocol.partition("/")  # SonicWall: tcp/https
        flat.update(transport(name))
        flat["network.protocol"] = service.lower() if slash else None
    for end in ("source", "destination"):
        if flat.get(f"{end}.nat.port") == "0":
            del flat[f"{end}.nat.port"]  # Sophos: it was not translated
    flat["event.module"], flat["event.dataset"] = "key_value", "key_value.log"
    flat["observer.vendor"] = next((vendor for mark, vendor in _VENDORS.items() if message.text.startswith(mark)), None)
    return flat


_VENDORS = {"id=firewall ": "SonicWall", 'device="SFW"': "Sophos", "device_name=": "Sophos"}
FAMILY = Family(
    "key_value",
    (
        *(Signature(starts=mark.encode()) for mark in _VENDORS),
        Signature(app=b"flows", starts=b"src="),
        Signature(app=b"ip_flow_start", starts=b"src="),
        Signature(app=b"ip_flow_end", starts=b"src="),
    ),
    read,
)
