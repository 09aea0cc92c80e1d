"""The ledger in one process, on a real spool and a real file: limits, faults, and what the command makes of them."""

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig
from ndagent.core.spool.position import Position
from ndagent.core.tally import Tally
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section
from ndcollector.ledger import ledger as module
from ndcollector.ledger.books import Stream, ToCount, errors
from ndcollector.ledger.command import lines
from ndcollector.ledger.config import LedgerConfig
from ndcollector.ledger.counting import count_range
from ndcollector.ledger.ledger import Ledger
from ndcollector.ledger.look import look
from ndcollector.ledger.origins import LONGEST_NAME, OTHERS, PSEUDO, UNKNOWN, Origins, name_of
from ndcollector.ledger.store import FILE, LedgerError, Store

STREAM = "security_events"
Row = dict[str, int]


def device(name: str) -> Origin:
    return Origin("syslog_tls", "192.0.2.1", 40000, names=(f"URI:nd:device:{name}",))


def batch(**counts: int) -> Batch:
    """So many events of each device, a section each."""
    payload = [b"<13>hello\n" * count for count in counts.values()]
    sections = [Section(device(name), Framing.LF, Flags.NONE, 10 * count, count) for name, count in counts.items()]
    return Batch(STREAM, "syslog", 1_700_000_000_000_000_000, sections, payload)


class Machine:
    """A spool, one output's cursor and the ledger over them."""

    def __init__(self, state: Path, ledger: Ledger, spool: Spool) -> None:
        self.state, self.ledger, self.spool = state, ledger, spool
        self.cursor = spool.cursor("siem")

    async def deliver(self) -> None:
        """All that waits, in the order that dispatcher.py keeps."""
        before, tally = self.cursor.position, Tally()
        while self.cursor._next < self.spool.readable:
            for record in await self.cursor.read(1 << 20):
                sections = module.count_range(module.OsFiles(), self.spool.directory, record.sequence, record.end)
                tally.settled = {
                    blob: tally.settled.get(blob, 0) + sections.events.get(blob, 0)
                    for blob in {*tally.settled, *sections.events}
                }
        self.cursor.advance(self.spool.readable)
        self.ledger.settled(STREAM, self.cursor, before, tally)
        await self.ledger.commit()
        await self.cursor.save()

    async def counted(self) -> dict[str, Any]:
        """The report, once nothing stands under (unknown) that is still being counted."""
        async with asyncio.timeout(20):
            while True:
                found: dict[str, Any] = await self.ledger.report(origin=None, output=None, stream=None)
                if not found["uncounted"]:
                    return found
                await asyncio.sleep(0.005)

    async def rows(self) -> dict[str, Row]:
        """By origin: received, and what became of it at the output; everything must add up."""
        found = await self.ledger.report(origin=None, output=None, stream=None)
        assert found["adds_up"], found["problems"]
        return {row["origin"]: {"received": row["received"], **row["outputs"][0]} for row in found["origins"]}


@asynccontextmanager
async def running(state: Path, *, max_origins: int = 100, metrics: Metrics | None = None) -> AsyncIterator[Machine]:
    state.mkdir(exist_ok=True)
    metrics = metrics or Metrics()
    ledger = Ledger(state, config=LedgerConfig(max_origins=max_origins), metrics=metrics, clock=lambda: 1000.0)
    directory = state / "spool" / STREAM
    config = SpoolConfig(max_bytes=1 << 20, segment_bytes=8192)
    spool = await Spool.open(directory, stream=STREAM, config=config, metrics=metrics, held_from=0)
    await ledger.open({STREAM: spool})
    try:
        yield Machine(state, ledger, spool)
    finally:
        await spool.aclose()
        await ledger.aclose()


async def test_what_was_counted_is_there_after_a_restart(tmp_path: Path) -> None:
    """By sender and by fate, with the times of first and last."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3, fw2=5))
        await it.deliver()
        await it.spool.append(batch(fw1=2))
        before = await it.rows()
    async with running(tmp_path) as it:
        assert await it.rows() == before
    assert before["nd:device:fw1"] == {
        "received": 5, "output": "siem", "before": 0, "pending": 2, "delivered": 3, "filtered": 0, "dead_lettered": 0,
        "quarantined": 0, "evicted": 0,
    }  # fmt: skip
    assert before["nd:device:fw2"]["delivered"] == 5


async def test_beyond_max_origins_senders_are_counted_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit is exact, holds after a restart, and is said once; known ones go on by themselves."""
    async with running(tmp_path, max_origins=2) as it:
        await it.spool.append(batch(a=1, b=2, c=4, d=8))
        await it.deliver()
    async with running(tmp_path, max_origins=2) as it:
        await it.spool.append(batch(b=1, e=16))
        await it.deliver()
        rows = await it.rows()
    assert {name: row["delivered"] for name, row in rows.items()} == {
        "nd:device:a": 1, "nd:device:b": 3, PSEUDO[OTHERS]: 28,
    }  # fmt: skip
    assert sum("max_origins" in record.message for record in caplog.records) == 2  # once per process


