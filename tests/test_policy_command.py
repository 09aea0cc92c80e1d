"""`ndcollector policy`: by the documentation's example, with mistakes, and with a hundred agents."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ndagent.policy import PolicyKeeper, World
from ndagent.policy_memory import PolicyFiles
from ndcollector.__main__ import main
from ndcollector.pki import Subject, init
from ndcollector.policy.applying import Agent
from ndcollector.policy.desk import PolicyDesk
from ndcollector.policy.keys import PolicyKeys
from ndcollector.policy.store import PolicyStore

DOCUMENT = (Path(__file__).parent.parent / "docs" / "policy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCUMENT, re.DOTALL)
LAYERS = {text.split("\n")[0].removeprefix("# "): text for kind, text in BLOCKS if kind == "yaml"}


class Site:
    """A collector's directory with a PKI, and the daemon's parts of policy without the daemon."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys
        (path / "ndcollector.yaml").write_text("state_dir: state\noutputs: {archive: {type: file, path: out}}\n")
        init(path / "pki", Subject("server", "collector-1"), now=datetime.now(UTC))
        (path / "policies").mkdir()
        self.store = PolicyStore(path / "state")
        self.keys = PolicyKeys(path / "pki")
        self.desk = PolicyDesk(self.store, self.keys, lifetime_seconds=86400, clock=time.time)

    def write(self, name: str, text: str) -> None:
        file = self.path / "policies" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Status, stdout and stderr of `ndcollector policy …`, paths shortened."""
        status = main(["policy", *arguments, "-c", str(self.path / "ndcollector.yaml")])
        out, err = self._capsys.readouterr()
        return status, out, err.replace(f"{self.path}/", "")

    def data(self, *arguments: str) -> Any:
        """What --json says."""
        status, out, err = self.run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    def meet(self, *agents: Agent) -> None:
        """The agents ask for their policies."""
        self.desk.load()
        for agent in agents:
            assert self.desk.bundle_for(agent) is not None


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    """Without layers."""
    return Site(tmp_path, capsys)


WEB1, WEB2, DB1 = Agent("id1", "web-1", "web"), Agent("id2", "web-2", "web"), Agent("id3", "db-1", "", ("database",))


def write_example(site: Site) -> None:
    for name, text in LAYERS.items():
        if name.startswith("policies/"):
            site.write(name.removeprefix("policies/").removesuffix(".yaml"), text)


def test_the_documentation_s_example_does_what_it_says(site: Site) -> None:
    """Every layer of docs/policy.md, applied, and explained as printed there."""
    write_example(site)
    assert len(LAYERS) == 7  # six layers, and policy_allow
    status, out, _ = site.run("apply")
    assert status == 0
    assert re.match(r"Applied as version \d+; known agents that get new settings: 0\.", out)
    site.meet(WEB1, DB1)
    assert site.run("explain", "web-1") == (0, next(text for kind, text in BLOCKS if kind == "text"), "")
    assert [(one["path"], one["value"], one["place"]) for one in site.data("explain", "db-1")["values"]][-2:] == [
        ("spool.max_age", "7d", "policies/global/base.yaml:8"),
        ("spool.max_bytes", "20GiB", "policies/group/role/database.yaml:2"),
    ]


def test_diff_says_who_gets_what(site: Site) -> None:
    """Agents with the same changes stand together, with the line that says so, and diff changes nothing."""
    site.write("global/base", "log: {level: info}\nspool: {max_age: 7d}\n")
    site.run("apply")
    site.meet(WEB1, WEB2, DB1)
    site.write("global/base", "log: {level: info}\n")
    site.write("global/compliance", "locked: [log]\n")
    site.write("group/department/web", "delivery: {batch_age: 1s}\nlog: {level: debug}\n")
    expected = (
        "layers: ~ global/base, + global/compliance, + group/department/web\n"
        "2 agents: web-1, web-2\n"
        "  + delivery.batch_age: 1s    policies/group/department/web.yaml:1\n"
        "  - spool.max_age: 7d\n"
        "1 agent: db-1\n"
        "  - spool.max_age: 7d\n"
        "without effect, locked by compliance:\n"
        "  log.level: debug (lock: log)    policies/group/department/web.yaml:2\n"
    )
    assert site.run("diff") == (0, expected, "")
    assert site.run("diff") == (0, expected, "")
    assert "web" not in site.run("diff", "db-1")[1].split("\n", 1)[1]
    found = site.data("diff")
    assert found["layers"]["global/base"] == "changed"
    assert found["agents"][1] == {
        "agents": ["db-1"], "changes": [{"path": "spool.max_age", "before": "7d", "after": None, "place": None}],
    }  # fmt: skip


def test_apply_says_whom_it_concerns_and_twice_is_once(site: Site) -> None:
    """A comment is no reason for a new version."""
    site.write("global/base", "log: {level: info}\n")
    first = site.data("apply")
    site.meet(WEB1, DB1)
    site.write("global/base", "log: {level: info} # as before\n")
    assert site.data("apply") == {"version": first["version"], "changed": []}
    site.write("group/department/web", "log: {level: debug}\n")
    second = site.data("apply")
    assert second["changed"] == ["web-1"]
    assert second["version"] > first["version"]
    rows = {row["name"]: row for row in site.data("status")["agents"]}
    assert (rows["web-1"]["wanted"], rows["db-1"]["wanted"]) == (second["version"], first["version"])


def test_status_says_who_has_it_and_who_refused(site: Site) -> None:
    """As the agents reported it."""
    site.write("global/base", "log: {level: info}\n")
    assert site.run("status")[1] == (
        "Nothing was applied yet; `ndcollector policy apply` does.\n"
        "There is no agent yet; `ndcollector agents token create` is how they get in.\n"
    )
    version = site.data("apply")["version"]
    site.meet(WEB1, WEB2, DB1)
    site.desk.reported("id1", SimpleNamespace(version=version, result="applied", message=""))
    site.desk.reported("id2", SimpleNamespace(version=0, result="refused", message="inputs.a: no\x1b[2J"))
    site.desk._flush_now()
    out = site.run("status")[1]
    assert "1 of 3 agents run what they should." in out
    assert re.search(rf"^web-1 +web +{version} +{version} applied +20..-..-..T..:..:..Z$", out, re.MULTILINE)
    assert re.search(rf"^web-2 +web +{version} +0 refused +20.*\n    inputs.a: no\\x1b\[2J$", out, re.MULTILINE)
    assert re.search(rf"^db-1 +{version} +- silent$", out, re.MULTILINE)
    assert [row["name"] for row in site.data("status", "id2")["agents"]] == ["web-2"]
    assert site.data("status")["applied"]["version"] == version


def test_explain_can_look_ahead(site: Site) -> None:
    """An agent that is not known yet, and files that were not applied yet."""
    site.write("group/role/x", "log: {level: debug}\n")
    assert site.run("explain", "new-1", "--role", "x") == (
        1, "", "nothing was applied yet; --pending explains the files as they are\n",
    )  # fmt: skip
    found = site.data("explain", "new-1", "--role", "x", "--pending")
    assert [(one["path"], one["layer"]) for one in found["values"]] == [("log.level", "group/role/x")]
    assert site.run("explain", "new-1", "--pending") == (
        1, "", "new-1: no agent has this name or id; `ndcollector agents ls` names them\n",
    )  # fmt: skip


def test_two_agents_of_one_name_are_told_apart_by_id(site: Site) -> None:
    """Names are people's; ids are certain."""
    site.write("global/base", "log: {level: info}\n")
    site.run("apply")
    site.meet(Agent("id1", "web"), Agent("id2", "web"))
    assert site.run("explain", "web")[2] == "web: 2 agents have this name; give the id: id1, id2\n"
    assert site.data("explain", "id2")["agent"]["id"] == "id2"


