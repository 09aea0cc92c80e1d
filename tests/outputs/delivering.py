"""An output behind its Delivery, as the machine has it, with sleeps that take no time and its dead letters at hand."""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import Output
from ndagent.core.metrics import Metrics
from ndagent.core.settings import OutputConfig
from ndagent.wire.record import NO_PRIORITY, EventBatch, Origin
from tests.events import SwiftTime

ORIGIN = Origin("syslog_tls", "192.0.2.50", 6514)


def events_of(
    documents: Sequence[dict[str, Any]], *, stream: str = "security_events", first: int = 0, replay: bool = False
) -> EventBatch:
    """These events, numbered from `first`; the host is where the document has {"host": {"hostname": …}} in front."""
    lines = [orjson.dumps(document) + b"\n" for document in documents]
    hosts = [document.get("host", {}).get("hostname", "") for document in documents]
    return EventBatch(
        stream=stream,
        spool_id="spool",
        sequences=range(first, first + len(lines)),
        received_at_ns=1_710_504_000_123_456_000,
        ndjson=b"".join(lines),
        lengths=array("I", map(len, lines)),
        priorities=bytes([NO_PRIORITY]) * len(lines),
        host_offsets=array("I", [line.find(b'"hostname":"') + 12 if b'"hostname":"' in line else 0 for line in lines]),
        host_lengths=array("H", [len(orjson.dumps(host)) - 2 for host in hosts]),
        keys=array("I", [0]) * len(lines),
        origins=array("I", [0]) * len(lines),
        origin_blobs=(ORIGIN.packed,),
        replay=replay,
    )


def numbered(count: int, *, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Documents with the ids event-0, event-1, …"""
    return [
        {"@timestamp": "2026-11-25T10:00:00.25Z", "message": f"message {n}", "event": {"id": f"event-{n}"}, **more}
        for n in range(first, first + count)
    ]


class Line:
    """See the module."""

    def __init__(self, output: Output, config: OutputConfig, directory: Path, metrics: Metrics) -> None:
        self.output = output
        self.metrics = metrics
        self.time = SwiftTime()
        plumbing: dict[str, Any] = {"clock": self.time.clock, "sleep": self.time.sleep, "random": lambda: 0.5}
        self._letters = DeadLetters(directory, output="siem", max_bytes=2**30, clock=lambda: 0.0)
        chain = wrap(output, name="siem", config=config, metrics=metrics, **plumbing)
        self._delivery = Delivery(chain, name="siem", config=config, dead_letters=self._letters, **plumbing)

    async def deliver(self, events: EventBatch) -> int:
        """Return once each is delivered or buried: how many were."""
        return len(await self._delivery.deliver(events))

    def buried(self) -> list[dict[str, Any]]:
        """The dead letters."""
        path = self._letters.path
        return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def metric(self, name: str) -> float:
        """Of this output."""
        return float(self.metrics.registry.get_sample_value(name, {"output": "siem"}) or 0)

    async def waits_until(self, events: EventBatch, mend: Callable[[], None], *, failures: int = 3) -> int:
        """Deliver while something is wrong; that nothing is buried or lost until `mend`, after which all arrives."""
        sending: Awaitable[int] = asyncio.ensure_future(self.deliver(events))
        before = self.metric("nd_output_unavailable_total")
        while self.metric("nd_output_unavailable_total") < before + failures:
            await asyncio.sleep(0)
        assert self.buried() == []
        mend()
        return await sending
