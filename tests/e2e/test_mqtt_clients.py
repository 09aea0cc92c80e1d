"""Real MQTT clients against the real daemon: mosquitto_pub and _sub, paho, aiomqtt, in both versions; events arrive."""

import asyncio
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
import pytest
from collector_process import Certificates, CollectorProcess
from paho.mqtt.properties import Properties
from services import fetch, mosquitto
from services.need import need
from services.process import free_port

from ndcollector import pki

pytestmark = [pytest.mark.timeout(90)]

AGENT = "agent-1"
EVENTS, POLICY = f"nd/v1/agents/{AGENT}/events", f"nd/v1/agents/{AGENT}/policy"
FOREIGN = "nd/v1/agents/agent-2/events"
WAIT_SECONDS = 20


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """The collector's."""
    return Certificates.make(tmp_path / "pki")


@pytest.fixture
def agent(certificates: Certificates) -> dict[str, Path]:
    """An agent's certificate, as client configurations want it; made before the collector starts, which so knows it."""
    issued = pki.issue(certificates.ca.parent, pki.Subject("agent", AGENT), now=datetime.now(UTC))
    assert issued.key_file is not None
    return {"ca": certificates.ca, "cert": issued.certificate_file, "key": issued.key_file}


@pytest.fixture
def collector(
    tmp_path: Path, port: int, certificates: Certificates, agent: dict[str, Path]
) -> Iterator[CollectorProcess]:
    """The real daemon with an mqtt input, ready."""
    settings = {"inputs": {"mqtt": {"listen": [f"127.0.0.1:{port}"]}}}
    with CollectorProcess(tmp_path / "collector", certificates, settings=settings) as running:
        yield running


def context(files: dict[str, Path]) -> ssl.SSLContext:
    """For the clients in Python."""
    made = ssl.create_default_context(cafile=files["ca"])
    made.load_cert_chain(files["cert"], files["key"])
    return made


