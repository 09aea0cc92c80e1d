"""One test per disaster, named as a sentence: what the disk or the power did, and what the spool does about it."""

import asyncio
import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from services.need import need_namespace
from spool_layers import CrashFiles, FaultyFiles, PowerCut, batch, messages

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolClosed, SpoolConfig, SpoolLocked, UnknownFormat, offline
from ndagent.core.spool.position import Position, SlotFile
from ndagent.core.spool.segment import (
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    pack_segment_header,
    parse_record_header,
    parse_segment_header,
    salt_of,
)

SMALL = SpoolConfig(segment_bytes=8192, max_bytes=1 << 20, tip_bytes=0)


async def open_spool(directory, files=None, **settings):
    config = SMALL.model_copy(update=settings)
    return await Spool.open(
        directory, stream="test", config=config, metrics=Metrics(), files=files, retry_seconds=0.01
    )


async def drain(spool, cursor):
    """Read and settle everything that is readable now; the messages."""
    found = []
    while cursor.sequence < spool.next_sequence:
        for record in await cursor.read(1 << 16):
            found += messages(record)
            cursor.advance(record.end)
    return found


def segments(directory):
    return sorted(directory.glob("*.seg"))


def flip(path, offset, bit=0):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def record_offsets(path):
    data = path.read_bytes()
    salt = salt_of(parse_segment_header(data).spool_id)
    at, found = SEGMENT_HEADER_BYTES, []
    while at < len(data):
        found.append(at)
        at += RECORD_HEADER_BYTES + parse_record_header(data[at:], salt).length
    return found


async def three_records(directory):
    """A closed spool with cursor `out` at the start and records of 1, 2 and 3 messages; their offsets."""
    spool = await open_spool(directory)
    spool.cursor("out")
    for texts in (["a"], ["b", "c"], ["d", "e", "f"]):
        await spool.append(batch(*texts))
    await spool.aclose()
    return segments(directory)[0], record_offsets(segments(directory)[0])


async def reopened(directory):
    """What the cursor `out` still gets, and its account."""
    spool = await open_spool(directory)
    found = await drain(spool, spool.cursor("out"))
    account = spool.cursor("out").account()
    await spool.append(batch("later"))
    assert await drain(spool, spool.cursor("out")) == ["later"]
    await spool.aclose()
    return found, account


async def test_a_torn_tail_is_cut_off_and_nothing_else(tmp_path):
    """What kill -9 or a power cut leaves inside a write was never acknowledged."""
    path, offsets = await three_records(tmp_path)
    os.truncate(path, offsets[2] + 50)
    assert offline.verify(tmp_path) == []
    found, account = await reopened(tmp_path)
    assert found == ["a", "b", "c"]
    assert account.appended == account.delivered == 3
    assert path.stat().st_size == offsets[2]


async def test_a_tail_of_zeros_is_a_torn_tail(tmp_path):
    """A file system may keep the new length and lose the new pages."""
    path, _ = await three_records(tmp_path)
    with path.open("ab") as file:
        file.write(bytes(5000))
    assert offline.verify(tmp_path) == []
    assert (await reopened(tmp_path))[0] == list("abcdef")


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_a_rotten_body_costs_its_record_and_is_counted_exactly(tmp_path, index):
    """The header's own CRC still tells how many events the body held, also in the last record."""
    path, offsets = await three_records(tmp_path)
    flip(path, offsets[index] + RECORD_HEADER_BYTES + 3)
    (finding,) = offline.verify(tmp_path)
    assert (finding.path, finding.offset) == (path, offsets[index])
    assert finding.end - finding.first == index + 1
    found, account = await reopened(tmp_path)
    assert found == [text for at, texts in enumerate(["a", "bc", "def"]) for text in texts if at != index]
    assert account.quarantined == index + 1
    assert account.delivered == 6 - (index + 1)
    kept = tmp_path / "quarantine" / f"{path.name}.{offsets[index]}"
    assert kept.read_bytes() == path.read_bytes()[offsets[index] :][: kept.stat().st_size]


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_a_rotten_header_costs_its_record_and_is_counted_exactly(tmp_path, index):
    """The next record tells how many are missing; for the last one the flipped bit is undone to learn it."""
    path, offsets = await three_records(tmp_path)
    flip(path, offsets[index] + 25)
    (finding,) = offline.verify(tmp_path)
    assert (finding.path, finding.offset) == (path, offsets[index])
    found, account = await reopened(tmp_path)
    assert found == [text for at, texts in enumerate(["a", "bc", "def"]) for text in texts if at != index]
    assert account.quarantined == index + 1
    assert account.delivered == 6 - (index + 1)


