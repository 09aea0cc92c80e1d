"""Writes tests/upgrade/fixtures/<version>/: what this release leaves on a machine, for every later one to read.

    PYTHONPATH=tests .venv/bin/python tests/upgrade/make_fixtures.py

Run it once for a release, with nothing but what that release is, and commit what it makes; never again for that
version. Real processes write everything: a collector that delivered 5 of its events to `archive` and none to `behind`,
whose way is blocked, with dead letters, an inventory, a ledger; an agent that nobody enrolled, with 5 lines in its
spool.
No key is in it: the test that reads it makes its own PKI.
"""

import json
import shutil
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent_process import AgentProcess, run
from collector_process import CollectorProcess
from collector_site import Site
from letter_site import letter, write_letters

from ndcollector import __version__, pki

FIXTURES = Path(__file__).parent / "fixtures"
COLLECTOR_YAML = """\
# As this release's users write it; the test gives ports and the directory of its PKI.
config_version: 1
node_name: collector-1
state_dir: state
tls: {ca_file: pki/ca.crt, cert_file: pki/server.crt, key_file: pki/server.key}
spool: {max_bytes: 1GiB, durability: fsync}
inputs:
  syslog_tls: {listen: ["127.0.0.1:${SYSLOG_PORT}"]}
outputs:
  archive: {type: file, path: "out/{stream}.ndjson"}
  behind: {type: file, path: "behind/{stream}.ndjson"}
admin: {listen: "127.0.0.1:${ADMIN_PORT}", socket: admin.sock}
"""
AGENT_YAML = """\
config_version: 1
host_name: web-1
state_dir: state
shutdown_timeout: 0s
inputs:
  app: {type: file, paths: ["logs/*.log"], start: beginning}
"""
LINES = [f"line {number}" for number in range(5)]
LEFT_OUT = {"lock", "admin.sock"}


class Fixture(Site):
    """A collector with the configuration above."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.collector = FixtureCollector(directory, self.collector)


class FixtureCollector(CollectorProcess):
    """The same process, with the fixture's text for its configuration."""

    def __init__(self, directory: Path, like: CollectorProcess) -> None:
        vars(self).update(vars(like))
        self.config = directory / "ndcollector.yaml"
        self.config.write_text(COLLECTOR_YAML)
        self._environment = {"SYSLOG_PORT": str(self.ports[0]), "ADMIN_PORT": str(self.admin_port)}

    @property
    def environment(self) -> dict[str, str]:
        """What commands need to read the configuration."""
        return dict(self._environment)


def make_collector(directory: Path) -> dict[str, Any]:
    """Run it; what a reader must find."""
    site = Fixture(directory)
    (directory / "behind").write_text("a file where a directory should be: this output cannot deliver")
    state = directory / "state"
    pki.issue(site.pki, pki.Subject("agent", "web-1"), now=datetime.now(UTC))  # the inventory takes it over
    write_letters(state, letter(100) + letter(101), output="archive")
    site.collector.start()
    try:
        site.send(5)
        site.collector.wait_for_lines(5)
        token = run(
            "ndcollector", "agents", "token", "create", "--group", "web", "-c", str(site.collector.config),
            environment=site.collector.environment,
        )  # fmt: skip
        assert token.returncode == 0, token.stderr
        wanted = 'nd_output_pending_events{output="behind",stream="security_events"}'
        site.collector.process.wait_until(lambda: site.collector.metrics().get(wanted) == 5, "5 pending events")
    finally:
        assert site.collector.stop() == 0
    events = site.collector.events()
    ids = [event["event"]["id"] for event in events]
    return {"ids": ids, "origin": "nd:device:fw-1", "letters": [100, 101], "agent": "web-1"}


def make_agent(directory: Path) -> dict[str, Any]:
    """Run it; what a reader must find."""
    agent = AgentProcess(directory, settings={})
    agent.config = directory / "ndagent.yaml"
    agent.config.write_text(AGENT_YAML)
    (directory / "logs" / "app.log").write_text("".join(f"{line}\n" for line in LINES))
    agent.start()
    try:
        agent.process.wait_until(lambda: agent.pending() == len(LINES), "5 pending events", 30)
    finally:
        assert agent.stop() == 0
    return {"messages": LINES}


def pack(source: Path, target: Path, *names: str) -> None:
    """These files and directories, without what belongs to a process, a moment or a person."""

    def clean(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = Path(member.name).name
        if name in LEFT_OUT or not (member.isdir() or member.isreg()):
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with tarfile.open(target, "w:gz") as archive:
        for name in names:
            archive.add(source / name, arcname=name, filter=clean)


def main() -> None:
    """Make both, and what a reader must find in them."""
    target = FIXTURES / __version__
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        collector, agent = Path(scratch) / "collector", Path(scratch) / "agent"
        collector.mkdir()
        agent.mkdir()
        expected = {"collector": make_collector(collector), "agent": make_agent(agent)}
        pack(collector, target / "collector.tar.gz", "ndcollector.yaml", "state", "out")
        pack(agent, target / "agent.tar.gz", "ndagent.yaml", "state")
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
