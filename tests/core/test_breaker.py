"""The circuit breaker: when it opens, who gets through half-open, and what never counts."""

import asyncio
import logging

import pytest

from ndagent.core.breaker import Breaker, BreakerOpen, Circuit, State
from ndagent.core.interfaces import LONGEST_RETRY_AFTER_SECONDS, Rejected, Unavailable
from ndagent.core.metrics import Metrics
from ndagent.core.settings import BreakerConfig
from ndagent.wire.record import EventBatch
from tests.events import StillTime, event_batch, settle

CONFIG = BreakerConfig(failures=3, window=60.0, open_for=10.0)
EVENTS = event_batch(range(1))


def a_circuit() -> tuple[Circuit, list[State]]:
    changes: list[State] = []
    return Circuit(CONFIG, on_change=changes.append), changes


def fail(circuit: Circuit, now: float, **kwargs: float) -> None:
    permit = circuit.admit(now)
    assert permit is not None
    circuit.failed(permit, now, **kwargs)


def answer(circuit: Circuit, now: float) -> None:
    permit = circuit.admit(now)
    assert permit is not None
    circuit.answered(permit)


def an_open_circuit(now: float = 0.0) -> tuple[Circuit, list[State]]:
    circuit, changes = a_circuit()
    for _ in range(CONFIG.failures):
        fail(circuit, now)
    return circuit, changes


def test_it_opens_at_the_configured_number_of_failures() -> None:
    """One failure fewer leaves it closed."""
    circuit, changes = a_circuit()
    fail(circuit, 0)
    fail(circuit, 1)
    assert circuit.state is State.CLOSED
    fail(circuit, 2)
    assert changes == [State.OPEN]


def test_failures_older_than_the_window_are_forgotten() -> None:
    """Three failures in an hour, with answers in between, are not an outage."""
    circuit, changes = a_circuit()
    for now in (0, 59, 61, 122):
        fail(circuit, now)
        answer(circuit, now)
    assert changes == []
    fail(circuit, 123)
    answer(circuit, 123)
    assert changes == []
    fail(circuit, 124)
    assert changes == [State.OPEN]


def test_failures_in_a_row_count_however_far_apart_they_are() -> None:
    """One send at a time, each of which waits half a minute for nothing: that is an outage, and no window shows it."""
    circuit, changes = a_circuit()
    for now in (0, 100):
        fail(circuit, now)
    assert changes == []
    fail(circuit, 200)
    assert changes == [State.OPEN]


def test_while_open_nobody_is_admitted_and_the_wait_is_known() -> None:
    """The refusal says when to ask again, so that nobody polls."""
    circuit, _ = an_open_circuit(now=100.0)
    assert circuit.admit(105.0) is None
    assert circuit.refused_for_seconds(105.0) == 5.0


def test_half_open_admits_exactly_one_probe() -> None:
    """Every library tried let all twenty through."""
    circuit, changes = an_open_circuit()
    permits = [circuit.admit(10.0) for _ in range(20)]
    assert sum(permit is not None for permit in permits) == 1
    assert changes == [State.OPEN, State.HALF_OPEN]


def test_an_answered_probe_closes_and_old_failures_are_forgotten() -> None:
    """After recovery it takes the full number of failures to open again."""
    circuit, changes = an_open_circuit()
    permit = circuit.admit(10.0)
    assert permit is not None
    circuit.answered(permit)
    fail(circuit, 10.0)
    fail(circuit, 10.0)
    assert changes[-1] is State.CLOSED


def test_a_failed_probe_opens_for_another_period() -> None:
    """One probe per period is all a dead destination gets."""
    circuit, changes = an_open_circuit()
    fail(circuit, 10.0)
    assert changes == [State.OPEN, State.HALF_OPEN, State.OPEN]
    assert circuit.admit(19.9) is None
    assert circuit.admit(20.0) is not None


def test_a_cancelled_probe_makes_room_for_the_next() -> None:
    """A reload that cancels the probe must not leave the breaker waiting for its result for ever."""
    circuit, _ = an_open_circuit()
    permit = circuit.admit(10.0)
    assert permit is not None
    circuit.withdrawn(permit)
    assert circuit.state is State.HALF_OPEN
    assert circuit.admit(10.0) is not None
    assert circuit.admit(10.0) is None


def test_late_results_of_an_older_era_change_nothing() -> None:
    """Calls let through before the circuit opened may fail, succeed or be cancelled long after."""
    circuit, changes = a_circuit()
    late = [circuit.admit(0.0) for _ in range(3)]
    for _ in range(3):
        fail(circuit, 0.0)
    probe = circuit.admit(10.0)
    assert probe is not None
    reports = (circuit.answered, circuit.withdrawn, lambda permit: circuit.failed(permit, 10.0))
    for permit, report in zip(late, reports, strict=True):
        assert permit is not None
        report(permit)
    assert circuit.state is State.HALF_OPEN
    assert circuit.admit(10.0) is None
    circuit.answered(probe)
    assert changes == [State.OPEN, State.HALF_OPEN, State.CLOSED]


def test_an_opening_circuit_honours_a_longer_retry_after() -> None:
    """A far side that asks for two minutes is not probed every ten seconds."""
    circuit, _ = a_circuit()
    for _ in range(3):
        fail(circuit, 0.0, retry_after_seconds=120.0)
    assert circuit.admit(119.0) is None
    assert circuit.admit(120.0) is not None


