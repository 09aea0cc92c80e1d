"""What a real dispatcher tells the ledger: by sender, of what is delivered, filtered, rejected and undecodable."""

import asyncio
import random
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ndagent.core import dispatcher as dispatcher_module
from ndagent.core.dead_letters import DeadLetters
from ndagent.core.decoding import Decoding
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.dispatcher import Dispatcher
from ndagent.core.interfaces import Output, Rejected, Routed, Unavailable
from ndagent.core.metrics import Metrics
from ndagent.core.settings import OutputConfig, RetryConfig
from ndagent.core.spool import Spool, SpoolConfig
from ndagent.core.tally import Tally
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section
from ndcollector.ledger.config import LedgerConfig
from ndcollector.ledger.ledger import Ledger
from ndcollector.ledger.store import Changes
from tests.events import event_batch
from tests.far_side import FarSide

STREAM = "security_events"
_SEQUENCE = 7  # of a row of Changes.accounts: the cursor's
SETTINGS = DecodeSettings(observer_name="c", keep_original="never", timezone="UTC", origins=())


def device(number: int) -> Origin:
    return Origin("syslog_tls", "192.0.2.1", 40000 + number, names=(f"URI:nd:device:fw-{number}",))


def batch(devices: int, *, events: int, framing: Framing = Framing.LF) -> Batch:
    """So many events of each of the devices."""
    line = b"<13>1 2026-01-01T00:00:00Z host app - - - hello\n"
    sections = [Section(device(n), framing, Flags.NONE, len(line) * events, events) for n in range(devices)]
    return Batch(STREAM, "syslog", 1_700_000_000_000_000_000, sections, [line * events * devices])


class Decoder:
    """The real one; what begins at these sequences it cannot decode."""

    def __init__(self, undecodable: Sequence[int]) -> None:
        self._decoder = make_decoder(SETTINGS)
        self._undecodable = undecodable

    def decode(self, body: bytes | memoryview, *, sequence: int, **context: object) -> EventBatch:
        if sequence in self._undecodable:
            raise ValueError("a bug")
        return self._decoder.decode(body, sequence=sequence, **context)  # type: ignore[arg-type]


async def route(events: EventBatch) -> Routed:
    """Every tenth event is not for this output, every fifteenth cannot be changed as it must be."""
    left_out = [place for place, sequence in enumerate(events.sequences) if sequence % 10 == 0]
    failed = [place for place, sequence in enumerate(events.sequences) if sequence % 15 == 1]
    rest = sorted(set(range(len(events))).difference(left_out, failed))
    origins = array("I", [events.origins[place] for place in left_out])
    return Routed(events.select(rest), origins, [(events.select(failed), "no way")] if failed else [])


class SlowDisk:
    """An output whose sync takes a while and fails every second time: then what it held is lost."""

    def __init__(self) -> None:
        self.syncs = self.durable = self._written = 0

    async def send(self, events: EventBatch) -> None:
        self._written = max(self._written, events.sequences[-1] + 1)

    async def sync(self) -> None:
        written, self.syncs = self._written, self.syncs + 1
        for _ in range(50):
            await asyncio.sleep(0)
        if self.syncs % 2:
            raise Unavailable("the disk")
        self.durable = max(self.durable, written)

    async def aclose(self) -> None:
        pass