async def test_a_last_record_beyond_recognition_counts_as_one_event(tmp_path):
    """Nothing tells how many it held, but it is not silent and its bytes are kept."""
    path, offsets = await three_records(tmp_path)
    data = bytearray(path.read_bytes())
    data[offsets[2] :] = b"\xa5" * (len(data) - offsets[2])
    path.write_bytes(data)
    found, account = await reopened(tmp_path)
    assert found == ["a", "b", "c"]
    assert account.quarantined == 1
    assert (tmp_path / "quarantine" / f"{path.name}.{offsets[2]}").read_bytes() == data[offsets[2] :]


async def test_a_rotten_segment_header_costs_nothing(tmp_path):
    """The file's name has the base; the spool id comes from a neighbour, a cursor, or the header less one bit."""
    path, _ = await three_records(tmp_path)
    path.write_bytes(bytes(SEGMENT_HEADER_BYTES) + path.read_bytes()[SEGMENT_HEADER_BYTES:])
    (finding,) = offline.verify(tmp_path)
    assert "segment header" in finding.what
    found, account = await reopened(tmp_path)
    assert found == list("abcdef")
    assert account.quarantined == 0


async def test_damage_is_said_once_with_path_and_remedy_however_many_cursors_meet_it(tmp_path, caplog):
    """An operator at three in the morning needs the path, not a flood."""
    path, offsets = await three_records(tmp_path)
    flip(path, offsets[1] + RECORD_HEADER_BYTES)
    caplog.set_level(logging.INFO)
    spool = await open_spool(tmp_path)
    assert await drain(spool, spool.cursor("out")) == list("adef")
    assert await drain(spool, spool.cursor("other")) == list("adef")
    await spool.aclose()
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert str(path) in said.getMessage()
    assert "spool verify" in said.getMessage()


async def test_a_page_that_the_disk_cannot_read_is_quarantined_and_reading_goes_on(tmp_path):
    """EIO from a read is a bad sector, not a reason to stop delivering what lies behind it."""
    files = FaultyFiles()
    files.bad_bytes = range(4096, 8192)
    spool = await open_spool(tmp_path, files, segment_bytes=65536)
    texts = ["a" * 3000, "b" * 9000, "c" * 3000]
    for text in texts:
        await spool.append(batch(text))
    cursor = spool.cursor("out")
    assert await drain(spool, cursor) == [texts[0], texts[2]]
    assert cursor.account().quarantined == 1
    await spool.aclose()


async def test_a_quarantined_copy_is_durable_before_its_segment_may_go(tmp_path):
    """The segment is deleted once the cursor has passed; after a power cut the copy is all that is left."""
    path, offsets = await three_records(tmp_path)
    flip(path, offsets[1] + RECORD_HEADER_BYTES)
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    copy = tmp_path / "quarantine" / f"{path.name}.{offsets[1]}"
    assert copy.read_bytes() == path.read_bytes()[offsets[1] : offsets[2]]
    assert copy in [synced for _, synced in files.syncs]
    assert copy.parent in files.synced_directories
    await spool.aclose()


@pytest.mark.parametrize("operation", ["writev", "fdatasync"])
async def test_half_a_copy_is_not_taken_for_one(tmp_path, caplog, operation):
    """What a full disk or a kill left of it is made anew, and meanwhile nobody is told that the bytes are kept."""
    path, offsets = await three_records(tmp_path)
    flip(path, offsets[1] + RECORD_HEADER_BYTES)
    copy = tmp_path / "quarantine" / f"{path.name}.{offsets[1]}"
    files = FaultyFiles()
    files.fail(operation, errno.ENOSPC, on=copy.name)
    await (await open_spool(tmp_path, files)).aclose()
    assert "could not be kept" in caplog.text
    assert not copy.exists()
    copy.write_bytes(b"half")
    spool = await open_spool(tmp_path)
    assert await drain(spool, spool.cursor("out")) == ["a", "d", "e", "f"]
    assert copy.read_bytes() == path.read_bytes()[offsets[1] : offsets[2]]
    await spool.aclose()


