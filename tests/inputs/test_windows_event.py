"""The windows_event input on a faithful fake of the event log: every record once, and what is lost is told."""

import asyncio
import contextlib
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_win32evtlog import Windows
from host_input_process import HOST, STREAM, Positions, spooled_events
from pydantic import ValidationError

from ndagent.core.checkpoints import Checkpoints
from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool
from ndagent.core.spool.config import SpoolConfig
from ndagent.inputs import InputContext, windows_event_channel, windows_event_group
from ndagent.inputs.windows_event import Config, WindowsEvent, build
from ndagent.inputs.windows_event_api import QUERY_TIMEOUT_MS, EventLog, EventLogError
from ndagent.inputs.windows_event_look import Look
from ndagent.inputs.windows_event_place import Place
from ndagent.wire.record import Batch

RETRY_SECONDS = windows_event_group._RETRY_SECONDS
RECORDED = Path(__file__).parents[1] / "wire/vectors/winevent/recorded.jsonl"


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    """The machine; with a channel App, and an input that looks at things quickly."""
    monkeypatch.setattr(windows_event_channel, "SUSPECT_SECONDS", 0.05)
    monkeypatch.setattr(windows_event_group, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(windows_event_group, "_RETRY_SECONDS", (0.02, 0.05))
    monkeypatch.setattr(windows_event_group, "_LATER_SECONDS", 0.05)
    machine = Windows()
    machine.install(monkeypatch)
    machine.channel("App")
    machine.providers["Test-Provider"] = "A test wrote this."
    return machine


class Agent:
    """An input in this process; what it hands over is durable at once."""

    def __init__(self, positions: Positions | None = None, **settings: Any) -> None:
        self.positions = positions or Positions()
        self.metrics = Metrics()
        self.events: list[dict[str, Any]] = []
        self.may_take = asyncio.Event()
        self.may_take.set()
        self.refuse_after: int | None = None
        self.config = Config(**{"channels": ("App",), "start": "beginning", "check_interval": 1, **settings})
        context = InputContext(Path(), self.metrics, time.time, self.positions, HOST)
        self.input: WindowsEvent = build("windows_event", self.config, context)

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


def place_of(positions: Positions) -> Place:
    return Place.unpack(positions.parts("windows_event")[b"app"])


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


async def test_what_real_machines_wrote_comes_through_whole(windows: Windows) -> None:
    """Classic events, other indentations, renderings of their own, user data: as the vectors of the codec say."""
    vectors = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    expected = {}
    for vector in vectors:
        number = windows.write_recorded(vector["xml"])
        expected[vector["expected"]["winlog"]["channel"], str(number)] = vector["expected"]
    agent = Agent(channels=tuple(sorted({channel for channel, _ in expected})))
    async with agent.running():
        await agent.until(lambda: len(agent.events) == len(expected))
    for event in agent.events:
        wanted = expected.pop((event["winlog"]["channel"], event["winlog"]["record_id"]))
        wanted["winlog"]["record_id"] = event["winlog"]["record_id"]
        wanted["event"]["created"] = event["event"]["created"]
        event["event"].pop("original", None)  # of a provider that this machine does not know
        assert {key: event[key] for key in wanted} == wanted
    assert expected == {}


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


async def test_a_hole_in_the_numbers_is_told_once_counted_and_logged(
    windows: Windows, caplog: pytest.LogCaptureFixture
) -> None:
    """Records 4 to 6 are gone from the middle of the log."""
    windows.write("App", *numbered(1, 10))
    windows.lose("App", 4, 5, 6)
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: "e10" in agent.texts)
    assert agent.texts == [*numbered(1, 3), *numbered(7, 10)]
    (gap,) = agent.own
    assert agent.events.index(gap) == 3
    assert gap["event"]["kind"] == "pipeline_error"
    assert gap["event"]["action"] == "events_lost"
    assert gap["event"]["reason"] == "missing"
    assert gap["winlog"] == {
        "channel": "App", "gap": {"first_record_id": "4", "last_record_id": "6", "records": 3},
    }  # fmt: skip
    assert agent.sample("nd_input_dropped_events_total", reason="missing") == 3
    assert agent.sample("nd_input_channel_gaps_total", channel="App") == 1
    assert agent.sample("nd_input_received_events_total") == len(agent.events) + 3
    assert "3 record(s) from number 4 on are lost" in caplog.text


