"""JSON Schema (2020-12) of each stream's events: the contract with whoever reads the topics.

Promises: every event that we decode from syslog or that our agents make is valid, and every key of theirs described,
which a test holds against what decoder and inputs really make; a key is required only if every event has it; nothing
here changes without the test.
Refuses: describing what others send as ECS (another program with an agent's certificate, a topic that the kafka input
reads): of theirs only `@timestamp` and `event.id` are sure, and any further ECS key is allowed. Measurements (`system`,
as Metricbeat names them), audit records and journal fields as they are (`auditd`, `journald`) are open objects.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
STREAMS = {"security_events": "event", "alerts": "alert", "metrics": "metric"}
"""Stream → the event.kind of its events, where no input of an agent is told to use another stream than its own."""
KINDS = sorted({*STREAMS.values(), "pipeline_error"})
"""pipeline_error: an agent says what was lost before it could read it."""

TEXT: Schema = {"type": "string"}
TEXTS: Schema = {"type": "array", "items": TEXT}
COUNT: Schema = {"type": "integer", "minimum": 0}
PORT = COUNT | {"maximum": 65535}
TIME: Schema = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?Z$",
}


def schema(stream: str) -> Schema:
    """The schema of a stream's events; raises KeyError for one that we do not make."""
    usual = STREAMS[stream]
    return {
        "$schema": DIALECT,
        "$id": f"urn:neurodefender:schema:{stream}:2",
        "title": f"{stream}: one event (Elastic Common Schema 8)",
        **_object(
            {
                "@timestamp": TIME | {"description": "The sender's time in UTC; when we read it where it said none."},
                "ecs": _object({"version": TEXT}, ["version"]),
                "message": TEXT,
                "event": _event(usual),
                "log": _log(),
                "source": _end()
                | {
                    "description": "Who connected; of an agent's event whom it tells of; of a flow who sent; with "
                    "decode.device_fields: elastic, of a device's event who sent the traffic."
                },
                "tls": _object({"client": _object({"subject": TEXT, "x509": _object({"serial_number": TEXT})})}),
                "observer": _observer(),
                "agent": _agent(),
                "ndcollector": _object(
                    {
                        "position": TEXT | {"description": "An agent's event: its place in the collector's spool."},
                        "source": _source(),
                        "name": TEXT | {"description": "The collector, where observer is the device (elastic)."},
                    }
                ),
                "error": _object({"message": TEXT}),
                "tags": {"type": "array", "items": TEXT, "uniqueItems": True},
                **_of_hosts(),
                **_of_devices(),
            },
            ["@timestamp", "ecs", "event"],
        ),
        # Of syslog tells the collector (observer), of a host its agent, of a flow its exporter (observer).
        "anyOf": [
            {
                "required": ["observer", "message"],
                "properties": {"observer": {"required": ["name", "type", "product"]}},
            },
            {"required": ["agent", "host"]},
            {"required": ["ndcollector", "observer", "message"]},
            {"required": ["observer", "netflow"], "properties": {"observer": {"required": ["ip"]}}},
        ],
        "if": {"properties": {"event": {"properties": {"kind": {"const": "metric"}}}}},
        "then": {"required": ["metricset"]},
        "else": {"anyOf": [{"required": ["message"]}, {"required": ["netflow"]}]},  # metrics and flows have no words
    }


def _event(usual: str) -> Schema:
    return _object(
        {
            "id": TEXT | {"description": "The same after every re-send and replay: drop duplicates by it."},
            "sequence": COUNT | {"description": "Of syslog: the spool's; of auditd: the kernel's serial."},
            "created": TIME | {"description": "When the collector received, or the agent read it."},
            "ingested": TIME | {"description": "When the collector received an agent's event, by its own clock."},
            "kind": {"enum": KINDS, "description": f"Usually {usual}; pipeline_error: what an agent lost, and why."},
            "module": TEXT,
            "dataset": TEXT | {"description": "Of the file input: its name in the agent's configuration."},
            "action": TEXT,
            "category": TEXTS,
            "type": TEXTS,
            "outcome": {"enum": ["success", "failure", "unknown"]},
            "code": TEXT,
            "reason": TEXT,
            "severity": COUNT | {"description": "As the device has it; vendors count up or down."},
            "duration": COUNT | {"description": "Nanoseconds that a round of measuring took, or that a flow lasted."},
            "start": TIME | {"description": "Of a flow, or of a silence."},
            "end": TIME | {"description": "Of a flow."},
            "original": TEXT | {"description": "The whole message as it came, where the configuration keeps it."},
            "original_base64": TEXT | {"contentEncoding": "base64", "description": "Its bytes, where not UTF-8."},
        },
        ["id", "kind", "created"],
    )


def _end(*, of_flow: bool = True, opened: bool = True) -> Schema:
    """One end of a connection, as a device or a flow's exporter tells of it; `opened` it, or was whom that was to."""
    geo = {"name": TEXT, "country_name": TEXT, **({"country_iso_code": TEXT} if opened else {})}
    return _object(
        {
            "ip": TEXT,
            "address": TEXT,
            "domain": TEXT,
            "port": PORT,
            "bytes": COUNT,
            "packets": COUNT,
            "mac": TEXT,
            "nat": _object({"ip": TEXT, "port": PORT}),
            "user": _object({"id": TEXT, "name": TEXT, "domain": TEXT}),
            "geo": _object(geo),
            **({"as": _object({"number": COUNT})} if of_flow else {}),
        }
    )


def _source() -> Schema:
    """Of an alert that a source has gone quiet, or is back: docs/sources.md."""
    usual = {"type": "number", "minimum": 0, "description": "0: a person says what to expect."}
    return _object({"name": TEXT, "channel": TEXT, "input": TEXT, "usual_pause_seconds": usual}, ["name"])


def _observer(*, of_flow: bool = True) -> Schema:
    """The collector, a flow's exporter, a device; and where traffic came in and went out there."""
    of_interface = {"name": TEXT, **({"id": TEXT} if of_flow else {})}
    vlan = {"vlan": _object({"id": TEXT})} if of_flow else {}
    way = _object({"interface": _object(of_interface), "zone": TEXT, **vlan})
    names = dict.fromkeys(("name", "type", "product", "ip", "vendor", "version", "hostname", "serial_number"), TEXT)
    return _object({**names, "ingress": way, "egress": way})


def _network() -> Schema:
    return _object(
        {
            "type": TEXT, "direction": TEXT, "transport": TEXT, "iana_number": TEXT, "bytes": COUNT, "packets": COUNT,
            "vlan": _object({"id": TEXT}), "community_id": TEXT, "protocol": TEXT, "application": TEXT,
        }
    )  # fmt: skip


def _agent() -> Schema:
    return _object(
        {
            "id": TEXT | {"description": "By its certificate, whatever the event said."},
            "type": TEXT,
            "version": TEXT,
            "clock_skew_seconds": {
                "type": "number",
                "description": "How far its clock is ahead of the collector's; absent below 2 s.",
            },
        },
        ["id"],
    )


def _of_hosts() -> dict[str, Schema]:
    """What programs and agents tell of a host."""
    identity = {"id": TEXT, "name": TEXT}
    named = {**identity, "group": _object(identity)}
    traffic = _object({"bytes": COUNT, "packets": COUNT})
    process = {
        "name": TEXT, "pid": COUNT, "executable": TEXT, "command_line": TEXT, "args": TEXTS, "args_count": COUNT,
        "title": TEXT, "working_directory": TEXT, "parent": _object({"pid": COUNT}),
    }  # fmt: skip
    host = {
        "hostname": TEXT,
        "name": TEXT,
        "uptime": COUNT,
        "boot": _object({"id": TEXT}),
        "cpu": _object({"usage": {"type": "number", "minimum": 0}}),
        "disk": _object({"read": _object({"bytes": COUNT}), "write": _object({"bytes": COUNT})}),
        "network": _object({"ingress": traffic, "egress": traffic}),
    }
    users = {name: _object(named) for name in ("effective", "saved", "filesystem")}
    return {
        "host": _object(host),
        "process": _object(process),
        "user": _object({**named, "domain": TEXT, "audit": _object(identity), **users}),
        "group": _object({"name": TEXT}),
        "file": _object({"path": TEXT, "inode": TEXT, "mode": TEXT, "uid": TEXT, "gid": TEXT, **_file_of_device()}),
        "destination": _end(opened=False),
        "network": _network(),
        "service": _object({"name": TEXT}),
        "metricset": _object({"name": TEXT, "period": COUNT}, ["name"]),
        "systemd": _object({"unit": TEXT, "user_unit": TEXT, "slice": TEXT, "transport": TEXT}),
        "system": {"type": "object", "description": "What was measured, named as Metricbeat's module system does."},
        "auditd": {"type": "object", "description": "What of the audit records no ECS field holds, by record type."},
        "netflow": {"type": "object", "description": "What of a flow no ECS field holds, by IANA's element names."},
        "journald": {"type": "object", "description": "Fields of the journal without an ECS name (all_fields: true)."},
    }


