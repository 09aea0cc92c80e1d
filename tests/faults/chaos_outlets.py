"""Where the collector of a chaos run delivers to: real receivers, each with the link before it and what may befall it.

One more receiver is one more class here and one line in OUTLETS. An outlet promises that `lines` gives every event it
ever owned, once all faults are over, as the JSON lines the collector made; what it answered for survives its kills.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from chaos_plan import LINK, SERVICE, Kind
from collector_process import Certificates
from kafka_topic import read_topic
from proxy import FaultProxy
from services.kafka import Cluster
from services.process import ServiceProcess, free_port, listens

from ndcollector.outputs import OUTPUTS

_RECEIVER = Path(__file__).with_name("chaos_receiver.py")

IMPATIENT = {"retry": {"initial": "100ms", "maximum": "500ms"}, "breaker": {"open_for": "500ms"}, "timeout": "10s"}
"""So that a run of minutes sees many tries."""


class Victim:
    """A process that may be killed, stopped, frozen and started again; `process` is the one that runs now."""

    def __init__(self, process: Callable[[], ServiceProcess], start: Callable[[], None]) -> None:
        self.process = process
        self.start = start


class Outlet(Protocol):
    """See the module. `start` returns once the receiver answers; `close` ends it and what it started."""

    name: str
    kinds: Mapping[str, Sequence[Kind]]
    """Its own targets besides its link, by name."""

    def start(self) -> None: ...

    def settings(self) -> dict[str, Any]: ...

    def links(self) -> dict[str, FaultProxy]: ...

    def victims(self) -> dict[str, Victim]: ...

    def lines(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class FileOutlet:
    """The `file` output; its faults are those of the disk."""

    name = "archive"
    kinds: Mapping[str, Sequence[Kind]] = {}

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory / "out"
        self.directory.mkdir(parents=True)

    def start(self) -> None:
        """Nothing to start."""

    def settings(self) -> dict[str, Any]:
        """Of the output."""
        return {"type": "file", "path": str(self.directory / "{stream}.ndjson"), **IMPATIENT}

    def links(self) -> dict[str, FaultProxy]:
        """None."""
        return {}

    def victims(self) -> dict[str, Victim]:
        """None."""
        return {}

    def lines(self) -> Iterator[bytes]:
        """Whole lines only: the last may be on its way."""
        file = self.directory / "security_events.ndjson"
        if file.exists():
            with file.open("rb") as lines:
                yield from (line for line in lines if line.endswith(b"\n"))

    def close(self) -> None:
        """Nothing to end."""


class KafkaOutlet:
    """The `kafka` output and a real broker, which tells clients the address of the link."""

    name = "bus"
    kinds: Mapping[str, Sequence[Kind]] = {"kafka": SERVICE, "link kafka": LINK}
    _TOPIC = "security_events"

    def __init__(self, directory: Path, seed: int) -> None:
        self._cluster = Cluster(directory / "kafka")
        [self._node] = self._cluster.nodes
        host, port = self._node.address().split(":")
        self._link = FaultProxy(target=(host, int(port)), seed=seed)

    def start(self) -> None:
        """Broker, link, topic."""
        self._link.start()
        self._node.advertised["PLAINTEXT"] = f"127.0.0.1:{self._link.port}"
        self._cluster.__enter__()
        self._cluster.create_topic(self._TOPIC, partitions=3)

    def settings(self) -> dict[str, Any]:
        """Of the output."""
        servers = [f"127.0.0.1:{self._link.port}"]
        topics = {self._TOPIC: self._TOPIC}
        return {"type": "kafka", "bootstrap_servers": servers, "topics": topics, "request_timeout": "2s", **IMPATIENT}

    def links(self) -> dict[str, FaultProxy]:
        """Between collector and broker."""
        return {"link kafka": self._link}

    def victims(self) -> dict[str, Victim]:
        """The broker."""
        return {"kafka": Victim(lambda: self._node.process, self._node.start)}

    def lines(self) -> Iterator[bytes]:
        """Every record of the topic."""
        for record in asyncio.run(read_topic(self._cluster.bootstrap(), self._TOPIC)):
            assert record.value is not None
            yield record.value

    def close(self) -> None:
        """Broker, link."""
        self._cluster.close()
        self._link.close()


class HttpsOutlet:
    """The `https` output and chaos_receiver.py, with certificates of its own."""

    name = "web"
    kinds: Mapping[str, Sequence[Kind]] = {"receiver": SERVICE, "link receiver": LINK}

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory / "receiver"
        self._directory.mkdir(parents=True)
        self._certificates = Certificates.make(self._directory / "pki")
        self._port = free_port()
        self._link = FaultProxy(target=("127.0.0.1", self._port), seed=seed)
        self._process: ServiceProcess | None = None

    def start(self) -> None:
        """Link and receiver."""
        self._link.start()
        self._launch()

    def _launch(self) -> None:
        files = (self._certificates.server_cert, self._certificates.server_key, self._events)
        command = [sys.executable, str(_RECEIVER), str(self._port), *map(str, files)]
        self._process = ServiceProcess("receiver", command, directory=self._directory)
        self._process.until_ready(listens(self._port), "listener")

    @property
    def _events(self) -> Path:
        return self._directory / "events.ndjson"

    def settings(self) -> dict[str, Any]:
        """Of the output."""
        where = {"url": f"https://localhost:{self._link.port}/events", "tls": {"ca_file": str(self._certificates.ca)}}
        patience = {"connect_timeout": "2s", "request_timeout": "5s", "endpoint_breaker": {"open_for": "500ms"}}
        return {"type": "https", **where, **IMPATIENT, **patience}

    def links(self) -> dict[str, FaultProxy]:
        """Between collector and receiver."""
        return {"link receiver": self._link}

    def victims(self) -> dict[str, Victim]:
        """The receiver."""
        return {"receiver": Victim(self._running, self._launch)}

    def _running(self) -> ServiceProcess:
        assert self._process is not None
        return self._process

    def lines(self) -> Iterator[bytes]:
        """What it has synced."""
        with self._events.open("rb") as lines:
            yield from (line for line in lines if line.endswith(b"\n"))

    def close(self) -> None:
        """Receiver, link."""
        if self._process is not None:
            self._process.kill()
        self._link.close()


_ALL: dict[str, Callable[[Path, int], Outlet]] = {
    "file": FileOutlet,
    "kafka": KafkaOutlet,
    "https": HttpsOutlet,
}
OUTLETS = {name: outlet for name, outlet in _ALL.items() if name in OUTPUTS}
"""By output type: made with the run's directory and the seed."""
