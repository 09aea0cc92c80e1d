"""From real spools through the real decoder into outputs that fail in every way: independent, complete, in balance."""

import asyncio
import random
import shutil
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import orjson
import pytest

from ndagent.core import dispatcher
from ndagent.core.dead_letters import DeadLetters
from ndagent.core.decoding import Decoding
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.dispatcher import Dispatcher
from ndagent.core.interfaces import Rejected, Route, Routed, Unavailable
from ndagent.core.ledger import Bookkeeper, Ledger
from ndagent.core.metrics import Metrics
from ndagent.core.settings import OutputConfig
from ndagent.core.spool import Spool, SpoolConfig
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section
from ndcollector.ledger_metrics import LedgerMetrics
from ndcollector.routing.config import RoutedConfig
from tests.events import StillTime, settle
from tests.far_side import FarSide, failing

ORIGIN = Origin("syslog_tls", "192.0.2.7", 40000)
SETTINGS = DecodeSettings(observer_name="c", keep_original="never", timezone="UTC", origins=())
EVENTS = "security_events"


def batch(count: int, *, stream: str = EVENTS, origin: Origin = ORIGIN, padding: int = 0) -> Batch:
    lines = [b"<13>1 2026-01-01T00:00:00Z host app - - - hello" + b"." * padding + b"\n"] * count
    payload = b"".join(lines)
    section = Section(origin, Framing.LF, Flags.NONE, len(payload), count)
    return Batch(stream, "syslog", 1_700_000_000_000_000_000, [section], [payload])


class CountingDecoder:
    """The real one, and which sequences it was asked for; `trouble` is raised instead while there is some."""

    def __init__(self) -> None:
        self._decoder = make_decoder(SETTINGS)
        self.asked: list[int] = []
        self.trouble: list[BaseException] = []

    def decode(self, body: bytes | memoryview, *, sequence: int, **context: object) -> EventBatch:
        self.asked.append(sequence)
        if self.trouble:
            raise self.trouble.pop()
        return self._decoder.decode(body, sequence=sequence, **context)


class Plant:
    """Spools, outputs and a running Dispatcher on one directory; time moves only in `eventually` and `time.advance`."""

    def __init__(
        self,
        directory: Path,
        spools: dict[str, Spool],
        metrics: Metrics,
        outputs: dict[str, dict],
        routes: dict[str, Route],
    ) -> None:
        self.directory = directory
        self.routes = routes
        self.spools = spools
        self.metrics = metrics
        self.time = StillTime()
        self.decoder = CountingDecoder()
        self.bookkeeper = Bookkeeper(spools, metrics)
        metrics.registry.register(LedgerMetrics(self.bookkeeper))
        self.far_sides = {name: FarSide() for name in outputs}
        self.stores: dict[str, DeadLetters] = {}
        deliveries = [self._delivery(name, RoutedConfig(type="test", **config)) for name, config in outputs.items()]
        self.deliveries = {delivery.name: delivery for delivery in deliveries}
        self.dispatcher = Dispatcher(
            spools=spools,
            outputs=deliveries,
            decoding=Decoding(self.decoder, metrics=metrics, ring_bytes=1 << 20),
            sleep=self.time.sleep,
        )
        self.running = asyncio.ensure_future(self.dispatcher.run())

    def _delivery(self, name: str, config: OutputConfig) -> Delivery:
        plumbing = {"clock": self.time.clock, "sleep": self.time.sleep, "random": lambda: 0.5}
        output = wrap(self.far_sides[name], name=name, config=config, metrics=self.metrics, **plumbing)
        store = DeadLetters(
            self.directory / "dead_letters", output=name, max_bytes=config.dead_letter_max_bytes, clock=lambda: 0.0
        )
        self.stores[name] = store
        return Delivery(
            output,
            name=name,
            config=config,
            dead_letters=store,
            route=self.routes.get(name),
            pace=output.pace,
            **plumbing,
        )

    @property
    def far_side(self) -> FarSide:
        (only,) = self.far_sides.values()
        return only

    async def append(self, made: Batch) -> None:
        """As an input does: durable first, counted after."""
        await self.spools[made.stream].append(made)
        self.metrics.received.labels("syslog_tls").inc(made.count)

    async def eventually(self, is_so: Callable[[], bool], *, step_seconds: float = 0.1) -> None:
        """Let threads and time go on until it is so (pytest's timeout bounds it)."""
        while not is_so():
            assert not self.running.done(), self.running
            await self.time.advance(step_seconds)
            await asyncio.sleep(0.0005)

    async def drain(self, timeout_seconds: float = 30.0) -> None:
        draining = asyncio.ensure_future(self.dispatcher.drain(timeout_seconds))
        while not draining.done():
            await self.time.advance(0.05)
            await asyncio.sleep(0.0005)
        await draining

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)

    def ledger(self) -> Ledger:
        """Law 2 is checked every time anybody looks."""
        ledger = self.bookkeeper.snapshot()
        assert ledger.adds_up, ledger
        return ledger

    def line(self, output: str, stream: str = EVENTS) -> dict[str, int]:
        (line,) = [line for line in self.ledger().outputs if (line.output, line.stream) == (output, stream)]
        parts = ("appended", "delivered", "pending", "filtered", "dead_lettered", "quarantined", "evicted")
        return {part: count for part in parts if (count := getattr(line, part))}


