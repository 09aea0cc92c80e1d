"""Rotation of every kind: by renaming and removing every line arrives once; copytruncate says what it cost."""

import asyncio
import gzip
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from file_site import Memory, append, running

from ndagent.inputs import file_table
from ndagent.inputs.file_identity import Remembered
from ndagent.inputs.file_tail import Tail


@pytest.fixture
def memory():
    return Memory()


WATCH = pytest.mark.parametrize("watch", ["auto", "poll"])


def rotate(log: Path, keep: int) -> None:
    """As logrotate does: .2 to .3, .1 to .2, the live one to .1, and a new live one."""
    for number in range(keep, 0, -1):
        source = Path(f"{log}.{number}")
        if source.exists():
            source.rename(f"{log}.{number + 1}")
    log.rename(f"{log}.1")


async def test_an_inode_that_another_file_got_is_no_gap(tmp_path, memory):
    """The old one was read, let go and removed: nothing is lost, and the new one begins at its beginning."""
    log = tmp_path / "app.log"
    async with running(memory, log, rotate_wait=0.05) as site:
        for turn in range(30):
            append(log, f"{turn} begins with something of its own", "and goes on")
            await site.until(lambda turn=turn: len(memory.events) == 2 * turn + 2)
            log.unlink()
            await site.until(lambda: site.table.open_files == 0)
    assert memory.troubles == []


async def storm_of_renames(site, log: Path, rotations: int, pause: float = 0.0) -> None:
    """Five lines, renamed away under a number of its own, again and again; then every line must have come once."""
    expected = []
    for turn in range(rotations):
        lines = [f"{turn}-{number}" for number in range(5)]
        append(log, *lines[:3])
        with log.open("ab") as still_open:
            log.rename(f"{log}.{turn}")
            still_open.write("".join(f"{line}\n" for line in lines[3:]).encode())  # a writer that was not told yet
        expected += lines
        await asyncio.sleep(pause)
    await site.until(lambda: len(site.memory.events) >= len(expected), 60)
    assert sorted(site.memory.messages) == sorted(expected)
    assert site.memory.troubles == []


@WATCH
@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
async def test_a_hundred_renames_lose_and_double_nothing(tmp_path, memory, watch, glob):
    """Whether the rotated names match the glob or not, by inotify or by polling."""
    async with running(memory, tmp_path / glob, watch=watch) as site:
        await storm_of_renames(site, tmp_path / "app.log", 100)


@pytest.mark.long
async def test_a_thousand_renames_lose_and_double_nothing(tmp_path, memory):
    """More files than may be open, with time for rounds in between."""
    async with running(memory, tmp_path / "app.log", max_open_files=50) as site:
        await storm_of_renames(site, tmp_path / "app.log", 1000, pause=0.005)


@WATCH
async def test_numbered_rotation_renames_files_many_times(tmp_path, memory, watch):
    """app.log.3 was app.log three rotations ago: the same file throughout."""
    log = tmp_path / "app.log"
    expected = []
    async with running(memory, tmp_path / "app.log", watch=watch) as site:
        for turn in range(30):
            append(log, f"line {turn}")
            expected.append(f"line {turn}")
            rotate(log, 40)
            if turn % 7 == 0:
                await site.until_messages(*expected)
        await site.until_messages(*expected)
    assert memory.troubles == []
    assert {event["log"]["file"]["path"] for event in memory.events} == {str(log)}


async def test_what_was_rotated_before_the_first_start_is_left_alone(tmp_path, memory):
    """No glob has it, and it is no successor of anything that we read."""
    log = tmp_path / "app.log"
    append(Path(f"{log}.1"), "old")
    append(log, "one")
    async with running(memory, log) as site:
        await site.until_messages("one")
        for number in range(3):  # each is a look
            rotate(log, 10)
            append(log, f"next {number}")
            await site.until(lambda number=number: f"next {number}" in memory.messages)
    async with running(memory, log) as site:
        append(log, "last")
        await site.until(lambda: "last" in memory.messages)
    assert "old" not in memory.messages


