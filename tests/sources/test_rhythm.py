"""What pause is usual for a source: learned by the hour of the week, whatever bursts, nights and outages it has."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndcollector.sources.rhythm import HOUR_SECONDS, Rhythm

MONDAY = 1_763_942_400.0
"""2025-11-24 00:00 UTC."""
DAY, MINUTE = 86400.0, 60.0


def learned(times: Iterable[float], rhythm: Rhythm | None = None) -> Rhythm:
    """A source that spoke at these moments and at no other."""
    rhythm, last = rhythm or Rhythm(), 0.0
    for now in times:
        if last:
            rhythm.heard(last, now)
        last = now
    return rhythm


def every(seconds: float, first: float, end: float) -> list[float]:
    return [first + index * seconds for index in range(int((end - first) / seconds))]


def office(days: Iterable[int]) -> list[float]:
    """Every ten seconds from nine to five on these days, and nothing else."""
    return [at for day in days for at in every(10, MONDAY + day * DAY + 9 * 3600, MONDAY + day * DAY + 17 * 3600)]


@pytest.mark.parametrize("seconds", [1, 60, 900, 7200, 7 * DAY])
def test_who_speaks_at_regular_times_has_that_pause(seconds: float) -> None:
    """From a second to a week."""
    rhythm = learned(every(seconds, MONDAY, MONDAY + 20 * seconds))
    now = MONDAY + 20 * seconds
    assert rhythm.usual(now, now) == pytest.approx(seconds, rel=0.01)


def test_bursts_do_not_hide_the_pause_between_them() -> None:
    """Fifty messages in fifty seconds, then half an hour of nothing: the half hour is usual."""
    times = [start + index for start in every(1850, MONDAY, MONDAY + DAY) for index in range(50)]
    rhythm = learned(times)
    for hour in range(24):
        now = MONDAY + DAY + hour * HOUR_SECONDS
        assert 1200 < rhythm.usual(now, now) < 1850, "the mean pause would be 37 s"


def test_nights_and_weekends_are_part_of_it() -> None:
    """After two weeks: fast by day, silent by night, silent from Friday to Monday."""
    rhythm = learned(office(day for day in range(14) if day % 7 < 5))
    tuesday = MONDAY + 15 * DAY
    assert rhythm.usual(tuesday + 11 * 3600, tuesday + 11 * 3600) == pytest.approx(10, rel=0.1)
    assert rhythm.usual(tuesday + 17 * 3600, tuesday + 17 * 3600 + MINUTE) > 12 * 3600, "it is evening"
    assert rhythm.usual(tuesday + 17 * 3600, tuesday + DAY + 9 * 3600 + MINUTE) > 12 * 3600, "it was night"
    saturday = MONDAY + 19 * DAY + 12 * 3600
    assert rhythm.usual(saturday, saturday) > 48 * 3600, "nobody works on Saturdays"


def test_one_outage_does_not_blind_for_the_weeks_after() -> None:
    """Dead for a Wednesday: a week later a silent Wednesday is still noticed within the hour."""
    end = MONDAY + 14 * DAY
    times = [at for at in every(10, MONDAY, end) if not 9 * DAY <= at - MONDAY < 10 * DAY]
    rhythm = learned(times)
    wednesday = MONDAY + 16 * DAY + 12 * 3600
    assert 10 < rhythm.usual(wednesday, wednesday) < 300


def test_an_hour_never_lived_through_is_taken_from_the_other_days() -> None:
    """On its second day it has no figure for a Tuesday, but one for that time of the day."""
    rhythm = learned(office([0]))
    rhythm.heard(MONDAY + 17 * 3600 - 10, MONDAY + DAY + 9 * 3600)  # Tuesday morning
    learned(every(10, MONDAY + DAY + 9 * 3600, MONDAY + DAY + 10 * 3600), rhythm)
    noon = MONDAY + DAY + 12 * 3600
    assert rhythm.usual(noon, noon) < 1800, "the night before is nearly forgotten"
    evening = MONDAY + 2 * DAY + 18 * 3600
    assert rhythm.usual(evening, evening) > 12 * 3600


def test_a_clock_that_stands_or_goes_back_teaches_nothing() -> None:
    """And does no harm."""
    rhythm = learned([MONDAY, MONDAY, MONDAY - 100, MONDAY + 60])
    assert rhythm.pauses == 1
    assert rhythm.usual(MONDAY, MONDAY) == pytest.approx(160, rel=0.5)


@given(st.lists(st.floats(1, 30 * DAY), min_size=1, max_size=60), st.floats(0, 30 * DAY))
def test_what_is_usual_was_seen(pauses: list[float], later: float) -> None:
    """Whatever it does: between a second and its longest pause, at any time."""
    now, times = MONDAY, [MONDAY]
    for pause in pauses:
        now += pause
        times.append(now)
    usual = learned(times).usual(now, now + later)
    assert 0.99 < usual <= max(pauses) * 1.001