@asynccontextmanager
async def plant(
    directory: Path,
    *,
    streams: Sequence[str] = (EVENTS,),
    spool: SpoolConfig | None = None,
    routes: dict[str, Route] | None = None,
    **outputs: dict,
) -> AsyncIterator[Plant]:
    metrics = Metrics()
    config = spool or SpoolConfig()
    spools = {
        stream: await Spool.open(directory / stream, stream=stream, config=config, metrics=metrics)
        for stream in streams
    }
    running = Plant(directory, spools, metrics, outputs, routes or {})
    try:
        yield running
        running.ledger()
    finally:
        await running.stop()
        for one in spools.values():
            await one.aclose()


def down(_sequences: list[int]) -> None:
    raise Unavailable("connection refused")


def hold() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


async def test_every_event_reaches_every_output_once_and_the_ledger_says_so(tmp_path: Path) -> None:
    """The main job."""
    async with plant(tmp_path, archive={}, siem={}) as it:
        for _ in range(30):
            await it.append(batch(7))
        await it.eventually(lambda: it.ledger().text == "received 210 · delivered 210 · dropped 0")
        for far_side in it.far_sides.values():
            assert sorted(far_side.taken) == list(range(210))


async def test_a_dead_output_delays_no_other_and_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    """Law 4, with exact counts."""
    async with plant(tmp_path, dead={"in_flight": 4}, live={}) as it:
        it.far_sides["dead"].judge = down
        for _ in range(50):
            await it.append(batch(10))
        await it.eventually(lambda: it.line("live") == {"appended": 500, "delivered": 500})
        assert it.line("dead") == {"appended": 500, "pending": 500}
        await it.time.advance(3600)
        assert it.far_sides["dead"].taken == []
        it.far_sides["dead"].judge = lambda _sequences: None
        await it.eventually(lambda: it.line("dead") == {"appended": 500, "delivered": 500})
        assert sorted(it.far_sides["dead"].taken) == list(range(500))
        assert sorted(it.far_sides["live"].taken) == list(range(500))


@pytest.mark.parametrize(
    ("batch_bytes", "padding", "sends"), [(1 << 15, 1000, 3), (4096, 0, 2)], ids=["by count", "by bytes"]
)
async def test_a_silent_output_holds_exactly_its_window(
    tmp_path: Path, batch_bytes: int, padding: int, sends: int
) -> None:
    """Memory is bounded by in_flight sends and in_flight * batch_bytes, whichever comes first, not by the backlog."""
    async with plant(tmp_path, silent={"in_flight": 3, "batch_bytes": batch_bytes}, live={}) as it:
        silence = hold()
        it.far_sides["silent"].judge = lambda _sequences: silence
        for _ in range(40):
            await it.append(batch(20, padding=padding))
        await it.eventually(lambda: sorted(it.far_sides["live"].taken) == list(range(800)), step_seconds=0.0)
        assert it.far_sides["silent"].sends == sends


async def test_a_window_of_one_keeps_the_order_through_failures(tmp_path: Path) -> None:
    """What a file needs: nothing later is sent before something earlier."""
    async with plant(tmp_path, archive={"in_flight": 1, "batch_bytes": 1024}) as it:
        turn = [0]

        def judge(_sequences: list[int]) -> None:
            turn[0] += 1
            if turn[0] % 2:
                raise Unavailable("flapping")

        it.far_side.judge = judge
        for _ in range(20):
            await it.append(batch(5))
        await it.eventually(lambda: it.line("archive") == {"appended": 100, "delivered": 100})
        assert it.far_side.taken == list(range(100))


async def test_small_records_that_piled_up_go_out_together(tmp_path: Path) -> None:
    """One event per record must not mean one send per event."""
    async with plant(tmp_path, siem={"in_flight": 1}) as it:
        first = hold()
        it.far_side.judge = lambda sequences: first if 0 in sequences else None
        await it.append(batch(1))
        await it.eventually(lambda: it.far_side.sends == 1, step_seconds=0.0)
        await it.append(batch(1))  # read ahead, alone
        await it.eventually(lambda: 1 in it.decoder.asked, step_seconds=0.0)
        for port in range(200):
            await it.append(batch(1, origin=Origin("syslog_tls", "192.0.2.7", port)))
        first.set_result(None)
        await it.eventually(lambda: it.line("siem") == {"appended": 202, "delivered": 202})
        assert it.far_side.taken == list(range(202))
        assert len(it.far_side.batches) <= 4