def test_names_are_bounded_and_cannot_be_forged() -> None:
    """A subject may be of any length and say anything; two long ones that differ stay two."""
    long = [name_of("CN=" + "x" * 10_000 + end) for end in "ab"]
    assert [len(name) for name in long] == [LONGEST_NAME] * 2
    assert long[0] != long[1]
    assert name_of("x" * LONGEST_NAME) == "x" * LONGEST_NAME
    assert name_of("(unknown)") == '"(unknown)"'
    assert name_of("\ud800") == "?"
    assert Origins(5).number(b"no origin") == UNKNOWN


async def test_a_file_damaged_while_it_is_used_is_written_anew_from_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not a figure is lost, and the damaged one is kept for whoever wants to know."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3))
        await it.deliver()
        for path in tmp_path.glob(f"{FILE}*"):
            path.write_bytes(b"\xa5" * max(path.stat().st_size, 4096))
        await it.spool.append(batch(fw1=1, fw2=2))
        await it.deliver()
        before = await it.rows()
    async with running(tmp_path) as it:
        assert await it.rows() == before
    assert before["nd:device:fw1"]["delivered"] == 4
    assert list((tmp_path / "quarantine").glob("ledger-*.db"))
    assert "set aside" in caplog.text


async def test_a_file_damaged_between_two_runs_is_counted_anew_from_the_spool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the segments still hold has its sender again; what an output had settled before is nobody's."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3, fw2=1))
        await it.deliver()
        await it.spool.append(batch(fw1=2))
    (tmp_path / FILE).write_bytes(b"no database")
    async with running(tmp_path) as it:
        rows = await it.rows()
        assert {name: (row["received"], row["pending"], row["delivered"]) for name, row in rows.items()} == {
            "nd:device:fw1": (5, 2, 0), "nd:device:fw2": (1, 0, 0), PSEUDO[UNKNOWN]: (0, 0, 4),
        }  # fmt: skip
        await it.deliver()
        assert (await it.rows())["nd:device:fw1"]["delivered"] == 2
    assert "made anew" in caplog.text


async def test_a_disk_that_refuses_costs_nothing_while_the_process_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, shown by a gauge; deliveries go on; when the disk is back, the file has everything."""
    metrics = Metrics()

    def saved() -> float | None:
        return metrics.registry.get_sample_value("nd_ledger_saved")

    async with running(tmp_path, metrics=metrics) as it:
        await it.spool.append(batch(fw1=3))
        await it.deliver()
        assert saved() == 1
        it.ledger._file.store._database.execute("PRAGMA max_page_count = 1")  # SQLITE_FULL from here on
        for _ in range(50):
            await it.spool.append(batch(**{f"{number:0200}": 1 for number in range(60)}))
        await it.deliver()
        await it.deliver()
        assert saved() == 0
        assert not it.cursor.unsaved
        report = await it.ledger.report(origin="(*", output=None, stream=None)
        assert report["unsaved_since"] == 1000.0
        it.ledger._file.store._database.execute("PRAGMA max_page_count = 1000000")
        await it.deliver()
        assert saved() == 1
        before = await it.rows()
    async with running(tmp_path) as it:
        assert await it.rows() == before
    assert sum("not saved" in record.message for record in caplog.records) == 1


async def test_a_cursor_waits_for_the_ledger_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that never answers holds up no delivery."""
    monkeypatch.setattr(module, "COMMIT_SECONDS", 0.05)
    answered = threading.Event()
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3))
        write = it.ledger._file.store.write

        def stuck(changes: object) -> None:
            answered.wait(30)
            write(changes)  # type: ignore[arg-type]

        it.ledger._file.store.write = stuck  # type: ignore[method-assign]
        await asyncio.wait_for(it.deliver(), 10)
        assert not it.cursor.unsaved
        answered.set()
        await it.ledger.commit()
        assert (await it.rows())["nd:device:fw1"]["delivered"] == 3


async def test_a_newer_versions_file_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The collector runs without it; going back to the newer version finds it as it was."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3))
        await it.deliver()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    content = (tmp_path / FILE).read_bytes()
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=1))
        await it.deliver()
        assert (await it.rows())["nd:device:fw1"]["received"] == 4
    assert (tmp_path / FILE).read_bytes() == content
    assert "version 99" in caplog.text