async def delete_and_create(site, log: Path, rotations: int) -> None:
    """The writer removes the file as soon as it has written: what was opened is read to its end."""
    expected = []
    for turn in range(rotations):
        append(log, f"{turn} begins")
        await site.until_message(f"{turn} begins")
        append(log, *(f"{turn}-{number}" for number in range(20)))
        log.unlink()
        expected += [f"{turn} begins", *(f"{turn}-{number}" for number in range(20))]
    await site.until_messages(*expected)
    assert site.memory.troubles == []


async def test_removed_and_made_anew_is_read_to_its_end_each_time(tmp_path, memory):
    """The inode is often the same: a descriptor held is what keeps them apart."""
    async with running(memory, tmp_path / "app.log") as site:
        await delete_and_create(site, tmp_path / "app.log", 20)


async def test_one_that_is_removed_and_read_is_not_missed_when_its_descriptor_goes_to_another(tmp_path, memory):
    """Of a thousand removed ones not all stay open until they are forgotten."""
    async with running(memory, tmp_path / "app.log", max_open_files=2) as site:
        await delete_and_create(site, tmp_path / "app.log", 12)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_thousand_times_removed_and_made_anew(tmp_path, memory):
    """The same, often enough for every order of events."""
    async with running(memory, tmp_path / "app.log") as site:
        await delete_and_create(site, tmp_path / "app.log", 1000)


async def test_a_file_that_lives_shorter_than_a_round_is_read(tmp_path, memory):
    """It is opened when it appears, though nobody reads it yet."""
    log = tmp_path / "app.log"
    async with running(memory, log) as site:
        append(log, "first")
        await site.until_messages("first")
        memory.gate.clear()
        append(log, "busy")
        await site.until(lambda: memory.at_the_gate)
        log.rename(tmp_path / "elsewhere")
        append(log, "short life")
        await site.until(lambda: len(site.plug._watcher._arrivals) > 0)
        log.unlink()
        memory.gate.set()
        await site.until_messages("first", "busy", "short life")


def copytruncate(log: Path, turn: int) -> None:
    shutil.copyfile(log, f"{log}.{turn}")
    os.truncate(log, 0)


@WATCH
@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
async def test_copytruncate_of_a_quiet_file_loses_nothing(tmp_path, memory, watch, glob):
    """What the copy has and we had not read is read there; the copy itself is not read again."""
    log = tmp_path / "app.log"
    expected = []
    async with running(memory, tmp_path / glob, watch=watch) as site:
        for turn in range(12):
            lines = [f"{turn}-{number} {'x' * 50}" for number in range(30)]
            append(log, *lines[:20])
            if turn % 3:
                await site.until_messages(*expected, *lines[:20])
            append(log, *lines[20:])
            copytruncate(log, turn)
            expected += lines
            await site.until_messages(*expected)
        assert len(memory.troubles) <= 12
        assert site.value("nd_input_dropped_events_total", reason="file_replaced") == len(memory.troubles)


async def test_a_copy_that_was_still_empty_when_it_was_first_seen_is_a_copy(tmp_path, memory):
    """The copy's name is there before its content: what a look sees then is no file of its own yet."""
    log, copy = tmp_path / "app.log", tmp_path / "app.log.1"
    async with running(memory, log) as site:
        append(log, "one", "two")
        await site.until_messages("one", "two")
        copy.touch()
        inode = copy.stat().st_ino
        await site.until(lambda: any(key.inode == inode for key in site.table.tails))
        await site.until_quiet()
        copy.write_bytes(log.read_bytes())
        os.truncate(log, 0)
        append(log, "three")
        await site.until_messages("one", "two", "three")
        await site.until_quiet()
    assert memory.messages == ["one", "two", "three"]


async def test_a_copy_made_while_the_file_was_short_is_a_copy_of_it_when_it_was_cut_long(tmp_path, memory):
    """We know more of how the original began than the copy holds."""
    log, copy = tmp_path / "app.log", tmp_path / "app.log.1"
    append(log, "one", "two")
    short = log.read_bytes()
    async with running(memory, log, scan_interval=60.0) as site:
        await site.until_messages("one", "two")
        append(log, "three")
        await site.until_messages("one", "two", "three")
        os.truncate(log, 0)
        copy.write_bytes(short)
        append(log, "four")
        await site.until(lambda: "four" in memory.messages)
        await site.until_quiet()
    assert memory.messages == ["one", "two", "three", "four"]


