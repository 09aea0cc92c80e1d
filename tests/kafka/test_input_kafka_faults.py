"""The kafka input while brokers die, freeze and move, and while the collector is killed: nothing is lost, ever."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from collector_process import Certificates, CollectorProcess
from kafka_reader import Reader, number, numbered, produce
from services.kafka import Cluster

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]


async def test_a_broker_that_is_killed_and_comes_back(kafka_alone: Cluster, topic: str) -> None:
    """Read a part, lose the only broker, get it back: the rest comes, and at most the last second twice."""
    kafka_alone.create_topic(topic, partitions=2)
    await produce(kafka_alone.bootstrap(), topic, numbered(2000))
    async with Reader(kafka_alone.bootstrap(), topic) as reader:
        await reader.until_values(2000)
        await asyncio.to_thread(kafka_alone.nodes[0].kill)
        await asyncio.to_thread(kafka_alone.nodes[0].start)
        await produce(kafka_alone.bootstrap(), topic, numbered(2000, first=2000))
        await reader.until_values(4000)
    repeated = len(reader.values) - 4000
    assert set(map(number, reader.values)) == set(range(4000))
    assert repeated <= reader.sample("nd_input_repeated_events_total")


async def test_a_frozen_broker_is_waited_for(
    kafka_alone: Cluster, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections stay open and nothing answers: it is said, and reading goes on after the thaw."""
    kafka_alone.create_topic(topic)
    await produce(kafka_alone.bootstrap(), topic, numbered(100))
    async with Reader(kafka_alone.bootstrap(), topic, request_timeout=1) as reader:
        await reader.until_values(100)
        kafka_alone.nodes[0].freeze()
        await reader.until(lambda: "not reading" in caplog.text, "warning")
        kafka_alone.nodes[0].thaw()
        await produce(kafka_alone.bootstrap(), topic, numbered(100, first=100))
        await reader.until_values(200)


async def test_leaders_move_and_addresses_change(three_nodes: Cluster, topic: str) -> None:
    """Each of three brokers in turn is killed or replaced under another address while values flow."""
    three_nodes.create_topic(topic, partitions=6, replication=3, min_insync_replicas="2")
    async with Reader(three_nodes.bootstrap(), topic, request_timeout=2) as reader:
        for turn, node in enumerate(three_nodes.nodes):
            await produce(three_nodes.bootstrap(), topic, numbered(1000, first=turn * 1000))
            await reader.until_values(turn * 1000 + 500)
            if turn == 1:
                await asyncio.to_thread(node.move)
            else:
                await asyncio.to_thread(node.kill)
                await asyncio.to_thread(node.start)
        await produce(three_nodes.bootstrap(), topic, numbered(1000, first=3000))
        await reader.until_values(4000)
    assert set(map(number, reader.values)) == set(range(4000))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """The collector's own."""
    return Certificates.make(tmp_path / "pki")


def _collector(directory: Path, certificates: Certificates, kafka: Cluster, topic: str, form: str) -> CollectorProcess:
    bus = {"type": "kafka", "bootstrap_servers": kafka.bootstrap().split(","), "topics": [topic], "group": topic}
    bus["session_timeout"] = "1s"  # how long the dead one's partitions are kept for it
    return CollectorProcess(directory, certificates, settings={"inputs": {"bus": {**bus, "format": form}}})


def _numbers(collector: CollectorProcess) -> Counter[int]:
    return Counter(int(event["message"].rpartition(" ")[2]) for event in collector.events())


async def test_kill_9_of_the_collector_loses_nothing(
    kafka: Cluster, topic: str, tmp_path: Path, certificates: Certificates
) -> None:
    """Killed in the middle of its reading, again and again; what comes twice is what the spool had after a commit."""
    kafka.create_topic(topic, partitions=4)
    collector = _collector(tmp_path, certificates, kafka, topic, "syslog")
    producing = asyncio.create_task(_flow(kafka, topic, 60))
    dice = random.Random(7)
    try:
        for kill in range(4):
            await asyncio.to_thread(collector.start)
            await asyncio.to_thread(collector.wait_for_lines, 500 + kill * 4000, 30)
            await asyncio.sleep(dice.random() * 0.5)
            collector.kill()
        await producing
        await asyncio.to_thread(collector.start)
        await asyncio.to_thread(collector.wait_for_lines, 30_000, 30)
        await _until(lambda: len(_numbers(collector)) == 30_000)
        assert await asyncio.to_thread(collector.stop) == 0
    finally:
        producing.cancel()
        collector.kill()
    found = _numbers(collector)
    assert set(found) == set(range(30_000))
    # How many come twice depends on the speed between two commits; that none comes twice in one life does not.
    assert max(found.values()) <= 1 + 4, f"{sum(found.values()) - len(found)} events came again over 4 kills"


async def _flow(kafka: Cluster, topic: str, portions: int) -> None:
    for portion in range(portions):
        values = [b"<34>1 - fw-%d app - - - n %d" % (n % 7, n) for n in range(portion * 500, portion * 500 + 500)]
        await produce(kafka.bootstrap(), topic, values)
        await asyncio.sleep(0.1)


async def _until(ready: Callable[[], bool], timeout_seconds: float = 30) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not ready():
            await asyncio.sleep(0.5)


async def test_events_of_another_collector_pass_unchanged(
    kafka: Cluster, topic: str, tmp_path: Path, certificates: Certificates
) -> None:
    """Collectors chain over the bus: the second one's file holds what the first one wrote, ids and all."""
    kafka.create_topic(topic)
    lines = [
        orjson.dumps({"@timestamp": "2026-11-23T10:00:00Z", "message": f"n {n}", "event": {"id": f"first-{n}"}})
        for n in range(500)
    ]
    await produce(kafka.bootstrap(), topic, [*lines, b"no event"])
    with _collector(tmp_path, certificates, kafka, topic, "ecs") as collector:
        await asyncio.to_thread(collector.wait_for_lines, 501)
        assert collector.metrics()['nd_decode_failed_events_total{stream="security_events"}'] == 1
    written = collector.output.read_bytes().splitlines()
    assert written[:500] == lines
    assert orjson.loads(written[500])["tags"] == ["_parse_failure"]


async def test_a_stop_with_a_frozen_broker_takes_seconds_and_leaves_nothing_open(
    kafka_alone: Cluster, topic: str
) -> None:
    """A reload or a shutdown must not wait for a broker that will not answer, nor leak its connections."""
    kafka_alone.create_topic(topic)
    await produce(kafka_alone.bootstrap(), topic, numbered(10))
    reader = Reader(kafka_alone.bootstrap(), topic, request_timeout=30)
    await reader.start()
    await reader.until_values(10)
    kafka_alone.nodes[0].freeze()
    async with asyncio.timeout(9):
        await reader.stop()
    kafka_alone.nodes[0].thaw()
