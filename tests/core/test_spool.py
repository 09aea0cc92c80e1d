"""The spool in health: order, cursors, room, replay; every number exact."""

import asyncio
import logging

import pytest
from spool_layers import batch, messages

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Account, Spool, SpoolClosed, SpoolConfig
from ndagent.core.spool.segment import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from ndagent.wire.record import Batch, pack_body

MAX_BYTES = 1 << 16


class Clock:
    """Time that moves when a test says so."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
async def make(tmp_path):
    """Opens spools on one directory and closes what is left open."""
    opened = []

    async def open_spool(*, clock=None, **settings):
        config = SpoolConfig(**{"max_bytes": MAX_BYTES, "segment_bytes": 8192, **settings})
        spool = await Spool.open(
            tmp_path, stream="test", config=config, metrics=Metrics(), clock=clock or Clock(), retry_seconds=0.01
        )
        opened.append(spool)
        return spool

    yield open_spool
    for spool in opened:
        await spool.aclose()


def record_bytes(item: Batch) -> int:
    return RECORD_HEADER_BYTES + sum(map(len, pack_body(item)))


def text_for(size: int) -> str:
    """A message whose record takes exactly `size` bytes."""
    return "x" * (size - record_bytes(batch("")))


async def read_all(spool, cursor, *, settle=True):
    found = []
    while cursor._next < spool.next_sequence:
        for record in await cursor.read(1 << 20):
            found += messages(record)
            if settle:
                cursor.advance(record.end)
    return found


async def until(condition):
    """Let the loop run until a condition that must come true does."""
    while not condition():
        await asyncio.sleep(0)


@pytest.mark.parametrize("tip_bytes", [0, 300, 1 << 20])
async def test_events_come_out_once_in_the_order_of_their_appends(make, tip_bytes):
    """From memory, from files, and across the border between both."""
    spool = await make(tip_bytes=tip_bytes)
    cursor = spool.cursor("out")
    texts = [f"message {index}" for index in range(500)]
    await asyncio.gather(*[spool.append(batch(text)) for text in texts])
    assert await read_all(spool, cursor) == texts
    assert cursor.account() == Account(500, 500, 0, 0, 0, 0, 0)


async def test_a_read_waits_for_the_next_append_and_ends_with_the_spool(make):
    """No polling: a reader is woken by the commit, or told that there will be none."""
    spool = await make()
    cursor = spool.cursor("out")
    reading = asyncio.ensure_future(cursor.read(100))
    await asyncio.sleep(0)
    await spool.append(batch("a"))
    assert messages((await reading)[0]) == ["a"]
    reading = asyncio.ensure_future(cursor.read(100))
    await asyncio.sleep(0)
    await spool.aclose()
    with pytest.raises(SpoolClosed):
        await reading
    with pytest.raises(SpoolClosed):
        await spool.append(batch("b"))


@pytest.mark.parametrize("tip_bytes", [0, 1 << 20])
async def test_a_read_is_bounded_by_max_bytes_but_always_gets_one_record(make, tip_bytes):
    """Memory is the caller's choice, and no record is too large to be read."""
    spool = await make(tip_bytes=tip_bytes)
    cursor = spool.cursor("out")
    for _ in range(4):
        await spool.append(batch(text_for(1000)))
    assert len(await cursor.read(2999)) == 2
    assert len(await cursor.read(1)) == 1
    assert len(await cursor.read(1 << 20)) == 1


async def test_a_record_larger_than_a_segment_has_one_of_its_own(make):
    """Batches are never split."""
    spool = await make()
    cursor = spool.cursor("out")
    texts = ["small", "x" * 20_000, "after"]
    for text in texts:
        await spool.append(batch(text))
    assert await read_all(spool, cursor) == texts


