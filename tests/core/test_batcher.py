"""The batcher keeps order, shares batches while an accept runs, pauses in time, and never loses silently."""

import asyncio
from collections.abc import Callable

import pytest

from ndagent.core.batcher import CHUNK_OVERHEAD_BYTES, Batcher
from ndagent.core.metrics import Metrics
from ndagent.wire.framing import Chunk
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section

ALICE, BOB = Origin("syslog_tls", "192.0.2.1", 1), Origin("syslog_tls", "192.0.2.2", 2)


def lines(text: str) -> Chunk:
    """A chunk of LF-framed messages."""
    return Chunk(Framing.LF, Flags.NONE, text.count("\n"), text.encode())


class Gate:
    """An Accept that waits until it is opened, and remembers what came in which order."""

    def __init__(self) -> None:
        self.started: list[Batch] = []
        self.done: list[Batch] = []
        self.open = asyncio.Event()

    async def __call__(self, batch: Batch) -> None:
        self.started.append(batch)
        await self.open.wait()
        self.done.append(batch)


class Stage:
    """A batcher under test with its surroundings."""

    def __init__(self, *, clock: Callable[[], float] = lambda: 1.0, **limits: int) -> None:
        self.metrics = Metrics()
        self.accept = Gate()
        self.pauses: list[bool] = []
        self.batcher = Batcher(
            self.accept, name="in", paused=self.pauses.append, metrics=self.metrics, clock=clock, **limits
        )
        self.task = asyncio.create_task(self.batcher.run())

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"input": "in", **labels})

    async def settled(self) -> None:
        """Let the batcher do all it can without more input."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def finish(self) -> None:
        self.accept.open.set()
        self.batcher.finish()
        await self.task


async def test_what_comes_while_an_accept_runs_shares_a_batch() -> None:
    """Group commit lives from this: few large batches under load, a small one at once when idle."""
    stage = Stage()
    stage.batcher.add(ALICE, lines("1\n"))
    await stage.settled()
    stage.batcher.add(ALICE, lines("2\n"))
    await stage.settled()
    for text in ("3\n", "4\n", "5\n"):
        stage.batcher.add(BOB, lines(text))
        await stage.settled()
    assert [batch.payload for batch in stage.accept.started] == [[b"1\n"], [b"2\n"]]
    await stage.finish()
    assert [b"".join(batch.payload) for batch in stage.accept.started] == [b"1\n", b"2\n", b"3\n4\n5\n"]
    assert stage.value("nd_input_received_events_total") == 5
    assert stage.batcher.buffered_bytes == 0


async def test_adjacent_chunks_of_one_peer_become_one_section() -> None:
    """A record's table stays small; WHOLE messages stand alone, other peers and flags begin anew."""
    stage = Stage()
    odd = Chunk(Framing.WHOLE, Flags.TRUNCATED, 1, b"cut")
    for chunk in (lines("a\n"), lines("bc\n"), odd, odd):
        stage.batcher.add(ALICE, chunk)
    stage.batcher.add(BOB, lines("d\n"))
    await stage.finish()
    (batch,) = stage.accept.done
    assert batch.sections == [
        Section(ALICE, Framing.LF, Flags.NONE, 5, 2),
        Section(ALICE, Framing.WHOLE, Flags.TRUNCATED, 3, 1),
        Section(ALICE, Framing.WHOLE, Flags.TRUNCATED, 3, 1),
        Section(BOB, Framing.LF, Flags.NONE, 2, 1),
    ]
    assert b"".join(batch.payload) == b"a\nbc\ncutcutd\n"
    assert stage.value("nd_input_truncated_events_total") == 2


async def test_order_is_the_order_of_add() -> None:
    """Hundreds of small batches, two accepts at a time: still in order."""
    stage = Stage(max_batch_bytes=8)
    stage.accept.open.set()
    for number in range(500):
        stage.batcher.add(ALICE, lines(f"{number}\n"))
        if number % 7 == 0:
            await asyncio.sleep(0)
    await stage.finish()
    together = b"".join(piece for batch in stage.accept.done for piece in batch.payload)
    assert together.split() == [b"%d" % number for number in range(500)]


