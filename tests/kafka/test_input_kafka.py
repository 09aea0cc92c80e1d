"""The kafka input against a real broker: everything once while all is well, offsets behind the spool."""

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from collector_process import Certificates
from kafka_reader import Reader, number, numbered, produce
from kafka_user import PASSWORD, USER
from services.kafka import Cluster

from ndagent.wire.record import Flags, Framing
from ndcollector.inputs import kafka_group

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]


async def test_every_value_becomes_one_message_in_its_partitions_order(kafka: Cluster, topic: str) -> None:
    """Who said it is the input, the brokers and the topic; a key's values stay in order."""
    kafka.create_topic(topic, partitions=3)
    await produce(kafka.bootstrap(), topic, numbered(5000))
    async with Reader(kafka.bootstrap(), topic) as reader:
        await reader.until_values(5000)
        await reader.until(lambda: reader.sample("nd_input_lag_events") == 0, "end of the lag")
    assert Counter(reader.values) == Counter(numbered(5000))
    for host in range(7):
        numbers = [number(value) for value in reader.values if b"fw-%d " % host in value]
        assert numbers == sorted(numbers)
    origins = {(section.origin.input, section.origin.address) for batch in reader.batches for section in batch.sections}
    assert origins == {("bus", f"{kafka.bootstrap()}/{topic}")}
    assert reader.sample("nd_input_received_events_total") == 5000