async def copytruncate_under_load(site, log: Path, rotations: int) -> None:
    """A writer that never pauses: each line arrives once, or a gap is reported; none twice."""
    written = Counter()
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        with log.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(f"line {number}\n".encode())
                written[f"line {number}"] += 1
                number += 1
                if number % 20 == 0:
                    await asyncio.sleep(0.0005)

    writing = asyncio.create_task(write())
    for turn in range(rotations):
        await asyncio.sleep(0.02)
        await asyncio.to_thread(copytruncate, log, turn)
    stop.set()
    await writing
    append(log, "the end")
    await site.until_message("the end")
    await site.until_quiet()
    whole = [event for event in site.memory.events if "tags" not in event]  # a copy may end amid a line
    found = Counter(event["message"] for event in whole)
    assert [line for line, times in found.items() if times > 1] == []
    missing = written - found
    assert not missing or site.memory.troubles
    assert site.value("nd_input_received_events_total") == len(site.memory.events) + len(site.memory.troubles)


@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
async def test_copytruncate_under_load_reports_every_gap(tmp_path, memory, glob):
    """Lossy by nature, never silent."""
    async with running(memory, tmp_path / glob) as site:
        await copytruncate_under_load(site, tmp_path / "app.log", 100)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_thousand_copytruncates_report_every_gap(tmp_path, memory):
    """The same for longer."""
    async with running(memory, tmp_path / "app.log") as site:
        await copytruncate_under_load(site, tmp_path / "app.log", 1000)


async def test_a_cut_file_begins_again_and_the_gap_is_an_event_a_count_and_a_log_line(tmp_path, memory, caplog):
    """`> app.log`: what is known of the loss is said."""
    log = tmp_path / "app.log"
    append(log, "one", "two")
    async with running(memory, log) as site:
        await site.until_messages("one", "two")
        log.write_bytes(b"three\n")
        await site.until_messages("one", "two", "three")
        (trouble,) = memory.troubles
        assert trouble["log"] == {"file": {"path": str(log)}, "offset": 8}
        assert "cut or replaced at byte 8" in trouble["message"]
        assert site.value("nd_input_dropped_events_total", reason="file_replaced") == 1
    assert caplog.text.count("create instead of copytruncate") == 1


async def test_a_file_written_anew_beyond_the_old_position_is_noticed(tmp_path, memory):
    """Its size tells nothing: the bytes before the position do."""
    log = tmp_path / "app.log"
    append(log, "old")
    async with running(memory, log, watch="poll") as site:
        await site.until_messages("old")
        with log.open("r+b") as file:
            file.write(b"new 1\nnew 2\nnew 3\n")
        await site.until_messages("old", "new 1", "new 2", "new 3")
        assert len(memory.troubles) == 1


async def test_a_reused_inode_with_other_content_is_another_file(tmp_path, memory):
    """Between two runs, or after the old one was let go."""
    log = tmp_path / "app.log"
    append(log, "old " * 20)
    async with running(memory, log) as site:
        await site.until_messages("old " * 20)
    inode = log.stat().st_ino
    with log.open("r+b") as file:  # the same inode for certain: written in place
        file.write(b"new file\n" * 20)
    assert log.stat().st_ino == inode
    async with running(memory, log) as site:
        await site.until_messages("old " * 20, *["new file"] * 20)


async def test_a_hole_left_by_a_writer_that_does_not_append_is_skipped(tmp_path, memory, caplog):
    """The file looks large and is mostly NUL bytes: megabytes of them are passed by without reading them as a line."""
    log = tmp_path / "app.log"
    async with running(memory, log) as site:
        with log.open("wb", buffering=0) as writer:
            writer.write(b"x" * 999 + b"\n")
            writer.seek(5_000_000)
            writer.write(b"behind five megabytes\n")
            await site.until_messages("x" * 999, "behind five megabytes")
            os.truncate(log, 0)
            await site.until(lambda: memory.troubles)
            writer.write(b"after the cut\n")
            await site.until_messages("x" * 999, "behind five megabytes", "after the cut")
            writer.write(b"and on\n")
            await site.until_messages("x" * 999, "behind five megabytes", "after the cut", "and on")
    assert "NUL bytes" in caplog.text


