"""The kafka output against a real Apache Kafka: what stands on the topic, who may write it, and what is refused."""

import asyncio
import secrets
from pathlib import Path

import orjson
import pytest
from collector_process import Certificates
from kafka_output import RECEIVED_AT_NS, batch, deliver, message, numbered, numbers, opened, order_faults
from kafka_topic import read_topic
from kafka_user import PASSWORD, USER
from services.kafka import Cluster
from test_kafka_service import Token

from ndagent.core.decoding import join_small
from ndagent.core.interfaces import Rejected, Unavailable

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]
CLIENT = "CN=device-1,OU=Testing cert #1,O=trustme"


async def test_a_java_consumer_reads_what_we_wrote(kafka: Cluster, topic: str) -> None:
    """Key, value, header and time as promised, through the reference implementation."""
    kafka.create_topic(topic, partitions=3)
    events = numbered(range(50), hosts=5)
    async with opened(kafka.bootstrap(), topic, headers=True) as output:
        await output.send(events)
    found = kafka.console_consume(topic, count=50)
    assert sorted(one.value.encode() + b"\n" for one in found) == sorted(events.lines())
    for one in found:
        event = orjson.loads(one.value)
        assert one.key == event["host"]["hostname"]
        assert one.headers == f"event.id:{event['event']['id']}"
        assert one.timestamp_ms == RECEIVED_AT_NS // 10**6  # not 2019, which the device's clock says


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_java_reads_every_compression(kafka: Cluster, topic: str, compression: str) -> None:
    """Codecs are a library's; the frames must be Kafka's."""
    kafka.create_topic(topic)
    async with opened(kafka.bootstrap(), topic, compression=compression) as output:
        await output.send(numbered(range(2000)))
    assert len(kafka.console_consume(topic, count=2000)) == 2000


async def test_partitions_are_those_of_the_java_client_for_ten_thousand_hosts(kafka: Cluster, topic: str) -> None:
    """Else a join with what other producers write falls apart."""
    ours, javas = topic, f"{topic}-java"
    hosts = [f"{secrets.token_hex(1 + number % 9)}.example.net"[: 3 + number % 30] for number in range(9_990)]
    hosts += ['q"uote', "back\\slash", "[::1]", "10.1.2.3", "a", "ab", "abc", "abcd", "h" * 255, "{}"]
    for name in (ours, javas):
        kafka.create_topic(name, partitions=32)
    async with opened(kafka.bootstrap(), ours) as output:
        await output.send(batch([message(n, host=host) for n, host in enumerate(hosts)]))
    kafka.console_produce(javas, [(host, "x") for host in hosts])
    chosen = {record.key: record.partition for record in await read_topic(kafka.bootstrap(), ours)}
    wanted = {record.key: record.partition for record in await read_topic(kafka.bootstrap(), javas)}
    assert len(wanted) > 5_000
    assert chosen == wanted


async def test_hosts_that_are_not_utf8_and_events_without_host_go_where_java_would_put_their_keys(
    kafka: Cluster, topic: str
) -> None:
    """What is hashed is what is written as the key, also where the wire had other bytes."""
    odd = topic + "-java"
    for name in (topic, odd):
        kafka.create_topic(name, partitions=32)
    strange = [message(0).replace(b"host-1", b"h\xff\xfe%d" % n) for n in range(20)] + [message(0, host="-")]
    async with opened(kafka.bootstrap(), topic) as output:
        await output.send(batch(strange))
    found = {record.key.decode(): record.partition for record in await read_topic(kafka.bootstrap(), topic)}
    assert "192.0.2.7" in found
    kafka.console_produce(odd, [(key, "x") for key in found])
    wanted = {record.key.decode(): record.partition for record in await read_topic(kafka.bootstrap(), odd)}
    assert found == wanted


async def test_hosts_keep_their_order_with_many_sends_under_way(kafka: Cluster, topic: str) -> None:
    """Sends overlap; a host's events do not."""
    kafka.create_topic(topic, partitions=5)
    async with opened(kafka.bootstrap(), topic) as output:
        await asyncio.gather(*(output.send(numbered(range(at, at + 500))) for at in range(0, 10_000, 500)))
    records = await read_topic(kafka.bootstrap(), topic)
    assert sorted(numbers(records)) == list(range(10_000))
    assert order_faults(records) == []


