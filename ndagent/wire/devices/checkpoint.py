"""Check Point's Log Exporter: [name:"value"; …] behind an RFC 5424 header, and its Splunk form name=value|….

Promises: names without an ECS name stand under checkpoint as they are. Its CEF and LEEF forms are read by cef.py and
leef.py.
Refuses: joining updates of one log (they share loguid).

After "Log Exporter" in the Logging and Monitoring administration guide, and sk144192 (names of fields).
"""

from ndagent.wire.devices.fields import ALLOWED, CONNECTION, DENIED, Family, Flat, Message, login, sort_out, transport
from ndagent.wire.devices.pairs import by_colons, by_pipes
from ndagent.wire.devices.signatures import Signature

_NAMES = {
    "src": "source.ip", "s_port": "source.port", "dst": "destination.ip", "service": "destination.port",
    "xlatesrc": "source.nat.ip", "xlatesport": "source.nat.port", "xlatedst": "destination.nat.ip",
    "xlatedport": "destination.nat.port", "inzone": "observer.ingress.zone", "outzone": "observer.egress.zone",
    "rule": "rule.id", "rule_name": "rule.name", "rule_uid": "rule.uuid", "layer_name": "rule.ruleset",
    "protection_name": "rule.description", "service_id": "network.protocol", "appi_name": "network.application",
    "src_user_name": "source.user.name", "dst_user_name": "destination.user.name", "user": "user.name",
    "src_machine_name": "source.domain", "dst_machine_name": "destination.domain", "mac_source_address": "source.mac",
    "client_outbound_bytes": "source.bytes", "sent_bytes": "source.bytes", "received_bytes": "destination.bytes",
    "bytes": "network.bytes", "packets": "network.packets", "action": "event.action", "reason": "event.reason",
    "product": "observer.product", "resource": "url.original", "method": "http.request.method",
    "user_agent": "user_agent.original", "referrer": "http.request.referrer", "file_name": "file.name",
    "file_size": "file.size", "file_sha256": "file.hash.sha256", "file_md5": "file.hash.md5",
    "malware_family": "threat.software.name", "originsicname": "observer.name", "origin": "observer.ip",
    "email_subject": "email.subject", "dns_query": "dns.question.name",
}  # fmt: skip
_REFUSED = ("Drop", "Reject", "Block", "Prevent", "Deny")
_PASSED = ("Accept", "Allow", "Detect", "Monitor", "Inspect", "Bypass", "Encrypt", "Decrypt", "VPN Routing")
_LOGINS = ("Log In", "Failed Log In", "Log Out")


def read(message: Message) -> Flat | None:
    """None where there is no pair, or neither of action, product and loguid."""
    text = message.text
    pairs = by_colons(text[1:].rstrip().removesuffix("]")) if text.startswith("[") else by_pipes(text)
    # A name stands once for each layer whose rule matched; quotes and bars inside values are escaped.
    flat = sort_out(pairs, _NAMES, own="checkpoint", first_counts=True)
    own = flat["checkpoint"]
    if not ({"event.action", "observer.product"} & flat.keys() or "loguid" in own):
        return None
    action = flat.get("event.action", "")
    flat["event.module"], flat["event.dataset"] = "checkpoint", "checkpoint.firewall"
    flat["observer.vendor"], flat["observer.type"] = "Checkpoint", "firewall"
    if protocol := own.pop("proto", None):
        flat.update(transport(protocol))
    if interface := own.get("ifname"):
        side = "egress" if own.get("ifdir") == "outbound" else "ingress"
        flat[f"observer.{side}.interface.name"] = interface
    flat["network.direction"] = own.get("ifdir")
    if action in _LOGINS:
        flat.update(login(action != "Failed Log In"))
        flat["event.type"] = ["end" if action == "Log Out" else "start"]
    elif "source.ip" in flat or "destination.ip" in flat:
        flat.update(DENIED if action.startswith(_REFUSED) else ALLOWED if action in _PASSED else CONNECTION)
        if "rule.description" in flat or "malware_action" in own:
            flat["event.category"] = ["network", "intrusion_detection"]
    return flat


FAMILY = Family(
    "checkpoint",
    (Signature(app=b"CheckPoint", starts=b"["), Signature(starts=b"time=", contains=b"|loguid=")),
    read,
)
