"""Where the collector of a chaos run delivers to: real receivers, each with the link before it and what may befall it.

One more receiver is one more class here and one line in OUTLETS. An outlet promises that `lines` gives every event it
ever owned, once all faults are over, as the JSON lines the collector made; what it answered for survives its kills.
Refuses: all of them in one run, unless asked: `drawn` gives a seed's own few, so that a small machine can carry them.
"""

import asyncio
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson
from chaos_plan import LINK, SERVICE, Kind
from collector_process import Certificates
from kafka_topic import read_topic
from proxy import FaultProxy
from s3_site import Server, Store
from services import fetch, rsyslog
from services.kafka import Cluster
from services.process import ServiceProcess, free_port, listens

from ndcollector.outputs import OUTPUTS

_RECEIVER = Path(__file__).with_name("chaos_receiver.py")
_STORES = Path(__file__).with_name("chaos_stores.py")
_S3 = Path(__file__).with_name("chaos_s3.py")

IMPATIENT = {"retry": {"initial": "100ms", "maximum": "500ms"}, "breaker": {"open_for": "500ms"}, "timeout": "10s"}
"""So that a run of minutes sees many tries."""
IMPATIENT_HTTP = {"connect_timeout": "2s", "request_timeout": "5s", "endpoint_breaker": {"open_for": "500ms"}}
SPLUNK_TOKEN = "11111111-2222-3333-4444-555555555555"
HEALTH = "/services/collector/health"


class Victim:
    """A process that may be killed, stopped, frozen and started again; `process` is the one that runs now."""

    def __init__(self, process: Callable[[], ServiceProcess], start: Callable[[], None]) -> None:
        self.process = process
        self.start = start


