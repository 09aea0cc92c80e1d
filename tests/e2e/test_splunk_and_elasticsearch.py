"""The whole collector with Splunk and Elasticsearch behind it: one refuses, the other never waits; kill -9."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from collector_site import Site
from services.elasticsearch import Elasticsearch
from services.splunk_hec import SplunkHec

TARGET = "logs-nd.security_events-default"
QUICK = {"retry": {"maximum": "300ms"}, "breaker": {"open_for": "300ms"}, "endpoint_breaker": {"open_for": "200ms"}}
DELIVERED = 'nd_output_delivered_events_total{{output="{}",stream="security_events"}}'
DEAD = 'nd_output_dead_lettered_events_total{{output="{}",stream="security_events"}}'


@asynccontextmanager
async def running(site: Site) -> AsyncIterator[None]:
    """The collector, ended beside the loop too: it drains, and the servers must answer."""
    await beside(site.collector.start)
    try:
        yield
    finally:
        await beside(site.collector.stop)


async def beside(work: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """The servers answer on this loop while the collector is worked with."""
    return await asyncio.to_thread(work, *arguments, **more)


def site_for(directory: Path, splunk: SplunkHec, search: Elasticsearch, **siem: Any) -> Site:
    """A collector with both, the token in a file of its own."""
    token = directory / "hec.token"
    token.write_text(splunk.token + "\n")
    siem = {"type": "splunk_hec", "url": splunk.url, "token": f"${{file:{token}}}", **QUICK, **siem}
    elastic = {"type": "elasticsearch", "url": search.url, "template": "manage", **QUICK}
    return Site(directory / "site", outputs={"siem": siem, "search": elastic})


def messages(server: SplunkHec) -> Counter[str]:
    """What Splunk has, by event.id."""
    return Counter(event["event"]["event"]["id"] for event in server.events)


async def test_both_get_every_event_and_neither_waits_for_the_other(tmp_path: Path) -> None:
    """Splunk refuses the token until a person mends it; Elasticsearch has everything meanwhile."""
    async with SplunkHec() as splunk, Elasticsearch() as search:
        splunk.settings.enabled = False
        site = site_for(tmp_path, splunk, search)
        async with running(site):
            await beside(site.send, 2000)
            await beside(site.wait_for_metric, DELIVERED.format("search"), 2000)
            assert splunk.events == []
            await beside(site.wait_for_log, "enable it in Splunk")
            splunk.settings.enabled = True
            await beside(site.wait_for_metric, DELIVERED.format("siem"), 2000)
            assert await beside(site.collector.stop) == 0
        assert splunk.token not in str(site.log())
    held = search.documents[TARGET]
    assert len(held) == 2000
    assert search.streams == {TARGET}
    assert messages(splunk) == Counter(held.keys())
    assert all(event["event"] == held[event["event"]["event"]["id"]] for event in splunk.events)
    assert {event["host"] for event in splunk.events} == {event["host"]["hostname"] for event in held.values()}


async def test_killed_with_answers_outstanding(tmp_path: Path) -> None:
    """SIGKILL: Elasticsearch has each event once, by its id; Splunk, with acknowledgement, has each at least once."""
    async with SplunkHec() as splunk, Elasticsearch() as search:
        splunk.settings.ack = True
        site = site_for(tmp_path, splunk, search, ack=True, ack_poll="50ms")
        async with running(site):
            await beside(site.send, 1000)
            await beside(site.wait_for_metric, DELIVERED.format("search"), 1000)
            site.collector.kill()
            splunk.restart()  # what it had taken and not indexed is lost, and was not acknowledged
            indexing = asyncio.create_task(_index_for_ever(splunk))
            await beside(site.collector.start)
            await beside(site.send, 1000, first=1000)
            await beside(site.wait_for_metric, DELIVERED.format("siem"), 2000)
            assert await beside(site.collector.stop) == 0
            indexing.cancel()
    assert len(search.documents[TARGET]) == 2000
    assert set(messages(splunk)) == set(search.documents[TARGET])


async def _index_for_ever(splunk: SplunkHec) -> None:
    while True:
        splunk.index()
        await asyncio.sleep(0.02)


async def test_an_event_that_one_refuses_is_its_dead_letter_and_the_others_event(tmp_path: Path) -> None:
    """Counted in the ledger of that output alone."""
    async with SplunkHec() as splunk, Elasticsearch() as search:
        splunk.poison = lambda event: event["event"]["sequence"] == 70
        site = site_for(tmp_path, splunk, search)
        async with running(site):
            await beside(site.send, 100)
            await beside(site.wait_for_metric, DELIVERED.format("search"), 100)
            await beside(site.wait_for_metric, DELIVERED.format("siem"), 99)
            await beside(site.wait_for_metric, DEAD.format("siem"), 1)
            assert await beside(site.collector.stop) == 0
    assert len(search.documents[TARGET]) == 100
    assert len(messages(splunk)) == 99
