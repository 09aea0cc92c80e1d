"""An emergency reaches a fleet: a hundred agents over real MQTT with certificates of their own, within seconds.

The agents are connections of aiomqtt, each with its own key, that open what they get as an agent does: signature,
addressee, version. What an agent does with a policy then is test_agent_policy.py's.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import aiomqtt
import pytest
import yaml
from agent_process import AgentSite
from cryptography.exceptions import InvalidSignature

from ndagent.wire.policy import Bundle, open_bundle
from ndagent.wire.routes import Channel, topic
from ndcollector import pki
from ndcollector.policy.keys import PolicyKeys

AGENTS = 100
SECONDS = 20.0
"""The promise is five; the rest is for a machine that is busy with other tests. What is printed is what it took."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[AgentSite]:
    """A collector whose PKI has issued the agents' certificates before its first start: its inventory knows them."""
    site = AgentSite(tmp_path)
    for number in range(AGENTS):
        pki.issue(site.pki, pki.Subject("agent", f"agent-{number}"), now=datetime.now(UTC))
    with site:
        yield site


class Member:
    """One agent's connection: the policies it was sent, opened."""

    def __init__(self, site: AgentSite, agent_id: str) -> None:
        self.id = agent_id
        self.versions: dict[int, float] = {}
        """Version → when it was here."""
        self.last: Bundle | None = None
        self.changed = asyncio.Event()
        self._port = site.mqtt_port
        certificate = site.pki / "issued" / f"agent-{agent_id}.crt"
        self._context = ssl.create_default_context(cafile=site.pki / "ca.crt")
        self._context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._key = PolicyKeys(site.pki).signing_key().public_key()

    async def run(self) -> None:
        """Connect, subscribe to its own policy, take what comes."""
        client = aiomqtt.Client("localhost", self._port, identifier=self.id, tls_context=self._context, timeout=30)
        async with client:
            await client.subscribe(topic(self.id, Channel.POLICY), qos=1)
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                self.last = open_bundle(message.payload, verify=self._is_signed)
                assert self.last.audience == self.id
                self.versions.setdefault(self.last.version, time.monotonic())
                self.changed.set()

    def _is_signed(self, signature: bytes, message: bytes) -> bool:
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


async def apply(site: AgentSite, layer: str, settings: dict[str, object]) -> int:
    """One more layer, applied by the command; the version that it says."""
    file = site.collector.config.parent / "policies" / f"{layer}.yaml"
    await asyncio.to_thread(partial(file.parent.mkdir, parents=True, exist_ok=True))
    await asyncio.to_thread(file.write_text, yaml.safe_dump(settings))
    done = await asyncio.to_thread(site.command, "policy", "apply", "--json")
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["version"])


async def until_all_have(members: list[Member], version: int) -> float:
    """When the last of them had it, on time.monotonic."""
    async with asyncio.timeout(60):
        for member in members:
            while version not in member.versions:
                member.changed.clear()
                await member.changed.wait()
    return max(member.versions[version] for member in members)


@pytest.mark.timeout(180)
async def test_an_emergency_reaches_a_hundred_connected_agents_within_seconds(
    site: AgentSite, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted from the moment the operator presses Enter: the command's own start, merging and signing are in it."""
    first = await apply(site, "global/base", {"log": {"level": "info"}})
    members = [Member(site, f"agent-{number}") for number in range(AGENTS)]
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(member.run()) for member in members]
        await until_all_have(members, first)  # retained: who comes later gets it too
        began = time.monotonic()
        second = await apply(site, "local/emergency", {"delivery": {"bytes_per_second": "64KiB"}})
        took = await until_all_have(members, second) - began
        for task in running:
            task.cancel()
    bundles = [member.last for member in members]
    assert all(one is not None and one.settings["delivery"] == {"bytes_per_second": "64KiB"} for one in bundles)
    assert took < SECONDS
    with capsys.disabled():
        print(f"\nemergency policy: {AGENTS} connected agents have it {took:.2f} s after the command was typed")
