"""From the real daemon to real receivers: rsyslog and syslog-ng over mutual TLS, rsyslog over RELP; and kills.

A receiver writes each message as it came into a file, so what it got can be read; its kill -9 loses what it had not
written, which is what the replay window and RELP's answers are for.
"""

import asyncio
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from collector_process import Certificates, CollectorProcess
from services import fetch, rsyslog, syslog_ng
from services.need import need
from services.process import ServiceProcess, free_port

from tests.syslog_receivers import TlsReceiver

pytestmark = [pytest.mark.service, pytest.mark.timeout(90)]

COUNT = 3000
RECEIVED = 'nd_input_received_events_total{input="syslog_tls"}'
PEER = "device-1"


def _long(receiver: str) -> Any:
    """What another one shows as well is left to the long tests."""
    return pytest.param(receiver, marks=pytest.mark.long)


class Receiver:
    """A receiver of syslog that can be killed and started again, and what it wrote."""

    def __init__(self, directory: Path, kind: str, certificates: Certificates) -> None:
        self.directory = directory
        self.file = directory / "received.log"
        self.port = free_port()
        self.is_relp = kind.startswith("relp")
        self.is_plain = kind == "relp"
        directory.mkdir()
        pki = {"ca": certificates.ca, "cert": certificates.server_cert, "key": certificates.server_key}
        self._start = self._starter(kind, pki)
        self.process = self._start()

    def _starter(self, kind: str, pki: dict[str, Path]) -> Callable[[], ServiceProcess]:
        port, file, directory = self.port, self.file, self.directory
        if kind == "syslog-ng":
            need(fetch.SYSLOG_NG)
            config = syslog_ng.tls_receiver(port=port, pki=pki, file=file)
            return lambda: syslog_ng.start(config, directory, port=port)
        if self.is_relp:
            need(fetch.RSYSLOG_RELP)
            library = kind.partition(" ")[2] or None
            config = rsyslog.relp_receiver(directory, port=port, library=library, pki=pki, peer=PEER, file=file)
            return lambda: rsyslog.start(config, directory, port=port, service=fetch.RSYSLOG_RELP)
        need(fetch.RSYSLOG)
        config = rsyslog.tls_receiver(
            directory, port=port, driver=kind.partition(" ")[2], pki=pki, peer=PEER, file=file
        )
        return lambda: rsyslog.start(config, directory, port=port)

    def kill(self) -> None:
        """kill -9, and a new one on the same port."""
        self.process.kill()
        self.process = self._start()

    def numbers(self) -> list[int]:
        """Of the messages, in the order in which they were written; a kill may have left half a line."""
        text = self.file.read_bytes() if self.file.exists() else b""
        return [int(one) for one in re.findall(rb"Nr (\d+):", text)]

    def output(self, certificates: Certificates) -> dict[str, Any]:
        """The settings of the output to it."""
        files = {"ca_file": certificates.ca, "cert_file": certificates.client_cert, "key_file": certificates.client_key}
        tls = {key: str(path) for key, path in files.items()} | {"server_name": "localhost"}
        return {
            "type": "relp" if self.is_relp else "syslog_tls",
            "endpoints": [f"127.0.0.1:{self.port}"],
            "tls": None if self.is_plain else tls,
            "retry": {"maximum": "500ms"},
            "breaker": {"open_for": "500ms"},
        }


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """The receiver has the collector's, and the output the device's."""
    return Certificates.make(tmp_path / "pki")


@pytest.fixture
def receiver(request: pytest.FixtureRequest, tmp_path: Path, certificates: Certificates) -> Iterator[Receiver]:
    """Running; the parameter says which."""
    made = Receiver(tmp_path / "receiver", request.param, certificates)
    yield made
    made.process.stop()