async def test_a_file_removed_before_it_was_read_is_reported(tmp_path, memory):
    """It was closed to keep within max_open_files, and is gone with what nobody read."""
    logs = [tmp_path / f"{number}.log" for number in range(4)]
    async with running(memory, tmp_path / "*.log", max_open_files=2) as site:
        append(logs[0], "one")
        await site.until_messages("one")
        for log in logs[1:]:
            append(log, log.name)
        await site.until(lambda: len(memory.messages) == 4)
        memory.gate.clear()
        append(logs[3], "busy")
        await site.until(lambda: memory.at_the_gate)
        append(logs[0], "two")
        await asyncio.sleep(0.4)
        tail: Tail = next(one for one in site.table.tails.values() if one.path == str(logs[0]))
        tail.size = logs[0].stat().st_size  # as a look between would have seen it
        tail.has_news = True
        logs[0].unlink()
        memory.gate.set()
        await site.until(lambda: memory.troubles)
    assert "4 bytes known to be unread" in memory.troubles[0]["message"]


def compress_and_rotate(log: Path, *lines: str) -> None:
    """As logrotate does with delaycompress: app.log.1 is app.log.2.gz, app.log is app.log.1, and there is a new one."""
    first = Path(f"{log}.1")
    if first.exists():
        Path(f"{log}.2.gz").write_bytes(gzip.compress(first.read_bytes()))
        first.unlink()
    log.rename(first)
    append(log, *lines)


async def test_a_file_rotated_twice_while_nobody_looked_is_told_and_its_successor_read(tmp_path, memory):
    """What was read is compressed by now: its last lines are lost, and said to be; app.log.1 is whole, and read."""
    log = tmp_path / "app.log"
    append(Path(f"{log}.7"), "from before us")
    os.utime(f"{log}.7", (1, 1))
    append(log, "one")
    async with running(memory, log) as site:
        await site.until_messages("one")
    append(log, "lost with it")
    keeper = log.open()  # so that no other file gets its inode
    compress_and_rotate(log, "two")
    compress_and_rotate(log, "three")
    for _ in range(2):  # told once
        async with running(memory, log) as site:
            await site.until_messages("one", "two", "three")
            await site.until(lambda: memory.troubles)
            await site.until_quiet()
    keeper.close()
    (trouble,) = memory.troubles
    assert "was removed or compressed while nobody looked" in trouble["message"]
    assert (trouble["log"]["file"]["path"], trouble["log"]["offset"]) == (str(log), 4)


@pytest.mark.parametrize("start", ["beginning", "end"])
async def test_a_file_that_came_and_was_rotated_while_nobody_looked_is_read(tmp_path, memory, start):
    """Nothing is known of its name; what was rotated before the first start stays left alone, then and later."""
    log, old, new = (tmp_path / name for name in ("app.log", "old.log.1", "new.log.1"))
    append(old, "from before us")
    async with running(memory, tmp_path / "*.log", start=start) as site:
        append(log, "one")
        await site.until_messages("one")
        (moment,) = (int(part) for key, part in memory.table.items() if not key)
    append(new, "two")
    os.utime(new, ns=(moment + 10**9, moment + 10**9))
    for line in ("three", "four"):
        async with running(memory, tmp_path / "*.log", start=start) as site:
            append(log, line)
            await site.until(lambda line=line: {"two", line} <= set(memory.messages))
            await site.until_quiet()
    assert sorted(memory.messages) == ["four", "one", "three", "two"]
    assert memory.troubles == []


async def test_a_file_that_was_read_and_removed_is_no_news_after_a_restart(tmp_path, memory):
    """Its position is kept for a day all the same."""
    log, other = tmp_path / "app.log", tmp_path / "other.log"
    append(log, "one")
    append(other, "two")
    async with running(memory, tmp_path / "*.log", rotate_wait=0.0) as site:
        await site.until_messages("one", "two")
        log.unlink()
        await site.until(lambda: any(tail.is_over for tail in site.table.tails.values()))
        append(other, "three")
        await site.until_messages("one", "two", "three")
    async with running(memory, tmp_path / "*.log") as site:
        append(other, "four")
        await site.until_messages("one", "two", "three", "four")
        await site.until_quiet()
    assert memory.troubles == []