async def test_what_a_subscription_passed_over_is_fetched(windows: Windows) -> None:
    """The records are in the log; only the subscription did not deliver them. Nothing is lost, nothing is told."""
    windows.undelivered = {("App", number) for number in (4, 5, 6, 9)}
    windows.write("App", *numbered(1, 12))
    agent = Agent(batch_events=2)
    async with agent.running():
        await agent.until(lambda: "e12" in agent.texts)
    assert agent.texts == numbered(1, 12)
    assert agent.own == []


async def test_of_a_hole_only_what_is_not_there_is_told(windows: Windows) -> None:
    windows.undelivered = {("App", number) for number in range(3, 10)}
    windows.write("App", *numbered(1, 12))
    windows.lose("App", 3, 5, 6)
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: "e12" in agent.texts)
    assert agent.texts == ["e1", "e2", "e4", *numbered(7, 12)]
    gaps = [event["winlog"]["gap"] for event in agent.own]
    assert [(gap["first_record_id"], gap["records"]) for gap in gaps] == [("3", 1), ("5", 2)]


async def test_where_windows_finds_no_bookmark_a_query_by_number_does(windows: Windows) -> None:
    """EvtSeek fails, always: a restart still goes on, and what was passed over is still fetched."""
    windows.fail("EvtSeek", *[50] * 1000)
    windows.write("App", *numbered(1, 6))
    first = Agent()
    async with first.running():
        await first.until(lambda: len(first.texts) == 6)
    windows.undelivered = {("App", 8)}
    windows.write("App", *numbered(7, 9))
    second = Agent(first.positions)
    async with second.running():
        await second.until(lambda: "e9" in second.texts)
    assert second.texts == numbered(7, 9)
    assert second.own == []


async def test_a_query_by_number_may_take_its_time(windows: Windows) -> None:
    """In a long log it reads for seconds until it has something; a second without an answer is not "nothing there"."""
    windows.fail("EvtSeek", *[50] * 1000)
    windows.slowness_ms = 5000
    windows.undelivered = {("App", 3)}
    windows.write("App", *numbered(1, 5))
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: "e5" in agent.texts)
    assert agent.texts == numbered(1, 5)
    assert agent.own == []


async def test_a_hole_that_no_query_answers_for_is_told_and_holds_nothing_up(windows: Windows) -> None:
    windows.fail("EvtSeek", *[50] * 1000)
    windows.slowness_ms = 1 << 30
    windows.write("App", *numbered(1, 5))
    windows.lose("App", 3)
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: "e5" in agent.texts)
    assert agent.texts == ["e1", "e2", "e4", "e5"]
    assert [gap["winlog"]["gap"]["first_record_id"] for gap in agent.own] == ["3"]


def test_a_query_that_takes_as_long_as_its_pause_is_given_up_all_the_same(windows: Windows) -> None:
    """Its time is not taken off the pause: in a log so long it would be made for ever, and nothing behind it read."""
    windows.fail("EvtSeek", *[50] * 1000)
    windows.slowness_ms = 1 << 30
    windows.write("App", *numbered(1, 5))
    windows.lose("App", 3)
    now = 1000.0

    class Slow(EventLog):
        def select(self, channel: str, query: str, **settings: Any) -> Any:
            nonlocal now
            now += QUERY_TIMEOUT_MS / 1000
            return super().select(channel, query, **settings)

    look = Look("App", Slow(), place=lambda: None, monotonic=lambda: now)
    with pytest.raises(EventLogError):
        list(look.between(3, 3))
    _, longest_pause = RETRY_SECONDS
    now += longest_pause
    assert list(look.between(3, 3)) == []