async def test_the_cursor_passes_only_what_was_taken_before_a_sync(tmp_path: Path) -> None:
    """Sends go on during a sync; what they bring waits for the next one."""
    async with plant(tmp_path, archive={}) as it:
        syncing = hold()
        it.far_side.judge_sync = lambda: syncing
        await it.append(batch(10))
        cursor = it.spools[EVENTS].cursors["archive"]
        await it.eventually(lambda: len(it.far_side.taken) == 10)
        await it.time.advance(2.0)  # the save has begun and hangs in sync
        await it.append(batch(5))
        await it.eventually(lambda: len(it.far_side.taken) == 15)
        assert cursor.sequence == 0
        it.far_side.judge_sync = lambda: None
        syncing.set_result(None)
        await it.eventually(lambda: cursor.sequence > 0, step_seconds=0.0)
        assert (cursor.sequence, it.far_side.durable) == (10, 10)
        await it.eventually(lambda: cursor.sequence == 15)


async def test_a_sync_that_failed_for_somebody_else_is_no_sync(tmp_path: Path) -> None:
    """A replay of dead letters syncs the same output; a sync that failed there left our events in doubt too."""
    async with plant(tmp_path, archive={}) as it:
        await it.append(batch(10))
        await it.eventually(lambda: len(it.far_side.taken) == 10, step_seconds=0.0)
        it.far_side.judge_sync = failing(1, lambda: Unavailable("fdatasync: Input/output error"))
        with pytest.raises(Unavailable):
            await it.deliveries["archive"].sync()
        cursor = it.dispatcher.lanes[0].feeds[0].cursor
        await it.eventually(lambda: cursor.sequence == 10)
        assert it.far_side.taken == [*range(10), *range(10)], "sent again before the cursor passed it"


async def test_an_event_is_coming_until_the_cursor_has_passed_it(tmp_path: Path) -> None:
    """What a replay of dead letters waits for; other outputs, streams and spools are no concern of it."""
    async with plant(tmp_path, archive={}) as it:
        spool_id = it.spools[EVENTS].spool_id
        await it.append(batch(10))
        assert it.dispatcher.is_coming("archive", EVENTS, spool_id, 9)
        assert not it.dispatcher.is_coming("archive", EVENTS, "another", 9)
        assert not it.dispatcher.is_coming("siem", EVENTS, spool_id, 9)
        await it.eventually(lambda: not it.dispatcher.is_coming("archive", EVENTS, spool_id, 9))
        assert it.dispatcher.is_coming("archive", EVENTS, spool_id, 10)


async def test_a_rate_limit_delays_no_stop(tmp_path: Path) -> None:
    """What waits for its turn has not begun: a reload drops it at once, and the next run sends it once."""
    async with plant(tmp_path, slow={"rate": {"events_per_second": 10.0}}) as it:
        await it.append(batch(100))
        await it.eventually(lambda: len(it.far_side.taken) == 20)
        began = it.time.now
        await it.drain(0)
        assert it.time.now - began < 1.0
        assert it.far_side.taken == list(range(len(it.far_side.taken)))
        assert it.dispatcher.lanes[0].feeds[0].cursor.sequence == len(it.far_side.taken) < 50


async def test_saves_are_a_second_apart_and_none_happens_without_progress(tmp_path: Path) -> None:
    """An fsync per batch would be the output's speed limit."""
    async with plant(tmp_path, archive={}) as it:
        syncs: list[float] = []
        it.far_side.judge_sync = lambda: syncs.append(it.time.now)
        for number in range(40):
            await it.append(batch(1))
            await it.eventually(lambda wanted=number + 1: len(it.far_side.taken) == wanted, step_seconds=0.0)
            await it.time.advance(0.1)
        await it.eventually(lambda: it.spools[EVENTS].cursors["archive"].sequence == 40)
        await it.time.advance(100.0)
        assert 3 <= len(syncs) <= 6
        assert all(later - earlier >= 1.0 for earlier, later in pairwise(syncs))


async def test_a_failed_sync_sends_again_what_it_was_for(tmp_path: Path) -> None:
    """After a failed fsync the data may be gone although the next one succeeds."""
    async with plant(tmp_path, archive={}, other={}) as it:
        await it.append(batch(10))
        await it.eventually(lambda: it.line("archive") == {"appended": 10, "delivered": 10})
        far_side = it.far_sides["archive"]
        far_side.judge_sync = failing(1, lambda: Unavailable("fdatasync: Input/output error"))
        await it.append(batch(10))
        await it.eventually(lambda: it.line("archive") == {"appended": 20, "delivered": 20})
        assert sorted(far_side.taken) == sorted([*range(10), *range(10, 20), *range(10, 20)])
        assert sorted(it.far_sides["other"].taken) == list(range(20))


