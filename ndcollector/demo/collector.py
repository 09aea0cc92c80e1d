"""The demo's collector: a real `ndcollector run` in a process of its own, on loopback, with its own PKI and files.

Promises: all of it lies in one directory that holds nothing else; the numbers come from the daemon's /metrics.
Refuses: touching a directory that an earlier demo did not make.
"""

import asyncio
import shutil
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from ndcollector import pki
from ndcollector.client_sockets import connector
from ndcollector.demo.senders import Credentials

_MARK = ".ndcollector-demo"
_START_SECONDS = 20.0
_STOP_SECONDS = 40.0  # the daemon drains for at most 30
_LOOK_SECONDS = 0.05
_KEPT_FILES = 4  # of 256 MiB, when the demo runs until somebody thinks of it

_CONFIGURATION = """\
# Written by `ndcollector demo`: a collector as you would set it up, with everything in one directory.
node_name: demo-collector
state_dir: state
tls:
  ca_file: pki/ca.crt
  cert_file: pki/server.crt
  key_file: pki/server.key
inputs:
  syslog_tls:
    listen: ["127.0.0.1:{ports[0]}", "127.0.0.1:{ports[1]}"]
  https:
    listen: ["127.0.0.1:{https_port}"]
  mqtt:
    listen: ["127.0.0.1:{mqtt_port}"]
outputs:
  archive:
    type: file
    path: "events/{{stream}}.ndjson"
    rotate: {{max_bytes: 256MiB, keep: {keep}}}
{bus}admin:
  listen: "127.0.0.1:{admin_port}"
  socket: admin.sock
"""
_BUS = """\
  bus:
    type: kafka
    bootstrap_servers: ["{bootstrap}"]
    topics:                               # one broker can keep one copy; a real cluster keeps three
      security_events: {{name: security_events, replication: 1}}
      alerts: {{name: alerts, replication: 1}}
      metrics: {{name: metrics, replication: 1}}
"""


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The daemon's ledger in three numbers, and what is still on its way; `delivered` is what every output has."""

    received: int = 0
    delivered: int = 0
    dropped: int = 0
    pending: int = 0


def free_ports(wanted: Iterable[int]) -> list[int]:
    """The wanted loopback ports, each replaced by one of the kernel's choice where it is taken."""
    held, ports = [], []
    for port in wanted:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.bind(("127.0.0.1", 0))
        held.append(listener)
        ports.append(listener.getsockname()[1])
    for listener in held:
        listener.close()
    return ports


class DemoCollector:
    """`prepare`, `configure`, `start`, `counts`, `stop`; `ports` are those of syslog.

    `forgets`: only the newest files are kept.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.config = self.directory / "ndcollector.yaml"
        self.log = self.directory / "collector.log"
        self.ports: list[int] = []
        self.admin_port = self.https_port = self.mqtt_port = 0
        self.forgets = False
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether the daemon's process is there."""
        return self._process is not None and self._process.returncode is None

    def prepare(self, *, forgets: bool) -> None:
        """A fresh directory with a CA and the collector's certificate; raises DemoError."""
        mark = self.directory / _MARK
        if self.directory.exists() and any(self.directory.iterdir()):
            if not mark.exists():
                raise DemoError(f"{self.directory} is not empty and not from a demo; choose another with --state DIR")
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        mark.touch()
        *self.ports, self.https_port, self.mqtt_port, self.admin_port = free_ports((6514, 6515, 8443, 8883, 9600))
        pki.init(
            self.directory / "pki",
            pki.Subject("server", "demo-collector", ("localhost",), ("127.0.0.1",)),
            now=datetime.now(UTC),
        )
        self.forgets = forgets

    def configure(self, *, bootstrap: str | None) -> None:
        """Write the configuration: events go to files, and to the topics of a broker where there is one."""
        bus = _BUS.format(bootstrap=bootstrap) if bootstrap else ""
        keep = _KEPT_FILES if self.forgets else 0
        self.config.write_text(
            _CONFIGURATION.format(
                ports=self.ports, https_port=self.https_port, mqtt_port=self.mqtt_port, admin_port=self.admin_port,
                keep=keep, bus=bus,
            )
        )  # fmt: skip

    async def apply_topics(self) -> None:
        """Let `ndcollector topics apply` make the topics and say what it does; raises DemoError."""
        command = [sys.executable, "-m", "ndcollector", "topics", "apply", "-c", str(self.config)]
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr)
        if await process.wait():
            raise DemoError("the topics could not be made; why stands above")

    def credentials(self, name: str) -> Credentials:
        """A certificate for a device, from the demo's own CA."""
        issued = pki.issue(self.directory / "pki", pki.Subject("device", name), now=datetime.now(UTC))
        if issued.key_file is None:
            raise DemoError(f"no key was made for {name}")
        return Credentials(issued.ca_file, issued.certificate_file, issued.key_file)

    async def start(self) -> None:
        """Run the daemon and wait until it takes data; raises DemoError with the end of its log."""
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "ndcollector",
                "run",
                "-c",
                str(self.config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which stops the senders first
            )
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                while self._process.returncode is None:
                    if await self._get("ready") is not None:
                        return
                    await asyncio.sleep(_LOOK_SECONDS)
        await self.stop()
        end = self.log.read_text(errors="replace")[-2000:]
        raise DemoError(f"the collector did not start; the end of {self.log}:\n{end}")

    async def counts(self) -> Counts | None:
        """The daemon's numbers now; None when it does not answer."""
        text = await self._get("metrics")
        if text is None:
            return None
        sums: dict[str, int] = {}
        delivered: dict[str, int] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name, value = sample.name.removesuffix("_total"), int(sample.value)
                sums[name] = sums.get(name, 0) + value
                if name == "nd_output_delivered_events":
                    output = sample.labels["output"]
                    delivered[output] = delivered.get(output, 0) + value
        lost = ("nd_input_dropped_events", "nd_output_quarantined_events", "nd_output_evicted_events")
        return Counts(
            received=sums.get("nd_input_received_events", 0),
            delivered=min(delivered.values(), default=0),
            dropped=sum(sums.get(name, 0) for name in lost),
            pending=sums.get("nd_output_pending_events", 0),
        )

    async def stop(self) -> int | None:
        """Ask the daemon to stop and wait until it did; its exit status, None if it had to be killed."""
        process = self._process
        if process is None:
            return None
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            return None

    def event_files(self) -> list[Path]:
        """The files the events went to, oldest first."""
        return sorted((self.directory / "events").glob("*.ndjson"))

    def lines_in_files(self) -> int:
        """How many whole lines the output wrote."""
        total = 0
        for path in self.event_files():
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    total += chunk.count(b"\n")
        return total

    async def _get(self, what: str) -> str | None:
        url = f"http://127.0.0.1:{self.admin_port}/{what}"
        try:
            limit = aiohttp.ClientTimeout(total=5)
            async with (
                aiohttp.ClientSession(connector=connector(), timeout=limit) as session,
                session.get(url) as response,
            ):
                return await response.text() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None
