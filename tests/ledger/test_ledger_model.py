"""The ledger per origin against the plain truth: appends, sends, dead letters, evictions, replays, kills, lost files.

The model knows of every event who sent it and what became of it at each output. Whatever happens, every sum is what
the cursors say, and, as long as no disk lost anything, every sender's figures are exact.
"""

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Cursor, Spool, SpoolConfig
from ndagent.core.spool.position import Position
from ndagent.core.tally import Tally
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section, unpack_body
from ndcollector.ledger.books import frontier
from ndcollector.ledger.config import LedgerConfig
from ndcollector.ledger.ledger import Ledger
from ndcollector.ledger.look import look
from ndcollector.ledger.store import LedgerError

OUTPUTS = ("siem", "archive")
DEVICES = [Origin("syslog_tls", "192.0.2.1", port, names=(f"URI:nd:device:fw-{port % 4}",)) for port in range(9)]
STREAM = "security_events"
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
FATES = ("delivered", "filtered", "dead_lettered")


def batch(parts: list[tuple[int, int]]) -> Batch:
    """A batch with a section per (device, events)."""
    payload = [b"<13>" + b"x" * 1495 + b"\n" for _, count in parts for _ in range(count)]
    sections = [Section(DEVICES[one], Framing.LF, Flags.NONE, 1500 * count, count) for one, count in parts]
    return Batch(STREAM, "syslog", 1_700_000_000_000_000_000, sections, payload)


class Sent:
    """What an output has settled and nobody has confirmed: as a feed keeps it."""

    def __init__(self) -> None:
        self.end = 0
        self.tally = Tally()
        self.fates: dict[int, str] = {}

    def count(self, fate: str, first: int) -> int:
        return sum(one == fate for sequence, one in self.fates.items() if sequence >= first)


