"""JSON Schema (2020-12) of each stream's events: the contract with whoever reads the topics.

Promises: every event that we decode is valid, which a test holds against what the decoder really makes; a key is
required only if every event has it; nothing here changes without the test.
Refuses: describing what agents and processors may add (any further ECS key is allowed), and Elastic's whole schema.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
STREAMS = {"security_events": "event", "alerts": "alert", "metrics": "metric"}
"""Stream → the event.kind of its events."""

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TIME: Schema = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?Z$",
}


def schema(stream: str) -> Schema:
    """The schema of a stream's events; raises KeyError for one that we do not make."""
    kind = STREAMS[stream]
    return {
        "$schema": DIALECT,
        "$id": f"urn:neurodefender:schema:{stream}:1",
        "title": f"{stream}: one event (Elastic Common Schema 8)",
        **_object(
            {
                "@timestamp": TIME | {"description": "The device's time in UTC; ours where it said none."},
                "ecs": _object({"version": TEXT}, ["version"]),
                "message": TEXT,
                "event": _event(kind),
                "host": _object({"hostname": TEXT, "name": TEXT}),
                "process": _object({"name": TEXT, "pid": COUNT}),
                "log": _object({"syslog": _syslog()}),
                "source": _object({"ip": TEXT, "address": TEXT, "port": COUNT | {"maximum": 65535}}),
                "tls": _object({"client": _object({"subject": TEXT, "x509": _object({"serial_number": TEXT})})}),
                "observer": _object({"name": TEXT, "type": TEXT, "product": TEXT}, ["name", "type", "product"]),
                "agent": _object({"id": TEXT, "version": TEXT, "type": TEXT}),
                "error": _object({"message": TEXT}),
                "tags": {"type": "array", "items": TEXT, "uniqueItems": True},
            },
            ["@timestamp", "ecs", "message", "event", "observer"],
        ),
    }


def _event(kind: str) -> Schema:
    return _object(
        {
            "id": TEXT | {"description": "The same after every re-send and replay: drop duplicates by it."},
            "sequence": COUNT,
            "created": TIME | {"description": "When the collector received the event."},
            "kind": {"const": kind},
            "original": TEXT | {"description": "The whole message as it came, where the configuration keeps it."},
            "original_base64": TEXT | {"contentEncoding": "base64", "description": "Its bytes, where not UTF-8."},
        },
        ["id", "sequence", "created", "kind"],
    )


def _syslog() -> Schema:
    named = {"code": COUNT, "name": TEXT}
    value = {"anyOf": [TEXT, {"type": "array", "items": TEXT}]}
    return _object(
        {
            "priority": COUNT | {"maximum": 191},
            "version": TEXT,
            "facility": _object(named, list(named)),
            "severity": _object(named, list(named)),
            "hostname": TEXT,
            "appname": TEXT,
            "procid": TEXT,
            "msgid": TEXT,
            "structured_data": {
                "type": "object",
                "additionalProperties": {"type": "object", "additionalProperties": value},
                "description": "RFC 5424 §6.3: {sd_id: {param: value}}; a repeated param is an array.",
            },
        },
        ["priority", "facility", "severity"],
    )


def _object(properties: Mapping[str, Schema], required: Sequence[str] = ()) -> Schema:
    found: Schema = {"type": "object", "properties": dict(properties)}
    return found | {"required": list(required)} if required else found