def remembered_over(memory: Memory) -> list[bool]:
    """Of each file in the checkpoint whether it is gone and read."""
    return [Remembered.unpack(part).is_over for key, part in memory.table.items() if key]


async def test_that_a_file_was_read_and_removed_is_saved_without_another_line(tmp_path, memory):
    """Neither a line nor a look needs to come before the stop."""
    log = tmp_path / "app.log"
    append(log, "one")
    async with running(memory, log, scan_interval=3600) as site:
        await site.until_messages("one")
        log.unlink()
        await site.until(lambda: remembered_over(memory) == [True])
    async with running(memory, log) as site:
        await site.until(lambda: site.table.tails)
        await site.until_quiet()
    assert memory.troubles == []


async def test_positions_of_an_earlier_version_do_not_tell_what_was_missed(tmp_path, memory):
    """It did not keep which files were gone and read: after the update each of them would be told of."""
    log, other = tmp_path / "app.log", tmp_path / "other.log"
    append(log, "one")
    append(other, "two")
    async with running(memory, tmp_path / "*.log") as site:
        await site.until_messages("one", "two")
    memory.table[b""] = b"1"
    log.unlink()
    for line in ("three", "four"):  # the second start has a checkpoint of this version
        async with running(memory, tmp_path / "*.log") as site:
            append(other, line)
            await site.until(lambda line=line: line in memory.messages)
            await site.until_quiet()
    assert memory.troubles == []


async def test_a_rotated_file_of_an_earlier_versions_positions_is_not_missed_later(tmp_path, memory):
    """It was there after the update still, and read; that it is removed then is no loss, one start more or less."""
    log = tmp_path / "app.log"
    append(log, "one")
    async with running(memory, log) as site:
        await site.until_messages("one")
        rotate(log, 1)
        append(log, "two")
        await site.until_messages("one", "two")
    for key, part in memory.table.items():
        memory.table[key] = Remembered.unpack(part)._replace(is_over=False).pack() if key else b"1"
    for line in ("three", "four"):
        async with running(memory, log) as site:
            append(log, line)
            await site.until(lambda line=line: line in memory.messages)
            await site.until_quiet()
        Path(f"{log}.1").unlink(missing_ok=True)
    assert memory.troubles == []


async def test_a_file_that_was_seen_and_never_read_is_missed_after_a_restart(tmp_path, memory):
    """The spool took nothing while it was there, and it went while nobody looked."""
    log, other = tmp_path / "app.log", tmp_path / "other.log"
    append(other, "one")
    async with running(memory, tmp_path / "*.log") as site:
        await site.until_messages("one")
        memory.gate.clear()
        append(log, "never read")
        await site.until(lambda: memory.at_the_gate)
    memory.gate.set()
    log.unlink()
    async with running(memory, tmp_path / "*.log") as site:
        await site.until(lambda: memory.troubles)
        append(other, "two")
        await site.until_messages("one", "two")
    assert [one["log"]["file"]["path"] for one in memory.troubles] == [str(log)]


async def test_another_file_that_got_the_inode_is_not_read(tmp_path, memory):
    """No glob has it: it was only found where the file that we knew is looked for."""
    log, private = tmp_path / "app.log", tmp_path / "private.txt"
    append(log, "one")
    async with running(memory, log) as site:
        await site.until_messages("one")
    log.rename(private)
    private.write_text("something that nobody asked for\n")
    async with running(memory, log) as site:
        await site.until(lambda: memory.troubles)
        append(log, "two")
        await site.until_messages("one", "two")


async def test_late_lines_in_a_renamed_file_are_read_for_rotate_wait(tmp_path, memory):
    """Then it is closed, but found again if a glob has its name."""
    log = tmp_path / "app.log"
    append(log, "one")
    async with running(memory, tmp_path / "app.*", rotate_wait=0.3) as site:
        await site.until_messages("one")
        log.rename(tmp_path / "app.old")
        append(tmp_path / "app.old", "late")
        await site.until_messages("one", "late")
        append(tmp_path / "app.old", "later")
        await site.until_messages("one", "late", "later")


