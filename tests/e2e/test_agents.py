"""A real collector and a real agent: token, enrolment, events, report, rotation of the CA, revocation."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from collector_process import ROOT
from collector_site import Site
from services.process import ServiceProcess, free_port


class AgentHost:
    """A host with an ndagent that tails one file."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.log = directory / "app.log"
        self.url = f"https://localhost:{port}"
        self.config = directory / "ndagent.yaml"
        directory.mkdir()
        self.log.touch()
        config = {
            "state_dir": str(directory / "state"),
            "inputs": {"file": {"paths": [str(self.log)]}},
            "outputs": {"https": {}},
            "status_every": "1s",
        }
        self.config.write_text(yaml.safe_dump(config))

    def enroll(self, token: str) -> "subprocess.CompletedProcess[str]":
        """`ndagent enroll`."""
        words = ["enroll", "--url", self.url, "--token", token, "-c", str(self.config)]
        command = [sys.executable, "-m", "ndagent", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)

    def run(self) -> ServiceProcess:
        """`ndagent run`, started."""
        command = [sys.executable, "-m", "ndagent", "run", "-c", str(self.config)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return ServiceProcess("ndagent", command, directory=self.directory, environment=environment)

    def write(self, first: int, count: int) -> None:
        """Numbered lines."""
        with self.log.open("a") as stream:
            stream.writelines(f"number {number}\n" for number in range(first, first + count))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Site, AgentHost]]:
    """A running collector for agents, and a host that has not enrolled."""
    port = free_port()
    site = Site(tmp_path, inputs={"https": {"listen": [f"127.0.0.1:{port}"]}})
    with site.collector:
        yield site, AgentHost(tmp_path / "host", port)


def typed(site: Site, *words: str) -> str:
    """A command that must succeed."""
    done = site.command(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def token(site: Site) -> str:
    return str(json.loads(typed(site, "agents", "token", "create", "--json", "--group", "web"))["token"])


def shown(site: Site, which: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(typed(site, "agents", "show", which, "--json"))
    return found


def channels(site: Site) -> dict[str, int]:
    """Events by channel, as `ndcollector sources` counts them."""
    rows = map(json.loads, typed(site, "sources", "ls", "nd:agent:*", "--json").splitlines())
    return {row["channel"]: row["events"] for row in rows}


def messages(site: Site) -> list[dict[str, Any]]:
    path = site.collector.output
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_from_a_token_to_events_to_the_end(place: tuple[Site, AgentHost]) -> None:
    """What the documentation promises, typed as it says."""
    site, host = place
    wait = site.collector.process.wait_until
    used = token(site)
    enrolled = host.enroll(used)
    assert enrolled.returncode == 0, enrolled.stderr
    (agent,) = [json.loads(line) for line in typed(site, "agents", "ls", "--json").splitlines()]
    agent_id = agent["id"]
    again = host.enroll(used)
    assert (again.returncode, "used_token" in again.stderr) == (1, True), again.stderr
    host.write(0, 100)
    with host.run() as running:
        wait(lambda: len(messages(site)) >= 100, "100 events at the output", 30)
        events = messages(site)
        assert {one["agent"]["id"] for one in events} == {agent_id}
        assert [one["message"] for one in events] == [f"number {number}" for number in range(100)]
        wait(lambda: shown(site, agent_id)["state"] == "active", "the agent's report", 30)
        found = shown(site, agent_id)
        (spool_id,) = {one["event"]["id"].rpartition("-")[0] for one in events}
        assert spool_id in found["spool_ids"]
        assert (found["group"], found["clone_at"]) == ("web", None)
        wait(lambda: len(shown(site, agent_id)["trust_bundle"]) == 64, "a report with a bundle", 30)
        wait(lambda: channels(site).get("file") == 100, "its channel among the sources", 30)
        typed(site, "agents", "revoke", agent_id, "--reason", "keyCompromise")
        revoked_at = time.monotonic()
        site.wait_for_log("certificate_revoked")
        print(f"cut off {time.monotonic() - revoked_at:.1f} s after `agents revoke` had ended")
        assert time.monotonic() - revoked_at < 5
        host.write(100, 10)
        refused = 'nd_input_refused_connections_total{input="https",reason="certificate_revoked"}'
        wait(lambda: site.collector.metrics().get(refused, 0) >= 2, "the agent's next try to be refused", 60)
        assert len(messages(site)) == 100
        assert running.pid
    trail = site.collector.directory / "state" / "audit.ndjson"
    kinds = [json.loads(line)["kind"] for line in trail.read_text().splitlines()]
    for kind in ("token_created", "agent_enrolled", "enrolment_refused", "spool_registered", "agent_revoked"):
        assert kind in kinds


def test_what_was_enrolled_and_registered_survives_kill_9(place: tuple[Site, AgentHost]) -> None:
    """An acknowledged agent's spool is its own in the collector's next life."""
    site, host = place
    assert host.enroll(token(site)).returncode == 0
    host.write(0, 10)
    with host.run():
        site.collector.process.wait_until(lambda: len(messages(site)) >= 10, "10 events at the output", 30)
        site.collector.kill()
        agent = json.loads(typed(site, "agents", "ls", "--json"))
        (spool_id,) = {one["event"]["id"].rpartition("-")[0] for one in messages(site)}
        assert spool_id in shown(site, agent["id"])["spool_ids"]
        site.collector.start()
        host.write(10, 10)
        site.collector.process.wait_until(
            lambda: len({one["message"] for one in messages(site)}) == 20, "20 events at the output", 60
        )
