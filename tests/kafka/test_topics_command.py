"""`ndcollector topics` against real clusters, as a person runs it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from collector_process import ROOT, Certificates
from services.kafka import Cluster
from services.process import free_port

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]


def _run(directory: Path, command: str, *options: str, **outputs: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    config = directory / "ndcollector.yaml"
    kafka = {name: {"type": "kafka", **settings} for name, settings in outputs.items()}
    config.write_text(yaml.safe_dump({"outputs": kafka, "state_dir": str(directory)}))
    words = [sys.executable, "-m", "ndcollector", "topics", command, "-c", str(config), *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


def test_the_missions_topics_are_made_on_three_brokers(three_nodes: Cluster, tmp_path: Path) -> None:
    """diff says what is missing, apply makes it, diff has nothing more to say; Kafka's own tool agrees."""
    bus = {"bootstrap_servers": three_nodes.bootstrap().split(",")}
    before = _run(tmp_path, "diff", bus=bus)
    assert before.returncode == 1
    assert "+ security_events: create with 32 partitions, replication 3, retention 7d" in before.stdout
    assert three_nodes.topics("--list").split() == []
    applied = _run(tmp_path, "apply", bus=bus)
    assert (applied.returncode, applied.stderr) == (0, "")
    for _ in range(30):  # each broker learns by itself what the controller made, and any of them is asked
        after = _run(tmp_path, "diff", bus=bus)
        if after.returncode == 0:
            break
    assert (after.returncode, "nothing to change" in after.stdout) == (0, True), after.stdout
    shown = three_nodes.topics("--describe", "--topic", "security_events")
    assert "PartitionCount: 32" in shown
    assert "ReplicationFactor: 3" in shown
    assert "min.insync.replicas=2" in shown
    assert "retention.ms=604800000" in shown


def test_an_existing_topic_is_grown_and_its_other_settings_stay(kafka: Cluster, topic: str, tmp_path: Path) -> None:
    """Raising one setting must not reset the others (the older request would)."""
    kafka.create_topic(topic, partitions=2, retention_ms="1000", segment_bytes="1234567", max_message_bytes="5000")
    settings = {"name": topic, "partitions": 5, "replication": 1, "retention": "2d"}
    bus = {"bootstrap_servers": [kafka.bootstrap()], "streams": ["metrics"], "topics": {"metrics": settings}}
    applied = _run(tmp_path, "apply", bus=bus)
    assert applied.returncode == 0, applied.stderr
    assert "partitions 2 → 5" in applied.stdout
    assert "not in order" in applied.stdout
    shown = kafka.topics("--describe", "--topic", topic)
    for part in ("PartitionCount: 5", "retention.ms=172800000", "segment.bytes=1234567", "max.message.bytes=1048576"):
        assert part in shown


def test_several_clusters_by_name(kafka: Cluster, topic: str, tmp_path: Path) -> None:
    """One that is down does not keep the other from being made; the exit status says so."""
    near = {"bootstrap_servers": [kafka.bootstrap()], "streams": ["metrics"], "topics": {"metrics": topic}}
    far = {"bootstrap_servers": [f"127.0.0.1:{free_port()}"], "streams": ["metrics"]}
    both = _run(tmp_path, "apply", far=far, near=near)
    assert both.returncode == 1
    assert "nothing listens there" in both.stderr
    assert topic in kafka.topics("--list").split()
    one = _run(tmp_path, "diff", "--output", "near", far=far, near=near)
    assert one.returncode == 0, one.stdout + one.stderr


def test_over_tls_with_a_client_certificate(
    kafka: Cluster, topic: str, tmp_path: Path, kafka_certificates: Certificates
) -> None:
    """The same connection settings as the output's."""
    files = kafka_certificates
    tls = {"ca_file": str(files.ca), "cert_file": str(files.client_cert), "key_file": str(files.client_key)}
    stream = {"streams": ["alerts"], "topics": {"alerts": topic}}
    bus = {"bootstrap_servers": [kafka.bootstrap("SSL")], "tls": tls, **stream}
    applied = _run(tmp_path, "apply", bus=bus)
    assert applied.returncode == 0, applied.stderr
    assert "replication 3 becomes 1" in applied.stdout