async def test_a_full_batch_is_closed() -> None:
    """Limit: max_batch_bytes, overrun by at most one chunk."""
    stage = Stage(max_batch_bytes=10)
    for _ in range(6):
        stage.batcher.add(ALICE, lines("1234\n"))
    await stage.finish()
    assert [batch.length for batch in stage.accept.done] == [10, 10, 10]


async def test_reading_pauses_above_the_limit_and_goes_on_below_half() -> None:
    """Limit: buffer_bytes, counted with what a chunk costs besides its payload."""
    one = 100 + CHUNK_OVERHEAD_BYTES
    stage = Stage(max_batch_bytes=100, buffer_bytes=10 * one)
    chunk = lines("x" * 99 + "\n")
    for _ in range(10):
        stage.batcher.add(ALICE, chunk)
    assert stage.pauses == []
    stage.batcher.add(ALICE, chunk)
    assert stage.pauses == [True]
    assert stage.value("nd_input_paused") == 1
    await stage.finish()
    assert stage.pauses == [True, False]
    assert stage.value("nd_input_paused") == 0
    assert sum(batch.count for batch in stage.accept.done) == 11


async def test_a_batch_carries_the_time_of_its_first_chunk_and_is_not_gathered_for_longer_than_a_second() -> None:
    """Behind a blocked spool a late message must not get an early receive time."""
    now = [1000.0]
    stage = Stage(clock=lambda: now[0])
    stage.batcher.add(ALICE, lines("1\n"))
    now[0] += 0.5
    stage.batcher.add(ALICE, lines("2\n"))
    now[0] += 0.6
    stage.batcher.add(ALICE, lines("3\n"))
    await stage.finish()
    assert [(batch.received_at_ns, batch.count) for batch in stage.accept.done] == [
        (1_000_000_000_000, 2),
        (1_001_100_000_000, 1),
    ]


async def test_a_stop_that_runs_out_of_time_counts_what_it_drops(caplog: pytest.LogCaptureFixture) -> None:
    """Conservation: received = appended + dropped, also when the spool was blocked until the end."""
    stage = Stage(max_batch_bytes=2)
    for text in ("1\n", "2\n", "3\n4\n"):
        stage.batcher.add(ALICE, lines(text))
    await stage.settled()
    stage.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stage.task
    assert stage.value("nd_input_received_events_total") == 4
    assert stage.value("nd_input_dropped_events_total", reason="stopped") == 4
    assert "4 events" in caplog.text


async def test_an_accept_that_fails_ends_the_run_with_its_error() -> None:
    """A broken spool is the machine's business; hiding it here would lose events."""
    stage = Stage()

    async def broken(batch: Batch) -> None:
        raise OSError("no")

    stage.batcher._accept = broken
    stage.batcher.add(ALICE, lines("1\n"))
    with pytest.raises(ExceptionGroup) as raised:
        await stage.task
    assert raised.group_contains(OSError, match="no")
    assert stage.value("nd_input_dropped_events_total", reason="stopped") == 1


async def test_what_comes_after_a_run_that_failed_is_counted_too() -> None:
    """The input takes what its peers had sent before it hears of it: that is lost, and not in silence."""
    stage = Stage()

    async def broken(batch: Batch) -> None:
        raise OSError("no")

    stage.batcher._accept = broken
    stage.batcher.add(ALICE, lines("1\n"))
    await asyncio.wait({stage.task})
    stage.batcher.add(ALICE, lines("2\n3\n"))
    stage.batcher.finish()
    with pytest.raises(ExceptionGroup):
        await stage.task
    assert stage.value("nd_input_received_events_total") == 3
    assert stage.value("nd_input_dropped_events_total", reason="stopped") == 3