async def test_a_kill_between_send_and_save_sends_again_and_loses_nothing(tmp_path: Path) -> None:
    """The disk as a kill would leave it: a copy taken after the send and before the save."""
    async with plant(tmp_path / "a", siem={}) as it:
        await it.append(batch(10))
        await it.eventually(lambda: it.line("siem") == {"appended": 10, "delivered": 10})
        await it.append(batch(5))
        await it.eventually(lambda: len(it.far_side.taken) == 15, step_seconds=0.0)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    async with plant(tmp_path / "b", siem={}) as it:
        await it.eventually(lambda: it.line("siem") == {"appended": 15, "delivered": 15})
        assert it.far_side.taken == list(range(10, 15))


async def test_a_clean_stop_saves_and_nothing_comes_twice(tmp_path: Path) -> None:
    """Cancel is how the daemon stops it."""
    async with plant(tmp_path, siem={}) as it:
        await it.append(batch(10))
        await it.eventually(lambda: len(it.far_side.taken) == 10, step_seconds=0.0)
        await it.stop()
        assert it.line("siem") == {"appended": 10, "delivered": 10}
    async with plant(tmp_path, siem={}) as it:
        await it.append(batch(3))
        await it.eventually(lambda: it.line("siem") == {"appended": 13, "delivered": 13})
        assert it.far_side.taken == [10, 11, 12]


async def test_a_stop_amid_a_sync_that_fails_does_not_save(tmp_path: Path) -> None:
    """The sync's end must be seen: a second one might succeed without the data."""
    async with plant(tmp_path, siem={}) as it:
        await it.append(batch(10))
        syncing = hold()
        it.far_side.judge_sync = lambda: syncing
        await it.eventually(lambda: len(it.far_side.taken) == 10)
        await it.time.advance(2.0)
        it.running.cancel()
        await asyncio.sleep(0)
        it.far_side.judge_sync = lambda: None
        syncing.set_exception(Unavailable("fdatasync: Input/output error"))
        await asyncio.gather(it.running, return_exceptions=True)
        assert it.line("siem") == {"appended": 10, "pending": 10}


async def test_a_rejected_event_is_buried_alone_and_counted(tmp_path: Path) -> None:
    """The conservation law with a dead letter in it."""

    def judge(sequences: list[int]) -> None:
        if 13 in sequences:
            raise Rejected("mapper_parsing_exception")

    async with plant(tmp_path, siem={}) as it:
        it.far_side.judge = judge
        for _ in range(5):
            await it.append(batch(6))
        await it.eventually(lambda: it.line("siem") == {"appended": 30, "delivered": 29, "dead_lettered": 1})
        (letter,) = map(orjson.loads, it.stores["siem"].path.read_bytes().splitlines())
        assert (letter["sequence"], letter["reason"]) == (13, "mapper_parsing_exception")
        assert sorted(it.far_side.taken) == [n for n in range(30) if n != 13]
        assert "dead-lettered 1" in it.ledger().text


def keeping(wanted: Callable[[int], bool], *, failing: Callable[[int], bool] = lambda _sequence: False) -> Route:
    """A route by sequence; those that are `failing` cannot be changed as they must be."""

    async def route(events: EventBatch) -> Routed:
        await asyncio.sleep(0)  # as one that works in a thread: others get a turn meanwhile
        kept, failed = [], []
        for position, sequence in enumerate(events.sequences):
            (failed if failing(sequence) else kept if wanted(sequence) else []).append(position)
        left_out = set(range(len(events))) - {*kept, *failed}
        filtered = array("I", (events.origins[position] for position in sorted(left_out)))
        return Routed(events.select(kept), filtered, [(events.select(failed), "cannot change it")] if failed else [])

    return route


async def test_each_output_gets_what_its_route_says_and_the_rest_is_filtered(tmp_path: Path) -> None:
    """Law 2 with filtered events in it, per output; one whose route wants nothing is no burden."""
    routes = {"third": keeping(lambda n: n % 3 == 0), "none": keeping(lambda _n: False)}
    async with plant(tmp_path, routes=routes, third={}, none={}, all={}) as it:
        for _ in range(10):
            await it.append(batch(6))
        await it.eventually(lambda: it.line("third") == {"appended": 60, "delivered": 20, "filtered": 40})
        await it.eventually(lambda: it.line("none") == {"appended": 60, "filtered": 60})
        await it.eventually(lambda: it.line("all") == {"appended": 60, "delivered": 60})
        assert it.far_sides["third"].taken == list(range(0, 60, 3))
        assert it.far_sides["none"].sends == 0
        assert it.ledger().text == "received 60 · delivered 60 · dropped 0"


