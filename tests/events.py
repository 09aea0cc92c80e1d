"""EventBatches for tests, with ids that can be counted on the other side, and time that only tests move."""

import asyncio
import heapq
import itertools
from array import array
from collections.abc import Sequence

import orjson

from ndagent.wire.record import NO_PRIORITY, EventBatch


def event_batch(sequences: Sequence[int], *, stream: str = "security_events") -> EventBatch:
    """One event per sequence: {"event": {"id": "s-<sequence>", "sequence": …}}."""
    lines = [orjson.dumps({"event": {"id": f"s-{n}", "sequence": n}}) + b"\n" for n in sequences]
    zeros = array("I", [0]) * len(lines)
    return EventBatch(
        stream=stream,
        spool_id="s",
        sequences=sequences,
        received_at_ns=1,
        ndjson=b"".join(lines),
        lengths=array("I", map(len, lines)),
        priorities=bytes([NO_PRIORITY]) * len(lines),
        host_offsets=zeros,
        host_lengths=array("H", [0]) * len(lines),
        keys=zeros,
        origins=zeros,
        origin_blobs=(b"origin",),
    )


def sequences_in(ndjson: bytes) -> list[int]:
    """The `event.sequence` of each line."""
    return [orjson.loads(line)["event"]["sequence"] for line in ndjson.splitlines()]


class StillTime:
    """A clock that stands until `advance`, and a `sleep` that ends when it has passed that far."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        wake = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), wake))
        await wake

    @property
    def sleepers(self) -> int:
        """How many are asleep."""
        return sum(not wake.done() for _, _, wake in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let time pass, waking each sleeper at its own moment."""
        end = self.now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self.now, _, wake = heapq.heappop(self._sleepers)
            if not wake.done():
                wake.set_result(None)
            await settle()
        self.now = end


class SwiftTime(StillTime):
    """A clock that every sleep moves on at once: for a single sleeper whose waits are to be read, not lived."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


async def settle() -> None:
    """Give every task that can run the turns it needs (no threads are waited for)."""
    for _ in range(20):
        await asyncio.sleep(0)
