"""Accepted sockets that wait for their handshake: one queue per address, and the addresses take turns.

Promises: whoever opens thousands of connections waits behind his own, not before everybody else's; order within an
address is the order of arrival. Refuses: a limit of its own (the listener counts what waits as connections) and TLS.
"""

import asyncio
import socket
from collections import OrderedDict, deque
from typing import NamedTuple


class Waiting(NamedTuple):
    """A socket that was accepted and not read yet."""

    accepted: socket.socket
    address: str
    port: int


class WaitingRoom:
    """`put` from the accepting tasks, `ready` and `take` from the one that begins handshakes."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[Waiting]] = OrderedDict()  # whose turn is next first; none is empty
        self._count = 0
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return self._count

    def waiting_from(self, address: str) -> int:
        """How many of this address wait."""
        return len(self._queues.get(address, ()))

    def put(self, waiting: Waiting) -> None:
        """At the end of its address's queue."""
        self._queues.setdefault(waiting.address, deque()).append(waiting)
        self._count += 1
        self._filled.set()

    async def ready(self) -> None:
        """Return when somebody waits."""
        await self._filled.wait()

    def take(self) -> Waiting:
        """The first of the address whose turn it is; IndexError if nobody waits."""
        if not self._count:
            raise IndexError("nobody waits")
        address, queue = next(iter(self._queues.items()))
        waiting = queue.popleft()
        if queue:
            self._queues.move_to_end(address)
        else:
            del self._queues[address]
        self._count -= 1
        if not self._count:
            self._filled.clear()
        return waiting

    def close(self) -> None:
        """Close every socket that waits."""
        while self._count:
            self.take().accepted.close()