@pytest.fixture
def collector(tmp_path: Path, certificates: Certificates, receiver: Receiver) -> Iterator[CollectorProcess]:
    """The real daemon, with one output: to the receiver."""
    settings = {"outputs": {"siem": receiver.output(certificates)}}
    with CollectorProcess(tmp_path / "collector", certificates, settings=settings, only=["siem"]) as running:
        yield running


class Sender(threading.Thread):
    """A device: numbered messages over one connection, for as long as it lasts."""

    def __init__(self, collector: CollectorProcess, numbers: range, *, per_second: float | None = None) -> None:
        super().__init__(daemon=True)
        self._collector = collector
        self._numbers = numbers
        self._per_second = per_second

    def run(self) -> None:
        files = self._collector.certificates
        context = ssl.create_default_context(cafile=str(files.ca))
        context.load_cert_chain(files.client_cert, files.client_key)
        raw = socket.create_connection(("127.0.0.1", self._collector.ports[0]), timeout=10)
        with context.wrap_socket(raw, server_hostname="localhost") as connection:
            began, sent = time.monotonic(), 0
            while sent < len(self._numbers):
                due = len(self._numbers)
                if self._per_second is not None:
                    due = min(due, int((time.monotonic() - began) * self._per_second))
                connection.sendall(b"".join(map(message, self._numbers[sent:due])))
                sent = due
                time.sleep(0.01)
            connection.settimeout(10)
            with suppress(OSError):
                connection.unwrap()


def message(number: int) -> bytes:
    """Structured data, UTF-8, every facility and severity."""
    header = f"<{number % 192}>1 2025-11-23T14:39:07.{number:06d}Z fw-{number % 7} app{number % 5} {number} ID{number}"
    return f'{header} [origin@32473 n="{number}"] Grüße Nr {number}: drop 10.0.0.{number % 255}\n'.encode()


def wait_until(is_so: Callable[[], bool], what: str, timeout_seconds: float = 40) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.parametrize(
    "receiver",
    [_long("rsyslog gtls"), "rsyslog ossl", "syslog-ng", "relp", _long("relp gnutls"), "relp openssl"],
    indirect=True,
)
def test_everything_arrives_once_and_in_order(receiver: Receiver, collector: CollectorProcess) -> None:
    """And a stop in order makes nothing be sent twice by the next process."""
    sender = Sender(collector, range(COUNT))
    sender.start()
    wait_until(lambda: len(receiver.numbers()) >= COUNT, "all messages")
    sender.join()
    assert collector.stop() == 0
    collector.start()
    wait_until(lambda: collector.pending() == 0, "nothing pending")
    assert receiver.numbers() == list(range(COUNT))


@pytest.mark.parametrize("receiver", [_long("rsyslog ossl"), "syslog-ng", "relp openssl"], indirect=True)
def test_kills_of_the_receiver_lose_nothing(receiver: Receiver, collector: CollectorProcess) -> None:
    """While events stream: what it had taken and lost is sent again, first seen in the order of receipt."""
    sender = Sender(collector, range(12_000), per_second=3000)
    sender.start()
    for part in (2000, 5000, 8000):
        wait_until(lambda part=part: max(receiver.numbers(), default=0) >= part, f"message {part}")  # type: ignore[misc]
        receiver.kill()
    sender.join()
    wait_until(lambda: set(receiver.numbers()) == set(range(12_000)), "every message")
    wait_until(lambda: collector.pending() == 0, "nothing pending")
    assert collector.stop() == 0
    first_seen = list(dict.fromkeys(receiver.numbers()))
    assert first_seen == sorted(first_seen)


@pytest.mark.parametrize("receiver", ["rsyslog gtls", "relp"], indirect=True)
def test_kills_of_the_collector_lose_nothing(receiver: Receiver, collector: CollectorProcess) -> None:
    """The cursor stands behind what the window holds, or what was answered: the next process begins there."""
    for first in range(0, 2 * COUNT, COUNT):
        sender = Sender(collector, range(first, first + COUNT), per_second=6000)
        sender.start()
        sender.join()
        wait_until(lambda: collector.metrics().get(RECEIVED, 0) >= COUNT, "everything received")
        collector.kill()
        collector.start()
    wait_until(lambda: collector.pending() == 0, "nothing pending")
    assert set(receiver.numbers()) == set(range(2 * COUNT))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("receiver", ["rsyslog gtls", "rsyslog ossl", "syslog-ng", "relp openssl"], indirect=True)
