"""What Kafka's tests share: one real broker with every kind of listener, topics of one's own on it, and three nodes.

Tests that kill or freeze a broker take `kafka_alone` or `three_nodes`: others must not feel it.
"""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector_process import Certificates
from kafka_user import PASSWORD, USER
from services import fetch
from services.kafka import Cluster, Security
from services.need import need


@pytest.fixture(scope="session")
def kafka_certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Those of the brokers (for localhost and 127.0.0.1), and of a client whose principal is CN=device-1."""
    return Certificates.make(tmp_path_factory.mktemp("kafka-pki"))


@pytest.fixture(scope="session")
def kafka_security(kafka_certificates: Certificates) -> Security:
    """Listeners SSL and SASL_SSL, with one user."""
    files = kafka_certificates
    return Security(files.ca, files.server_cert, files.server_key, {USER: PASSWORD})


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory, kafka_security: Security) -> Iterator[Cluster]:
    """One broker for all tests that leave it alone."""
    need(fetch.KAFKA)
    with Cluster(tmp_path_factory.mktemp("kafka"), security=kafka_security) as cluster:
        yield cluster


@pytest.fixture
def kafka_alone(tmp_path: Path) -> Iterator[Cluster]:
    """One broker, PLAINTEXT, for a test that kills it."""
    need(fetch.KAFKA)
    with Cluster(tmp_path / "kafka") as cluster:
        yield cluster


@pytest.fixture
def three_nodes(tmp_path: Path) -> Iterator[Cluster]:
    """Three brokers, PLAINTEXT; two are a majority."""
    need(fetch.KAFKA)
    with Cluster(tmp_path / "kafka", nodes=3) as cluster:
        yield cluster


@pytest.fixture
def topic() -> str:
    """A topic's name that nobody else uses; make it with `kafka.create_topic(topic, …)`."""
    return f"test-{secrets.token_hex(6)}"
