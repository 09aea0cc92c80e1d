"""Inputs get back the position of their newest durable record: after a stop, a crash, a damaged file, a full disk."""

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Self

import pytest
from spool_layers import ORIGIN, FaultyFiles

from ndagent.core import checkpoints as module
from ndagent.core.checkpoints import Checkpoints
from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig
from ndagent.core.spool.files import OsFiles
from ndagent.wire.record import Batch, Checkpoint, Flags, Framing, Section

STREAM = "security_events"
SMALL = SpoolConfig(segment_bytes=8192, max_bytes=1 << 20, tip_bytes=4096)


def batch(text: str, checkpoint: Checkpoint | None, size: int = 0) -> Batch:
    line = f"{text}{'x' * size}\n".encode()
    section = Section(ORIGIN, Framing.LF, Flags.NONE, len(line), 1)
    return Batch(STREAM, "ecs", 1, [section], [line], checkpoint)


class Machine:
    """A spool with its checkpoints, as an agent's composition root puts them together."""

    def __init__(self, state_dir: Path, config: SpoolConfig = SMALL, files=None) -> None:
        self.state_dir, self.config, self.files = state_dir, config, files

    async def __aenter__(self) -> Self:
        self.checkpoints = await Checkpoints.recover(self.state_dir, files=self.files)
        directory = self.state_dir / "spool" / STREAM
        self.spool = await Spool.open(directory, stream=STREAM, config=self.config, metrics=Metrics())
        await self.checkpoints.attach({STREAM: self.spool})
        self.accept = self.checkpoints.accept(self.spool.append)
        return self

    async def __aexit__(self, *error) -> None:
        await self.spool.aclose()  # without checkpoints.aclose(): the spool's records must be enough


async def test_a_position_comes_back_from_the_record_alone(tmp_path):
    """Nothing was saved beside the spool, as after a kill -9 in the first second."""
    async with Machine(tmp_path) as one:
        await one.accept(batch("a", Checkpoint("journald", b"7")))
        await one.accept(batch("b", Checkpoint("journald", b"8")))
        await one.accept(batch("c", None))
        assert one.checkpoints.last("journald") == b"8"
    async with Machine(tmp_path) as one:
        assert one.checkpoints.last("journald") == b"8"
        assert one.checkpoints.last("other") is None
        assert one.checkpoints.parts("journald") == {}


async def test_parts_change_one_by_one_and_an_empty_one_is_forgotten(tmp_path):
    """A thousand files need not stand in every record."""
    async with Machine(tmp_path) as one:
        await one.accept(batch("a", Checkpoint("file", {b"1": b"x", b"2": b"y"})))
        await one.checkpoints.aclose()
        await one.accept(batch("b", Checkpoint("file", {b"2": b"z", b"3": b"w"})))
        await one.accept(batch("c", Checkpoint("file", {b"1": b""})))
        assert one.checkpoints.parts("file") == {b"2": b"z", b"3": b"w"}
    async with Machine(tmp_path) as one:
        assert one.checkpoints.parts("file") == {b"2": b"z", b"3": b"w"}


async def test_a_noted_position_is_durable_without_a_record(tmp_path):
    """`start: end` passes over a file's content, and must not come back to it."""
    async with Machine(tmp_path) as one:
        await one.checkpoints.note(Checkpoint("file", {b"k": b"end"}), stream=STREAM)
    async with Machine(tmp_path) as one:
        assert one.checkpoints.parts("file") == {b"k": b"end"}


async def test_an_input_that_was_given_another_stream_goes_on_where_it_was(tmp_path):
    """And where it is by then, after the next start: the place that its former stream knew is not gone back to."""
    spools = {}

    async def opened() -> Checkpoints:
        checkpoints = await Checkpoints.recover(tmp_path)
        for stream in ("alerts", STREAM):
            directory = tmp_path / "spool" / stream
            spools[stream] = await Spool.open(directory, stream=stream, config=SMALL, metrics=Metrics())
        await checkpoints.attach(spools)
        return checkpoints

    checkpoints = await opened()
    await checkpoints.note(Checkpoint("journald", b"7"), stream="alerts")
    assert checkpoints.last("journald") == b"7"
    await checkpoints.accept(spools[STREAM].append)(batch("a", Checkpoint("journald", b"8")))
    assert checkpoints.last("journald") == b"8"
    await checkpoints.aclose()
    for spool in spools.values():
        await spool.aclose()
    checkpoints = await opened()
    assert checkpoints.last("journald") == b"8"
    for spool in spools.values():
        await spool.aclose()


