"""An agent as a process of Windows, for tests that know `agent_process.AgentProcess`: what differs, and no more."""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from agent_process import AgentSite
from collector_process import _merged
from packages.wine import Wine

READY_SECONDS = 180
"""A start costs wine ten seconds on a busy machine."""

STOPPED, RUNNING, PAUSED = 1, 4, 7
STOP, PAUSE, CONTINUE = 1, 2, 3
_CONTROL = """
import sys, win32service as w
manager = w.OpenSCManager(None, None, w.SC_MANAGER_CONNECT)
service = w.OpenService(manager, "ndagent", w.SERVICE_ALL_ACCESS)
w.ControlService(service, int(sys.argv[1]))
"""
_STATUS = """
import win32service as w
manager = w.OpenSCManager(None, None, w.SC_MANAGER_CONNECT)
print('status', *w.QueryServiceStatus(w.OpenService(manager, "ndagent", w.SERVICE_QUERY_STATUS)))
"""


def until(done: Callable[[], object], what: str | Callable[[], str], *, seconds: float = READY_SECONDS) -> None:
    """Wait for a condition; AssertionError that says what was waited for."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.2)


class WindowsAgent:
    """`python.exe -m ndagent`, its files below C:\\agent; may be killed and started again."""

    def __init__(self, wine: Wine, name: str, *, settings: Mapping[str, Any]) -> None:
        self.wine = wine
        self.home = wine.drive_c / name
        self.logs, self.state, self.config = self.home / "logs", self.home / "state", self.home / "ndagent.yaml"
        self.logs.mkdir(parents=True)
        inputs = {"app": {"type": "file", "paths": [f"C:\\{name}\\logs\\*.log"], "poll_interval": "200ms"}}
        given = {"state_dir": f"C:\\{name}\\state", "inputs": inputs}
        self.config.write_text(yaml.safe_dump(_merged(given, settings)))
        self.output: list[str] = []

    def command(self, *arguments: str, check: bool = True) -> str:
        """`ndagent …` with this agent's configuration; what it said."""
        return self.wine.python("-m", "ndagent", *arguments, "-c", self.config, check=check).stdout

    def enroll(self, site: AgentSite) -> None:
        """Get the certificate."""
        assert "enrolled as" in self.command("enroll", "--url", site.url, "--token", site.token())

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        self.process = self.wine.start(self.wine.python_exe, "-B", "-m", "ndagent", "run", "-c", self.config)
        self.output = []
        threading.Thread(target=self._read, daemon=True).start()
        until(lambda: self.said("ready: ") or self.process.poll() is not None, "the agent is ready")
        assert self.said("ready: "), self.output

    def kill(self) -> None:
        """At once, wherever it is."""
        self.process.kill()
        self.process.wait(30)

    def pending(self) -> int:
        """Events that wait for the collector, by its last report."""
        report = self.state / "status.json"
        found = json.loads(report.read_text()) if report.exists() else {}
        return sum(spool["pending_events"] for spool in found.get("spools", ()))

    def said(self, pattern: str) -> bool:
        """Whether a line of its log has this."""
        return any(re.search(pattern, line) for line in list(self.output))

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.output.append(line)


def service_status(wine: Wine) -> list[int]:
    """As of QueryServiceStatus, state second; empty where there is no service. Wine's `sc query` says nothing."""
    said = wine.python("-c", _STATUS, check=False).stdout.partition("status ")[2]
    return [int(word) for word in said.split()]


def stop_service(wine: Wine, what: Callable[[], str]) -> None:
    """And wait until it has stopped, by other means than the agent's own command."""
    control_service(wine, STOP)
    until(lambda: service_status(wine)[1] == STOPPED, what)


def control_service(wine: Wine, number: int) -> None:
    """One of the service manager's controls."""
    wine.python("-c", _CONTROL, str(number))


def remove_service(wine: Wine) -> None:
    """What a test that failed has left running."""
    if service_status(wine):
        wine.python("-m", "ndagent", "service", "remove", check=False)


def write_lines(path: Path, lines: list[str]) -> None:
    """Append, as a program does that keeps its log open for a moment."""
    with path.open("a", newline="\r\n") as log:
        log.writelines(f"{line}\n" for line in lines)
