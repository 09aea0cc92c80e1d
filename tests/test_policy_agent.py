"""Policy in a running agent: laid over ndagent.yaml, judged by it, and back after a restart."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ndagent.app import Agent
from ndagent.config import AgentConfig, load
from ndagent.core.notify import Notifier
from ndagent.core.yaml_file import ConfigError
from ndagent.identity import IdentityStore
from ndagent.wire.enrolment import Answer, Endpoints
from ndagent.wire.policy import Bundle, pack
from ndagent.wire.status import PolicyStatus
from ndcollector.pki import Subject, init, issue

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
YAML = "state_dir: state\ninputs: {own: {type: file, paths: [/srv/own.log]}}\n"


class Site:
    """An enrolled agent whose collector does not answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.yaml = path / "ndagent.yaml"
        self.yaml.write_text(YAML)
        now = datetime.now(UTC)
        init(path / "pki", Subject("server", "collector"), now=now)
        issued = issue(path / "pki", Subject("agent", "agent1"), now=now)
        assert issued.key_file is not None
        answer = Answer(
            agent_id="agent1",
            certificate=issued.certificate_file.read_text(),
            ca=issued.ca_file.read_text(),
            endpoints=Endpoints(mqtt=("127.0.0.1:1",), https=("127.0.0.1:1",)),
            renew_after=int(time.time()) + 86400,
            now=int(time.time()),
            policy_key=KEY.public_key().public_bytes_raw(),
        )
        store = IdentityStore(path / "state" / "identity")
        store.store(answer, key=issued.key_file.read_bytes(), not_after=int(time.time()) + 2 * 86400)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        agent = Agent(load(self.yaml), path=self.yaml, notifier=Notifier())
        task = asyncio.create_task(agent.run())
        try:
            await until(lambda: task.done() or getattr(agent, "_background", None))
            yield agent
        finally:
            agent.stop()
            await task


