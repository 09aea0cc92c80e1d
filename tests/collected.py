"""What an input under test handed over: a spool that remembers, and waits or dawdles where a test says so."""

import asyncio
from typing import Any

from ndagent.wire.record import Batch

WAIT_SECONDS = 20


class Collected:
    """An Accept that remembers what came; `hold` makes it wait as a full spool does."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.free = asyncio.Event()
        self.free.set()
        self.changed = asyncio.Condition()
        self.delay_seconds = 0.0

    async def __call__(self, batch: Batch) -> None:
        await self.free.wait()
        await asyncio.sleep(self.delay_seconds)
        async with self.changed:
            self.batches.append(batch)
            self.changed.notify_all()

    @property
    def count(self) -> int:
        return sum(batch.count for batch in self.batches)

    async def until(self, count: int) -> None:
        """Wait until so many events came."""
        async with asyncio.timeout(WAIT_SECONDS), self.changed:
            await self.changed.wait_for(lambda: self.count >= count)

    def sections(self) -> list[tuple[Any, bytes]]:
        """Every section with its bytes, in order."""
        found = []
        for batch in self.batches:
            payload, at = b"".join(batch.payload), 0
            for section in batch.sections:
                found.append((section, payload[at : at + section.length]))
                at += section.length
        return found

    def payload(self, subject: str = "") -> bytes:
        """All bytes in order, or those of one sender."""
        return b"".join(data for section, data in self.sections() if subject in ("", section.origin.subject))
