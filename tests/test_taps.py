"""What a tap may cost: its share of the time, its buffer, its place among the others."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import pytest
from events import SwiftTime, event_batch, sequences_in

from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig
from ndagent.wire.codec import Decoder, make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section
from ndcollector.tap import hub
from ndcollector.tap.hub import Taps, TooManyTaps
from ndcollector.tap.look import Look, Wish
from ndcollector.tap.sources import AtOutput, OutputTaps, Tapped


class Recorder:
    """An output that fails as often as it is told to, then takes everything."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.taken: list[EventBatch] = []

    async def send(self, events: EventBatch) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("not yet")
        self.taken.append(events)

    async def sync(self) -> None: ...

    async def aclose(self) -> None: ...


def decoders(*, keep_original: bool) -> Decoder:
    return make_decoder(DecodeSettings(observer_name="c", keep_original="always" if keep_original else "on_error"))


def taps(time: SwiftTime, spools: dict[str, Spool] | None = None, *, most: int = 8) -> Taps:
    return Taps(
        spools or {}, decoders, most=most, buffer_bytes=1 << 20, clock=time.clock, sleep=time.sleep, random=lambda: 0.5
    )


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    """An open spool of the stream security_events; it remembers little."""
    config = SpoolConfig(tip_bytes=4096)
    opened = await Spool.open(tmp_path / "s", stream="security_events", config=config, metrics=Metrics())
    yield opened
    await opened.aclose()


def batch(*messages: bytes, source: str = "syslog_tls", form: str = "syslog") -> Batch:
    payload = b"".join(message + b"\n" for message in messages)
    section = Section(Origin(source, "10.0.0.1", 1), Framing.LF, Flags.NONE, len(payload), len(messages))
    return Batch("security_events", form, 10**18, [section], [payload])


async def test_a_batch_beyond_the_buffer_is_counted_and_not_kept() -> None:
    """`admin.tap_buffer_bytes`; one batch always fits, however large."""
    size = len(event_batch([1]).ndjson)
    source = AtOutput("archive", size * 3)
    for number in range(5):
        source.offer(event_batch([number]))
    assert source.unseen == 2
    (joined,) = await source.take()
    assert sequences_in(joined.ndjson) == [0, 1, 2]
    huge = event_batch(range(100))
    source.offer(huge)
    assert await source.take() == [huge]
    assert source.unseen == 2


async def test_an_output_shows_what_it_took_once_and_only_to_its_own_taps() -> None:
    """Not each try, and not another output's events."""
    taps, recorder = OutputTaps(), Recorder(failures=1)
    output = Tapped(recorder, "archive", taps)
    mine, other = AtOutput("archive", 1000), AtOutput("siem", 1000)
    taps.add(mine)
    taps.add(other)
    with pytest.raises(Unavailable):
        await output.send(event_batch([1]))
    await output.send(event_batch([1]))
    (seen,) = await mine.take()
    assert sequences_in(seen.ndjson) == [1]
    assert await other.take() == []
    taps.remove(mine)
    taps.remove(other)
    assert taps.open == ()


