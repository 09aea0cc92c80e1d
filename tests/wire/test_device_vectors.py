"""What each family of devices adds to real messages, field for field, through both twins, and nothing else changes.

The expectations in vectors/devices/*.jsonl were held against the vendors' documents named in them; `added` is what the
event gains with `device_fields: added`, null where it gains nothing.
"""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from decode_twins import ORIGIN, Decode, messages_body, twin_decode

from ndagent.wire.devices import FAMILIES, load_family
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.kafka_records import find_strays, strays_of
from ndagent.wire.record import EventBatch

FOLDER = Path(__file__).parent / "vectors" / "devices"
VECTORS = [
    {**json.loads(line), "family": path.stem}
    for path in sorted(FOLDER.glob("*.jsonl"))
    for line in path.read_text().splitlines()
]
EACH = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['family']}: {vector['name']}")
PLAIN = DecodeSettings("collector-1")
AUTO = DecodeSettings("collector-1", devices=FAMILIES)
ELASTIC = DecodeSettings("collector-1", devices=FAMILIES, device_fields="elastic")
PLACES = {"client": "source", "server": "destination", "device": "observer"}


def one(batch: EventBatch) -> dict[str, Any]:
    """The batch's only event."""
    (line,) = batch.lines()
    event: dict[str, Any] = json.loads(line)
    return event


def joined(event: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    """The event with what was added; a field that stands in both, and is no object, must not be."""
    found = dict(event)
    for name, value in added.items():
        if name in event:
            assert isinstance(event[name], dict), name
            found[name] = joined(event[name], value)
        else:
            found[name] = value
    return found


def test_each_family_has_its_vectors() -> None:
    """A family without vectors, or vectors that no family reads, are an oversight."""
    assert sorted(FAMILIES) == sorted(path.stem for path in FOLDER.glob("*.jsonl"))
    for family in FAMILIES:
        own = [vector for vector in VECTORS if vector["family"] == family]
        assert len(own) >= 8
        assert any(vector["source"] == "damage" for vector in own)
        assert any(vector["added"] is None for vector in own) or family in ("fortigate", "key_value")


@EACH
def test_a_message_gains_exactly_these_fields(decode: Decode, vector: dict[str, Any]) -> None:
    """What stood there stands there still, `message` first of all; a message that gains nothing is the same bytes."""
    body = messages_body([vector["text"].encode()])
    plain, enriched = decode(PLAIN, body), decode(AUTO, body)
    if vector["added"] is None:
        assert enriched == plain
    else:
        assert one(enriched) == joined(one(plain), vector["added"])
        assert enriched.ndjson == orjson.dumps(one(enriched)) + b"\n"


@EACH
def test_with_elastics_names_the_sender_gives_way(decode: Decode, vector: dict[str, Any]) -> None:
    """source, destination and observer are the device's; who sent and who took the message stand elsewhere."""
    body = messages_body([vector["text"].encode()])
    plain, event, added = one(decode(PLAIN, body)), one(decode(ELASTIC, body)), vector["added"] or {}
    expected = dict(plain)
    if {"client", "server"} & added.keys():
        sender = expected.pop("source")
        expected["log"] = {**expected.get("log", {}), "source": sender}
    if "device" in added:
        expected["ndcollector"] = {"name": expected.pop("observer")["name"]}
    assert event == joined(expected, {PLACES.get(name, name): value for name, value in added.items()})
    assert event["message"] == plain["message"]


@EACH
def test_the_family_is_chosen_by_the_message_alone(vector: dict[str, Any]) -> None:
    """With all families at hand the vector's own answers (cef.py reads Check Point's CEF), and never raises."""
    settings = DecodeSettings("collector-1", devices=(vector["family"],))
    body = messages_body([vector["text"].encode()])
    decode = twin_decode("pure")  # the compiled one is held against it elsewhere
    assert decode(settings, body) == decode(AUTO, body)


def test_neighbours_are_told_apart_and_arrays_follow(decode: Decode) -> None:
    """All vectors in one body, twice over, and messages of nobody between them: lengths and hosts must still fit."""
    raw = [text for vector in VECTORS for text in (vector["text"].encode(), b"<13>Mar 15 11:59:00 h app: nothing")] * 2
    plain, enriched = decode(PLAIN, messages_body(raw)), decode(AUTO, messages_body(raw))
    assert sum(enriched.lengths) == len(enriched.ndjson)
    assert [json.loads(line)["event"]["id"] for line in enriched.lines()] == [
        json.loads(line)["event"]["id"] for line in plain.lines()
    ]
    for index, line in enumerate(enriched.lines()):
        start, length = enriched.host_offsets[index], enriched.host_lengths[index]
        host = json.loads(line).get("host", {}).get("hostname")
        assert (json.loads(b'"' + line[start : start + length] + b'"') if start else None) == host
        if index % 2:
            assert line == plain.lines()[index]
    same = ("priorities", "keys", "origins", "host_offsets", "host_lengths", "parse_failures", "sequences")
    assert [getattr(enriched, name) for name in same] == [getattr(plain, name) for name in same]


KEY_VALUE = b"<13>Mar 15 11:59:00 h app: src=10.0.0.1 dst=192.0.2.1 user=ada"


def test_an_origin_may_be_said_to_be_of_a_family(decode: Decode) -> None:
    """Pairs that no signature tells are read where the configuration says whose they are, and only there."""
    forced = DecodeSettings("collector-1", origin_devices=((ORIGIN.address, "key_value"),))
    elsewhere = DecodeSettings("collector-1", origin_devices=(("198.51.100.0/24", "key_value"),))
    body = messages_body([KEY_VALUE])
    assert one(decode(forced, body))["client"] == {"ip": "10.0.0.1"}
    assert decode(elsewhere, body) == decode(PLAIN, body) == decode(AUTO, body)


def test_an_origin_may_be_said_to_be_of_none(decode: Decode) -> None:
    """The way out for a sender whose messages only look like a device's; the first match decides."""
    rules = (("192.0.2.0/24", "none"), (ORIGIN.address, "cisco_asa"))
    settings = DecodeSettings("collector-1", devices=FAMILIES, origin_devices=rules)
    body = messages_body([vector["text"].encode() for vector in VECTORS])
    assert decode(settings, body) == decode(PLAIN, body)


def test_only_the_families_that_are_named_are_looked_for(decode: Decode) -> None:
    """`decode.devices: [sshd]` leaves a firewall's messages as they are."""
    settings = DecodeSettings("collector-1", devices=("sshd",))
    others = messages_body([vector["text"].encode() for vector in VECTORS if vector["family"] not in ("sshd", "sudo")])
    assert decode(settings, others) == decode(PLAIN, others)


def test_the_key_of_an_event_without_a_host_stays_its_senders(decode: Decode) -> None:
    """Kafka's key is whose connection it was, not whose traffic: a device's events keep their partition and order."""
    body = messages_body([b"<166>%ASA-6-106015: Deny TCP (no connection) from 192.0.2.7/443 to 10.0.0.9/5 flags RST"])
    for settings in (PLAIN, AUTO, ELASTIC):
        batch = decode(settings, body)
        strays = strays_of(batch, find_strays(batch))
        assert strays.keys == [ORIGIN.address.encode()]
        assert strays.hashes == batch.keys


def test_a_family_that_is_none_is_refused() -> None:
    """The configuration names it before; a program that does not ask the configuration must not pass over it."""
    with pytest.raises(ValueError, match="'cisco' is no family of devices; there are cisco_asa"):
        load_family("cisco")
