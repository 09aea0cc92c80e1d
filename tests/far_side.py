"""The other end of an output, in this process, doing what a test tells it to."""

import asyncio
from collections.abc import Callable

from ndagent.wire.record import EventBatch
from tests.events import sequences_in


class FarSide:
    """An Output that keeps what it takes; `judge` is asked first and may raise, or return a future to wait for."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.replayed: list[int] = []
        self.sends = 0
        self.durable = 0  # events taken before the last sync that ended well
        self.judge: Callable[[list[int]], object] = lambda sequences: None
        self.judge_sync: Callable[[], object] = lambda: None

    @property
    def taken(self) -> list[int]:
        """Every event, in order of arrival."""
        return [sequence for batch in self.batches for sequence in batch]

    async def send(self, events: EventBatch) -> None:
        self.sends += 1
        sequences = sequences_in(events.ndjson)
        assert sequences == list(events.sequences)
        verdict = self.judge(sequences)
        if asyncio.isfuture(verdict):
            await verdict
        self.batches.append(sequences)
        if events.replay:
            self.replayed += sequences

    async def sync(self) -> None:
        taken = len(self.taken)
        verdict = self.judge_sync()
        if asyncio.isfuture(verdict):
            await verdict
        self.durable = taken

    async def aclose(self) -> None:
        pass


def failing(times: int, error: Callable[[], Exception]) -> Callable[..., None]:
    """A judge that raises so often, then takes everything."""
    left = [times]

    def judge(*_sequences: list[int]) -> None:
        if left[0]:
            left[0] -= 1
            raise error()

    return judge
