"""Pools for tests, closed at the end, and what they say."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics
from ndcollector.outputs import OutputContext
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.discovery import Discovery
from ndcollector.traffic.pool import Pool
from ndcollector.traffic.request import Request

POST = Request("POST", "/in", b"events")


def context(metrics: Metrics | None = None) -> OutputContext:
    return OutputContext(state_dir=Path("unused"), metrics=metrics or Metrics(), clock=time.time)


@asynccontextmanager
async def pool(
    *urls: str, metrics: Metrics | None = None, discovery: Discovery | None = None, **settings: Any
) -> AsyncIterator[Pool]:
    """To these endpoints, one after the other unless told otherwise."""
    config = HttpOutputConfig(type="test", urls=urls, **{"balance": "ordered", **settings})
    made = Pool("siem", config, context(metrics), discovery=discovery)
    try:
        yield made
    finally:
        await made.aclose()


async def refusal(made: Pool, request: Request = POST) -> Unavailable:
    """What the exchange raises."""
    with pytest.raises(Unavailable) as caught:
        await made(request)
    return caught.value


def requests_of(metrics: Metrics, result: str) -> float:
    """How many requests ended so, at all endpoints of the test's pool."""
    found = metrics.registry.collect()
    samples = [sample for family in found for sample in family.samples]
    return sum(
        sample.value
        for sample in samples
        if sample.name == "nd_output_endpoint_requests_total" and sample.labels["result"] == result
    )
