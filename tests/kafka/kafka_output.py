"""The kafka output in this process, real events for it, and what a topic holds afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from aiokafka import ConsumerRecord

from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section, pack_body
from ndcollector.outputs import OutputContext, kafka

RECEIVED_AT_NS = (int(time.time()) - 3_600) * 10**9 + 123_456_789
"""An hour ago: a broker deletes what is older than its retention, amid a test, refuses what is of the future, and
forgets with a restart the producers whose newest record is a day old (producer.id.expiration.ms)."""

DECODER = make_decoder(DecodeSettings(observer_name="c", keep_original="on_error", timezone="UTC", origins=()))


def message(number: int, *, host: str = "host-1", text: str = "") -> bytes:
    """An RFC 5424 message with a number."""
    return f"<34>1 2019-02-03T22:14:15.003Z {host} app 7 - - number {number}{text}".encode()


def batch(messages: Sequence[bytes], *, first: int = 0, received_at_ns: int = RECEIVED_AT_NS) -> EventBatch:
    """These messages as the decoder makes events of them; sequences from `first`."""
    payload = b"".join(b"%d %s" % (len(one), one) for one in messages)
    origin = Origin("syslog_tls", "192.0.2.7", 40000)
    section = Section(origin, Framing.OCTET_COUNTED, Flags.NONE, len(payload), len(messages))
    body = b"".join(pack_body(Batch("security_events", "syslog", received_at_ns, [section], [payload])))
    return DECODER.decode(
        body, stream="security_events", spool_id="spool", sequence=first, received_at_ns=received_at_ns
    )


def numbered(numbers: Iterable[int], *, hosts: int = 7, text: str = "") -> EventBatch:
    """Events numbered by their sequences, from several hosts in turn."""
    found = list(numbers)
    return batch([message(n, host=f"host-{n % hosts}", text=text) for n in found], first=found[0])


@asynccontextmanager
async def opened(bootstrap: str, topic: str, **settings: Any) -> AsyncIterator["kafka.KafkaOutput"]:
    """The output for the stream security_events, impatient so that tests need not wait."""
    written = {"request_timeout": "3s", "timeout": "20s", **settings}
    config = kafka.Config.model_validate(
        {"bootstrap_servers": bootstrap.split(","), "topics": {"security_events": topic}, **written}
    )
    metrics = Metrics()
    output = kafka.build("bus", config, OutputContext(state_dir=Path("/nowhere"), metrics=metrics, clock=time.time))
    output.test_metrics = metrics  # type: ignore[attr-defined]  # for resent()
    try:
        yield output
        await output.sync()  # transactions: a commit is answered before consumers see it
    finally:
        await output.aclose()


def resent(output: Any) -> float:
    """Events sent again though they may have arrived."""
    found: float = output.test_metrics.registry.get_sample_value("nd_output_resent_events_total", {"output": "bus"})
    return found


async def deliver(output: "kafka.KafkaOutput", events: EventBatch, *, seconds: float = 60) -> list[str]:
    """Send as the machine does, until the brokers have it; the reasons that it was given on the way."""
    reasons = []
    async with asyncio.timeout(seconds):
        while True:
            try:
                await output.send(events)
            except Unavailable as error:
                reasons.append(error.reason)
                await asyncio.sleep(0.1)
            else:
                return reasons


def numbers(records: Iterable[ConsumerRecord]) -> list[int]:
    """The sequences of the events in these records."""
    return [orjson.loads(record.value)["event"]["sequence"] for record in records]


def filed_ids(output: Path) -> list[str]:
    """The event.id of every line of a file output, in order; the events of a hundred kills need not be in memory."""
    with output.open("rb") as lines:
        return [orjson.loads(line)["event"]["id"] for line in lines]


def order_faults(records: Iterable[ConsumerRecord]) -> list[tuple[str, int, int]]:
    """Where a host's events came out of order, the first copy of each counted."""
    latest: dict[str, int] = {}
    seen: set[int] = set()
    faults = []
    for record in records:
        event = orjson.loads(record.value)
        host, sequence = event["host"]["name"], event["event"]["sequence"]
        if sequence in seen:
            continue
        seen.add(sequence)
        if sequence < latest.get(host, -1):
            faults.append((host, latest[host], sequence))
        latest[host] = sequence
    return faults