async def test_a_removed_files_half_line_is_delivered_before_it_is_let_go(tmp_path, memory):
    """It gets no end any more."""
    log = tmp_path / "app.log"
    log.write_text("whole\nhalf")
    async with running(memory, log, rotate_wait=0.2) as site:
        await site.until_messages("whole")
        log.unlink()
        await site.until_messages("whole", "half")
        assert memory.events[-1]["tags"] == ["_truncated"]
        await site.until(lambda: site.table.open_files == 0)


async def test_compressed_rotated_files_are_read_once_and_not_what_was_read_before(tmp_path, memory):
    """app.log.1 was read, and is app.log.2.gz now; other.log.1.gz was there before us."""
    log, old = tmp_path / "app.log", tmp_path / "old.log.1.gz"
    old.write_bytes(gzip.compress(b"old 1\nold 2"))
    os.utime(old, (1, 1))
    expected = ["old 1", "old 2", "a", "b", "c"]
    async with running(memory, tmp_path / "*.log*", read_gzip=True, rotate_wait=0.2) as site:
        append(log, "a", "b")
        await site.until_messages("old 1", "old 2", "a", "b")
        log.rename(tmp_path / "app.log.1")
        append(tmp_path / "app.log.1", "c")
        await site.until_messages(*expected)
        compressed = tmp_path / "app.log.2.gz"
        compressed.write_bytes(gzip.compress((tmp_path / "app.log.1").read_bytes()))
        os.utime(compressed, (1, 1))
        (tmp_path / "app.log.1").unlink()
        paths = {tail.path for tail in site.table.tails.values()}
        await site.until(lambda: str(compressed) in {one.path for one in site.table.tails.values() if one.is_finished})
        assert str(compressed) not in paths
        append(log, "d")
        await site.until_messages(*expected, "d")
    async with running(memory, tmp_path / "*.log*", read_gzip=True) as site:
        append(log, "e")
        await site.until_messages(*expected, "d", "e")
    assert memory.troubles == []


async def compressed_while_nobody_looked(tmp_path, memory, text: bytes, *, age_seconds: float, **settings) -> None:
    """app.log was read to `one`; when it is looked at again, this text is in app.log.1.gz, and there is a new one."""
    log, packed = tmp_path / "app.log", tmp_path / "app.log.1.gz"
    append(log, "one")
    async with running(memory, tmp_path / "app.log*", read_gzip=True, **settings) as site:
        await site.until_messages("one")
    with log.open():  # so that no other file gets its inode
        log.unlink()
        packed.write_bytes(gzip.compress(text))
        os.utime(packed, (time.time() - age_seconds,) * 2)
        append(log, "new")
        for _ in range(2):
            async with running(memory, tmp_path / "app.log*", read_gzip=True, **settings) as site:
                await site.until(lambda: "two" in memory.messages and "new" in memory.messages)
                await site.until_quiet()


@pytest.mark.parametrize("age_seconds", [60, 0])
@pytest.mark.parametrize("rotate_wait", [30.0, 0.0])
async def test_what_was_compressed_while_nobody_looked_is_read_on_and_no_loss(
    tmp_path, memory, monkeypatch, age_seconds, rotate_wait
):
    """Also where the compressed file has not settled yet when the other one is missed."""
    monkeypatch.setattr(file_table, "SETTLED_SECONDS", 0.5)
    settings = {"age_seconds": age_seconds, "rotate_wait": rotate_wait}
    await compressed_while_nobody_looked(tmp_path, memory, b"one\ntwo\n", **settings)
    assert sorted(memory.messages) == ["new", "one", "two"]
    assert memory.troubles == []


async def test_a_compressed_file_that_is_of_another_one_explains_no_loss(tmp_path, memory):
    """It is read, and shows that what is missed is not in it."""
    await compressed_while_nobody_looked(tmp_path, memory, b"two\n", age_seconds=60)
    assert sorted(memory.messages) == ["new", "one", "two"]
    (trouble,) = memory.troubles
    assert "was removed or compressed while nobody looked" in trouble["message"]


