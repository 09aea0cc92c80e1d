"""The two events about a source on a real spool and a real file: each once, wherever a crash cuts."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from source_world import MONDAY, batch_of, device

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig
from ndagent.core.spool.offline import records
from ndagent.core.spool.scan import NO_LIMIT
from ndagent.wire.record import Batch, unpack_body
from ndcollector.ledger.config import LedgerConfig
from ndcollector.ledger.ledger import Ledger
from ndcollector.ledger.store import FILE
from ndcollector.sources.config import SourcesConfig
from ndcollector.sources.sources import Sources

STREAMS = ("alerts", "security_events")


class Machine:
    """Spools, ledger and sources of one process; time is the test's."""

    def __init__(self, state: Path, spools: dict[str, Spool], ledger: Ledger, sources: Sources, time: "Time") -> None:
        self.state, self.spools, self.ledger, self.sources, self.time = state, spools, ledger, sources, time

    async def heard(self) -> None:
        """The device speaks."""
        await self.spools["security_events"].append(batch_of({device("fw"): [b"<34>hello"]}, at=self.time.now))
        await self.ledger.commit()
        await self.sources.tick()

    async def rhythm(self) -> None:
        """Every minute for a quarter of an hour."""
        for _ in range(15):
            await self.heard()
            self.time.now += 60

    async def silence(self, seconds: float) -> None:
        """Nobody speaks; what is to be said waits."""
        for _ in range(int(seconds // 10)):
            self.time.now += 10
            await self.sources.tick()

    async def say(self) -> None:
        """Until all that waits is durable."""
        saying = asyncio.create_task(self.sources._alerts.run(self.accept))
        while self.sources._alerts._waiting:
            await asyncio.sleep(0.001)
        saying.cancel()
        with suppress(asyncio.CancelledError):
            await saying

    async def accept(self, batch: Batch) -> None:
        await self.spools[batch.stream].append(batch)

    def said(self) -> list[str]:
        """What stands in the spool of alerts."""
        found: list[Any] = list(records(self.state / "spool" / "alerts", 0, NO_LIMIT))
        lines = [line for record in found for line in bytes(unpack_body(record.body).payload).splitlines()]
        return [orjson.loads(line)["event"]["action"].removeprefix("source-") for line in lines]

    def crashed(self, name: str) -> Path:
        """The state directory as a kill would leave it now."""
        return Path(shutil.copytree(self.state, self.state.parent / name))


class Time:
    def __init__(self) -> None:
        self.now = MONDAY


@asynccontextmanager
async def running(state: Path, time: Time) -> AsyncIterator[Machine]:
    state.mkdir(exist_ok=True)
    metrics, config = Metrics(), SourcesConfig.model_validate({"learn": "0s"})
    sources = Sources(
        lambda: config, node_name="here", metrics=metrics, listening=lambda: {"syslog_tls"}, clock=lambda: time.now,
        monotonic=lambda: time.now,
    )  # fmt: skip
    ledger = Ledger(state, config=LedgerConfig(), metrics=metrics, clock=lambda: time.now, sources=sources)
    spools = {
        stream: await Spool.open(
            state / "spool" / stream, stream=stream, config=SpoolConfig(), metrics=metrics, held_from=0
        )
        for stream in STREAMS
    }
    await ledger.open(spools)
    await sources.tick()
    try:
        yield Machine(state, spools, ledger, sources, time)
    finally:
        for spool in spools.values():
            await spool.aclose()
        await ledger.aclose()


async def goes_on(state: Path, time: Time) -> list[str]:
    """The next process: a day of silence, then the device is back."""
    async with running(state, time) as it:
        await it.silence(86400)
        await it.say()
        await it.heard()
        await it.say()
        await it.ledger.commit()
        return it.said()


async def test_a_crash_between_the_record_and_the_file(tmp_path: Path) -> None:
    """The event is in the spool, the table does not know yet: the start reads it from the record."""
    time = Time()
    async with running(tmp_path / "state", time) as it:
        await it.rhythm()
        await it.ledger.commit()
        await it.silence(700)
        await it.say()
        assert it.said() == ["quiet"]
        crashed = it.crashed("crashed")
        await it.ledger.commit()
        later = it.crashed("later")
    assert await goes_on(crashed, time) == ["quiet", "back"]
    assert await goes_on(later, time) == ["quiet", "back"]


async def test_a_crash_before_the_record(tmp_path: Path) -> None:
    """The table must not say what was never said, though it was saved while the event was on its way."""
    time = Time()
    async with running(tmp_path / "state", time) as it:
        await it.rhythm()
        await it.silence(700)
        await it.ledger.commit()
        assert it.said() == []
        crashed = it.crashed("crashed")
    assert await goes_on(crashed, time) == ["quiet", "back"]


async def test_a_crash_between_back_and_the_file(tmp_path: Path) -> None:
    """The other event, and the state that goes with it."""
    time = Time()
    async with running(tmp_path / "state", time) as it:
        await it.rhythm()
        await it.silence(700)
        await it.say()
        await it.ledger.commit()
        await it.heard()
        await it.say()
        crashed = it.crashed("crashed")
    time.now += 60
    assert await goes_on(crashed, time) == ["quiet", "back", "quiet", "back"], "back once, then quiet anew"


async def test_a_stop_while_the_event_is_written_knows_it(tmp_path: Path) -> None:
    """A cancel waits for the record that is under way."""
    time = Time()
    async with running(tmp_path / "state", time) as it:
        await it.rhythm()
        await it.silence(700)
        written, go_on = asyncio.Event(), asyncio.Event()

        async def accept(batch: Batch) -> None:
            await it.accept(batch)
            written.set()
            await go_on.wait()

        saying = asyncio.create_task(it.sources._alerts.run(accept))
        await written.wait()
        saying.cancel()
        await asyncio.sleep(0)
        await it.ledger.commit()
        crashed = it.crashed("crashed")
        go_on.set()
        with suppress(asyncio.CancelledError):
            await saying
    assert await goes_on(crashed, time) == ["quiet", "back"]
    assert await goes_on(tmp_path / "state", time) == ["quiet", "back"]


async def test_a_device_that_speaks_while_its_alert_waits_for_room_is_back_at_once(tmp_path: Path) -> None:
    """Both are said, in order: what was decided is not taken back."""
    time = Time()
    async with running(tmp_path / "state", time) as it:
        await it.rhythm()
        await it.silence(700)
        await it.heard()
        await it.say()
        assert it.said() == ["quiet", "back"]
        assert it.sources.plain()[0]["state"] == "heard"


async def test_a_ledger_that_was_deleted_begins_anew_and_says_nothing(tmp_path: Path) -> None:
    """Without the table nobody is known: no alert, no error."""
    time = Time()
    async with running(tmp_path / "state", time) as it:
        await it.rhythm()
        await it.silence(700)
        await it.say()
    for path in (tmp_path / "state").glob(f"{FILE}*"):
        path.unlink()
    async with running(tmp_path / "state", time) as it:
        assert it.sources.plain() == []
        await it.rhythm()
        assert it.said() == ["quiet"]


async def test_a_row_that_is_none_costs_the_sources_not_the_ledger(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A person edited the file: sources are learned anew, the sums of the ledger stay, and the next start is well."""
    time = Time()
    async with running(tmp_path / "state", time) as it:
        await it.rhythm()
    with closing(sqlite3.connect(tmp_path / "state" / FILE)) as database, database:
        database.execute("UPDATE sources SET hours = x'00000000'")
    for starts in (1, 2):
        async with running(tmp_path / "state", time) as it:
            assert it.sources.plain() == []
            found = await it.ledger.report(origin="*fw", output=None, stream=None)
            assert [row["received"] for row in found["origins"]] == [15]
        assert sum("sources cannot be read" in record.message for record in caplog.records) == 1, starts


async def test_a_version_without_sources_goes_on_with_the_file_and_one_with_them_again(tmp_path: Path) -> None:
    """A downgrade and an upgrade: the table is not in the older one's way, and is there afterwards."""
    time = Time()
    async with running(tmp_path / "state", time) as it:
        await it.rhythm()
    ledger = Ledger(tmp_path / "state", config=LedgerConfig(), metrics=Metrics(), clock=lambda: time.now)
    await ledger.open({})
    await ledger.aclose()
    async with running(tmp_path / "state", time) as it:
        (row,) = it.sources.plain()
        assert row["usual_pause_seconds"] == pytest.approx(60)
        await it.silence(700)
        await it.say()
        assert it.said() == ["quiet"]
