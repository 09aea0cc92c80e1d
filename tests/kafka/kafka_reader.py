"""A kafka input with a spool that tests hold the door of, and a producer of numbered values."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, cast

from aiokafka import AIOKafkaProducer

from ndagent.core.metrics import Metrics
from ndagent.core.tls import TlsContexts
from ndagent.wire.decoder import split_messages
from ndagent.wire.record import Batch
from ndcollector.inputs import InputContext
from ndcollector.inputs.kafka import Config, KafkaInput


class Reader:
    """One collector's kafka input; `values` is what its "spool" made durable, in order."""

    def __init__(self, bootstrap: str, topic: str, **settings: Any) -> None:
        self.metrics = Metrics()
        self.values: list[bytes] = []
        self.batches: list[Batch] = []
        self.door = asyncio.Event()
        self.door.set()
        self.waiting = 0
        defaults = {"topics": [topic], "group": topic, "format": "syslog", "session_timeout": 3, "request_timeout": 3}
        config = Config.model_validate({"bootstrap_servers": bootstrap.split(","), **defaults, **settings})
        context = InputContext(Path(), self.metrics, cast("TlsContexts", None), time.time)
        self.input = KafkaInput("bus", config, context, random=lambda: 0.2)
        self._task: asyncio.Task[None] | None = None

    async def accept(self, batch: Batch) -> None:
        """As Spool.append: returns once durable, waits while there is no room."""
        self.waiting += 1
        await self.door.wait()
        self.waiting -= 1
        self.batches.append(batch)
        payload, at = b"".join(batch.payload), 0
        for section in batch.sections:
            part = payload[at : at + section.length]
            self.values += split_messages(part, framing=section.framing, count=section.count)
            at += section.length

    async def start(self) -> None:
        """Begin to read."""
        await self.input.start()
        self._task = asyncio.create_task(self.input.run(self.accept))

    async def stop(self) -> None:
        """As the composition root stops an input."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            assert self._task.cancelled()
            self._task = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.door.set()
        await self.stop()

    def sample(self, name: str, **labels: str) -> float:
        """A metric's value; 0 where it was never touched."""
        return self.metrics.registry.get_sample_value(name, {"input": "bus", **labels}) or 0.0

    async def until(self, ready: Callable[[], bool], what: str, timeout_seconds: float = 60) -> None:
        """Wait until `ready()`; fails, saying what has come."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            assert time.monotonic() < deadline, f"no {what}: {len(self.values)} values came"
            assert self._task is None or not self._task.done(), f"the input ended: {self._task}"
            await asyncio.sleep(0.02)

    async def until_values(self, count: int, timeout_seconds: float = 60) -> None:
        """Wait until so many different values have come."""
        await self.until(lambda: len(set(self.values)) >= count, f"{count} values", timeout_seconds)


def numbered(count: int, *, first: int = 0, size: int = 0) -> list[bytes]:
    """Syslog messages with a number at their end."""
    return [b"<34>1 - fw-%d app - - - %b%d" % (n % 7, b"x" * size, n) for n in range(first, first + count)]


def number(value: bytes) -> int:
    """Of a message of numbered()."""
    return int(value.rpartition(b" ")[2].lstrip(b"x"))


async def produce(bootstrap: str, topic: str, values: Sequence[bytes | None], **settings: Any) -> None:
    """Send them, key = host, and wait for all acknowledgements."""
    options = {"linger_ms": 5, "request_timeout_ms": 5000, "retry_backoff_ms": 50, **settings}
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, **options) as producer:
        keys = [value.split(b" ", 3)[2] if value and value[:1] == b"<" else None for value in values]
        sent = [await producer.send(topic, value, key=key) for value, key in zip(values, keys, strict=True)]
        await asyncio.gather(*sent)
