"""A part that fails is started again, said in words or with a traceback, and never comes back after a stop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from ndagent.core import supervision
from ndagent.core.supervision import Supervised


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pause is up to half a second; nobody needs to wait for it here."""
    monkeypatch.setattr(supervision, "_FIRST_PAUSE_SECONDS", 0.001)


def failing(times: int, error: Exception) -> tuple[Callable[[], Awaitable[None]], asyncio.Event]:
    """A part that fails so often and then runs; the event says that it runs."""
    runs, left = asyncio.Event(), [times]

    async def run() -> None:
        if left[0]:
            left[0] -= 1
            raise error
        runs.set()
        await asyncio.Event().wait()

    return run, runs


async def test_what_the_machine_refuses_is_said_in_words_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """An OSError is nobody's bug: no traceback, one line for many tries."""
    run, runs = failing(3, OSError("cannot listen on [::]:6514"))
    part = Supervised("input x", run)
    await runs.wait()
    assert part.failure is None
    assert [record.getMessage() for record in caplog.records] == [
        "input x: cannot listen on [::]:6514; it is started again by itself"
    ]
    assert caplog.records[0].exc_info is None
    assert await part.stop()


async def test_a_bug_is_reported_with_its_traceback_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    """The others go on, and the failing part comes back."""
    run, runs = failing(1, KeyError("bug"))
    part = Supervised("x", run)
    await runs.wait()
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].exc_info is not None
    await part.stop()


async def test_why_it_does_not_run_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness shows it for as long as the pause lasts."""
    monkeypatch.setattr(supervision, "_pause_seconds", lambda _attempt: 3600)
    run, _ = failing(1, OSError("no such address"))
    part = Supervised("x", run)
    while part.failure is None:
        await asyncio.sleep(0)
    assert part.failure == "no such address"
    assert await part.stop()


async def test_a_failure_while_stopping_does_not_bring_it_back(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in the shut-down replaces the cancel: taken for a failure, the part would start again."""
    starts = []

    async def run() -> None:
        starts.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while stopping")

    part = Supervised("x", run)
    await asyncio.sleep(0)
    assert await part.stop()
    assert starts == [1]
    assert "failed while it stopped" in caplog.text


async def test_one_that_stops_too_slowly_is_cancelled_once_more() -> None:
    """The second cancel is the end of patience: inputs count what they drop then."""
    cut = []

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cut.append(1)
                raise

    part = Supervised("x", run)
    await asyncio.sleep(0)
    assert not await part.stop(patience_seconds=0.01)
    assert cut == [1]