class Script:
    """An output that does what it is told: an exception is raised, a future awaited."""

    def __init__(self) -> None:
        self.next: list[BaseException | asyncio.Future[None]] = []
        self.calls = 0

    async def send(self, events: EventBatch) -> None:
        self.calls += 1
        step = self.next.pop(0) if self.next else None
        if isinstance(step, BaseException):
            raise step
        if step is not None:
            await step

    async def sync(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class Bench:
    """A Breaker around a Script."""

    def __init__(self) -> None:
        self.time = StillTime()
        self.metrics = Metrics()
        self.script = Script()
        self.breaker = Breaker(
            self.script, name="siem", stream=EVENTS.stream, config=CONFIG, metrics=self.metrics, clock=self.time.clock
        )

    async def open(self) -> None:
        for _ in range(CONFIG.failures):
            self.script.next.append(Unavailable("connection refused"))
            with pytest.raises(Unavailable):
                await self.breaker.send(EVENTS)

    def state(self) -> float | None:
        labels = {"output": "siem", "stream": EVENTS.stream}
        return self.metrics.registry.get_sample_value("nd_output_breaker_state", labels)

    def unavailable(self) -> float | None:
        return self.metrics.registry.get_sample_value("nd_output_unavailable_total", {"output": "siem"})


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_of_twenty_concurrent_sends_at_half_open_one_reaches_the_output(bench: Bench) -> None:
    """The same through the wrapper, with real concurrency."""
    await bench.open()
    await bench.time.advance(10.0)
    calls_before = bench.script.calls
    probe_answer = asyncio.get_running_loop().create_future()
    bench.script.next.append(probe_answer)
    sends = [asyncio.ensure_future(bench.breaker.send(EVENTS)) for _ in range(20)]
    await settle()
    assert bench.script.calls == calls_before + 1
    probe_answer.set_result(None)
    results = await asyncio.gather(*sends, return_exceptions=True)
    assert sum(isinstance(result, BreakerOpen) for result in results) == 19
    assert bench.state() == State.CLOSED


async def test_an_absurd_retry_after_opens_it_for_an_hour(bench: Bench) -> None:
    """One header of a mad proxy must not stop the output until somebody restarts the daemon."""
    for _ in range(CONFIG.failures):
        bench.script.next.append(Unavailable("busy", retry_after_seconds=1e9))
        with pytest.raises(Unavailable):
            await bench.breaker.send(EVENTS)
    with pytest.raises(BreakerOpen) as caught:
        await bench.breaker.send(EVENTS)
    assert caught.value.retry_after_seconds == LONGEST_RETRY_AFTER_SECONDS
    await bench.time.advance(LONGEST_RETRY_AFTER_SECONDS)
    await bench.breaker.send(EVENTS)
    assert bench.state() == State.CLOSED


async def test_a_cancelled_probe_through_the_wrapper_frees_the_breaker(bench: Bench) -> None:
    """Cancelled for real, amid the call."""
    await bench.open()
    await bench.time.advance(10.0)
    bench.script.next.append(asyncio.get_running_loop().create_future())
    probe = asyncio.ensure_future(bench.breaker.send(EVENTS))
    await settle()
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    await bench.breaker.send(EVENTS)
    assert bench.state() == State.CLOSED


async def test_rejected_and_cancelled_never_trip_it(bench: Bench) -> None:
    """A destination that refuses every event is up; a caller that gives up says nothing about it."""
    for _ in range(CONFIG.failures * 3):
        bench.script.next.append(Rejected("bad mapping"))
        with pytest.raises(Rejected):
            await bench.breaker.send(EVENTS)
        bench.script.next.append(asyncio.get_running_loop().create_future())
        send = asyncio.ensure_future(bench.breaker.send(EVENTS))
        await settle()
        send.cancel()
        await asyncio.gather(send, return_exceptions=True)
    assert bench.state() == State.CLOSED
    assert bench.unavailable() == 0


async def test_a_rejected_probe_closes_it(bench: Bench) -> None:
    """Rejected is an answer: somebody is there."""
    await bench.open()
    await bench.time.advance(10.0)
    bench.script.next.append(Rejected("bad mapping"))
    with pytest.raises(Rejected):
        await bench.breaker.send(EVENTS)
    assert bench.state() == State.CLOSED


async def test_a_bug_in_an_output_is_unavailable_counted_and_reported_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """An output's bug costs time, not events, and not a journal full of tracebacks."""
    bench.script.next += [KeyError("x"), KeyError("x")]
    for _ in range(2):
        with pytest.raises(Unavailable, match="KeyError"):
            await bench.breaker.send(EVENTS)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is not None
    assert bench.unavailable() == 2


async def test_a_cancelled_error_that_nobody_outside_asked_for_is_a_failure(bench: Bench) -> None:
    """An output whose own inner task was cancelled must not make its caller look cancelled: the send would vanish."""
    bench.script.next.append(asyncio.CancelledError())
    with pytest.raises(Unavailable, match="CancelledError"):
        await bench.breaker.send(EVENTS)
    await bench.breaker.send(EVENTS)


async def test_an_outage_is_two_log_lines_however_long_it_lasts(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """One down with the remedy, one up; failed probes are metrics."""
    caplog.set_level(logging.INFO)
    await bench.open()
    for _ in range(50):
        await bench.time.advance(10.0)
        bench.script.next.append(Unavailable("connection refused"))
        with pytest.raises(Unavailable):
            await bench.breaker.send(EVENTS)
    await bench.time.advance(10.0)
    await bench.breaker.send(EVENTS)
    down, up = caplog.records
    assert "connection refused" in down.getMessage()
    assert "Check that" in down.getMessage()
    assert "answers again" in up.getMessage()
