"""Devices that talk: a TLS connection with the device's own certificate, at a given rate or as fast as it goes.

Promises: `sent` counts messages that were handed to the connection whole; a stop ends between two messages and closes
the connection in order, so that nothing is cut. Refuses: reconnecting; the demo wants to see a failure.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Protocol

from ndcollector.demo.devices import Device

_BURST = 64
"""Messages in one write at most: what a busy device has in its socket buffer at a time."""
_BEATS_PER_SECOND = 10.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a device needs for mutual TLS."""

    ca_file: Path
    cert_file: Path
    key_file: Path

    def context(self) -> ssl.SSLContext:
        """A client context that checks the collector and shows the device's certificate."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self.ca_file)
        context.load_cert_chain(self.cert_file, self.key_file)
        return context


class Sending(Protocol):
    """Whoever sends in the demo: `sent` counts what it has sent so far."""

    name: str
    sent: int

    async def run(self, stop: asyncio.Event) -> None:
        """Send until all is sent or the stop; raises OSError."""


class Sender:
    """One device on one connection. `count` None means until the stop; `rate` None means without pause."""

    def __init__(
        self,
        device: Device,
        context: ssl.SSLContext,
        *,
        port: int,
        count: int | None,
        rate: float | None,
        random: Random,
        now: Callable[[], datetime],
    ) -> None:
        self.device = device
        self.name = device.name
        self.sent = 0
        self._context = context
        self._port = port
        self._count = count
        self._rate = rate
        self._random = random
        self._now = now

    async def run(self, stop: asyncio.Event) -> None:
        """Connect, send, close; raises OSError (ssl.SSLError is one)."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._context)
        started = asyncio.get_running_loop().time()
        try:
            while not stop.is_set() and (burst := self._burst()):
                now = self._now()
                writer.write(b"".join([self.device.frame(self._random, now) for _ in range(burst)]))
                await writer.drain()
                self.sent += burst
                await self._pause(started, stop)
        finally:
            writer.close()
            await writer.wait_closed()

    def _burst(self) -> int:
        burst = _BURST if self._rate is None else max(1, min(_BURST, round(self._rate / _BEATS_PER_SECOND)))
        return burst if self._count is None else min(burst, self._count - self.sent)

    async def _pause(self, started: float, stop: asyncio.Event) -> None:
        if self._rate is None:
            return
        due = started + self.sent / self._rate
        try:
            async with asyncio.timeout_at(due):
                await stop.wait()
        except TimeoutError:
            pass


async def run_all(senders: Sequence[Sending], stop: asyncio.Event) -> list[str]:
    """All of them at once; returns what went wrong, a line for each device that failed."""
    results = await asyncio.gather(*(sender.run(stop) for sender in senders), return_exceptions=True)
    failures = []
    for sender, result in zip(senders, results, strict=True):
        if isinstance(result, OSError):
            failures.append(f"{sender.name}: {result}")
        elif result is not None:
            raise result
    return failures
