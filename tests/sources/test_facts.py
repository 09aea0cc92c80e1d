"""What decoded events say of their senders: format, framing, clock, failures; and the channels of agents."""

from datetime import UTC, datetime

import pytest
from source_world import MONDAY, World, agent, batch_of, device, event_of

from ndagent.wire.record import Flags, Origin
from ndcollector.sources import facts
from ndcollector.sources.alerts import origin_of
from ndcollector.sources.facts import Facts


def rfc5424(at: float) -> bytes:
    time = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
    return f"<34>1 {time} host app 7 - - hello".encode()


async def test_format_framing_and_clock_of_each_sender_of_a_joint_chunk() -> None:
    """Two formats, one that tells no time, one that speaks nonsense; a clock that is seven seconds ahead."""
    it = World()
    senders = {
        device("new"): [rfc5424(it.now + 7)] * 3,
        device("old"): [b"<34>Nov 24 00:00:00 host app: hello"],
        device("timeless"): [b"<34>1 - host app 7 - - hello"],
        device("nonsense"): [b"hello", b"<34>Nov 24 00:00:00 host app: hello", b"there"],
    }
    it.decoded(batch_of(senders, at=it.now))
    await it.look()
    found = {row["name"].removeprefix("nd:device:"): row for row in it.sources.plain()}  # type: ignore[attr-defined]
    assert {name: row["format"] for name, row in found.items()} == {
        "new": "rfc5424", "old": "rfc3164", "timeless": "rfc5424", "nonsense": "unparsed",
    }  # fmt: skip
    assert {name: row["parse_failures"] for name, row in found.items()} == {
        "new": 0, "old": 0, "timeless": 0, "nonsense": 2,
    }  # fmt: skip
    assert found["new"]["clock_skew_seconds"] == pytest.approx(7, abs=0.01)
    assert found["old"]["clock_skew_seconds"] == pytest.approx(0, abs=0.01)
    assert found["timeless"]["clock_skew_seconds"] is None
    assert {row["framing"] for row in found.values()} == {"lf"}


async def test_senders_of_every_input_are_there_under_the_ledgers_names() -> None:
    """Devices by certificate, by foreign subject and by address, agents, exporters, topics; not our own words."""
    it = World()
    it.heard_from(
        {
            device("fw-1"): 1,
            Origin("syslog_tls", "192.0.2.2", 1, subject="CN=printer,O=Example"): 1,
            Origin("syslog_udp", "192.0.2.3", 514): 1,
            Origin("syslog_udp", "192.0.2.3", 1514): 1,
            Origin("netflow", "192.0.2.4", 2055): 1,
            agent("a1"): 1,
            Origin("mqtt_broker", "192.0.2.5", 8883, names=("URI:nd:agent:a2",), spool_id="s", clock_skew_seconds=1): 1,
            Origin("kafka", "bus:9092/logs", 0): 1,
            origin_of("here"): 1,
        }
    )
    await it.live(1)
    assert {row["name"]: (row["input"], row["events"]) for row in it.sources.plain()} == {
        "nd:device:fw-1": ("syslog_tls", 1),
        "CN=printer,O=Example": ("syslog_tls", 1),
        "192.0.2.3": ("syslog_udp", 2),
        "192.0.2.4": ("netflow", 1),
        "nd:agent:a1": ("https", 1),
        "nd:agent:a2": ("mqtt_broker", 1),
        "bus:9092/logs": ("kafka", 1),
    }


async def test_what_was_cut_or_badly_framed_is_counted_by_sender() -> None:
    """As the sections' flags say it."""
    it = World()
    for flags in (Flags.TRUNCATED, Flags.FRAMING_ERROR, Flags.NONE):
        it.decoded(batch_of({device("fw"): [rfc5424(it.now)] * 2}, at=it.now, flags=flags))
    await it.look()
    row = it.row("nd:device:fw")
    assert (row["events"], row["truncated"], row["framing_errors"]) == (6, 2, 2)


async def test_an_agents_failures_and_clock() -> None:
    """Failures of events that came as ECS, alone and in a joint chunk; the clock is what its envelope said."""
    it = World()
    bad, good = b"{bad", event_of("d")
    it.decoded(batch_of({agent("a1"): [bad, good]}, at=it.now, form="ecs"))
    it.decoded(batch_of({agent("a1"): [good], agent("a2"): [bad, bad]}, at=it.now, form="ecs"))
    await it.look()
    assert it.row("nd:agent:a1")["parse_failures"] == 1
    assert it.row("nd:agent:a2")["parse_failures"] == 2
    assert it.row("nd:agent:a1")["clock_skew_seconds"] == 3


