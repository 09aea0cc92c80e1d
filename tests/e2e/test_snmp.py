"""Net-SNMP against the real programs: an acknowledged inform survives kill -9; an agent's way to the collector."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import AgentSite
from collector_process import Certificates, CollectorProcess
from services import fetch, snmp
from services.need import need

AUTH, PRIVACY = ("SHA-256", "correct horse"), ("AES", "battery staple")
SNMPD = "rocommunity public 127.0.0.1\nsysName core-1\n"


def udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def port() -> int:
    need(fetch.SNMP)
    return udp_port()


@pytest.fixture
def collector(tmp_path: Path, port: int) -> Iterator[CollectorProcess]:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "community").write_text("public\n")
    (secrets / "auth").write_text(f"{AUTH[1]}\n")
    (secrets / "privacy").write_text(f"{PRIVACY[1]}\n")
    user = {"auth_password": f"${{file:{secrets}/auth}}", "privacy_password": f"${{file:{secrets}/privacy}}"}
    settings = {"inputs": {"snmp_trap": {
        "listen": [f"127.0.0.1:{port}"], "communities": [f"${{file:{secrets}/community}}"],
        "users": [{"name": "traps", **user}],
    }}}  # fmt: skip
    with CollectorProcess(tmp_path / "collector", Certificates.make(tmp_path / "pki"), settings=settings) as running:
        yield running


def inform(number: int, directory: Path, port: int) -> int:
    """Its exit status: 0 is acknowledged."""
    options = snmp.v3("traps", AUTH, PRIVACY)
    words = ["", "1.3.6.1.4.1.32473.0.1", "1.3.6.1.4.1.32473.2", "i", str(number)]
    return snmp.run("snmpinform", [*options, "-t", "5"], words, directory=directory, port=port).returncode


@pytest.mark.service
def test_what_was_acknowledged_survives_kill_9(collector: CollectorProcess, port: int, tmp_path: Path) -> None:
    """And the next boot of our engine is one more, so that informs of before are known as such."""
    numbers = range(8)
    assert [inform(number, tmp_path, port) for number in numbers] == [0] * len(numbers)
    collector.kill()
    collector.start()
    assert inform(99, tmp_path, port) == 0
    collector.wait_for_lines(len(numbers) + 1)
    found = {event["snmp"]["varbinds"][2]["number"] for event in collector.events()}
    assert found == {*numbers, 99}
    state = json.loads((tmp_path / "collector" / "state" / "snmp_trap" / "snmp_trap.json").read_text())
    assert state["boots"] == 2
    assert {event["snmp"]["engine_id"] for event in collector.events()} == {state["engine_id"]}


@pytest.mark.service
def test_an_agent_near_the_devices_brings_traps_and_health(tmp_path: Path, port: int) -> None:
    """To the collector's files, each in its stream, with the agent's name and an id."""
    device = udp_port()
    with AgentSite(tmp_path) as site, snmp.snmpd(SNMPD, directory=tmp_path, port=device):
        inputs = {
            "snmp_trap": {"listen": [f"127.0.0.1:{port}"], "communities": ["public"]},
            "snmp_poll": {
                "every": "1s", "jitter": "0s",
                "devices": [{"address": "127.0.0.1", "port": device, "community": "public"}],
            },
        }  # fmt: skip
        agent = site.enrolled("net-1", inputs=inputs)
        agent.start()
        done = snmp.run("snmpinform", ["-v", "2c", "-c", "public"], ["", snmp.LINK_DOWN], directory=tmp_path, port=port)
        assert done.returncode == 0, done.stderr
        collector = site.collector
        metrics = collector.output.with_name("metrics.ndjson")
        collector.wait_for_lines(1, 30)
        collector.process.wait_until(lambda: metrics.exists() and b"core-1" in metrics.read_bytes(), "health", 30)
        (event,) = collector.events()
    assert event["event"]["action"] == "linkDown"
    assert event["event"]["id"]
    assert event["agent"]["type"] == "ndagent"
    assert event["agent"]["id"]
    health = json.loads(metrics.read_bytes().splitlines()[0])
    assert health["snmp"]["device"]["up"] == 1
    assert health["observer"]["hostname"] == "core-1"
    assert health["agent"]["id"] == event["agent"]["id"]