async def test_batches_of_a_quiet_hour_keep_the_time_of_each_event(kafka: Cluster, topic: str) -> None:
    """Small batches are joined before they are sent; retention counts from the record's own time."""
    kafka.create_topic(topic)
    came_ns = [RECEIVED_AT_NS - n * 3600 * 10**9 for n in (2, 1, 0)]
    apart = [batch([message(n)], first=n, received_at_ns=came) for n, came in enumerate(came_ns)]
    [joined] = join_small(apart)
    async with opened(kafka.bootstrap(), topic) as output:
        await output.send(joined)
    times = [record.timestamp for record in await read_topic(kafka.bootstrap(), topic)]
    assert times == [came // 10**6 for came in came_ns]


async def test_an_event_larger_than_allowed_is_named_and_the_others_arrive_once(kafka: Cluster, topic: str) -> None:
    """The guilty go to the dead letters; the rest is not sent twice."""
    kafka.create_topic(topic)
    texts = {3: "x" * 60_000, 7: "y" * 60_000}
    events = batch([message(n, text=texts.get(n, "")) for n in range(10)])
    async with opened(kafka.bootstrap(), topic, max_message_bytes="32KiB") as output:
        with pytest.raises(Rejected, match="larger than 32768 bytes") as refusal:
            await output.send(events)
        assert refusal.value.indexes == [3, 7]
        await output.send(events.select([n for n in range(10) if n not in texts]))
    assert numbers(await read_topic(kafka.bootstrap(), topic)) == [0, 1, 2, 4, 5, 6, 8, 9]


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_a_topic_that_takes_less_than_we_are_set_to_gets_smaller_batches(
    kafka: Cluster, topic: str, compression: str
) -> None:
    """max.message.bytes of the topic is respected, whoever set it; what does not fit at all is named."""
    kafka.create_topic(topic, max_message_bytes="20000")
    texts = {5: secrets.token_hex(30_000)}  # compresses to half of it, which is still too large
    events = batch([message(n, text=texts.get(n, " padding" * 20)) for n in range(400)])
    async with opened(kafka.bootstrap(), topic, compression=compression) as output:
        with pytest.raises(Rejected) as refusal:
            await output.send(events)
        assert refusal.value.indexes == [5]
    assert sorted(numbers(await read_topic(kafka.bootstrap(), topic))) == [n for n in range(400) if n != 5]


async def test_a_missing_topic_is_waited_for_and_never_made_by_asking(kafka: Cluster, topic: str) -> None:
    """A person makes it as it should be; until then the data waits, and the reason says how."""
    async with opened(kafka.bootstrap(), topic) as output:
        with pytest.raises(Unavailable, match=f"topic {topic} does not exist; `ndcollector topics apply` makes it"):
            await output.send(numbered(range(10)))
        assert topic not in kafka.topics("--list").split()
        kafka.create_topic(topic)
        await deliver(output, numbered(range(10)))
    assert sorted(numbers(await read_topic(kafka.bootstrap(), topic))) == list(range(10))


async def test_a_topic_deleted_meanwhile_and_made_again(kafka: Cluster, topic: str) -> None:
    """What was not acknowledged goes to the new one."""
    kafka.create_topic(topic, partitions=3)
    async with opened(kafka.bootstrap(), topic) as output:
        await output.send(numbered(range(100)))
        kafka.topics("--delete", "--topic", topic)
        sending = asyncio.ensure_future(deliver(output, numbered(range(100, 200))))
        await asyncio.wait({sending}, timeout=6)
        assert not sending.done()
        kafka.create_topic(topic, partitions=2)
        reasons = await sending
    assert any("does not exist" in reason for reason in reasons)
    assert sorted(numbers(await read_topic(kafka.bootstrap(), topic))) == list(range(100, 200))


async def test_new_partitions_are_used(kafka: Cluster, topic: str) -> None:
    """Without a restart, at the next look at the metadata."""
    kafka.create_topic(topic, partitions=1)
    async with opened(kafka.bootstrap(), topic) as output:
        await output.send(numbered(range(100)))
        kafka.topics("--alter", "--topic", topic, "--partitions=4")
        line = output._lines["security_events"]
        await line._session.refresh_metadata()  # what the metadata's age does by itself
        await output.send(numbered(range(100, 200)))
    assert len({record.partition for record in await read_topic(kafka.bootstrap(), topic)}) > 1


async def test_a_write_that_is_not_authorised_waits_for_a_person(
    kafka: Cluster, topic: str, kafka_certificates: Certificates
) -> None:
    """401 and 403 are Unavailable: the data must still be there when someone has granted the right."""
    kafka.create_topic(topic, partitions=3)
    tls = {"ca_file": str(kafka_certificates.ca), "cert_file": str(kafka_certificates.client_cert)}
    tls["key_file"] = str(kafka_certificates.client_key)
    async with opened(kafka.bootstrap("SSL"), topic, tls=tls) as output:
        await output.send(numbered(range(100)))
        kafka.deny(CLIENT, topic, "Write")
        with pytest.raises(Unavailable, match=f"do not let us write to topic {topic}"):
            await output.send(numbered(range(100, 200)))
        kafka.allow(CLIENT, topic, "Write")
        await asyncio.gather(*(deliver(output, numbered(range(at, at + 100))) for at in (100, 200)))
    records = await read_topic(kafka.bootstrap(), topic)
    assert sorted(numbers(records)) == list(range(300))
    assert order_faults(records) == []


async def test_a_client_certificate_is_shown_and_a_missing_one_is_explained(
    kafka: Cluster, topic: str, kafka_certificates: Certificates
) -> None:
    """mTLS; and the reason names the broker."""
    kafka.create_topic(topic)
    tls = {"ca_file": str(kafka_certificates.ca)}
    async with opened(kafka.bootstrap("SSL"), topic, tls=tls) as output:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d+: "):
            await output.send(numbered(range(10)))
    tls |= {"cert_file": str(kafka_certificates.client_cert), "key_file": str(kafka_certificates.client_key)}
    async with opened(kafka.bootstrap("SSL"), topic, tls=tls) as output:
        await output.send(numbered(range(10)))


async def test_a_broker_that_we_do_not_trust_gets_nothing(
    kafka: Cluster, topic: str, tmp_path: Path
) -> None:
    """Another CA: fail closed, and say which file to look at."""
    other = Certificates.make(tmp_path)
    async with opened(kafka.bootstrap("SSL"), topic, tls={"ca_file": str(other.ca)}) as output:
        with pytest.raises(Unavailable, match=r"certificate is not accepted: .*; is tls.ca_file right\?"):
            await output.send(numbered(range(10)))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
async def test_every_sasl_mechanism(
    kafka: Cluster, topic: str, kafka_certificates: Certificates, tmp_path: Path, mechanism: str
) -> None:
    """The right secret gets in; a wrong one is the broker's to refuse, and the reason says so."""
    kafka.create_topic(topic)
    tls = {"ca_file": str(kafka_certificates.ca)}
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(await Token().token() + "\n")
    bad.write_text("no.such.token")
    sasl = {"mechanism": mechanism, "username": USER, "password": PASSWORD}
    wrong = sasl | {"password": "wrong"}
    if mechanism == "OAUTHBEARER":
        sasl, wrong = ({"mechanism": mechanism, "token_file": str(file)} for file in (good, bad))
    async with opened(kafka.bootstrap("SASL_SSL"), topic, tls=tls, sasl=sasl) as output:
        await output.send(numbered(range(10)))
    async with opened(kafka.bootstrap("SASL_SSL"), topic, tls=tls, sasl=wrong) as output:
        with pytest.raises(Unavailable, match=r"refused the SASL credentials") as refusal:
            await output.send(numbered(range(10)))
        assert "wrong" not in refusal.value.reason