async def test_a_reader_whose_disk_fails_survives_that_all_it_waits_for_is_given_up(tmp_path):
    """Out of descriptors and out of space at once: its events are counted as evicted, and it goes on behind them."""
    files = FaultyFiles()
    spool = await Spool.open(
        tmp_path, stream="test", config=SMALL, metrics=Metrics(), files=files, retry_seconds=0.01, patience_seconds=0.0
    )
    cursor = spool.cursor("out", on_full="drop_oldest")
    await spool.append(batch("a"))
    files.fail("open_read", errno.EMFILE, times=1_000_000)
    reading = asyncio.ensure_future(cursor.read(1 << 16))
    while not files.planned["open_read"] or len(files.planned["open_read"]) == 1_000_000:
        await asyncio.sleep(0.01)
    files.space_bytes = 0
    files.fail("create", errno.ENOSPC, times=20)
    await asyncio.wait_for(spool.append(batch("b")), 10)
    files.planned.clear()
    (record,) = await asyncio.wait_for(reading, 10)
    assert messages(record) == ["b"]
    assert cursor.account().evicted == 1
    await spool.aclose()


@pytest.mark.parametrize("reopen", [False, True])
async def test_a_segment_removed_by_hand_is_a_gap_and_not_the_end(tmp_path, caplog, reopen):
    """Somebody will rm a file; the account says what it cost, the log and `verify` which events."""
    spool = await open_spool(tmp_path)
    cursor = spool.cursor("out")
    for index in range(9):
        await spool.append(batch(f"{index}:" + "x" * 3000))
    assert len(segments(tmp_path)) > 3
    segments(tmp_path)[1].unlink()
    if reopen:
        await spool.aclose()
        spool = await open_spool(tmp_path)
        cursor = spool.cursor("out")
    (finding,) = offline.verify(tmp_path)
    assert (finding.first, finding.end) == (2, 4)
    found = [int(text.partition(":")[0]) for text in await drain(spool, cursor)]
    account = cursor.account()
    assert account.quarantined == 9 - len(found) == 2
    assert account.delivered == len(found)
    assert "events from 2 to 3 are skipped: they are not there" in caplog.text
    await spool.aclose()


@pytest.mark.parametrize("truncate_fails", [False, True])
async def test_after_a_failed_fdatasync_the_descriptor_is_never_synced_again(tmp_path, truncate_fails):
    """The kernel may mark lost pages clean: a second fdatasync would lie. The batch goes to a new segment."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    await spool.append(batch("first"))
    (old,) = segments(tmp_path)
    durable_size = old.stat().st_size
    files.fail("fdatasync", errno.EIO)
    if truncate_fails:
        files.fail("truncate", errno.EIO)
    before = len(files.syncs)
    await spool.append(batch("second"))
    attempts = [path for _, path in files.syncs[before:] if path.suffix == ".seg"]
    assert attempts.count(old) == 1
    assert attempts[-1] != old
    assert (old.stat().st_size == durable_size) is not truncate_fails
    assert await drain(spool, spool.cursor("out")) == ["first", "second"]
    await spool.aclose()
    assert offline.verify(tmp_path) == []
    spool = await open_spool(tmp_path)
    assert await drain(spool, spool.cursor("again")) == ["first", "second"]
    assert spool.cursor("again").account().quarantined == 0
    await spool.aclose()


async def test_a_segment_that_a_failed_sync_left_behind_holds_no_record(tmp_path):
    """Its batch may be withdrawn and its sequences given to others: no later start may find it under their ids."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    files.fail("fdatasync", errno.EIO)
    files.fail("unlink", errno.EIO)
    await spool.append(batch("a"))
    await spool.aclose()
    left, good = segments(tmp_path)
    assert (left.stat().st_size, good.stat().st_size > 0) == (0, True)
    spool = await open_spool(tmp_path)
    assert await drain(spool, spool.cursor("out")) == ["a"]
    assert spool.cursor("out").account().quarantined == 0
    await spool.aclose()


