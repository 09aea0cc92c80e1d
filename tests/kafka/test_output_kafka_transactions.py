"""Exactly once into Kafka: what a read_committed consumer sees, whatever is killed, cancelled or forgotten."""

import asyncio
import random
import time
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from collector_process import Certificates, CollectorProcess
from kafka_output import (
    DECODER,
    RECEIVED_AT_NS,
    batch,
    deliver,
    filed_ids,
    message,
    numbered,
    numbers,
    opened,
    order_faults,
)
from kafka_topic import read_topic
from services.kafka import Cluster
from test_collector_kafka import bus

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section, pack_body
from ndcollector.outputs import kafka
from tests.e2e.test_kill_collector import Sender, _client_context

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]
COMMITTED = {"isolation_level": "read_committed"}


async def committed(cluster: Cluster, topic: str) -> list[int]:
    """The sequences that a read_committed consumer sees, sorted."""
    return sorted(numbers(await read_topic(cluster.bootstrap(), topic, **COMMITTED)))


async def test_a_process_that_forgot_its_cursor_sends_nothing_twice(kafka: Cluster, topic: str) -> None:
    """Killed between the commit in Kafka and the save of the local cursor: the later one counts."""
    kafka.create_topic(topic, partitions=3)
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        await deliver(output, numbered(range(100)))  # the first group of a cluster finds no coordinator yet
        await output.send(numbered(range(100, 200)))
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        await output.send(numbered(range(100, 150)))  # cut otherwise than before
        await output.send(numbered(range(150, 300)))
    assert await committed(kafka, topic) == list(range(300))
    assert order_faults(await read_topic(kafka.bootstrap(), topic, **COMMITTED)) == []


async def test_a_cursor_that_kafka_forgot_is_not_zero(kafka: Cluster, topic: str) -> None:
    """Offsets expire in a quiet week; then the local cursor counts, and what it sends is sent."""
    kafka.create_topic(topic)
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        await deliver(output, numbered(range(100)))
    groups = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
    kafka.tool(groups, "--delete-offsets", "--group", "bus-spool", "--topic", topic)
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        await output.send(numbered(range(100, 200)))
    assert await committed(kafka, topic) == list(range(200))


