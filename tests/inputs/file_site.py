"""A file input at work on real files: what it delivered, restarts that remember, and waiting for conditions."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson

from ndagent.core.metrics import Metrics
from ndagent.inputs import HostFacts, InputContext
from ndagent.inputs.file import Config, FileInput, build
from ndagent.wire.record import Batch, Checkpoint

HOST = HostFacts("web-1", "web-1.example")
QUICK = {"poll_interval": 0.05, "scan_interval": 0.3}
"""Tests wait for conditions, and some of those for a look."""


class Memory:
    """Positions and accept in memory: durable is what was accepted. `gate` makes it wait as a full spool does."""

    def __init__(self) -> None:
        self.table: dict[bytes, bytes] = {}
        self.batches: list[Batch] = []
        self.events: list[dict] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_the_gate = 0
        self.fail: Exception | None = None

    def last(self, input_name: str) -> bytes | None:
        return None

    def parts(self, input_name: str) -> Mapping[bytes, bytes]:
        return dict(self.table)

    async def note(self, checkpoint: Checkpoint, *, stream: str) -> None:
        self._apply(checkpoint)

    def _apply(self, checkpoint: Checkpoint) -> None:
        self.table.update(checkpoint.position)
        self.table = {key: part for key, part in self.table.items() if part}

    async def accept(self, batch: Batch) -> None:
        self.at_the_gate += 1
        try:
            await self.gate.wait()
        finally:
            self.at_the_gate -= 1
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        payload = b"".join(batch.payload)
        (section,) = batch.sections
        lines = payload.split(b"\n")
        assert lines.pop() == b""
        assert (section.length, section.count) == (len(payload), len(lines))
        self.batches.append(batch)
        self.events += map(orjson.loads, lines)
        self._apply(batch.checkpoint)

    @property
    def messages(self) -> list[str]:
        """Texts of ordinary events, in order of arrival."""
        return [event["message"] for event in self.events if event["event"]["kind"] == "event"]

    @property
    def troubles(self) -> list[dict]:
        """Events that say what was lost."""
        return [event for event in self.events if event["event"]["kind"] == "pipeline_error"]


class Running:
    """An input that runs."""

    def __init__(self, memory: Memory, plug: FileInput, metrics: Metrics) -> None:
        self.memory, self.plug, self.metrics = memory, plug, metrics

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        """Wait for it; fails with what was delivered."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"never: {self.memory.messages[-5:]} {self.memory.troubles}"
            await asyncio.sleep(0.01)

    async def until_messages(self, *expected: str) -> None:
        """Wait until exactly these have come, in any order of files."""
        await self.until(lambda: len(self.memory.messages) >= len(expected))
        assert sorted(self.memory.messages) == sorted(expected)

    async def until_message(self, text: str, seconds: float = 60.0) -> None:
        """Wait for one among very many: each event is looked at once."""
        looked_at = 0

        def has_come() -> bool:
            nonlocal looked_at
            new = self.memory.events[looked_at:]
            looked_at += len(new)
            return any(event["message"] == text for event in new)

        await self.until(has_come, seconds)

    @property
    def table(self):
        """What it knows of files."""
        return self.plug._table

    def value(self, name: str, **labels: str) -> float:
        """A metric of the input."""
        return self.metrics.registry.get_sample_value(name, {"input": "file", **labels}) or 0.0

    async def until_quiet(self) -> None:
        """Wait until nothing is left to read."""
        await self.until(lambda: not any(tail.has_news for tail in self.table.tails.values()))


def make(
    memory: Memory, *paths: object, clock: Callable[[], float] = time.time, guard=None, **settings: object
) -> tuple:
    config = Config(paths=tuple(Path(str(path)) for path in paths), **{**QUICK, **settings})
    metrics = Metrics()
    context = InputContext(Path("/nonexistent"), metrics, clock, memory, HOST, guard)
    return build("file", config, context), metrics


@asynccontextmanager
async def running(memory: Memory, *paths: object, **settings: object):
    """The input over these paths until the block ends; what it raised fails the test."""
    plug, metrics = make(memory, *paths, **settings)
    task = asyncio.create_task(plug.run(memory.accept))
    site = Running(memory, plug, metrics)
    looked = site.until(lambda: task.done() or (hasattr(plug, "_table") and plug._table.directories))
    try:
        await looked
        yield site
    finally:
        if not task.done():
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def append(path: Path, *lines: str) -> None:
    with path.open("ab") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
