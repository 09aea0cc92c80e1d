"""What an agent gives up while its collector is away: every event in a sum, by input and time. (Time is simulated.)"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig
from ndagent.shed import UNREADABLE, ShedBook
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section

START_NS = 1_700_000_000_000_000_000
HOUR_NS = 3600 * 10**9
LINE = b'{"message":"%d"}\n'


class Clock:
    """Time that moves when a test says so; Unix nanoseconds."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> float:
        return self.now_ns / 1e9


def batch(at_ns: int, **counts: int) -> Batch:
    """Events of several inputs in one record."""
    sections, payload = [], []
    for name, count in counts.items():
        lines = b"".join(LINE % number for number in range(count))
        sections.append(Section(Origin(name, "", 0), Framing.LF, Flags.NONE, len(lines), count))
        payload.append(lines)
    return Batch("security_events", "ecs", at_ns, sections, payload)


Open = Callable[..., Awaitable[Spool]]


@pytest.fixture
async def open_spool(tmp_path: Path) -> AsyncIterator[Open]:
    """A small spool with one cursor that lets its oldest events go."""
    opened: list[Spool] = []

    async def opening(book: ShedBook, clock: Clock, **settings: Any) -> Spool:
        config = SpoolConfig(**{"max_bytes": 1 << 16, "segment_bytes": 8192, **settings})
        spool = await Spool.open(
            tmp_path / "spool", stream="security_events", config=config, metrics=Metrics(exported=False), clock=clock,
            mourn=book.mourn,
        )  # fmt: skip
        spool.cursor("collector", on_full="drop_oldest")
        opened.append(spool)
        return spool

    yield opening
    for spool in opened:
        await spool.aclose()


async def test_a_day_without_a_collector_is_accounted_for_to_the_last_event(tmp_path: Path, open_spool: Open) -> None:
    """The spool fills to its cap, the oldest go, and the sums say how many of which input, from when to when."""
    clock, book = Clock(), ShedBook(tmp_path / "shed.json")
    spool = await open_spool(book, clock)
    for _ in range(24 * 60):
        await spool.append(batch(clock.now_ns, auth=7, journald=3))
        clock.now_ns += HOUR_NS // 60
    assert spool.total_bytes <= 1 << 16
    account = spool.cursors["collector"].account()
    sums = {shed.input: shed for shed in book.totals()}
    assert sums.keys() == {"auth", "journald"}
    assert sums["auth"].events + sums["journald"].events == account.evicted > 0
    assert sums["auth"].events == account.evicted * 7 // 10
    assert account.evicted + account.pending == 24 * 60 * 10
    assert sums["auth"].since_ns == START_NS
    kept_minutes = account.pending // 10
    assert sums["auth"].until_ns == START_NS + (24 * 60 - kept_minutes - 1) * HOUR_NS // 60


async def test_what_was_delivered_of_a_segment_is_not_counted(tmp_path: Path, open_spool: Open) -> None:
    """The cursor stood inside a record when its segment had to go."""
    clock, book = Clock(), ShedBook(tmp_path / "shed.json")
    spool = await open_spool(book, clock)
    await spool.append(batch(clock.now_ns, auth=10, journald=10))
    spool.cursors["collector"].advance(13)
    while not book.totals():
        await spool.append(batch(clock.now_ns, later=100))
    sums = {shed.input: shed.events for shed in book.totals()}
    assert "auth" not in sums
    assert sums["journald"] == 7
    assert sum(sums.values()) == spool.cursors["collector"].account().evicted


async def test_the_sums_survive_a_restart_and_go_on(tmp_path: Path, open_spool: Open) -> None:
    """A collector that comes back after the agent was restarted hears of all of it."""
    clock, book = Clock(), ShedBook(tmp_path / "shed.json")
    spool = await open_spool(book, clock)
    while not book.totals():
        await spool.append(batch(clock.now_ns, auth=100))
    before = book.totals()[0].events
    again = ShedBook(tmp_path / "shed.json")
    assert again.totals() == book.totals()
    await spool.aclose()
    spool = await open_spool(again, clock)
    while again.totals()[0].events == before:
        await spool.append(batch(clock.now_ns, auth=100))
    assert again.totals()[0].events == spool.cursors["collector"].account().evicted


async def test_a_damaged_segment_loses_its_inputs_name_and_no_event(tmp_path: Path, open_spool: Open) -> None:
    """Bytes that nobody can read were events all the same."""
    clock, book = Clock(), ShedBook(tmp_path / "shed.json")
    spool = await open_spool(book, clock)
    await spool.append(batch(clock.now_ns, auth=50))
    (segment,) = (tmp_path / "spool").glob("*.seg")
    content = bytearray(segment.read_bytes())
    content[-20] ^= 1
    segment.write_bytes(content)
    while not book.totals():
        await spool.append(batch(clock.now_ns, later=100))
    sums = {shed.input: shed.events for shed in book.totals()}
    assert sums[UNREADABLE] >= 50
    assert sum(sums.values()) == spool.cursors["collector"].account().evicted


async def test_events_older_than_max_age_are_given_up_and_told(tmp_path: Path, open_spool: Open) -> None:
    """A quiet agent keeps a week, not for ever; what is younger stays."""
    clock, book = Clock(), ShedBook(tmp_path / "shed.json")
    spool = await open_spool(book, clock, max_age=4.0)
    await spool.append(batch(clock.now_ns, old=5))
    clock.now_ns += 2 * 10**9
    async with asyncio.timeout(20):
        while len(list((tmp_path / "spool").glob("*.seg"))) < 2:  # the segment is begun anew by age
            await spool.append(batch(clock.now_ns, young=1))
            await asyncio.sleep(0.05)
        clock.now_ns += 5 * 10**9
        await spool.append(batch(clock.now_ns, young=1))
        while not book.totals():
            await asyncio.sleep(0.05)
    assert {shed.input for shed in book.totals()} <= {"old", "young"}
    assert next(shed.events for shed in book.totals() if shed.input == "old") == 5
    account = spool.cursors["collector"].account()
    assert account.pending >= 1
    assert sum(shed.events for shed in book.totals()) == account.evicted


async def test_a_file_of_sums_that_is_damaged_costs_what_it_said(tmp_path: Path) -> None:
    """The agent starts all the same."""
    (tmp_path / "shed.json").write_bytes(b'[{"input": 3')
    assert ShedBook(tmp_path / "shed.json").totals() == ()
