"""The storm's HTTPS receiver keeps its word, or the account would blame the collector for what the receiver lost."""

import gzip
import http.client
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector_process import Certificates
from services.process import ServiceProcess, free_port, listens

RECEIVER = Path(__file__).with_name("chaos_receiver.py")


class Receiver:
    """The process, to be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._certificates = Certificates.make(directory / "pki")
        self._port = free_port()
        self.file = directory / "events"
        self.start()

    def start(self) -> None:
        files = (self._certificates.server_cert, self._certificates.server_key, self.file)
        command = [sys.executable, str(RECEIVER), str(self._port), *map(str, files)]
        self.process = ServiceProcess("receiver", command, directory=self._directory)
        self.process.until_ready(listens(self._port), "listener")

    def connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self._certificates.ca))
        return http.client.HTTPSConnection("localhost", self._port, timeout=10, context=context)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    running = Receiver(tmp_path)
    yield running
    running.process.kill()


def test_what_was_answered_is_there_after_a_kill(receiver: Receiver) -> None:
    """Plain and compressed, over one connection; half a line of a write that a kill cut is taken off at the start."""
    connection = receiver.connect()
    for body, fields in ((b"one\n", {}), (gzip.compress(b"two\n"), {"Content-Encoding": "gzip"})):
        connection.request("POST", "/events", body, fields)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    receiver.process.kill()
    connection.close()
    assert receiver.file.read_bytes() == b"one\ntwo\n"
    with receiver.file.open("ab") as file:
        file.write(b"thr")
    receiver.start()
    assert receiver.file.read_bytes() == b"one\ntwo\n"


def test_a_body_that_does_not_come_whole_is_not_kept(receiver: Receiver) -> None:
    """A connection that ends within it gets no answer."""
    connection = receiver.connect()
    connection.putrequest("POST", "/events")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"half\n")
    connection.close()
    again = receiver.connect()
    again.request("POST", "/events", b"whole\n")
    assert again.getresponse().status == 200
    again.close()
    assert receiver.file.read_bytes() == b"whole\n"