async def test_a_stream_without_positions_does_not_keep_what_was_delivered(tmp_path):
    """Host metrics have none: their spool must not fill with what the collector has had for long."""
    async with Machine(tmp_path) as one:
        cursor = one.spool.cursor("out")
        saving = asyncio.create_task(one.checkpoints.run())
        for number in range(40):
            await one.accept(batch(str(number), None, size=1000))
        cursor.advance(one.spool.next_sequence)
        deadline = time.monotonic() + 10
        while one.spool.first_sequence < 30 and time.monotonic() < deadline:
            await cursor.save()
            await asyncio.sleep(0.02)
        saving.cancel()
        assert one.spool.first_sequence >= 30
    saved = module._load(OsFiles(), tmp_path / "checkpoints" / f"{STREAM}.checkpoint")
    assert saved.mark >= 30  # nor is the backlog read at the next start


async def test_records_are_not_deleted_before_their_checkpoint_was_saved(tmp_path):
    """All outputs have passed them, and yet the start needs them."""
    async with Machine(tmp_path) as one:
        cursor = one.spool.cursor("out")
        for number in range(40):
            await one.accept(batch("a", Checkpoint(f"in{number}", b"%d" % number), size=1000))
        cursor.advance(one.spool.next_sequence)
        await cursor.save()
        assert one.spool.first_sequence == 0
    async with Machine(tmp_path) as one:
        assert [one.checkpoints.last(f"in{number}") for number in range(40)] == [b"%d" % n for n in range(40)]
        cursor = one.spool.cursor("out")
        await one.checkpoints.aclose()
        await cursor.save()
        assert one.spool.first_sequence > 0  # held only as long as needed
    async with Machine(tmp_path) as one:
        assert one.checkpoints.last("in0") == b"0"


async def test_a_save_says_only_what_records_below_its_mark_cannot_change(tmp_path):
    """A save amid two accepts: the second one's record lies behind the mark, and is read again."""
    async with Machine(tmp_path) as one:
        gate = asyncio.Event()

        async def slow(item: Batch) -> None:
            await one.spool.append(item)
            await gate.wait()  # durable, and we do not know it yet

        waiting = asyncio.create_task(one.checkpoints.accept(slow)(batch("a", Checkpoint("one", b"1"))))
        while one.spool.next_sequence == 0:
            await asyncio.sleep(0)
        await one.accept(batch("b", Checkpoint("two", b"2")))
        await one.checkpoints.aclose()
        waiting.cancel()
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with Machine(tmp_path) as one:
        assert (one.checkpoints.last("one"), one.checkpoints.last("two")) == (b"1", b"2")


