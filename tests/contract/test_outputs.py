"""The contract of every output: whatever happens to it, each event ends at the far side or in a dead letter.

Events carry unique sequences; after each scenario what arrived and what was buried must add up to what was sent.
A new output adds one line to CASES.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics
from tests.contract.far_ends import (
    FarEnd,
    Scripted,
    agent_end,
    elasticsearch_end,
    file_end,
    https_end,
    kafka_end,
    otlp_end,
    relp_end,
    s3_end,
    splunk_hec_end,
    syslog_end,
    tcp_end,
)
from tests.events import SwiftTime, event_batch

EVENTS = 200
PER_BATCH = 10


class Case(NamedTuple):
    """How to make a far end, and whether it can answer (a file cannot refuse an event)."""

    make: Callable[[Path], AbstractAsyncContextManager[FarEnd]]
    answers: bool


CASES = {
    "tcp": Case(tcp_end, answers=True),
    "file": Case(file_end, answers=False),
    "elasticsearch": Case(elasticsearch_end, answers=True),
    "https": Case(https_end, answers=True),
    "splunk_hec": Case(splunk_hec_end, answers=True),
    "kafka": Case(kafka_end, answers=False),
    "collector": Case(agent_end, answers=False),
    "syslog_tls": Case(syslog_end, answers=False),
    "relp": Case(relp_end, answers=True),
    "otlp": Case(otlp_end, answers=True),
    "s3": Case(s3_end, answers=False),
}


class Trial:
    """One output behind its Delivery, and the sum at the end.

    Timeouts are real time, and on a busy machine a short one sends what has arrived again: `timeout_seconds` is for
    trials that wait for one.
    """

    def __init__(self, directory: Path, far_end: FarEnd, *, timeout_seconds: float | None = None) -> None:
        self.far_end = far_end
        self.time = SwiftTime()
        self.metrics = Metrics()
        config = far_end.config
        if timeout_seconds is not None:
            config = config.model_copy(update={"timeout": timeout_seconds})
        plumbing = {"clock": self.time.clock, "sleep": self.time.sleep, "random": lambda: 0.5}
        self._letters = DeadLetters(directory, output="trial", max_bytes=2**30, clock=lambda: 0.0)
        output = wrap(far_end.output, name="trial", config=config, metrics=self.metrics, **plumbing)
        self.delivery = Delivery(output, name="trial", config=config, dead_letters=self._letters, **plumbing)
        self._window = asyncio.Semaphore(config.in_flight)
        self._unsynced: list[int] = []  # sent since the last sync that ended well

    async def deliver_all(self, sequences: Sequence[int] = range(EVENTS)) -> int:
        """As a feed does: in order of the batches, `in_flight` at a time; returns how many were buried."""
        self._unsynced += sequences
        starts = range(0, len(sequences), PER_BATCH)
        return sum(await asyncio.gather(*(self._deliver(sequences[at : at + PER_BATCH]) for at in starts)))

    async def _deliver(self, sequences: Sequence[int]) -> int:
        async with self._window:
            return len(await self.delivery.deliver(event_batch(sequences)))

    async def arrived(self) -> list[int]:
        """After a sync, which must succeed once the far end is well; one that fails asks for everything again."""
        try:
            await self.delivery.sync()
        except Unavailable:
            await self.deliver_all(list(self._unsynced))
            await self.delivery.sync()
        self._unsynced.clear()
        return sorted(await self.far_end.arrived())

    def buried(self) -> list[int]:
        path = self._letters.path
        lines = path.read_bytes().splitlines() if path.exists() else []
        return sorted(orjson.loads(line)["sequence"] for line in lines)


@pytest.fixture(params=CASES)
async def trial(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Trial]:
    """For scenarios that every output must go through; narrowed by `answering`."""
    async with CASES[request.param].make(tmp_path) as end:
        made = Trial(tmp_path / "dead_letters", end)
        yield made
        await made.delivery.aclose()


@pytest.fixture
def server(trial: Trial) -> Scripted:
    """The scripted far end, for scenarios that only a peer with a will of its own can play."""
    assert trial.far_end.server is not None
    return trial.far_end.server


answering = pytest.mark.parametrize("trial", [name for name, case in CASES.items() if case.answers], indirect=True)


async def test_succeed(trial: Trial) -> None:
    """Each event arrives, once."""
    assert await trial.deliver_all() == 0
    assert await trial.arrived() == list(range(EVENTS))


async def test_unavailable_from_the_start(trial: Trial) -> None:
    """The destination may be down when the daemon starts."""
    await trial.far_end.break_down()
    delivering = asyncio.ensure_future(trial.deliver_all())
    while trial.metrics.registry.get_sample_value("nd_output_unavailable_total", {"output": "trial"}) < 10:
        await asyncio.sleep(0)
    await trial.far_end.heal()
    assert await delivering == 0
    assert await trial.arrived() == list(range(EVENTS))


async def test_unavailable_in_between(trial: Trial) -> None:
    """An outage amid the work costs nothing that was sent before, amid or after."""
    await trial.deliver_all(range(100))
    await trial.far_end.break_down()
    delivering = asyncio.ensure_future(trial.deliver_all(range(100, EVENTS)))
    while trial.metrics.registry.get_sample_value("nd_output_unavailable_total", {"output": "trial"}) < 10:
        await asyncio.sleep(0)
    await trial.far_end.heal()
    await delivering
    assert await trial.arrived() == list(range(EVENTS))


async def test_cancelled_and_sent_again(trial: Trial) -> None:
    """As a stop and a start: a send cut off at any turn of the loop leaves nothing that the next cannot complete."""
    for turns in range(12):
        first = turns * PER_BATCH
        sending = asyncio.ensure_future(trial.delivery.deliver(event_batch(range(first, first + PER_BATCH))))
        for _ in range(turns):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await trial.delivery.deliver(event_batch(range(first, first + PER_BATCH)))
    assert sorted(set(await trial.arrived())) == list(range(12 * PER_BATCH))


async def test_closing_is_safe_at_any_time(trial: Trial) -> None:
    """Before the first send, and twice."""
    await trial.delivery.aclose()
    await trial.delivery.aclose()


async def test_a_sync_without_a_send_is_fine(trial: Trial) -> None:
    """A cursor may have to be saved for other reasons."""
    assert await trial.arrived() == []


@answering
async def test_rejected_without_names(trial: Trial, server: Scripted) -> None:
    """Only the guilty are buried, and all of them."""
    guilty = {3, 4, 77, 199}
    server.script = lambda sequences: "NEVER" if guilty & set(sequences) else "OK"
    assert await trial.deliver_all() == 4
    assert trial.buried() == sorted(guilty)
    assert await trial.arrived() == sorted(set(range(EVENTS)) - guilty)


@answering
async def test_rejected_with_names(trial: Trial, server: Scripted) -> None:
    """The named are buried, the rest of the batch is sent again."""
    guilty = {0, 9, 55, 56}

    def script(sequences: list[int]) -> str:
        named = ",".join(str(index) for index, sequence in enumerate(sequences) if sequence in guilty)
        return f"NEVER {named}" if named else "OK"

    server.script = script
    assert await trial.deliver_all() == 4
    assert trial.buried() == sorted(guilty)
    assert await trial.arrived() == sorted(set(range(EVENTS)) - guilty)


@answering
async def test_everything_rejected(trial: Trial, server: Scripted) -> None:
    """A destination that refuses all costs many sends and no event."""
    server.script = lambda _sequences: "NEVER"
    assert await trial.deliver_all() == EVENTS
    assert trial.buried() == list(range(EVENTS))


@answering
async def test_silence(trial: Trial, server: Scripted, tmp_path: Path) -> None:
    """A far end that takes the bytes and never answers: timed out, sent again; what was only slow may come twice."""
    silent = iter([True] * 6)
    server.script = lambda _sequences: "silence" if next(silent, False) else "OK"
    impatient = Trial(tmp_path / "impatient", trial.far_end, timeout_seconds=0.25)
    assert await impatient.deliver_all() == 0
    assert sorted(set(await impatient.arrived())) == list(range(EVENTS))
    assert next(silent, None) is None
    assert impatient.metrics.registry.get_sample_value("nd_output_unavailable_total", {"output": "trial"}) >= 6


@answering
@pytest.mark.parametrize("seed", range(5))
async def test_everything_mixed_at_random(trial: Trial, server: Scripted, seed: int) -> None:
    """Every answer in any order; at least once for the innocent, buried for the guilty, nothing in neither."""
    draw = random.Random(seed)
    guilty = set(draw.sample(range(EVENTS), 7))

    def script(sequences: list[int]) -> str:
        indexes = [index for index, sequence in enumerate(sequences) if sequence in guilty]
        if draw.random() < 0.4:
            return draw.choice(["LATER 0", "LATER 3", "close", "close" if indexes else "keep and close"])
        if not indexes:
            return "OK"
        return "NEVER" if draw.random() < 0.5 else f"NEVER {indexes[0]}"

    server.script = script
    await trial.deliver_all()
    assert trial.buried() == sorted(guilty)
    assert set(await trial.arrived()) == set(range(EVENTS)) - guilty