async def test_many_holes_are_many_events_and_one_line_in_the_log(
    windows: Windows, caplog: pytest.LogCaptureFixture
) -> None:
    windows.write("App", *numbered(1, 200))
    windows.lose("App", *range(2, 200, 2))
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: "e199" in agent.texts)
    assert len(agent.own) == 99
    assert agent.sample("nd_input_dropped_events_total", reason="missing") == 99
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert windows.calls["EvtQuery"] <= 2 * 99 + 5  # for each a look behind its beginning, and where the log begins


async def test_records_that_made_room_while_the_agent_was_down_are_told(windows: Windows) -> None:
    windows.channel("App").room = 10
    windows.write("App", *numbered(1, 5))
    first = Agent()
    async with first.running():
        await first.until(lambda: len(first.texts) == 5)
    windows.write("App", *numbered(6, 30))
    second = Agent(first.positions)
    async with second.running():
        await second.until(lambda: "e30" in second.texts)
    assert second.texts == numbered(21, 30)
    (gap,) = second.own
    assert gap["event"]["reason"] == "overwritten"
    assert gap["winlog"]["gap"] == {"first_record_id": "6", "last_record_id": "20", "records": 15}


@pytest.mark.parametrize("query", ["*[System[(Level=4)]]", "*[System[(EventID=1)]]"])
async def test_with_a_query_too_it_is_told_that_records_made_room(windows: Windows, query: str) -> None:
    """How many of them the query would have taken is not known."""
    windows.channel("App").room = 10
    windows.write("App", *numbered(1, 5))
    first = Agent(query=query)
    async with first.running():
        await first.until(lambda: len(first.texts) == 5)
    windows.write("App", *numbered(6, 30))
    second = Agent(first.positions, query=query)
    async with second.running():
        await second.until(lambda: "e30" in second.texts)
    assert second.texts == numbered(21, 30)
    (gap,) = second.own
    assert gap["winlog"]["gap"] == {"first_record_id": "6"}


async def test_what_made_room_and_was_not_wanted_is_no_loss(windows: Windows) -> None:
    """The last match may be weeks old, and its record long gone: the place moves on with what the query leaves out."""
    windows.channel("App").room = 10
    windows.write("App", "wanted", event_id=7)
    query = "*[System[(EventID=7)]]"
    first = Agent(query=query)
    async with first.running():
        await first.until(lambda: first.texts)
        windows.write("App", *numbered(2, 30))
        await first.until(lambda: place_of(first.positions).record == 30)
    windows.write("App", "while it was down", event_id=7)
    second = Agent(first.positions, query=query)
    async with second.running():
        await second.until(lambda: second.texts)
    assert second.texts == ["while it was down"]
    assert second.own == []


async def test_what_a_query_leaves_out_is_no_gap(windows: Windows) -> None:
    windows.write("App", *numbered(1, 3))
    windows.write("App", "other", event_id=2)
    windows.write("App", *numbered(4, 6))
    agent = Agent(query="*[System[(EventID=1)]]")
    async with agent.running():
        await agent.until(lambda: "e6" in agent.texts)
        await agent.until(lambda: windows.calls.get("EvtQuery", 0) > 1)  # silence was looked into, and is right
    assert agent.texts == numbered(1, 6)
    assert agent.own == []
    assert agent.sample("nd_input_resubscribed_total", channel="App", reason="stalled") == 0


async def test_a_place_that_the_query_leaves_out_is_no_silence(windows: Windows) -> None:
    """The end was a record of another kind: older ones that match are behind it."""
    windows.write("App", *numbered(1, 3))
    windows.write("App", "other", event_id=2)
    agent = Agent(query="*[System[(EventID=1)]]", start="end")
    async with agent.running():
        await agent.until(lambda: windows.calls.get("EvtQuery", 0) > 2)
        windows.write("App", "e4")
        await agent.until(lambda: agent.texts)
    assert agent.texts == ["e4"]
    assert windows.calls["EvtSubscribe"] <= 2  # the strict one, and the one that was taken


