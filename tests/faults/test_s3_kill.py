"""kill -9 of the real collector amid uploads to a real S3 server: no event in two objects, none in no object.

The door between them kills the collector at the worst moments: with half an object sent; with the object made and the
answer under way; with the whole request sent and not yet looked at, so that it is carried out while the next process
is sending already. Each time more events have become durable since the upload began: the next process cuts elsewhere.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from collector_site import Site
from s3_site import Door, Store, moto

from tests.events import sequences_in

FATES = ("amid", "done", "later")


class Killer:
    """Lets requests pass until it is armed; then the next upload is the collector's last.

    `send` makes so many events more durable.
    """

    def __init__(self, door: Door, site: Site, seed: int) -> None:
        self._door, self._site = door, site
        self.sent = 0
        self._random = random.Random(seed)
        self._armed: str | None = None
        self.killed = asyncio.Event()
        self.late: list[asyncio.Task[web.Response]] = []

    async def send(self, events: int) -> None:
        await asyncio.to_thread(self._site.send, events, first=self.sent)
        self.sent += events
        await asyncio.to_thread(self._site.collector.wait_for_lines, self.sent)

    async def until_delivered(self) -> None:
        collector = self._site.collector
        await asyncio.to_thread(collector.process.wait_until, lambda: collector.pending() == 0, "empty backlog", 60)

    def arm(self, fate: str) -> None:
        self.killed.clear()
        self._armed = fate

    async def script(self, request: web.Request) -> web.Response | None:
        if request.method != "PUT" or self._armed is None:
            return None
        fate, self._armed = self._armed, None
        await self.send(300)
        if fate == "amid":
            await request.content.read(self._random.randrange(1, 500))
        elif fate == "done":
            await self._door._passed_on(request)
        else:
            await request.read()
            self.late.append(asyncio.ensure_future(self._pass_on_late(request)))
        await asyncio.to_thread(self._site.collector.kill)
        self.killed.set()
        return web.Response(status=500)  # to nobody

    async def _pass_on_late(self, request: web.Request) -> web.Response:
        await self.killed.wait()
        await asyncio.sleep(self._random.uniform(0, 1.0))  # before, while or after the next process sends the same
        return await self._door._passed_on(request)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    made = Door(moto())
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("kills", [3, pytest.param(90, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
async def test_a_kill_amid_an_upload_doubles_nothing_and_loses_nothing(
    tmp_path: Path, door: Door, kills: int
) -> None:
    """What the file output beside it has, the bucket has, each event once."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    store = Store(moto())
    lake = {
        "type": "s3", "bucket": store.bucket, "endpoint": door.url, "access_key_id": "a", "secret_access_key": "b",
        "batch_age": "100ms", "batch_bytes": "1MiB", "retry": {"initial": "50ms", "maximum": "200ms"},
    }  # fmt: skip
    site = Site(tmp_path, outputs={"lake": lake})
    killer = Killer(door, site, seed)
    door.script = killer.script
    await asyncio.to_thread(site.collector.start)
    try:
        for kill in range(kills):
            await killer.until_delivered()  # what the last kill left: the next one is to meet a small, first batch
            killer.arm(FATES[kill % len(FATES)])
            await killer.send(20)
            async with asyncio.timeout(30):
                await killer.killed.wait()
            await asyncio.to_thread(site.collector.start)
        await killer.until_delivered()
        assert await asyncio.to_thread(site.collector.stop) == 0
    finally:
        await asyncio.to_thread(site.collector.process.stop)
    await asyncio.gather(*killer.late)
    durable = sequences_in(site.collector.output.read_bytes())
    stored = store.sequences()
    assert len(stored) == len(set(stored)), "an event in two objects"
    assert sorted(stored) == sorted(durable)
    assert len(durable) == kills * 320
