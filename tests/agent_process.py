"""A real agent as a process of its own, and the collector it belongs to: what agents' end-to-end tests start.

Promises: `AgentSite` has a collector process that takes agents over HTTPS and MQTT, with its PKI; `enrolled` gives an
agent that went through `ndagent enroll` with a token of `ndcollector agents token create`; each process is ended by its
own id. Events are counted where the collector wrote them.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from collector_process import ROOT, Certificates, CollectorProcess, _merged
from services.process import ServiceProcess, free_port

_COMMAND_SECONDS = 60


Done = subprocess.CompletedProcess[str]


def run(program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Done:
    """One of our commands, to its end."""
    return subprocess.run(
        [sys.executable, "-m", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        check=False,
    )


class AgentProcess:
    """`ndagent run` with a configuration of its own; may be stopped or killed and started again."""

    def __init__(self, directory: Path, *, settings: Mapping[str, Any]) -> None:
        self.directory = directory
        self.logs = directory / "logs"
        self.state = directory / "state"
        self.config = directory / "etc" / "ndagent.yaml"
        for one in (self.config.parent, self.logs):
            one.mkdir(parents=True, exist_ok=True)
        inputs = {"app": {"type": "file", "paths": [str(self.logs / "*.log")], "start": "beginning"}}
        self.configure(_merged({"state_dir": str(self.state), "inputs": inputs}, settings))
        self._process: ServiceProcess | None = None

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the configuration; a running agent reloads by itself."""
        self.settings = dict(settings)
        new = self.config.with_suffix(".new")
        new.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        new.replace(self.config)

    def command(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Done:
        """`ndagent …` with this agent's configuration."""
        return run("ndagent", *arguments, "-c", str(self.config), environment=environment)

    def enroll(self, url: str, token: str) -> None:
        """Get the certificate; AssertionError with what was said if it fails."""
        done = self.command("enroll", "--url", url, "--token", token)
        assert done.returncode == 0, done.stderr

    @property
    def process(self) -> ServiceProcess:
        """The process that runs now or ran last."""
        assert self._process is not None, "the agent was not started"
        return self._process

    def program(self) -> list[str]:
        """What `run -c …` is told to; fault tests put something between."""
        return [sys.executable, "-m", "ndagent"]

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it says that it is ready."""
        command = [*self.program(), "run", "-c", str(self.config)]
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        before = self.said("ready: ")
        self._process = ServiceProcess("ndagent", command, directory=self.directory, environment=surroundings)
        self._process.wait_until(lambda: self.said("ready: ") > before, "ready", 30)

    def said(self, text: str) -> int:
        """How often this stands in its log."""
        log = self.directory / "ndagent.log"
        return log.read_text().count(text) if log.exists() else 0

    def stop(self) -> int:
        """SIGTERM, and wait; the exit status."""
        return self.process.stop(timeout_seconds=30)

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        self.process.kill()

    def status(self) -> dict[str, Any]:
        """What `ndagent status --json` says, without starting a process; empty before the first report."""
        report = self.state / "status.json"
        return json.loads(report.read_text()) if report.exists() else {}

    def pending(self) -> int:
        """Events that wait for the collector, by its last report."""
        return sum(spool["pending_events"] for spool in self.status().get("spools", ()))


def has_codec(agent: AgentProcess) -> bool:
    """Whether the running agent has loaded the decoder for syslog."""
    return "/_codec." in Path(f"/proc/{agent.process.pid}/maps").read_text()


class AgentSite:
    """A collector for agents and the agents made for it; `with AgentSite(tmp_path) as site`."""

    def __init__(self, directory: Path, *, settings: Mapping[str, Any] | None = None) -> None:
        self.directory = directory
        self.https_port, self.mqtt_port = free_port(), free_port()
        self.pki = directory / "pki"
        inputs = {
            "https": {"listen": [f"127.0.0.1:{self.https_port}"]},
            "mqtt": {"listen": [f"127.0.0.1:{self.mqtt_port}"]},
        }
        endpoints = {"https": [f"localhost:{self.https_port}"], "mqtt": [f"localhost:{self.mqtt_port}"]}
        given = _merged({"inputs": inputs, "agents": {"endpoints": endpoints}}, settings or {})
        self.collector = CollectorProcess(directory / "collector", Certificates.make(self.pki), settings=given)
        self.agents: list[AgentProcess] = []

    @property
    def url(self) -> str:
        """What agents enrol at."""
        return f"https://localhost:{self.https_port}"

    def command(self, *arguments: str) -> Done:
        """`ndcollector …` with this collector's configuration."""
        return run("ndcollector", *arguments, "-c", str(self.collector.config))

    def token(self, *options: str) -> str:
        """A new enrolment token."""
        done = self.command("agents", "token", "create", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[0]

    def agent(self, name: str = "agent-1", **settings: Any) -> AgentProcess:
        """An agent that is not enrolled and not started."""
        self.agents.append(AgentProcess(self.directory / name, settings=settings))
        return self.agents[-1]

    def enrolled(self, name: str = "agent-1", *, group: str | None = None, **settings: Any) -> AgentProcess:
        """An agent with its certificate, not started."""
        agent = self.agent(name, **settings)
        agent.enroll(self.url, self.token(*(["--group", group] if group else [])))
        return agent

    def reconfigure(self, text: str) -> None:
        """Give the running collector another configuration, and wait until it has taken it up."""
        log = self.collector.process.log
        before = log.read_text().count('"reloaded: ')
        new = self.collector.config.with_suffix(".new")
        new.write_text(text)
        new.replace(self.collector.config)
        self.collector.process.wait_until(lambda: log.read_text().count('"reloaded: ') > before, "a reload")

    def messages(self) -> "Counter[str]":
        """How often each message stands in the collector's output."""
        return Counter(event["message"] for event in self.collector.events())

    def distinct(self) -> "Counter[str]":
        """How often each message stands there, one for each event.id."""
        events = {event["event"]["id"]: event["message"] for event in self.collector.events()}
        return Counter(events.values())

    def wait_for(self, count: int, timeout_seconds: float = 60) -> None:
        """Until the output has at least so many lines."""
        self.collector.wait_for_lines(count, timeout_seconds)

    def __enter__(self) -> Self:
        self.collector.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for agent in self.agents:
            if agent._process is not None:
                agent._process.kill()
        self.collector.__exit__(kind, error, traceback)
