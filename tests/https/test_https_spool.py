"""The https input over a real spool: full, and emptied again."""

import asyncio
from pathlib import Path

from https_site import Serve, envelope, events, post, until

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool
from ndagent.core.spool.config import SpoolConfig

BATCH = 60


async def test_a_full_spool_answers_503_and_takes_everything_once_there_is_room(serve: Serve, tmp_path: Path) -> None:
    """Every batch that was answered 200 is in the spool once, and so is the one that waited."""
    config = SpoolConfig(max_bytes=1 << 17, segment_bytes=1 << 13)
    spool = await Spool.open(
        tmp_path / "spool", stream="security_events", config=config, metrics=Metrics(), retry_seconds=0.01
    )
    cursor = spool.cursor("out")
    async with serve(accept_timeout=0.2, accept=spool.append) as site, site.client() as client:
        acknowledged, status, first = [], 200, 1
        while status == 200:
            status, document = await post(client, envelope(BATCH, first=first))
            acknowledged += [first] if status == 200 else []
            first += BATCH
        assert (status, document["reason"]) == (503, "no_room")
        assert len(acknowledged) > 5
        waited = first - BATCH
        stored: list[bytes] = []
        while len(stored) < (len(acknowledged) + 1) * BATCH:
            for record in await cursor.read(1 << 20):
                stored += [line for line in bytes(record.body).split(b"\n") if b'{"message"' in line]
                cursor.advance(record.end)
            await cursor.save()
            await asyncio.sleep(0.01)
        await until(lambda: site.sample("nd_input_paused") == 0)
        assert (await post(client, envelope(BATCH, first=waited)))[0] == 200  # known: it was stored meanwhile
        assert (await post(client, envelope(BATCH, first=first)))[0] == 200
    found = {line[line.index(b'{"message"') :] for line in stored}
    assert len(found) == len(stored)
    for one in (*acknowledged, waited):
        assert found.issuperset(events(BATCH, first=one).splitlines())
    await spool.aclose()
