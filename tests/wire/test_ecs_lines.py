"""Records of format `ecs`: what is an event already leaves as it came, whatever else leaves as an event."""

import base64
from dataclasses import replace
from typing import Any

import msgpack
import orjson
import pytest
from decode_twins import ARGUMENTS, NOON_NS, ORIGIN, Decode
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.decoder import Decoder
from ndagent.wire.ecs import DecodeSettings, partition_key
from ndagent.wire.ecs_lines import priority_of
from ndagent.wire.record import NO_PRIORITY, Batch, CorruptBody, EventBatch, Flags, Framing, Origin, Section, pack_body

SETTINGS = DecodeSettings(observer_name="collector-2")
EVENT = (
    b'{"@timestamp":"2026-11-23T10:00:00Z","message":"say \\"fw-1\\"","host":{"hostname":"fw-1","name":"fw-1"},'
    b'"log":{"syslog":{"priority":34,"facility":{"code":4},"severity":{"code":2}}},"event":{"id":"other-1z","sequence":71}}'
)


def ecs_body(lines: list[bytes], *, flags: Flags = Flags.NONE) -> bytes:
    """A record body of one section, one line each; lines that hold line feeds stand in sections of their own."""
    if any(b"\n" in line for line in lines) or flags:
        sections = [Section(ORIGIN, Framing.WHOLE, flags, len(line), 1) for line in lines]
        payload = lines
    else:
        payload = [b"".join(line + b"\n" for line in lines)]
        sections = [Section(ORIGIN, Framing.LF, flags, len(payload[0]), len(lines))]
    return b"".join(pack_body(Batch("security_events", "ecs", NOON_NS, sections, payload)))


def host_texts(batch: EventBatch) -> list[bytes]:
    """The host's text in each line, found as outputs find it."""
    places = zip(batch.lines(), batch.host_offsets, batch.host_lengths, strict=True)
    return [line[offset : offset + length] for line, offset, length in places]


def test_an_event_passes_unchanged_and_keeps_its_id(decode: Decode) -> None:
    """The first spool that took an event names it; a chain of collectors changes not one byte."""
    batch = decode(SETTINGS, ecs_body([EVENT, EVENT]))
    assert batch.lines() == [EVENT + b"\n"] * 2
    assert list(batch.priorities) == [34, 34]
    assert list(batch.keys) == [partition_key(b"fw-1")] * 2
    assert host_texts(batch) == [b"fw-1"] * 2
    assert batch.parse_failures == 0


def test_an_event_without_id_or_time_is_given_them(decode: Decode) -> None:
    """Kafka Connect's sources know nothing of our ids."""
    lines = [b'{"event":{"kind":"alert"},"n":1}', b'{"@timestamp":"t","event":7}', b'{"event":{"id":""}}']
    found = [orjson.loads(line) for line in decode(SETTINGS, ecs_body(lines)).lines()]
    assert [event["event"]["id"] for event in found] == ["k3v9-zzz", "k3v9-1000", "k3v9-1001"]
    assert found[0]["event"]["kind"] == "alert"
    assert found[0]["n"] == 1
    received = "2024-03-15T12:00:00.123456Z"
    assert [event["@timestamp"] for event in found] == [received, "t", received]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("odd", [True, 1.0, "1", None, [1]])
def test_a_pri_is_made_of_numbers(place: int, odd: object) -> None:
    """What only equals one is none: true and 1.0 stand for something else in JSON."""
    told: list[Any] = [9, 1, 1]
    assert priority_of(_with_pri(*told)) == 9
    told[place] = odd
    assert priority_of(_with_pri(*told)) == NO_PRIORITY


def _with_pri(priority: object, facility: object, severity: object) -> dict[str, Any]:
    syslog = {"priority": priority, "facility": {"code": facility}, "severity": {"code": severity}}
    return {"log": {"syslog": syslog}}