async def test_an_output_that_is_gone_keeps_its_page_closed(tmp_path: Path) -> None:
    """One of the same name that begins again later is another account."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3))
        await it.deliver()
        it.spool.retire_unused([])
        await it.spool.append(batch(fw1=1))
        it.cursor = it.spool.cursor("siem", start="latest")
        await it.ledger.commit()
        found = await it.ledger.report(origin=None, output=None, stream=None)
    assert [(one["output"], one["delivered"]) for one in found["closed"]] == [("siem", 3)]
    assert found["adds_up"], found["problems"]
    (row,) = (row for row in found["origins"] if row["origin"] == "nd:device:fw1")
    assert (row["received"], row["outputs"][0]["delivered"], row["outputs"][0]["pending"]) == (4, 0, 0)


async def test_a_spool_made_anew_begins_a_new_page(tmp_path: Path) -> None:
    """Its sequences begin again, and would name other events."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3))
        await it.deliver()
    (tmp_path / "spool").rename(tmp_path / "spool.old")
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw2=2))
        await it.deliver()
        found = await it.counted()
    assert found["adds_up"], found["problems"]
    assert [(row["origin"], row["received"]) for row in found["origins"]] == [("nd:device:fw2", 2)]
    assert [(one["why"], one["delivered"]) for one in found["closed"]] == [("the spool was made anew", 3)]


async def test_a_power_cut_that_took_back_events_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They were received, and nothing will deliver them: (vanished), and nobody is owed them."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3))
        await it.deliver()
        await it.spool.append(batch(fw1=2, fw2=2))
        segment = max((tmp_path / "spool" / STREAM).glob("*.seg"))
        whole = segment.stat().st_size
        await it.spool.append(batch(fw1=7))
    with segment.open("r+b") as file:
        file.truncate(whole)
    async with running(tmp_path) as it:
        rows = await it.rows()
        assert (rows["nd:device:fw1"]["received"], rows["nd:device:fw1"]["pending"]) == (12, 2)
        assert rows["(vanished)"]["received"] == -7
    assert "ends 7 events before the ledger" in caplog.text


async def test_damage_in_the_spool_is_nobodys_and_nobody_is_owed_it(tmp_path: Path) -> None:
    """Quarantined stands under (unreadable); the senders' pending figures stay exact all the same."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3))
        await it.spool.append(batch(fw2=300))
        await it.spool.append(batch(fw1=4))
        segment = next((tmp_path / "spool" / STREAM).glob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    async with running(tmp_path) as it:
        while it.cursor.sequence < it.spool.next_sequence:
            await it.deliver()
        await it.ledger._recount()
        rows = await it.rows()
    assert rows["(unreadable)"]["quarantined"] == 300
    assert (rows["nd:device:fw1"]["delivered"], rows["nd:device:fw2"]["delivered"]) == (7, 0)
    assert [rows[name]["pending"] for name in rows] == [0] * len(rows)


async def test_a_sum_that_is_wrong_is_found(tmp_path: Path) -> None:
    """The proof is worth nothing if it cannot fail."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3))
        await it.deliver()
    database = sqlite3.connect(tmp_path / FILE)
    with database:
        database.execute("UPDATE fates SET delivered = delivered + 1 WHERE delivered")
    database.close()
    found = look(tmp_path, max_origins=9, clock=lambda: 0.0).plain(origin=None, output=None, stream=None)
    assert not found["adds_up"]
    assert any("delivered: 4 over all origins, 3 by the cursor" in problem for problem in found["problems"])
    assert any("more settled than received" in problem for problem in found["problems"])


async def test_the_table_puts_losses_first_and_obeys_no_name(tmp_path: Path) -> None:
    """A certificate may hold an escape sequence; the quietest of the healthy ones come before the busy."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(quiet=1))
        await it.spool.append(batch(**{"bad\x1b[2J": 1}))
        await it.deliver()
        await it.spool.append(batch(slow=2))
        found = await it.ledger.report(origin=None, output=None, stream=None)
    shown = [line for line in lines(found) if "nd:device" in line]
    assert shown[0].split()[0] == "nd:device:slow"
    assert "\x1b" not in "".join(shown)
    assert len({line.index("security_events") for line in shown}) == 1  # escaped before it was measured


async def test_rows_are_chosen_by_pattern_output_and_stream(tmp_path: Path) -> None:
    """The proof stays over everything."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=1, fw2=1, sw1=1))
        await it.ledger.commit()

        async def names(**wanted: str | None) -> list[str]:
            all_of = {"origin": None, "output": None, "stream": None}
            found = await it.ledger.report(**{**all_of, **wanted})
            return [row["origin"] for row in found["origins"]]

        assert await names(origin="nd:device:fw*") == ["nd:device:fw1", "nd:device:fw2"]
        assert await names(stream="alerts") == []
        assert len(await names(output="siem")) == 3


