"""Rate limits of outputs: the rate holds, waiting is no failure, and nothing waits for it that stops."""

import asyncio
from pathlib import Path

import pytest

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.metrics import Metrics
from ndagent.core.pace import pieces
from ndagent.core.settings import RateConfig
from ndcollector.routing.config import RoutedConfig
from tests.events import StillTime, event_batch, settle
from tests.far_side import FarSide


class Setting:
    """A Delivery with a rate, around a FarSide, in time that only the test moves."""

    def __init__(self, directory: Path, *, timeout: str = "30s", **rate: object) -> None:
        self.time = StillTime()
        self.far_side = FarSide()
        self.metrics = Metrics()
        config = RoutedConfig(type="test", timeout=timeout, rate=RateConfig(**rate))
        plumbing = {"clock": self.time.clock, "sleep": self.time.sleep, "random": lambda: 1.0}
        output = wrap(self.far_side, name="siem", config=config, metrics=self.metrics, **plumbing)
        letters = DeadLetters(directory, output="siem", max_bytes=2**20, clock=lambda: 0.0)
        self.delivery = Delivery(
            output, name="siem", config=config, dead_letters=letters, pace=output.pace, **plumbing
        )

    def begin(self, first: int, count: int, stream: str = "security_events") -> "asyncio.Task[list[int]]":
        events = event_batch(range(first, first + count), stream=stream)
        return asyncio.ensure_future(self.delivery.deliver(events))


async def test_a_second_at_once_then_the_rate(tmp_path: Path) -> None:
    """100 a second: the first 100 go, the next must wait for their second; streams share the bucket."""
    setting = Setting(tmp_path, events_per_second=100.0)
    sends = [setting.begin(0, 100), setting.begin(100, 50, "alerts"), setting.begin(200, 100)]
    await settle()
    assert len(setting.far_side.taken) == 100
    await setting.time.advance(0.49)
    assert len(setting.far_side.taken) == 100
    await setting.time.advance(0.02)
    assert len(setting.far_side.taken) == 150
    await setting.time.advance(1.0)
    assert len(setting.far_side.taken) == 250
    await asyncio.gather(*sends)


async def test_bytes_are_limited_as_events_are(tmp_path: Path) -> None:
    """A line that a customer pays for by the megabit."""
    batch_bytes = len(event_batch(range(100, 150)).ndjson)
    setting = Setting(tmp_path, bytes_per_second=batch_bytes)
    sends = [setting.begin(100, 50), setting.begin(150, 50)]
    await settle()
    assert len(setting.far_side.taken) == 50
    await setting.time.advance(1.01)
    assert len(setting.far_side.taken) == 100
    await asyncio.gather(*sends)


async def test_waiting_is_no_failure_and_not_timed(tmp_path: Path) -> None:
    """A wait of a minute under a timeout of a second: no breaker opens and nothing is sent twice."""
    setting = Setting(tmp_path, timeout="1s", events_per_second=1.0)
    sends = [setting.begin(n, 1) for n in range(60)]
    await setting.time.advance(61)
    await asyncio.gather(*sends)
    assert setting.far_side.sends == 60
    assert setting.metrics.registry.get_sample_value("nd_output_unavailable_total", {"output": "siem"}) == 0


async def test_a_stop_does_not_wait_for_the_rate(tmp_path: Path) -> None:
    """Who waits has not begun: `finish` returns at once, nothing is sent any more, and the next run begins again."""
    setting = Setting(tmp_path, events_per_second=10.0)
    first, second = setting.begin(0, 10), setting.begin(10, 10)
    await first
    await asyncio.wait_for(setting.delivery.finish(), 5)
    await setting.time.advance(10)
    assert len(setting.far_side.taken) == 10
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    setting.delivery.begin()
    await setting.begin(10, 10)
    assert setting.far_side.taken == list(range(20))


async def test_a_stop_waits_for_the_send_under_way(tmp_path: Path) -> None:
    """What the far side is about to answer must not be sent twice."""
    setting = Setting(tmp_path, events_per_second=10.0)
    answer = asyncio.get_running_loop().create_future()
    setting.far_side.judge = lambda _sequences: answer
    send = setting.begin(0, 5)
    await settle()
    finishing = asyncio.ensure_future(setting.delivery.finish())
    await settle()
    assert not finishing.done()
    answer.set_result(None)
    await asyncio.wait_for(finishing, 5)
    assert await send == []


def test_pieces_are_a_second_each_and_hold_every_event_once() -> None:
    """A batch of 8000 at 100 a second is a steady stream, not a wave every 80 seconds."""
    events = event_batch(range(1000, 1250))
    found = list(pieces(events, RateConfig(events_per_second=100.0)))
    assert [list(piece.sequences) for piece in found] == [
        list(range(1000, 1100)), list(range(1100, 1200)), list(range(1200, 1250)),
    ]  # fmt: skip
    assert b"".join(piece.ndjson for piece in found) == events.ndjson
    found = list(pieces(events, RateConfig(bytes_per_second=1024)))
    assert all(len(piece.ndjson) <= 1024 for piece in found)
    assert b"".join(piece.ndjson for piece in found) == events.ndjson
    assert list(pieces(events, RateConfig())) == [events]
    assert len(list(pieces(events, RateConfig(events_per_second=0.1)))) == 250
