"""A source that goes quiet against its own rhythm is told of once, and once when it is back; nobody else is."""

from dataclasses import replace

import pytest
from source_world import MONDAY, World, agent, batch_of, device, event_of

HOUR, DAY = 3600.0, 86400.0


async def test_a_device_silent_for_its_own_tenfold_interval_raises_exactly_one_alert() -> None:
    """It spoke every minute for a day: after ten minutes of silence, to the second, and never again after that."""
    it = World()
    await it.rhythm(DAY, "fw-1")
    last = it.now - 60
    await it.live(600 - 60)
    assert it.said == []
    await it.live(2)
    assert it.actions() == [("nd:device:fw-1", "source-quiet")]
    await it.live(3 * DAY, step=30)
    assert len(it.said) == 1
    (alert,) = it.said
    assert alert["event"]["kind"] == "alert"
    assert alert["event"]["duration"] / 1e9 == pytest.approx(600, abs=2)
    assert alert["message"] == "nd:device:fw-1 has been quiet for 10 min; it usually speaks every 60 s"
    assert it.row("nd:device:fw-1")["state"] == "quiet"
    assert it.row("nd:device:fw-1")["last_seen"] == last


async def test_it_is_told_of_once_more_when_it_is_back() -> None:
    """And then watched as before."""
    it = World()
    await it.rhythm(DAY, "fw-1")
    await it.live(HOUR)
    for _ in range(3):  # three messages, one event
        it.heard(**{"fw-1": 1})
        await it.live(60)
    assert it.actions() == [("nd:device:fw-1", "source-quiet"), ("nd:device:fw-1", "source-back")]
    assert it.said[1]["message"] == "nd:device:fw-1 is back after 61 min"
    await it.live(DAY, step=10)
    assert [action for _, action in it.actions()] == ["source-quiet", "source-back", "source-quiet"]


async def test_each_is_measured_by_its_own_rhythm() -> None:
    """Ten minutes are nothing for one that speaks every hour; `shortest_quiet` spares one that speaks all the time."""
    it = World()

    def speak(passed: float) -> None:
        it.heard(**{"fast": 50} | ({"hourly": 1} if passed % HOUR == 0 else {}))

    await it.live(DAY, speak, step=5)
    await it.live(295, step=5)
    assert it.said == []
    await it.live(10)
    assert it.actions() == [("nd:device:fast", "source-quiet")]
    await it.live(8 * HOUR, step=10)
    assert len(it.said) == 1
    await it.live(2 * HOUR, step=10)
    assert it.actions()[1:] == [("nd:device:hourly", "source-quiet")]


async def test_the_bounds_are_the_configurations() -> None:
    """quiet_factor, shortest_quiet, longest_quiet; nobody is quiet before twice the usual pause."""
    it = World(quiet_factor=3.0, shortest_quiet="10s", longest_quiet="1h")
    await it.rhythm(6 * HOUR, "minute")
    assert it.row("nd:device:minute")["quiet_after_seconds"] == pytest.approx(180, rel=0.01)
    await it.rhythm(DAY, "hourly", every=3600)
    assert it.row("nd:device:hourly")["quiet_after_seconds"] == pytest.approx(7200, rel=0.01)


async def test_who_is_known_for_less_than_learn_or_has_no_rhythm_is_not_watched() -> None:
    """A scan that passes by is no source that went quiet."""
    it = World(learn="1d")
    await it.rhythm(HOUR, "new")
    it.heard(once=1)
    await it.live(22 * HOUR, step=30)
    assert it.said == []
    await it.live(2 * HOUR, step=30)
    assert it.actions() == [("nd:device:new", "source-quiet")], "a day after it was first seen"
    assert it.row("nd:device:once")["quiet_after_seconds"] is None


async def test_a_restart_neither_repeats_nor_forgets() -> None:
    """Quiet stays quiet, the rhythm stays, and back is said by the next process."""
    it = World()
    await it.rhythm(DAY, "fw-1", "fw-2")
    await it.rhythm(HOUR, "fw-2")
    assert it.actions() == [("nd:device:fw-1", "source-quiet")]
    it.restart(down_seconds=30)
    await it.rhythm(HOUR, "fw-2")
    assert len(it.said) == 1
    it.heard(**{"fw-1": 1, "fw-2": 1})
    await it.live(1)
    assert it.actions()[1:] == [("nd:device:fw-1", "source-back")]
    await it.live(598)
    assert len(it.said) == 2
    await it.live(61)
    assert ("nd:device:fw-2", "source-quiet") in it.actions(), "it has not been learned anew"


async def test_what_nobody_listened_to_is_nobodys_silence() -> None:
    """The collector down for hours, and then everybody silent for less than their ten minutes."""
    it = World()
    await it.rhythm(DAY, "fw-1")
    it.restart(down_seconds=5 * HOUR)
    await it.live(595)
    assert it.said == []
    it.heard(**{"fw-1": 1})
    await it.live(1)
    assert it.row("nd:device:fw-1")["usual_pause_seconds"] == pytest.approx(60, rel=0.01), "five hours taught nothing"
    await it.live(HOUR)
    assert it.actions() == [("nd:device:fw-1", "source-quiet")]


