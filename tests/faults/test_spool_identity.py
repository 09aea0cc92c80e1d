"""`<spool id>-<sequence>` names one event for ever, and a cursor is known again, whatever came between two starts."""

import asyncio
import errno
import random

import pytest
from spool_layers import CrashFiles, FaultyFiles, batch, messages

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig, offline

SMALL = SpoolConfig(segment_bytes=8192, max_bytes=1 << 20, tip_bytes=0)


class Everything(random.Random):
    """What a power cut may take, it takes."""

    def random(self):
        return 0.0

    def randint(self, least, _most):
        return least


async def open_spool(directory, files=None, **settings):
    config = SMALL.model_copy(update=settings)
    return await Spool.open(directory, stream="test", config=config, metrics=Metrics(), files=files, retry_seconds=0.01)


async def named(spool, cursor):
    """Every event from the cursor on, by its name."""
    found = {}
    while cursor.sequence < spool.next_sequence:
        for record in await cursor.read(1 << 16):
            found |= {(record.spool_id, record.sequence + at): text for at, text in enumerate(messages(record))}
            cursor.advance(record.end)
    return found


async def kill(spool, files):
    """The process is gone; what it wrote is in the page cache."""
    spool._tasks[0].cancel()
    await asyncio.wait(spool._tasks)
    await asyncio.get_running_loop().run_in_executor(spool._thread, int)
    spool._thread.shutdown()
    files.operations_left = None
    for fd in list(files.paths):
        files.close(fd)


@pytest.mark.parametrize(("first", "operations"), [("in the same file", 1), ("x" * 8000, 3)])
async def test_what_a_kill_left_in_the_page_cache_is_synced_before_anyone_reads_it(tmp_path, first, operations):
    """Otherwise outputs see names that a power cut takes back and later events get: data or the file's own name."""
    files = CrashFiles()
    spool = await open_spool(tmp_path, files)
    await spool.append(batch(first))
    files.operations_left = operations  # the record's fdatasync, or that of the new file's name, never comes
    lost = asyncio.ensure_future(spool.append(batch("not acknowledged")))
    await asyncio.wait(spool._tasks)
    lost.cancel()
    await kill(spool, files)

    spool = await open_spool(tmp_path, files)
    seen = await named(spool, spool.cursor("out"))
    assert "not acknowledged" in seen.values()
    await kill(spool, files)
    files.crash(tmp_path, Everything(), holes=False)

    spool = await open_spool(tmp_path, files)
    await spool.append(batch("another event"))
    for name, text in (await named(spool, spool.cursor("out"))).items():
        assert seen.setdefault(name, text) == text
    await spool.aclose()


async def test_a_tail_that_nobody_can_count_gets_a_new_spool_id(tmp_path):
    """It counts as one event but may have been hundreds, whose names outputs have seen."""
    spool = await open_spool(tmp_path)
    await spool.append(batch("a"))
    await spool.append(batch(*"bcdefgh"))
    seen = await named(spool, spool.cursor("out"))
    await spool.aclose()
    (path,) = tmp_path.glob("*.seg")
    data = path.read_bytes()
    path.write_bytes(data[:-120] + b"\xee" * 120)

    spool = await open_spool(tmp_path)
    await spool.append(batch(*"ijklm"))
    for name, text in (await named(spool, spool.cursor("out"))).items():
        assert seen.setdefault(name, text) == text
    await spool.aclose()


