"""Lines whose messages a family knows, written anew with what it says: the same code for both twins of the decoder.

Promises: a line is replaced whole or not touched; nothing that an event has is changed, but where ELASTIC asks for it
(below), and `message`, `event`'s identity and times and the place of host.hostname never; lines of other messages are
copied as they stand. A family that fails on a message leaves the event as it was.
Refuses: judging what a family says.

An event of syslog says in `source` who sent the message and in `observer` which collector took it; a device means by
both something else. ADDED keeps them: what a family calls source, destination and observer is named client, server and
device. ELASTIC names as Elastic's integrations do: source, destination and observer are the device's, the sender stands
in log.source, the collector in ndcollector.name. It does so only in events for which a family has such words.
"""

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import orjson

from ndagent.wire.devices import FAMILIES, load_family
from ndagent.wire.devices.fields import Family, Message, nested
from ndagent.wire.devices.signatures import MAX_MESSAGE_BYTES, Finder, Signature
from ndagent.wire.ecs import DecodeSettings, Fields

NO_DEVICE = "none"
NOT_LOOKED_AT = -2
"""Not a family's number; plus one it is negative, which the compiled twin goes by."""
_NAMES = {"source": "client", "destination": "server", "observer": "device"}
_NOTHING: dict[str, Any] = {}


class Devices:
    """The families that the settings name; a family's number is its place in `families`. Safe from several threads."""

    def __init__(self, settings: DecodeSettings) -> None:
        forced = {device for _, device in settings.origin_devices if device not in ("", NO_DEVICE)}
        for name in (*settings.devices, *forced):
            load_family(name)  # an unknown one is named, not passed over
        names = [name for name in FAMILIES if name in {*settings.devices, *forced}]
        self._numbers = {name: number for number, name in enumerate(names)}
        self._families: list[Family] = [load_family(name) for name in names]
        self._elastic = settings.device_fields == "elastic"
        self.signatures: list[tuple[int, Signature]] = [
            (number, signature)
            for number, family in enumerate(self._families)
            if family.name in settings.devices
            for signature in family.signatures
        ]
        self._find = Finder(self.signatures).find

    def number(self, device: str) -> int:
        """Of the family that an origin's messages are said to be; NOT_LOOKED_AT where they are of none."""
        return NOT_LOOKED_AT if device == NO_DEVICE else self._numbers[device]

    def family(self, fields: Fields, device: str) -> int | None:
        """The number of the family that this message is of, `device` being what its origin is said to be or ""."""
        if not device:
            return self._find(fields)
        number = self.number(device)
        return None if number == NOT_LOOKED_AT or len(fields.message) > MAX_MESSAGE_BYTES else number

    def enrich(self, ndjson: bytes, lengths: "array[int]", hits: Sequence[int], families: Sequence[int]) -> bytes:
        """The lines with those at the ascending positions `hits` enriched; `lengths` is brought up to date."""
        starts = list(accumulate(lengths, initial=0))
        pieces: list[bytes | memoryview] = []
        view, done = memoryview(ndjson), 0
        for position, number in zip(hits, families, strict=True):
            start, end = starts[position], starts[position + 1]
            line = self._enriched(view[start:end], self._families[number])
            if line is not None:
                pieces += (view[done:start], line)
                lengths[position], done = len(line), end
        if not pieces:
            return ndjson
        pieces.append(view[done:])
        return b"".join(pieces)

    def _enriched(self, line: memoryview, family: Family) -> bytes | None:
        try:
            document: dict[str, Any] = orjson.loads(line)
            found = family.read(_message(document))
            return None if found is None else self._with(document, nested(found))
        except Exception:  # noqa: BLE001  # a family must never cost an event, whatever it says and wherever that fails
            return None

    def _with(self, document: dict[str, Any], fields: dict[str, Any]) -> bytes:
        relate(fields)
        if self._elastic:
            give_way(document, fields)
        else:
            fields = {_NAMES.get(name, name): value for name, value in fields.items()}
        add(document, fields)
        return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


def _message(document: dict[str, Any]) -> Message:
    syslog = document.get("log", {}).get("syslog", {})
    return Message(
        document["message"],
        syslog.get("appname", ""),
        syslog.get("msgid", ""),
        syslog.get("structured_data", {}),
    )


def relate(fields: dict[str, Any]) -> None:
    """related.ip and related.user, where Elastic's integrations and their readers look for any end and any name."""
    addresses: dict[str, None] = {}
    users: dict[str, None] = {}
    for name in ("source", "destination"):
        for member, value in fields.get(name, _NOTHING).items():
            if member == "ip":
                addresses[value] = None
            elif member == "nat" and "ip" in value:
                addresses[value["ip"]] = None
            elif member == "user" and "name" in value:
                users[value["name"]] = None
    for member, value in fields.get("user", _NOTHING).items():
        if member == "name":
            users[value] = None
        elif member == "effective" and "name" in value:
            users[value["name"]] = None
    if addresses or users:
        fields["related"] = {name: list(found) for name, found in (("ip", addresses), ("user", users)) if found}


def give_way(document: dict[str, Any], fields: dict[str, Any]) -> None:
    """ELASTIC: sender and collector leave their places to what the device says of its ends and of itself."""
    if ("source" in fields or "destination" in fields) and "source" in document:
        document.setdefault("log", {})["source"] = document.pop("source")
    if "observer" in fields and "observer" in document:
        document.setdefault("ndcollector", {})["name"] = document.pop("observer")["name"]


def add(document: dict[str, Any], fields: dict[str, Any]) -> None:
    """What the document does not have; objects are joined, anything else that stands there stays."""
    for name, value in fields.items():
        known = document.setdefault(name, value)
        if known is not value and isinstance(known, dict) and isinstance(value, dict):
            add(known, value)