class Outlet(Protocol):
    """See the module. `start` returns once the receiver answers; `close` ends it and what it started."""

    name: str
    kinds: Mapping[str, Sequence[Kind]]
    """Its own targets, by name."""
    once: bool
    """Whether it has each event once, whatever is killed."""
    by_id: bool
    """Whether two events with the same event.id are one to it."""

    def start(self) -> None: ...

    def settings(self) -> dict[str, Any]: ...

    def links(self) -> dict[str, FaultProxy]: ...

    def victims(self) -> dict[str, Victim]: ...

    def lines(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class FileOutlet:
    """The `file` output; its faults are those of the disk."""

    name = "archive"
    once = by_id = False
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
    once = by_id = False
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


class _ProcessOutlet:
    """A receiver that is one process, and the link before it."""

    name: str
    once = by_id = False
    what: str
    """The process, as a target of faults."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory / self.what
        self.directory.mkdir(parents=True)
        self.port = free_port()
        self.link = FaultProxy(target=("127.0.0.1", self.port), seed=seed)
        self.kinds: Mapping[str, Sequence[Kind]] = {self.what: SERVICE, f"link {self.what}": LINK}
        self._process: ServiceProcess | None = None

    @property
    def file(self) -> Path:
        """What it has on disk."""
        return self.directory / "events.ndjson"

    def start(self) -> None:
        """Link and receiver."""
        self.link.start()
        self._start_again()

    def _start_again(self) -> None:
        self._process = self.launch()

    def launch(self) -> ServiceProcess:
        """The process, once it answers."""
        command = [sys.executable, *map(str, self.arguments())]
        return ServiceProcess(self.what, command, directory=self.directory).until_ready(listens(self.port), "listener")

    def arguments(self) -> Sequence[object]:
        """Python's."""
        return [_STORES, self.what, self.port, self.file]

    def links(self) -> dict[str, FaultProxy]:
        """Between collector and receiver."""
        return {f"link {self.what}": self.link}

    def victims(self) -> dict[str, Victim]:
        """The receiver."""
        return {self.what: Victim(self._running, self._start_again)}

    def _running(self) -> ServiceProcess:
        assert self._process is not None
        return self._process

    def lines(self) -> Iterator[bytes]:
        """What it has synced."""
        if self.file.exists():
            with self.file.open("rb") as lines:
                yield from (line for line in lines if line.endswith(b"\n"))

    def close(self) -> None:
        """Receiver, link."""
        if self._process is not None:
            self._process.kill()
        self.link.close()


class HttpsOutlet(_ProcessOutlet):
    """The `https` output and chaos_receiver.py, with certificates of its own."""

    name, what = "web", "receiver"

    def __init__(self, directory: Path, seed: int) -> None:
        super().__init__(directory, seed)
        self._certificates = Certificates.make(self.directory / "pki")

    def arguments(self) -> Sequence[object]:
        """See the base class."""
        return [_RECEIVER, self.port, self._certificates.server_cert, self._certificates.server_key, self.file]

    def settings(self) -> dict[str, Any]:
        """Of the output."""
        where = {"url": f"https://localhost:{self.link.port}/events", "tls": {"ca_file": str(self._certificates.ca)}}
        return {"type": "https", **where, **IMPATIENT, **IMPATIENT_HTTP}


class ElasticsearchOutlet(_ProcessOutlet):
    """The `elasticsearch` output, which installs its template, and a cluster that keeps what it answers for."""

    name, what = "search", "elasticsearch"
    once = by_id = True

    def settings(self) -> dict[str, Any]:
        """Of the output."""
        where = {"url": f"http://127.0.0.1:{self.link.port}", "template": "manage"}
        return {"type": "elasticsearch", **where, **IMPATIENT, **IMPATIENT_HTTP}

    def lines(self) -> Iterator[bytes]:
        """Its documents."""
        for entry in map(orjson.loads, super().lines()):
            if "kind" not in entry:
                yield orjson.dumps(entry["source"])


class SplunkOutlet(_ProcessOutlet):
    """The `splunk_hec` output with `ack`, and an indexer that forgets its queue and channels when it is killed."""

    name, what = "siem", "splunk"

    def settings(self) -> dict[str, Any]:
        """Of the output: an acknowledgement that will not come is given up early enough for the end of a run."""
        where = {"url": f"http://127.0.0.1:{self.link.port}", "token": SPLUNK_TOKEN, "ack": True}
        patience = {"ack_timeout": "4s", "ack_poll": "200ms", "health": {"path": HEALTH, "every": "1s"}}
        return {"type": "splunk_hec", **where, **patience, **IMPATIENT, **IMPATIENT_HTTP}


class S3Outlet(_ProcessOutlet):
    """The `s3` output and moto with a journal; read as any other reader would, by the official SDK."""

    name, what = "lake", "s3"
    once = True

    def arguments(self) -> Sequence[object]:
        """See the base class."""
        return [_S3, self.port, self.file]

    def start(self) -> None:
        """And a bucket."""
        super().start()
        self._bucket = Store(Server(self.port))

    def settings(self) -> dict[str, Any]:
        """Of the output: objects each second, or a run of a minute would see one."""
        keys = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": "secret"}
        where = {"bucket": self._bucket.bucket, "endpoint": f"http://127.0.0.1:{self.link.port}", **keys}
        return {"type": "s3", **where, "batch_age": "1s", "connect_timeout": "2s", **IMPATIENT}

    def lines(self) -> Iterator[bytes]:
        """Of all objects."""
        for key in self._bucket.keys():  # noqa: SIM118 - a method of ours, no dict
            yield from self._bucket.lines(key).splitlines()


class RelpOutlet(_ProcessOutlet):
    """The `relp` output over mTLS, and a real rsyslog that syncs each message before it answers."""

    name, what = "relay", "rsyslog"

    def __init__(self, directory: Path, seed: int) -> None:
        super().__init__(directory, seed)
        self._certificates = Certificates.make(self.directory / "pki")

    def launch(self) -> ServiceProcess:
        """See the base class."""
        made = self._certificates
        pki = {"ca": made.ca, "cert": made.server_cert, "key": made.server_key}
        config = rsyslog.relp_receiver(
            self.directory, port=self.port, library="openssl", pki=pki, peer="device-1", file=self.file, synced=True
        )
        (self.directory / "rsyslog.pid").unlink(missing_ok=True)  # a kill leaves it, and the number may be another's
        return rsyslog.start(config, self.directory, port=self.port, service=fetch.RSYSLOG_RELP)

    def settings(self) -> dict[str, Any]:
        """Of the output: events as JSON, so that the account can read all of them."""
        made = self._certificates
        files = {"ca_file": str(made.ca), "cert_file": str(made.client_cert), "key_file": str(made.client_key)}
        where = {"endpoints": [f"127.0.0.1:{self.link.port}"], "tls": {**files, "server_name": "localhost"}}
        return {"type": "relp", **where, "format": "ecs", "connect_timeout": "2s", **IMPATIENT}

    def lines(self) -> Iterator[bytes]:
        """Without their syslog headers."""
        for line in super().lines():
            yield line[line.index(b'{"') :]


_ALL: dict[str, Callable[[Path, int], Outlet]] = {
    "file": FileOutlet,
    "kafka": KafkaOutlet,
    "https": HttpsOutlet,
    "elasticsearch": ElasticsearchOutlet,
    "splunk_hec": SplunkOutlet,
    "s3": S3Outlet,
    "relp": RelpOutlet,
}
OUTLETS = {name: outlet for name, outlet in _ALL.items() if name in OUTPUTS}
"""By output type: made with the run's directory and the seed."""


def drawn(seed: int) -> list[str]:
    """The outlets of a seed: file, and two or three others; seeds in a row meet every receiver in turn."""
    others = sorted(OUTLETS.keys() - {"file"})
    first = others.pop(seed % len(others))
    return ["file", first, *random.Random(seed).sample(others, 1 + seed // len(OUTLETS) % 2)]