def test_an_id_that_claims_this_spool_is_replaced(decode: Decode) -> None:
    """A forged id from the future would make the file output believe after a crash that it has written more."""
    forged = EVENT.replace(b"other-1z", b"k3v9-zzzzzz")
    (line,) = decode(SETTINGS, ecs_body([forged])).lines()
    assert orjson.loads(line)["event"] == {"id": "k3v9-zzz", "sequence": 71}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"7", b'"text"', b'{"a":\xff}', b'{"a":NaN}', b"<34>1 - - - - - -"])
def test_what_is_no_json_object_becomes_an_event_that_says_so(decode: Decode, raw: bytes) -> None:
    """It is evidence too, whatever it is."""
    batch = decode(SETTINGS, ecs_body([raw]))
    event = orjson.loads(batch.ndjson)
    assert event["tags"] == ["_parse_failure"]
    assert event["error"]["message"] == ("not a JSON object" if raw else "empty message")
    assert event["event"]["id"] == "k3v9-zzz"
    kept = event["event"].get("original_base64")
    assert (base64.b64decode(kept) if kept else event["event"]["original"].encode()) == raw
    assert list(batch.priorities) == [NO_PRIORITY]
    assert batch.parse_failures == 1


def test_a_cut_event_is_marked_truncated(decode: Decode) -> None:
    """max_message_bytes cut it, so it is no JSON any more."""
    event = orjson.loads(decode(SETTINGS, ecs_body([EVENT[:50]], flags=Flags.TRUNCATED)).ndjson)
    assert event["tags"] == ["_truncated", "_parse_failure"]


def test_events_written_over_several_lines_become_one_line(decode: Decode) -> None:
    """White space between tokens may hold line breaks; a line of NDJSON may not, and begins with its brace."""
    pretty = orjson.dumps(orjson.loads(EVENT), option=orjson.OPT_INDENT_2)
    batch = decode(SETTINGS, ecs_body([pretty, b" " + EVENT, EVENT.replace(b",", b",\r")]))
    assert batch.lines() == [orjson.dumps(orjson.loads(EVENT)) + b"\n"] * 3
    assert host_texts(batch) == [b"fw-1"] * 3


def test_a_host_is_found_whatever_its_escapes(decode: Decode) -> None:
    """Files by host, and keys, are by what the host is called, not by how a producer spells it."""
    spelled = EVENT.replace(b'"hostname":"fw-1","name":"fw-1"', b'"hostname":"f\\u0077-1"')
    spelled = spelled.replace(b'say \\"fw-1\\"', b"")
    batch = decode(SETTINGS, ecs_body([spelled, EVENT.replace(b'"hostname":"fw-1",', b"")]))
    assert host_texts(batch) == [b"fw-1", b"fw-1"]
    assert list(batch.keys) == [partition_key(b"fw-1")] * 2


def test_without_a_host_the_key_is_the_sources(decode: Decode) -> None:
    """As for syslog: source.ip, then the address it came from."""
    lines = [b'{"source":{"ip":"192.0.2.1"},"host":{"hostname":""}}', b'{"source":[],"host":"x"}']
    assert list(decode(SETTINGS, ecs_body(lines)).keys) == [partition_key(b"192.0.2.1"), partition_key(b"192.0.2.50")]


def test_a_section_that_holds_fewer_lines_than_it_counts_is_corrupt(decode: Decode) -> None:
    """The ledger counts in sequences."""
    batch = Batch("security_events", "ecs", NOON_NS, [Section(ORIGIN, Framing.LF, Flags.NONE, 3, 2)], [b"{}\n"])
    with pytest.raises(CorruptBody):
        decode(SETTINGS, b"".join(pack_body(batch)))


_KEYS = st.sampled_from(["host", "hostname", "event", "id", "source", "log", "@timestamp"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.binary(max_size=30) | _JSON.map(orjson.dumps), max_size=5))
def test_any_bytes_give_one_valid_event_each(lines: list[bytes]) -> None:
    """Whatever is on a topic: a line of JSON with an id and a time, and arrays that fit it."""
    batch = Decoder(SETTINGS).decode(ecs_body(lines) if lines else ecs_body([b"x"]), **ARGUMENTS)
    assert len(batch) == max(1, len(lines))
    for line, host in zip(batch.lines(), host_texts(batch), strict=True):
        assert line.startswith(b"{")
        assert line.index(b"\n") == len(line) - 1
        assert b"\r" not in line
        event = orjson.loads(line)
        assert event["event"]["id"]
        assert event["@timestamp"]
        orjson.loads(b'"' + host + b'"')