def test_mistakes_are_told_and_nothing_is_applied(site: Site) -> None:
    """In a file, between files, and in the selector of an emergency."""
    site.write("global/base", "lgo: {level: info}\n")
    assert site.run("apply") == (1, "", "policies/global/base.yaml:1:1: lgo: unknown key; did you mean 'log'?\n")
    site.write("global/base", "inputs: {x: {}}\n")
    status, _, err = site.run("apply")
    assert (status, err.split(";")[0]) == (1, "policies/global/base.yaml:1: inputs.x: no layer says its type")
    assert site.store.latest() is None
    site.write("global/base", "log: {level: info}\n")
    site.write("local/emergency", "selector: {groups: [wbe]}\nlog: {level: debug}\n")
    assert site.run("apply")[::2] == (0, "policies/local/emergency.yaml: selector: no known agent is selected\n")


def test_the_key_is_rotated_in_two_steps(site: Site) -> None:
    """The second waits for agents that have not heard of the new key."""
    site.write("global/base", "log: {level: info}\n")
    site.run("apply")
    site.meet(WEB1)
    old = site.keys.public_key()
    assert site.run("rotate-key", "--finish")[2].startswith(
        "agents that have not taken their latest policy, and with it the new key: web-1;"
    )
    version = site.data("rotate-key")["version"]
    assert "a rotation is under way" in site.run("rotate-key")[2]
    site.meet(WEB1)
    site.desk.reported("id1", SimpleNamespace(version=version, result="applied", message=""))
    site.desk._flush_now()
    assert site.data("rotate-key", "--finish")["finished"] is True
    assert site.keys.public_key() != old
    assert site.keys.next_public_key() is None
    assert site.run("rotate-key", "--finish", "--force")[2].startswith("no rotation is under way")


