"""Policy from the operator's files to the agent's inputs: the real collector, the real agent, both protocols."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from agent_process import AgentProcess, AgentSite


def write_layer(site: AgentSite, name: str, settings: dict[str, Any]) -> None:
    """One layer's file beside the collector's configuration."""
    file = site.collector.config.parent / "policies" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(settings))


def apply(site: AgentSite) -> int:
    """`ndcollector policy apply`; the version."""
    done = site.command("policy", "apply", "--json")
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["version"])


def standing(site: AgentSite) -> dict[str, Any]:
    """The one agent's line in `ndcollector policy status`."""
    done = site.command("policy", "status", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["agents"]
    found: dict[str, Any] = row
    return found


def logs_of_policy(tmp_path: Path) -> Path:
    """A directory that the host allows policies to read."""
    directory = tmp_path / "more"
    directory.mkdir()
    return directory


def enrolled(site: AgentSite, way: str, directory: Path) -> AgentProcess:
    return site.enrolled(
        group="web", outputs={way: {}}, status_every=1, policy_allow={"paths": [f"{directory}/**"], "inputs": ["file"]}
    )


@pytest.mark.parametrize("way", ["mqtt", "https"])
def test_a_policy_reaches_a_running_agent_and_an_emergency_ends_it(site: AgentSite, tmp_path: Path, way: str) -> None:
    """Applied while both run: the new input's lines arrive, the collector hears so, an emergency switches it off."""
    more = logs_of_policy(tmp_path)
    (more / "a.log").write_text("from the policy\n")
    agent = enrolled(site, way, more)
    agent.start()
    write_layer(site, "group/department/web", {"inputs": {"more": {"type": "file", "paths": [f"{more}/*.log"]}}})
    version = apply(site)
    site.wait_for(1)
    assert site.messages() == {"from the policy": 1}
    agent.process.wait_until(lambda: standing(site)["is_current"], "the collector's word that it is current")
    assert standing(site)["in_force"] == version
    agent.process.wait_until(
        lambda: (agent.status().get("policy") or {}).get("version") == version, "its version in `ndagent status`"
    )
    agent.process.wait_until(lambda: agent.said("is kept"), "the end of the trial")

    write_layer(site, "local/emergency", {"inputs": {"more": None}})
    began = time.monotonic()
    version = apply(site)
    agent.process.wait_until(lambda: agent.said(f"policy version {version} is in force"), "the emergency")
    assert time.monotonic() - began < 10
    with (more / "a.log").open("a") as log:
        log.write("not any more\n")
    (agent.logs / "own.log").write_text("its own\n")
    site.wait_for(2)
    assert site.messages() == {"from the policy": 1, "its own": 1}


def test_what_the_host_does_not_allow_is_refused_and_told(site: AgentSite, tmp_path: Path) -> None:
    """The operator reads the reason, the agent goes on with its own inputs."""
    agent = enrolled(site, "mqtt", logs_of_policy(tmp_path))
    write_layer(site, "global/base", {"inputs": {"x": {"type": "file", "paths": ["/etc/shadow"]}}})
    apply(site)
    agent.start()
    agent.process.wait_until(lambda: standing(site)["result"] == "refused", "the refusal")
    assert "inputs.x.paths[0]: /etc/shadow may hold secrets" in standing(site)["message"]
    (agent.logs / "own.log").write_text("its own\n")
    site.wait_for(1)
    assert site.messages() == {"its own": 1}
