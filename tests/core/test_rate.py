"""Rates are exact, fair, and cannot starve whoever waits; plain sums do what Prometheus' metrics do."""

import asyncio

import pytest

from ndagent.core.instruments import Tallies, counter, gauge, histogram, info, prometheus_registry, values
from ndagent.core.rate import Rate
from tests.events import StillTime, SwiftTime, settle


async def test_a_burst_at_once_and_then_exactly_the_rate() -> None:
    """A hundred takes of 1 at 10/s with a burst of 20: nothing waits for the first 20, the last ends 8 s later."""
    time = SwiftTime()
    rate = Rate(10, burst=20, clock=time.clock, sleep=time.sleep)
    for _ in range(100):
        await rate.take()
    assert time.now - 1000 == pytest.approx(8.0)
    assert len(time.slept) == 80


async def test_time_in_which_nothing_is_taken_saves_a_burst_and_no_more() -> None:
    """An hour of rest is worth one burst."""
    time = SwiftTime()
    rate = Rate(10, burst=20, clock=time.clock, sleep=time.sleep)
    time.now += 3600
    await rate.take(20)
    assert time.slept == []
    await rate.take(5)
    assert time.slept == [pytest.approx(0.5)]


async def test_more_than_a_burst_waits_for_the_difference() -> None:
    """It is let through all the same, after it has been paid for."""
    time = SwiftTime()
    rate = Rate(10, burst=10, clock=time.clock, sleep=time.sleep)
    await rate.take(500)
    assert time.slept == [pytest.approx(49.0)]


async def test_those_who_wait_are_served_in_turn() -> None:
    """A small wish behind a large one waits for it; each is woken at its own moment."""
    time = StillTime()
    rate = Rate(1, burst=1, clock=time.clock, sleep=time.sleep)
    served: list[tuple[str, float]] = []

    async def take(name: str, amount: float) -> None:
        await rate.take(amount)
        served.append((name, time.now - 1000))

    async with asyncio.TaskGroup() as group:
        for name, amount in (("first", 1), ("large", 10), ("small", 1), ("last", 2)):
            group.create_task(take(name, amount))
            await settle()
        await time.advance(60)
    assert served == [("first", 0), ("large", 10), ("small", 11), ("last", 13)]


async def test_a_wait_that_is_cancelled_gives_back_what_it_asked_for() -> None:
    """Or tries that end early would starve all that come after."""
    time = StillTime()
    rate = Rate(1, burst=1, clock=time.clock, sleep=time.sleep)
    for _ in range(10):
        waiting = asyncio.ensure_future(rate.take(100))
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await rate.take(1)
    assert time.now == 1000


# ---- instruments


@pytest.mark.parametrize("registry", [Tallies(), prometheus_registry()], ids=["tallies", "prometheus"])
def test_the_same_calls_on_both_registries(registry: object) -> None:
    """Counters and gauges read the same, the rest can be called."""
    sums = counter("nd_things", "Things.", ("kind", "place"), registry=registry)
    sums.labels("a", "x").inc()
    sums.labels("a", "x").inc(4)
    sums.labels("b", "y").inc(0)
    found = {tuple(labels.values()): value for labels, value in values(sums)}
    assert found == {("a", "x"): 5, ("b", "y"): 0}
    level = gauge("nd_level", "A level.", ("kind",), registry=registry)
    level.labels("a").set(7)
    level.labels("a").set(3)
    level.labels("b").set(1)
    assert {labels["kind"]: value for labels, value in values(level)} == {"a": 3, "b": 1}
    level.remove("a")
    assert {labels["kind"]: value for labels, value in values(level)} == {"b": 1}
    level.clear()
    assert list(values(level)) == []
    plain = counter("nd_plain", "Without labels.", registry=registry)
    plain.inc(2)
    histogram("nd_seconds", "How long.", ("kind",), registry=registry, buckets=(1, 2)).labels("a").observe(1.5)
    info("nd_build", "Which.", registry=registry).info({"version": "1"})


def test_tallies_never_import_prometheus() -> None:
    """It would be a tenth of an agent's memory."""
    import subprocess
    import sys

    code = (
        "from ndagent.core.instruments import *; import sys; r = Tallies()\n"
        "counter('a', 'b', registry=r).inc(); sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