async def test_an_input_that_is_down_or_removed_makes_nobody_quiet() -> None:
    """Its senders' silence counts from when it listens again; those of other inputs go on."""
    it = World()

    def speak(passed: float) -> None:
        if passed % 60 == 0:
            it.heard_from({device("tls"): 1, device("udp", input_name="syslog_udp"): 1})

    await it.live(DAY, speak, step=60)
    it.listening = {"syslog_udp"}
    await it.live(5 * HOUR, step=10)
    assert it.actions() == [("nd:device:udp", "source-quiet")]
    it.listening = {"syslog_udp", "syslog_tls"}
    await it.live(590)
    assert len(it.said) == 1
    await it.live(30)
    assert it.actions()[1:] == [("nd:device:tls", "source-quiet")]


@pytest.mark.parametrize("jump", [-30 * DAY, -HOUR, HOUR, 30 * DAY])
async def test_a_clock_that_jumps_makes_nobody_quiet(jump: float) -> None:
    """Forward or back: silence counts from then on, in the time that really passes."""
    it = World()
    await it.rhythm(DAY, "fw-1")
    it.now += jump
    await it.live(590)
    assert it.said == []
    it.heard(**{"fw-1": 1})
    await it.live(60)
    assert it.said == []
    await it.live(HOUR)
    assert it.actions() == [("nd:device:fw-1", "source-quiet")]


async def test_what_came_before_the_clock_was_set_back_was_not_heard_in_the_future() -> None:
    """Its last messages bear a time of next year: its silence counts from now, and it is saved within a minute."""
    it = World()
    await it.rhythm(HOUR, "fw-1")
    it.heard(**{"fw-1": 1})
    it.now -= 365 * DAY
    await it.live(70)
    assert [row[0] for row in it.sources.changes(everything=False).rows] == ["nd:device:fw-1"]
    await it.live(900, step=5)
    assert it.actions() == [("nd:device:fw-1", "source-quiet")]


async def test_an_agent_that_came_back_before_the_clock_was_set_back_has_its_channels_watched() -> None:
    """A moment of next year is not when its channels' time begins."""
    it = World()
    one = batch_of({agent(): [event_of("d")]}, at=it.now, form="ecs")

    def speak(passed: float) -> None:
        if passed % 60 == 0:
            it.heard_from({agent(): 1})
            it.decoded(replace(one, received_at_ns=round(it.now * 1e9)))

    await it.live(HOUR, speak, step=10)
    await it.live(HOUR, step=10)  # quiet
    await it.live(HOUR, speak, step=10)  # and back
    it.now -= 365 * DAY
    it.said.clear()
    await it.live(HOUR, lambda passed: it.heard_from({agent(): 1}) if passed % 60 == 0 else None, step=10)
    assert [one["ndcollector"]["source"].get("channel") for one in it.said] == ["d"]


async def test_a_person_says_what_to_expect() -> None:
    """At once and exactly; never; one that has never come; and back to what was learned."""
    it = World(learn="1d")
    await it.rhythm(HOUR, "fw-1", "fw-2")
    assert it.sources.expect("nd:device:fw-1", "", 90.0)["quiet_after_seconds"] == 90
    it.sources.expect("nd:device:fw-2", "", -1.0)
    it.sources.expect("nd:device:spare", "", 300.0)
    assert it.row("nd:device:spare")["state"] == "awaited"
    await it.live(35)
    assert it.actions() == [("nd:device:fw-1", "source-quiet")]
    assert "a person expects more" in it.said[0]["message"]
    await it.live(300)
    assert it.actions()[1:] == [("nd:device:spare", "source-quiet")]
    it.heard(spare=1)
    await it.live(1)
    assert it.actions()[2:] == [("nd:device:spare", "source-back")]
    it.sources.expect("nd:device:spare", "", -1.0)
    it.sources.expect("nd:device:fw-1", "", 0.0)
    await it.live(3 * DAY, step=60)
    assert len(it.said) == 3, "fw-2 and spare are never quiet, fw-1 is already"
    with pytest.raises(LookupError):
        it.sources.expect("nobody", "", 0.0)


async def test_a_thousand_wishes_leave_one_moment_to_look_at_each() -> None:
    """A script sets them for every device, again and again; each counts from when it was said, in either direction."""
    it = World()
    await it.rhythm(HOUR, "fw-1", "fw-2")
    for seconds in range(1000, 0, -1):
        it.sources.expect("nd:device:fw-1", "", float(seconds + 100))
    it.sources.expect("nd:device:fw-2", "", 900.0)
    assert len(it.sources._silence._heap) == 2
    await it.live(60)
    assert it.actions() == [("nd:device:fw-1", "source-quiet")]
    it.sources.expect("nd:device:fw-2", "", 3000.0)
    await it.live(1200)
    assert len(it.said) == 1


async def test_who_is_forgotten_is_new_when_it_comes_again() -> None:
    """Its rhythm, and that it was quiet, are gone: nothing is back."""
    it = World()
    await it.rhythm(DAY, "fw-1")
    await it.live(HOUR)
    assert it.sources.forget("nd:device:fw-1", None) == 1
    assert it.sources.changes(everything=False).gone == [("nd:device:fw-1", "")]
    it.heard(**{"fw-1": 1})
    await it.live(10)
    assert len(it.said) == 1
    assert it.row("nd:device:fw-1")["events"] == 1
    with pytest.raises(LookupError):
        it.sources.forget("nd:device:fw-2", None)


async def test_without_alerts_the_state_is_kept_all_the_same() -> None:
    """`alerts: false`: nothing is said, `ls` knows."""
    it = World(alerts=False)
    await it.rhythm(DAY, "fw-1")
    await it.live(HOUR)
    assert it.said == []
    assert it.row("nd:device:fw-1")["state"] == "quiet"
    assert it.now > MONDAY
