"""Waiting for whichever comes first, or in a queue, and leaving nothing behind."""

import asyncio
from collections.abc import Awaitable
from typing import Self


async def first(*waits: Awaitable[object]) -> None:
    """Return when one of the waits ends, raising what it raised; the others are cancelled and have ended too."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def to_its_end(work: Awaitable[None]) -> None:
    """Await it; a cancel waits for its end, for two threads must not write the same file."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def heed_cancel() -> None:
    """Raise CancelledError where a cancel of this task was swallowed: call it behind libraries that use wait_for.

    asyncio.wait_for of Python 3.11 returns the result, and forgets the cancel, when both come in one turn of the loop.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Place:
    """In a queue (a lock, whose waiters get it in the order of asking): a context that may be left before its end."""

    def __init__(self, queue: asyncio.Lock) -> None:
        self._queue = queue
        self._is_in = False

    async def __aenter__(self) -> Self:
        await self._queue.acquire()
        self._is_in = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Let the next one go on."""
        if self._is_in:
            self._is_in = False
            self._queue.release()