async def test_two_cursors_go_at_their_own_speed_and_the_slow_one_holds_the_segments(make, tmp_path):
    """A dead output delays nobody, and what it has not had stays."""
    spool = await make()
    fast, slow = spool.cursor("fast"), spool.cursor("slow")
    for _ in range(10):
        await spool.append(batch(text_for(4000)))
    assert len(await read_all(spool, fast)) == 10
    await fast.save()
    assert len(list(tmp_path.glob("*.seg"))) == 5
    assert slow.account() == Account(10, 0, 10, 0, 0, 0, 0)
    slow.advance(4)
    assert len(spool._room.segments) == 5  # settled but not saved: a crash would need it again
    await slow.save()
    assert len(spool._room.segments) == 3
    await until(lambda: len(list(tmp_path.glob("*.seg"))) == 3)


async def test_filtered_and_dead_lettered_events_are_settled_but_not_delivered(make):
    """The conservation law with every kind of fate an output decides."""
    spool = await make()
    cursor = spool.cursor("out")
    await spool.append(batch(*map(str, range(10))))
    cursor.advance(6, filtered=2, dead_lettered=1)
    assert cursor.account() == Account(10, 3, 4, 2, 1, 0, 0)
    cursor.advance(3, filtered=3)
    assert cursor.account() == Account(10, 3, 4, 2, 1, 0, 0)
    cursor.advance(7, filtered=99, dead_lettered=99)
    assert cursor.account() == Account(10, 3, 3, 3, 1, 0, 0)


async def test_rewind_reads_again_from_the_first_unsettled_event(make):
    """An output that failed in the middle gets the rest again, and nothing that it had settled."""
    spool = await make()
    cursor = spool.cursor("out")
    for text in "abc":
        await spool.append(batch(text))
    assert await read_all(spool, cursor, settle=False) == ["a", "b", "c"]
    cursor.advance(1)
    cursor.rewind()
    assert await read_all(spool, cursor) == ["b", "c"]


async def test_a_position_survives_a_restart_and_new_outputs_start_where_they_were_told(make):
    """earliest: all that is still there; latest: only what comes."""
    spool = await make()
    await spool.append(batch("a"))
    await spool.append(batch("b"))
    old = spool.cursor("old")
    old.advance(1, filtered=1)
    await old.save()
    await spool.aclose()
    spool = await make()
    assert spool.cursor("old").account() == Account(2, 0, 1, 1, 0, 0, 0)
    assert await read_all(spool, spool.cursor("old")) == ["b"]
    assert await read_all(spool, spool.cursor("new")) == ["a", "b"]
    latest = spool.cursor("latest", start="latest")
    assert latest.account() == Account(0, 0, 0, 0, 0, 0, 0)
    await spool.append(batch("c"))
    assert await read_all(spool, latest) == ["c"]


async def test_a_removed_output_is_retired_with_a_warning_and_holds_nothing(make, tmp_path, caplog):
    """Its cursor is kept aside, not deleted; the space it held is free."""
    spool = await make()
    gone, stays = spool.cursor("gone/../x"), spool.cursor("stays")
    for _ in range(6):
        await spool.append(batch(text_for(4000)))
    await read_all(spool, stays)
    await stays.save()
    assert len(spool._room.segments) == 3
    spool.retire_unused(["stays"])
    assert len(spool._room.segments) == 1
    assert list(spool.cursors) == ["stays"]
    assert [path.name for path in (tmp_path / "cursors" / "retired").iterdir()] == ["gone%2F..%2Fx.cursor"]
    assert "6 undelivered" in caplog.records[-1].getMessage()
    assert gone.name not in spool.cursors


async def fill_exactly(spool):
    """Fill the spool to max_bytes, to the byte: two records of 4000 to a segment, then one that fits; how many."""
    for _ in range(16):
        await spool.append(batch(text_for(4000)))
    await spool.append(batch(text_for(MAX_BYTES - spool.total_bytes - SEGMENT_HEADER_BYTES)))
    return 17


async def test_the_spool_takes_max_bytes_to_the_byte_and_blocks_at_the_next_event(make):
    """block: nothing is lost, and space that an output frees lets the append go by itself."""
    spool = await make()
    cursor = spool.cursor("out")
    count = await fill_exactly(spool)
    assert spool.total_bytes == MAX_BYTES
    full = spool._around.metrics.spool_full.labels("test")._value
    waiting = asyncio.ensure_future(spool.append(batch("one more")))
    await until(lambda: full.get() == 1)
    assert spool.total_bytes == MAX_BYTES
    assert not waiting.done()
    cursor.advance(2)
    await cursor.save()
    await waiting
    assert full.get() == 0
    assert cursor.account() == Account(count + 1, 2, count - 1, 0, 0, 0, 0)
    assert spool.total_bytes < MAX_BYTES