async def test_values_of_any_bytes_come_as_they_are(kafka: Cluster, topic: str) -> None:
    """Line feeds inside, empty ones, too long ones, none at all."""
    kafka.create_topic(topic)
    long = b"<34>1 - h " + b"y" * 1000
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap()) as producer:
        for value in (b"two\nlines", b"", long, None, b"last"):
            await producer.send_and_wait(topic, value, key=b"key")
    async with Reader(kafka.bootstrap(), topic, max_message_bytes=600) as reader:
        await reader.until(lambda: b"last" in reader.values, "last value")
    assert reader.values == [b"two\nlines", b"", long[:600], b"last"]
    (cut,) = [s for batch in reader.batches for s in batch.sections if s.flags & Flags.TRUNCATED]
    assert (cut.framing, cut.length) == (Framing.WHOLE, 600)
    assert reader.sample("nd_input_truncated_events_total") == 1
    assert reader.sample("nd_input_dropped_events_total", reason="no_value") == 1
    assert reader.sample("nd_input_received_events_total") == 5


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_batch_that_unpacks_to_far_more_than_it_is_stops_its_partition_only(
    kafka: Cluster, topic: str, compression: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A bomb: what stands before it and beside it comes, it stays where it is, and a person is told the place."""
    kafka.create_topic(topic, partitions=2, max_message_bytes="8000000")
    settings = {"compression_type": compression, "max_request_size": 2**26, "max_batch_size": 2**26}
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap(), **settings) as producer:
        for value in (b"before", b"x" * 60_000_000, b"behind"):
            await producer.send_and_wait(topic, value, partition=0)
        async with Reader(kafka.bootstrap(), topic, unpacked_bytes="1MiB") as reader:
            await reader.until(lambda: "unpacks to more than" in caplog.text, "word of it")
            await producer.send_and_wait(topic, b"beside", partition=1)
            await reader.until_values(2)
    assert sorted(reader.values) == [b"before", b"beside"]
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert f"not reading {topic}/0 any further: the batch at offset 1 unpacks to more" in said
    async with Reader(kafka.bootstrap(), topic, unpacked_bytes="64MiB") as reader:
        await reader.until(lambda: b"behind" in reader.values, "what is behind it")


async def test_a_stop_commits_so_that_nothing_comes_twice(kafka: Cluster, topic: str) -> None:
    """Stop and start in good order: each value once over both lives."""
    kafka.create_topic(topic, partitions=2)
    await produce(kafka.bootstrap(), topic, numbered(300))
    async with Reader(kafka.bootstrap(), topic) as first:
        await first.until_values(300)
    await produce(kafka.bootstrap(), topic, numbered(100, first=300))
    async with Reader(kafka.bootstrap(), topic) as second:
        await second.until_values(100)
    assert sorted(map(number, first.values + second.values)) == list(range(400))


async def test_nothing_is_committed_before_the_spool_has_it(kafka: Cluster, topic: str) -> None:
    """A crash while the spool was still writing: the next life gets the value again."""
    kafka.create_topic(topic)
    await produce(kafka.bootstrap(), topic, numbered(10))
    reader = Reader(kafka.bootstrap(), topic)
    reader.door.clear()
    await reader.start()
    await reader.until(lambda: reader.waiting > 0, "accept")
    await reader.stop()  # the spool never answers: the stop gives up on it, not on the events
    assert reader.values == []
    async with Reader(kafka.bootstrap(), topic) as again:
        await again.until_values(10)
    assert sorted(map(number, again.values)) == list(range(10))


async def test_a_full_spool_stops_the_fetching_and_nothing_is_lost(kafka: Cluster, topic: str) -> None:
    """50 MB wait on the broker, not in our memory; longer than the group's patience, and we are still its member."""
    kafka.create_topic(topic, partitions=4)
    values = numbered(5000, size=10_000)
    await produce(kafka.bootstrap(), topic, values)
    async with Reader(kafka.bootstrap(), topic, session_timeout=2, fetch_bytes=256 * 1024) as reader:
        reader.door.clear()
        await reader.until(lambda: reader.sample("nd_input_paused") == 1, "pause")
        taken = sum(batch.length for batch in reader.batches)
        await asyncio.sleep(5)  # the time that must pass is what this test is about: two session timeouts
        assert reader.waiting * 2**20 + taken < 8 * 2**20
        reader.door.set()
        await reader.until_values(5000)
        assert reader.sample("nd_input_paused") == 0
    assert Counter(reader.values) == Counter(values)
    assert reader.sample("nd_input_repeated_events_total") == 0


async def test_collectors_of_one_group_share_the_partitions_and_hand_them_over(kafka: Cluster, topic: str) -> None:
    """A second one joins and the first one leaves while values flow: each value comes once."""
    kafka.create_topic(topic, partitions=4)
    async with Reader(kafka.bootstrap(), topic) as second:
        await second.stop()
        async with Reader(kafka.bootstrap(), topic) as first:
            producing = asyncio.create_task(_trickle(kafka.bootstrap(), topic, 40))
            await first.until_values(200)
            await second.start()
            await second.until_values(100)
        await producing
        await second.until(lambda: len(set(first.values + second.values)) == 4000, "all 4000")
    assert Counter(first.values + second.values) == Counter(numbered(4000))
    assert first.sample("nd_input_repeated_events_total") == 0


async def _trickle(bootstrap: str, topic: str, portions: int) -> None:
    for portion in range(portions):
        await produce(bootstrap, topic, numbered(100, first=100 * portion))
        await asyncio.sleep(0.1)


async def test_a_rebalance_behind_a_full_spool_repeats_and_says_so(kafka: Cluster, topic: str) -> None:
    """Our spool waits longer than the group: the other one gets the partitions, what we had is counted as repeated."""
    kafka.create_topic(topic, partitions=1)
    await produce(kafka.bootstrap(), topic, numbered(50))
    first = Reader(kafka.bootstrap(), topic, session_timeout=2)
    first.door.clear()
    await first.start()
    await first.until(lambda: first.waiting > 0, "accept")
    async with first, Reader(kafka.bootstrap(), topic, session_timeout=2) as second:
        await asyncio.sleep(3)  # the group's patience
        first.door.set()
        await first.until(lambda: len(first.values) >= 50, "what it had")
        await first.until(lambda: first.sample("nd_input_repeated_events_total") == 50, "count")
        await second.until(lambda: len(first.values) + len(second.values) >= 100, "repetition")
    assert set(first.values) == set(numbered(50))


async def test_records_that_expired_unread_are_counted_and_said(
    kafka: Cluster, topic: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Retention was faster than we were: that is a loss, and a loss is never silent."""
    kafka.create_topic(topic)
    await produce(kafka.bootstrap(), topic, numbered(10))
    async with Reader(kafka.bootstrap(), topic) as reader:
        await reader.until_values(10)
    await produce(kafka.bootstrap(), topic, numbered(50, first=10))
    offsets = tmp_path / "offsets.json"
    offsets.write_text(json.dumps({"version": 1, "partitions": [{"topic": topic, "partition": 0, "offset": 40}]}))
    kafka.tool("org.apache.kafka.tools.DeleteRecordsCommand", f"--offset-json-file={offsets}")
    with caplog.at_level(logging.ERROR):
        async with Reader(kafka.bootstrap(), topic) as reader:
            await reader.until_values(20)
    assert sorted(map(number, reader.values)) == list(range(40, 60))
    assert reader.sample("nd_input_dropped_events_total", reason="expired") == 30
    assert reader.sample("nd_input_received_events_total") == 50
    assert f"30 records of {topic}/0 were deleted before they were read" in caplog.text


async def test_only_committed_transactions_are_read(kafka: Cluster, topic: str) -> None:
    """An output that writes transactions takes back what it aborts."""
    kafka.create_topic(topic)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap(), transactional_id=topic) as producer:
        for value, kept in ((b"taken back", False), (b"kept", True)):
            await producer.begin_transaction()
            await producer.send_and_wait(topic, value)
            await (producer.commit_transaction() if kept else producer.abort_transaction())
    async with Reader(kafka.bootstrap(), topic) as reader:
        await reader.until_values(1)
    assert reader.values == [b"kept"]


async def test_latest_begins_behind_what_is_there_and_stays_there(
    kafka: Cluster, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes while a new reader is away, before it has read anything, is not skipped."""
    caplog.set_level(logging.INFO)
    kafka.create_topic(topic)
    await produce(kafka.bootstrap(), topic, numbered(10))
    async with Reader(kafka.bootstrap(), topic, start="latest") as reader:
        await reader.until(lambda: f"beginning with {topic}/0 at offset 10" in caplog.text, "position")
    await produce(kafka.bootstrap(), topic, numbered(5, first=10))
    async with Reader(kafka.bootstrap(), topic, start="latest") as reader:
        await reader.until_values(5)
    assert sorted(map(number, reader.values)) == list(range(10, 15))


async def test_a_topic_that_does_not_exist_yet_is_named_and_waited_for(
    kafka: Cluster, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The input neither ends nor makes the topic; a person does, and reading begins."""
    async with Reader(kafka.bootstrap(), topic) as reader:
        await reader.until(lambda: topic in caplog.text, "warning")
        kafka.create_topic(topic)
        await produce(kafka.bootstrap(), topic, numbered(10))
        await reader.until_values(10)
    assert sum(topic in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING) == 1


async def test_a_missing_topic_does_not_keep_us_from_the_others(
    kafka: Cluster, topic: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named; once a person has made it, it is read as well, without a restart."""
    monkeypatch.setattr(kafka_group, "REFRESH_SECONDS", 0.5)
    other = f"{topic}-other"
    kafka.create_topic(topic)
    await produce(kafka.bootstrap(), topic, numbered(10))
    async with Reader(kafka.bootstrap(), topic, topics=[other, topic]) as reader:
        await reader.until_values(10)
        await reader.until(lambda: f"not reading {other}: no such topic" in caplog.text, "warning")
        assert other not in kafka.topics("--list").split()
        kafka.create_topic(other)
        await produce(kafka.bootstrap(), other, numbered(10, first=10))
        await reader.until_values(20)
    assert sorted(map(number, reader.values)) == list(range(20))


@pytest.mark.parametrize("right", ["Describe", "Read"])
async def test_a_topic_that_we_may_not_read_waits_for_a_person(
    kafka: Cluster, topic: str, kafka_certificates: Certificates, caplog: pytest.LogCaptureFixture, right: str
) -> None:
    """The reason names the right; reading begins when it is granted."""
    kafka.create_topic(topic)
    await produce(kafka.bootstrap(), topic, numbered(10))
    client = "CN=device-1,OU=Testing cert #1,O=trustme"
    kafka.deny(client, topic, right)
    files = kafka_certificates
    tls = {"ca_file": str(files.ca), "cert_file": str(files.client_cert), "key_file": str(files.client_key)}
    async with Reader(kafka.bootstrap("SSL"), topic, tls=tls) as reader:
        await reader.until(lambda: f"do not let us read topic {topic}; grant Read on it" in caplog.text, "warning")
        kafka.allow(client, topic, right)
        await reader.until_values(10)


@pytest.mark.parametrize("listener", ["SSL", "SASL_SSL"])
async def test_reads_over_tls_with_certificate_or_password(
    kafka: Cluster, topic: str, kafka_certificates: Certificates, listener: str
) -> None:
    """The connection's settings are those of the output."""
    kafka.create_topic(topic)
    await produce(kafka.bootstrap(), topic, numbered(10))
    files = kafka_certificates
    settings: dict[str, object] = {"tls": {"ca_file": str(files.ca)}}
    if listener == "SSL":
        pair = {"cert_file": str(files.client_cert), "key_file": str(files.client_key)}
        settings = {"tls": {"ca_file": str(files.ca), **pair}}
    else:
        settings["sasl"] = {"mechanism": "SCRAM-SHA-512", "username": USER, "password": PASSWORD}
    async with Reader(kafka.bootstrap(listener), topic, **settings) as reader:
        await reader.until_values(10)
