"""README.md, from a collector to an agent that ships, typed as it stands there on the configurations that are shipped.

Replaced are paths, ports, the collector's and the host's name, and what systemd does: it starts what the units name.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from collector_process import ROOT
from jsonschema import Draft202012Validator
from services.need import need_program
from services.process import ServiceProcess, free_port

from ndcollector.schema import schema

NAME = platform.uname().node
"""What the README's web-1 is called here."""
README = (ROOT / "README.md").read_text()
pytestmark = pytest.mark.timeout(180)


def steps(heading: str) -> list[str]:
    """The commands of ours (and starts by systemd) in the shell blocks of a section, without comments."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    commands = [command.strip() for line in lines for command in line.split("&&")]
    return [line for line in commands if line.startswith(("ndcollector ", "ndagent ", "systemctl enable"))]


class Machine:
    """One directory that stands for both machines."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = {port: free_port() for port in ("6514", "6515", "8883", "8443", "9600")}
        self.processes: dict[str, ServiceProcess] = {}
        self.token = ""
        self.log = directory / "log"
        self.log.mkdir()
        at = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        self._install("ndcollector", {
            "node_name": "collector-1",
            "state_dir": str(directory / "ndcollector"),
            "inputs": {
                "syslog_tls": {"listen": [at["6514"], at["6515"]]},
                "mqtt": {"listen": [at["8883"]]},
                "https": {"listen": [at["8443"]]},
            },
            "outputs": {"archive": {"path": str(self.log / "{stream}.ndjson")}},
            "admin": {"listen": at["9600"], "socket": str(directory / "admin.sock")},
        })  # fmt: skip
        self._install("ndagent", {
            "state_dir": str(directory / "ndagent"),
            "inputs": {"nginx": {"type": "file", "paths": [str(self.log / "access.log")]}},
        })  # fmt: skip

    def _install(self, program: str, settings: dict[str, object]) -> None:
        """The shipped configuration, and in conf.d what this place is like."""
        etc = self.directory / "etc" / program
        (etc / "conf.d").mkdir(parents=True)
        (etc / f"{program}.yaml").write_bytes((ROOT / "conf" / f"{program}.yaml").read_bytes())
        (etc / "conf.d" / "here.yaml").write_text(yaml.safe_dump(settings))

    def config(self, program: str) -> str:
        return str(self.directory / "etc" / program / f"{program}.yaml")

    def type(self, line: str) -> str:
        """One line of the README; what it prints. AssertionError if it fails."""
        if line.startswith("systemctl enable"):
            self.start(line.rsplit(maxsplit=1)[-1])
            return ""
        for shown, real in (("collector.example.net", "localhost"), ("ndt1_…", self.token), ("web-1", NAME)):
            line = line.replace(shown, real)
        program, *words = shlex.split(line)
        words = [re.sub(r":8443$", f":{self.ports['8443']}", word) for word in words]
        command = [sys.executable, "-m", program, *words, "-c", self.config(program)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, program: str) -> None:
        """As the unit does: its ExecStart, with this place's configuration."""
        unit = (ROOT / "systemd" / f"{program}.service").read_text()
        (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        words = line.replace(f"/etc/{program}/{program}.yaml", self.config(program)).split()
        assert words[0] == program  # systemd looks for it where only root can write
        command = [sys.executable, "-m", program, *words[1:]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.processes[program] = ServiceProcess(
            program, command, directory=self.directory, environment=environment
        ).until_ready(lambda: "ready: " in self.said(program), "ready")

    def said(self, program: str) -> str:
        log = self.directory / f"{program}.log"
        return log.read_text() if log.exists() else ""

    def events(self, stream: str) -> list[dict]:
        """What the collector wrote of a stream; a line that is still being written is left out."""
        file = self.log / f"{stream}.ndjson"
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Ended by its own processes' ids."""
    found = Machine(tmp_path)
    try:
        yield found
    finally:
        for process in reversed(found.processes.values()):
            process.stop()


def test_the_readme_leads_from_nothing_to_events_and_a_policy(machine: Machine) -> None:
    """Every command in its order; then a line of a file and this host's metrics are at the collector, by its name."""
    need_program("journalctl")  # the shipped ndagent.yaml reads the journal
    collector, agent = steps("Run a collector"), steps("Put an agent on a host")
    for line in collector:
        machine.type(line)
    create, enroll, start, status, listing, *rest = agent
    machine.token = machine.type(create).split()[0]
    assert "enrolled as agent" in machine.type(enroll)
    machine.type(start)
    (machine.log / "access.log").write_text("GET / 200\n")
    daemon = machine.processes["ndcollector"]
    lines = _until_from_file(machine, daemon)
    daemon.wait_until(lambda: machine.events("metrics"), "metrics of the host", 60)
    reached = re.compile(r"collector  mqtt://localhost:\d+")
    daemon.wait_until(lambda: reached.search(_said(machine, status)), "a status with the collector in it", 30)
    identity = lines[0]["agent"]["id"]
    assert {event["agent"]["id"] for event in machine.events("metrics")} == {identity}
    assert (lines[0]["message"], lines[0]["host"]["name"]) == ("GET / 200", NAME)
    assert re.search(rf"^{identity} +{re.escape(NAME)} +active", machine.type(listing), re.MULTILINE)
    for stream in ("security_events", "metrics"):
        published = Draft202012Validator(schema(stream))
        for event in machine.events(stream):
            published.validate(event)
    _policy(machine, rest)


def _until_from_file(machine: Machine, daemon: ServiceProcess) -> list[dict]:
    def found() -> list[dict]:
        return [event for event in machine.events("security_events") if event["event"].get("dataset") == "nginx"]

    daemon.wait_until(found, "the line of the file", 30)
    return found()


def _said(machine: Machine, status: str) -> str:
    """What `ndagent status` says; nothing while it exits 1 because no collector answers yet."""
    try:
        return machine.type(status)
    except AssertionError:
        return ""


def _policy(machine: Machine, commands: list[str]) -> None:
    """The layer that the README shows, written where it says, and its four commands."""
    (layer,) = re.findall(r"^```yaml\n(# policies/.*?)^```", README, re.DOTALL | re.MULTILINE)
    file = machine.directory / "etc" / "ndcollector" / layer.partition("\n")[0].removeprefix("# ")
    file.parent.mkdir(parents=True)
    file.write_text(layer)
    policy = [line for line in commands if line.startswith("ndcollector policy ")]
    assert [line.split()[2] for line in policy] == ["diff", "apply", "status", "explain"]
    said = dict(zip(("diff", "apply", "status", "explain"), map(machine.type, policy), strict=True))
    assert NAME in said["diff"]
    assert "policies/global/base.yaml:3" in said["explain"]
    machine.processes["ndagent"].wait_until(lambda: "is in force" in machine.said("ndagent"), "the agent to obey", 30)
