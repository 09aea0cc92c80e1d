"""kill -9 of the real daemon, again and again while syslog streams in: what was durable comes out, once, in order.

Syslog has no acknowledgement, so the law is checked by what can be known from outside: on every connection the events
delivered are the first ones sent on it, without a gap; the spool's own sequence has no gap; and no fewer events came
out than the daemon had called received before each kill.
"""

import json
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from collector_process import ROOT, Certificates, CollectorProcess

_RECEIVED = 'nd_input_received_events_total{input="syslog_tls"}'
_EVENTS_PER_SECOND = 5000  # of each sender: enough that every kill lands in the middle of work
_SENDERS = 3


class Sender(threading.Thread):
    """Streams numbered messages; when the connection dies it begins a new one, numbered from 0 again."""

    def __init__(self, name: str, *, port: int, context: ssl.SSLContext, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self._port = port
        self._context = context
        self._random = random.Random(seed)
        self._stopped = threading.Event()
        self.connections = 0
        self.completed: dict[str, int] = {}  # connection → messages, for those closed in good order

    def run(self) -> None:
        """Until stop()."""
        while not self._stopped.is_set():
            try:
                raw = socket.create_connection(("127.0.0.1", self._port), timeout=10)
                with self._context.wrap_socket(raw, server_hostname="localhost") as connection:
                    self.connections += 1
                    self._stream(f"{self.name}.{self.connections}", connection)
            except OSError:
                self._stopped.wait(0.02)  # the collector is being restarted

    def _stream(self, key: str, connection: ssl.SSLSocket) -> None:
        """Frames cut at arbitrary bytes, at a steady pace; at stop() the rest, then a close in good order."""
        number, rest, began = 0, b"", time.monotonic()
        while not self._stopped.wait(0.005):
            due = int((time.monotonic() - began) * _EVENTS_PER_SECOND)
            data = rest + b"".join(_frame(key, n) for n in range(number, due))
            number = max(number, due)
            cut = len(data) - self._random.randrange(30) if data else 0
            connection.sendall(data[: max(cut, 0)])
            rest = data[max(cut, 0) :]
        connection.sendall(rest)
        connection.unwrap()  # returns when the collector has read everything and said close_notify as well
        self.completed[key] = number

    def stop(self) -> None:
        """Send what is begun, close, and end."""
        self._stopped.set()
        self.join(30)
        assert not self.is_alive(), "the collector does not read any more"


def _frame(key: str, number: int) -> bytes:
    text = "text " * (number % 40)
    message = f'<13>1 2025-11-23T14:39:07Z host app - - [k@32473 c="{key}" n="{number}"] {text}'
    return f"{len(message)} {message}".encode()


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[CollectorProcess]:
    """Small segments, so that kills also meet their making and deleting."""
    settings = {"spool": {"segment_bytes": "1MiB"}}
    process = CollectorProcess(tmp_path, Certificates.make(tmp_path / "pki"), settings=settings)
    yield process
    process.stop()


def _client_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.load_cert_chain(certificates.client_cert, certificates.client_key)
    return context


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_kill_at_random_moments_loses_nothing_durable(collector: CollectorProcess, kills: int) -> None:
    """The product's promise, at whatever instruction the process was."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    context = _client_context(collector.certificates)
    start_seconds, start_cpu_seconds = [collector.start()], [collector.cpu_seconds()]
    senders = [Sender(f"s{i}", port=collector.ports[0], context=context, seed=seed + i) for i in range(_SENDERS)]
    for sender in senders:
        sender.start()
    received = 0.0
    for _ in range(kills):
        time.sleep(moments.uniform(0.02, 0.6))  # the random moment itself
        received += collector.metrics().get(_RECEIVED, 0)
        time.sleep(moments.uniform(0, 0.02))
        collector.kill()
        start_seconds.append(collector.start())
        start_cpu_seconds.append(collector.cpu_seconds())
    for sender in senders:
        sender.stop()
    collector.process.wait_until(lambda: collector.pending() == 0, "empty backlog", 60)
    assert collector.stop() == 0
    events = _whole_lines(collector.output)
    _check(events, senders)
    assert len(events) >= received
    assert _verify(collector) == 0
    print(f"start-up: median {median(start_seconds):.2f} s, longest {max(start_seconds):.2f} s")
    assert max(start_cpu_seconds) < 2, (start_cpu_seconds, start_seconds)


def _whole_lines(output: Path) -> list[dict[str, Any]]:
    """Every line parsed; half a line fails."""
    text = output.read_bytes()
    assert text.endswith(b"\n"), "half a line"
    return [json.loads(line) for line in text.splitlines()]


def _check(events: list[dict[str, Any]], senders: list[Sender]) -> None:
    delivered: dict[str, list[int]] = defaultdict(list)
    for event in events:
        parameters = event["log"]["syslog"]["structured_data"]["k@32473"]
        delivered[parameters["c"]].append(int(parameters["n"]))
    for connection, numbers in delivered.items():
        assert numbers == list(range(len(numbers))), f"connection {connection}: a gap, a double or a wrong order"
    for sender in senders:
        for connection, count in sender.completed.items():
            assert len(delivered[connection]) == count, f"connection {connection} was closed in good order"
    sequences = sorted(event["event"]["sequence"] for event in events)
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences))), "the spool's sequence has a gap"
    assert len({event["event"]["id"] for event in events}) == len(events)


def _verify(collector: CollectorProcess) -> int:
    command = [sys.executable, "-m", "ndcollector", "spool", "verify", "-c", str(collector.config)]
    return subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode
