"""Shared decoding: each record once for outputs that are close, bounded, and no output in another's way."""

import asyncio
from array import array
from dataclasses import replace

import pytest

from ndagent.core.decoding import INLINE_BYTES, JOIN_BELOW_BYTES, Decoding, Undecodable, join_small
from ndagent.core.metrics import Metrics
from ndagent.core.spool import Record
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, CorruptBody, EventBatch, Flags, Framing, Origin, Section, pack_body
from tests.events import event_batch, sequences_in

SIZE = 2 * INLINE_BYTES  # large enough for a thread


class Decoder:
    """One event per record, as many bytes as the body has; refuses a body of zeros."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def decode(self, body: bytes, *, sequence: int, stream: str, replay: bool = False, **_: object) -> EventBatch:
        self.asked.append(sequence)
        if not body[0]:
            raise CorruptBody("zeros")
        events = event_batch(range(sequence, sequence + 1), stream=stream)
        return replace(events, ndjson=events.ndjson.ljust(len(body)), replay=replay)


def record(sequence: int, *, size: int = SIZE, fill: bytes = b"x") -> Record:
    return Record(sequence, 1, 0, fill * size, "s")


def decoding(*, outputs: int = 2, ring_bytes: int = 100 * SIZE) -> tuple[Decoding, Decoder]:
    decoder = Decoder()
    made = Decoding(decoder, metrics=Metrics(), ring_bytes=ring_bytes)
    for _ in range(outputs):
        made.join("e")
    return made, decoder


def held(made: Decoding) -> list[int]:
    """The sequences in the ring."""
    return [sequence for _, sequence in made._ring]


async def test_two_outputs_at_once_decode_once() -> None:
    """Single-flight: the second asks while the first one's thread is still at it."""
    made, decoder = decoding()
    first, second = await asyncio.gather(
        made.decode("e", [record(0), record(1)], replay=False), made.decode("e", [record(0), record(1)], replay=False)
    )
    assert decoder.asked == [0, 1]
    assert first == second
    assert held(made) == []
    made.close()


async def test_groups_that_overlap_decode_only_what_is_missing() -> None:
    """Outputs read in steps of their own."""
    made, decoder = decoding()
    await made.decode("e", [record(n) for n in range(4)], replay=False)
    found = await made.decode("e", [record(n) for n in range(2, 7)], replay=False)
    assert [batch.sequences[0] for batch in found if isinstance(batch, EventBatch)] == [2, 3, 4, 5, 6]
    assert sorted(decoder.asked) == list(range(7))
    made.close()


async def test_a_single_output_keeps_nothing() -> None:
    """There is nobody to share with."""
    made, _ = decoding(outputs=1)
    await made.decode("e", [record(0)], replay=False)
    assert held(made) == []
    made.close()


async def test_the_ring_holds_its_limit_and_forgets_the_oldest() -> None:
    """Exactly at the limit nothing leaves; one byte less and the oldest does."""
    for ring_bytes, expected in ((3 * SIZE, [0, 1, 2]), (3 * SIZE - 1, [1, 2])):
        made, _ = decoding(ring_bytes=ring_bytes)
        for sequence in range(3):
            await made.decode("e", [record(sequence)], replay=False)
            await asyncio.sleep(0)
        assert held(made) == expected
        made.close()


async def test_a_laggard_decodes_alone_and_pushes_nothing_out() -> None:
    """An output that is days behind must not cost the others their sharing."""
    made, decoder = decoding(outputs=3)
    await made.decode("e", [record(1000)], replay=False)
    await made.decode("e", [record(5)], replay=False)
    assert held(made) == [1000]
    await made.decode("e", [record(1000)], replay=False)
    assert decoder.asked == [1000, 5]
    made.close()


def kept(made: Decoding) -> list[int]:
    """The sequences whose events the ring holds; for others it knows only that they went by."""
    return [sequence for (_, sequence), entry in made._ring.items() if entry.job is not None]


async def decode_in_turn(made: Decoding, sequences: range, *, outputs: int) -> None:
    for sequence in sequences:
        for _ in range(outputs):
            await made.decode("e", [record(sequence)], replay=False)
        await asyncio.sleep(0)


async def test_for_a_dead_output_nothing_is_kept() -> None:
    """Events kept for one that never comes cost the living a sixth of their decoding: memory is never warm again."""
    made, decoder = decoding(ring_bytes=3 * SIZE)
    await decode_in_turn(made, range(10), outputs=1)
    assert kept(made) == []
    assert decoder.asked == list(range(10))
    made.close()


async def test_one_that_comes_back_shares_again() -> None:
    """Once it meets what went by lately."""
    made, decoder = decoding(ring_bytes=3 * SIZE)
    await decode_in_turn(made, range(10), outputs=1)
    await made.decode("e", [record(9)], replay=False)
    await decode_in_turn(made, range(10, 20), outputs=2)
    assert decoder.asked == [*range(10), 9, *range(10, 20)]
    assert kept(made) == []
    made.close()


async def test_the_living_share_beside_a_dead_one() -> None:
    """And nothing is kept once they have it."""
    made, decoder = decoding(outputs=3, ring_bytes=3 * SIZE)
    await decode_in_turn(made, range(10), outputs=2)
    assert decoder.asked == list(range(10))
    assert kept(made) == []
    await made.decode("e", [record(10)], replay=False)
    await asyncio.sleep(0)
    assert kept(made) == [10]
    made.close()


async def test_a_cancelled_reader_does_not_take_the_result_from_the_others() -> None:
    """The first asker is stopped while its thread works for everybody."""
    made, decoder = decoding(outputs=3)
    first = asyncio.ensure_future(made.decode("e", [record(0)], replay=False))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(made.decode("e", [record(0)], replay=False))
    await asyncio.sleep(0)
    first.cancel()
    (events,) = await second
    assert isinstance(events, EventBatch)
    assert decoder.asked == [0]
    made.close()