async def test_counting_survives_any_byte(tmp_path: Path) -> None:
    """Heads are read without their body's CRC: whatever stands there, a wrong count is never invented."""
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3, fw2=4))
        directory, origins = it.spool.directory, Origins(9)
        segment = next(directory.glob("*.seg"))
        whole = segment.read_bytes()
        for place in range(len(whole)):
            segment.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            found = origins.numbered(count_range(module.OsFiles(), directory, 0, 7).events)
            assert sum(found.values()) in (0, 7)
        segment.write_bytes(whole)


def test_a_store_is_refused_where_there_is_none(tmp_path: Path) -> None:
    """`look` without a file counts all from the spools, and finds none here."""
    assert look(tmp_path, max_origins=1, clock=lambda: 0.0).plain(origin=None, output=None, stream=None)["adds_up"]
    with pytest.raises(Exception, match="unable to open"):
        Store(tmp_path / "nothing", read_only=True)


async def test_the_query_in_the_documentation_is_right(tmp_path: Path) -> None:
    """Whoever reads the file by hand finds the command's figures."""
    text = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text(encoding="utf-8")
    query = text.partition("```sql\n")[2].partition("```")[0].replace("'archive'", "'siem'")
    async with running(tmp_path) as it:
        await it.spool.append(batch(fw1=3, fw2=5))
        await it.deliver()
        await it.spool.append(batch(fw1=2))
        await it.ledger.commit()
        rows = await it.rows()
    database = sqlite3.connect(tmp_path / FILE)
    found = {name: (received, delivered, pending) for name, received, delivered, _, pending in database.execute(query)}
    database.close()
    assert {name: found[name] for name in rows} == {
        name: (row["received"], row["delivered"], row["pending"]) for name, row in rows.items()
    }


async def test_a_crash_between_ledger_and_cursor_repeats_nothing(tmp_path: Path) -> None:
    """The output's side was durable: the cursor goes on where its account is, and so it stays after a second crash."""
    alive, dead = tmp_path / "alive", tmp_path / "dead"
    async with running(alive) as it:
        await it.spool.append(batch(fw1=3))
        await it.deliver()
        await it.spool.append(batch(fw1=4, fw2=1))
        it.cursor.save = it.ledger.commit  # type: ignore[method-assign]  # what the crash comes before
        await it.deliver()
        shutil.copytree(alive, dead)
        before = await it.rows()
    async with running(dead) as it:
        assert it.cursor.sequence == 8
        assert await it.rows() == before
        shutil.copytree(dead, tmp_path / "dead again")
    async with running(tmp_path / "dead again") as it:
        assert it.cursor.sequence == 8
        assert await it.rows() == before
    assert [before[f"nd:device:fw{number}"]["delivered"] for number in (1, 2)] == [7, 1]


async def test_what_an_unwritten_ledger_needs_is_kept_in_the_spool(tmp_path: Path) -> None:
    """The disk refuses the ledger for many segments that every cursor passes; then a crash: each event has its name."""
    alive, dead = tmp_path / "alive", tmp_path / "dead"
    async with running(alive) as it:
        await it.spool.append(batch(fw1=1))
        await it.deliver()

        def refuse(_changes: object) -> None:
            raise LedgerError("disk full")

        it.ledger._file.store.write = refuse  # type: ignore[method-assign]
        for _ in range(20):
            await it.spool.append(batch(fw1=150, fw2=150))
            await it.deliver()
        assert len(list(it.spool.directory.glob("*.seg"))) > 5
        shutil.copytree(alive, dead)
        vars(it.ledger._file.store).pop("write")
        await it.deliver()
        while len(list(it.spool.directory.glob("*.seg"))) > 1:  # what is written is no longer needed
            await asyncio.sleep(0.01)
        before = await it.rows()
    async with running(dead) as it:
        assert await it.rows() == before
    assert before["nd:device:fw1"]["delivered"] == 20 * 150 + 1


def test_a_name_that_comes_late_changes_no_account_that_began_meanwhile() -> None:
    """Received is (unknown) until it is counted; who began before owes it under the name, who began after does not."""
    page = Stream(1, STREAM, (), 0.0)
    before = page.begin(2, "before", Position(0, 0), now=0.0)
    page.reached(10)
    job = ToCount(3, STREAM, "received", 0, 10, accounts_below=3)
    after = page.begin(4, "after", Position(6, 0), now=0.0)
    owed = ToCount(5, STREAM, "owed", 6, 10, account=4)
    jobs = [(job, {7: 10}), (owed, {7: 4})]
    for order in (jobs, jobs[::-1]):
        trial = page.copy()
        for one, counts in order:
            trial.name(one, counts)
        one, other = trial.accounts["before"], trial.accounts["after"]
        assert (trial.received[7], trial.pending(one, 7), trial.pending(other, 7)) == (10, 10, 4)
        assert [trial.pending(account, UNKNOWN) for account in (one, other)] == [0, 0]
        assert errors(trial, one, before.position) == errors(trial, other, after.position) == []
