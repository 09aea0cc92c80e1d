"""A machine with both packages installed as an administrator would: PKI, token, enrolment, events in a file."""

import json
from collections.abc import Iterator

from packages.debian_machine import DebianMachine
from packages.package_files import PackageFiles

EVENTS = "var/log/ndcollector/security_events.ndjson"


class PackagedSite:
    """Collector and agent on one machine, speaking through loopback."""

    def __init__(self, machine: DebianMachine, files: PackageFiles) -> None:
        self.machine = machine
        self.said_by_collector = machine.install(files.collector)
        machine.run("ndcollector", "pki", "init", "--name", "collector-1", "--dns", "localhost")
        machine.run("ndcollector", "check")
        machine.run("systemctl", "start", "ndcollector")
        token = machine.run("ndcollector", "agents", "token", "create", "--group", "web").split()
        self.token = next(word for word in token if word.startswith("ndt1_"))
        environ = {"ND_COLLECTOR_URL": "https://localhost:8443", "ND_ENROLL_TOKEN": self.token}
        self.said_by_agent = machine.install(files.agent, environ=environ)
        machine.wait_for(lambda: "runs" in machine.run("ndagent", "status", check=False), "an agent's report")

    def log(self, text: str) -> None:
        """What an application would say."""
        self.machine.run("logger", "-t", "app", text)

    def events(self) -> Iterator[dict[str, object]]:
        """Whole lines of the collector's output file, as they are now, with those rotated away."""
        for file in sorted((self.machine.path / EVENTS).parent.glob("security_events*.ndjson")):
            whole, _, _ = file.read_bytes().rpartition(b"\n")
            yield from map(json.loads, whole.splitlines())

    def rounds_of_metrics(self) -> int:
        """How many rounds of host metrics are in the collector's files: each has one summary."""
        files = (self.machine.path / EVENTS).parent.glob("metrics*.ndjson")
        return sum(file.read_bytes().count(b'"dataset":"system.summary"') for file in files)

    def arrived(self, text: str) -> bool:
        """Whether an event with this message is in the collector's file."""
        return any(event.get("message") == text for event in self.events())

    def log_and_wait(self, text: str) -> None:
        """From `logger` to the collector's file."""
        self.log(text)
        self.machine.wait_for(lambda: self.arrived(text), f"{text!r} in the collector's file")
