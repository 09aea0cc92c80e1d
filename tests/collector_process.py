"""A real collector as a process of its own, with fresh certificates: what end-to-end tests and benchmarks start.

Promises: `start()` returns once the daemon has told READY=1 over sd_notify, and says how long that took; ports are
free ones of the moment; everything lives below the directory given; it is ended by its own process id.
"""

import json
import os
import secrets
import socket
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from services.process import ServiceProcess, free_port

from ndcollector import pki

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS = 20.0  # a start takes well under 2 s; the rest is for a machine that is busy with other tests


@dataclass(frozen=True)
class Certificates:
    """One authority, the collector's certificate for `localhost`, and a client's."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path

    @classmethod
    def make(cls, directory: Path, *, names: tuple[str, ...] = ("localhost",)) -> Self:
        """Fresh ones from the built-in CA, with its CRL beside them; the collector's is good for these DNS names."""
        now = datetime.now(UTC)
        pki.init(directory, pki.Subject("server", "collector-1", dns=names, ips=("127.0.0.1",)), now=now)
        issued = pki.issue(directory, pki.Subject("device", "device-1"), now=now)
        (directory / "client.crt").write_bytes(issued.certificate_file.read_bytes())
        assert issued.key_file is not None
        (directory / "client.key").write_bytes(issued.key_file.read_bytes())
        return cls.below(directory)

    @classmethod
    def below(cls, directory: Path) -> Self:
        """Those that make() left in the directory."""
        files = ("ca.crt", "server.crt", "server.key", "client.crt", "client.key")
        return cls(*(directory / file for file in files))

    @property
    def client_files(self) -> dict[str, Path]:
        """What a client is configured with."""
        return {"ca": self.ca, "cert": self.client_cert, "key": self.client_key}


class CollectorProcess:
    """`ndcollector run` with a configuration of its own; may be stopped or killed and started again."""

    def __init__(
        self,
        directory: Path,
        certificates: Certificates,
        *,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        only: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        """`settings` are merged over the default configuration, mapping by mapping; `only` these outputs stay.

        `pass_fds`: descriptors that it is started with, under the same numbers.
        """
        self.directory = directory
        self.certificates = certificates
        self.ports = (free_port(), free_port())
        self.admin_port = free_port()
        self.config = directory / "etc" / "ndcollector.yaml"  # apart from the log: this directory is watched
        self._environment = dict(environment or {})
        self._pass_fds = tuple(pass_fds)
        self._process: ServiceProcess | None = None
        self.config.parent.mkdir(parents=True, exist_ok=True)
        config = _merged(self._defaults(), settings or {})
        if only:
            config["outputs"] = {name: config["outputs"][name] for name in only}
        self.config.write_text(yaml.safe_dump(config, sort_keys=False))

    def _defaults(self) -> dict[str, Any]:
        files = self.certificates
        tls = {"ca_file": files.ca, "cert_file": files.server_cert, "key_file": files.server_key}
        return {
            "node_name": "collector-1",
            "state_dir": str(self.directory / "state"),
            "tls": {key: str(path) for key, path in tls.items()},
            "inputs": {"syslog_tls": {"listen": [f"127.0.0.1:{port}" for port in self.ports]}},
            "outputs": {"archive": {"type": "file", "path": str(self.directory / "out" / "{stream}.ndjson")}},
            "admin": {"listen": f"127.0.0.1:{self.admin_port}", "socket": str(self.directory / "admin.sock")},
        }

    def program(self) -> list[str]:
        """What `run -c …` is told to; fault tests put something between."""
        return [sys.executable, "-m", "ndcollector"]

    @property
    def output(self) -> Path:
        """Where the events of the stream security_events arrive."""
        return self.directory / "out" / "security_events.ndjson"

    @property
    def process(self) -> ServiceProcess:
        """The process that runs now or ran last."""
        if self._process is None:
            raise RuntimeError("the collector was not started")
        return self._process

    @property
    def pid(self) -> int:
        """Of the running daemon."""
        return self.process.pid

    def start(self, timeout_seconds: float = READY_SECONDS) -> float:
        """Start it and wait for READY=1; the seconds that took. AssertionError with the log's end if it fails."""
        address = f"nd-test-{secrets.token_hex(8)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind("\0" + address)
            notify.setblocking(False)
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": "@" + address, **self._environment}
            command = [*self.program(), "run", "-c", str(self.config)]
            began = time.monotonic()
            self._process = ServiceProcess(
                "ndcollector", command, directory=self.directory, environment=environment, pass_fds=self._pass_fds
            )
            try:
                self._process.wait_until(lambda: _is_ready(notify), "READY=1", timeout_seconds)
            except AssertionError:
                self._process.kill()
                raise
        return time.monotonic() - began

    def cpu_seconds(self) -> float:
        """What the running daemon has cost so far; unlike the clock, it does not count what else runs here."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5)

    def stop(self) -> int:
        """SIGTERM, and wait for the drain; the exit status."""
        return self.process.stop(timeout_seconds=45)

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        self.process.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.stop()

    def metrics(self) -> dict[str, float]:
        """The Prometheus samples, keyed as they stand in the text (`name{label="value"}`)."""
        url = f"http://127.0.0.1:{self.admin_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def pending(self) -> float:
        """Events in the spool that an output has still to deliver, by the ledger."""
        return sum(value for name, value in self.metrics().items() if name.startswith("nd_output_pending_events{"))

    def events(self) -> list[dict[str, Any]]:
        """The events in the output file; a last line that is still being written is left out."""
        if not self.output.exists():
            return []
        return [json.loads(line) for line in self.output.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def wait_for_lines(self, count: int, timeout_seconds: float = 15) -> None:
        """Wait until the output file has at least so many lines; AssertionError names how many came."""
        self.process.wait_until(lambda: self._lines() >= count, f"{count} lines in {self.output.name}", timeout_seconds)

    def _lines(self) -> int:
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0


def _is_ready(notify: socket.socket) -> bool:
    try:
        return b"READY=1" in notify.recv(4096)
    except BlockingIOError:
        return False


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result
