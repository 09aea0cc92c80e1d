"""`batch_age`: events wait for company, at most so long; a backlog does not wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import ClassVar

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.decoding import Decoding
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.feed import Feed
from ndagent.core.metrics import Metrics
from ndagent.core.settings import OutputConfig
from ndagent.core.spool import Spool
from ndagent.core.spool.config import SpoolConfig
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section
from tests.events import StillTime, settle


class Far:
    """An output that takes everything and remembers how much came together."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def send(self, events: EventBatch) -> None:
        self.sizes.append(len(events))

    async def sync(self) -> None: ...

    async def aclose(self) -> None: ...


class Filled(OutputConfig):
    """Of an output that wants few large batches."""

    fills_batches: ClassVar[bool] = True


class Stage:
    def __init__(self, spool: Spool, far: Far, time: StillTime, feed: Feed) -> None:
        self.spool, self.far, self.time, self.feed = spool, far, time, feed

    async def append(self, count: int, *, received_at_ns: int = 1) -> None:
        data = b"".join(b'{"message":"%d"}\n' % number for number in range(count))
        section = Section(Origin("file", "", 0), Framing.LF, Flags.NONE, len(data), count)
        await self.spool.append(Batch("security_events", "ecs", received_at_ns, [section], [data]))

    async def until_sent(self, count: int) -> None:
        async with asyncio.timeout(20):
            while sum(self.far.sizes) < count:
                await asyncio.sleep(0.002)

    async def until_waiting(self) -> None:
        async with asyncio.timeout(20):
            while not self.time.sleepers:
                await asyncio.sleep(0.002)


@asynccontextmanager
async def stage(
    directory: Path, *, batch_bytes: int = 64 * 1024, age: float = 5.0, kind: type[OutputConfig] = OutputConfig
) -> AsyncIterator[Stage]:
    time, far, metrics = StillTime(), Far(), Metrics()
    config = kind(type="far", batch_age=age, batch_bytes=batch_bytes)
    plumbing = {"clock": time.clock, "sleep": time.sleep, "random": lambda: 0.5}
    letters = DeadLetters(directory / "letters", output="far", max_bytes=1 << 20, clock=lambda: 0.0)
    chain = wrap(far, name="far", config=config, metrics=metrics, **plumbing)  # type: ignore[arg-type]
    delivery = Delivery(chain, name="far", config=config, dead_letters=letters, **plumbing)  # type: ignore[arg-type]
    spool = await Spool.open(directory / "spool", stream="security_events", config=SpoolConfig(), metrics=metrics)
    decoding = Decoding(make_decoder(DecodeSettings(observer_name="here")), metrics=metrics, ring_bytes=1 << 20)
    feed = Feed(stream="security_events", spool=spool, delivery=delivery, decoding=decoding)
    running = asyncio.create_task(feed.run())
    try:
        yield Stage(spool, far, time, feed)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await spool.aclose()


async def test_few_events_wait_for_more_and_no_longer_than_the_age(tmp_path: Path) -> None:
    """What comes within the age goes along, in one batch."""
    async with stage(tmp_path) as one:
        await one.append(1)
        await one.until_waiting()
        await one.time.advance(4.9)
        await one.append(2)
        await one.append(3)
        await settle()
        assert one.far.sizes == []
        await one.time.advance(0.2)
        await one.until_sent(6)
        assert one.far.sizes == [6]


async def test_a_backlog_does_not_wait(tmp_path: Path) -> None:
    """More than fills a batch is sent at once; time stands still."""
    async with stage(tmp_path, batch_bytes=16 * 1024) as one:
        await one.append(1000)
        await one.until_sent(900)
        assert one.time.now == 1000


async def test_what_fills_a_batch_meanwhile_is_sent_before_its_age(tmp_path: Path) -> None:
    """An age of minutes must not pile up what a batch has room for."""
    async with stage(tmp_path, batch_bytes=16 * 1024, age=60.0) as one:
        await one.append(1)
        await one.until_waiting()
        await one.append(1000)
        await one.time.advance(1.1)
        await one.until_sent(900)
        assert one.time.now < 1003


async def test_a_drain_waits_for_no_batch_to_fill(tmp_path: Path) -> None:
    """Nothing more will come: a stop must not take as long as an age."""
    async with stage(tmp_path, age=60.0) as one:
        await one.append(3)
        await one.until_waiting()
        one.feed.hurry()
        await one.until_sent(3)
        assert one.time.now == 1000


async def test_batches_that_are_filled_join_whatever_was_decoded_apart(tmp_path: Path) -> None:
    """Records of several hundred kilobytes each would be an object each."""

    for kind, sends in ((OutputConfig, 4), (Filled, 1)):
        async with stage(tmp_path / kind.__name__, batch_bytes=16 * 2**20, age=1.0, kind=kind) as one:
            for _ in range(4):
                await one.append(4000)
            await one.until_waiting()
            await one.time.advance(1.1)
            await one.until_sent(16000)
            assert len(one.far.sizes) == sends


async def test_batches_that_are_filled_end_with_the_hour(tmp_path: Path) -> None:
    """What they are filed under must not depend on where they are cut."""

    async with stage(tmp_path, age=1.0, kind=Filled) as one:
        for hour in (1, 1, 2, 2, 2, 1):
            await one.append(1, received_at_ns=hour * 3600 * 10**9 + 5)
        await one.until_waiting()
        await one.time.advance(1.1)
        await one.until_sent(6)
        assert one.far.sizes == [2, 3, 1]


async def test_without_an_age_nothing_waits(tmp_path: Path) -> None:
    """As the collector's own outputs have it."""
    async with stage(tmp_path, age=0) as one:
        await one.append(1)
        await one.until_sent(1)
        assert one.time.now == 1000
        assert one.time.sleepers == 0