async def test_drop_oldest_loses_whole_segments_of_that_cursor_only_and_counts_them(make, caplog):
    """The exact numbers: one segment of two events makes room for one more."""
    spool = await make()
    lossy = spool.cursor("lossy", on_full="drop_oldest")
    count = await fill_exactly(spool)
    await spool.append(batch("one more"))
    assert lossy.account() == Account(count + 1, 0, count - 1, 0, 0, 0, 2)
    assert lossy.sequence == 2
    assert len(await read_all(spool, lossy)) == count - 1
    assert lossy.account() == Account(count + 1, count - 1, 0, 0, 0, 0, 2)
    assert any("lossy loses its oldest events" in record.getMessage() for record in caplog.records)


async def test_drop_oldest_gives_up_nothing_while_a_blocking_cursor_holds_the_space(make):
    """It would lose events and free no byte."""
    spool = await make()
    lossy, strict = spool.cursor("lossy", on_full="drop_oldest"), spool.cursor("strict")
    await fill_exactly(spool)
    waiting = asyncio.ensure_future(spool.append(batch("one more")))
    await until(lambda: spool._trouble.present)
    assert lossy.account().evicted == 0
    strict.advance(2)
    await strict.save()
    await waiting
    assert lossy.account().evicted == 2
    assert strict.account().evicted == 0


async def test_an_eviction_under_a_reader_moves_it_on(make):
    """What was read before and settled after counts once, as evicted."""
    spool = await make()
    lossy = spool.cursor("lossy", on_full="drop_oldest")
    count = await fill_exactly(spool)
    (first,) = await lossy.read(1)
    await spool.append(batch("one more"))
    lossy.advance(first.end)
    assert lossy.account() == Account(count + 1, 0, count - 1, 0, 0, 0, 2)
    assert (await lossy.read(1))[0].sequence == 2


async def test_a_segment_given_up_between_a_readers_decision_and_its_open_is_no_damage(make, caplog):
    """The commit thread deletes while reader threads open: that race is an eviction, not a fault of the disk."""
    spool = await make(tip_bytes=0)
    lossy = spool.cursor("lossy", on_full="drop_oldest")
    await fill_exactly(spool)
    spool._room.segments[0].path.unlink()
    reading = asyncio.ensure_future(lossy.read(1))
    await asyncio.sleep(0)
    spool._reclaim(spool.total_bytes - 1)
    assert (await reading)[0].sequence == 2
    assert (lossy.account().evicted, lossy.account().quarantined) == (2, 0)
    assert not any("file is gone" in record.getMessage() for record in caplog.records)


async def test_without_any_cursor_the_spool_keeps_everything_and_then_blocks(make):
    """A collector whose outputs are not configured yet must not throw away what it took."""
    spool = await make()
    await fill_exactly(spool)
    waiting = asyncio.ensure_future(spool.append(batch("one more")))
    await until(lambda: spool._trouble.present)
    assert not waiting.done()
    waiting.cancel()


async def test_a_batch_larger_than_the_whole_spool_goes_through_an_empty_one(make):
    """Blocking for ever would be the only alternative."""
    spool = await make()
    cursor = spool.cursor("out")
    await spool.append(batch("small"))
    waiting = asyncio.ensure_future(spool.append(batch("x" * (MAX_BYTES + 1))))
    await until(lambda: spool._trouble.present)
    await read_all(spool, cursor)
    await cursor.save()
    await waiting
    assert [len(text) for text in await read_all(spool, cursor)] == [MAX_BYTES + 1]