async def test_an_event_that_a_route_cannot_change_is_a_dead_letter_and_never_sent(tmp_path: Path) -> None:
    """A redaction that fails must neither lose the event nor let it out as it is."""
    routes = {"siem": keeping(lambda n: n != 3, failing=lambda n: n == 7)}
    async with plant(tmp_path, routes=routes, siem={}) as it:
        await it.append(batch(10))
        parts = {"appended": 10, "delivered": 8, "filtered": 1, "dead_lettered": 1}
        await it.eventually(lambda: it.line("siem") == parts)
        (letter,) = map(orjson.loads, it.stores["siem"].path.read_bytes().splitlines())
        assert (letter["sequence"], letter["reason"]) == (7, "cannot change it")
        assert it.far_side.taken == [0, 1, 2, 4, 5, 6, 8, 9]


async def test_filtered_events_before_an_undelivered_one_are_not_settled(tmp_path: Path) -> None:
    """The cursor is a prefix: what was filtered behind a send under way waits for it, and is not counted twice."""
    async with plant(tmp_path, routes={"siem": keeping(lambda n: n == 0)}, siem={}) as it:
        answer = hold()
        it.far_side.judge = lambda _sequences: answer
        await it.append(batch(1))
        await it.eventually(lambda: it.far_side.sends == 1)
        await it.append(batch(9))
        await it.time.advance(5.0)
        assert it.line("siem") == {"appended": 10, "pending": 10}
        answer.set_result(None)
        await it.eventually(lambda: it.line("siem") == {"appended": 10, "delivered": 1, "filtered": 9})
        await it.dispatcher.replay(output="siem", stream=EVENTS, start=5)
        await it.eventually(lambda: it.line("siem") == {"appended": 15, "delivered": 1, "filtered": 14})


async def test_a_route_that_fails_sends_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """A bug in a route restarts its lane, as a bug in the output does; the other output does not notice."""
    trouble: list[Exception] = [KeyError("bug"), KeyError("bug")]
    keep = keeping(lambda n: n % 2 == 0)

    async def route(events: EventBatch) -> Routed:
        if trouble:
            raise trouble.pop()
        return await keep(events)

    async with plant(tmp_path, routes={"siem": route}, siem={}, live={}) as it:
        await it.append(batch(10))
        await it.eventually(lambda: it.line("siem") == {"appended": 10, "delivered": 5, "filtered": 5})
        assert it.far_sides["siem"].taken == [0, 2, 4, 6, 8]
        assert it.far_sides["live"].taken == list(range(10))


async def test_a_full_dead_letter_store_blocks_only_its_output(tmp_path: Path) -> None:
    """Never dropped; the other output does not notice."""

    def judge(_sequences: list[int]) -> None:
        raise Rejected("no")

    async with plant(tmp_path, picky={"dead_letter_max_bytes": 2048}, live={}) as it:
        it.far_sides["picky"].judge = judge
        for _ in range(40):
            await it.append(batch(1))
        await it.eventually(lambda: it.line("live") == {"appended": 40, "delivered": 40})
        store = it.stores["picky"].path
        await it.eventually(lambda: store.exists() and store.stat().st_size > 1024)
        await it.time.advance(300)
        assert it.line("picky")["pending"] > 0
        assert store.stat().st_size <= 2048
        purged: list[Path] = []

        def purge() -> bool:
            if store.exists():  # a rename, as logrotate does it: what is just being written goes along
                purged.append(store.rename(tmp_path / f"purged-{len(purged)}"))
            return it.line("picky") == {"appended": 40, "dead_lettered": 40}

        await it.eventually(purge, step_seconds=5.0)
        purge()
        kept = [orjson.loads(line)["sequence"] for path in purged for line in path.read_bytes().splitlines()]
        assert sorted(kept) == list(range(40))