@pytest.mark.parametrize("is_session_new", [False, True])
async def test_a_commit_that_was_answered_and_not_carried_out_is_sent_again(
    kafka: Cluster, topic: str, is_session_new: bool
) -> None:
    """A broker killed between the two may forget it: the cursor on our disk waits until Kafka's has moved, too."""
    kafka.create_topic(topic, partitions=3)
    async with opened(kafka.bootstrap(), topic, transactional=True, request_timeout="1s") as output:
        await output.sync()  # nothing was sent, nothing is asked
        await deliver(output, numbered(range(100)))
        await output.sync()
        await output.send(numbered(range(100, 200)))
        place = TopicPartition(topic, 0)
        async with AIOKafkaConsumer(
            bootstrap_servers=kafka.bootstrap(), group_id="bus-spool", enable_auto_commit=False
        ) as forgetting:
            forgetting.assign([place])
            await forgetting.commit({place: (100, str(RECEIVED_AT_NS // 10**6))})
        if is_session_new:  # what comes behind it must not carry the cursor over the gap
            await output._lines["security_events"]._drop_session()
            with pytest.raises(Unavailable, match="have not carried out a transaction of bus-spool"):
                await output.send(numbered(range(200, 300)))
        with pytest.raises(Unavailable, match="have not carried out a transaction of bus-spool"):
            await output.sync()
        await output.send(numbered(range(100)))  # as the machine does: from the last place that it has on disk
        await output.send(numbered(range(100, 200)))
        await output.sync()
    assert await committed(kafka, topic) == sorted([*range(200), *range(100, 200)])


async def test_a_cancelled_send_is_undone_or_done_and_then_completed(kafka: Cluster, topic: str) -> None:
    """A stop at any moment of a transaction: the next send knows which it was."""
    kafka.create_topic(topic, partitions=3)
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        await deliver(output, numbered(range(50)))
        for turn in range(1, 9):
            events = numbered(range(turn * 50, turn * 50 + 50))
            sending = asyncio.ensure_future(output.send(events))
            await asyncio.wait({sending}, timeout=0.004 * turn)  # some before the commit, some amid, some after
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await deliver(output, events)
    assert await committed(kafka, topic) == list(range(450))


async def test_an_event_too_large_is_named_before_anything_passes_it(kafka: Cluster, topic: str) -> None:
    """Else a crash before its dead letter is written would lose it behind the cursor in Kafka."""
    kafka.create_topic(topic)
    events = batch([message(n, text="x" * 60_000 if n == 3 else "") for n in range(10)])
    async with opened(kafka.bootstrap(), topic, transactional=True, max_message_bytes="32KiB") as output:
        with pytest.raises(Rejected) as refusal:
            await output.send(events)
        assert refusal.value.indexes == [3]
        assert await committed(kafka, topic) == []
        await output.send(events.select([n for n in range(10) if n != 3]))
    assert await committed(kafka, topic) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


async def test_an_event_that_only_the_broker_refuses_is_found(kafka: Cluster, topic: str) -> None:
    """The transaction is undone, and done again in smaller batches until the guilty one stands alone."""
    kafka.create_topic(topic, partitions=2, max_message_bytes="20000")
    noise = random.Random(1).randbytes(40_000).hex()
    events = batch([message(n, host=f"h{n % 5}", text=noise if n == 7 else "") for n in range(40)])
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        with pytest.raises(Rejected) as refusal:
            await output.send(events)
        assert refusal.value.indexes == [7]
        await output.send(events.select([n for n in range(40) if n != 7]))
    assert await committed(kafka, topic) == [n for n in range(40) if n != 7]


async def test_a_replay_is_sent_though_the_cursor_is_past_it(kafka: Cluster, topic: str) -> None:
    """An operator asked for these again; the cursor stays."""
    kafka.create_topic(topic)
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        await deliver(output, numbered(range(100)))
        await output.send(replace(numbered(range(20)), replay=True))
        await output.send(numbered(range(50, 150)))
    assert await committed(kafka, topic) == sorted([*range(150), *range(20)])


async def test_events_of_agents_with_clocks_of_their_own_are_not_sent_twice(kafka: Cluster, topic: str) -> None:
    """The last one before a crash may say that it is the oldest: what was received when is ours to say."""
    kafka.create_topic(topic)
    said = ["2026-01-03T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"]
    lines = [orjson.dumps({"event": {"created": when, "sequence": n}}) + b"\n" for n, when in enumerate(said)]
    section = Section(Origin("agents", "192.0.2.9", 0), Framing.LF, Flags.NONE, sum(map(len, lines)), len(lines))
    body = b"".join(pack_body(Batch("security_events", "ecs", RECEIVED_AT_NS, [section], [b"".join(lines)])))
    place = {"stream": "security_events", "spool_id": "spool", "sequence": 0, "received_at_ns": RECEIVED_AT_NS}
    events = DECODER.decode(body, **place)
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        await deliver(output, events)
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        await output.send(events.select([0, 1]))  # cut otherwise than before
        await output.send(events.select([2]))
    assert await committed(kafka, topic) == [0, 1, 2]


async def test_sequences_given_out_twice_by_a_damaged_spool_are_not_taken_for_delivered(
    kafka: Cluster, topic: str
) -> None:
    """Events received after the last commit are new, whatever their number says."""
    kafka.create_topic(topic)
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        await deliver(output, batch([message(n) for n in range(10)]))
        later = batch([message(n) for n in range(5)], received_at_ns=time.time_ns() + 10**9)
        await output.send(later)
    assert len(await committed(kafka, topic)) == 15


async def test_a_copy_of_the_collector_does_not_make_us_take_its_cursor_for_ours(kafka: Cluster, topic: str) -> None:
    """A cloned machine has our spool's id and numbers other events with it: what it delivered is not what we have."""
    kafka.create_topic(topic)
    async with opened(kafka.bootstrap(), topic, transactional=True) as output:
        await deliver(output, batch([message(n, host="ours") for n in range(10)]))
        async with opened(kafka.bootstrap(), topic, transactional=True) as copy:
            await deliver(copy, batch([message(n, host="copy") for n in range(10, 90)], first=10))
        ours = batch([message(n, host="ours") for n in range(10, 20)], first=10)
        for words in ("another producer", "moved on by another collector", "moved on by another collector"):
            with pytest.raises(Unavailable, match=words):
                await output.send(ours)
    assert await committed(kafka, topic) == list(range(90))


async def test_certificates_that_cannot_be_read_are_waited_for(
    kafka: Cluster, topic: str, kafka_certificates: Certificates, tmp_path: Path
) -> None:
    """Files that are being renewed may be away when the cursor is asked for: no fault of ours, and no traceback."""
    kafka.create_topic(topic)
    certificate = tmp_path / "client.crt"
    certificate.write_bytes(kafka_certificates.client_cert.read_bytes())
    tls = {"ca_file": str(kafka_certificates.ca), "key_file": str(kafka_certificates.client_key)}
    tls["cert_file"] = str(certificate)
    async with opened(kafka.bootstrap("SSL"), topic, transactional=True, tls=tls) as output:
        await deliver(output, numbered(range(10)))
        kept = certificate.rename(tmp_path / "kept")
        with pytest.raises(Unavailable, match="tls: "):
            await output.sync()
        kept.rename(certificate)
        await deliver(output, numbered(range(10)))


def test_several_sends_under_way_are_refused_in_words() -> None:
    """A batch may be committed only after the dead letters of those before it."""
    servers = {"bootstrap_servers": ["k:9092"], "transactional": True}
    assert kafka.Config.model_validate(servers).in_flight == 1
    with pytest.raises(ValueError, match="must be 1 with transactional"):
        kafka.Config.model_validate({**servers, "in_flight": 4})


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.long)])
def test_kills_of_collector_and_broker_write_every_event_exactly_once(
    kafka_alone: Cluster, topic: str, tmp_path: Path, kills: int
) -> None:
    """The mode's promise: what the file has, a read_committed consumer sees once, in the same order."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    kafka_alone.create_topic(topic, partitions=3)
    [node] = kafka_alone.nodes
    outputs = bus(kafka_alone, topic, transactional=True)
    settings = {"spool": {"segment_bytes": "1MiB"}, "outputs": outputs}
    collector = CollectorProcess(tmp_path / "site", Certificates.make(tmp_path / "pki"), settings=settings)
    collector.start()
    context = _client_context(collector.certificates)
    sender = Sender("s", port=collector.ports[0], context=context, seed=seed)
    sender.start()
    for _ in range(kills):
        time.sleep(moments.uniform(0.1, 1.5))  # the random moment itself
        if moments.random() < 0.25:
            node.kill()
            time.sleep(moments.uniform(0, 0.5))
            node.start()
        else:
            collector.kill()
            collector.start()
    sender.stop()
    collector.process.wait_until(lambda: collector.pending() == 0, "empty backlog", 120)
    assert collector.stop() == 0
    filed = filed_ids(collector.output)
    records = asyncio.run(read_topic(kafka_alone.bootstrap(), topic, **COMMITTED))
    found = [orjson.loads(record.value)["event"]["id"] for record in records]
    assert len(filed) > 1000
    assert sorted(found) == sorted(filed)
    assert order_faults(records) == []