@pytest.mark.parametrize("restart", [True, False], ids=["numbers begin anew", "numbers go on"])
@pytest.mark.parametrize("is_running", [True, False], ids=["while it runs", "while it does not"])
async def test_a_cleared_log_is_an_event_and_no_gap(windows: Windows, *, restart: bool, is_running: bool) -> None:
    """The Security log says 1102 itself; what was unread is counted where the numbers tell."""
    windows.channel("Security")
    windows.providers["Microsoft-Windows-Eventlog"] = "The audit log was cleared."
    windows.write("Security", *numbered(1, 20))
    agent = Agent(channels=("Security",))
    async with agent.running():
        await agent.until(lambda: len(agent.texts) == 20)
        if is_running:
            windows.clear("Security", restart=restart)
            windows.write("Security", *numbered(21, 25))
            await agent.until(lambda: "e25" in agent.texts)
    if not is_running:
        windows.write("Security", "never read", "nor this")
        windows.clear("Security", restart=restart)
        windows.write("Security", *numbered(21, 25))
        agent_again = Agent(agent.positions, channels=("Security",))
        async with agent_again.running():
            await agent_again.until(lambda: "e25" in agent_again.texts)
        agent.events += agent_again.events
        agent.metrics = agent_again.metrics
    assert agent.texts == numbered(1, 25)
    assert [event["event"]["code"] for event in agent.events if "mallory" in str(event)] == ["1102"]
    assert not [event for event in agent.events if event["event"]["kind"] == "pipeline_error"]
    told = [event["winlog"]["cleared"] for event in agent.own]
    if restart:
        assert told == [{"last_record_id": "20"}]
    elif is_running:
        assert told == []  # nothing was unread: its own 1102 says all
    else:
        assert told == [{"last_record_id": "20", "unread_records": 2}]
        assert agent.sample("nd_input_dropped_events_total", reason="log_cleared") == 2


async def test_a_cleared_log_that_grew_past_the_old_place_is_read_from_its_beginning(windows: Windows) -> None:
    """Record 5 is there when the agent comes back, but it is another one: the bookmark alone would skip five."""
    windows.write("App", *numbered(1, 5))
    first = Agent()
    async with first.running():
        await first.until(lambda: len(first.texts) == 5)
    windows.clear("App", restart=True)
    windows.write("App", *numbered(101, 110))
    second = Agent(first.positions)
    async with second.running():
        await second.until(lambda: "e110" in second.texts)
    assert second.texts == numbered(101, 110)
    assert [event["event"]["action"] for event in second.own] == ["log_cleared"]


async def test_another_channel_says_that_this_one_was_cleared(windows: Windows) -> None:
    """System's event 104 names App, whose numbers go on: its hole is no gap."""
    windows.channel("System")
    windows.write("App", *numbered(1, 5))
    first = Agent(channels=("System", "App"))
    async with first.running():
        await first.until(lambda: len(first.texts) == 5)
    windows.write("App", "unread")
    windows.clear("App", restart=False)
    windows.write("App", "e7")
    second = Agent(first.positions, channels=("System", "App"))
    async with second.running():
        await second.until(lambda: "e7" in second.texts)
    (told,) = second.own
    assert told["event"]["kind"] == "event"
    assert told["winlog"] == {"channel": "App", "cleared": {"last_record_id": "5", "unread_records": 1}}


async def test_that_another_machines_log_was_cleared_explains_no_hole_here(windows: Windows) -> None:
    cleared = "<UserData><LogFileCleared><Channel>App</Channel></LogFileCleared></UserData>"
    windows.write_payload("ForwardedEvents", cleared, provider="Microsoft-Windows-Eventlog", computer="far.example")
    windows.write("App", *numbered(1, 5))
    windows.lose("App", 3)
    agent = Agent(channels=("ForwardedEvents", "App"))
    async with agent.running():
        await agent.until(lambda: "e5" in agent.texts)
    assert [event["event"]["action"] for event in agent.own] == ["events_lost"]


