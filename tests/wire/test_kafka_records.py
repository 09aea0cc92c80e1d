"""Record batches: both twins give the bytes that aiokafka's builder gives, and its reader finds every event again."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import orjson
import pytest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from decode_twins import NOON_NS, ORIGIN, PURE_ONLY, body_of_sections, messages_body, twin_decode
from decode_twins import section as section_of
from hypothesis import given
from hypothesis import strategies as st

from ndagent.core.decoding import join_small
from ndagent.wire.ecs import DecodeSettings, partition_key
from ndagent.wire.kafka_records import (
    HEADER,
    RECORD_OVERHEAD,
    RecordLimits,
    Stamps,
    Strays,
    partitions_of,
    strays_of,
)
from ndagent.wire.record import NO_PRIORITY, Batch, EventBatch, Flags, Framing, Origin, Section, pack_body

TWINS = ["pure"] if PURE_ONLY else ["pure", "compiled"]
LARGE = RecordLimits(2**20, 2**20)
RFC_3720 = [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)]
RFC_3720 += [(b"123456789", 0xE3069283)]
"""RFC 3720 §B.4, and the check value of the polynomial."""


def records(twin: str) -> Any:
    """The functions of one twin."""
    return import_module("ndagent.wire.kafka_records" if twin == "pure" else "ndagent.wire._codec")


@pytest.fixture(params=TWINS)
def codec(request: pytest.FixtureRequest) -> Any:
    """One twin after the other."""
    return records(request.param)


def events_of(pairs: Sequence[tuple[bytes, bytes]]) -> EventBatch:
    """An event for each (host's text, message); without a host where it is empty."""
    lines = [b'{"h":"%b","t":"%b"}\n' % pair for pair in pairs]
    return EventBatch(
        stream="security_events",
        spool_id="s",
        sequences=range(len(lines)),
        received_at_ns=NOON_NS,
        ndjson=b"".join(lines),
        lengths=array("I", map(len, lines)),
        priorities=bytes([NO_PRIORITY]) * len(lines),
        host_offsets=array("I", [6 if host else 0 for host, _ in pairs]),
        host_lengths=array("H", [len(host) for host, _ in pairs]),
        keys=array("I", [partition_key(host) for host, _ in pairs]),
        origins=array("I", [0]) * len(lines),
        origin_blobs=(b"",),
    )


def invented(positions: "array[int]") -> Strays:
    """Some key for each stray; which one is another function's matter."""
    keys = [b"stray-%d" % (index % 3) for index in positions]
    return Strays(positions, keys, array("I", map(partition_key, keys)))


NO_STRAYS = Strays(array("I"), [], array("I"))
NOW = Stamps(array("q", [NOON_NS // 10**6]))
TEXTS = st.binary(max_size=300).map(lambda text: text.replace(b"\n", b"."))
HOSTS = st.sampled_from([b"", b"fw-1", b"web.example", b"q\\\\x", b"\xef\xbf\xbdx", b"x\xef\xbf", b"\xefy", b"h" * 200])
EVENTS = st.lists(st.tuples(HOSTS, TEXTS), max_size=40).map(events_of)
NAMED = st.lists(st.tuples(st.sampled_from([b"a", b"fw-1", b"h" * 200]), TEXTS), min_size=1, max_size=40).map(events_of)
LIMITS = st.builds(RecordLimits, st.integers(1, 2000), st.integers(1, 600), st.none() | st.integers(1, 4))


def builders_bytes(events: EventBatch, stamps: Stamps, *, batch_bytes: int = 2**20) -> list[bytes]:
    """The batches that aiokafka's builder makes of events that all go to one partition, headers zeroed."""
    found, builder, offset = [], None, 0
    for index, line in enumerate(events.lines()):
        at = events.host_offsets[index]
        key = line[at : at + events.host_lengths[index]]
        headers = [("event.id", stamps.ids[index])] if stamps.ids is not None else []
        time_ms = stamps.times_ms[index % len(stamps.times_ms)]
        if builder is None or builder.append(offset, time_ms, key, line[:-1], headers) is None:
            builder, offset = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, batch_bytes + 1), 0  # it fills to one less
            found.append(builder)
            builder.append(offset, time_ms, key, line[:-1], headers)
        offset += 1
    return [bytes(HEADER.size) + bytes(builder.build()[HEADER.size :]) for builder in found]


@pytest.mark.skipif(PURE_ONLY, reason="ND_PURE_CODEC=1: the compiled twin may not have been built")
@given(EVENTS, LIMITS, st.integers(1, 5), st.data())
def test_the_twins_agree(events: EventBatch, limits: RecordLimits, partitions: int, data: st.DataObject) -> None:
    """Whatever the hosts, times, ids and limits."""
    count = len(events)
    numbers = st.integers(-(2**40), 2**40)
    times = data.draw(st.sampled_from([1, count or 1]).flatmap(lambda n: st.lists(numbers, min_size=n, max_size=n)))
    ids = data.draw(st.none() | st.lists(st.binary(max_size=150), min_size=count, max_size=count))
    pure, compiled = records("pure"), records("compiled")
    strays = pure.find_strays(events)
    assert compiled.find_strays(events) == strays
    arguments = {
        "partitions": partitions,
        "strays": invented(strays),
        "stamps": Stamps(array("q", times), ids),
        "limits": limits,
    }
    assert compiled.encode_records(events, **arguments) == pure.encode_records(events, **arguments)


@pytest.mark.parametrize("twin", TWINS)
@given(events=NAMED, data=st.data())
def test_the_bytes_are_those_of_aiokafkas_builder(twin: str, events: EventBatch, data: st.DataObject) -> None:
    """Also where it begins another batch."""
    times = array("q", [NOW.times_ms[0] + data.draw(st.integers(-(10**6), 10**6)) for _ in events.lengths])
    ids = data.draw(st.none() | st.just([b"id-%d" % n for n in range(len(events))]))
    batch_bytes = data.draw(st.integers(100, 4000))
    batches, too_large = records(twin).encode_records(
        events,
        partitions=1,
        strays=NO_STRAYS,
        stamps=Stamps(times, ids),
        limits=RecordLimits(batch_bytes, 2**20),
    )
    assert too_large == []
    wanted = builders_bytes(events, Stamps(times, ids), batch_bytes=batch_bytes)
    assert [bytes(batch.data) for batch in batches] == wanted


def test_a_golden_batch(codec: Any) -> None:
    """Written out by hand from the format's description: two records, ten milliseconds apart, with ids."""
    events = events_of([(b"a", b""), (b"b", b"x")])
    stamps = Stamps(array("q", [1000, 1010]), [b"1", b"2"])
    [batch], _ = codec.encode_records(events, partitions=1, strays=NO_STRAYS, stamps=stamps, limits=LARGE)
    first = b"\x00" + b"\x00" + b"\x00" + b"\x02a" + b'\x20{"h":"a","t":""}' + b"\x02" + b"\x10event.id" + b"\x021"
    second = b"\x00" + b"\x14" + b"\x02" + b"\x02b" + b'\x22{"h":"b","t":"x"}' + b"\x02" + b"\x10event.id" + b"\x022"
    assert batch.data[HEADER.size :] == b"\x44" + first + b"\x46" + second
    assert batch[:4] == (0, 2, 1000, 1010)


def test_a_reader_finds_each_event_on_the_partition_of_its_key(codec: Any) -> None:
    """Key, value and time, through aiokafka's reader, from real events of the decoder."""
    hosts = [b"fw-%d" % (n % 7) for n in range(60)] + [b"back\\slash", b"h\xff", b"-", b"-"]
    body = messages_body([b"<13>1 - %b app 1 - - number %d" % pair for pair in zip(hosts, range(64), strict=True)])
    events = twin_decode(TWINS[-1])(DecodeSettings("c"), body)
    strays = strays_of(events, codec.find_strays(events))
    batches, too_large = codec.encode_records(events, partitions=5, strays=strays, stamps=NOW, limits=LARGE)
    assert too_large == []
    found: dict[bytes, tuple[int, bytes]] = {}
    for batch in batches:
        count = batch.records
        HEADER.pack_into(batch.data, 0, 0, len(batch.data) - 12, -1, 2, 0, 0, count - 1, *batch[2:4], -1, -1, -1, count)
        read = list(DefaultRecordBatch(bytes(batch.data)))
        assert {record.timestamp for record in read} == {NOW.times_ms[0]}
        found |= {record.value: (batch.partition, record.key) for record in read}
    wanted = [*hosts[:61], "h\N{REPLACEMENT CHARACTER}".encode(), b"192.0.2.50", b"192.0.2.50"]
    assert [found[line[:-1]] for line in events.lines()] == [(partition_key(key) % 5, key) for key in wanted]
    assert partitions_of(events, strays, 5) == [partition_key(key) % 5 for key in wanted]


@pytest.mark.parametrize(
    ("event", "key"),
    [
        ({"source": {"ip": "10.0.0.1"}}, "10.0.0.1"),
        ({"source": {"ip": 'a"b'}}, 'a"b'),
        ({"x": {"source": {"ip": "1.1.1.1"}}, "source": {"port": 7, "ip": "10.0.0.6"}}, "10.0.0.6"),
        ({"source": {"ip": "10.0.0.7"}, "x": {"source": {}}}, "10.0.0.7"),
        ({"source": {"ip": "10.0.0.2", "port": 7}, "message": '"source":{"ip":"1.1.1.1"'}, "10.0.0.2"),
        ({"source": {"ip": "1.1.1.1"}, "log": {"source": {"ip": "10.0.0.3"}}}, "10.0.0.3"),
        ({"source": {"address": 'fw "east"'}}, 'fw "east"'),
        ({"source": {"ip": "b\\s"}}, "b\\s"),
        ({"source": [1], "log": 3}, ""),
        ({"source": "10.0.0.4", "log": {"source": 7}}, ""),
        ({"source": {"ip": ["10.0.0.5"]}, "log": {"source": {"ip": None}}}, ""),
        ({"host": {"name": 5}}, ""),
    ],
)
def test_the_key_of_an_event_without_host_is_its_own_source_whatever_others_say(
    codec: Any, event: dict[str, Any], key: str
) -> None:
    """Many devices stand behind one agent, or one topic; and what an agent writes into an event is up to it."""
    first = orjson.dumps({"source": {"ip": "192.0.2.1"}})
    payload = first + b"\n" + orjson.dumps(event) + b"\n"
    section = Section(Origin("agents", "192.0.2.9", 0), Framing.LF, Flags.NONE, len(payload), 2)
    body = b"".join(pack_body(Batch("security_events", "ecs", NOON_NS, [section], [payload])))
    events = twin_decode(TWINS[-1])(DecodeSettings("c"), body)
    strays = strays_of(events, codec.find_strays(events))
    assert strays.keys == [b"192.0.2.1", key.encode()]
    assert list(strays.hashes) == list(map(partition_key, strays.keys))


def test_events_that_we_decoded_have_the_key_of_their_origin_until_somebody_changes_them() -> None:
    """One look for each origin is enough then; a batch that has others' events among them is looked through."""
    decode = twin_decode(TWINS[-1])
    ours = decode(DecodeSettings("c"), messages_body([b"<13>1 - - a - - - x", b"no syslog"]))
    payload = b'{"source":{"ip":"10.0.0.1"}}\n{"source":{"ip":"10.0.0.2"}}\n'
    section = Section(Origin("agents", "192.0.2.9", 0), Framing.LF, Flags.NONE, len(payload), 2)
    theirs = decode(
        DecodeSettings("c"), b"".join(pack_body(Batch("security_events", "ecs", NOON_NS, [section], [payload])))
    )
    message = b"<13>1 - - a - - - x"
    of_a_socket = section_of(message, framing=Framing.WHOLE, origin=Origin("unix", "", 0))
    nameless = decode(DecodeSettings("c"), body_of_sections([of_a_socket]))
    joined = join_small([ours, theirs])[0]
    cut = replace(ours.select([0, 1]), are_origins_own=False)
    found = [strays_of(one, array("I", range(len(one)))).keys for one in (ours, theirs, joined, cut, nameless)]
    own = [ORIGIN.address.encode()] * 2
    assert found == [own, [b"10.0.0.1", b"10.0.0.2"], [*own, b"10.0.0.1", b"10.0.0.2"], own, [b""]]
    told = [one.are_origins_own for one in (ours, ours.select([1]), theirs, joined, nameless)]
    assert told == [True, True, False, False, False]


def test_a_device_is_looked_up_once() -> None:
    """Its lines are not even read: a thousand of them cost what one does."""
    messages = [b"<13>1 - - a - - - x", b"<13>1 - - a - - - y"]
    events = twin_decode(TWINS[-1])(DecodeSettings("c"), messages_body(messages))
    first = events.lengths[0]
    blind = replace(events, ndjson=events.ndjson[:first] + bytes(events.lengths[1]))
    assert strays_of(blind, array("I", [0, 1])).keys == [ORIGIN.address.encode()] * 2


def test_an_event_at_the_limit_goes_and_one_beyond_is_named(codec: Any) -> None:
    """A record counts with its batch's header and the longest numbers it could have."""
    events = events_of([(b"a", b"x"), (b"a", b"xx"), (b"a", b"x")])
    content = len(b"\x02a") + len(b'\x24{"h":"a","t":"xx"}') + 1
    limits = RecordLimits(2**20, HEADER.size + RECORD_OVERHEAD + content)
    _, none = codec.encode_records(events, partitions=1, strays=NO_STRAYS, stamps=NOW, limits=limits)
    tighter = replace(limits, record_bytes=limits.record_bytes - 1)
    [batch], one = codec.encode_records(events, partitions=1, strays=NO_STRAYS, stamps=NOW, limits=tighter)
    assert (none, one, batch.records) == ([], [1], 2)


def test_nothing_becomes_nothing(codec: Any) -> None:
    """No event, no batch."""
    assert codec.encode_records(events_of([]), partitions=3, strays=NO_STRAYS, stamps=NOW, limits=LARGE) == ([], [])


@pytest.mark.parametrize(
    "damage",
    [
        {"lengths": array("I", [20, 20])},
        {"host_offsets": array("I", [6])},
        {"host_lengths": array("H", [1, 60000])},
        {"keys": array("I", [1])},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_arrays_that_do_not_fit_the_events_are_refused(codec: Any, damage: dict[str, Any]) -> None:
    """Compiled code reads by them: a bug elsewhere must not make it read foreign memory."""
    events = replace(events_of([(b"a", b"x"), (b"b", b"y")]), **damage)
    with pytest.raises(ValueError, match=r"fit|length"):
        codec.encode_records(events, partitions=1, strays=NO_STRAYS, stamps=NOW, limits=LARGE)


@pytest.mark.parametrize("stamps", [Stamps(array("q", [1, 2, 3])), Stamps(array("q", [1]), [b"1"])])
def test_times_and_ids_are_one_for_each_event(codec: Any, stamps: Stamps) -> None:
    """Or one time for all."""
    with pytest.raises(ValueError, match="for 2 events"):
        codec.encode_records(
            events_of([(b"a", b"x"), (b"b", b"y")]), partitions=1, strays=NO_STRAYS, stamps=stamps, limits=LARGE
        )


@pytest.mark.parametrize(("data", "crc"), RFC_3720)
def test_crc32c_of_the_standard(codec: Any, data: bytes, crc: int) -> None:
    """Another polynomial would make every broker refuse every batch."""
    assert codec.crc32c(data) == crc


@pytest.mark.parametrize("twin", TWINS)
@given(front=st.binary(max_size=100), back=st.binary(max_size=3000))
def test_crcs_of_pieces_join(twin: str, front: bytes, back: bytes) -> None:
    """The header's and the records' make the batch's, with the processor's instruction and without."""
    codec = records(twin)
    whole = calc_crc32c(front + back)
    assert codec.join_crc32c(codec.crc32c(front), codec.crc32c(back), len(back)) == whole
    if twin == "compiled":
        assert codec.crc32c(front + back, plain=True) == whole
