"""What stands on the demo's topics, as any consumer sees it.

Promises: `count` reads every record of a topic and counts events by their id, so that one that stands there twice is no
second one; memory is some 100 bytes for each event. Refuses: a group (nothing is committed), and waiting for more.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer

from ndagent.core.log import printable

_SHOWN = 4
_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Shown:
    """A record as a consumer gets it."""

    partition: int
    offset: int
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Counted:
    """A topic read whole: `events` are different ones."""

    events: int
    records: int
    shown: list[Shown]


@dataclass(frozen=True, slots=True)
class Size:
    """A topic as its offsets tell; they begin at 0, the broker is as young as the demo."""

    partitions: int
    used: int
    records: int


async def size(bootstrap: str, topic: str) -> Size:
    """How much stands on it."""
    async with _reading(bootstrap, topic) as consumer:
        ends = await consumer.end_offsets(consumer.assignment())
        return Size(len(ends), sum(map(bool, ends.values())), sum(ends.values()))


async def count(bootstrap: str, topic: str) -> Counted:
    """Read what stands on it now, and keep the first records of some partitions to show."""
    async with _reading(bootstrap, topic) as consumer:
        left = {at: end for at, end in (await consumer.end_offsets(consumer.assignment())).items() if end}
        seen: set[str] = set()
        records = 0
        shown: list[Shown] = []
        while left:
            for found in (await consumer.getmany(*left, timeout_ms=500, max_records=_AT_ONCE)).values():
                records += len(found)
                seen.update(orjson.loads(record.value)["event"]["id"] for record in found)
                if found[0].offset == 0 and len(shown) < _SHOWN:
                    shown.append(_shown(found[0]))
            for at in list(left):
                if await consumer.position(at) >= left[at]:
                    del left[at]
        return Counted(len(seen), records, shown)


@asynccontextmanager
async def _reading(bootstrap: str, topic: str) -> AsyncIterator[Any]:
    """A consumer without a group gets all partitions."""
    async with AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        yield consumer


def _shown(record: Any) -> Shown:
    key, value = (printable((part or b"").decode(errors="replace")) for part in (record.key, record.value))
    return Shown(record.partition, record.offset, key, value)