@pytest.mark.parametrize("operation", ["writev", "fdatasync", "fsync_dir", "create"])
async def test_a_disk_that_fails_for_a_while_is_tried_again_and_said_once(tmp_path, operation, caplog):
    """EIO never stops the spool for good, and every append that waited is stored once."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path / "s", files)
    on = "s" if operation == "fsync_dir" else ".seg"
    files.fail(operation, errno.EIO, times=5, on=on)
    await asyncio.gather(*[spool.append(batch(str(index))) for index in range(5)])
    assert await drain(spool, spool.cursor("out")) == list("01234")
    assert not files.planned[operation]
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2  # it failed; inputs wait
    await spool.aclose()
    assert offline.verify(tmp_path / "s") == []


async def test_a_full_disk_blocks_appends_and_lets_them_go_by_itself(tmp_path):
    """Said once, nothing dropped, nothing half-written visible."""
    files = FaultyFiles()
    metrics = Metrics()
    spool = await Spool.open(
        tmp_path, stream="test", config=SMALL, metrics=metrics, files=files, retry_seconds=0.01
    )
    full = metrics.spool_full.labels("test")._value
    cursor = spool.cursor("out")
    files.space_bytes = 500
    waiting = [asyncio.ensure_future(spool.append(batch(f"{index}" * 100))) for index in range(9)]
    while full.get() == 0:
        await asyncio.sleep(0)
    assert not all(task.done() for task in waiting)
    files.space_bytes = 1 << 20
    await asyncio.gather(*waiting)
    assert full.get() == 0
    assert await drain(spool, cursor) == [f"{index}" * 100 for index in range(9)]
    await spool.aclose()
    assert offline.verify(tmp_path) == []


async def test_a_disk_that_is_full_for_a_moment_costs_a_dropping_cursor_nothing(tmp_path):
    """Its only segment is all that waits: given up at once, a second without room would lose a day of an agent's."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    cursor = spool.cursor("collector", on_full="drop_oldest")
    await spool.append(batch("before"))
    files.space_bytes = 0
    waiting = asyncio.ensure_future(spool.append(batch("meanwhile")))
    while not spool.is_full:
        await asyncio.sleep(0.001)
    files.space_bytes = None
    await waiting
    assert await drain(spool, cursor) == ["before", "meanwhile"]
    assert cursor.account().evicted == 0
    await spool.aclose()


async def test_a_disk_that_stays_full_costs_a_dropping_cursor_its_last_segment_and_that_is_counted(tmp_path):
    """Newer events are worth more than older ones, once there is no hope for both."""
    files, loop = FaultyFiles(), asyncio.get_running_loop()
    spool = await Spool.open(
        tmp_path, stream="test", config=SMALL, metrics=Metrics(), files=files, retry_seconds=0.01, patience_seconds=0.1
    )
    cursor = spool.cursor("collector", on_full="drop_oldest")
    await spool.append(batch("old", "older"))
    files.space_bytes = 0
    began = loop.time()
    waiting = asyncio.ensure_future(spool.append(batch("new")))
    while cursor.account().evicted == 0:
        await asyncio.sleep(0.001)
    assert loop.time() - began >= 0.1
    files.space_bytes = None
    await waiting
    assert await drain(spool, cursor) == ["new"]
    assert (cursor.account().evicted, cursor.account().delivered) == (2, 1)
    await spool.aclose()


async def test_short_writes_are_finished(tmp_path):
    """writev may take less than it was given."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    files.write_at_most = 7
    await asyncio.gather(*[spool.append(batch(f"message {index}")) for index in range(20)])
    assert await drain(spool, spool.cursor("out")) == [f"message {index}" for index in range(20)]
    await spool.aclose()


async def test_nothing_is_acknowledged_or_readable_before_its_sync(tmp_path):
    """The ack law, seen from both sides while a slow fdatasync runs; meanwhile appends gather into one commit."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    cursor = spool.cursor("out")
    files.sync_gate.clear()
    before = len(files.syncs)
    tasks = [asyncio.ensure_future(spool.append(batch("a")))]
    while len(files.syncs) == before:
        await asyncio.sleep(0)
    tasks += [asyncio.ensure_future(spool.append(batch(text))) for text in "bcdef"]
    reading = asyncio.ensure_future(cursor.read(1 << 16))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not any(task.done() for task in [*tasks, reading])
    files.sync_gate.set()
    await asyncio.gather(*tasks)
    assert messages((await reading)[0]) == ["a"]
    assert len(files.syncs) - before == 2
    await spool.aclose()