class LedgerMachine(RuleBasedStateMachine):
    """Drives a spool, two cursors and a ledger through their life, in the order that dispatcher.py keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.root = Path(tempfile.mkdtemp(prefix="ledger-model-", dir=_MEMORY))
        self.state = self.root / "0"
        self.lives = 0
        self.senders: list[str] = []
        self.fates: dict[str, dict[int, str]] = {name: {} for name in OUTPUTS}
        self.fuzzy = dict.fromkeys(OUTPUTS, False)  # settled and given up at once: fates cannot be told apart
        self.is_lost = False  # sums were lost with a file: names of the past are
        self.is_broken = False

    def teardown(self) -> None:
        self.do(self.close())
        self.do(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.root)

    def do(self, coroutine):  # type: ignore[no-untyped-def]
        return self.loop.run_until_complete(coroutine)

    @initialize()
    def first_open(self) -> None:
        self.do(self.open())

    async def open(self) -> None:
        config = SpoolConfig(segment_bytes=8192, max_bytes=1 << 16, tip_bytes=0)
        self.ledger = Ledger(self.state, config=LedgerConfig(), metrics=Metrics(), clock=lambda: 1.0)
        self.is_broken = False
        self.spool = await Spool.open(
            self.state / "spool" / STREAM, stream=STREAM, config=config, metrics=Metrics(),
            mourn=lambda files, given_up: self.ledger.mourn(STREAM, files, given_up), held_from=0,
        )  # fmt: skip
        await self.ledger.open({STREAM: self.spool})
        self.cursors = {name: self.spool.cursor(name, on_full="drop_oldest") for name in OUTPUTS}
        self.sent = {name: Sent() for name in OUTPUTS}
        for name, cursor in self.cursors.items():
            cursor.rewind()
            first = frontier(cursor.position)
            self.fates[name] = {sequence: fate for sequence, fate in self.fates[name].items() if sequence < first}

    async def close(self) -> None:
        await self.spool.aclose()
        await self.ledger.aclose()

    # ---- what happens

    @rule(parts=st.lists(st.tuples(st.integers(0, len(DEVICES) - 1), st.integers(1, 12)), min_size=1, max_size=4))
    def append(self, parts: list[tuple[int, int]]) -> None:
        before = {name: cursor.position for name, cursor in self.cursors.items()}
        self.do(self.spool.append(batch(parts)))
        self.senders += [DEVICES[one].identity for one, count in parts for _ in range(count)]
        for name, cursor in self.cursors.items():
            if cursor.position.evicted != before[name].evicted:
                first, end = frontier(before[name]), frontier(cursor.position)
                self.fates[name].update(dict.fromkeys(range(first, end), "evicted"))

    @rule(name=st.sampled_from(OUTPUTS), size=st.integers(1, 20_000), seed=st.integers(0, 1 << 30), mixed=st.booleans())
    def send(self, name: str, size: int, seed: int, mixed: bool) -> None:
        cursor, sent = self.cursors[name], self.sent[name]
        if cursor._next >= self.spool.readable and not cursor._position.read_until(cursor._next) < 1 << 63:
            return
        draw = random.Random(seed)
        try:
            records = self.do(asyncio.wait_for(cursor.read(size), 0.2))
        except TimeoutError:
            return
        for record in records:
            senders = [
                section.origin.packed for section in unpack_body(record.body).sections() for _ in range(section.count)
            ]
            is_replay = record.sequence < cursor.replay_until
            for sequence, blob in enumerate(senders, record.sequence):
                fate = draw.choices(FATES, (6, 2, 1) if mixed else (1, 0, 0))[0]
                if sequence >= cursor.sequence:
                    self.note(sent, blob, sequence, fate, is_replay=is_replay)
            sent.end = record.end

    def note(self, sent: Sent, blob: bytes, sequence: int, fate: str, *, is_replay: bool) -> None:
        sent.fates[sequence] = fate
        if is_replay:
            return
        for counts in (sent.tally.settled, *([getattr(sent.tally, fate)] if fate != "delivered" else [])):
            counts[blob] = counts.get(blob, 0) + 1

    @rule(name=st.sampled_from(OUTPUTS))
    def confirm(self, name: str) -> None:
        """As Feed.confirm: the output is in sync, the cursor moves and the ledger hears of it."""
        cursor, sent, before = self.cursors[name], self.sent[name], self.cursors[name].position
        self.sent[name] = Sent()
        filtered, dead = sent.count("filtered", 0), sent.count("dead_lettered", 0)
        cursor.advance(sent.end, filtered=filtered, dead_lettered=dead)
        self.do(self.tell(cursor, before, sent.tally))
        self.fuzzy[name] |= any(sequence < before.sequence for sequence in sent.fates)
        for sequence, fate in sent.fates.items():
            if sequence >= frontier(before):
                self.fates[name][sequence] = fate

    async def tell(self, cursor: Cursor, before: Position, tally: Tally) -> None:
        self.ledger.settled(STREAM, cursor, before, tally)

    @rule()
    def commit(self) -> None:
        self.do(self.ledger.commit())

    @rule(name=st.sampled_from(OUTPUTS))
    def save(self, name: str) -> None:
        """As Lane: the ledger first."""
        self.do(self.ledger.commit())
        self.do(self.cursors[name].save())

    @rule(name=st.sampled_from(OUTPUTS), back=st.integers(1, 60), length=st.none() | st.integers(1, 30))
    def replay(self, name: str, back: int, length: int | None) -> None:
        """An operator's: what was sent is confirmed and saved first, as Lane does."""
        self.confirm(name)
        self.save(name)
        first = max(self.cursors[name].sequence - back, 0)
        self.cursors[name].replay(first, None if length is None else first + length)
        self.do(self.cursors[name].save())

    @rule(name=st.sampled_from(OUTPUTS))
    def restart_output(self, name: str) -> None:
        """A failed sync: what was settled since is sent again."""
        self.sent[name] = Sent()
        self.cursors[name].rewind()

    # ---- ends and beginnings

    @rule()
    def stop_and_start(self) -> None:
        for name in OUTPUTS:
            self.save(name)
        self.is_lost |= self.is_broken
        self.do(self.close())
        self.do(self.open())

    @rule(name=st.sampled_from(OUTPUTS), stages=st.integers(0, 4), seed=st.integers(0, 1 << 30))
    def kill(self, name: str, stages: int, seed: int) -> None:
        """What is on disk at this moment is all that is left; the moment is one on the way out, or any."""
        way = (lambda: self.send(name, 9000, seed, True), lambda: self.confirm(name), self.commit)
        for step in way[:stages]:
            step()
        self.is_lost |= self.is_broken
        self.lives += 1
        state = self.root / str(self.lives)
        shutil.copytree(self.state, state)
        self.do(self.close())
        self.state = state
        seen = look(state, max_origins=99, clock=lambda: 1.0).plain(origin=None, output=None, stream=None)
        assert seen["adds_up"], seen["problems"]
        self.do(self.open())

    # ---- the truth

    @invariant()
    def sums_are_true(self) -> None:
        if not hasattr(self, "ledger"):
            return
        found = self.do(self.report())
        assert found["adds_up"], found["problems"]
        rows = {row["origin"]: row for row in found["origins"]}
        received = Counter(self.senders)
        for sender in set(received):
            outputs = {line["output"]: line for line in rows.get(sender, {"outputs": []})["outputs"]}
            if not self.is_lost:
                assert rows[sender]["received"] == received[sender]
            for name in OUTPUTS:
                self.compare(sender, name, outputs.get(name, Counter()))

    async def report(self):  # type: ignore[no-untyped-def]
        """A look once everything is counted; a look may find that there is something to count."""
        await self.ledger.report(origin=None, output=None, stream=None)
        if self.ledger._counting is not None:
            await asyncio.wait({self.ledger._counting})
        return await self.ledger.report(origin=None, output=None, stream=None)

    def compare(self, sender: str, name: str, line: dict[str, int]) -> None:
        first = frontier(self.cursors[name].position)
        assert line["pending"] == self.senders[first:].count(sender)
        if self.is_lost or self.fuzzy[name]:
            return
        truth = Counter(fate for sequence, fate in self.fates[name].items() if self.senders[sequence] == sender)
        for fate in (*FATES, "evicted"):
            assert line[fate] == truth[fate], (sender, name, fate)


