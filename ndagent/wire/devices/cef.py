"""ArcSight Common Event Format: CEF:0|vendor|product|version|id|name|severity|extension, of whatever device.

Promises: the header and all pairs of the extension, those without an ECS name under cef.extensions by their full names
(cs1 is deviceCustomString1), as Elastic's decoder has them. A header of fewer than seven bars is left alone.
Refuses: what a vendor means by its custom strings, and times (the syslog header has them; rt stands in cef.extensions).

After "ArcSight Common Event Format, version 25".
"""

from ndagent.wire.devices.extensions import extension, unescaped
from ndagent.wire.devices.fields import Family, Flat, Message, sort_out, transport, whole
from ndagent.wire.devices.signatures import Signature
from ndagent.wire.regex import compile_pattern

_FIELD = r"((?:[^|\\]++|\\.)*+)\|"
_HEADER = compile_pattern(r"CEF:\s?(\d+)\|" + _FIELD * 6)
_ECS = {
    "src": "source.ip", "spt": "source.port", "shost": "source.domain", "smac": "source.mac",
    "suser": "source.user.name", "suid": "source.user.id", "sntdom": "source.user.domain",
    "sourceTranslatedAddress": "source.nat.ip", "sourceTranslatedPort": "source.nat.port", "dst": "destination.ip",
    "dpt": "destination.port", "dhost": "destination.domain", "dmac": "destination.mac",
    "duser": "destination.user.name", "duid": "destination.user.id", "dntdom": "destination.user.domain",
    "destinationTranslatedAddress": "destination.nat.ip", "destinationTranslatedPort": "destination.nat.port",
    "in": "source.bytes", "out": "destination.bytes", "act": "event.action", "reason": "event.reason",
    "app": "network.protocol", "request": "url.original", "requestMethod": "http.request.method",
    "requestContext": "http.request.referrer", "requestClientApplication": "user_agent.original", "fname": "file.name",
    "filePath": "file.path", "fsize": "file.size", "dvchost": "observer.hostname", "dvc": "observer.ip",
    "deviceInboundInterface": "observer.ingress.interface.name",
    "deviceOutboundInterface": "observer.egress.interface.name",
}  # fmt: skip
_FULL = {
    "cat": "deviceEventCategory", "cnt": "baseEventCount", "rt": "deviceReceiptTime", "msg": "message",
    "start": "startTime", "end": "endTime", "dproc": "destinationProcessName", "sproc": "sourceProcessName",
    "dpid": "destinationProcessId", "spid": "sourceProcessId", "dpriv": "destinationUserPrivileges",
    "spriv": "sourceUserPrivileges", "dtz": "deviceTimeZone", "dvcpid": "deviceProcessId",
    "dvcmac": "deviceMacAddress", "outcome": "eventOutcome", "type": "type",
    **{f"cs{i}{end}": f"deviceCustomString{i}{end}" for i in range(1, 7) for end in ("", "Label")},
    **{f"cn{i}{end}": f"deviceCustomNumber{i}{end}" for i in range(1, 4) for end in ("", "Label")},
    **{f"cfp{i}{end}": f"deviceCustomFloatingPoint{i}{end}" for i in range(1, 5) for end in ("", "Label")},
    **{f"c6a{i}{end}": f"deviceCustomIPv6Address{i}{end}" for i in range(1, 5) for end in ("", "Label")},
}  # fmt: skip
_OUTCOMES = {"success": "success", "successful": "success", "failure": "failure", "failed": "failure"}


def read(message: Message) -> Flat | None:
    """None without a whole header."""
    text = f"CEF:{message.text}" if message.app == "CEF" else message.text  # "CEF: 0|" reads as a program's name
    header = _HEADER.match(text)
    if header is None:
        return None
    version, vendor, product, product_version, identity, name, severity = map(unescaped, header.groups())
    pairs = ((_FULL.get(key, key), value) for key, value in extension(text[header.end() :]))
    flat = sort_out(pairs, _ECS, own="cef.extensions")
    own = flat["cef.extensions"]
    flat["cef.version"], flat["cef.name"], flat["cef.severity"] = version, name, severity
    flat["cef.device"] = {
        key: value
        for key, value in (
            ("vendor", vendor),
            ("product", product),
            ("version", product_version),
            ("event_class_id", identity),
        )
        if value
    }
    flat["event.module"], flat["event.dataset"] = "cef", "cef.log"
    flat["event.code"], flat["event.severity"] = identity, whole(severity)
    flat["observer.vendor"], flat["observer.product"], flat["observer.version"] = vendor, product, product_version
    if protocol := own.pop("proto", None):
        flat.update(transport(protocol))
    flat["network.direction"] = {"0": "inbound", "1": "outbound"}.get(own.pop("deviceDirection", ""))
    flat["event.outcome"] = _OUTCOMES.get(own.get("eventOutcome", "").lower())
    return flat


FAMILY = Family(
    "cef", (Signature(starts=b"CEF:"), Signature(app=b"CEF", starts=b"0|"), Signature(app=b"CEF", starts=b"1|")), read
)
