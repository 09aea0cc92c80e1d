"""A part that has work and does not get on with it is found; one that waits for the world is not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from spool_layers import FaultyFiles
from waiting import until

from ndagent.core.batcher import Batcher
from ndagent.core.intake import Intake
from ndagent.core.interfaces import Accept
from ndagent.core.metrics import Metrics
from ndagent.core.progress import Progress, Signs, signs_of
from ndagent.core.settings import Settings
from ndagent.core.spool import Spool
from ndagent.core.spool.config import SpoolConfig
from ndagent.wire.framing import Chunk
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section

HERE = Origin("here", "", 0)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(clock: Clock) -> Progress:
    return Progress(clock=clock, patience_seconds=120)


def batch(size: int = 5) -> Batch:
    """One event."""
    payload = b"x" * (size - 1) + b"\n"
    return Batch("s", "ecs", 1, [Section(HERE, Framing.LF, Flags.NONE, len(payload), 1)], [payload])


def test_work_without_progress_is_stuck_after_the_patience_and_not_before(progress: Progress, clock: Clock) -> None:
    """And once it moves, it has all its time again."""
    assert progress.stuck({"a": Signs(True, 7)}) == []
    clock.now = 119.9
    assert progress.stuck({"a": Signs(True, 7)}) == []
    clock.now = 120
    assert progress.stuck({"a": Signs(True, 7)}) == ["a"]
    assert progress.stuck({"a": Signs(True, 8)}) == []
    clock.now = 239
    assert progress.stuck({"a": Signs(True, 8)}) == []


def test_a_part_that_was_idle_for_a_moment_is_not_stuck(progress: Progress, clock: Clock) -> None:
    """It had nothing to do, which is the best reason to have done nothing."""
    for now, has_work in ((0, True), (60, False), (119, True), (238, True)):
        clock.now = now
        assert progress.stuck({"a": Signs(has_work, 7)}) == []


def test_a_part_that_is_gone_is_forgotten(progress: Progress, clock: Clock) -> None:
    """An input that a reload took away, and one of its name that another brought."""
    progress.stuck({"a": Signs(True, 0)})
    clock.now = 100
    progress.stuck({})
    clock.now = 200
    assert progress.stuck({"a": Signs(True, 0)}) == []


def test_it_is_said_once(progress: Progress, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The watchdog looks every few seconds; the journal need not."""
    progress.stuck({"input a": Signs(True, 0)})
    clock.now = 120
    for _ in range(3):
        assert progress.stuck({"input a": Signs(True, 0)}) == ["input a"]
    (line,) = caplog.records
    assert "input a has work" in line.getMessage()


async def opened(path: Path, files: FaultyFiles, **config: int) -> Spool:
    """A spool on these files."""
    settings = SpoolConfig.model_validate({"max_bytes": 1 << 30, **config})
    return await Spool.open(path, stream="s", config=settings, metrics=Metrics(), files=files, retry_seconds=0.01)


async def test_a_spool_whose_thread_hangs_is_stuck(tmp_path: Path, progress: Progress, clock: Clock) -> None:
    """In fdatasync, say, on a disk that never answers."""
    files = FaultyFiles()
    spool = await opened(tmp_path, files)
    try:
        await spool.append(batch())
        assert not spool.signs().has_work
        files.sync_gate.clear()
        appending = asyncio.create_task(spool.append(batch()))
        await until(lambda: spool.signs().has_work, "the commit is under way")
        assert progress.stuck(signs_of({"s": spool}, None)) == []
        clock.now = 121
        assert progress.stuck(signs_of({"s": spool}, None)) == ["spool s"]
        files.sync_gate.set()
        await appending
        assert progress.stuck(signs_of({"s": spool}, None)) == []
    finally:
        files.sync_gate.set()
        await spool.aclose()


class Plug:
    """An input that hands over one batch and then waits."""

    def __init__(self) -> None:
        self.ends = asyncio.Event()

    async def start(self) -> None: ...

    async def run(self, accept: Accept) -> None:
        await accept(batch())
        await self.ends.wait()


class Inputs:
    """An intake with one such input, and an accept that waits as long as the test says."""

    def __init__(self) -> None:
        self.plug = Plug()
        self.room = asyncio.Event()
        self.intake = Intake(self._accept, build=lambda _name, _settings: self.plug)

    async def _accept(self, _batch: Batch) -> None:
        await self.room.wait()


@pytest.fixture
async def inputs() -> AsyncIterator[Inputs]:
    """Started, its batch not taken yet."""
    found = Inputs()
    await found.intake.start({"in": Settings()})
    await until(lambda: dict(found.intake.signs())["input in"].has_work, "the batch is on its way")
    yield found
    await found.intake.stop()


class FullSpool:
    """What signs_of needs of a spool."""

    def __init__(self, *, is_full: bool) -> None:
        self.is_full = is_full

    def signs(self) -> Signs:
        return Signs(False, 0)


@pytest.mark.parametrize(("is_full", "stuck"), [(True, []), (False, ["input in"])])
async def test_an_input_may_wait_for_a_full_spool_but_for_nothing_else(
    inputs: Inputs, progress: Progress, clock: Clock, is_full: bool, stuck: list[str]
) -> None:
    """A restart would bring no room."""
    spools = {"s": FullSpool(is_full=is_full)}
    for now in (0, 121):
        clock.now = now
        found = progress.stuck(signs_of(spools, inputs.intake))
    assert found == stuck


async def test_an_input_that_ended_by_itself_is_stuck_and_the_daemon_not_ready(
    inputs: Inputs, progress: Progress, clock: Clock
) -> None:
    """Nobody starts it again, and nothing says that it is gone."""
    inputs.room.set()
    await until(lambda: not dict(inputs.intake.signs())["input in"].has_work, "the batch was taken")
    assert list(inputs.intake.not_running()) == []
    inputs.plug.ends.set()
    await until(lambda: dict(inputs.intake.signs())["input in"].has_work, "it ended")
    assert "ended by itself" in next(inputs.intake.not_running())
    for now in (0, 121):
        clock.now = now
        found = progress.stuck(signs_of({}, inputs.intake))
    assert found == ["input in"]


async def test_a_full_disk_is_no_hang(tmp_path: Path, progress: Progress, clock: Clock) -> None:
    """Each try fails at once, and the batch waits."""
    files = FaultyFiles()
    spool = await opened(tmp_path, files)
    try:
        files.space_bytes = 0
        appending = asyncio.create_task(spool.append(batch(1 << 16)))
        await until(lambda: spool.is_full, "the spool found the disk full")
        for step in range(5):
            clock.now = 60.0 * step
            done = spool.signs().done
            assert progress.stuck(signs_of({"s": spool}, None)) == []
            await until(lambda done=done: spool.signs().done > done, "another try")
        files.space_bytes = None
        await appending
    finally:
        files.space_bytes = None
        await spool.aclose()


async def test_a_batcher_has_work_until_what_was_added_is_durable() -> None:
    """What syslog_tls, syslog_udp and netflow show."""
    room = asyncio.Event()

    async def accept(_batch: Batch) -> None:
        await room.wait()

    batcher = Batcher(accept, name="in", paused=lambda _: None, metrics=Metrics(), clock=lambda: 1.0)
    running = asyncio.create_task(batcher.run())
    assert batcher.signs() == Signs(False, 0)
    batcher.add(HERE, Chunk(Framing.LF, Flags.NONE, 1, b"x\n"))
    assert batcher.signs() == Signs(True, 0)
    room.set()
    await until(lambda: batcher.signs() == Signs(False, 1), "it was taken")
    batcher.finish()
    await running