async def test_a_compressed_file_that_cannot_be_read_does_not_put_off_the_loss_for_ever(tmp_path, memory, monkeypatch):
    """Here it never settles."""
    monkeypatch.setattr(file_table, "SETTLED_SECONDS", 1e9)
    monkeypatch.setattr(file_table, "COMPRESSED_SECONDS", 0.5)
    log = tmp_path / "app.log"
    append(log, "one")
    async with running(memory, tmp_path / "app.log*", read_gzip=True) as site:
        await site.until_messages("one")
    packed = tmp_path / "app.log.1.gz"
    packed.write_bytes(gzip.compress(b"one\n"))  # first: it must not get the inode
    log.unlink()
    async with running(memory, tmp_path / "app.log*", read_gzip=True) as site:
        await site.until(lambda: memory.troubles)
    assert "was removed or compressed while nobody looked" in memory.troubles[0]["message"]


async def test_compressed_files_are_not_read_as_text(tmp_path, memory):
    """Without read_gzip they are passed over, whatever the glob says."""
    (tmp_path / "app.log.1.gz").write_bytes(gzip.compress(b"no\n"))
    append(tmp_path / "app.log", "yes")
    async with running(memory, tmp_path / "app.log*") as site:
        await site.until_messages("yes")
        await asyncio.sleep(0.4)
        assert memory.messages == ["yes"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [(gzip.compress(b"one\ntwo\n")[:-12], "cut short"), (gzip.compress(b"one\n") + b"garbage", "damaged"),
     (gzip.compress(b"one\n" + b"\n" * 200_000), "more than gzip_max_bytes")],
    ids=["cut", "garbage", "bomb"],
)  # fmt: skip
async def test_a_compressed_file_that_is_damaged_or_a_bomb_ends_with_a_word(tmp_path, memory, caplog, data, expected):
    """What came before counts, memory is bounded, and it is said."""
    path = tmp_path / "a.log.gz"
    path.write_bytes(data)
    os.utime(path, (1, 1))
    async with running(memory, path, read_gzip=True, gzip_max_bytes=100_000) as site:
        await site.until(lambda: expected in caplog.text)
    assert memory.messages[:1] in ([], ["one"])


async def test_gzip_members_and_lines_across_steps(tmp_path, memory):
    """Two members are one text, and a text of megabytes comes in pieces."""
    lines = [f"line {number} {'y' * 90}" for number in range(40_000)]
    half = len(lines) // 2
    path = tmp_path / "a.log.gz"
    members = ["".join(f"{line}\n" for line in part).encode() for part in (lines[:half], lines[half:])]
    path.write_bytes(b"".join(map(gzip.compress, members)))
    os.utime(path, (1, 1))
    async with running(memory, path, read_gzip=True) as site:
        await site.until(lambda: len(memory.events) >= len(lines))
    assert memory.messages == lines


async def test_many_rotated_files_are_told_apart_through_few_descriptors(tmp_path, memory):
    """Each new one is compared with those like it, and none is closed while it is looked at."""
    log = tmp_path / "app.log"
    append(log, "known")
    async with running(memory, log) as site:
        await site.until_messages("known")
    expected = ["known"]
    for turn in range(40):
        log.rename(f"{log}.{turn}")
        append(log, "the same beginning", f"line {turn}")
        expected += ["the same beginning", f"line {turn}"]
    async with running(memory, log, max_open_files=2) as site:
        await site.until_messages(*expected)
        assert site.table.open_files <= 2
    assert memory.troubles == []


async def test_a_compressed_file_is_read_once_it_has_settled(tmp_path, memory, monkeypatch):
    """It is written in one go, and half of it is no gzip."""
    monkeypatch.setattr(file_table, "SETTLED_SECONDS", 0.3)
    path = tmp_path / "a.log.1.gz"
    data = gzip.compress(b"one\ntwo\n")
    async with running(memory, tmp_path / "a.log*", read_gzip=True) as site:
        path.write_bytes(data[:10])
        path.write_bytes(data)
        await site.until_messages("one", "two")


async def test_start_end_passes_over_compressed_files_too(tmp_path, memory):
    """After a restart as well."""
    path = tmp_path / "a.log.1.gz"
    path.write_bytes(gzip.compress(b"old\n"))
    os.utime(path, (1, 1))
    for line in ("one", "two"):
        async with running(memory, tmp_path / "a.log*", read_gzip=True, start="end") as site:
            append(tmp_path / "a.log", line)
            await site.until(lambda line=line: line in memory.messages)
    assert memory.messages == ["one", "two"]
