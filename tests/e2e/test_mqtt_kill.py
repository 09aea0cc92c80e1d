"""kill -9 of the real daemon, again and again while agents publish: every event that got its PUBACK comes out."""

import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from collector_process import Certificates, CollectorProcess
from mqtt_client import V5, V311, Client, u16
from services.process import free_port

from ndagent.wire.envelope import Header, pack
from ndcollector import pki

_AGENTS = {"agent-1": V5, "agent-2": V5, "agent-3": V311}
_WINDOW = 16  # publishes that wait for their PUBACK
_LINES = 20  # events in each


class Agent(threading.Thread):
    """Publishes numbered events, and again from the first that was not acknowledged when its connection dies."""

    def __init__(self, name: str, *, port: int, context: ssl.SSLContext, version: int) -> None:
        super().__init__(name=name, daemon=True)
        self._port = port
        self._context = context
        self._version = version
        self._stopped = threading.Event()
        self.acknowledged = 0  # publishes, from the first on
        self.faults: list[str] = []

    def run(self) -> None:
        """Until stop()."""
        while not self._stopped.is_set():
            try:
                with Client(self._context, self._port, version=self._version, timeout=10) as client:
                    if client.connect(self.name, clean=False) is not None:
                        self._publish(client)
            except (OSError, IndexError):
                self._stopped.wait(0.02)  # the collector is being restarted

    def _publish(self, client: Client) -> None:
        """A full window, then one more for each PUBACK; at stop() the answers to all that was sent."""
        sent = self.acknowledged
        while not (self._stopped.is_set() and sent == self.acknowledged):
            while sent < self.acknowledged + _WINDOW and not self._stopped.is_set():
                client.send(client.write.publish(f"nd/v1/agents/{self.name}/events", self._envelope(sent), _id(sent)))
                sent += 1
            answer = client.read()
            if answer is None:
                return
            if answer != (0x40, u16(_id(self.acknowledged))):
                self.faults.append(f"{answer} instead of PUBACK {_id(self.acknowledged)}")
                return
            self.acknowledged += 1

    def _envelope(self, number: int) -> bytes:
        first = number * _LINES
        lines = b"".join(b'{"message":"%s %d"}\n' % (self.name.encode(), n) for n in range(first, first + _LINES))
        header = Header(
            stream="security_events", spool_id=self.name.replace("-", "0").ljust(16, "0"), first=first,
            last=first + _LINES - 1, count=_LINES, length=len(lines), sent_at_ns=time.time_ns(), agent_id=self.name,
            run_id="ab" * 8,
        )  # fmt: skip
        return pack(header, lines)

    def stop(self) -> None:
        """Wait for what is under way, and end."""
        self._stopped.set()
        self.join(30)
        assert not self.is_alive(), "the collector does not acknowledge any more"


def _id(number: int) -> int:
    return number % 65535 + 1


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def collector(tmp_path: Path, port: int) -> Iterator[CollectorProcess]:
    """Small segments, so that kills also meet their making and deleting."""
    settings = {"spool": {"segment_bytes": "1MiB"}, "inputs": {"mqtt": {"listen": [f"127.0.0.1:{port}"]}}}
    process = CollectorProcess(tmp_path, Certificates.make(tmp_path / "pki"), settings=settings)
    yield process
    process.stop()


def _context(collector: CollectorProcess, name: str) -> ssl.SSLContext:
    issued = pki.issue(collector.certificates.ca.parent, pki.Subject("agent", name), now=datetime.now(UTC))
    context = ssl.create_default_context(cafile=collector.certificates.ca)
    context.load_cert_chain(issued.certificate_file, issued.key_file)
    return context


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_what_was_acknowledged_comes_out(collector: CollectorProcess, port: int, kills: int) -> None:
    """At whatever instruction the process was; what was not, comes again: each event at least once, in order."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    agents = [
        Agent(name, port=port, context=_context(collector, name), version=version) for name, version in _AGENTS.items()
    ]
    collector.start()  # with the agents' certificates in its PKI, so it knows them
    for agent in agents:
        agent.start()
    for _ in range(kills):
        time.sleep(moments.uniform(0.3, 1.0))  # the random moment itself
        collector.kill()
        collector.start()
    for agent in agents:
        agent.stop()
        assert agent.faults == []
    collector.process.wait_until(lambda: collector.pending() == 0, "empty backlog", 60)
    assert collector.stop() == 0
    delivered = [event["message"].split() for event in collector.events()]
    for agent in agents:
        numbers = [int(number) for name, number in delivered if name == agent.name]
        assert agent.acknowledged > kills, "too little happened to prove anything"
        first_times = list(dict.fromkeys(numbers))
        assert first_times[: agent.acknowledged * _LINES] == list(range(agent.acknowledged * _LINES))
        doubles = sum(times - 1 for times in Counter(numbers).values())
        assert doubles <= (kills + 1) * _WINDOW * _LINES
        print(f"{agent.name}: {agent.acknowledged * _LINES} acknowledged, {doubles} came twice")