async def test_replayed_records_are_never_shared() -> None:
    """They carry a mark that the others' must not."""
    made, decoder = decoding()
    (marked,) = await made.decode("e", [record(0)], replay=True)
    (plain,) = await made.decode("e", [record(0)], replay=False)
    assert isinstance(marked, EventBatch)
    assert isinstance(plain, EventBatch)
    assert (marked.replay, plain.replay, decoder.asked) == (True, False, [0, 0])
    made.close()


@pytest.mark.parametrize("size", [10, SIZE], ids=["on the loop", "in a thread"])
async def test_a_corrupt_record_is_a_result_for_everybody(size: int) -> None:
    """Not an exception: the records beside it are fine."""
    made, decoder = decoding()
    records = [record(0, size=size), record(1, size=size, fill=b"\0"), record(2, size=size)]
    for _ in range(2):
        found = await made.decode("e", records, replay=False)
        assert [isinstance(one, Undecodable) for one in found] == [False, True, False]
    assert decoder.asked == [0, 1, 2]
    made.close()


async def test_a_record_that_decodes_to_another_number_of_events_is_not_believed() -> None:
    """The ledger counts in sequences."""
    made, _ = decoding()
    (found,) = await made.decode("e", [record(0)._replace(count=2)], replay=False)
    assert isinstance(found, Undecodable)
    assert "1 events where the record says 2" in found.reason
    made.close()


async def test_parse_failures_are_counted_once() -> None:
    """A second output's decoding counts nothing again."""
    lines = [b"gibberish", b"<13>1 - h a - - - text", b"<13>Jan  1 00:00:00 h a: text"]
    payload = b"".join(line + b"\n" for line in lines)
    section = Section(Origin("i", "192.0.2.1", 1), Framing.LF, Flags.NONE, len(payload), len(lines))
    body = b"".join(pack_body(Batch("e", "syslog", 1, [section], [payload])))
    metrics = Metrics()
    settings = DecodeSettings(observer_name="c", keep_original="never", timezone="UTC", origins=())
    made = Decoding(make_decoder(settings), metrics=metrics, ring_bytes=0)
    for _ in range(2):
        made.join("e")
        await made.decode("e", [Record(0, len(lines), 1, body, "s")], replay=False)
        await asyncio.sleep(0)
    assert metrics.registry.get_sample_value("nd_decode_failed_events_total", {"stream": "e"}) == 1
    made.close()


def with_origins(events: EventBatch, blobs: tuple[bytes, ...], indexes: list[int]) -> EventBatch:
    return replace(events, origin_blobs=blobs, origins=array("I", indexes))


async def test_a_decoding_of_an_outputs_own_shares_nothing_but_the_count() -> None:
    """Outputs that need their originals decode for themselves; the same parse failure is one failure."""
    metrics, origin = Metrics(), Origin("x", "192.0.2.7", 1)
    section = Section(origin, Framing.LF, Flags.NONE, 5, 1)
    body = b"".join(pack_body(Batch("e", "syslog", 0, [section], [b"what\n"])))
    shared = Decoding(make_decoder(DecodeSettings("c", keep_original="never")), metrics=metrics, ring_bytes=1 << 20)
    own = shared.beside(make_decoder(DecodeSettings("c", keep_original="always")))
    for made in (shared, own):
        made.join("e")
        made.join("e")
    originals = []
    for made in (own, shared):
        (found,) = await made.decode("e", [Record(0, 1, 0, body, "s")], replay=False)
        assert isinstance(found, EventBatch)
        originals.append(b'"original":"what"' in found.ndjson)
        await asyncio.sleep(0)
        made.close()
    assert originals == [True, False]
    assert metrics.registry.get_sample_value("nd_decode_failed_events_total", {"stream": "e"}) == 1


def test_small_batches_become_one_with_everything_in_its_place() -> None:
    """Arrays run parallel, origins stand once and every event still points at its own."""
    parts = [
        with_origins(event_batch(range(2)), (b"a",), [0, 0]),
        with_origins(event_batch(range(2, 4)), (b"b",), [0, 0]),
        with_origins(event_batch(range(4, 7)), (b"c", b"a"), [0, 1, 0]),
        with_origins(event_batch(range(7, 8)), (b"a", b"b"), [1]),
    ]
    (one,) = join_small(parts)
    assert one.sequences == range(8)
    assert sequences_in(one.ndjson) == list(range(8))
    assert [one.origin_blobs[index] for index in one.origins] == [b"a", b"a", b"b", b"b", b"c", b"a", b"c", b"b"]
    assert sorted(one.origin_blobs) == [b"a", b"b", b"c"]
    assert sum(one.lengths) == len(one.ndjson)
    fields = (one.lengths, one.priorities, one.host_offsets, one.host_lengths, one.keys, one.origins)
    assert {len(field) for field in fields} == {8}


def test_a_gap_in_the_sequences_survives_joining() -> None:
    """Quarantined records leave one; an event must keep its own sequence."""
    (one,) = join_small([event_batch(range(2)), event_batch(range(5, 7))])
    assert list(one.sequences) == [0, 1, 5, 6]


def test_large_batches_go_alone_and_order_is_kept() -> None:
    """A large one is worth a send; copying it is not."""
    large = replace(event_batch(range(2, 3)), ndjson=b" " * JOIN_BELOW_BYTES)
    joined = join_small([event_batch(range(1)), event_batch(range(1, 2)), large, event_batch(range(3, 4))])
    assert [list(batch.sequences) for batch in joined] == [[0, 1], [2], [3]]
    assert joined[1] is large
