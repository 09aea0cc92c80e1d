"""An agent near the devices: syslog over UDP and plain TCP to the agent, ECS at the collector; real senders."""

import socket
import subprocess
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


def near_devices(site: AgentSite, ears: Ears, **more: Any) -> AgentProcess:
    """An agent that runs and listens."""
    agent = site.enrolled(inputs=ears.settings(), host_name="branch-7", **more)
    agent.start()
    return agent


def test_a_message_says_which_device_sent_it_and_which_agent_took_it(site: AgentSite, ears: Ears) -> None:
    """The certificate vouches for the agent, the agent for the device's address; the message is parsed as by the
    collector, in the time zone that the agent's `decode` gives for that device.
    """
    zones = {"origins": [{"match": f"{DEVICE}/32", "timezone": "Europe/Berlin"}]}
    agent = near_devices(site, ears, decode=zones)
    ears.send_udp(OLD_STYLE)
    ears.send_tcp(OLD_STYLE)
    site.wait_for(2)
    agent.process.wait_until(lambda: "agent_id" in agent.status(), "its status")
    status = agent.status()
    (spool_id,) = (one["spool_id"] for one in status["spools"] if one["stream"] == "security_events")
    for event in site.collector.events():
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
    agent = near_devices(site, ears)
    for transport, port in (("-d", ears.udp), ("-T", ears.tcp)):
        command = ["logger", "-n", "127.0.0.1", transport, "-P", str(port), "-p", "auth.warning", "-t", "sshd"]
        subprocess.run([*command, f"logger {transport}"], check=True, timeout=10)
    for transport, port in (("--dgram", ears.udp), ("--stream", ears.tcp)):
        words = ["--inet", transport, "--rate", "5000", "--number", "5000", "--size", "250", "127.0.0.1", str(port)]
        with syslog_ng.loggen(words, tmp_path) as sender:
            sender.wait_until(lambda: sender.returncode == 0, "clean end", 60)

    def taken(name: str, *what: str) -> int:
        found = {one["name"]: one for one in agent.status().get("inputs", ())}
        return sum(found[name][one] for one in what) if name in found else 0

    agent.process.wait_until(lambda: taken("syslog_udp", "received") >= 5001, "all over UDP accounted for", 30)
    agent.process.wait_until(lambda: taken("syslog_tcp", "received") >= 5001, "all over TCP taken", 30)
    lost = taken("syslog_udp", "dropped")
    assert taken("syslog_tcp", "dropped") == 0
    site.wait_for(10_002 - lost)
    assert len(site.collector.events()) + lost == 10_002
    words = [event for event in site.collector.events() if event["message"].startswith("logger ")]
    assert sorted(event["message"] for event in words) == ["logger -T", "logger -d"]
    assert {event["log"]["syslog"]["severity"]["name"] for event in words} == {"warning"}


def test_what_was_spooled_is_decoded_whatever_became_of_the_input(site: AgentSite, ears: Ears) -> None:
    """Taken while the collector was away, then a kill, then a configuration without those inputs: it all arrives,
    decoded, each once.
    """
    agent = near_devices(site, ears)
    site.collector.stop()
    ears.send_tcp(*(b"<13>1 - fw-9 app - - - message %d" % number for number in range(1000)))

    def spooled() -> bool:
        return agent.pending() == 1000

    agent.process.wait_until(spooled, "1000 messages in its spool", 30)
    agent.kill()
    agent.configure({**agent.settings, "inputs": {}})
    site.collector.start()
    agent.start()
    site.wait_for(1000)
    assert site.distinct() == {f"message {number}": 1 for number in range(1000)}
    assert {event["host"]["name"] for event in site.collector.events()} == {"fw-9"}
    assert has_codec(agent), "which the input brought along before"


def test_two_inputs_on_one_udp_port_are_a_fault(tmp_path: Path, ears: Ears) -> None:
    """The kernel would let both have it, and give each half of what comes."""
    twice = {"netflow": {"listen": [f"127.0.0.1:{ears.udp}"]}}
    agent = AgentProcess(tmp_path, settings={"inputs": {**ears.settings(), **twice}})
    done = agent.command("check")
    assert done.returncode == 1
    assert f"inputs.netflow.listen[0]: 127.0.0.1:{ears.udp} is taken by inputs.syslog_udp" in done.stdout + done.stderr
