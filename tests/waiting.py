"""Waiting for something to become true on the running loop, with a limit that no healthy run comes near."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], what: str = "the condition", *, seconds: float = 20.0) -> None:
    """Return once the condition holds; AssertionError that names it where it does not in time."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true in {seconds:g} s") from None
