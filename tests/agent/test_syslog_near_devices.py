"""An agent near the devices: syslog over UDP and plain TCP to the agent, ECS at the collector; real senders."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_process import AgentProcess, AgentSite, has_codec
from services import fetch, syslog_ng
from services.need import need, need_program
from services.process import free_port

DEVICE = "127.0.0.9"
OLD_STYLE = b"<38>Mar 15 12:00:00 fw-9 sshd[311]: Failed password for root"


class Ears:
    """The agent's two inputs for devices."""

    def __init__(self) -> None:
        self.udp, self.tcp = free_port(), free_port()

    def settings(self, **more: Any) -> dict[str, Any]:
        """As they stand in ndagent.yaml."""
        return {
            "syslog_udp": {"listen": [f"127.0.0.1:{self.udp}"], **more},
            "syslog_tcp": {"listen": [f"127.0.0.1:{self.tcp}"]},
        }

    def send_udp(self, *messages: bytes) -> None:
        """From the device's own address."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
            device.bind((DEVICE, 0))
            for message in messages:
                device.sendto(message, ("127.0.0.1", self.udp))

    def send_tcp(self, *messages: bytes) -> None:
        """As above."""
        with socket.create_connection(("127.0.0.1", self.tcp), source_address=(DEVICE, 0)) as device:
            device.sendall(b"".join(b"%s\n" % message for message in messages))


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentSite]:
    """One collector for all: each test has an agent of its own, which its events name."""
    with AgentSite(tmp_path_factory.mktemp("site")) as found:
        yield found


def near_devices(site: AgentSite, name: str, ears: Ears, **more: Any) -> AgentProcess:
    """An agent that runs and listens."""
    agent = site.enrolled(name, inputs=ears.settings(), host_name=name, **more)
    agent.start()
    return agent


def arrived(site: AgentSite, name: str, count: int) -> list[dict[str, Any]]:
    """What the agent of this name sent, once there are so many."""
    found: list[dict[str, Any]] = []

    def all_there() -> bool:
        found[:] = [event for event in site.collector.events() if event["observer"]["name"] == name]
        return len(found) >= count

    site.collector.process.wait_until(all_there, f"{count} events of {name}", 60)
    return found


def test_a_message_says_which_device_sent_it_and_which_agent_took_it(site: AgentSite, ears: Ears) -> None:
    """The certificate vouches for the agent, the agent for the device's address; the message is parsed as by the
    collector, in the time zone that the agent's `decode` gives for that device.
    """
    zones = {"origins": [{"match": f"{DEVICE}/32", "timezone": "Europe/Berlin"}]}
    agent = near_devices(site, "branch-7", ears, decode=zones)
    ears.send_udp(OLD_STYLE)
    ears.send_tcp(OLD_STYLE)
    events = arrived(site, "branch-7", 2)
    agent.process.wait_until(lambda: "agent_id" in agent.status(), "its status")
    status = agent.status()
    (spool_id,) = (one["spool_id"] for one in status["spools"] if one["stream"] == "security_events")
    for event in events:
        assert event["source"]["ip"] == DEVICE
        assert event["agent"]["id"] == status["agent_id"]
        assert event["agent"]["type"] == "ndagent"
        assert event["observer"] == {"name": "branch-7", "type": "agent", "product": "ndagent"}
        assert event["host"] == {"hostname": "fw-9", "name": "fw-9"}
        assert event["process"] == {"name": "sshd", "pid": 311}
        assert event["message"] == "Failed password for root"
        assert event["log"]["syslog"]["severity"]["name"] == "informational"
        assert event["@timestamp"].endswith("-03-15T11:00:00Z")
        assert event["event"]["id"].startswith(f"{spool_id}-"), "the agent's spool took it first"


def test_logger_and_loggen_send_to_an_agent(site: AgentSite, ears: Ears, tmp_path: Path) -> None:
    """Debian's senders over both transports; over UDP the sum of what came and what was lost is what was sent."""
    need_program("logger")
    need(fetch.SYSLOG_NG)
    agent = near_devices(site, "branch-8", ears)
    for transport, port in (("-d", ears.udp), ("-T", ears.tcp)):
        command = ["logger", "-n", "127.0.0.1", transport, "-P", str(port), "-p", "auth.warning", "-t", "sshd"]
        subprocess.run([*command, f"logger {transport}"], check=True, timeout=10)
    for transport, port in (("--dgram", ears.udp), ("--stream", ears.tcp)):
        words = ["--inet", transport, "--rate", "2000", "--number", "2000", "--size", "250", "127.0.0.1", str(port)]
        with syslog_ng.loggen(words, tmp_path) as sender:
            sender.wait_until(lambda: sender.returncode == 0, "clean end", 60)

    def taken(name: str, *what: str) -> int:
        found = {one["name"]: one for one in agent.status().get("inputs", ())}
        return sum(found[name][one] for one in what) if name in found else 0

    agent.process.wait_until(lambda: taken("syslog_udp", "received") >= 2001, "all over UDP accounted for", 30)
    agent.process.wait_until(lambda: taken("syslog_tcp", "received") >= 2001, "all over TCP taken", 30)
    lost = taken("syslog_udp", "dropped")
    assert taken("syslog_tcp", "dropped") == 0
    events = arrived(site, "branch-8", 4_002 - lost)
    assert len(events) + lost == 4_002
    words = [event for event in events if event["message"].startswith("logger ")]
    assert sorted(event["message"] for event in words) == ["logger -T", "logger -d"]
    assert {event["log"]["syslog"]["severity"]["name"] for event in words} == {"warning"}


def test_what_was_spooled_is_decoded_whatever_became_of_the_input(site: AgentSite, ears: Ears) -> None:
    """Taken while the collector was away, then a kill, then a configuration without those inputs: it all arrives,
    decoded, each once.
    """
    agent = near_devices(site, "branch-9", ears)
    site.collector.stop()
    ears.send_tcp(*(b"<13>1 - fw-9 app - - - message %d" % number for number in range(1000)))

    def spooled() -> bool:
        return agent.pending() == 1000

    agent.process.wait_until(spooled, "1000 messages in its spool", 30)
    agent.kill()
    agent.configure({**agent.settings, "inputs": {}})
    site.collector.start()
    agent.start()
    names = {event["event"]["id"]: event["message"] for event in arrived(site, "branch-9", 1000)}
    assert sorted(names.values()) == sorted(f"message {number}" for number in range(1000))
    assert has_codec(agent), "which the input brought along before"


def test_two_inputs_on_one_udp_port_are_a_fault(tmp_path: Path, ears: Ears) -> None:
    """The kernel would let both have it, and give each half of what comes."""
    twice = {"netflow": {"listen": [f"127.0.0.1:{ears.udp}"]}}
    agent = AgentProcess(tmp_path, settings={"inputs": {**ears.settings(), **twice}})
    done = agent.command("check")
    assert done.returncode == 1
    assert f"inputs.netflow.listen[0]: 127.0.0.1:{ears.udp} is taken by inputs.syslog_udp" in done.stdout + done.stderr