async def test_a_record_that_cannot_be_decoded_is_buried_raw_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its CRC was right, so it will never decode: it must not stand in the way for ever."""
    async with plant(tmp_path, siem={}) as it:
        good = batch(5)
        nonsense = Batch(EVENTS, "morse", good.received_at_ns, good.sections, good.payload)
        for made in (good, nonsense, good):
            await it.append(made)
        await it.eventually(lambda: it.line("siem") == {"appended": 15, "delivered": 10, "dead_lettered": 5})
        assert sorted(it.far_side.taken) == [*range(5), *range(10, 15)]
        (letter,) = map(orjson.loads, it.stores["siem"].path.read_bytes().splitlines())
        assert letter["reason"].startswith("corrupt_body")
        assert (letter["sequence"], letter["count"]) == (5, 5)
        assert len([record for record in caplog.records if "cannot be decoded" in record.getMessage()]) == 1


async def test_a_bug_in_the_decoder_costs_one_records_form_not_the_output(tmp_path: Path) -> None:
    """Law 3: a parser bug never loses an event."""
    async with plant(tmp_path, siem={}) as it:
        it.decoder.trouble = [ZeroDivisionError("oops")]
        await it.append(batch(5))
        await it.eventually(lambda: it.line("siem") == {"appended": 5, "dead_lettered": 5})
        (letter,) = map(orjson.loads, it.stores["siem"].path.read_bytes().splitlines())
        assert letter["reason"] == "decoder_failed: ZeroDivisionError: oops"


async def test_out_of_memory_restarts_the_lane_and_nothing_is_lost(tmp_path: Path) -> None:
    """It says nothing about the record; the lane pauses and begins again at its last saved place."""
    async with plant(tmp_path, siem={}) as it:
        it.decoder.trouble = [MemoryError(), MemoryError()]
        for _ in range(10):
            await it.append(batch(5))
        await it.eventually(lambda: it.line("siem") == {"appended": 50, "delivered": 50})
        assert set(it.far_side.taken) == set(range(50))


async def test_outputs_at_the_tip_share_one_decoding(tmp_path: Path) -> None:
    """Decoding is the dearest step: three outputs must not pay it three times."""
    async with plant(tmp_path, a={}, b={}, c={}) as it:
        for turn in range(20):
            await it.append(batch(300))
            await it.eventually(lambda: all(len(far.taken) == 300 * (turn + 1) for far in it.far_sides.values()))  # noqa: B023 - awaited here
        assert it.decoder.asked == [300 * turn for turn in range(20)]


async def test_an_output_gets_only_its_streams(tmp_path: Path) -> None:
    """Routing by stream; each stream has a cursor of its own."""
    async with plant(tmp_path, streams=(EVENTS, "alerts"), all={}, pager={"streams": ("alerts",)}) as it:
        await it.append(batch(10))
        await it.append(batch(3, stream="alerts"))
        await it.eventually(lambda: it.ledger().text == "received 13 · delivered 13 · dropped 0")
        assert sorted(it.far_sides["pager"].taken) == [0, 1, 2]
        assert len(it.far_sides["all"].taken) == 13


async def test_drain_ends_as_soon_as_everything_is_out_and_saved(tmp_path: Path) -> None:
    """A graceful stop takes as long as it must, no longer."""
    async with plant(tmp_path, siem={}) as it:
        for _ in range(20):
            await it.append(batch(10))
        began = it.time.now
        await it.drain()
        assert it.line("siem") == {"appended": 200, "delivered": 200}
        assert it.time.now - began < 30
        assert not it.spools[EVENTS].cursors["siem"].unsaved
        await it.running


async def test_a_drain_does_not_wait_for_batches_to_fill(tmp_path: Path) -> None:
    """A stop must not take as long as `batch_age`, nor leave behind what could have gone."""
    async with plant(tmp_path, lake={"batch_age": 60.0}) as it:
        await it.append(batch(10))
        began = it.time.now
        await it.drain()
        assert it.line("lake") == {"appended": 10, "delivered": 10}
        assert it.time.now - began < 30


async def test_a_drain_without_time_lets_the_sends_under_way_end(tmp_path: Path) -> None:
    """A reload, or a stop with a large backlog: the far side takes what it was being sent, once and for all."""
    async with plant(tmp_path, siem={"in_flight": 1}) as it:
        answer = hold()
        it.far_side.judge = lambda sequences: answer
        for _ in range(3):
            await it.append(batch(10))
            await it.eventually(lambda: it.far_side.sends == 1)
        draining = asyncio.ensure_future(it.dispatcher.drain(0))
        await it.eventually(lambda: it.time.now > 1001)
        answer.set_result(None)
        while not draining.done():
            await it.time.advance(0.05)
            await asyncio.sleep(0.0005)
        assert it.line("siem") == {"appended": 30, "delivered": 10, "pending": 20}
        assert it.far_side.taken == list(range(10))
    async with plant(tmp_path, siem={}) as it:
        await it.eventually(lambda: it.line("siem") == {"appended": 30, "delivered": 30})
        assert it.far_side.taken == list(range(10, 30))


async def test_drain_gives_up_on_a_dead_output_and_keeps_its_events(tmp_path: Path) -> None:
    """Thirty seconds, then the next start goes on where this one stopped."""
    async with plant(tmp_path, dead={}, live={}) as it:
        it.far_sides["dead"].judge = down
        for _ in range(20):
            await it.append(batch(10))
        began = it.time.now
        await it.drain(timeout_seconds=30.0)
        assert 29 < it.time.now - began < 34
        assert it.line("live") == {"appended": 200, "delivered": 200}
        assert it.line("dead") == {"appended": 200, "pending": 200}
    async with plant(tmp_path, dead={}, live={}) as it:
        await it.eventually(lambda: it.line("dead") == {"appended": 200, "delivered": 200})
        assert it.far_sides["live"].taken == []


async def test_an_output_that_may_drop_loses_its_own_oldest_events_and_no_others(tmp_path: Path) -> None:
    """on_full: drop_oldest, counted as evicted; the output that keeps up has everything."""
    spool = SpoolConfig(max_bytes=1 << 16, segment_bytes=1 << 13)
    async with plant(tmp_path, spool=spool, dead={"on_full": "drop_oldest"}, live={}) as it:
        it.far_sides["dead"].judge = down
        for turn in range(60):
            await it.append(batch(20, padding=100))
            await it.eventually(lambda: it.line("live").get("delivered") == 20 * (turn + 1), step_seconds=1.0)  # noqa: B023 - awaited here
        line = it.line("dead")
        assert line["evicted"] > 0
        assert line["evicted"] + line["pending"] == 1200
        it.far_sides["dead"].judge = lambda _sequences: None
        await it.eventually(lambda: "pending" not in it.line("dead"))
        line = it.line("dead")
        assert line["delivered"] + line["evicted"] == 1200
        assert set(range(1200)) - set(it.far_sides["dead"].taken) <= set(range(line["evicted"]))


async def test_a_replay_sends_again_marked_as_such_and_goes_on_after(tmp_path: Path) -> None:
    """What an operator asks for after a destination lost its data."""
    spool = SpoolConfig(replay_window=3600.0)
    async with plant(tmp_path, spool=spool, siem={}, other={}) as it:
        for _ in range(4):
            await it.append(batch(5))
        await it.eventually(lambda: it.line("siem") == it.line("other") == {"appended": 20, "delivered": 20})
        asking = asyncio.ensure_future(it.dispatcher.replay(output="siem", stream=None, start=7))
        await it.eventually(asking.done)
        assert await asking == {EVENTS: 13}
        await it.append(batch(2))
        await it.eventually(lambda: it.line("siem") == {"appended": 35, "delivered": 35})
        assert it.far_sides["siem"].replayed == list(range(7, 20))
        assert sorted(it.far_sides["other"].taken) == list(range(22))


async def test_a_replay_of_what_was_sent_a_moment_ago_is_one(tmp_path: Path) -> None:
    """The cursor is saved once a second; a replay asked for before that must not be taken for unfinished business."""
    async with plant(tmp_path, siem={}) as it:
        await it.append(batch(20))
        await it.eventually(lambda: len(it.far_side.taken) == 20, step_seconds=0)
        asking = asyncio.ensure_future(it.dispatcher.replay(output="siem", stream=None, start=5))
        await it.eventually(asking.done, step_seconds=0)
        assert await asking == {EVENTS: 15}
        await it.eventually(lambda: it.far_side.replayed == list(range(5, 20)))
        await it.eventually(lambda: it.line("siem") == {"appended": 35, "delivered": 35})


async def test_a_replay_that_cannot_begin_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    """What was sent last cannot be made durable: the operator is told at once, not left waiting."""
    async with plant(tmp_path, siem={}) as it:
        it.far_side.judge_sync = failing(1, lambda: Unavailable("no sync"))
        await it.append(batch(20))
        await it.eventually(lambda: len(it.far_side.taken) == 20, step_seconds=0)
        asking = asyncio.ensure_future(it.dispatcher.replay(output="siem", stream=None, start=5))
        await it.eventually(asking.done, step_seconds=0)
        with pytest.raises(Unavailable, match="no sync"):
            await asking
        await it.eventually(lambda: it.line("siem") == {"appended": 20, "delivered": 20})


async def test_a_stop_answers_who_waits_for_a_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload ends the lanes: the operator's request must not hang."""
    monkeypatch.setattr(dispatcher, "SAVE_AT_STOP_SECONDS", 0.1)
    async with plant(tmp_path, siem={}) as it:
        it.far_side.judge_sync = asyncio.get_running_loop().create_future
        await it.append(batch(20))
        await it.eventually(lambda: len(it.far_side.taken) == 20, step_seconds=0)
        asking = asyncio.ensure_future(it.dispatcher.replay(output="siem", stream=None, start=5))
        await asyncio.sleep(0)
        await it.stop()
        with pytest.raises(Unavailable):
            await asking