def test_kills_of_either_at_random_lose_nothing(receiver: Receiver, collector: CollectorProcess, seed: int) -> None:
    """The collector is killed only once it has what was sent to it: syslog towards it has no answer either."""
    draw = random.Random(seed)
    for round_ in range(12):
        numbers = range(round_ * COUNT, (round_ + 1) * COUNT)
        received = collector.metrics().get(RECEIVED, 0)
        sender = Sender(collector, numbers, per_second=draw.choice([2000, 6000, 20_000]))
        sender.start()
        for _ in range(draw.randrange(3)):
            time.sleep(draw.random())
            receiver.kill()
        sender.join()
        if draw.random() < 0.5:
            wait_until(lambda least=received + COUNT: collector.metrics().get(RECEIVED, 0) >= least, "received")  # type: ignore[misc]
            time.sleep(draw.random())
            collector.kill()
            collector.start()
    wait_until(lambda: collector.pending() == 0, "nothing pending", timeout_seconds=120)
    assert set(receiver.numbers()) == set(range(12 * COUNT))


@pytest.mark.parametrize("receiver", ["rsyslog gtls", _long("rsyslog ossl"), _long("syslog-ng")], indirect=True)
def test_a_receiver_that_refuses_our_certificate_says_so_in_our_log(
    tmp_path: Path, receiver: Receiver, certificates: Certificates
) -> None:
    """And gets everything once the file on disk is good, without a restart of ours."""
    stranger = Certificates.make(tmp_path / "stranger")
    mine = tmp_path / "mine"
    mine.mkdir()
    settings = receiver.output(certificates)
    for key, file in (("cert_file", "client_cert"), ("key_file", "client_key")):
        path = mine / key
        path.write_bytes(getattr(stranger, file).read_bytes())
        settings["tls"][key] = str(path)
    outputs = {"outputs": {"siem": settings}}
    with CollectorProcess(tmp_path / "collector", certificates, settings=outputs, only=["siem"]) as collector:
        Sender(collector, range(100)).run()
        log = collector.process.log
        wait_until(lambda: "not delivering" in log.read_text(), "a word in the log")
        assert "see tls.cert_file and what the receiver's log says" in log.read_text()
        assert receiver.numbers() == []
        for key, file in (("cert_file", "client_cert"), ("key_file", "client_key")):
            (mine / key).write_bytes(getattr(certificates, file).read_bytes())
        wait_until(lambda: set(receiver.numbers()) == set(range(100)), "every message")


def test_a_receiver_that_never_reads_holds_up_no_other_output(tmp_path: Path, certificates: Certificates) -> None:
    """Nor does it cost memory: what it does not take stays in the spool."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    receiver = TlsReceiver(context)
    receiver.manner = "hold"
    asyncio.run(receiver.start())
    tls = {"ca_file": str(certificates.ca), "server_name": "localhost"}
    siem = {"type": "syslog_tls", "endpoints": [f"127.0.0.1:{receiver.port}"], "tls": tls}
    with CollectorProcess(tmp_path / "collector", certificates, settings={"outputs": {"siem": siem}}) as collector:
        count = 100_000
        Sender(collector, range(count)).run()
        collector.wait_for_lines(count, timeout_seconds=40)
        assert collector.pending() > count / 2
        assert resident_bytes(collector.pid) < 200 << 20
        collector.kill()
    asyncio.run(receiver.stop())


def resident_bytes(pid: int) -> int:
    """Of a process (proc(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
