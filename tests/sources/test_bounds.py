"""Limits: how many sources are remembered, who must go, and what a hostile sender may call itself."""

import pytest
from source_world import World, agent, batch_of, device, event_of

from ndagent.wire.record import Origin
from ndcollector.ledger.origins import LONGEST_NAME
from ndcollector.sources import sources as module
from ndcollector.sources.command import table
from ndcollector.sources.sources import NEWCOMERS
from ndcollector.sources.table import NoPlace

FORGED = 100_000


def forged(first: int, count: int) -> dict[Origin, int]:
    """One datagram each from so many addresses."""
    numbers = range(first, first + count)
    return {Origin("syslog_udp", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 514): 1 for n in numbers}


async def test_a_hundred_thousand_forged_addresses_push_out_one_another_and_nobody_else() -> None:
    """At once and spread over a minute: the table keeps its bound, all are counted, the devices keep their rhythm."""
    most, spread = 3000, 20_000
    it = World(max_sources=most)
    await it.rhythm(2 * 3600, "fw-1", "fw-2")
    it.heard_from(forged(0, FORGED))
    await it.tick()
    assert len(it.sources) == NEWCOMERS + 2
    assert it.count("sources_passed_over") == FORGED - NEWCOMERS
    for first in range(FORGED, FORGED + spread, NEWCOMERS):
        it.heard_from(forged(first, NEWCOMERS))
        await it.live(1)
    assert len(it.sources) == most
    assert it.count("sources_evicted") == NEWCOMERS + spread - (most - 2)
    remembered = {row["address"] for row in it.sources.plain("10.*")}
    newest = {one.address for one in forged(FORGED + spread - most + 2, most - 2)}
    assert remembered == newest, "the least recently heard went first"
    await it.rhythm(120, "fw-2")
    await it.live(600)
    assert set(it.actions()) == {("nd:device:fw-1", "source-quiet"), ("nd:device:fw-2", "source-quiet")}


async def test_the_limit_is_exact_and_who_had_to_go_is_deleted_from_the_file() -> None:
    """One more than fits; and it may come again."""
    it = World(max_sources=3)
    for name in ("a", "b", "c", "a", "d"):
        it.heard(**{name: 1})
        await it.live(1)
    assert {row["name"] for row in it.sources.plain()} == {"nd:device:a", "nd:device:c", "nd:device:d"}
    assert it.sources.changes(everything=False).gone == [("nd:device:b", "")]
    it.heard(b=1)
    await it.live(1)
    assert it.row("nd:device:b")["events"] == 1
    assert it.count("sources_evicted") == 2


async def test_established_sources_give_way_only_when_there_is_nobody_else_and_expected_ones_never() -> None:
    """A new device gets its place, at the cost of whoever was silent for longest."""
    it = World(max_sources=3)
    await it.rhythm(2 * 3600, "old", "older")
    it.sources.expect("nd:device:wanted", "", 86400.0)
    it.heard(old=1)
    await it.live(1)
    it.heard(new=1)
    await it.live(1)
    assert {row["name"] for row in it.sources.plain()} == {"nd:device:old", "nd:device:wanted", "nd:device:new"}
    for name in ("nd:device:new", "nd:device:old"):
        it.sources.expect(name, "", 86400.0)
    it.heard(late=1)
    await it.live(1)
    assert len(it.sources) == 3
    assert it.count("sources_passed_over") == 1
    with pytest.raises(NoPlace):
        it.sources.expect("nd:device:another", "", 60.0)


async def test_so_many_channels_of_an_agent_and_the_rest_together() -> None:
    """max_channels; 0 switches them off."""
    it = World(max_channels=2)
    it.decoded(batch_of({agent(): [event_of(f"d{n}") for n in range(10)]}, at=it.now, form="ecs"))
    await it.look()
    rows = {row["channel"]: row["events"] for row in it.sources.plain()}
    assert rows == {"": 10, "d0": 1, "d1": 1, module.OTHERS: 8}
    none = World(max_channels=0)
    none.decoded(batch_of({agent(): [event_of("d")]}, at=none.now, form="ecs"))
    await none.look()
    assert [row["channel"] for row in none.sources.plain()] == [""]


async def test_hostile_names_are_cut_and_a_terminal_obeys_none() -> None:
    """Long, with control characters, and one of the names that are nobody's."""
    names = ["x" * 10_000, "\x1b[2J\x07evil\n", "(others)", "\ud800"]
    it = World()
    it.heard_from({Origin("syslog_tls", "192.0.2.1", 1, subject=name): 1 for name in names[:3]})
    it.sources.expect(names[3], "c" * 10_000, 60.0)
    await it.live(1)
    rows = it.sources.plain()
    assert len(rows) == 4
    assert all(len(str(row["name"])) <= LONGEST_NAME and len(str(row["channel"])) <= 128 for row in rows)
    assert '"(others)"' in {row["name"] for row in rows}
    text = "\n".join(table(rows, it.now))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert text.count("\n") == len(rows)


async def test_more_senders_in_a_second_than_can_be_noted_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept between two looks is bounded as well."""
    monkeypatch.setattr(module, "MOST_HEARD", 10)
    it = World()
    it.heard_from({device(f"d{n}"): 1 for n in range(25)})
    await it.live(1)
    assert len(it.sources) == 10
    assert it.count("sources_passed_over") == 15


async def test_a_flood_of_forged_addresses_calls_no_device_quiet() -> None:
    """One that speaks seldom, each time from another port, amid more newcomers than are taken up, before and after."""
    it = World(max_sources=5000)

    def speak(passed: float) -> None:
        if passed % 60 == 0:
            it.heard_from({Origin("syslog_udp", "192.0.2.7", 1024 + int(passed) % 60_000): 1})

    await it.live(2 * 3600, speak, step=60)
    for minute in range(20):
        it.heard_from({**forged(minute * 2000, 2000), Origin("syslog_udp", "192.0.2.7", 5000 + minute): 1})
        await it.live(60, step=60)
    assert it.actions() == []
    assert it.row("192.0.2.7")["events"] == 120 + 20
    assert it.count("sources_passed_over") == 20 * (2000 - NEWCOMERS)


async def test_who_is_known_is_heard_however_many_others_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind as many strangers as can be noted between two looks."""
    it = World()
    it.heard(known=1)
    await it.live(1)
    monkeypatch.setattr(module, "MOST_HEARD", 10)
    it.heard_from({**forged(0, 20), device("known"): 1})
    await it.live(1)
    assert it.row("nd:device:known")["events"] == 2


async def test_an_agents_channels_are_bounded_after_a_restart_too() -> None:
    """Rows come back in the order in which they were heard, channels before their agent."""
    it = World(max_channels=2)
    for start in (0, 10, 20):
        it.decoded(batch_of({agent(): [event_of(f"d{n}") for n in range(start, start + 5)]}, at=it.now, form="ecs"))
        await it.look()
        it.heard_from({agent(): 1})
        await it.live(1)
        it.restart()
    assert {row["channel"] for row in it.sources.plain()} == {"", "d0", "d1", module.OTHERS}
