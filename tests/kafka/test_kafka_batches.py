"""Batches as the producer gets them: what aiokafka's own builder would give, byte for byte, and no copy on the way."""

import asyncio
import secrets
import threading
from array import array
from collections import Counter
from dataclasses import replace
from typing import Any

import orjson
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords
from kafka_output import DECODER, RECEIVED_AT_NS, batch, message, numbered

from ndagent.wire.kafka_records import HEADER, RecordBatch
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section, pack_body
from ndcollector.outputs import kafka_records
from ndcollector.outputs.kafka_producer import pieces_of
from ndcollector.outputs.kafka_records import (
    BatchForm,
    EncodeSettings,
    PartitionBatch,
    encode,
    partition_of_each,
    position_of,
)

STATE = {"producer_id": 4711, "producer_epoch": 3, "base_sequence": 20_000}
NOW_MS = RECEIVED_AT_NS // 10**6 + 3_600_000
TIMES_MS = {"received": RECEIVED_AT_NS // 10**6, "now": NOW_MS}  # by name: workers that begin seconds apart must agree
CODECS = {None: 0, "lz4": 3, "zstd": 4}


def settings(**other: Any) -> EncodeSettings:
    """One partition, nothing special."""
    form = BatchForm(2**20, other.pop("compression", None), other.pop("is_transactional", False))
    common = {"form": form, "partitions": 1, "record_bytes": 2**20, "headers": False, "now_ms": NOW_MS}
    return EncodeSettings(**{**common, **other})


def by_aiokafka(events: EventBatch, *, compression: str | None, is_transactional: bool) -> bytes:
    """The same events through its builder."""
    builder = BatchBuilder(2**20, CODECS[compression], is_transactional=is_transactional)
    for index, line in enumerate(events.lines()):
        at = events.host_offsets[index]
        key = line[at : at + events.host_lengths[index]]
        builder.append(timestamp=RECEIVED_AT_NS // 10**6, key=key, value=line[:-1])
    builder._set_producer_state(*STATE.values())
    return bytes(builder._build())


@pytest.mark.parametrize(
    ("about", "time"),
    [
        ({"created": "1999-01-01T00:00:00Z"}, "received"),  # would be deleted at once
        ({"created": "2099-01-01T00:00:00Z"}, "now"),  # would be refused, and made a dead letter
        ({"created": "2099-01-01T00:00:00Z", "ingested": "1999-01-01T00:00:00Z"}, "received"),
        ({"created": 5}, "received"),
        ("about nothing", "received"),
    ],
)
async def test_a_records_time_is_ours_whatever_the_machine_says_that_made_the_event(about: Any, time: str) -> None:
    """Agents and other collectors have clocks and bugs of their own."""
    payload = orjson.dumps({"event": about})
    section = Section(Origin("agents", "192.0.2.9", 0), Framing.WHOLE, Flags.NONE, len(payload), 1)
    body = b"".join(pack_body(Batch("security_events", "ecs", RECEIVED_AT_NS, [section], [payload])))
    place = {"stream": "security_events", "spool_id": "spool", "sequence": 0, "received_at_ns": RECEIVED_AT_NS}
    [found] = (await encode(DECODER.decode(body, **place), None, settings())).batches
    found._set_producer_state(*STATE.values())
    assert [record.timestamp for record in DefaultRecordBatch(bytes(found._build()))] == [TIMES_MS[time]]


async def test_an_event_whose_id_a_route_took_away_has_an_empty_header() -> None:
    """It must not stop the output for ever."""
    events = batch([message(0)])
    bare = orjson.dumps({"host": {"name": "host-1"}}) + b"\n"
    changed = replace(events, ndjson=bare, lengths=array("I", [len(bare)]), host_offsets=array("I", [17]))
    changed = replace(changed, host_lengths=array("H", [6]))
    [found] = (await encode(changed, None, settings(headers=True))).batches
    found._set_producer_state(*STATE.values())
    assert [record.headers for record in DefaultRecordBatch(bytes(found._build()))] == [[("event.id", b"")]]


@pytest.mark.parametrize("is_transactional", [False, True])
@pytest.mark.parametrize("compression", [None, "zstd"])
async def test_a_batch_is_the_one_that_aiokafka_would_build(compression: str | None, is_transactional: bool) -> None:
    """Header, checksum, compression; the producer's state comes last, as its sender gives it."""
    events = numbered(range(100))
    form = settings(compression=compression, is_transactional=is_transactional)
    [ours] = (await encode(events, None, form)).batches
    ours._set_producer_state(*STATE.values())
    assert bytes(ours._build()) == by_aiokafka(events, compression=compression, is_transactional=is_transactional)
    assert MemoryRecords(bytes(ours._build())).next_batch().validate_crc()
    assert (ours.record_count(), ours.size()) == (100, len(ours._build()))


async def test_a_batch_in_lz4_is_read_back() -> None:
    """Compressed less than aiokafka would, so the bytes are others."""
    events = numbered(range(100))
    [ours] = (await encode(events, None, settings(compression="lz4"))).batches
    ours._set_producer_state(*STATE.values())
    read = DefaultRecordBatch(bytes(ours._build()))
    assert read.compression_type == CODECS["lz4"]
    assert read.validate_crc()
    assert [record.value + b"\n" for record in read] == events.lines()


def test_what_compression_does_not_make_smaller_goes_as_it_is() -> None:
    """A broker would unpack for nothing; and the attributes must say so."""
    noise = secrets.token_bytes(500)
    made = PartitionBatch(RecordBatch(0, 1, 5, 5, bytearray(HEADER.size) + noise), BatchForm(2**20, "lz4", False))
    made._set_producer_state(*STATE.values())
    data = bytes(made._build())
    assert data[HEADER.size :] == noise
    assert DefaultRecordBatch(data).compression_type == CODECS[None]
    assert DefaultRecordBatch(data).validate_crc()


@pytest.mark.parametrize("inline_bytes", [0, 2**30])
async def test_a_thread_and_the_loop_give_the_same(inline_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is done is a matter of size alone; positions are those of the whole batch."""
    monkeypatch.setattr(kafka_records, "INLINE_BYTES", inline_bytes)
    events = batch([message(n, host=f"h{n % 9}", text="x" * 3000 * (n == 30)) for n in range(50)])
    indexes = range(10, 50)
    encoding = await encode(events, indexes, settings(partitions=4, record_bytes=3000, headers=True, batch_records=3))
    assert encoding.too_large == [30]
    placed = Counter(partition for index, partition in partition_of_each(events, indexes, 4) if index != 30)
    assert Counter(one.partition for one in encoding.batches for _ in range(one.records)) == placed
    assert max(one.records for one in encoding.batches) == 3
    assert (await encode(events, [], settings())).batches == []


async def test_a_record_refused_by_the_broker_is_found_in_the_batch_of_events() -> None:
    """A partition and a number there are all that a broker's answer gives."""
    events = numbered(range(30))
    placed = partition_of_each(events, None, 3)
    for partition in range(3):
        mine = [index for index, its in placed if its == partition]
        assert [position_of(events, None, 3, partition=partition, place=n) for n in range(len(mine))] == mine


async def test_the_loop_turns_while_a_large_batch_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs are read by the same loop: the encoding here ends only once the loop has done something else."""
    the_loop_turned = threading.Event()
    encode_really = kafka_records._encode

    def encode_after_a_turn(*arguments: Any) -> kafka_records.Encoding:
        assert the_loop_turned.wait(10), "the loop waits for the encoding"
        return encode_really(*arguments)

    monkeypatch.setattr(kafka_records, "_encode", encode_after_a_turn)
    encoding = asyncio.ensure_future(encode(numbered(range(500)), None, settings(compression="zstd")))
    await asyncio.sleep(0)
    the_loop_turned.set()
    assert sum(one.records for one in (await encoding).batches) == 500


@pytest.mark.parametrize("version", range(3, 8))
@pytest.mark.parametrize("transactional_id", [None, "bus-x"])
def test_the_pieces_of_a_request_are_the_request(version: int, transactional_id: str | None) -> None:
    """For each version that a broker with our batches may ask for, and the batches in it are the very same objects."""
    batches = [(0, bytearray(b"first")), (7, bytearray(b"second"))]
    request = ProduceRequest(transactional_id, -1, 30_000, [("a", batches), ("bc", batches[:1])])
    prepared = request.prepare({0: (0, version)})
    assert version == prepared.API_VERSION
    pieces = list(pieces_of(prepared))
    joined = b"".join(pieces)
    assert joined == prepared.encode()
    assert [piece for piece in pieces if piece is batches[1][1]]