async def test_the_ledger_is_never_ahead_of_what_the_output_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash a cursor goes on where the ledger stands: one step too far would be events that nobody sends."""
    monkeypatch.setattr(dispatcher_module, "SAVE_EVERY_SECONDS", 0.001)
    ahead, output, metrics = [], SlowDisk(), Metrics()
    ledger = Ledger(tmp_path, config=LedgerConfig(), metrics=metrics, clock=lambda: 1.0)
    directory = tmp_path / "spool" / STREAM
    spool = await Spool.open(directory, stream=STREAM, config=SpoolConfig(), metrics=metrics)
    await ledger.open({STREAM: spool})
    write = ledger._file.write

    async def checked(changes: Changes) -> None:
        ahead.extend(row[_SEQUENCE] for row in changes.accounts if row[_SEQUENCE] > output.durable)
        await write(changes)

    ledger._file.write = checked  # type: ignore[method-assign]
    config = OutputConfig(type="test", in_flight=1, retry=RetryConfig(initial=0.001, maximum=0.002))
    delivery = wrapped(output, config, tmp_path, metrics)
    decoding = Decoding(Decoder(()), metrics=metrics, ring_bytes=1 << 20)  # type: ignore[arg-type]
    running = asyncio.ensure_future(
        Dispatcher(spools={STREAM: spool}, outputs=[delivery], decoding=decoding, journal=ledger).run()
    )
    for _ in range(30):
        await spool.append(batch(2, events=5))
        await ledger.commit()  # its own, at any moment
    while output.durable < 300:
        await ledger.commit()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await spool.aclose()
    await ledger.aclose()
    assert (ahead, output.durable) == ([], 300)


def wrapped(output: Output, config: OutputConfig, directory: Path, metrics: Metrics, **more: Any) -> Delivery:
    """An output as the machine has it."""
    plumbing: dict[str, Any] = {"clock": asyncio.get_running_loop().time, "sleep": asyncio.sleep}
    plumbing["random"] = random.random
    letters = DeadLetters(directory / "dead_letters", output="siem", max_bytes=1 << 24, clock=lambda: 0.0)
    chain = wrap(output, name="siem", config=config, metrics=metrics, **plumbing)
    return Delivery(chain, name="siem", config=config, dead_letters=letters, **plumbing, **more)


async def run(directory: Path, spool: Spool, ledger: Ledger, metrics: Metrics, undecodable: Sequence[int]) -> None:
    """Deliver everything; the far side rejects every seventh event."""
    far_side = FarSide()

    def judge(sequences: list[int]) -> None:
        guilty = [place for place, sequence in enumerate(sequences) if sequence % 7 == 3]
        if guilty:
            raise Rejected("no", guilty)

    far_side.judge = judge
    delivery = wrapped(far_side, OutputConfig(type="test"), directory, metrics, route=route)
    decoding = Decoding(Decoder(undecodable), metrics=metrics, ring_bytes=1 << 20)  # type: ignore[arg-type]
    dispatcher = Dispatcher(spools={STREAM: spool}, outputs=[delivery], decoding=decoding, journal=ledger)
    running = asyncio.ensure_future(dispatcher.run())
    await asyncio.sleep(0)
    await dispatcher.drain(30)
    await running


async def test_each_senders_fates_are_exact(tmp_path: Path) -> None:
    """Many senders and few, joined batches, a record that the decoder fails at; before and after a restart."""
    metrics = Metrics()
    ledger = Ledger(tmp_path, config=LedgerConfig(), metrics=metrics, clock=lambda: 1.0)
    directory = tmp_path / "spool" / STREAM
    spool = await Spool.open(directory, stream=STREAM, config=SpoolConfig(), metrics=metrics)
    await ledger.open({STREAM: spool})
    owners: list[int] = []
    for devices, events in ((1, 50), (3, 40), (40, 3), (2, 30), (5, 1)):
        await spool.append(batch(devices, events=events))
        owners += [number for number in range(devices) for _ in range(events)]
    undecodable = 50 + 120 + 120  # the fourth record
    await run(tmp_path, spool, ledger, metrics, [undecodable])
    found = await ledger.report(origin=None, output=None, stream=None)
    await spool.aclose()
    await ledger.aclose()
    truth: dict[int, dict[str, int]] = {}
    for sequence, owner in enumerate(owners):
        is_dead = undecodable <= sequence < undecodable + 60
        if not is_dead and sequence % 10 == 0:
            fate = "filtered"
        else:
            is_dead = is_dead or sequence % 15 == 1 or sequence % 7 == 3
            fate = "dead_lettered" if is_dead else "delivered"
        sums = truth.setdefault(owner, {"delivered": 0, "filtered": 0, "dead_lettered": 0})
        sums[fate] += 1
    assert found["adds_up"], found["problems"]
    rows = {row["origin"]: row["outputs"][0] for row in found["origins"]}
    assert {name: {fate: row[fate] for fate in truth[0]} for name, row in rows.items()} == {
        f"nd:device:fw-{owner}": sums for owner, sums in truth.items()
    }


def test_a_tally_counts_few_and_many_alike() -> None:
    """The two ways of counting meet at 16 senders."""
    for senders in (1, 2, 16, 17, 300):
        events = event_batch(range(1000))
        origins = array("I", [place * 7 % senders for place in range(1000)])
        tally = Tally()
        counted = replace(events, origins=origins, origin_blobs=[b"%d" % number for number in range(senders)])
        tally.add_events(counted, dead=[3, 999])
        expected: dict[bytes, int] = {}
        for origin in origins:
            expected[b"%d" % origin] = expected.get(b"%d" % origin, 0) + 1
        assert tally.settled == expected
        assert sum(tally.dead_lettered.values()) == 2
        assert tally.dead_lettered[b"%d" % origins[999]] >= 1
