"""Everything real that a chaos run has: collector, agents, broker, devices, receivers, and a faulty link on every way.

    s1 ──link syslog──────────►┐                            ┌──► archive (file, on a small disk)
    s2 ══far cable════════════►│                            │
    a1 ══far cable══ https ═══►│ collector (faulty disk and ├──links──► receivers, see chaos_outlets.py
    a2 ──link mqtt, link https►│ clock; state on a small disk)
    a3 ─link broker-agents─► mosquitto ─link broker-collector─►┘

Without root and namespaces of our own there is no far cable and no small disk: s2 and a1 come over links then.

Promises: everything lies below the directory and every process is ended by its own id in `close`, whatever state it is
in; `start_patiently` starts a daemon again and again, as systemd does, while a fault keeps it from starting.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from agent_process import AgentProcess, run
from broker_site import Broker, snippet
from chaos_outlets import FileOutlet, Outlet, Victim
from collector_process import Certificates, CollectorProcess
from far_network import FarNetwork
from faulty_daemon import order
from proxy import FaultProxy
from services.process import ServiceProcess, free_port

from ndcollector import pki

_HERE = Path(__file__).resolve().parent
_AGAIN_SECONDS = 0.5
_ADDRESSES = ("127.0.0.1", FarNetwork.near_address)


class Faulty:
    """Mixin for a process of ours that runs on a faulty machine; see faulty_daemon.py."""

    package: str
    before: Sequence[str] = ()
    directory: Path
    _one_at_a_time = threading.Lock()  # its disk, its clock and its death are threads of their own

    @property
    def _control(self) -> Path:
        return self.directory / "faults.sock"

    def program(self) -> list[str]:
        """The daemon, on that machine as it is now."""
        self.faults: dict[str, Any] = getattr(self, "faults", {})
        script = [sys.executable, str(_HERE / "faulty_daemon.py")]
        return [*self.before, *script, str(self._control), json.dumps(self.faults), self.package]

    def suffer(self, **faults: Any) -> None:
        """Change some; None takes one away. A daemon that is down meets them when it starts."""
        with self._one_at_a_time, contextlib.suppress(OSError):
            merged = {**getattr(self, "faults", {}), **faults}
            self.faults = {name: value for name, value in merged.items() if value is not None}
            order(self._control, self.faults)


class FaultyCollector(Faulty, CollectorProcess):
    """The collector."""

    package = "ndcollector"


class FaultyAgent(Faulty, AgentProcess):
    """An agent; `before` puts it into the far network."""

    package = "ndagent"


class SmallDisk:
    """A tmpfs of its own that can be full from one moment to the next. Only in a private mount namespace."""

    def __init__(self, where: Path, size_bytes: int) -> None:
        self._where = where
        self._size_bytes = size_bytes
        where.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=750", "none", where], check=True)

    def fill(self) -> None:
        """No room for another page."""
        for _ in range(100):  # what is written meanwhile makes the new size too small: refused
            found = os.statvfs(self._where)
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            if self._resize(used):
                return

    def free(self) -> None:
        """As large as it was."""
        self._resize(self._size_bytes)

    def _resize(self, size_bytes: int) -> bool:
        command = ["mount", "-o", f"remount,size={size_bytes}", self._where]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


class Site:
    """See the module."""

    def __init__(
        self, directory: Path, *, seed: int, outlets: Sequence[Outlet], far: FarNetwork | None, own_mounts: bool
    ) -> None:
        self.directory = directory
        self.outlets = outlets
        self.far = far
        self.over = threading.Event()
        self._seed = seed
        self.disks = self._small_disks(own_mounts)
        server = pki.Subject("server", "collector-1", dns=("localhost",), ips=_ADDRESSES)
        self.pki = directory / "pki"
        pki.init(self.pki, server, now=datetime.now(UTC))
        self._issue("device-1", "client")
        self.https_port, self.mqtt_port = free_port(), free_port()
        self.broker = Broker(directory / "broker", self.pki, port=free_port())
        self.links = {name: FaultProxy(target=("127.0.0.1", self.broker.port), seed=seed) for name in _BROKER_LINKS}
        for link in self.links.values():
            link.start()
        self.collector = FaultyCollector(
            directory / "collector", Certificates.below(self.pki), settings=self._settings(),
            only=[outlet.name for outlet in outlets],
        )
        for name, port in (("link syslog", self.collector.ports[0]), ("link https", self.https_port),
                           ("link mqtt", self.mqtt_port)):
            self.links[name] = FaultProxy(target=("127.0.0.1", port), seed=seed)
            self.links[name].start()
        self.agents: dict[str, FaultyAgent] = {}
        self.devices: dict[str, ServiceProcess] = {}

    # ---- making it

    def _small_disks(self, own_mounts: bool) -> dict[str, SmallDisk]:
        if not own_mounts:
            return {}
        disks = {"disk state": SmallDisk(self.directory / "collector" / "state", 256 << 20)}
        for outlet in self.outlets:
            if isinstance(outlet, FileOutlet):
                disks["disk archive"] = SmallDisk(outlet.directory, 1 << 30)
        return disks

    def _issue(self, name: str, stem: str) -> None:
        issued = pki.issue(self.pki, pki.Subject("device", name), now=datetime.now(UTC))
        assert issued.key_file is not None
        (self.pki / f"{stem}.crt").write_bytes(issued.certificate_file.read_bytes())
        (self.pki / f"{stem}.key").write_bytes(issued.key_file.read_bytes())

    def _settings(self) -> dict[str, Any]:
        own = yaml.safe_load(snippet("/etc/ndcollector/ndcollector.yaml"))["inputs"]["mqtt_broker"]
        files = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}
        own |= {"endpoint": f"localhost:{self.links['link broker-collector'].port}", "keep_alive": 2}
        own |= {"tls": {key: str(self.pki / name) for key, name in files.items()}, "connect_timeout": 3}
        inputs = {
            "https": {"listen": [f"0.0.0.0:{self.https_port}"]},
            "mqtt": {"listen": [f"0.0.0.0:{self.mqtt_port}"]},
            "mqtt_broker": own,
        }
        return {
            "spool": {"segment_bytes": "64KiB"},
            "inputs": inputs,
            "outputs": {outlet.name: outlet.settings() for outlet in self.outlets},
            "agents": {"endpoints": {"https": [f"localhost:{self.https_port}"]}},
            "log": {"level": "info"},
        }

    def start(self) -> None:
        """All of it, in fair weather; AssertionError with a log's end for what does not come up."""
        self.change(lambda config: config["inputs"]["syslog_tls"].update(
            listen=[f"0.0.0.0:{port}" for port in self.collector.ports]))
        self.broker.start()
        self.collector.start()
        ways = {
            "a1": self._direct() if self.far else self._over_links(),
            "a2": self._over_links(),
            "a3": self._over_broker(),
        }
        with ThreadPoolExecutor() as side_by_side:
            self.agents = dict(zip(ways, side_by_side.map(self._enrolled, ways, ways.values()), strict=True))
        if self.far:
            self.agents["a1"].before = self.far.prefix
        for agent in self.agents.values():
            agent.start()
        self._start_device("s1", ("127.0.0.1", self.links["link syslog"].port), before=())
        if self.far:
            self._start_device("s2", (self.far.near_address, self.collector.ports[1]), before=self.far.prefix)
        else:
            self._start_device("s2", ("127.0.0.1", self.links["link syslog"].port), before=())

    def _direct(self) -> dict[str, Any]:
        address = FarNetwork.near_address
        return {
            "https": {"endpoints": [f"{address}:{self.https_port}"], "timeout": "5s", "connect_timeout": "2s"},
            "mqtt": {"endpoints": [f"{address}:{self.mqtt_port}"], "keepalive": "5s", "connect_timeout": "2s"},
        }

    def _over_links(self) -> dict[str, Any]:
        https, mqtt = (f"localhost:{self.links[name].port}" for name in ("link https", "link mqtt"))
        return {
            "mqtt": {"endpoints": [mqtt], "keepalive": "5s", "connect_timeout": "2s"},
            "https": {"endpoints": [https], "timeout": "5s", "connect_timeout": "2s"},
        }

    def _over_broker(self) -> dict[str, Any]:
        outputs: dict[str, Any] = yaml.safe_load(snippet("/etc/ndagent/ndagent.yaml"))["outputs"]
        outputs["mqtt"] |= {"endpoints": [f"localhost:{self.links['link broker-agents'].port}"], "keepalive": "5s"}
        outputs["mqtt"]["broker"]["tls"]["ca_file"] = str(self.pki / "ca.crt")
        return outputs

    def _enrolled(self, name: str, outputs: dict[str, Any]) -> FaultyAgent:
        # The default, drop_oldest, gives up events when the agent's disk is full: counted, told, and not owed.
        delivery: dict[str, Any] = {"on_full": "block", "timeout": "5s"}
        delivery |= {"retry": {"maximum": "500ms"}, "breaker": {"open_for": "500ms"}}
        settings = {"outputs": outputs, "delivery": delivery, "status_every": "1s"}
        agent = FaultyAgent(self.directory / name, settings=settings)
        done = run("ndcollector", "agents", "token", "create", "-c", str(self.collector.config))
        assert done.returncode == 0, done.stderr
        agent.enroll(f"https://localhost:{self.https_port}", done.stdout.split()[0])
        return agent

    def _start_device(self, name: str, address: tuple[str, int], *, before: Sequence[str]) -> None:
        host, port = address
        arguments = [name, host, str(port), str(self.pki), str(self._seed), str(self.journal(name))]
        command = [*before, sys.executable, str(_HERE / "chaos_sender.py"), *arguments]
        self.devices[name] = ServiceProcess(name, command, directory=self.directory)

    # ---- what faults are done to

    def journal(self, device: str) -> Path:
        """What a device says of its connections."""
        return self.directory / f"{device}.journal"

    def victims(self) -> dict[str, Victim]:
        """Processes that may be killed, by the target's name."""
        found = {name: Victim(self._process_of(agent), agent.start) for name, agent in self.agents.items()}
        found["collector"] = Victim(lambda: self.collector.process, lambda: void(self.collector.start()))
        found["mosquitto"] = Victim(self._broker_process, self.broker.start)
        for outlet in self.outlets:
            found |= outlet.victims()
        return found

    def _process_of(self, agent: AgentProcess) -> Callable[[], ServiceProcess]:
        return lambda: agent.process

    def _broker_process(self) -> ServiceProcess:
        assert self.broker.process is not None
        return self.broker.process

    def start_patiently(self, victim: Victim, *, limit_seconds: float) -> None:
        """Start it until it runs; AssertionError with its log's end after `limit_seconds`."""
        deadline = time.monotonic() + limit_seconds
        while True:
            try:
                return victim.start()
            except (AssertionError, OSError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(_AGAIN_SECONDS)

    def change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit the collector's configuration as a person would: the daemon sees a saved file."""
        config = yaml.safe_load(self.collector.config.read_text())
        edit(config)
        replacement = self.collector.config.with_suffix(".new")
        replacement.write_text(yaml.safe_dump(config, sort_keys=False))
        replacement.replace(self.collector.config)

    def renew_certificate(self, number: int) -> None:
        """Another pair for the collector's listeners, taken up by a reload."""
        subject = pki.Subject("server", f"renewed-{number}", dns=("localhost",), ips=_ADDRESSES)
        made = pki.issue(self.pki, subject, now=datetime.now(UTC))
        files = {"cert_file": str(made.certificate_file), "key_file": str(made.key_file)}
        self.change(lambda config: config["tls"].update(files))

    # ---- the end

    def stop_devices(self, limit_seconds: float) -> None:
        """Let them end what they have begun."""
        for device in self.devices.values():
            os.kill(device.pid, signal.SIGTERM)
        for device in self.devices.values():
            device.stop(limit_seconds)

    def close(self) -> None:
        """End every process and link that there is."""
        processes = [agent._process for agent in self.agents.values()]
        processes += [*self.devices.values(), self.collector._process, self.broker.process]
        for process in processes:
            if process is not None:
                process.kill()
        for link in self.links.values():
            link.close()


_BROKER_LINKS = ("link broker-agents", "link broker-collector")


def void(_result: object) -> None:
    """For callables that return something where nothing is wanted."""