@pytest.mark.service
class TestMosquitto:
    """mosquitto_pub is a user with a certificate and a shell."""

    @pytest.mark.parametrize("version", ["mqttv5", "mqttv311"])
    def test_a_message_arrives_before_puback(
        self, collector: CollectorProcess, agent: dict[str, Path], port: int, version: str
    ) -> None:
        """Exit 0 after PUBACK at QoS 1; the event says whose it is by the certificate."""
        need(fetch.MOSQUITTO)
        result = mosquitto.publish(
            "-q", "1", "-t", EVENTS, "-m", '{"message":"hi","agent":{"id":"forged"}}', "-d",
            port=port, pki=agent, version=version,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert b"received PUBACK" in result.stdout
        collector.wait_for_lines(1)
        (event,) = collector.events()
        assert event["message"] == "hi"
        assert event["agent"]["id"] == AGENT

    @pytest.mark.parametrize("version", ["mqttv5", "mqttv311"])
    def test_lines_one_by_one(
        self, collector: CollectorProcess, agent: dict[str, Path], port: int, version: str
    ) -> None:
        """-l: each line a publish, more than receive_maximum of them; in order. Text that is no JSON comes marked."""
        need(fetch.MOSQUITTO)
        lines = b"".join(b'{"message":"%d"}\n' % number for number in range(500)) + b"no JSON\n"
        result = mosquitto.publish(
            "-i", AGENT, "-q", "1", "-t", EVENTS, "-l", port=port, pki=agent, version=version, stdin=lines
        )
        assert result.returncode == 0, result.stderr
        collector.wait_for_lines(501)
        events = collector.events()
        assert [event["message"] for event in events] == [*map(str, range(500)), "no JSON"]
        assert events[-1]["tags"] == ["_parse_failure"]

    def test_a_foreign_topic_is_135_in_5(self, collector: CollectorProcess, agent: dict[str, Path], port: int) -> None:
        """The client says so in words; the connection goes on to its end."""
        need(fetch.MOSQUITTO)
        result = mosquitto.publish("-q", "1", "-t", FOREIGN, "-m", "{}", "-d", port=port, pki=agent)
        assert b"RC:135" in result.stdout, result.stdout
        assert b"Not authorized" in result.stderr + result.stdout
        name = 'nd_input_dropped_events_total{input="mqtt",reason="foreign_topic"}'
        assert collector.metrics()[name] == 1

    def test_a_foreign_topic_closes_3_1_1(self, collector: CollectorProcess, agent: dict[str, Path], port: int) -> None:
        """Without a PUBACK; the client connects again and again and fails each time, so it is told to stop."""
        need(fetch.MOSQUITTO)
        command = mosquitto.client("mosquitto_pub", port=port, pki=agent, version="mqttv311")
        command += ["-q", "1", "-t", FOREIGN, "-m", "{}", "-d"]
        process = mosquitto.run(command, collector.directory)
        with process:
            process.wait_until(lambda: b"sending PUBLISH" in process.log.read_bytes(), "PUBLISH")
            name = 'nd_input_dropped_events_total{input="mqtt",reason="foreign_topic"}'
            process.wait_until(lambda: collector.metrics().get(name, 0) >= 1, "refusal")
            assert b"PUBACK" not in process.log.read_bytes()

    def test_subscribing_to_more_than_its_own_is_refused(
        self, collector: CollectorProcess, agent: dict[str, Path], port: int
    ) -> None:
        """SUBACK 135 and 0x80: mosquitto_sub says that all were denied."""
        need(fetch.MOSQUITTO)
        for version, code in (("mqttv5", b"135"), ("mqttv311", b"128")):
            command = mosquitto.client("mosquitto_sub", port=port, pki=agent, version=version)
            process = mosquitto.run([*command, "-t", "#", "-d"], collector.directory, name=f"sub-{version}")
            with process:
                process.wait_until(lambda: b"SUBACK" in process.log.read_bytes(), "SUBACK")  # noqa: B023
                process.wait_until(lambda: code in process.log.read_bytes(), "a refusal")  # noqa: B023

    def test_without_an_agents_certificate(self, collector: CollectorProcess, port: int) -> None:
        """A device's is not enough."""
        need(fetch.MOSQUITTO)
        result = mosquitto.publish(
            "-q", "1", "-t", EVENTS, "-m", "{}", port=port, pki=collector.certificates.client_files
        )
        assert result.returncode != 0
        assert collector.metrics()['nd_input_refused_connections_total{input="mqtt",reason="wrong_kind"}'] >= 1


@pytest.mark.parametrize("version", [paho.MQTTv5, paho.MQTTv311])
def test_paho(collector: CollectorProcess, agent: dict[str, Path], port: int, version: Any) -> None:
    """Network loop in a thread, 300 publishes at once, all acknowledged; then the reason codes of 5."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=AGENT, protocol=version)
    client.tls_set_context(context(agent))
    codes: list[int] = []
    client.on_publish = lambda _client, _data, _mid, code, _properties: codes.append(code.value)
    client.connect("localhost", port)
    client.loop_start()
    try:
        for number in range(300):
            client.publish(EVENTS, b'{"message":"%d"}' % number, qos=1).wait_for_publish(WAIT_SECONDS)
        collector.wait_for_lines(300)
        assert [event["message"] for event in collector.events()] == list(map(str, range(300)))
        assert codes == [0] * 300
        if version == paho.MQTTv5:
            client.publish(FOREIGN, b"{}", qos=1).wait_for_publish(WAIT_SECONDS)
            assert codes[-1] == 135
    finally:
        client.disconnect()
        client.loop_stop()


@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V5, aiomqtt.ProtocolVersion.V311])
async def test_aiomqtt(
    collector: CollectorProcess, agent: dict[str, Path], port: int, version: aiomqtt.ProtocolVersion
) -> None:
    """Fifty publishes in flight; a subscription to its own downlink is granted, to all agents' is not."""
    properties = None
    if version is aiomqtt.ProtocolVersion.V5:
        properties = Properties(paho.CONNECT >> 4)
        properties.SessionExpiryInterval = 3600
    client = aiomqtt.Client(
        "localhost", port, identifier=AGENT, tls_context=context(agent), protocol=version, timeout=WAIT_SECONDS,
        properties=properties,
    )  # fmt: skip
    async with client:
        await asyncio.gather(*(client.publish(EVENTS, b'{"message":"%d"}' % n, qos=1) for n in range(50)))
        assert [int(getattr(code, "value", code)) for code in await client.subscribe(POLICY, qos=1)] == [1]
        (refused,) = await client.subscribe("nd/v1/agents/+/policy", qos=1)
        assert int(getattr(refused, "value", refused)) == (135 if version is aiomqtt.ProtocolVersion.V5 else 128)
    collector.wait_for_lines(50)
    assert sorted(int(event["message"]) for event in collector.events()) == list(range(50))
