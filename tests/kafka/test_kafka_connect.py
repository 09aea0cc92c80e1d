"""docs/kafka-connect.md's tested configurations, as they stand there, in Kafka's own Connect runtime."""

import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from collector_process import ROOT, Certificates, CollectorProcess
from services import fetch
from services.kafka import Cluster
from services.kafka_connect import ConnectWorker
from services.need import need, need_namespace
from services.postgres import USER, Postgres

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]

_BLOCK = re.compile(r"```(properties|yaml)\n# (\S+)(.*?)\n(.*?)```", re.DOTALL)


def blocks() -> dict[str, str]:
    """The page's configurations by the file name in their first line."""
    page = (ROOT / "docs" / "kafka-connect.md").read_text(encoding="utf-8")
    return {name: text for _, name, _, text in _BLOCK.findall(page)}


def properties(name: str, **changes: str) -> dict[str, str]:
    """One of the page's files, with addresses and paths of this test; every key changed must be there."""
    found = dict(line.split("=", 1) for line in blocks()[name].splitlines())
    named = {key.replace("_", "."): value for key, value in changes.items()}
    assert named.keys() <= found.keys()
    return found | named


def worker(kafka: Cluster, directory: Path, *plugins: fetch.Jars) -> dict[str, str]:
    """The page's worker, on this broker, with these plugins."""
    path = directory / "plugins"
    path.mkdir(exist_ok=True)
    for plugin in plugins:
        (path / plugin.name).symlink_to(plugin.prefix)
    return properties(
        "worker.properties",
        bootstrap_servers=kafka.bootstrap(),
        offset_storage_file_filename=str(directory / "offsets"),
        plugin_path=str(path),
    )


def test_a_files_lines_reach_the_collector_as_syslog(kafka: Cluster, topic: str, tmp_path: Path) -> None:
    """File → Connect → topic → kafka input → file output: every line, as the event that its syslog says."""
    kafka.create_topic(topic)
    log = tmp_path / "appliance.log"
    log.write_text("".join(f"<34>1 2026-11-23T10:00:00Z fw-1 app - - - line {n}\n" for n in range(200)))
    source = properties("file-source.properties", file=str(log), topic=topic)
    inputs = yaml.safe_load(blocks()["ndcollector.yaml"])
    inputs["inputs"]["appliance"] |= {"bootstrap_servers": [kafka.bootstrap()], "topics": [topic], "group": topic}
    certificates = Certificates.make(tmp_path / "pki")
    with (
        ConnectWorker(tmp_path / "connect", worker=worker(kafka, tmp_path), connectors=[source]),
        CollectorProcess(tmp_path / "collector", certificates, settings=inputs) as collector,
    ):
        collector.wait_for_lines(200, 30)
        with log.open("a") as more:
            more.write("<34>1 2026-11-23T10:00:00Z fw-1 app - - - line 200\n")
        collector.wait_for_lines(201, 30)
        events = collector.events()
    assert [event["message"] for event in events] == [f"line {n}" for n in range(201)]
    assert {event["host"]["hostname"] for event in events} == {"fw-1"}


def test_events_leave_through_the_file_sink_as_they_are(kafka: Cluster, topic: str, tmp_path: Path) -> None:
    """What an output wrote to the topic is what Connect writes to the file, byte for byte."""
    kafka.create_topic(topic, partitions=2)
    lines = [json.dumps({"message": f'Grüße "{n}"', "event": {"id": f"s-{n}"}}, ensure_ascii=False) for n in range(200)]
    kafka.console_produce(topic, [(f"fw-{n % 7}", line) for n, line in enumerate(lines)])
    sink_file = tmp_path / "events.ndjson"
    sink = properties("file-sink.properties", file=str(sink_file), topics=topic)
    with ConnectWorker(tmp_path / "connect", worker=worker(kafka, tmp_path), connectors=[sink]):
        until(lambda: sink_file.exists() and sink_file.read_text(encoding="utf-8").count("\n") >= 200)
    assert sorted(sink_file.read_text(encoding="utf-8").splitlines()) == sorted(lines)


def test_events_leave_for_a_database_once_however_often_they_are_read(
    kafka: Cluster, topic: str, tmp_path: Path
) -> None:
    """A row an event, with the event as it stands; read again from the beginning they change nothing."""
    for service in (fetch.POSTGRESQL, fetch.CONNECT_JDBC):
        need(service)
    need_namespace("--user")  # PostgreSQL refuses to run as root
    table = topic.replace("-", "_")
    kafka.create_topic(table, partitions=2)
    events = [{"message": f'Grüße "{n}"', "host": {"name": f"fw-{n % 7}"}} for n in range(200)]
    lines = [json.dumps(event, ensure_ascii=False) for event in events]
    kafka.console_produce(table, [(f"fw-{n % 7}", line) for n, line in enumerate(lines)])
    with Postgres(tmp_path / "postgres") as database:
        changes = {"topics": table, "connection_url": database.url, "connection_username": USER}
        for life in ("first", "again"):  # a sink of another name begins at the beginning
            sink = properties("jdbc-sink.properties", connection_password="none", **changes) | {"name": life}
            directory = tmp_path / life
            directory.mkdir()
            running = worker(kafka, directory, fetch.CONNECT_JDBC)
            with ConnectWorker(directory / "connect", worker=running, connectors=[sink]):
                until(partial(has_read_all, kafka, f"connect-{life}"))
            rows = database.query(f"SELECT event FROM {table}")
            assert sorted(rows) == sorted(lines)
        index, select = (line.replace("alerts", table) for line in sql())
        database.query(index)
        assert sorted(database.query(select)) == sorted(f'Grüße "{n}"' for n in range(200) if n % 7 == 3)


def sql() -> list[str]:
    """The page's statements."""
    page = (ROOT / "docs" / "kafka-connect.md").read_text(encoding="utf-8")
    return page.partition("```sql\n")[2].partition("```")[0].splitlines()


def has_read_all(kafka: Cluster, group: str) -> bool:
    """Whether a sink has committed the end of each partition."""
    described = kafka.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", "--describe", "--group", group)
    lags = [line.split()[5] for line in described.splitlines() if line.startswith(f"{group} ")]
    return bool(lags) and set(lags) == {"0"}


def until(ready: Callable[[], bool], timeout_seconds: float = 60) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_untested_configurations_say_so() -> None:
    """A reader must be able to trust the difference."""
    page = (ROOT / "docs" / "kafka-connect.md").read_text(encoding="utf-8")
    files = ("worker", "file-source", "file-sink", "jdbc-sink")
    tested = {"ndcollector.yaml", *(f"{name}.properties" for name in files)}
    for _, name, remark, _ in _BLOCK.findall(page):
        assert name in tested or remark == " (not tested)", name