async def test_the_first_record_of_a_segment_waits_for_the_files_own_name(tmp_path):
    """A synced record in a file that a power cut takes back whole is not durable: no ack, no reader before that."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    await spool.append(batch("a" * 6000))
    naming, go_on = threading.Event(), threading.Event()
    fsync_dir = files.fsync_dir
    files.fsync_dir = lambda path: (naming.set(), go_on.wait(), fsync_dir(path))
    waiting = asyncio.ensure_future(spool.append(batch("b" * 6000)))
    await asyncio.to_thread(naming.wait)
    assert len(segments(tmp_path)) == 2
    assert files.syncs[-1][1] == segments(tmp_path)[1]
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert spool.readable == 1
    go_on.set()
    await waiting
    assert spool.readable == 2
    await spool.aclose()


async def test_a_cancelled_append_may_still_be_stored_and_breaks_nothing(tmp_path):
    """An input that is cancelled must not take the commit of others with it."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    files.sync_gate.clear()
    tasks = [asyncio.ensure_future(spool.append(batch(text))) for text in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    files.sync_gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert set("ac") <= set(await drain(spool, spool.cursor("out")))
    await spool.aclose()


async def test_an_append_that_is_cancelled_while_it_waits_for_room_is_not_stored(tmp_path):
    """Its input counts it as dropped: stored as well, it would break the ledger."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    files.space_bytes = 0
    waiting = asyncio.ensure_future(spool.append(batch("withdrawn")))
    while not spool.is_full:
        await asyncio.sleep(0.001)
    waiting.cancel()
    while spool.is_full:  # nobody waits any more
        await asyncio.sleep(0.001)
    files.space_bytes = None
    await spool.append(batch("stored"))
    assert await drain(spool, spool.cursor("out")) == ["stored"]
    await spool.aclose()


async def test_closing_a_blocked_spool_ends_and_says_what_was_not_stored(tmp_path):
    """A stop must not wait for a disk that stays full."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    files.space_bytes = 0
    tasks = [asyncio.ensure_future(spool.append(batch(text))) for text in "ab"]
    await asyncio.sleep(0)
    await spool.aclose()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, SpoolClosed) for result in results)


async def test_the_oldest_segment_removed_while_stopped_is_said_and_counted(tmp_path, caplog):
    """As long as a cursor needs it, its absence is a loss."""
    spool = await open_spool(tmp_path)
    spool.cursor("out")
    for index in range(4):
        await spool.append(batch(f"{index}:" + "x" * 3000))
    await spool.aclose()
    segments(tmp_path)[0].unlink()
    spool = await open_spool(tmp_path)
    assert len(await drain(spool, spool.cursor("out"))) == 2
    assert spool.cursor("out").account().evicted == 2
    assert "cursor out: events from 0 to 1 are not there any more" in caplog.text
    await spool.aclose()


async def test_two_cursor_slots_survive_a_torn_save_of_one(tmp_path):
    """The older position still stands; events repeat, none is missed."""
    await three_records(tmp_path)
    spool = await open_spool(tmp_path)
    cursor = spool.cursor("out")
    await drain(spool, cursor)
    await cursor.save()
    generation = cursor._slots.saved.generation
    await spool.aclose()
    flip(tmp_path / "cursors" / "out.cursor", generation % 2 * 4096 + 30)
    assert offline.verify(tmp_path) == []
    assert (await reopened(tmp_path))[0] == list("abcdef")


async def test_a_cursor_with_no_whole_slot_starts_again(tmp_path):
    """At least once: better all of it again than a hole."""
    await three_records(tmp_path)
    (tmp_path / "cursors" / "out.cursor").write_bytes(b"\xff" * 8192)
    assert "cursor out" in offline.verify(tmp_path)[0].what
    assert (await reopened(tmp_path))[0] == list("abcdef")
    assert offline.verify(tmp_path) == []