async def test_a_replay_that_is_asked_for_amid_a_stop_does_not_hang(tmp_path: Path) -> None:
    """The output is still being saved; nobody is left who would begin a replay."""
    async with plant(tmp_path, siem={}) as it:
        await it.append(batch(20))
        await it.eventually(lambda: len(it.far_side.taken) == 20, step_seconds=0)
        syncing = hold()
        it.far_side.judge_sync = lambda: syncing
        it.running.cancel()
        await settle()
        assert not it.running.done()
        with pytest.raises(ValueError, match="not running"):
            async with asyncio.timeout(5):
                await it.dispatcher.replay(output="siem", stream=None, start=5)
        syncing.set_result(None)


async def test_a_replay_of_an_unknown_output_is_an_error(tmp_path: Path) -> None:
    """The admin socket answers 400 with this text."""
    async with plant(tmp_path, siem={}) as it:
        with pytest.raises(ValueError, match="'elastic'"):
            await it.dispatcher.replay(output="elastic", stream=None, start=0)


async def test_the_ledger_is_exported_when_prometheus_asks(tmp_path: Path) -> None:
    """From the cursors, at that moment."""
    async with plant(tmp_path, siem={}) as it:
        it.far_side.judge = down
        await it.append(batch(10))
        labels = {"output": "siem", "stream": EVENTS}
        assert it.metrics.registry.get_sample_value("nd_output_pending_events", labels) == 10
        it.far_side.judge = lambda _sequences: None
        await it.eventually(lambda: it.line("siem") == {"appended": 10, "delivered": 10})
        assert it.metrics.registry.get_sample_value("nd_output_delivered_events_total", labels) == 10
        assert orjson.loads(orjson.dumps(it.ledger().plain()))["adds_up"] is True