def bundle(version: int, settings: dict[str, Any]) -> bytes:
    now = int(time.time())
    return pack(Bundle("agent1", version, now, now + 3600, settings), sign=KEY.sign)


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Whose log level is put back afterwards."""
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    return Site(tmp_path)


def inputs(agent: Agent) -> dict[str, tuple[str, ...]]:
    return inputs_of(agent._config)


def inputs_of(config: AgentConfig) -> dict[str, tuple[str, ...]]:
    return {name: tuple(map(str, one.paths)) for name, one in config.inputs.items()}  # type: ignore[attr-defined]


AUTH = {"auth": {"type": "file", "paths": ["/var/log/auth.log"]}}


async def test_a_policy_changes_the_running_agent_and_is_back_after_a_restart(site: Site) -> None:
    """Over ndagent.yaml: another input, another cap, another level; spools from the next start on."""
    settings = {
        "inputs": AUTH, "delivery": {"bytes_per_second": "64KiB"}, "log": {"level": "warning"},
        "spool": {"max_bytes": "64MiB"},
    }  # fmt: skip
    async with site.running() as agent:
        assert inputs(agent) == {"own": ("/srv/own.log",)}
        await agent._policy.offer(bundle(7, settings))
        await until(lambda: "auth" in agent._config.inputs)
        assert inputs(agent) == {"own": ("/srv/own.log",), "auth": ("/var/log/auth.log",)}
        assert agent._config.delivery.bytes_per_second == 65536
        assert agent._config.spool.max_bytes == 1 << 30
        status = agent._reporter.status().policy
        assert status == PolicyStatus(7, "applied", "version 7, on trial until it has reached a collector")
    async with site.running() as agent:
        assert "auth" in inputs(agent)
        assert agent._config.spool.max_bytes == 64 << 20
        assert logging.getLogger().level == logging.WARNING
        await agent._policy.offer(bundle(8, {"inputs": {"own": None, **AUTH}}))
        await until(lambda: inputs(agent) == {"auth": ("/var/log/auth.log",)})


def test_what_a_policy_replaces_leaves_no_trace_in_errors(site: Site) -> None:
    """A secret of an input that the policy switched off is neither looked for nor shown."""
    site.yaml.write_text(YAML.replace("/srv/own.log", "'${LOGS}'"))
    with pytest.raises(ConfigError) as caught:
        load(site.yaml, {"LOGS": "/srv/s3cret"}, policy={"inputs": {"own": None}, "log": {"level": "loud"}})
    assert "s3cret" not in str(caught.value)
    assert "should be 'debug', 'info', 'warning' or 'error'" in str(caught.value)
    policy = {"inputs": {"own": {"type": "file", "paths": ["/var/log/${LOGS}"]}}}
    assert inputs_of(load(site.yaml, {"LOGS": "/srv/s3cret"}, policy=policy)) == {"own": ("/var/log/${LOGS}",)}


async def test_ndagent_yaml_decides_what_a_policy_may(site: Site) -> None:
    """Refused with the reason; and when the file allows less later, a reload is enough."""
    async with site.running() as agent:
        await agent._policy.offer(bundle(7, {"inputs": {"a": {"type": "file", "paths": ["/etc/passwd"]}}}))
        await until(agent._policy.status)
        assert agent._policy.status() == PolicyStatus(
            0, "refused",
            "version 7: inputs.a.paths[0]: /etc/passwd is outside policy_allow.paths (/var/log/**)",
        )  # fmt: skip
        await agent._policy.offer(bundle(8, {"inputs": AUTH}))
        await until(lambda: "auth" in agent._config.inputs)
        site.yaml.write_text(f"{YAML}policy_allow: {{inputs: []}}\n")
        agent.reload()
        await until(lambda: "auth" not in agent._config.inputs)
        assert agent._policy.status() == PolicyStatus(
            0, "refused", "version 8: inputs.auth.type: file is not in policy_allow.inputs",
        )  # fmt: skip


async def test_a_policy_that_the_host_comes_to_allow_counts_with_the_reload(site: Site) -> None:
    """No transport brings it again: to HTTPS it is not modified, and MQTT has delivered it."""
    site.yaml.write_text(f"{YAML}policy_allow: {{inputs: []}}\n")
    async with site.running() as agent:
        await agent._policy.offer(bundle(7, {"inputs": AUTH}))
        await until(agent._policy.status)
        assert "is not in policy_allow.inputs" in agent._policy.status().message
        for _ in range(2):  # allowed, then not any more, and again
            site.yaml.write_text(YAML)
            agent.reload()
            await until(lambda: "auth" in agent._config.inputs)
            assert agent._policy.status().result == "applied"
            site.yaml.write_text(f"{YAML}policy_allow: {{inputs: []}}\n")
            agent.reload()
            await until(lambda: "auth" not in agent._config.inputs)
        assert agent._policy.status() == PolicyStatus(
            0, "refused", "version 7: inputs.auth.type: file is not in policy_allow.inputs",
        )  # fmt: skip


async def test_a_policy_s_input_that_cannot_start_any_more_does_not_keep_the_agent_down(site: Site) -> None:
    """After a reboot its address is another program's: who runs the fleet could never take the policy back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{other.getsockname()[1]}"
    site.yaml.write_text(f"{YAML}policy_allow: {{inputs: [syslog_udp]}}\n")
    devices = {"devices": {"type": "syslog_udp", "listen": [address]}}
    async with site.running() as agent:
        await agent._policy.offer(bundle(7, {"inputs": devices}))
        await until(lambda: "devices" in agent._config.inputs)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        async with site.running() as agent:
            assert set(agent._config.inputs) == {"own", "devices"}
            await until(lambda: "devices" in agent._failures())
            assert "own" not in agent._failures()
            other.close()
            await until(lambda: not agent._failures())