class LosingMachine(LedgerMachine):
    """And the ledger's own file is lost, or cannot be written."""

    @rule(what=st.sampled_from(["removed", "damaged"]))
    def lose_the_ledger(self, what: str) -> None:
        self.do(self.close())
        if what == "removed":
            for path in self.state.glob("ledger.db*"):
                path.unlink()
        else:
            (self.state / "ledger.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
        self.is_lost = True
        self.do(self.open())

    @rule()
    def disk_refuses_the_ledger(self) -> None:
        """Until the next start: deliveries go on."""

        def refuse(_changes: object) -> None:
            raise LedgerError("disk full")

        if self.ledger._file.store is not None:
            self.ledger._file.store.write = refuse  # type: ignore[method-assign]
        self.is_broken = True

    @rule()
    def disk_takes_the_ledger_again(self) -> None:
        if self.ledger._file.store is not None:
            vars(self.ledger._file.store).pop("write", None)
            self.do(self.ledger.commit())
        self.is_broken = False


def case(machine: type[LedgerMachine], examples: int, steps: int) -> type:
    """A test case of a machine."""
    found: type = type("Case", (machine,), {}).TestCase
    found.settings = settings(  # type: ignore[attr-defined]
        phases=(Phase.reuse, Phase.generate),
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return found


TestTheLedger = case(LedgerMachine, 20, 30)
TestTheLedgerOnABadDisk = case(LosingMachine, 15, 20)
TestTheLedgerForLong = pytest.mark.long(case(LedgerMachine, 400, 60))
TestTheLedgerOnABadDiskForLong = pytest.mark.long(case(LosingMachine, 400, 60))