async def test_the_channels_of_an_agent_are_sources_of_their_own() -> None:
    """By dataset and by Windows event log; what a message quotes is no channel."""
    it = World()
    log = event_of("windows.security", winlog={"channel": "Security"})
    quote = event_of("app", message='{"dataset":"forged"}')
    it.decoded(batch_of({agent(): [event_of("journald.log")] * 5 + [log] * 2 + [quote]}, at=it.now, form="ecs"))
    await it.look()
    rows = {row["channel"]: row["events"] for row in it.sources.plain()}
    assert rows == {"": 8, "journald.log": 5, "windows.security": 2, "Security": 2, "app": 1}


async def live_agent(it: World, seconds: float, **every: int) -> None:
    """An agent whose channels speak at such intervals."""

    def speak(passed: float) -> None:
        lines = [event_of(name) for name, pause in every.items() if passed % pause == 0]
        if lines:
            it.decoded(batch_of({agent(): lines}, at=it.now, form="ecs"))

    await it.live(seconds, speak, step=10)


async def test_a_channel_goes_quiet_while_its_agent_speaks_on() -> None:
    """Exactly one event, which names the channel; and one when it is back."""
    it = World()
    await live_agent(it, 7200, audit=60, file=10)
    await live_agent(it, 3600, file=10)
    assert [(one["ndcollector"]["source"]["channel"], one["event"]["action"]) for one in it.said] == [
        ("audit", "source-quiet"),
    ]  # fmt: skip
    assert it.said[0]["message"].startswith("nd:agent:a1 (audit) has been quiet for 10")
    await live_agent(it, 60, audit=60, file=10)
    assert [one["event"]["action"] for one in it.said] == ["source-quiet", "source-back"]


async def test_an_agent_that_dies_is_one_event_and_not_one_for_each_of_its_channels() -> None:
    """And when it is back its channels have their time; only the one that stays away is told of."""
    it = World()
    await live_agent(it, 7200, audit=60, file=10, disk=30)
    await it.live(3600, step=10)
    assert it.actions() == [("nd:agent:a1", "source-quiet")]
    await live_agent(it, 590, file=10, disk=30)
    assert it.actions()[1:] == [("nd:agent:a1", "source-back")]
    await live_agent(it, 60, file=10, disk=30)
    assert [one["ndcollector"]["source"].get("channel") for one in it.said] == [None, None, "audit"]


async def test_outputs_that_lag_make_no_channel_quiet() -> None:
    """Channels are seen only in decoded events: what waits in the spool may be theirs."""
    it = World()
    await live_agent(it, 7200, audit=60, file=10)
    waiting = []

    def speak(passed: float) -> None:
        batch = batch_of({agent(): [event_of("audit"), event_of("file")]}, at=it.now, form="ecs")
        it.committed(batch)
        waiting.append(batch)

    await it.live(4 * 3600, speak, step=60)
    assert it.said == []
    for batch in waiting:
        it.decoded(batch, is_new=False)
    await it.live(60)
    assert it.said == []
    assert it.row("nd:agent:a1", "audit")["last_seen"] == pytest.approx(it.now - 120, abs=61)


async def test_a_rare_channel_of_a_busy_agent_is_found_before_it_is_called_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is looked at of it in a second is less than it sends, so the rare events hide; in doubt all is searched."""
    monkeypatch.setattr(facts, "AGENT_BYTES", 2000)
    it = World()
    busy = [event_of("busy")] * 40
    await live_agent(it, 7200, rare=60)

    async def spell(seconds: float, every: int) -> None:
        def speak(passed: float) -> None:
            hidden = [event_of("rare")] if every and passed % every == 0 else []
            it.decoded(batch_of({agent(): [*busy, *hidden]}, at=it.now, form="ecs"))

        await it.live(seconds, speak, step=10)

    await spell(2 * 3600, 60)
    assert it.said == []
    assert it.row("nd:agent:a1", "busy")["events_are_an_estimate"]
    assert it.row("nd:agent:a1", "busy")["events"] == pytest.approx(40 * 7200 / 10, rel=0.1)
    await spell(2 * 3600, 0)
    assert [one["ndcollector"]["source"]["channel"] for one in it.said] == ["rare"]


def test_what_is_kept_of_a_second_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples, regions, failures: hostile chunks cost memory up to the limits and no more."""
    monkeypatch.setattr(facts, "SAMPLES", 5)
    monkeypatch.setattr(facts, "REGION_BYTES", 4000)
    monkeypatch.setattr(facts, "FAILING", 7)
    it = World()
    for number in range(20):
        it.decoded(batch_of({agent(f"a{number}"): [event_of("d")] * 10}, at=MONDAY, form="ecs"))
        it.decoded(batch_of({device(f"d{number}"): [b"nonsense"], device(f"e{number}"): [b"nonsense"]}, at=MONDAY))
    found: Facts = it.sources._facts
    assert len(found.samples) == 5
    assert sum(len(region.lines) for region in found.regions) <= 4000
    assert len(found.failures) == 7
