"""The storm's Elasticsearch, Splunk and S3 keep their word, or the account would blame the collector for their loss."""

import json
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from s3_site import Server
from services.process import ServiceProcess, free_port, listens

HERE = Path(__file__).parent
STORES = {kind: ("chaos_stores.py", kind) for kind in ("elasticsearch", "splunk")} | {"s3": ("chaos_s3.py",)}
HEC = {"Authorization": "Splunk 11111111-2222-3333-4444-555555555555"}


class Store:
    """The process, to be killed and started again."""

    def __init__(self, kind: str, directory: Path) -> None:
        self._program, self._directory = STORES[kind], directory
        self.port, self.file = free_port(), directory / "journal"
        self.start()

    def start(self) -> None:
        script, *kind = self._program
        command = [sys.executable, str(HERE / script), *kind, str(self.port), str(self.file)]
        self.process = ServiceProcess("store", command, directory=self._directory)
        self.process.until_ready(listens(self.port), "listener")

    def post(self, path: str, body: str, **headers: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body.encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Store]]:
    made: list[Store] = []

    def starting(kind: str) -> Store:
        made.append(Store(kind, tmp_path))
        return made[-1]

    yield starting
    for store in made:
        store.process.kill()


def test_elasticsearch_has_after_a_kill_what_it_answered_for(start: Callable[[str], Store]) -> None:
    """It knows the document again by its id; half a line of a write that a kill cut is taken off at the start."""
    store = start("elasticsearch")
    bulk = '{"create":{"_id":"spool-1"}}\n{"message":"one"}\n'
    as_lines = {"Content-Type": "application/x-ndjson"}
    answers = [store.post("/events/_bulk", bulk, **as_lines)]
    store.process.kill()
    with store.file.open("ab") as file:
        file.write(b'{"target": "ev')
    store.start()
    answers.append(store.post("/events/_bulk", bulk, **as_lines))
    assert [answer["items"][0]["create"]["status"] for answer in answers] == [201, 409]
    [kept] = store.file.read_bytes().splitlines()
    assert json.loads(kept)["source"] == {"message": "one"}


def test_splunk_acknowledges_what_is_on_disk_and_forgets_the_rest(start: Callable[[str], Store]) -> None:
    """A kill takes channels and numbers; nothing that was told true goes with them."""
    store = start("splunk")
    channel = {**HEC, "X-Splunk-Request-Channel": "11111111-2222-3333-4444-555555555555"}
    number = store.post("/services/collector/event", '{"event":{"message":"one"}}', **channel)["ackId"]
    ask, as_json = json.dumps({"acks": [number]}), {"Content-Type": "application/json"}
    store.process.wait_until(
        lambda: bool(store.post("/services/collector/ack", ask, **channel, **as_json)["acks"][str(number)]), "true"
    )
    store.process.kill()
    assert store.file.read_bytes() == b'{"message":"one"}\n'
    store.start()
    assert store.post("/services/collector/event", '{"event":"two"}', **channel)["ackId"] == number == 0


def test_s3_has_after_a_kill_what_it_answered_for(start: Callable[[str], Store]) -> None:
    """The object, its metadata, and that it may not be created again; and none that did not come whole."""
    store = start("s3")
    client = Server(store.port).client()
    client.create_bucket(Bucket="logs")
    client.put_object(Bucket="logs", Key="a/b", Body=b"one", Metadata={"nd-first": "7"}, IfNoneMatch="*")
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as half:
        half.sendall(b"PUT /logs/half HTTP/1.1\r\nHost: s3\r\nContent-Length: 100\r\n\r\nhalf")
        half.shutdown(socket.SHUT_WR)
        assert half.recv(100) == b""
    store.process.kill()
    store.start()
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket="logs")["Contents"]] == ["a/b"]
    found = client.get_object(Bucket="logs", Key="a/b")
    assert (found["Body"].read(), found["Metadata"]) == (b"one", {"nd-first": "7"})
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket="logs", Key="a/b", Body=b"two", IfNoneMatch="*")