async def test_a_silent_subscription_is_made_anew(windows: Windows, caplog: pytest.LogCaptureFixture) -> None:
    windows.write("App", *numbered(1, 3))
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: len(agent.texts) == 3)
        windows.silence()
        windows.write("App", *numbered(4, 9))
        await agent.until(lambda: len(agent.texts) == 9)
        windows.write("App", "e10")
        await agent.until(lambda: len(agent.texts) == 10)
    assert agent.texts == numbered(1, 10)
    assert agent.own == []
    assert agent.sample("nd_input_resubscribed_total", channel="App", reason="stalled") == 1
    assert "newer records are there and do not come" in caplog.text


async def test_a_quiet_channel_is_left_alone(windows: Windows, caplog: pytest.LogCaptureFixture) -> None:
    """Asked again without news, a subscription says ERROR_INVALID_OPERATION: that is no failure."""
    windows.write("App", "e1")
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: windows.calls.get("EvtQuery", 0) >= 2)
    assert windows.calls["EvtNext"] > 4
    assert windows.calls["EvtSubscribe"] == 1
    assert "not being read" not in caplog.text


async def test_a_rare_match_in_a_long_log_is_no_silence(windows: Windows) -> None:
    """The look for silence asks for the newest match; in a log too long for that nothing is known, nor wrong."""
    windows.write("App", "e1")
    agent = Agent(query="*[System[(EventID=1)]]")
    async with agent.running():
        await agent.until(lambda: agent.texts == ["e1"])
        windows.slowness_ms = 1 << 30
        looks = windows.calls.get("EvtQuery", 0)
        await agent.until(lambda: windows.calls.get("EvtQuery", 0) >= looks + 2)
    assert windows.calls["EvtSubscribe"] == 1


async def test_a_server_that_denies_every_bookmark_loses_nothing(windows: Windows) -> None:
    windows.write("App", *numbered(1, 5))
    first = Agent()
    async with first.running():
        await first.until(lambda: len(first.texts) == 5)
    windows.is_strict_broken = True
    windows.write("App", *numbered(6, 9))
    second = Agent(first.positions)
    async with second.running():
        await second.until(lambda: len(second.texts) == 4)
    assert second.texts == numbered(6, 9)
    assert second.own == []


async def test_a_record_that_is_gone_is_no_reason_to_repeat_or_to_lose(windows: Windows) -> None:
    """The bookmark's own record is missing: the channel is read from its oldest, passing over what was handed out."""
    windows.write("App", *numbered(1, 5))
    first = Agent()
    async with first.running():
        await first.until(lambda: len(first.texts) == 5)
    windows.lose("App", 5)
    windows.write("App", *numbered(6, 9))
    second = Agent(first.positions)
    async with second.running():
        await second.until(lambda: len(second.texts) == 4)
    assert second.texts == numbered(6, 9)
    assert second.own == []
    assert second.sample("nd_input_known_events_total") == 4


@pytest.mark.parametrize("number", [6, 15011, 1722, 1734, 0])
async def test_a_failure_of_the_service_costs_nothing(windows: Windows, number: int) -> None:
    """An invalid handle, a stale result, the service gone, a batch too big, and an error without a number."""
    windows.write("App", *numbered(1, 5))
    agent = Agent(batch_events=4)
    async with agent.running():
        await agent.until(lambda: len(agent.texts) == 5)
        windows.fail("EvtNext", number, number)
        windows.write("App", *numbered(6, 30))
        await agent.until(lambda: len(agent.texts) == 30)
    assert agent.texts == numbered(1, 30)
    assert agent.own == []
    assert agent.sample("nd_input_resubscribed_total", channel="App", reason="failed") >= 1


