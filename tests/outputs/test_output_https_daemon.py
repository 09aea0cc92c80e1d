"""The real daemon with an `https` output to two receivers: one stops, both stop, both are back; nothing is missing."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from collector_site import Site
from http_far_side import FarSide, until


def numbers(servers: list[FarSide]) -> list[int]:
    """Of the messages that arrived, at whichever receiver."""
    lines = [line for server in servers for request in server.requests for line in request.plain.splitlines()]
    return sorted({int(orjson.loads(line)["message"].removeprefix("number ")) for line in lines})


async def test_receivers_that_come_and_go(tmp_path: Path) -> None:
    """A line of log for each that goes and comes, the file output beside it never waits, and the ledger adds up."""
    servers = [FarSide(), FarSide()]
    for server in servers:
        await server.start()
    siem = {
        "type": "https",
        "urls": [server.url + "/in" for server in servers],
        "balance": "round_robin",
        "endpoint_breaker": {"failures": 1, "open_for": "200ms"},
        "breaker": {"open_for": "200ms"},
        "retry": {"initial": "50ms", "maximum": "200ms"},
    }
    site = Site(tmp_path, outputs={"siem": siem})
    loop = asyncio.get_running_loop()

    def on_thread(call: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
        return loop.run_in_executor(None, call, *arguments)

    async def send(first: int) -> None:
        await on_thread(lambda: site.send(100, first=first))
        await on_thread(site.collector.wait_for_lines, first + 100)  # the file has them, whatever siem does

    await on_thread(site.collector.start)
    try:
        await send(0)
        await until(lambda: numbers(servers) == list(range(100)))
        await servers[0].stop()
        for first in (100, 200, 300):
            await send(first)
            await until(lambda count=first + 100: numbers(servers) == list(range(count)))
        await on_thread(site.wait_for_log, f"endpoint {servers[0].url} is left alone after 1 failures")
        await servers[1].stop()
        await send(400)
        await on_thread(site.wait_for_log, "not delivering stream security_events")
        for server in servers:
            await server.start()
        await until(lambda: numbers(servers) == list(range(500)))
        await on_thread(site.wait_for_log, "delivering again stream security_events")
        await on_thread(site.collector.process.wait_until, lambda: site.collector.pending() == 0, "all delivered", 15)
        metrics = await on_thread(site.collector.metrics)
        assert metrics['nd_output_delivered_events_total{output="siem",stream="security_events"}'] == 500
    finally:
        assert await on_thread(site.collector.stop) == 0
        for server in servers:
            await server.stop()
    assert site.numbers() == list(range(500))
