"""A clean-up may be limited in time: asyncio.timeout in a task that is being cancelled, on every Python we run on."""

import asyncio
from contextlib import suppress

import pytest

from ndagent.core import timeouts


class Old(asyncio.timeouts.Timeout):
    """As Debian 12's Python has it: what was asked for before the limit counts as asked for now."""

    async def __aenter__(self):
        entered = await super().__aenter__()
        self._cancelling = 0
        return entered


@pytest.fixture(params=["this Python's", "an old Python's, mended"])
def limit(request):
    """asyncio.timeout."""
    if request.param == "this Python's":
        return asyncio.timeout

    class Mended(Old):
        pass

    timeouts._replace(Mended)
    return lambda seconds: Mended(asyncio.get_running_loop().time() + seconds)


async def clean_up(limit, done):
    """Ends by a cancel, and then has something to do that may hang."""
    try:
        await asyncio.Event().wait()
    finally:
        done.append("began")
        with suppress(TimeoutError):
            async with limit(0.01):
                await asyncio.Event().wait()
        done.append("went on")


async def test_a_limit_that_runs_out_in_a_clean_up_lets_it_go_on(limit):
    """On 3.11.2 it was a CancelledError, and the rest was left undone."""
    done = []
    task = asyncio.create_task(clean_up(limit, done))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert done == ["began", "went on"]
    assert task.cancelled()


async def test_a_second_cancel_ends_the_clean_up(limit):
    """It is not mistaken for the limit."""
    done = []
    task = asyncio.create_task(clean_up(limit, done))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert done == ["began"]
    assert task.cancelled()


async def test_a_limit_elsewhere_is_what_it_was(limit):
    """TimeoutError, and nothing of the limit's own cancel is left in the task."""
    with pytest.raises(TimeoutError):
        async with limit(0.01):
            await asyncio.Event().wait()
    assert asyncio.current_task().cancelling() == 0
    async with limit(60):
        pass


@pytest.mark.skipif(
    asyncio.Timeout.__aexit__.__module__ == timeouts.__name__, reason="this Python is an old one, and mended"
)
async def test_the_old_one_is_as_bad_as_debians():
    """Otherwise the mend above would mend nothing."""
    done = []
    task = asyncio.create_task(clean_up(lambda seconds: Old(asyncio.get_running_loop().time() + seconds), done))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert done == ["began"]
