"""A customer's mosquitto with mutual TLS and an access list between real agents and a real collector.

Promises: both are set up as docs/mqtt-broker.md tells people to: every file of that page is used, with this place's
paths and ports. The broker can be killed and started again on its port and files.
"""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from agent_process import AgentProcess, AgentSite
from services import fetch
from services.process import ServiceProcess, free_port, listens

PAGE = Path(__file__).resolve().parents[1] / "docs" / "mqtt-broker.md"
_QUIET_SECONDS = 1.0
COLLECTOR_NAME = "device-1"  # the common name in the certificate that it shows to the broker


def snippet(name: str) -> str:
    """A block of the page: the one that stands behind the file name in bold."""
    found = re.search(rf"\*\*`{re.escape(name)}`\*\*[^`]*```\w*\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, name
    return found[1]


class Broker:
    """mosquitto with the page's access list; `pki` is a directory with ca.crt, server.crt and server.key."""

    def __init__(self, directory: Path, pki: Path, *, port: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = port
        self.process: ServiceProcess | None = None
        self.acl = directory / "acl"
        self.acl.write_text(snippet("/etc/mosquitto/nd.acl").replace("collector-1", COLLECTOR_NAME))
        self.acl.chmod(0o600)
        places = {
            "8883": f"{self.port} 127.0.0.1",
            "/etc/mosquitto/certs/ca.crt": str(pki / "ca.crt"),
            "/etc/mosquitto/certs/broker.crt": str(pki / "server.crt"),
            "/etc/mosquitto/certs/broker.key": str(pki / "server.key"),
            "/etc/mosquitto/nd.acl": str(self.acl),
            "/var/lib/mosquitto": str(directory),
        }
        self._config = snippet("/etc/mosquitto/conf.d/neurodefender.conf")
        for ours, here in places.items():
            assert ours in self._config, ours
            self._config = self._config.replace(ours, here)

    @property
    def endpoint(self) -> str:
        return f"localhost:{self.port}"

    def start(self) -> None:
        """Start it, again if it was killed."""
        file = self.directory / "mosquitto.conf"
        file.write_text(f"user root\n{self._config}")
        service = fetch.ensure(fetch.MOSQUITTO)
        command = [service.path("usr/sbin/mosquitto"), "-c", file]
        self.process = ServiceProcess("mosquitto", command, directory=self.directory, environment=service.environment())
        self.process.until_ready(listens(self.port), f"listener on {self.port}")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()

    def wait_until_saved(self) -> None:
        """Until its file is older than what it looks at again and again: a change would have been written by now."""
        assert self.process is not None
        database = self.directory / "mosquitto.db"
        self.process.wait_until(lambda: time.time() - database.stat().st_mtime > _QUIET_SECONDS, "quiet database")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.kill()


class BrokerSite:
    """Collector, broker and agents that know each other through the broker alone (and HTTPS to enrol)."""

    def __init__(self, directory: Path, *, settings: Mapping[str, Any] | None = None) -> None:
        pki, port = directory / "pki", free_port()
        own = yaml.safe_load(snippet("/etc/ndcollector/ndcollector.yaml"))["inputs"]["mqtt_broker"]
        files = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}
        assert own["tls"].keys() == files.keys()
        own |= {"endpoint": f"localhost:{port}", "tls": {key: str(pki / name) for key, name in files.items()}}
        own |= {"keep_alive": 2, "connect_timeout": 3, **(settings or {})}
        self.site = AgentSite(directory, settings={"inputs": {"mqtt_broker": own}})
        self.broker = Broker(directory / "broker", pki, port=port)

    @property
    def collector(self) -> Any:
        """The collector's process."""
        return self.site.collector

    def agent(self, name: str = "agent-1", **settings: Any) -> AgentProcess:
        """Enrolled, not started; it knows no other way than the broker."""
        outputs = yaml.safe_load(snippet("/etc/ndagent/ndagent.yaml"))["outputs"]
        outputs["mqtt"]["endpoints"] = [self.broker.endpoint]
        outputs["mqtt"]["broker"]["tls"]["ca_file"] = str(self.site.pki / "ca.crt")
        return self.site.enrolled(name, **{"outputs": outputs, **settings})

    def collector_reads(self) -> int:
        """How often the collector said that it reads from the broker."""
        return (self.collector.directory / "ndcollector.log").read_text().count("reading from localhost")

    def wait_until_reading(self, times: int = 1) -> None:
        """Until the collector has subscribed so often."""
        self.collector.process.wait_until(lambda: self.collector_reads() >= times, "subscription", 40)

    def __enter__(self) -> Self:
        self.broker.start()
        try:
            self.site.__enter__()
            self.wait_until_reading()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.site.__exit__(kind, error, traceback)
        self.broker.__exit__(kind, error, traceback)