AGENT = Origin(
    "mqtt", "10.0.0.9", 40000, "CN=host", "1F", ("URI:nd:agent:abc2", "DNS:host"), spool_id="agentspool"
)  # fmt: skip


def agent_body(line: bytes, origin: Origin) -> bytes:
    """One event of an agent."""
    section = Section(origin, Framing.LF, Flags.NONE, len(line) + 1, 1)
    return b"".join(pack_body(Batch("security_events", "ecs", NOON_NS, [section], [line + b"\n"])))


def test_an_agents_event_says_what_its_certificate_says(decode: Decode) -> None:
    """Whatever the agent claims to be; and when it came here stands beside the agent's own time."""
    line = b'{"@timestamp":"t","agent":{"id":"liar","version":"1"},"event":{"id":"agentspool-5","created":"c"}}'
    event = orjson.loads(decode(SETTINGS, agent_body(line, AGENT)).ndjson)
    assert event["agent"] == {"id": "abc2", "version": "1"}
    assert event["event"] == {"id": "agentspool-5", "created": "c", "ingested": "2024-03-15T12:00:00.123456Z"}


def test_an_agent_has_no_second_spelling_for_what_its_certificate_says(decode: Decode) -> None:
    """A key with dots is the same field to Elasticsearch: a search for the neighbour's agent.id would find it."""
    names = ("agent.id", "agent.clock_skew_seconds", "event.id", "event.ingested", "ndcollector.position")
    line = orjson.dumps({**dict.fromkeys(names, "forged"), "labels.team": "blue"})
    event = orjson.loads(decode(SETTINGS, agent_body(line, AGENT)).ndjson)
    assert [name for name in event if "." in name] == ["labels.team"]


@pytest.mark.parametrize("claimed", ["agentspoo-5", "other-1", "agentspool", "k3v9-1", ""])
def test_an_agent_names_events_only_by_its_own_spool(decode: Decode, claimed: str) -> None:
    """Nobody can give an event the id of somebody else's, to have a receiver drop that one as a duplicate."""
    line = b'{"event":{"id":"%b"}}' % claimed.encode()
    assert orjson.loads(decode(SETTINGS, agent_body(line, AGENT)).ndjson)["event"]["id"] == "k3v9-zzz"
    nameless = replace(AGENT, spool_id="")
    line = b'{"event":{"id":"agentspool-5"}}'
    assert orjson.loads(decode(SETTINGS, agent_body(line, nameless)).ndjson)["event"]["id"] == "k3v9-zzz"


@pytest.mark.parametrize(("skew", "told"), [(0, None), (1, None), (2, 2), (-86400, -86400)])
def test_a_wrong_clock_of_an_agent_is_told(decode: Decode, skew: int, told: int | None) -> None:
    """Measured by the collector; what the event itself claims about it counts for nothing."""
    line = b'{"agent":{"clock_skew_seconds":99}}'
    event = orjson.loads(decode(SETTINGS, agent_body(line, replace(AGENT, clock_skew_seconds=skew))).ndjson)
    assert event["agent"].get("clock_skew_seconds") == told


def test_an_origin_without_agents_fields_is_packed_as_ever(decode: Decode) -> None:
    """Spools written before agents were known are read, and the others' records do not grow."""
    assert Origin.unpack(ORIGIN.packed) == ORIGIN
    assert len(msgpack.unpackb(ORIGIN.packed)) == 6
    assert Origin.unpack(AGENT.packed) == AGENT
    assert AGENT.agent_id == "abc2"
    assert ORIGIN.agent_id == ""