async def test_all_taps_together_get_a_tenth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock costs a millisecond here; what follows each turn is nine times as long."""
    time = SwiftTime()

    def ticking() -> float:
        time.now += 0.001
        return time.now

    monkeypatch.setattr(hub, "_LOOKS_PER_GLANCE_AT_THE_CLOCK", 1)
    many = Taps({}, decoders, most=8, buffer_bytes=1 << 20, clock=ticking, sleep=time.sleep, random=lambda: 0.5)
    output = many.over(Recorder(), "archive")
    async with AsyncExitStack() as stack:
        wish = Wish("output", "archive", limit=200)
        opened = [await stack.enter_async_context(many.open(wish)) for _ in range(3)]
        await output.send(event_batch(range(200)))
        began = time.now
        shown = [b"".join([piece async for piece in pieces]) for pieces in opened]
    assert [text.count(b'{"event"') for text in shown] == [200] * 3
    paused = sum(time.slept)
    assert paused >= 0.8 * (time.now - began)  # the clock ticks between turns, too


async def test_there_are_only_so_many() -> None:
    """And a place is free again when its block ends, whichever way."""
    few = taps(SwiftTime(), most=1)
    async with few.open(Wish("output", "a")):
        with pytest.raises(TooManyTaps, match="1 taps are open"):
            async with few.open(Wish("output", "b")):
                raise AssertionError("opened")
        assert len(few) == 1
    with pytest.raises(ZeroDivisionError):
        async with few.open(Wish("output", "a")):
            raise ZeroDivisionError
    assert len(few) == 0


async def test_a_silent_tap_speaks_each_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or nobody would notice that its reader has gone."""
    monkeypatch.setattr(hub, "SPEAK_EVERY_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    real = Taps({}, decoders, most=1, buffer_bytes=1, clock=loop.time, sleep=asyncio.sleep, random=lambda: 0.5)
    async with real.open(Wish("output", "a")) as pieces:
        assert await anext(pieces) == b'["unseen",0]\n'


async def test_the_end_of_the_collector_ends_every_tap() -> None:
    """Its readers are cancelled and have let go before `aclose` returns."""
    many = taps(SwiftTime())

    async def read() -> None:
        async with many.open(Wish("output", "a")) as pieces:
            async for _ in pieces:
                pass

    readers = [asyncio.create_task(read()) for _ in range(3)]
    while len(many) < 3:
        await asyncio.sleep(0)
    await many.aclose()
    assert [reader.cancelled() for reader in readers] == [True] * 3
    assert len(many) == 0


async def shown_by(spool: Spool, wish: Wish, act: Callable[[], Awaitable[None]]) -> tuple[list[dict[str, object]], int]:
    """The events of a tap with a limit, opened before `act`, and how many passed unseen."""
    async with taps(SwiftTime(), {"security_events": spool}).open(wish) as pieces:
        await act()
        lines = b"".join([piece async for piece in pieces]).splitlines()
    values = [orjson.loads(line) for line in lines]
    return [value for value in values if isinstance(value, dict)], values[-1][1]


async def test_a_tap_that_falls_behind_the_spools_memory_goes_on_at_its_end(spool: Spool) -> None:
    """Nothing is read from disk for it; what it skipped is counted exactly."""

    async def end() -> None:
        while not spool._waiting:  # until the tap has caught up, and waits
            await asyncio.sleep(0)
        await spool.append(batch(b"<34>1 - h a - - - end"))

    ending: list[asyncio.Task[None]] = []

    async def flood() -> None:
        for number in range(100):
            await spool.append(batch(b"<34>1 - h a - - - %d" % number + b"x" * 200))
        ending.append(asyncio.create_task(end()))

    shown, unseen = await shown_by(spool, Wish("stream", limit=1), flood)
    assert [event["message"] for event in shown] == ["end"]
    assert unseen == 100


async def test_an_input_shows_only_its_own(spool: Spool) -> None:
    """Also where a record holds messages of two inputs."""
    mixed = batch(b"<34>1 - h a - - - theirs", source="other")
    mine = batch(b"<34>1 - h a - - - mine")
    sections, payload = [*mixed.sections, *mine.sections], [*mixed.payload, *mine.payload]
    both = Batch("security_events", "syslog", 10**18, sections, payload)

    async def append() -> None:
        await spool.append(mixed)
        await spool.append(both)

    shown, _ = await shown_by(spool, Wish("input", "syslog_tls", limit=1), append)
    assert [event["raw"] for event in shown] == ["<34>1 - h a - - - mine"]


async def test_a_record_that_cannot_be_decoded_counts_as_unseen(spool: Spool) -> None:
    """It has no events to show."""

    async def append() -> None:
        await spool.append(batch(b"?", b"?", form="unknown"))
        await spool.append(batch(b"<34>1 - h a - - - good"))

    shown, unseen = await shown_by(spool, Wish("stream", "security_events", limit=1), append)
    assert [event["message"] for event in shown] == ["good"]
    assert unseen == 2


def test_a_sample_draws_its_gaps() -> None:
    """Geometric: with the middle of the dice, one of ten leaves six between two."""
    look = Look(Wish(share=0.1), lambda: 0.5)
    lines = [line for line in look.lines(event_batch(range(30))) if line is not None]
    assert sequences_in(b"".join(lines)) == [6, 13, 20, 27]
