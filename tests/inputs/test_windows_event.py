"""The windows_event input on a faithful fake of the event log: every record once, and what is lost is told."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_win32evtlog import Windows
from host_input_process import HOST, Positions
from pydantic import ValidationError

from ndagent.core.metrics import Metrics
from ndagent.inputs import InputContext, windows_event_channel, windows_event_group
from ndagent.inputs.windows_event import Config, WindowsEvent, build
from ndagent.wire.record import Batch


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Windows]:
    """The machine; with a channel App, and an input that looks at things quickly."""
    monkeypatch.setattr(windows_event_channel, "SUSPECT_SECONDS", 0.05)
    monkeypatch.setattr(windows_event_group, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(windows_event_group, "_RETRY_SECONDS", (0.02, 0.05))
    monkeypatch.setattr(windows_event_group, "_LATER_SECONDS", 0.05)
    machine = Windows()
    machine.install(monkeypatch)
    machine.channel("App")
    machine.providers["Test-Provider"] = "A test wrote this."
    yield machine


class Agent:
    """An input in this process; what it hands over is durable at once."""

    def __init__(self, positions: Positions | None = None, **settings: Any) -> None:
        self.positions = positions or Positions()
        self.metrics = Metrics()
        self.events: list[dict[str, Any]] = []
        self.may_take = asyncio.Event()
        self.may_take.set()
        self.refuse_after: int | None = None
        config = Config(**{"channels": ("App",), "start": "beginning", "check_interval": 1, **settings})
        context = InputContext(Path(), self.metrics, time.time, self.positions, HOST)
        self.input: WindowsEvent = build("windows_event", config, context)

    async def accept(self, batch: Batch) -> None:
        await self.may_take.wait()
        lines = b"".join(batch.payload).splitlines()
        assert len(lines) == batch.count
        if self.refuse_after is not None and len(self.events) + len(lines) > self.refuse_after:
            raise OSError("the spool is gone")
        self.events += map(json.loads, lines)
        self.positions.take(batch.checkpoint)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        await self.input.start()
        task = asyncio.create_task(self.input.run(self.accept))
        try:
            yield task
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def until(self, ready: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not ready():
                await asyncio.sleep(0.01)

    @property
    def texts(self) -> list[str]:
        """What was written, in the order it came."""
        return [text for event in self.events if (text := text_of(event)) is not None]

    @property
    def own(self) -> list[dict[str, Any]]:
        """What the input says itself: gaps, and logs that were cleared."""
        return [event for event in self.events if event["event"].get("reason") and "event_id" not in event["winlog"]]

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"input": "windows_event", **labels}) or 0.0


def text_of(event: dict[str, Any]) -> str | None:
    found: str | None = event["winlog"].get("event_data", {}).get("text")
    return found


def numbered(first: int, last: int) -> list[str]:
    return [f"e{number}" for number in range(first, last + 1)]


async def test_a_record_becomes_an_event(windows: Windows) -> None:
    windows.write("App", "hello")
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: agent.texts)
    (event,) = agent.events
    assert event["message"] == "A test wrote this."
    assert event["winlog"]["channel"] == "App"
    assert event["winlog"]["record_id"] == "1"
    assert event["event"]["provider"] == "Test-Provider"
    assert event["event"]["code"] == "1"
    assert event["host"]["hostname"] == HOST.hostname
    assert "id" not in event["event"]
    assert agent.sample("nd_input_received_events_total") == 1


async def test_records_come_as_they_are_written_in_order(windows: Windows) -> None:
    agent = Agent(batch_events=7)
    async with agent.running():
        for number in range(1, 101):
            windows.write("App", f"e{number}")
            if number % 10 == 0:
                await agent.until(lambda number=number: len(agent.texts) == number)
    assert agent.texts == numbered(1, 100)
    assert agent.own == []


async def test_a_restart_goes_on_behind_the_last_record(windows: Windows) -> None:
    windows.write("App", *numbered(1, 50))
    first = Agent()
    async with first.running():
        await first.until(lambda: len(first.texts) == 50)
    windows.write("App", *numbered(51, 60))
    second = Agent(first.positions)
    async with second.running():
        await second.until(lambda: len(second.texts) == 10)
        windows.write("App", "e61")
        await second.until(lambda: len(second.texts) == 11)
    assert second.texts == numbered(51, 61)
    assert second.own == []


async def test_what_the_spool_did_not_take_is_read_again(windows: Windows) -> None:
    windows.write("App", *numbered(1, 100))
    first = Agent(batch_events=10)
    first.refuse_after = 35
    async with first.running() as task:
        await first.until(task.done)
        assert str(task.exception()) == "the spool is gone"
    second = Agent(first.positions, batch_events=10)
    async with second.running():
        await second.until(lambda: len(first.texts) + len(second.texts) >= 100)
    assert first.texts + second.texts == numbered(1, 100)


async def test_nothing_is_pulled_while_the_spool_waits(windows: Windows) -> None:
    agent = Agent(batch_events=5)
    agent.may_take.clear()
    windows.write("App", *numbered(1, 100))
    async with agent.running():
        await agent.until(lambda: windows.calls.get("EvtNext", 0) > 0)
        await asyncio.sleep(0.3)
        assert sum(one.after for one in windows.subscriptions) <= 5
        agent.may_take.set()
        await agent.until(lambda: len(agent.texts) == 100)
    assert agent.texts == numbered(1, 100)