async def test_a_cancelled_accept_is_seen_through(tmp_path):
    """An input that is stopped and started again must not begin before what is durable."""
    async with Machine(tmp_path) as one:
        task = asyncio.create_task(one.accept(batch("a", Checkpoint("one", b"1"))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (one.spool.next_sequence, one.checkpoints.last("one")) == (1, b"1")


async def test_a_file_of_another_spool_does_not_hide_this_ones_records(tmp_path):
    """Somebody removed the spool's directory: sequences start again, and the old mark means nothing."""
    async with Machine(tmp_path) as one:
        for _ in range(5):
            await one.accept(batch("a", Checkpoint("one", b"old")))
        await one.checkpoints.aclose()
    file = tmp_path / "checkpoints" / f"{STREAM}.checkpoint"
    before = file.read_bytes()
    for path in (tmp_path / "spool" / STREAM).glob("*.seg"):
        path.unlink()
    async with Machine(tmp_path) as one:
        assert one.checkpoints.last("one") == b"old"
        await one.accept(batch("a", Checkpoint("one", b"new")))
    file.write_bytes(before)  # killed before it could be saved under the new spool
    async with Machine(tmp_path) as one:
        assert one.checkpoints.last("one") == b"new"


async def test_a_damaged_file_costs_only_what_is_not_in_the_spool(tmp_path, caplog):
    """It is said, and the records speak for themselves."""
    async with Machine(tmp_path) as one:
        await one.accept(batch("a", Checkpoint("one", b"1")))
        await one.checkpoints.aclose()
    path = tmp_path / "checkpoints" / f"{STREAM}.checkpoint"
    for damage in (path.read_bytes()[:-1], b"", os.urandom(64)):
        path.write_bytes(damage)
        async with Machine(tmp_path) as one:
            assert one.checkpoints.last("one") == b"1"
    assert caplog.text.count("is damaged") == 3


async def test_a_disk_that_refuses_a_save_is_tried_again_and_said_once(tmp_path, caplog):
    """The input goes on; nothing is lost, the next start reads more."""
    files = FaultyFiles()
    async with Machine(tmp_path, files=files) as one:
        files.fail("create", errno.ENOSPC, times=3, on=".new")
        for _ in range(3):
            await one.checkpoints.note(Checkpoint("one", b"1"), stream=STREAM)
        await one.accept(batch("a", Checkpoint("one", b"2")))
        await one.checkpoints.aclose()
    assert caplog.text.count("cannot be saved") == 1
    async with Machine(tmp_path) as one:
        assert one.checkpoints.last("one") == b"2"


async def test_run_saves_by_itself(tmp_path, monkeypatch):
    """At most every second, so that a start reads no more than that."""
    monkeypatch.setattr(module, "SAVE_EVERY_SECONDS", 0.01)
    async with Machine(tmp_path) as one:
        path = tmp_path / "checkpoints" / f"{STREAM}.checkpoint"
        running = asyncio.create_task(one.checkpoints.run())
        await one.accept(batch("a", Checkpoint("one", b"position")))
        async with asyncio.timeout(10):
            while not path.exists() or b"position" not in path.read_bytes():
                await asyncio.sleep(0.01)
        running.cancel()


async def test_a_save_that_is_cancelled_ends_before_the_next_begins(tmp_path, monkeypatch):
    """Two threads in one file would leave neither one's content."""
    running, together = [], []
    replace = module.replace_whole

    def slow(*arguments):
        running.append(1)
        together.append(len(running))
        time.sleep(0.1)
        replace(*arguments)
        running.pop()

    monkeypatch.setattr(module, "replace_whole", slow)
    async with Machine(tmp_path) as one:
        saving = asyncio.create_task(one.checkpoints.note(Checkpoint("one", b"1"), stream=STREAM))
        while not running:
            await asyncio.sleep(0.005)
        saving.cancel()
        await one.checkpoints.note(Checkpoint("one", b"2"), stream=STREAM)
        await asyncio.wait({saving})
        assert set(together) == {1}
    async with Machine(tmp_path) as one:
        assert one.checkpoints.last("one") == b"2"


async def test_an_unsynced_spool_is_never_overtaken_by_its_checkpoints(tmp_path):
    """`durability: interval`: a power cut must not find a position whose lines it took."""
    config = SMALL.model_copy(update={"durability": "interval", "interval": 0.05})
    async with Machine(tmp_path, config) as one:
        await one.accept(batch("a", Checkpoint("one", b"1")))
        assert one.spool.readable == 0
        await one.checkpoints.aclose()
        assert one.spool.readable == 1


async def test_inputs_remembered_are_bounded(tmp_path, monkeypatch):
    """The one heard of longest ago is forgotten."""
    monkeypatch.setattr(module, "MAX_INPUTS", 3)
    async with Machine(tmp_path) as one:
        for name in ("a", "b", "a", "c", "d"):
            await one.accept(batch("x", Checkpoint(name, name.encode())))
        assert [one.checkpoints.last(name) for name in "abcd"] == [b"a", None, b"c", b"d"]
