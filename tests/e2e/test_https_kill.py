"""kill -9 of the real daemon while agents post over HTTPS: every acknowledged batch is stored, once for each life.

An agent that gets no 200 sends the same batch again, and sometimes one that it has a 200 for. Within one life of the
process no batch is stored twice; over a kill it may be (that table is memory), which event ids make removable.
"""

import asyncio
import random
import ssl
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from collector_process import ROOT
from collector_site import Site
from https_site import envelope
from services.process import free_port

from ndagent.wire import routes
from ndcollector import pki
from ndcollector.inputs.https_repeats import BATCHES_PER_AGENT

AGENTS = ["abcdefghijklmnop", "bcdefghijklmnopa"]
EVENTS = 5
RECENT = BATCHES_PER_AGENT // 2
"""An agent repeats what was in flight lately; what is longer ago the collector may have forgotten."""


class Agent:
    """Sends numbered batches, each until it is acknowledged; knows in which lives it tried."""

    def __init__(self, agent_id: str, port: int, context: ssl.SSLContext, seed: int) -> None:
        self.agent_id = agent_id
        self.life = 0
        self.acknowledged: list[int] = []
        self.tried: dict[int, set[int]] = defaultdict(set)
        self.stopping = False
        self._spool_id = f"{agent_id[:4]:0<16}"
        self._url = f"https://localhost:{port}{routes.BATCHES}"
        self._context = context
        self._random = random.Random(seed)

    def event_id(self, number: int, n: int) -> str:
        """As its spool names its events."""
        return f"{self._spool_id}-{number * EVENTS + n}"

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(ssl=self._context, limit=8)
        async with aiohttp.ClientSession(connector=connector) as client:
            await asyncio.gather(*(self._send(client, lane) for lane in range(4)))

    async def _send(self, client: aiohttp.ClientSession, lane: int) -> None:
        number = lane
        while not self.stopping:
            await self._deliver(client, number)
            if self._random.random() < 0.2:
                await self._deliver(client, self._random.choice(self.acknowledged[-RECENT:]))
            number += 4

    async def _deliver(self, client: aiohttp.ClientSession, number: int) -> None:
        lines = (
            orjson.dumps({"message": f"{self.agent_id} {number} {n}", "event": {"id": self.event_id(number, n)}})
            + b"\n"
            for n in range(EVENTS)
        )
        data = envelope(
            EVENTS, first=1 + number * EVENTS, ndjson=b"".join(lines), agent_id=self.agent_id, spool_id=self._spool_id
        )
        while True:
            self.tried[number].add(self.life)
            try:
                async with client.post(
                    self._url, data=data, headers={"Content-Type": routes.ENVELOPE_TYPE}
                ) as response:
                    self.tried[number].add(self.life)
                    if response.status == 200:
                        self.acknowledged.append(number)
                        return
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(0.05)


def agents_of(site: Site, port: int) -> list[Agent]:
    """With certificates of the built-in PKI."""
    found = []
    for seed, agent_id in enumerate(AGENTS):
        pki.issue(site.pki, pki.Subject("agent", agent_id), now=datetime.now(UTC))
        context = ssl.create_default_context(cafile=str(site.pki / "ca.crt"))
        certificate = site.pki / "issued" / f"agent-{agent_id}.crt"
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        found.append(Agent(agent_id, port, context, seed))
    return found


async def kill_under_load(site: Site, agents: list[Agent], kills: int) -> None:
    """Kills at random moments while all agents send."""
    dice = random.Random(kills)
    await asyncio.to_thread(site.collector.start)
    running = [asyncio.create_task(one.run()) for one in agents]
    for _ in range(kills):
        enough = len(agents[0].acknowledged) + 20
        while len(agents[0].acknowledged) < enough:
            await asyncio.sleep(0.02)
        await asyncio.sleep(dice.random() / 4)
        await asyncio.to_thread(site.collector.kill)
        for one in agents:
            one.life += 1
        await asyncio.to_thread(site.collector.start)
    for one in agents:
        one.stopping = True
    await asyncio.wait_for(asyncio.gather(*running), 60)
    assert await asyncio.to_thread(site.collector.stop) == 0


def in_spool(site: Site) -> list[dict[str, Any]]:
    """What the stopped collector's spool holds; an output may repeat over a kill what it had delivered already."""
    command = [sys.executable, "-m", "ndcollector", "spool", "export", "--format", "ndjson"]
    command += ["-c", str(site.collector.config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
    return [orjson.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.timeout(900)
def test_what_was_acknowledged_survives_kills_and_is_there_once_for_each_life(tmp_path: Path, kills: int) -> None:
    """Kills under load, then an orderly stop, and the books."""
    port = free_port()
    inputs = {"https": {"listen": [f"127.0.0.1:{port}"]}}
    site = Site(tmp_path, inputs=inputs, spool={"replay_window": "1h"})
    agents = agents_of(site, port)
    asyncio.run(kill_under_load(site, agents, kills))
    found = Counter((event["message"], event["event"]["id"]) for event in in_spool(site))
    assert len(agents[0].acknowledged) >= kills * 20
    for one in agents:
        for number in one.acknowledged:
            for n in range(EVENTS):
                times = found[f"{one.agent_id} {number} {n}", one.event_id(number, n)]
                assert 1 <= times <= len(one.tried[number])
