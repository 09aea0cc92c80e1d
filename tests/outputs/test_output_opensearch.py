"""The `elasticsearch` output and a real OpenSearch: what the server of test_output_elasticsearch.py claims, is so."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services import fetch
from services.need import need
from services.opensearch import OpenSearch

from ndagent.core.metrics import Metrics
from ndcollector.outputs import OutputContext, elasticsearch
from ndcollector.schema import STREAMS
from tests.outputs.delivering import Line, events_of, numbered

pytestmark = [pytest.mark.service, pytest.mark.xdist_group("opensearch")]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSearch]:
    """One for all tests; each has targets of its own."""
    need(fetch.OPENSEARCH)
    with OpenSearch(tmp_path_factory.mktemp("opensearch") / "node") as running:
        yield running


@pytest.fixture
async def make(node: OpenSearch, tmp_path: Path) -> AsyncIterator[Callable[..., Line]]:
    """An output to the node, with these settings."""
    lines: list[Line] = []

    def line(**settings: Any) -> Line:
        config = elasticsearch.Config(url=node.url, endpoint_breaker={"open_for": "50ms"}, **settings)
        metrics = Metrics()
        context = OutputContext(state_dir=tmp_path, metrics=metrics, clock=lambda: 1.7e9)
        lines.append(Line(elasticsearch.build("siem", config, context), config, tmp_path / "letters", metrics))
        return lines[-1]

    yield line
    for one in lines:
        await one.output.aclose()


async def held(node: OpenSearch, target: str) -> list[dict[str, Any]]:
    """Documents of a target, by id."""
    await asyncio.to_thread(node.ask, "POST", f"/{target}/_refresh")
    found = await asyncio.to_thread(node.get, f"/{target}/_search?size=10000&sort=_id")
    return [hit["_source"] for hit in found["hits"]["hits"]]


async def test_a_data_stream_with_our_template(node: OpenSearch, make: Any) -> None:
    """Installed, types as ECS has them, mixed answers read right, repeats found by id."""
    line = make(template="manage", target="logs-nd.{stream}-mixed")
    documents = numbered(6, host={"hostname": "fw-1", "name": "fw-1"})
    documents[1]["source"] = {"ip": "nowhere"}
    documents[2]["log"] = {"syslog": {"structured_data": {"a@1": {"x": "1"}, "b@2": {"x": ["yes", "no"]}}}}
    documents[4]["event"]["created"] = "yesterday"
    documents[5]["@timestamp"] = "2026-11-25T10:00:00.123456789Z"
    assert await line.deliver(events_of(documents)) == 2
    assert await line.deliver(events_of(documents, first=6)) == 2  # as after a crash
    arrived = [documents[index] for index in (0, 2, 3, 5)]
    assert await held(node, "logs-nd.security_events-mixed") == arrived
    assert [letter["event"]["event"]["id"] for letter in line.buried()] == ["event-1", "event-4"] * 2
    (stream,) = (await asyncio.to_thread(node.get, "/_data_stream/logs-nd.security_events-mixed"))["data_streams"]
    assert stream["template"] == "ndcollector-logs-nd.security_events-mixed"
    mapping = await asyncio.to_thread(node.get, "/logs-nd.security_events-mixed/_mapping")
    (properties,) = (index["mappings"]["properties"] for index in mapping.values())
    assert properties["source"]["properties"]["ip"] == {"type": "ip"}
    assert properties["message"] == {"type": "text", "norms": False}


async def test_the_template_is_taken_for_every_stream(node: OpenSearch, make: Any) -> None:
    """The schema's fields of all streams, in this server's own words."""
    line = make(template="manage", target="logs-nd.{stream}-all")
    for stream in STREAMS:
        assert await line.deliver(events_of(numbered(1), stream=stream)) == 0
        assert await held(node, f"logs-nd.{stream}-all") == numbered(1)


async def test_an_id_that_spoils_the_request_is_found(node: OpenSearch, make: Any) -> None:
    """The whole request is refused, 400; the machine bisects."""
    line = make(target="spoiled", template="none")
    documents = numbered(30)
    documents[17]["event"]["id"] = "x" * 513
    assert await line.deliver(events_of(documents)) == 1
    assert [letter["sequence"] for letter in line.buried()] == [17]
    assert len(await held(node, "spoiled")) == 29


async def test_indexes_by_time_and_a_read_only_one(node: OpenSearch, make: Any) -> None:
    """One request, two indexes: what can be written is, the rest waits for a person."""
    line = make(target="events-%Y.%m.%d", template="check")
    documents = numbered(4)
    documents[0]["@timestamp"] = documents[1]["@timestamp"] = "2026-11-24T23:59:59Z"
    block = "/events-2026.11.24/_settings"
    await asyncio.to_thread(node.ask, "PUT", "/events-2026.11.24")
    await asyncio.to_thread(node.ask, "PUT", block, {"index.blocks.write": True})

    def mend() -> None:
        node.ask("PUT", block, {"index.blocks.write": None})

    assert await line.waits_until(events_of(documents), mend) == 0
    assert await held(node, "events-2026.11.24") == documents[:2]
    assert await held(node, "events-2026.11.25") == documents[2:]


async def test_a_missing_pipeline_and_a_missing_index_wait(node: OpenSearch, make: Any) -> None:
    """Faults that every event would meet bury none."""
    pipeline = "/_ingest/pipeline/enrich"
    line = make(target="piped", template="none", pipeline="enrich")
    assert await line.waits_until(events_of(numbered(3)), lambda: node.ask("PUT", pipeline, {"processors": []})) == 0
    setting = "/_cluster/settings"
    await asyncio.to_thread(node.ask, "PUT", setting, {"persistent": {"action.auto_create_index": "false"}})

    def mend() -> None:
        node.ask("PUT", setting, {"persistent": {"action.auto_create_index": None}})

    assert await make(target="missing", template="none").waits_until(events_of(numbered(3)), mend) == 0
    assert len(await held(node, "piped")) == len(await held(node, "missing")) == 3


@pytest.mark.long
async def test_killed_in_between(node: OpenSearch, make: Any) -> None:
    """SIGKILL: what was answered is there, the rest comes when it is back."""
    line = make(target="killed", template="none")
    assert await line.deliver(events_of(numbered(500))) == 0
    await asyncio.to_thread(node.kill)
    assert await line.waits_until(events_of(numbered(500, first=250), first=250), node.start) == 0
    assert len(await held(node, "killed")) == 750
