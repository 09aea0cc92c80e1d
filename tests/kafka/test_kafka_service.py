"""The counterpart itself does what the other Kafka tests take for granted: listeners, refusals, deaths, full disks."""

import base64
import json
import os
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAuthorizationFailedError
from collector_process import Certificates
from kafka_user import PASSWORD, USER
from services import fetch
from services.kafka import Cluster, ToolError
from services.need import need, need_namespace

from ndcollector.kafka_bootstrap import hold_connections

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]


class Token(AbstractTokenProvider):
    """An unsecured JWT (RFC 7519 §6), which Kafka's built-in validator takes."""

    async def token(self) -> str:
        """For the user of the tests, for a minute."""
        claims = {"sub": USER, "iat": time.time(), "exp": time.time() + 60}
        parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, claims)]
        return b".".join([*parts, b""]).decode()


def _tls(certificates: Certificates, *, client: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    if client:
        context.load_cert_chain(certificates.client_cert, certificates.client_key)
    return context


async def _produce(bootstrap: str, topic: str, **options: Any) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, request_timeout_ms=3000, **options)
    hold_connections(producer.client, {"request_timeout_ms": 3000, **options})  # refused ones are still closing, else
    try:
        await producer.start()
        await producer.send_and_wait(topic, b"value", key=b"key")
    finally:
        await producer.stop()


def test_java_reads_what_java_wrote(kafka: Cluster, topic: str) -> None:
    """The console tools agree with each other, so that a difference later is ours."""
    kafka.create_topic(topic, partitions=3)
    kafka.console_produce(topic, [(f"key-{number}", f"value {number}") for number in range(20)])
    found = kafka.console_consume(topic, count=20)
    assert {(one.key, one.value) for one in found} == {(f"key-{number}", f"value {number}") for number in range(20)}


async def test_mutual_tls_refuses_a_client_without_certificate(
    kafka: Cluster, topic: str, kafka_certificates: Certificates
) -> None:
    """Otherwise a test of mTLS would pass without one."""
    kafka.create_topic(topic)
    options = {"security_protocol": "SSL"}
    await _produce(kafka.bootstrap("SSL"), topic, ssl_context=_tls(kafka_certificates, client=True), **options)
    with pytest.raises(KafkaConnectionError):
        await _produce(kafka.bootstrap("SSL"), topic, ssl_context=_tls(kafka_certificates, client=False), **options)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
async def test_every_sasl_mechanism_lets_the_user_in_and_nobody_else(
    kafka: Cluster, topic: str, kafka_certificates: Certificates, mechanism: str
) -> None:
    """A wrong password (or an empty token) is refused by the broker, not by the client."""
    kafka.create_topic(topic)
    common = {"security_protocol": "SASL_SSL", "ssl_context": _tls(kafka_certificates, client=False)}
    common |= {"sasl_mechanism": mechanism}
    if mechanism == "OAUTHBEARER":
        await _produce(kafka.bootstrap("SASL_SSL"), topic, sasl_oauth_token_provider=Token(), **common)
        return
    user = {"sasl_plain_username": USER, "sasl_plain_password": PASSWORD}
    await _produce(kafka.bootstrap("SASL_SSL"), topic, **user, **common)
    with pytest.raises(KafkaError):
        await _produce(kafka.bootstrap("SASL_SSL"), topic, **user | {"sasl_plain_password": "wrong"}, **common)


async def test_a_denied_user_is_refused_until_allowed(
    kafka: Cluster, topic: str, kafka_certificates: Certificates
) -> None:
    """Authorisation is refused to a certificate's principal, and given back."""
    kafka.create_topic(topic)
    options = {"security_protocol": "SSL", "ssl_context": _tls(kafka_certificates, client=True)}
    principal = "CN=device-1,OU=Testing cert #1,O=trustme"
    kafka.deny(principal, topic, "Write")
    with pytest.raises(TopicAuthorizationFailedError):
        await _produce(kafka.bootstrap("SSL"), topic, **options)
    kafka.allow(principal, topic, "Write")
    await _produce(kafka.bootstrap("SSL"), topic, **options)


def test_records_outlive_kills_and_a_change_of_address(three_nodes: Cluster, topic: str) -> None:
    """What was acknowledged is there after a kill, a freeze and a move of nodes that led it."""
    three_nodes.create_topic(topic, partitions=3, replication=3, min_insync_replicas="2")
    first, second, third = three_nodes.nodes
    first.kill()
    three_nodes.console_produce(topic, [("a", "1")])
    first.start()
    second.freeze()
    three_nodes.console_produce(topic, [("b", "2")])
    second.thaw()
    before = third.address()
    third.move()
    assert third.address() != before
    assert sorted(one.value for one in three_nodes.console_consume(topic, count=2)) == ["1", "2"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system for the broker needs root")
def test_a_full_disk_ends_the_broker_and_a_freed_one_brings_its_data_back(tmp_path: Path, topic: str) -> None:
    """Kafka's own way to take a full disk: the broker halts; its file system must outlive it."""
    need(fetch.KAFKA)
    need_namespace()
    with Cluster(tmp_path / "kafka", disk_bytes=96 * 2**20) as cluster:
        cluster.create_topic(topic)
        cluster.console_produce(topic, [("a", "1")])
        node = cluster.nodes[0]
        node.fill_disk()
        with pytest.raises(ToolError):
            cluster.console_produce(topic, [("b", "x" * 900_000) for _ in range(40)], timeout_seconds=15)
        assert node.process.returncode not in (None, 0)
        node.free_disk()
        node.start()
        assert cluster.console_consume(topic, count=1)[0].value == "1"
