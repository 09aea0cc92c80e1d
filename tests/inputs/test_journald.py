"""The journald input against a real systemd-journald: every entry once, whatever is killed, rotated or thrown away."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from host_input_process import HOST, InputProcess, Positions
from services.journald import Journal, need_journald
from services.need import need_program

from ndagent.core.metrics import Metrics
from ndagent.inputs import InputContext, journald
from ndagent.inputs.journald import Config, Journald, build
from ndagent.inputs.journald_cursor import Cursor
from ndagent.wire.record import Batch

pytestmark = pytest.mark.service


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a short name (sockets), and journalctl in PATH."""
    with tempfile.TemporaryDirectory(prefix="nd-journal-") as directory:
        need_journald(Path(directory), monkeypatch)
        yield Path(directory)


@pytest.fixture
def journal(place: Path) -> Iterator[Journal]:
    """A journald that writes to /run, as it does before there is a /var."""
    with Journal(place / "journald") as running:
        yield running


class Agent:
    """An input in this process; what it hands over is durable at once."""

    def __init__(self, positions: Positions | None = None, **settings: Any) -> None:
        self.positions = positions or Positions()
        self.metrics = Metrics()
        self.batches: list[Batch] = []
        context = InputContext(Path(), self.metrics, time.time, self.positions, HOST)
        self.input: Journald = build("journald", Config(**{"start": "beginning", **settings}), context)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for batch in self.batches for line in b"".join(batch.payload).splitlines()]

    @property
    def messages(self) -> list[str]:
        return [event["message"] for event in self.events]

    async def accept(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.positions.take(batch.checkpoint)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.input.start()
        task = asyncio.create_task(self.input.run(self.accept))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until(self, ready: Callable[[], bool], timeout_seconds: float = 20) -> None:
        async with asyncio.timeout(timeout_seconds):
            while not ready():
                await asyncio.sleep(0.01)

    def dropped(self, reason: str) -> float:
        return (
            self.metrics.registry.get_sample_value(
                "nd_input_dropped_events_total", {"input": "journald", "reason": reason}
            )
            or 0.0
        )


def send(journal: Journal, numbers: Sequence[int]) -> None:
    """Entries that say which they are."""
    for number in numbers:
        journal.send({"MESSAGE": f"entry {number}", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "numbers"})


def is_numbered(event: dict[str, Any]) -> bool:
    """Whether it is one of them; journald says a word now and then, too."""
    return event["message"].startswith("entry ")


def numbers_of(events: Sequence[dict[str, Any]]) -> list[int]:
    """Which they were."""
    return [int(event["message"].split()[1]) for event in events if is_numbered(event)]


async def test_an_entry_becomes_an_event(journal: Journal) -> None:
    """The field table, as far as a sender may set fields."""
    journal.send({
        "MESSAGE": "Accepted publickey for bob", "PRIORITY": "3", "SYSLOG_FACILITY": "10", "SYSLOG_IDENTIFIER": "sshd",
        "MESSAGE_ID": "a" * 32, "CODE_FILE": "auth.c", "CODE_LINE": "17", "CODE_FUNC": "accept", "OWN": "kept",
    })  # fmt: skip
    agent = Agent(directory=journal.volatile, fields="all")
    async with agent.running():
        await agent.until(lambda: "Accepted publickey for bob" in agent.messages)
    event = next(one for one in agent.events if one["message"].startswith("Accepted"))
    assert event["log"] == {
        "level": "error",
        "syslog": {
            "appname": "sshd", "priority": 83, "facility": {"code": 10, "name": "authpriv"},
            "severity": {"code": 3, "name": "error"},
        },
        "origin": {"file": {"name": "auth.c", "line": 17}, "function": "accept"},
    }  # fmt: skip
    assert event["process"]["name"] == "sshd"
    assert event["process"]["pid"] > 0
    assert event["process"]["executable"].startswith("/")
    assert event["event"]["code"] == "a" * 32
    assert event["user"]["id"].isdigit()
    assert event["systemd"]["transport"] == "journal"
    assert event["journald"]["own"] == "kept"
    assert event["host"]["hostname"]
    assert abs(time.time() - _unix(event["@timestamp"])) < 60
    assert "id" not in event["event"]


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def test_odd_messages_come_whole(journal: Journal) -> None:
    """Several lines, empty lines (the export format's end of an entry), bytes that are not UTF-8, nothing at all."""
    odd: list[bytes] = [b"two\nlines", b"an\n\nempty one", b"caf\xe9 \xff\x00", "żółw 🐢".encode(), b"x" * 40_000]
    for message in odd:
        journal.send({"MESSAGE": message})
    journal.send({"OWN": "no message"})
    journal.send([("MESSAGE", "several"), ("TAG", "one"), ("TAG", "two")])
    agent = Agent(directory=journal.volatile, fields="all")
    async with agent.running():
        await agent.until(lambda: "several" in agent.messages)
    assert agent.messages[-7:-2] == [message.decode("utf-8", "replace") for message in odd]
    exact = [event["event"].get("original_base64") for event in agent.events[-7:-2]]
    assert [base64.b64decode(text) if text else None for text in exact] == [None, None, odd[2], None, None]
    assert agent.messages[-2] == ""
    assert agent.events[-1]["journald"]["tag"] == ["one", "two"]


async def test_a_long_message_is_cut_at_the_limit(journal: Journal) -> None:
    """At the limit it is whole; one byte more and it is cut and marked; the next entry is not touched by that."""
    for size in (480, 481, 3_000_000):
        journal.send({"MESSAGE": "m" * size} if size < 100_000 else {"MESSAGE": b"n" * 100_000 + b"\n"})
    journal.send({"MESSAGE": "after"})
    agent = Agent(directory=journal.volatile, max_message_bytes=480)
    async with agent.running():
        await agent.until(lambda: "after" in agent.messages)
    *_, whole, cut, binary, after = agent.events
    assert (len(whole["message"]), whole.get("tags")) == (480, None)
    assert (len(cut["message"]), cut.get("tags")) == (480, ["_truncated"])
    assert (len(binary["message"]), binary.get("tags")) == (480, ["_truncated"])
    assert after.get("tags") is None


async def test_filters_choose(journal: Journal) -> None:
    """By severity and identifier, as journalctl understands them."""
    journal.send({"MESSAGE": "chatter", "PRIORITY": "7", "SYSLOG_IDENTIFIER": "a"})
    journal.send({"MESSAGE": "other program", "PRIORITY": "3", "SYSLOG_IDENTIFIER": "b"})
    journal.send({"MESSAGE": "wanted", "PRIORITY": "3", "SYSLOG_IDENTIFIER": "a"})
    agent = Agent(directory=journal.volatile, priority="warning", identifiers=("a",))
    async with agent.running():
        await agent.until(lambda: bool(agent.batches))
    assert agent.messages == ["wanted"]


async def test_starting_at_the_end_survives_a_restart_before_the_first_event(journal: Journal) -> None:
    """Where "the end" was is remembered at once: what comes while the agent is down is not skipped."""
    send(journal, [1, 2])
    journal.wait_for("entry 2")
    first = Agent(directory=journal.volatile, start="end")
    async with first.running():
        await first.until(lambda: first.positions.last("journald") is not None)
    send(journal, [3])
    second = Agent(first.positions, directory=journal.volatile, start="end")
    async with second.running():
        await second.until(lambda: numbers_of(second.events) == [3])
    assert numbers_of(first.events) == []


async def test_what_an_earlier_boot_left_is_read_first(journal: Journal) -> None:
    """The last lines before a crash are the ones that matter; journalctl --follow would not show them."""
    positions = Positions()
    journal.send({"MESSAGE": "entry 0"})
    agent = Agent(positions, directory=journal.volatile)
    async with agent.running():
        await agent.until(lambda: numbers_of(agent.events) == [0])
    for number in (1, 2):
        journal.send({"MESSAGE": f"entry {number}"})
    journal.wait_for("entry 2")
    journal.reboot()
    journal.send({"MESSAGE": "entry 3"})
    again = Agent(positions, directory=journal.volatile)
    async with again.running():
        await again.until(lambda: len(numbers_of(again.events)) == 3)
        journal.send({"MESSAGE": "entry 4"})
        await again.until(lambda: len(numbers_of(again.events)) == 4)
    assert numbers_of(again.events) == [1, 2, 3, 4]
    assert again.metrics.registry.get_sample_value("nd_input_dropped_events_total", {
        "input": "journald", "reason": "removed_from_journal"}) in (None, 0)  # fmt: skip


async def test_a_duration_begins_so_far_back(journal: Journal) -> None:
    """Entries of the last hour are there; with a duration of nothing they are not."""
    send(journal, [1])
    await asyncio.sleep(2.1)  # --since counts whole seconds
    send(journal, [2])
    hour, instant = Agent(directory=journal.volatile, start="1h"), Agent(directory=journal.volatile, start="1s")
    async with hour.running(), instant.running():
        await hour.until(lambda: numbers_of(hour.events) == [1, 2])
        await instant.until(lambda: numbers_of(instant.events) == [2])


def test_kills_lose_and_repeat_nothing(journal: Journal, tmp_path: Path) -> None:
    """kill -9 at any moment while entries stream in and files rotate: each number once, in order."""
    config = {"type": "journald", "directory": journal.volatile, "start": "beginning"}
    sent = 0
    for _ in range(6):
        with InputProcess(tmp_path / "state", "journald", config) as process:
            for _ in range(4):
                send(journal, range(sent, sent + 500))
                sent += 500
                journal.rotate()
            process.wait_for_events(sent // 2)
            process.kill()
    with InputProcess(tmp_path / "state", "journald", config) as process:
        process.wait_for_events(sent, of=is_numbered)
        send(journal, [sent])
        events = process.wait_for_events(sent + 1, of=is_numbered)
    assert numbers_of(events) == list(range(sent + 1))


def test_a_kill_leaves_no_journalctl_behind(journal: Journal, tmp_path: Path) -> None:
    """It sees that nobody reads any more, also while the journal is silent."""
    config = {"type": "journald", "directory": journal.volatile, "start": "beginning"}
    send(journal, [0])
    with InputProcess(tmp_path / "state", "journald", config) as process:
        process.wait_for_events(1, of=is_numbered)
        (child,) = children("journalctl", parent=process.pid)
        process.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_journalctl_that_dies_is_started_again_where_it_was(journal: Journal) -> None:
    """Whatever ends the child (memory, an administrator): no entry is lost or doubled."""
    agent = Agent(directory=journal.volatile)
    async with agent.running():
        for round_ in range(5):
            send(journal, range(round_ * 100, round_ * 100 + 100))
            await agent.until(lambda: len(numbers_of(agent.events)) > 10)
            for pid in children("journalctl"):
                kill(pid)
        await agent.until(lambda: len(numbers_of(agent.events)) >= 500)
    assert numbers_of(agent.events) == list(range(500))
    assert agent.dropped("removed_from_journal") == 0


def children(name: str, parent: int = os.getpid()) -> list[int]:
    """Children of the process that run the program."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        with contextlib.suppress(OSError):  # threads and children end while we look
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    if name in Path(f"/proc/{pid}/cmdline").read_text():
                        found.append(int(pid))
    return found


def kill(pid: int) -> None:
    """As the kernel does it when memory ends."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def test_entries_that_were_thrown_away_are_told_and_counted(journal: Journal) -> None:
    """While the agent was down journald vacuumed: the number is in the event and in the metric, the rest arrives."""
    send(journal, range(100))
    first = Agent(directory=journal.volatile)
    async with first.running():
        await first.until(lambda: len(numbers_of(first.events)) == 100)
    send(journal, range(100, 400))
    archived = await rotate(journal, after=399)
    send(journal, range(400, 450))
    for path in archived:
        path.unlink()  # as vacuuming does
    second = Agent(first.positions, directory=journal.volatile)
    async with second.running():
        await second.until(lambda: len(numbers_of(second.events)) == 50)
    gap = second.events[0]
    assert numbers_of(second.events) == list(range(400, 450))
    assert gap["event"]["kind"] == "pipeline_error"
    missing = gap["journald"]["gap"]["entries"]
    assert 300 <= missing <= 303  # journald itself says a word or two
    assert second.dropped("removed_from_journal") == missing


async def test_entries_that_nobody_wanted_are_not_missed_later(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were looked at: that journald vacuums them afterwards is no loss, though no event carried the position."""
    monkeypatch.setattr(journald, "_NOTE_SECONDS", 0.0)
    filters = {"directory": journal.volatile, "identifiers": ("numbers",)}
    send(journal, [0])
    first = Agent(**filters)
    async with first.running():
        await first.until(lambda: numbers_of(first.events) == [0])
        begun = _last_number(first.positions)
        for number in range(1, 50):
            journal.send({"MESSAGE": f"entry {number}", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "chatter"})
        journal.wait_for("entry 49")
        await first.until(lambda: _last_number(first.positions) >= begun + 49)
    archived = await rotate(journal, after=49)
    send(journal, [50])
    journal.wait_for("entry 50")
    for path in archived:
        path.unlink()
    second = Agent(first.positions, **filters)
    async with second.running():
        await second.until(lambda: 50 in numbers_of(second.events))
    assert numbers_of(second.events) == [50]
    assert [one for one in second.events if one["event"]["kind"] == "pipeline_error"] == []
    assert second.dropped("removed_from_journal") == 0


def _last_number(positions: Positions) -> int:
    return Cursor.parse((positions.last("journald") or b"").decode()).number


async def rotate(journal: Journal, *, after: int) -> list[Path]:
    """Rotate behind this entry; the files that are archives now."""
    journal.wait_for(f"entry {after}")
    before = set(journal.volatile.rglob("*@*.journal"))
    journal.rotate()
    async with asyncio.timeout(10):
        while not (found := set(journal.volatile.rglob("*@*.journal")) - before):
            await asyncio.sleep(0.01)
    return sorted(found)


async def test_a_hole_while_reading_is_told_too(journal: Journal) -> None:
    """The agent was held up, and files went in the meantime: seen by the numbers, without a restart."""
    agent = Agent(directory=journal.volatile)
    held = asyncio.Event()
    plain = agent.accept

    async def slowly(batch: Batch) -> None:
        await plain(batch)
        if numbers_of(agent.events):
            await held.wait()

    agent.accept = slowly  # type: ignore[method-assign]
    async with agent.running():
        send(journal, [0])
        await agent.until(lambda: numbers_of(agent.events) == [0])
        send(journal, range(1, 3000))  # more than the pipe holds
        for path in await rotate(journal, after=2999):
            path.unlink()
        for pid in children("journalctl"):
            kill(pid)  # it would still have the deleted file open
        send(journal, [3000])
        held.set()
        await agent.until(lambda: numbers_of(agent.events)[-1] == 3000)
    got = numbers_of(agent.events)
    assert got == sorted(set(got))
    lost = 3001 - len(got)
    assert lost > 0
    assert lost <= agent.dropped("removed_from_journal") <= lost + 3


@pytest.mark.usefixtures("place")
async def test_the_move_to_var_keeps_the_place() -> None:
    """At boot journald copies /run to /var with other numbers: nothing twice, nothing lost, no gap."""
    memory = tempfile.TemporaryDirectory(dir="/dev/shm")  # journald only gives up a /run that is in memory
    with memory as directory, Journal(Path(directory), persistent=True) as journal:
        send(journal, range(50))
        first = Agent(directory=journal.volatile)
        async with first.running():
            await first.until(lambda: len(numbers_of(first.events)) == 50)
        send(journal, range(50, 80))
        journal.wait_for("entry 79")
        journal.flush()
        send(journal, range(80, 100))
        second = Agent(first.positions, directory=journal.persistent)
        async with second.running():
            await second.until(lambda: len(numbers_of(second.events)) >= 50)
    assert numbers_of(second.events) == list(range(50, 100))
    assert second.dropped("removed_from_journal") == 0


async def test_a_missing_directory_is_an_error_of_the_start(tmp_path: Path) -> None:
    """It names the place."""
    need_program("journalctl")
    agent = Agent(directory=tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="nowhere"):
        await agent.input.start()


async def test_a_position_that_is_none_begins_anew(journal: Journal) -> None:
    """A damaged checkpoint costs repetition, never a loss."""
    send(journal, [1])
    positions = Positions()
    positions.table["journald"] = b"\xff garbage"
    agent = Agent(positions, directory=journal.volatile, start="end")
    async with agent.running():
        await agent.until(lambda: numbers_of(agent.events) == [1])
