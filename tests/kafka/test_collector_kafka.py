"""The whole collector with Kafka behind it: dead brokers delay nobody, and kills lose nothing that was durable."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import ConsumerRecord
from collector_process import Certificates, CollectorProcess
from collector_site import Site
from kafka_output import filed_ids, numbers, order_faults
from kafka_reader import numbered, produce
from kafka_topic import read_topic
from services.kafka import Cluster

from tests.e2e.test_kill_collector import Sender, _client_context

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]
DELIVERED = 'nd_output_delivered_events_total{{output="{}",stream="security_events"}}'
PENDING = 'nd_output_pending_events{{output="{}",stream="security_events"}}'


def bus(cluster: Cluster, topic: str, **settings: Any) -> dict[str, Any]:
    """The outputs of a configuration: `bus`, impatient so that tests need not wait."""
    patience = {"request_timeout": "2s", "timeout": "10s"}
    patience |= {"retry": {"maximum": "500ms"}, "breaker": {"open_for": "500ms"}}
    kafka = {"type": "kafka", "bootstrap_servers": cluster.bootstrap().split(","), "topics": {"security_events": topic}}
    return {"bus": {**kafka, **patience, **settings}}


def stands_on(cluster: Cluster, topic: str) -> list[ConsumerRecord]:
    """Every record of the topic."""
    return asyncio.run(read_topic(cluster.bootstrap(), topic))


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_broker_that_is_gone_delays_nobody_and_gets_everything_when_it_is_back(
    kafka_alone: Cluster, topic: str, tmp_path: Path, how: str
) -> None:
    """Law 4: syslog is accepted and the file written meanwhile; then all arrives, in order, once."""
    kafka_alone.create_topic(topic, partitions=3)
    [node] = kafka_alone.nodes
    site = Site(tmp_path / "site", outputs=bus(kafka_alone, topic))
    with site.collector:
        site.send(1000)
        site.wait_for_metric(DELIVERED.format("bus"), 1000)
        (node.kill if how == "killed" else node.freeze)()
        site.send(5000, first=1000)
        site.collector.wait_for_lines(6000)
        site.wait_for_metric(DELIVERED.format("archive"), 6000)
        assert site.collector.metrics()[PENDING.format("bus")] == 5000
        site.wait_for_log("not delivering")
        (node.start if how == "killed" else node.thaw)()
        site.wait_for_metric(DELIVERED.format("bus"), 6000)
        assert site.collector.stop() == 0
    assert "received 6000 · delivered 6000 · dropped 0" in site.log()[-1]["message"]
    records = stands_on(kafka_alone, topic)
    assert numbers(records) == list(range(6000))


def test_a_missing_topic_of_one_stream_holds_back_that_stream_only(
    kafka: Cluster, topic: str, tmp_path: Path
) -> None:
    """The other stream of the same output never waits; what waits, and why, is shown and said; nothing is lost."""
    for name in (topic, f"{topic}-source"):
        kafka.create_topic(name)
    outputs = bus(kafka, topic)
    outputs["bus"]["topics"]["alerts"] = f"{topic}-alerts"
    source = {"type": "kafka", "bootstrap_servers": kafka.bootstrap().split(","), "topics": [f"{topic}-source"]}
    alerts = {**source, "group": topic, "format": "syslog", "stream": "alerts"}
    site = Site(tmp_path / "site", inputs={"alarms": alerts}, outputs=outputs)
    states = [f'nd_output_breaker_state{{output="bus",stream="{stream}"}}' for stream in ("alerts", "security_events")]
    with site.collector:
        asyncio.run(produce(kafka.bootstrap(), f"{topic}-source", numbered(200)))
        site.wait_for_log("breaker open for stream alerts")
        for first in range(0, 1000, 100):
            site.send(100, first=first)
        site.wait_for_metric(DELIVERED.format("bus"), 1000)
        found = site.collector.metrics()
        assert found[states[0]] > 0  # half open while a probe is under way
        assert found[states[1]] == 0
        assert found['nd_output_pending_events{output="bus",stream="alerts"}'] == 200
        table = site.command("top", "--once", "--interval", "0.2").stdout
        rows = {row.split()[2]: row for row in table.splitlines() if row.startswith("bus")}
        assert "closed" in rows["security_events"]
        assert "open" in rows["alerts"]
        kafka.create_topic(f"{topic}-alerts")
        site.wait_for_metric('nd_output_delivered_events_total{output="bus",stream="alerts"}', 200)
        assert site.collector.stop() == 0
    said = [line["message"] for line in site.log() if line["logger"] == "bus"]
    assert any(f"{topic}-alerts" in line for line in said)
    assert not [line for line in said if "security_events" in line]
    assert numbers(stands_on(kafka, topic)) == list(range(1000))
    assert len(stands_on(kafka, f"{topic}-alerts")) == 200


def test_an_event_too_large_for_the_topic_becomes_a_dead_letter(
    kafka: Cluster, topic: str, tmp_path: Path
) -> None:
    """It is kept and counted; the others arrive."""
    kafka.create_topic(topic, max_message_bytes="9000")
    site = Site(tmp_path / "site", outputs=bus(kafka, topic, compression="none"))
    with site.collector:
        with site.connect() as connection:
            for size in (10, 20_000, 10):
                connection.sendall(b"<34>1 - host app - - - " + b"x" * size + b"\n")
            connection.unwrap()
        site.wait_for_metric(DELIVERED.format("bus"), 2)
        assert site.collector.stop() == 0
    letters = (tmp_path / "site" / "state" / "dead_letters" / "bus.ndjson").read_bytes().splitlines()
    assert [orjson.loads(letter)["sequence"] for letter in letters] == [1]
    assert numbers(stands_on(kafka, topic)) == [0, 2]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.long)])
def test_kills_of_collector_and_broker_lose_nothing_durable(
    kafka_alone: Cluster, topic: str, tmp_path: Path, kills: int
) -> None:
    """Between produce and cursor, or anywhere else: every event that the file has is on the topic, in the same order.

    Doubles are allowed (at least once) and have the same event.id; their number is printed.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    kafka_alone.create_topic(topic, partitions=3)
    [node] = kafka_alone.nodes
    settings = {"spool": {"segment_bytes": "1MiB"}, "outputs": bus(kafka_alone, topic)}
    collector = CollectorProcess(tmp_path / "site", Certificates.make(tmp_path / "pki"), settings=settings)
    collector.start()
    context = _client_context(collector.certificates)
    senders = [Sender(f"s{i}", port=collector.ports[0], context=context, seed=seed + i) for i in range(2)]
    for sender in senders:
        sender.start()
    for _ in range(kills):
        time.sleep(moments.uniform(0.1, 1.0))  # the random moment itself
        if moments.random() < 0.25:
            node.kill()
            time.sleep(moments.uniform(0, 0.5))
            node.start()
        else:
            collector.kill()
            collector.start()
    for sender in senders:
        sender.stop()
    collector.process.wait_until(lambda: collector.pending() == 0, "empty backlog", 120)
    assert collector.stop() == 0
    filed = filed_ids(collector.output)
    records = stands_on(kafka_alone, topic)
    found = [orjson.loads(record.value)["event"]["id"] for record in records]
    print(f"{len(filed)} events, {len(found) - len(set(found))} of them twice on the topic")
    assert len(filed) > 1000
    assert set(found) == set(filed)
    assert order_faults(records) == []