def _file_of_device() -> dict[str, Schema]:
    return {"name": TEXT, "type": TEXT, "size": COUNT, "hash": _object({"sha256": TEXT, "md5": TEXT})}


DEVICE_ROOTS = ("cisco", "panw", "fortinet", "juniper", "checkpoint", "f5", "iptables", "cef", "leef", "key_value")
"""Where families of devices (ndagent.wire.devices) keep what has no ECS name; each vendor's own names."""


def _of_devices() -> dict[str, Schema]:
    """What families of devices tell of their messages; source, destination and observer are theirs with `elastic`."""
    request = _object({"method": TEXT, "referrer": TEXT})
    http = _object({"request": request, "response": _object({"status_code": COUNT})})
    own: Schema = {"type": "object", "description": "What of the device's message no ECS field holds."}
    return {
        "client": _end(of_flow=False) | {"description": "Of a device's event: who opened the connection."},
        "server": _end(of_flow=False, opened=False) | {"description": "Of a device's event: to whom."},
        "device": _observer(of_flow=False) | {"description": "The device that tells of it."},
        "related": _object({"ip": TEXTS, "user": TEXTS}),
        "rule": _object(dict.fromkeys(("id", "name", "uuid", "ruleset", "description"), TEXT)),
        "url": _object(dict.fromkeys(("original", "domain", "path", "query"), TEXT)),
        "http": http,
        "user_agent": _object({"original": TEXT}),
        "dns": _object({"question": _object({"name": TEXT, "type": TEXT})}),
        "email": _object({"subject": TEXT}),
        "threat": _object({"software": _object({"name": TEXT})}),
        **dict.fromkeys(DEVICE_ROOTS, own),
    }


def _log() -> Schema:
    origin = _object({"file": _object({"name": TEXT, "line": COUNT}), "function": TEXT})
    file = _object({"path": TEXT}, ["path"])
    sender = _object({"ip": TEXT, "address": TEXT, "port": PORT})
    whole = {"syslog": _syslog(), "file": file, "offset": COUNT, "level": TEXT, "origin": origin}
    return _object({**whole, "source": sender | {"description": "Who connected, where source is the traffic's."}})


def _syslog() -> Schema:
    """Of the collector's own parsing always with priority, facility and severity; a log file may lack them."""
    named = _object({"code": COUNT, "name": TEXT}, ["code"])
    value = {"anyOf": [TEXT, {"type": "array", "items": TEXT}]}
    return _object(
        {
            "priority": COUNT | {"maximum": 191},
            "version": TEXT,
            "facility": named,
            "severity": named,
            "hostname": TEXT,
            "appname": TEXT,
            "procid": TEXT,
            "msgid": TEXT,
            "structured_data": {
                "type": "object",
                "additionalProperties": {"type": "object", "additionalProperties": value},
                "description": "RFC 5424 §6.3: {sd_id: {param: value}}; a repeated param is an array.",
            },
        }
    )


def _object(properties: Mapping[str, Schema], required: Sequence[str] = ()) -> Schema:
    found: Schema = {"type": "object", "properties": dict(properties)}
    return found | {"required": list(required)} if required else found