@pytest.mark.parametrize("operations", range(3))
def test_a_damaged_cursor_is_never_taken_for_one_that_was_not_finished(tmp_path, operations):
    """With `start: latest` it would skip what it had not delivered: not even when killed while it is saved anew."""
    path = tmp_path / "out.cursor"
    path.write_bytes(b"\xee" * 8192)
    files = CrashFiles()
    slots = SlotFile(files, path)
    assert slots.load()
    files.operations_left = operations
    with suppress(PowerCut):
        slots.save(bytes(10), Position(0, 0))
    assert SlotFile(CrashFiles(), path).load()


async def test_a_cursor_that_cannot_be_saved_stays_unsaved_and_delivery_goes_on(tmp_path, caplog):
    """A full or failing disk under cursors/ is said once, and saving works again by itself."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    cursor = spool.cursor("out")
    await spool.append(batch("a", "b"))
    await drain(spool, cursor)
    files.fail("fdatasync", errno.EIO, times=2, on=".cursor")
    await cursor.save()
    await cursor.save()
    assert cursor.unsaved
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    await cursor.save()
    assert not cursor.unsaved
    await spool.aclose()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_a_cursor_that_can_never_be_saved_does_not_stop_the_inputs_for_good(tmp_path, number):
    """A bad sector under its slot, or a full disk that copies on write: what is delivered makes room all the same."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files, max_bytes=1 << 16)
    cursor = spool.cursor("out")
    files.fail("fdatasync", number, times=10_000, on=".cursor")
    async with asyncio.timeout(10):
        for index in range(200):  # three times max_bytes
            await spool.append(batch(f"{index} {'x' * 1000}"))
            assert len(await drain(spool, cursor)) == 1
            await cursor.save()
    assert cursor.account().delivered == 200
    assert cursor.unsaved
    files.planned.clear()
    await cursor.save()
    await spool.aclose()
    found, account = await reopened(tmp_path)
    assert (found, account.evicted, account.delivered) == ([], 0, 200)


async def test_what_a_crash_finds_given_up_before_its_cursor_could_be_saved_is_said_and_counted(tmp_path, caplog):
    """It was delivered, but nothing on disk says so: better counted as lost than silently taken for delivered."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files, max_bytes=1 << 16)
    cursor = spool.cursor("out")
    files.fail("writev", errno.EIO, times=10_000, on=".cursor")
    for index in range(80):
        await spool.append(batch(f"{index} {'x' * 1000}"))
        await drain(spool, cursor)
        await cursor.save()
    given_up = spool.first_sequence
    await spool.aclose()
    found, account = await reopened(tmp_path)
    assert [int(text.split()[0]) for text in found] == list(range(given_up, 80))
    assert account.evicted == given_up > 0
    assert "are not there any more and count as evicted" in caplog.text


async def test_a_cursor_that_was_not_saved_yet_holds_its_segments_however_short_space_is(tmp_path):
    """Only a save that fails lets go of them: one that is merely due comes within a second."""
    spool = await open_spool(tmp_path, max_bytes=1 << 16)
    cursor = spool.cursor("out")
    for index in range(59):
        await spool.append(batch(f"{index} {'x' * 1000}"))
    await drain(spool, cursor)
    waits = asyncio.ensure_future(spool.append(batch("x" * 1000)))
    await asyncio.sleep(0.1)
    assert not waits.done()
    assert spool.first_sequence == 0
    await cursor.save()
    await waits
    await spool.aclose()


async def test_new_directories_are_synced_up_to_one_that_was_there(tmp_path):
    """A synced file in a directory whose own name a power cut takes back is lost all the same."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path / "state" / "spool" / "test", files)
    wanted = {tmp_path, tmp_path / "state", tmp_path / "state" / "spool", tmp_path / "state" / "spool" / "test"}
    assert wanted <= set(files.synced_directories)
    await spool.aclose()


async def test_a_start_needs_no_room_on_a_full_disk(tmp_path):
    """Killed while the disk was full: not even the process id for the lock may be asked of it."""
    spool = await open_spool(tmp_path)
    await spool.append(batch("a"))
    await spool.aclose()
    files = FaultyFiles()
    files.fail("writev", errno.ENOSPC, on="lock")
    spool = await open_spool(tmp_path, files)
    assert await drain(spool, spool.cursor("out")) == ["a"]
    await spool.aclose()