def test_an_agents_event_says_where_it_stands_in_this_spool(decode: Decode) -> None:
    """Its id is another spool's, and the file output finds its place again by ours."""
    event = orjson.loads(decode(SETTINGS, agent_body(b'{"event":{"id":"agentspool-5"}}', AGENT)).ndjson)
    assert event["ndcollector"] == {"position": "k3v9-zzz"}
    event = orjson.loads(decode(SETTINGS, agent_body(b'{"ndcollector":{"position":"k3v9-5"}}', AGENT)).ndjson)
    assert "ndcollector" not in event
    assert event["event"]["id"] == "k3v9-zzz"


def test_nobody_else_says_where_an_event_stands_in_this_spool(decode: Decode) -> None:
    """A record from Kafka that claims it could have the file output pass over events after a crash."""
    line = b'{"@timestamp":"t","event":{"id":"other-1"},"ndcollector":{"position":"%b"}}'
    forged, foreign = line % b"k3v9-zzzzz", line % b"other-5"
    found = decode(SETTINGS, ecs_body([forged, foreign])).lines()
    assert "ndcollector" not in orjson.loads(found[0])
    assert found[1] == foreign + b"\n"


OWN = b'{"@timestamp":"t","event":{"kind":"event"},"source":{"ip":"192.0.2.%d"},"n":%d}'


def test_lines_of_our_own_inputs_are_the_same_events_as_by_parsing(decode: Decode) -> None:
    """Flags.OWN spares the parsing: ids, arrays and members are what they would be."""
    lines = [OWN % (number, number) for number in range(50)] + [OWN.replace(b'"source"', b'"client"') % (1, 1)]
    payload = b"".join(line + b"\n" for line in lines)

    def batch(flags: Flags) -> EventBatch:
        sections = [Section(ORIGIN, Framing.LF, flags, len(payload), len(lines))] * 2
        return decode(SETTINGS, b"".join(pack_body(Batch("s", "ecs", NOON_NS, sections, [payload, payload]))))

    own, parsed = batch(Flags.OWN), batch(Flags.NONE)
    assert [orjson.loads(line) for line in own.lines()] == [orjson.loads(line) for line in parsed.lines()]
    assert own.ndjson != parsed.ndjson  # else nothing was spared
    assert (own.keys, own.origins, own.priorities) == (parsed.keys, parsed.origins, parsed.priorities)
    assert (own.host_offsets, own.host_lengths) == (parsed.host_offsets, parsed.host_lengths)
    assert (own.parse_failures, own.sequences) == (0, parsed.sequences)


@pytest.mark.parametrize(
    "line",
    [
        EVENT,
        b'{"event":{"kind":"event"},"host":{"name":"h"}}',
        b'{"event":{"kind":"event"},"log":{"syslog":{"priority":1}}}',
        b'{"message":"no event"}',
        b'{"event":{"kind":"event"},"x":{"event":{"kind":"event"}}}',
        b"no JSON",
    ],
)
def test_a_line_that_claims_to_be_our_own_and_is_not_so_simple_is_parsed(decode: Decode, line: bytes) -> None:
    """Byte for byte as without the claim, and so are its neighbours."""
    lines = [OWN % (1, 1), line]
    payload = b"".join(one + b"\n" for one in lines)
    own, parsed = (
        decode(SETTINGS, b"".join(pack_body(Batch("s", "ecs", NOON_NS, [section], [payload]))))
        for section in (Section(ORIGIN, Framing.LF, flags, len(payload), 2) for flags in (Flags.OWN, Flags.NONE))
    )
    assert own.ndjson == parsed.ndjson
    assert list(own.priorities) == list(parsed.priorities)


def test_an_agent_cannot_have_made_a_line_of_our_own(decode: Decode) -> None:
    """Its certificate is what its events are written anew with, whatever a section says."""
    agent = replace(ORIGIN, names=("URI:nd:agent:web-1",))
    payload = OWN % (1, 1) + b"\n"
    body = pack_body(Batch("s", "ecs", NOON_NS, [Section(agent, Framing.LF, Flags.OWN, len(payload), 1)], [payload]))
    assert orjson.loads(decode(SETTINGS, b"".join(body)).ndjson)["agent"]["id"] == "web-1"
