"""Around a foreign broker: the agent's settings, its TLS and signatures, and what the inventory makes of reports."""

import ssl
from pathlib import Path

import orjson
import pytest
from collector_process import Certificates
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fleet_site import RUNS, FleetSite, enrol
from services import fetch, mosquitto
from services.need import need
from services.process import free_port

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.https_client import Place
from ndagent.identity import CA_FILE
from ndagent.outputs import Target, TransportContext, mqtt
from ndagent.outputs.signing import signed_status, signer
from ndagent.wire.envelope import STATUS_STREAM, Header, Limits, unpack
from ndagent.wire.status import AgentStatus

AGENT = "agent-a"
HEADER = Header("security_events", "0123456789abcdef", 0, 0, 1, 3, 1, AGENT, RUNS[0])


def identity(directory: Path, certificates: Certificates) -> Path:
    """A pair file as an agent has it, with the CA beside it."""
    (directory / CA_FILE).write_bytes(certificates.ca.read_bytes())
    pair = directory / "pair.pem"
    pair.write_bytes(certificates.client_key.read_bytes() + certificates.client_cert.read_bytes())
    return pair


def context(pair: Path) -> TransportContext:
    """What a transport is made with."""

    def tls() -> ssl.SSLContext:
        raise AssertionError("that one is for collectors")

    async def offer(_: bytes) -> None:
        raise AssertionError("nobody publishes a policy")

    return TransportContext(agent_id=AGENT, run_id=RUNS[0], tls=tls, pair=lambda: pair, offer=offer)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"broker": {}}, "enrolment tells where collectors are"),
        ({"endpoints": ["b:1"], "broker": {"password": "x"}}, "belongs to a name"),
        ({"endpoints": ["b:1"], "broker": {"tls": {"key_file": "k"}}}, "come together"),
        ({"endpoints": ["b:1"], "broker": {"qos": 2}}, "qos"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], said: str) -> None:
    """With what is missing."""
    with pytest.raises(ValueError, match=said):
        mqtt.Config.model_validate(settings)


def test_a_password_is_not_shown() -> None:
    """In no repr, hence in no log line."""
    shown = repr(mqtt.Config.model_validate({"endpoints": ["b:1"], "broker": {"username": "a", "password": "secret"}}))
    assert "secret" not in shown.replace("SecretStr", "")


def test_a_signed_status_is_an_envelope_of_its_one_line(tmp_path: Path) -> None:
    """The signature is over what `unpack` says it is over; only that key made it."""
    key = ec.generate_private_key(ec.SECP256R1())
    pair = tmp_path / "pair.pem"
    pair.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    packed = signed_status(b'{"a":1}', agent_id=AGENT, run_id=RUNS[0], sign=signer(pair))
    envelope = unpack(packed, Limits(length_bytes=100, events=1))
    key.public_key().verify(envelope.signature, envelope.signed, ec.ECDSA(hashes.SHA256()))
    assert (envelope.header.stream, envelope.header.agent_id) == (STATUS_STREAM, AGENT)
    assert envelope.ndjson() == b'{"a":1}\n'


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_cannot_be_read_is_no_reason_to_give_up(tmp_path: Path, content: bytes | None) -> None:
    """Unavailable: the events wait until it is back."""
    pair = tmp_path / "pair.pem"
    if content is not None:
        pair.write_bytes(content)
    with pytest.raises(Unavailable, match=r"pair\.pem"):
        signer(pair)


def test_only_a_broker_makes_the_way_sign(tmp_path: Path) -> None:
    """To our own collector mutual TLS says who we are."""
    pair = identity(tmp_path, Certificates.make(tmp_path / "pki"))
    target = Target("mqtt", Place("localhost", 1))
    assert mqtt.build(mqtt.Config(), context(pair), target).sign is None
    signing = mqtt.build(mqtt.Config.model_validate({"endpoints": ["b:1"], "broker": {}}), context(pair), target)
    assert signing.sign is not None
    assert signing.sign(b"x")


async def test_a_broker_is_entered_with_its_own_ca_certificate_and_password(tmp_path: Path) -> None:
    """Each of the three is needed, and a wrong one is told as what it is."""
    need(fetch.MOSQUITTO)
    brokers, ours = Certificates.make(tmp_path / "brokers"), Certificates.make(tmp_path / "ours")
    passwords = tmp_path / "passwords"
    passwords.write_text("web-1:right\n")
    mosquitto.hash_passwords(passwords)
    port = free_port()
    extra = ("use_identity_as_username false", "allow_anonymous false", f"password_file {passwords}")
    files = {"ca": brokers.ca, "cert": brokers.server_cert, "key": brokers.server_key}
    tls = {"ca_file": brokers.ca, "cert_file": brokers.client_cert, "key_file": brokers.client_key}
    pair = identity(tmp_path, ours)

    async def probe(**broker: object) -> mqtt.Mqtt:
        settings = {"endpoints": [f"localhost:{port}"], "connect_timeout": 2, "broker": broker}
        way = mqtt.build(mqtt.Config.model_validate(settings), context(pair), Target("mqtt", Place("localhost", port)))
        await way.probe()
        return way

    process = mosquitto.broker(tmp_path, port=port, pki=files, extra=extra)
    try:
        way = await probe(tls=tls, username="web-1", password="right", max_packet_bytes="16KiB")
        with pytest.raises(Unavailable, match="no collector is subscribed to nd/v1/agents/agent-a/events"):
            await way.send(b"x", HEADER)
        with pytest.raises(Rejected, match="max_packet_bytes"):
            await way.send(bytes(16 * 1024), HEADER)
        await way.aclose()
        with pytest.raises(Unavailable, match=r"(?i)not authori[sz]ed|bad user name"):
            await probe(tls=tls, username="web-1", password="wrong")
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await probe(username="web-1", password="right")
        with pytest.raises(Unavailable, match=r"TLS to the broker: .*gone\.crt"):
            await probe(tls=tls | {"ca_file": tmp_path / "gone.crt"}, username="web-1", password="right")
    finally:
        process.kill()


async def test_a_relayed_report_says_nothing_of_clocks_and_clones(tmp_path: Path) -> None:
    """It may be late: an earlier process's is old news; a later one's is taken, and nobody is suspected."""
    site = FleetSite(tmp_path)

    def report(run: str, hostname: str) -> bytes:
        return AgentStatus(run, 1, "1", "linux", hostname).to_json()

    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id
        fleet.relayed_status(agent_id, report(RUNS[0], "first"))
        fleet.relayed_status(agent_id, report(RUNS[1], "second"))
        site.clock.pass_by(3600)
        fleet.relayed_status(agent_id, report(RUNS[0], "late"))
        await fleet.write()
        stored = site.inventory().status(agent_id)
        member = fleet.facts(agent_id)
    assert stored is not None
    assert orjson.loads(stored)["hostname"] == "second"
    assert member is not None
    assert (member.clock_skew, member.clone_at) == (None, None)
    assert member.runs.current == RUNS[1]