@pytest.mark.parametrize("call", ["EvtSubscribe", "EvtQuery", "EvtSeek", "EvtCreateBookmark", "EvtUpdateBookmark"])
async def test_a_call_that_fails_now_and_then_costs_nothing(windows: Windows, call: str) -> None:
    windows.write("App", *numbered(1, 5))
    first = Agent()
    async with first.running():
        await first.until(lambda: len(first.texts) == 5)
    windows.write("App", *numbered(6, 20))
    windows.fail(call, 5, 5, 5)
    second = Agent(first.positions, batch_events=3)
    async with second.running():
        await second.until(lambda: "e20" in second.texts)
    assert second.texts == numbered(6, 20)
    assert second.own == []


async def test_a_record_that_cannot_be_rendered_at_the_moment_is_read_again(windows: Windows) -> None:
    """Out of memory, once: that is no reason to call a record lost that the log still has."""
    windows.write("App", *numbered(1, 5))
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: "e5" in agent.texts)
        windows.fail("EvtRender", 8)
        windows.write("App", *numbered(6, 8))
        await agent.until(lambda: "e8" in agent.texts)
    assert agent.texts == numbered(1, 8)
    assert agent.own == []


async def test_a_record_that_cannot_be_rendered_is_told_by_its_number(windows: Windows) -> None:
    windows.write("App", *numbered(1, 5))
    windows.unrenderable = {("App", 3)}
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: "e5" in agent.texts)
    assert agent.texts == ["e1", "e2", "e4", "e5"]
    (gap,) = agent.own
    assert gap["event"]["reason"] == "unreadable"
    assert gap["winlog"]["gap"]["first_record_id"] == "3"
    assert "not valid" in gap["message"]


async def test_what_is_missing_before_a_record_that_cannot_be_rendered_is_told_too(windows: Windows) -> None:
    windows.write("App", *numbered(1, 9))
    windows.lose("App", 4, 5)
    windows.unrenderable = {("App", 6), ("App", 7)}
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: "e9" in agent.texts)
    assert agent.texts == ["e1", "e2", "e3", "e8", "e9"]
    gaps = [(gap["event"]["reason"], gap["winlog"]["gap"]["first_record_id"]) for gap in agent.own]
    assert gaps == [("missing", "4"), ("unreadable", "6"), ("unreadable", "7")]
    assert agent.sample("nd_input_dropped_events_total", reason="missing") == 2


async def test_what_a_subscription_passed_over_before_such_a_record_is_fetched(windows: Windows) -> None:
    windows.undelivered = {("App", 4), ("App", 5)}
    windows.unrenderable = {("App", 6)}
    windows.write("App", *numbered(1, 7))
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: "e7" in agent.texts)
    assert agent.texts == ["e1", "e2", "e3", "e4", "e5", "e7"]
    assert [gap["event"]["reason"] for gap in agent.own] == ["unreadable"]


