"""Batches by their keys: those that are being made durable, and those that are.

Promises: a batch that comes again while the first is under way waits for that one, one that comes later is known to be
durable already; for as long as it is remembered, which is bounded: the last BATCHES_PER_AGENT of each agent, `most` of
all agents together, those of the agent that was silent longest are forgotten first, and one agent's cannot push out
another's. What is under way is never forgotten (the number of requests bounds it).
Refuses: taking the key's word alone. A key that comes with other bytes names another batch: a host that was set back to
a snapshot counts anew, a script may send one key for ever, and neither may lose events by it.
"""

import asyncio
from collections import OrderedDict

from ndcollector.inputs.agent_batches import Name

BATCHES_PER_AGENT = 256


class Repeats:
    """Per agent its batches, the latest last; for each how many events it has."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._durable: OrderedDict[str, OrderedDict[Name, int]] = OrderedDict()
        self._under_way: dict[Name, asyncio.Task[int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def under_way(self, name: Name) -> "asyncio.Task[int] | None":
        """The task that makes this batch durable right now."""
        return self._under_way.get(name)

    def durable(self, name: Name) -> int | None:
        """How many events it has, if it is known to be on disk."""
        batches = self._durable.get(name.agent_id)
        if batches is None or name not in batches:
            return None
        batches.move_to_end(name)
        self._durable.move_to_end(name.agent_id)
        return batches[name]

    def begin(self, name: Name, storing: "asyncio.Task[int]") -> None:
        """`storing` makes it durable; when it has, the batch is remembered, also if nobody waits any more."""
        self._under_way[name] = storing
        storing.add_done_callback(lambda task: self._ended(name, task))

    def _ended(self, name: Name, storing: "asyncio.Task[int]") -> None:
        del self._under_way[name]
        if storing.cancelled() or storing.exception() is not None:
            return
        batches = self._durable.setdefault(name.agent_id, OrderedDict())
        batches[name] = storing.result()
        self._durable.move_to_end(name.agent_id)
        self._count += 1
        if len(batches) > BATCHES_PER_AGENT:
            self._forget_one(batches)
        while self._count > self._most:
            silent, theirs = next(iter(self._durable.items()))
            self._forget_one(theirs)
            if not theirs:
                del self._durable[silent]

    def _forget_one(self, batches: OrderedDict[Name, int]) -> None:
        batches.popitem(last=False)
        self._count -= 1