async def test_a_tail_that_the_disk_cannot_read_is_kept_and_counted(tmp_path):
    """EIO is not what a crash leaves: nothing acknowledged is cut off for it, and no name is given twice."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files, segment_bytes=65536)
    for text in ("a" * 3000, "b" * 2000, "c" * 2000):
        await spool.append(batch(text, "more"))
    cursor = spool.cursor("out")
    await spool.aclose()
    (path,) = tmp_path.glob("*.seg")
    size = path.stat().st_size

    files.bad_bytes = range(4096, 1 << 20)
    spool = await open_spool(tmp_path, files, segment_bytes=65536)
    assert path.stat().st_size == size
    old_id = offline.summarise(tmp_path).spool_id
    assert spool.spool_id != old_id
    cursor = spool.cursor("out")
    await spool.append(batch("later", "and", "more"))
    files.bad_bytes = range(4096, path.stat().st_size)
    assert [text[:5] for text in (await named(spool, cursor)).values()] == ["aaaaa", "more", "later", "and", "more"]
    assert cursor.account().quarantined == 3  # two by a header that can be read, and one
    await spool.aclose()


async def test_a_record_that_can_be_read_again_does_not_hide_what_was_appended_meanwhile(tmp_path):
    """It was counted as one event when the next segment began; as it holds more, it may not swallow those behind it."""
    files = FaultyFiles()
    spool = await open_spool(tmp_path, files)
    await spool.append(batch(*"abcdef"))
    spool.cursor("out")
    await spool.aclose()
    files.bad_bytes = range(1 << 20)
    spool = await open_spool(tmp_path, files)
    await spool.append(batch("acknowledged"))
    files.bad_bytes = None
    cursor = spool.cursor("out")
    assert "acknowledged" in (await named(spool, cursor)).values()
    assert cursor.account().pending == 0
    await spool.aclose()


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_a_cursor_is_known_again_after_starts_that_appended_nothing(tmp_path, durability):
    """A new spool id that no segment bears yet must not make cursors strangers: everything would be sent again."""
    spool = await open_spool(tmp_path, durability="os")
    for text in "abc":
        await spool.append(batch(text))
    cursor = spool.cursor("out")
    await named(spool, cursor)
    await cursor.save()
    await spool.aclose()
    for _ in range(3):
        spool = await open_spool(tmp_path, durability=durability)
        cursor = spool.cursor("out")
        assert await named(spool, cursor) == {}
        await cursor.save()
        await spool.aclose()
    spool = await open_spool(tmp_path, durability=durability)
    await spool.append(batch("d"))
    await spool.aclose()
    spool = await open_spool(tmp_path, durability=durability)
    assert list((await named(spool, spool.cursor("out"))).values()) == ["d"]
    assert spool.cursor("out").account().delivered == 4
    await spool.aclose()


async def test_turning_durability_off_begins_a_new_spool_id(tmp_path):
    """What is written without sync may vanish whole, back to the synced segment whose id must not be used again."""
    spool = await open_spool(tmp_path)
    await spool.append(batch("a"))
    await spool.aclose()
    spool = await open_spool(tmp_path, durability="os")
    await spool.append(batch("seen by outputs"))
    cursor = spool.cursor("out")
    seen = await named(spool, cursor)
    await spool.aclose()
    sorted(tmp_path.glob("*.seg"))[1].write_bytes(b"")

    spool = await open_spool(tmp_path)
    await spool.append(batch("another event"))
    for name, text in (await named(spool, spool.cursor("again"))).items():
        assert seen.setdefault(name, text) == text
    await spool.aclose()


async def test_cursors_found_at_a_start_hold_their_segments_before_any_of_them_is_saved(tmp_path):
    """Saving the first one deletes what no cursor needs: the others must be among those asked."""
    spool = await open_spool(tmp_path, durability="os")
    fast, slow = spool.cursor("fast"), spool.cursor("slow")
    for text in "abc":
        await spool.append(batch(text + "x" * 6000))
    fast.advance(spool.next_sequence)
    await asyncio.gather(fast.save(), slow.save())
    await spool.aclose()
    spool = await open_spool(tmp_path, durability="os")
    assert [text[0] for text in (await named(spool, spool.cursor("slow"))).values()] == list("abc")
    await spool.aclose()


async def test_a_new_spool_id_does_not_let_go_of_the_old_one_before_every_cursor_is_saved_under_it(tmp_path):
    """A cursor saved under an id that no segment bears any more would be a stranger: all would be sent again."""
    spool = await open_spool(tmp_path)
    await spool.append(batch("a" + "x" * 6000))
    fast, dead = spool.cursor("fast"), spool.cursor("dead")
    for cursor in (fast, dead):
        cursor.advance(1)
        await cursor.save()
    await spool.aclose()
    spool = await open_spool(tmp_path, durability="os")
    await spool.append(batch("b"))
    fast = spool.cursor("fast")
    fast.advance(2)
    await fast.save()
    await spool.append(batch("c"))
    await spool.aclose()
    spool = await open_spool(tmp_path, durability="os")
    assert list((await named(spool, spool.cursor("dead"))).values()) == ["b", "c"]
    assert spool.cursor("dead").account().delivered == 3
    await spool.aclose()


class FullOnce(CrashFiles):
    """The first write into a segment finds no room."""

    is_full = True

    def writev(self, fd, pieces, offset):
        if self.is_full and self.paths[fd].suffix == ".seg":
            self.is_full = False
            raise OSError(errno.ENOSPC, "no room")
        return super().writev(fd, pieces, offset)


@pytest.mark.parametrize("operations", [*range(1, 14), None])
@pytest.mark.parametrize("is_power_cut", [False, True])
async def test_a_full_disk_takes_the_last_segment_of_an_old_id_and_no_cursor_with_it(
    tmp_path, operations, is_power_cut
):
    """Cursors are saved under the new id before a segment bears it, or they would begin their account anew."""
    files = FullOnce()
    files.is_full = False
    spool = await open_spool(tmp_path, files)
    await spool.append(batch("a", "b"))
    cursor = spool.cursor("out")
    cursor.advance(2)
    await cursor.save()
    await spool.aclose()
    spool = await open_spool(tmp_path, files, durability="os")
    files.is_full, files.operations_left = True, operations
    waiting = asyncio.ensure_future(spool.append(batch("c")))
    await asyncio.wait({waiting, *spool._tasks}, return_when=asyncio.FIRST_COMPLETED)
    is_acknowledged = waiting.done()
    waiting.cancel()
    await kill(spool, files)
    assert not is_acknowledged or len(list(tmp_path.glob("*.seg"))) == 1
    if is_power_cut:
        files.crash(tmp_path, Everything(), holes=False)

    spool = await open_spool(tmp_path, files)
    cursor = spool.cursor("out")
    assert cursor.account().delivered == 2
    assert set((await named(spool, cursor)).values()) <= {"c"}
    await spool.aclose()