async def test_an_emergency_reaches_a_hundred_agents_in_seconds(site: Site, tmp_path: Path) -> None:
    """The command in a process of its own, a running desk, and a hundred agents that verify, store and apply."""
    site.write("global/base", "log: {level: info}\n")
    assert site.run("apply")[0] == 0
    in_force: dict[str, Any] = {}
    agents = [Agent(f"agent{number}", f"host-{number}", "web") for number in range(100)]

    def keeper(agent: Agent) -> PolicyKeeper:
        async def apply(settings: Any) -> None:
            in_force[agent.id] = settings

        async def reaches() -> bool:
            return True

        world = World(lambda _settings: [], apply, reaches, clock=time.time, monotonic=time.monotonic)
        files = PolicyFiles(tmp_path / "agents" / agent.id)
        return PolicyKeeper(agent_id=agent.id, public_key=site.keys.public_key(), files=files, world=world)

    keepers = {agent: keeper(agent) for agent in agents}
    handed: list[asyncio.Task[None]] = []
    connected = {agent.id: agent for agent in agents}

    async def hand_out(agent: Agent) -> None:
        found = site.desk.bundle_for(agent)
        if found is not None:
            site.desk.reported(agent.id, await keepers[agent].offer(found[1]))

    site.desk.subscribe(lambda agent_id: handed.append(asyncio.ensure_future(hand_out(connected[agent_id]))))
    for agent in agents:
        assert site.desk.bundle_for(agent) is None  # as on SUBSCRIBE, before the desk has read anything
    task = asyncio.ensure_future(site.desk.run())
    try:
        async with asyncio.timeout(30):
            while len(in_force) < 100:
                await asyncio.sleep(0.02)
            site.write("local/emergency", "log: {level: debug}\ndelivery: {bytes_per_second: 64KiB}\n")
            command = [sys.executable, "-m", "ndcollector", "policy", "apply", "-c", site.path / "ndcollector.yaml"]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
            assert await process.wait() == 0
            applied = time.monotonic()
            wanted = {"log": {"level": "debug"}, "delivery": {"bytes_per_second": "64KiB"}}
            while any(settings != wanted for settings in in_force.values()):
                await asyncio.sleep(0.02)
            assert time.monotonic() - applied < 5
            await asyncio.gather(*handed)
            assert len(handed) == 200
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert all(row["is_current"] for row in site.data("status")["agents"])