async def test_a_cursor_file_that_cannot_be_read_does_not_stop_the_start(tmp_path):
    """A bad sector under a cursor costs repeated events, not the daemon."""
    spool = await open_spool(tmp_path)
    await spool.append(batch("a"))
    await drain(spool, spool.cursor("out"))
    await spool.cursor("out").save()
    await spool.aclose()
    files = FaultyFiles()
    files.bad_bytes, files.bad_suffix = range(8192), ".cursor"
    spool = await open_spool(tmp_path, files)
    assert await drain(spool, spool.cursor("out")) == ["a"]
    await spool.aclose()


async def test_retiring_a_cursor_on_a_full_disk_does_not_stop_the_others(tmp_path):
    """It is put aside at a later start; until then its file is only in nobody's way."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    await spool.append(batch("a"))
    spool.cursor("gone"), spool.cursor("out")
    files.fail("rename", errno.ENOSPC, on=".cursor")
    spool.retire_unused(["out"])
    assert list(spool.cursors) == ["out"]
    await spool.aclose()
    spool = await open_spool(tmp_path)
    spool.retire_unused(["out"])
    assert [path.name for path in (tmp_path / "cursors" / "retired").iterdir()] == ["gone.cursor"]
    await spool.aclose()


async def test_a_restored_backup_gets_a_new_identity_and_sequences_never_go_back(tmp_path):
    """An event id names one event for ever, also when the spool lost its newest segments."""
    directory = tmp_path / "spool"
    await three_records(directory)
    shutil.copytree(directory, tmp_path / "backup")
    spool = await open_spool(directory)
    old_id = spool.spool_id
    spool.cursor("slow")
    await spool.append(batch("g", "h"))
    await drain(spool, spool.cursor("out"))
    await spool.cursor("out").save()
    await spool.aclose()
    for path in segments(directory):
        path.unlink()
    for path in segments(tmp_path / "backup"):
        shutil.copy(path, directory)
    spool = await open_spool(directory)
    assert spool.spool_id != old_id
    assert spool.next_sequence == 8
    assert await drain(spool, spool.cursor("slow")) == list("abcdef")
    assert spool.cursor("slow").account().quarantined == 2
    await spool.append(batch("new"))
    (record,) = await spool.cursor("out").read(1 << 16)
    assert (record.sequence, record.spool_id) == (8, spool.spool_id)
    await spool.aclose()


async def test_a_spool_without_sync_gets_a_new_identity_at_every_start(tmp_path):
    """With `durability: os` a power cut may take back what outputs saw, so its sequences must not name other events."""
    spool = await open_spool(tmp_path, durability="os")
    first_id = spool.spool_id
    await spool.append(batch("a"))
    assert await drain(spool, spool.cursor("out")) == ["a"]
    await spool.cursor("out").save()
    await spool.aclose()
    spool = await open_spool(tmp_path, durability="os")
    assert spool.spool_id != first_id
    await spool.append(batch("b"))
    assert await drain(spool, spool.cursor("out")) == ["b"]
    assert spool.cursor("out").account().delivered == 2
    await spool.aclose()


async def test_a_record_forged_inside_a_message_is_never_taken_for_one(tmp_path):
    """A sender may send bytes that look like a record; where a header is damaged, the search must not find them."""
    victim, _ = await three_records(tmp_path / "other")
    forged = victim.read_bytes()[SEGMENT_HEADER_BYTES:]
    directory = tmp_path / "spool"
    spool = await open_spool(directory)
    spool.cursor("out")
    harmless = batch("x")
    evil = batch("y")
    evil.payload[0] = forged
    evil.sections[0] = evil.sections[0]._replace(length=len(forged))
    await spool.append(evil)
    await spool.append(harmless)
    await spool.aclose()
    flip(segments(directory)[0], SEGMENT_HEADER_BYTES + 1)
    found, account = await reopened(directory)
    assert found == ["x"]
    assert account.quarantined == 1


async def test_a_spool_of_a_later_format_is_refused_and_left_alone(tmp_path):
    """A downgrade must say what to do, and never need rm."""
    path, _ = await three_records(tmp_path)
    data = path.read_bytes()
    later = pack_segment_header(parse_segment_header(data)._replace(version=2)) + data[SEGMENT_HEADER_BYTES:]
    path.write_bytes(later)
    with pytest.raises(UnknownFormat, match="format 2, this program reads up to 1"):
        await open_spool(tmp_path)
    assert path.read_bytes() == later


async def test_a_second_process_is_refused_with_the_first_ones_number(tmp_path):
    """Two writers would destroy a spool in seconds."""
    spool = await open_spool(tmp_path)
    with pytest.raises(SpoolLocked, match=str(os.getpid())):
        await open_spool(tmp_path)
    await spool.aclose()
    await (await open_spool(tmp_path)).aclose()


async def test_interval_durability_shows_events_only_after_their_sync_and_survives_its_failure(tmp_path, caplog):
    """Acknowledged at the write, delivered behind the sync; a failed sync is said and the next segment is good."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files, durability="interval", interval=0.01)
    files.sync_gate.clear()
    cursor = spool.cursor
    await spool.append(batch("a"))
    assert spool.readable == 0
    files.fail("fdatasync", errno.EIO)
    files.sync_gate.set()
    assert messages((await cursor("out").read(1 << 16))[0]) == ["a"]
    await spool.append(batch("b"))
    cursor("out").advance(1)
    assert messages((await cursor("out").read(1 << 16))[0]) == ["b"]
    assert len(segments(tmp_path)) == 2
    assert any("fdatasync failed" in record.getMessage() for record in caplog.records)
    await spool.aclose()