async def test_a_drop_at_an_input_is_in_the_ledger_and_a_forgotten_one_breaks_it(tmp_path: Path) -> None:
    """The law must be able to fail."""
    async with plant(tmp_path, siem={}) as it:
        it.metrics.received.labels("syslog_udp").inc(3)
        it.metrics.count_drop(input="syslog_udp", reason="spool_full", events=3)
        assert it.ledger().text == "received 3 · delivered 0 · dropped 3"
        it.metrics.received.labels("syslog_udp").inc(1)
        assert not it.bookkeeper.snapshot().adds_up
        it.metrics.count_drop(input="syslog_udp", reason="spool_full", events=1)


class Chaos:
    """A far side's moods, drawn from a seed: down, broken, refusing a few events for ever, failing to sync."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.guilty = set(self.draw.sample(range(600), 5))

    def judge(self, sequences: list[int]) -> None:
        if self.draw.random() < 0.3:
            raise self.draw.choice([Unavailable("down"), Unavailable("busy", 2.0), OSError(5, "EIO"), KeyError("bug")])
        self.refuse(sequences)

    def refuse(self, sequences: list[int]) -> None:
        named = [index for index, sequence in enumerate(sequences) if sequence in self.guilty]
        if named:
            raise Rejected("no", named if self.draw.random() < 0.5 else None)

    def judge_sync(self) -> None:
        if self.draw.random() < 0.3:
            raise OSError(5, "Input/output error")

    async def live(self, it: Plant) -> int:
        """Append while everything goes wrong; returns how many events."""
        appended = 0
        for far_side in it.far_sides.values():
            far_side.judge, far_side.judge_sync = self.judge, self.judge_sync
        for _ in range(12):
            made = batch(self.draw.randint(1, 20))
            await it.append(made)
            appended += made.count
            await it.eventually(lambda: self.draw.random() < 0.3, step_seconds=self.draw.choice([0.0, 0.5, 5.0]))
        return appended


@pytest.mark.parametrize("seed", range(6))
async def test_chaos_over_several_lives_loses_nothing(tmp_path: Path, seed: int) -> None:
    """Outages, refusals, bugs, failed syncs, clean stops and kills at random: all that was appended comes out."""
    chaos = Chaos(seed)
    taken: dict[str, set[int]] = {"a": set(), "b": set()}
    routes = {"b": keeping(lambda n: n % 4 != 1)}
    total, directory = 0, tmp_path / "0"
    for life in range(1, 6):
        async with plant(directory, routes=routes, a={"in_flight": chaos.draw.choice([1, 4])}, b={}) as it:
            total += await chaos.live(it)
            if chaos.draw.random() < 0.5:
                await it.stop()
            else:  # a kill: the next life sees the disk as it is now
                directory = shutil.copytree(directory, tmp_path / str(life))
            for name, far_side in it.far_sides.items():
                taken[name].update(far_side.taken)
    async with plant(directory, routes=routes, a={}, b={}) as it:
        for far_side in it.far_sides.values():
            far_side.judge = chaos.refuse
        await it.drain(timeout_seconds=300.0)
        wanted = {"a": set(range(total)), "b": {n for n in range(total) if n % 4 != 1}}
        for name, far_side in it.far_sides.items():
            guilty = chaos.guilty & wanted[name]
            assert "pending" not in it.line(name)
            assert it.line(name).get("filtered", 0) == total - len(wanted[name])
            assert taken[name] | set(far_side.taken) == wanted[name] - guilty
            path = it.stores[name].path
            lines = path.read_bytes().splitlines() if path.exists() else []
            assert {orjson.loads(line)["sequence"] for line in lines} == guilty
