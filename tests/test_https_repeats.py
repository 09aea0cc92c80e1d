"""The table of batches that came before, without a socket."""

import asyncio

import pytest

from ndcollector.inputs.agent_batches import Name
from ndcollector.inputs.https_repeats import BATCHES_PER_AGENT, Repeats


def name(agent_id: str, number: int = 0, crc: int = 0) -> Name:
    return Name(agent_id, f"key-{number}", crc)


async def store(repeats: Repeats, *names: Name) -> None:
    """As if each were a batch of one event that became durable."""

    async def durable() -> int:
        return 1

    for one in names:
        task = asyncio.create_task(durable())
        repeats.begin(one, task)
        await task
        await asyncio.sleep(0)


async def test_a_batch_is_under_way_and_then_durable() -> None:
    """Its number of events comes with it."""
    repeats, gate = Repeats(10), asyncio.Event()

    async def durable() -> int:
        await gate.wait()
        return 7

    task = asyncio.create_task(durable())
    repeats.begin(name("a"), task)
    assert repeats.under_way(name("a")) is task
    assert repeats.durable(name("a")) is None
    gate.set()
    await task
    await asyncio.sleep(0)
    assert repeats.under_way(name("a")) is None
    assert repeats.durable(name("a")) == 7
    for other in (name("b"), name("a", 1), name("a", 0, 1)):
        assert repeats.durable(other) is None


@pytest.mark.parametrize("end", ["error", "cancel"])
async def test_what_did_not_become_durable_is_not_remembered(end: str) -> None:
    """It may come again."""
    repeats = Repeats(10)

    async def fails() -> int:
        raise OSError("disk")

    task = asyncio.create_task(fails())
    repeats.begin(name("a"), task)
    if end == "cancel":
        task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert repeats.under_way(name("a")) is None
    assert repeats.durable(name("a")) is None
    assert end == "cancel" or isinstance(task.exception(), OSError)


async def test_an_agent_is_remembered_by_its_last_batches() -> None:
    """One more than BATCHES_PER_AGENT forgets that agent's oldest, and nobody else's; asking keeps one fresh."""
    repeats = Repeats(10_000)
    await store(repeats, name("other"), *(name("a", number) for number in range(BATCHES_PER_AGENT)))
    assert repeats.durable(name("a", 0)) == 1
    await store(repeats, name("a", BATCHES_PER_AGENT))
    assert repeats.durable(name("a", 0)) == 1
    assert repeats.durable(name("a", 1)) is None
    assert repeats.durable(name("other")) == 1
    assert len(repeats) == BATCHES_PER_AGENT + 1


async def test_all_agents_together_are_bounded_and_the_silent_go_first() -> None:
    """Exactly `most` stay."""
    repeats = Repeats(4)
    await store(repeats, name("a", 1), name("a", 2), name("b", 1), name("c", 1))
    assert repeats.durable(name("a", 1)) == 1  # a is heard again
    await store(repeats, name("d", 1))
    assert len(repeats) == 4
    assert repeats.durable(name("b", 1)) is None
    assert [repeats.durable(name("a", number)) for number in (1, 2)] == [1, 1]
    await store(repeats, name("e", 1), name("f", 1), name("g", 1))
    assert len(repeats) == 4