@pytest.mark.parametrize("refused", [0, errno.EIO])
async def test_interval_durability_syncs_a_segment_that_a_failed_write_ended(tmp_path, caplog, refused):
    """What was acknowledged before it must not stay with the kernel for good, and if it does, that is said."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files, durability="interval", interval=0.05)
    cursor = spool.cursor("out")
    await spool.append(batch("a"))
    files.fail("writev", errno.EIO)
    if refused:
        files.fail("fdatasync", refused)
    await spool.append(batch("b"))
    assert await asyncio.wait_for(drain(spool, cursor), 10) == ["a", "b"]
    first, second = segments(tmp_path)
    assert [path for _, path in files.syncs if path.suffix == ".seg"] == [first, second]
    assert ("1 events written since the last one may not survive" in caplog.text) == bool(refused)
    await spool.aclose()


async def test_interval_durability_says_when_a_segment_could_not_be_synced_at_its_end(tmp_path, caplog):
    """The segment is left for good when the next one begins: nobody else would ever learn of it."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files, durability="interval", interval=60.0)
    await spool.append(batch("a" * 6000))
    files.fail("fdatasync", errno.EIO)
    await spool.append(batch("b" * 6000))
    assert "1 events written since the last one may not survive" in caplog.text
    await spool.aclose()


TMPFS = """
mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" - "$1" <<'PYTHON'
import asyncio, os, sys
from pathlib import Path
from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig, offline
from spool_layers import batch, messages

async def main(root):
    config = SpoolConfig(segment_bytes=65536, max_bytes=1 << 30)
    metrics = Metrics()
    spool = await Spool.open(root / "s", stream="t", config=config, metrics=metrics, retry_seconds=0.01)
    (root / "ballast").write_bytes(bytes(700_000))
    tasks = [asyncio.ensure_future(spool.append(batch(f"{i}:" + "x" * 2000))) for i in range(250)]
    while metrics.spool_full.labels("t")._value.get() == 0:
        await asyncio.sleep(0)
    assert not all(task.done() for task in tasks)
    (root / "ballast").unlink()
    await asyncio.gather(*tasks)
    cursor, found = spool.cursor("out"), []
    while cursor.sequence < spool.next_sequence:
        for record in await cursor.read(1 << 16):
            found += [int(text.partition(":")[0]) for text in messages(record)]
            cursor.advance(record.end)
    assert found == list(range(250)), found
    await spool.aclose()
    assert offline.verify(root / "s") == []
    print("all there")

asyncio.run(main(Path(sys.argv[1])))
PYTHON
"""


async def test_a_really_full_file_system_blocks_and_recovers(tmp_path):
    """The same as the simulated full disk, on a tmpfs of one megabyte in a mount namespace of its own."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare to mount a small file system; the simulated full disk is tested above")
    need_namespace()
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", TMPFS, "sh", str(tmp_path), sys.executable],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "all there" in done.stdout, done.stderr
