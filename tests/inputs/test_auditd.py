"""The auditd input on real files: joined across reads, rotations, restarts and kills, each line in one event."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from host_input_process import HOST, InputProcess, Positions

from ndagent.core.metrics import Metrics
from ndagent.inputs import InputContext
from ndagent.inputs.auditd import OPEN_PART, Auditd, Config, build
from ndagent.wire.record import Batch

QUICK = {"poll_interval": 0.05, "scan_interval": 0.2}


def records(serial: int, *, at: float = 1700000000.0) -> list[str]:
    """One event as the kernel writes it; PROCTITLE is the last."""
    head = f"msg=audit({at:.3f}:{serial}):"
    return [
        f'type=SYSCALL {head} arch=c000003e syscall=59 success=yes exit=0 pid={serial} uid=0 exe="/bin/true" key="k"',
        f'type=EXECVE {head} argc=2 a0="true" a1="{serial}"',
        f'type=CWD {head} cwd="/"',
        f"type=PROCTITLE {head} proctitle=74727565",
    ]


def write(path: Path, *lines: str) -> None:
    with path.open("a") as log:
        log.write("".join(f"{line}\n" for line in lines))


class Agent:
    """An input in this process; what it hands over is durable at once."""

    def __init__(self, path: Path, positions: Positions | None = None, **settings: Any) -> None:
        self.positions = positions or Positions()
        self.metrics = Metrics()
        self.events: list[dict[str, Any]] = []
        self.refuse = False
        context = InputContext(path.parent, self.metrics, time.time, self.positions, HOST)
        self.input: Auditd = build("auditd", Config(paths=(path,), **{**QUICK, **settings}), context)

    async def accept(self, batch: Batch) -> None:
        if self.refuse:
            raise OSError("the spool is gone")
        lines = b"".join(batch.payload).splitlines()
        assert len(lines) == batch.count
        self.events += map(json.loads, lines)
        self.positions.take(batch.checkpoint)

    @property
    def serials(self) -> list[int]:
        return [event["event"]["sequence"] for event in self.events]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        await self.input.start()
        task = asyncio.create_task(self.input.run(self.accept))
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until(self, ready: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not ready():
                await asyncio.sleep(0.01)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


async def test_lines_become_one_event(log: Path) -> None:
    """Written in parts, read in parts, told once, with the file's name."""
    agent = Agent(log)
    async with agent.running():
        for line in records(1):
            write(log, line)
            await asyncio.sleep(0.05)
        await agent.until(lambda: agent.events)
    (event,) = agent.events
    assert event["process"]["args"] == ["true", "1"]
    assert event["auditd"]["types"] == ["SYSCALL", "EXECVE", "CWD", "PROCTITLE"]
    assert event["log"]["file"]["path"] == str(log)
    assert event["agent"]["type"] == "ndagent"
    assert event["host"]["hostname"] == HOST.hostname
    assert "id" not in event["event"]
    counted = agent.metrics.registry.get_sample_value("nd_input_received_events_total", {"input": "auditd"})
    assert counted == 1


async def test_an_open_event_is_told_after_the_timeout(log: Path) -> None:
    """Its end may never come."""
    write(log, *records(1)[:2])
    agent = Agent(log, timeout=0.3)
    async with agent.running():
        await agent.until(lambda: agent.events)
    assert agent.events[0]["auditd"]["types"] == ["SYSCALL", "EXECVE"]
    assert OPEN_PART not in agent.positions.parts("auditd")


async def test_a_restart_goes_on_with_the_open_event(log: Path) -> None:
    """Half of event 1 was read, event 2 whole: after the restart 1 is joined of both halves, and 2 is not repeated."""
    write(log, *records(1)[:2], *records(2))
    first = Agent(log, timeout=600)
    async with first.running():
        await first.until(lambda: first.serials == [2])
    log.rename(log.with_suffix(".log.1"))
    write(log, *records(1)[2:], *records(3))
    log.with_suffix(".log.1").unlink()  # the open lines are not in any file any more
    second = Agent(log, first.positions, timeout=600)
    async with second.running():
        await second.until(lambda: len(second.events) >= 2)
    told = {event["event"]["sequence"]: event["auditd"].get("types") for event in second.events if "auditd" in event}
    assert told == {1: ["SYSCALL", "EXECVE", "CWD", "PROCTITLE"], 3: ["SYSCALL", "EXECVE", "CWD", "PROCTITLE"]}


async def test_a_refused_batch_comes_again(log: Path) -> None:
    """The spool failed once: the supervisor runs the input again, and nothing that was refused is missing."""
    write(log, *records(1), *records(2)[:1])
    agent = Agent(log, timeout=600)
    agent.refuse = True
    with pytest.raises(OSError, match="spool"):
        async with agent.running() as task, asyncio.timeout(20):
            await task
    assert agent.positions.parts("auditd").get(OPEN_PART) is None
    agent.refuse = False
    write(log, *records(2)[1:])
    async with agent.running():
        await agent.until(lambda: len(agent.events) >= 2)
    assert agent.serials == [1, 2]


async def test_positions_noted_without_a_batch_carry_the_open_lines(log: Path) -> None:
    """Saved without an event, the position must not pass lines that nobody has as an event yet."""
    write(log, *records(1)[:3])
    first = Agent(log, timeout=600)
    async with first.running():
        await first.until(lambda: OPEN_PART in first.positions.parts("auditd"))
    assert first.events == []
    write(log, records(1)[3])
    second = Agent(log, first.positions, timeout=600)
    async with second.running():
        await second.until(lambda: second.events)
    assert second.events[0]["auditd"]["types"] == ["SYSCALL", "EXECVE", "CWD", "PROCTITLE"]


async def test_unreadable_lines_come_through(log: Path) -> None:
    """As events of their own, with their bytes."""
    log.write_bytes(b"no audit line \xff\n" + "\n".join(records(1)).encode() + b"\n")
    agent = Agent(log)
    async with agent.running():
        await agent.until(lambda: len(agent.events) == 2)
    failure = next(event for event in agent.events if "tags" in event)
    assert failure["tags"] == ["_parse_failure"]
    assert failure["event"]["original_base64"] == "bm8gYXVkaXQgbGluZSD/"


def test_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """kill -9 while events interleave and the log rotates: each event once, each with all its lines."""
    log = tmp_path / "audit.log"
    config = {"type": "auditd", "paths": [str(log)], **QUICK, "timeout": 60}
    count, waiting = 1, []
    write(log, *records(0))
    with InputProcess(tmp_path / "state", "auditd", config) as process:
        process.wait_for_events(1)
    for _ in range(5):
        with InputProcess(tmp_path / "state", "auditd", config) as process:
            for _ in range(3):
                lines: list[str] = []
                for serial in range(count, count + 200):  # each event's end comes after the next one's beginning
                    ours = records(serial)
                    lines += ours[:2] + waiting
                    waiting = ours[2:]
                count += 200
                write(log, *lines)
                for index in range(20, 0, -1):  # as auditd rotates, and none is deleted
                    older = log.with_name(f"audit.log.{index}")
                    if older.exists():
                        older.rename(log.with_name(f"audit.log.{index + 1}"))
                log.rename(log.with_name("audit.log.1"))
                log.touch()
            process.wait_for_events(count // 2)
            process.kill()
    write(log, *waiting)
    with InputProcess(tmp_path / "state", "auditd", config) as process:
        events = process.wait_for_events(count)
    whole = [event["event"]["sequence"] for event in events if len(event["auditd"]["types"]) == 4]
    assert sorted(whole) == list(range(count))
    assert len(events) == count