async def test_a_policy_s_input_reads_no_secret_that_its_glob_meets(site: Site) -> None:
    """A link into a directory of logs, and a key beside them; the host's own input of the same files reads them."""
    logs = site.path / "logs"
    logs.mkdir()
    (site.path / "passwd").write_text("root:x:0:0\n")
    (logs / "app.log").write_text("hello\n")
    (logs / "link.log").symlink_to(site.path / "passwd")
    (logs / "notes.log").write_text("-----BEGIN PRIVATE KEY-----\nMC4C\n")
    (logs / "server.key").write_text("secret\n")
    glob = {"type": "file", "paths": [f"{logs}/*"], "start": "beginning"}
    site.yaml.write_text(f"state_dir: state\npolicy_allow: {{paths: ['{logs}/**']}}\n")
    async with site.running() as agent:
        await agent._policy.offer(bundle(7, {"inputs": {"logs": glob}}))
        spool = agent._spools["security_events"]
        await until(lambda: received(agent, "logs"))
        await asyncio.sleep(1.0)  # a round or two more: nothing else must come
        assert received(agent, "logs") == 1
        assert spool.next_sequence == 1
        site.yaml.write_text(f"state_dir: state\ninputs: {{own: {{type: file, paths: ['{logs}/*']}}}}\n")
        agent.reload()
        await until(lambda: received(agent, "own") == 5)


async def test_a_policy_s_input_is_judged_as_long_as_it_runs(site: Site) -> None:
    """The host allows less, and a restart is needed for something else in the file: the reload is refused whole."""
    async with site.running() as agent:
        await agent._policy.offer(bundle(8, {"inputs": AUTH}))
        await until(lambda: "auth" in agent._config.inputs)
        site.yaml.write_text(f"{YAML}policy_allow: {{inputs: []}}\nhost_name: another\n")
        agent.reload()
        await until(lambda: agent._policy.status() and agent._policy.status().result == "refused")
        assert "auth" in agent._config.inputs
        with site.yaml.open() as outside:
            assert agent._policy.why_not_read("auth", outside.fileno()) is not None
            assert agent._policy.why_not_read("own", outside.fileno()) is None
        site.yaml.write_text(f"{YAML}policy_allow: {{inputs: []}}\n")
        agent.reload()
        await until(lambda: "auth" not in agent._config.inputs)


def received(agent: Agent, name: str) -> int:
    return next((line.received for line in agent._bookkeeper.snapshot().inputs if line.input == name), 0)


async def test_a_reload_keeps_the_policy(site: Site) -> None:
    """What people change in ndagent.yaml and what the policy says, both."""
    async with site.running() as agent:
        await agent._policy.offer(bundle(7, {"inputs": AUTH}))
        await until(lambda: "auth" in agent._config.inputs)
        site.yaml.write_text(YAML.replace("/srv/own.log", "/srv/other.log"))
        await until(lambda: inputs(agent) == {"own": ("/srv/other.log",), "auth": ("/var/log/auth.log",)})


async def test_the_policy_of_a_former_identity_does_not_count(site: Site) -> None:
    """The agent was enrolled again while it ran."""
    async with site.running() as agent:
        await agent._policy.offer(bundle(7, {"inputs": AUTH}))
        await until(lambda: "auth" in agent._config.inputs)
        path = site.path / "state" / "identity" / "identity.json"
        path.write_text(path.read_text().replace('"agent1"', '"agent2"'))
        await until(lambda: "auth" not in agent._config.inputs)
        assert agent._policy.status() is None


async def test_of_policies_that_wait_the_newest_counts(site: Site) -> None:
    """A transport never waits, and never holds more than one."""
    async with site.running() as agent:
        for version in range(1, 50):
            await agent._policy.offer(bundle(version, {"inputs": {f"i{version}": AUTH["auth"]}}))
        await until(lambda: "i49" in agent._config.inputs)
        assert list(agent._config.inputs) == ["own", "i49"]