async def test_a_channel_that_is_not_there_is_read_whole_once_it_is(
    windows: Windows, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever `start` says: all that is in it was written since the agent began to look for it. It is remembered."""
    first = Agent(channels=("Later", "App"), start="end")
    async with first.running():
        await first.until(lambda: first.positions.parts("windows_event").keys() >= {b"later", b"app"})
        windows.write("App", "e1")
        await first.until(lambda: first.texts)
        assert first.sample("nd_input_channels") == 1
    assert "Later: not being read" in caplog.text
    assert "wevtutil el" in caplog.text
    windows.channel("Later")
    windows.write("Later", "one", "two")
    second = Agent(first.positions, channels=("Later", "App"), start="end")
    async with second.running():
        await second.until(lambda: len(second.texts) == 2)
        assert second.sample("nd_input_channels") == 2
    assert second.texts == ["one", "two"]


@pytest.mark.parametrize(
    ("number", "remedy"), [(5, "Event Log Readers"), (15001, "XPath"), (15009, "take it out of `channels`")]
)
async def test_a_channel_that_cannot_be_read_holds_up_no_other(
    windows: Windows, caplog: pytest.LogCaptureFixture, number: int, remedy: str
) -> None:
    windows.channel("Secret")
    windows.write("Secret", "s1")
    windows.fail("EvtSubscribe", *[number] * 3)
    agent = Agent(channels=("Secret", "App"))
    async with agent.running():
        windows.write("App", *numbered(1, 3))
        await agent.until(lambda: set(agent.texts) == {"s1", "e1", "e2", "e3"})
    assert remedy in caplog.text


@pytest.mark.parametrize(
    ("start", "expected"),
    [("beginning", ["old", "older", "new"]), ("end", []), ("1h", ["new"]), ("30d", ["old", "older", "new"])],
)
async def test_the_first_start_begins_where_it_is_told(windows: Windows, start: str, expected: list[str]) -> None:
    windows.write("App", "old", ago=7200)
    windows.write("App", "older", ago=7000)
    windows.write("App", "new", ago=60)
    agent = Agent(start=start)
    async with agent.running():
        await agent.until(lambda: windows.subscriptions)
        windows.write("App", "from now on")
        await agent.until(lambda: "from now on" in agent.texts)
    assert agent.texts == [*expected, "from now on"]


@pytest.mark.parametrize(("slowness_ms", "expected"), [(5000, ["new"]), (1 << 30, ["old", "new"])])
async def test_where_to_begin_in_a_long_log(
    windows: Windows, caplog: pytest.LogCaptureFixture, slowness_ms: int, expected: list[str]
) -> None:
    """Looked for with patience; where that does not do, more is read than was asked for, and said."""
    windows.write("App", "old", ago=7200)
    windows.write("App", "new", ago=60)
    windows.slowness_ms = slowness_ms
    agent = Agent(start="1h")
    async with agent.running():
        await agent.until(lambda: "new" in agent.texts)
    assert agent.texts == expected
    assert ("reading from its beginning" in caplog.text) == (len(expected) == 2)


async def test_the_end_is_remembered_before_anything_comes(windows: Windows) -> None:
    """Or what is written while the agent is down would be missed by a second "end"."""
    windows.write("App", "old")
    first = Agent(start="end")
    async with first.running():
        await first.until(lambda: first.positions.parts("windows_event"))
    windows.write("App", "while it was down")
    second = Agent(first.positions, start="end")
    async with second.running():
        await second.until(lambda: second.texts)
    assert second.texts == ["while it was down"]


async def test_a_provider_without_words_costs_the_words_only(windows: Windows) -> None:
    windows.providers["Broken"] = 15002
    windows.write("App", "one", provider="Broken")
    windows.write("App", "two")
    windows.fail("EvtFormatMessage", 15027)
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: len(agent.texts) == 2)
    for event, text in zip(agent.events, ("one", "two"), strict=True):
        assert event["tags"] == ["_unrendered"]
        assert event["event"]["original"].startswith("<Event")
        assert event["winlog"]["event_data"] == {"text": text}
        assert event["message"].endswith(f"text={text}")
    assert agent.sample("nd_input_unrendered_events_total") == 2


async def test_without_messages_no_provider_is_asked(windows: Windows) -> None:
    windows.write("App", "one")
    agent = Agent(messages=False)
    async with agent.running():
        await agent.until(lambda: agent.texts)
    assert "EvtOpenPublisherMetadata" not in windows.calls
    assert "tags" not in agent.events[0]


async def test_forwarded_events_keep_their_hosts_and_numbers(windows: Windows) -> None:
    """Their numbers are other machines': no hole, no clearing can be read from them; what made room is told."""
    words = "<RenderingInfo Culture='en-US'><Message>Words of there.</Message></RenderingInfo>"
    log = windows.channel("ForwardedEvents", room=20)
    for number in (900, 7, 350, 8):
        windows.write_payload(
            "ForwardedEvents",
            f"<EventData><Data Name='text'>f{number}</Data></EventData>{words}",
            computer="far.example",
            own_number=number,
        )
    first = Agent(channels=("ForwardedEvents",))
    async with first.running():
        await first.until(lambda: len(first.texts) == 4)
        await first.until(lambda: windows.calls.get("EvtQuery", 0) >= 1)
    assert first.texts == ["f900", "f7", "f350", "f8"]
    assert first.own == []
    assert {event["host"]["name"] for event in first.events} == {"far.example"}
    assert {event["message"] for event in first.events} == {"Words of there."}
    assert windows.calls["EvtSubscribe"] == 1
    for number in range(30):
        windows.write_payload("ForwardedEvents", "<EventData/>", own_number=number + 1)
    assert log.records[0].number == 15
    second = Agent(first.positions, channels=("ForwardedEvents",))
    async with second.running():
        await second.until(lambda: len(second.events) == 21)
    assert [event["winlog"]["gap"] for event in second.own] == [{"first_record_id": "5"}]


async def test_an_xml_that_was_cut_at_a_nul_is_still_an_event(windows: Windows) -> None:
    windows.write_payload("App", "<EventData><Data Name='text'>be\0fore</Data></EventData>")
    windows.write("App", "after")
    agent = Agent()
    async with agent.running():
        await agent.until(lambda: len(agent.events) == 2)
    cut = agent.events[0]
    assert cut["tags"][0] == "_parse_failure"
    assert cut["winlog"]["record_id"] == "1"
    assert agent.own == []


async def test_many_channels_are_read_in_several_threads(windows: Windows) -> None:
    names = [f"Channel{number}" for number in range(20)]
    for name in names:
        windows.write(name, name)
    agent = Agent(channels=tuple(names))
    async with agent.running():
        await agent.until(lambda: sorted(agent.texts) == sorted(names))
        assert agent.sample("nd_input_channels") == 20
    assert agent.sample("nd_input_channels") == 0


async def test_a_damaged_position_is_said_and_the_channel_read_as_if_new(
    windows: Windows, caplog: pytest.LogCaptureFixture
) -> None:
    windows.write("App", "e1")
    positions = Positions()
    positions.table["windows_event"] = {b"app": b"rubbish"}
    agent = Agent(positions)
    async with agent.running():
        await agent.until(lambda: agent.texts)
    assert "position of app of no use" in caplog.text


async def test_the_place_is_in_the_spool_with_the_events(windows: Windows, tmp_path: Path) -> None:
    """Killed at any moment, every record is in the spool once: the disk is taken away from under the running input.

    Nothing saved its positions by then, so they come from the spool's own records.
    """
    windows.write("App", *numbered(1, 40))
    async with spooling(tmp_path / "killed", until="e40"):
        shutil.copytree(tmp_path / "killed", tmp_path / "started again")
    windows.write("App", *numbered(41, 90))
    async with spooling(tmp_path / "started again", until="e90"):
        assert texts_in(tmp_path / "started again") == numbered(1, 90)


@contextlib.asynccontextmanager
async def spooling(state: Path, *, until: str) -> AsyncIterator[None]:
    """The input, running on a real spool that holds this text; its positions were recovered as a start does."""
    checkpoints = await Checkpoints.recover(state)
    agent = Agent(batch_events=7)
    config = SpoolConfig(replay_window=86400.0)
    spool = await Spool.open(state / "spool" / STREAM, stream=STREAM, config=config, metrics=agent.metrics)
    await checkpoints.attach({STREAM: spool})
    context = InputContext(state, agent.metrics, time.time, checkpoints, HOST)
    task = asyncio.create_task(build("windows_event", agent.config, context).run(checkpoints.accept(spool.append)))
    try:
        await agent.until(lambda: until in texts_in(state))
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        await spool.aclose()


def texts_in(state: Path) -> list[str]:
    """What the spool on disk holds."""
    return [text for event in spooled_events(state) if (text := text_of(event)) is not None]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"channels": ("App", "app")}, "twice"),
        ({"channels": ("Microsoft-*",)}, "not the name of a channel"),
        ({"channels": ()}, "at least 1"),
        ({"start": "yesterday"}, "duration"),
    ],
)
def test_settings_that_cannot_work_are_refused(windows: Windows, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Config(**settings)


async def test_off_windows_it_does_not_start_and_says_why() -> None:
    """The settings are still checked everywhere: a policy is written on Linux."""
    with pytest.raises(OSError, match="needs Windows"):
        await Agent().input.start()
