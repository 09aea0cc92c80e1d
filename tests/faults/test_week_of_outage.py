"""An output that is down for a week of simulated time, the process restarted every day: nothing is lost.

Real spool on disk, real decoder, the whole chain Dispatcher → Feed → Delivery → Retry → Breaker → Timeout; only time is
the test's. The cap of the spool is not reached; what happens when it is stands in test_dispatcher.py.
"""

from itertools import pairwise
from pathlib import Path

from ndagent.core.interfaces import Unavailable
from ndagent.core.spool import SpoolConfig
from tests.test_dispatcher import Plant, batch, plant

HOUR_SECONDS, DAYS = 3600.0, 7
EVENTS_PER_HOUR = 120
OPEN_SECONDS, LONGEST_WAIT_SECONDS = 300.0, 60.0
FAILURES = 5  # before the breaker opens
SPOOL = SpoolConfig(segment_bytes=8192, max_bytes="64MiB")
SIEM = {
    "in_flight": 1,
    "batch_bytes": 4096,
    "breaker": {"open_for": OPEN_SECONDS, "failures": FAILURES},
    "retry": {"maximum": LONGEST_WAIT_SECONDS},
}


class Dead:
    """A far side that refuses connections, and notes when it was asked."""

    def __init__(self, running: Plant) -> None:
        self._time = running.time
        self.asked_at: list[float] = []
        running.far_side.judge = self._refuse

    def _refuse(self, _sequences: list[int]) -> None:
        self.asked_at.append(self._time.now)
        raise Unavailable("connection refused")


async def a_day_of_outage(running: Plant, dead: Dead) -> None:
    """Events every hour, and probes that ask in vain."""
    for _hour in range(24):
        await running.append(batch(EVENTS_PER_HOUR))
        await running.eventually(lambda: bool(dead.asked_at), step_seconds=1)
        await running.time.advance(HOUR_SECONDS)


async def test_a_week_of_outage_loses_nothing_and_keeps_the_order(tmp_path: Path) -> None:
    """Every day ends in a restart: a graceful one that cannot deliver, or a cancel where things stand."""
    expected = DAYS * 24 * EVENTS_PER_HOUR
    for day in range(DAYS):
        async with plant(tmp_path, spool=SPOOL, siem=SIEM) as running:
            dead = Dead(running)
            await a_day_of_outage(running, dead)
            assert running.line("siem")["pending"] == (day + 1) * 24 * EVENTS_PER_HOUR
            assert running.far_side.taken == []
            _assert_patient(dead.asked_at)
            if day % 2:
                await running.drain(5)

    async with plant(tmp_path, spool=SPOOL, siem=SIEM) as running:
        _lose_the_first_answer(running)
        await running.eventually(lambda: running.line("siem").get("delivered") == expected, step_seconds=1)
        taken = running.far_side.taken
        assert sorted(set(taken)) == list(range(expected))
        assert list(dict.fromkeys(taken)) == list(range(expected)), "not in order of sequence"
        assert len(taken) > expected, "the batch whose answer was lost came once only"
        assert running.line("siem") == {"appended": expected, "delivered": expected}


def _assert_patient(asked_at: list[float]) -> None:
    """Neither hammering a dead far side nor forgetting it: the breaker's pause, and never much more than that."""
    waits = [later - earlier for earlier, later in pairwise(asked_at)]
    longest = OPEN_SECONDS + LONGEST_WAIT_SECONDS + 1
    assert max(waits) <= longest, max(waits)
    probes = [wait for wait in waits if wait >= OPEN_SECONDS]
    assert len(waits) - len(probes) < FAILURES, "tries beside the probes while the breaker was open"
    assert len(probes) >= 23 * HOUR_SECONDS / longest


def _lose_the_first_answer(running: Plant) -> None:
    """The far side takes the first batch and its answer never arrives."""
    far_side = running.far_side

    def judge(sequences: list[int]) -> None:
        if not far_side.batches:
            far_side.batches.append(sequences)
            raise Unavailable("connection reset by peer")

    far_side.judge = judge