async def test_from_eighty_percent_on_the_log_names_who_holds_the_space_once(make, caplog):
    """Early enough to act, and with hysteresis so that it does not flap."""
    caplog.set_level(logging.INFO)
    spool = await make()
    slow = spool.cursor("slow")
    await fill_exactly(spool)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "output slow holds it" in warning.getMessage()
    slow.advance(6)
    await slow.save()
    assert "below 70 %" in caplog.records[-1].getMessage()


async def test_delivered_events_stay_for_the_replay_window_but_yield_to_pressure(make):
    """The window is kept by time, and given up before anyone waits or loses anything."""
    clock = Clock()
    spool = await make(replay_window=60, clock=clock)
    cursor = spool.cursor("out")
    for _ in range(4):
        await spool.append(batch(text_for(4000)))
    await read_all(spool, cursor)
    await cursor.save()
    assert spool.first_sequence == 0
    clock.now += 61
    await spool.append(batch("x"))
    await read_all(spool, cursor)
    await cursor.save()
    assert spool.first_sequence == 2
    for _ in range(20):
        await spool.append(batch(text_for(4000)))
        await read_all(spool, cursor)
        await cursor.save()
    assert spool.first_sequence > 2
    assert cursor.account() == Account(25, 25, 0, 0, 0, 0, 0)


async def test_a_replay_sends_events_again_and_counts_them_again(make):
    """appended grows by what is replayed, so the law holds before, during and after."""
    spool = await make()
    cursor = spool.cursor("out")
    for text in "abcdef":
        await spool.append(batch(text))
    await read_all(spool, cursor)
    cursor.advance(6)
    assert cursor.replay(2) == 4
    assert cursor.replay_until == 6
    assert cursor.account() == Account(10, 6, 4, 0, 0, 0, 0)
    assert await read_all(spool, cursor) == ["c", "d", "e", "f"]
    assert cursor.account() == Account(10, 10, 0, 0, 0, 0, 0)
    await spool.append(batch("g"))
    assert await read_all(spool, cursor) == ["g"]


async def test_a_replay_of_a_range_goes_on_where_the_cursor_stood(make):
    """What lies between the range's end and the old position is not sent again, also after a restart."""
    spool = await make()
    cursor = spool.cursor("out")
    for text in "abcdefgh":
        await spool.append(batch(text))
    cursor.advance(6)
    assert cursor.replay(1, 3) == 2
    assert cursor.account() == Account(10, 6, 4, 0, 0, 0, 0)
    await cursor.save()
    await spool.aclose()
    spool = await make()
    cursor = spool.cursor("out")
    assert cursor.account() == Account(10, 6, 4, 0, 0, 0, 0)
    assert await read_all(spool, cursor) == ["b", "c", "g", "h"]
    assert cursor.account() == Account(10, 10, 0, 0, 0, 0, 0)


async def test_a_time_names_the_first_event_received_at_or_after_it(make):
    """For `replay --from TIME`."""
    spool = await make()
    for second in range(10):
        await spool.append(batch("x" * 3000, received_at_ns=second * 10**9))
    assert await spool.sequence_at(0) == 0
    assert await spool.sequence_at(4 * 10**9 + 1) == 5
    assert await spool.sequence_at(99 * 10**9) == 10


async def test_an_empty_batch_takes_no_record_and_a_wrong_one_is_refused(make):
    """The section table and the payload must agree before anything is written."""
    spool = await make()
    await spool.append(Batch("test", "syslog", 1, [], []))
    assert spool.next_sequence == 0
    wrong = batch("a")
    wrong.payload.append(b"more")
    with pytest.raises(ValueError, match="sections name 2 bytes"):
        await spool.append(wrong)
    await spool.append(batch("fine"))
    assert spool.next_sequence == 1


async def test_many_files_of_backlog_do_not_slow_the_start(make):
    """Only the last segment is read; one small read tells the others apart."""
    spool = await make(max_bytes=64 << 20)
    spool.cursor("out")
    for _ in range(8):
        await asyncio.gather(*[spool.append(batch(text_for(8000))) for _ in range(50)])
    await spool.aclose()
    spool = await make(max_bytes=64 << 20)
    assert len(spool._room.segments) == 400
    assert spool.next_sequence == 400
    assert spool.cursor("out").account().pending == 400
