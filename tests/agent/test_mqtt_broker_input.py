"""The mqtt_broker input against a real mosquitto that lets everybody publish: what is taken, what not, what waits."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from collector_process import Certificates
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eager_broker import HELD, EagerBroker
from hypothesis import given
from hypothesis import strategies as st
from services import fetch, mosquitto
from services.need import need
from services.process import ServiceProcess, free_port
from tls_peers import Files

from ndagent.core.metrics import Metrics
from ndagent.core.tls import TlsConfig, TlsContexts
from ndagent.wire.envelope import STATUS_STREAM, Header, Limits, pack
from ndagent.wire.record import Batch
from ndcollector.inputs import InputContext, mqtt
from ndcollector.inputs.mqtt_broker import Config, MqttBroker, build
from ndcollector.inputs.mqtt_broker_check import Checked, Checker, NotTaken
from ndcollector.inputs.mqtt_broker_link import BrokerError, Link, LinkSettings, Message

A, B = "agent-a", "agent-b"
SPOOL_ID = "0123456789abcdef"
WAIT_SECONDS = 20
KEY, STRANGER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def signer(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    return lambda data: key.sign(data, ec.ECDSA(hashes.SHA256()))


def topic(agent: str = A, channel: str = "events") -> str:
    return f"nd/v1/agents/{agent}/{channel}"


def lines(first: int, count: int = 1) -> bytes:
    return b"".join(
        b'{"message":"%d","event":{"id":"%s-%d"}}\n' % (n, SPOOL_ID.encode(), n) for n in range(first, first + count)
    )


def envelope(
    first: int = 0, *, count: int = 1, key: ec.EllipticCurvePrivateKey | None = KEY, body: bytes = b"", **fields: Any
) -> bytes:
    """One of agent A, signed by it, as it should be unless `fields` say otherwise."""
    ndjson = body or lines(first, count)
    header = {
        "stream": "security_events", "spool_id": SPOOL_ID, "first": first, "last": first + count - 1, "count": count,
        "length": len(ndjson), "sent_at_ns": time.time_ns(), "agent_id": A, "run_id": "ab" * 8,
    } | fields  # fmt: skip
    return pack(Header(**header), ndjson, sign=signer(key) if key else None)


class Fleet:
    """A gate that knows the agents' keys and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.keys: dict[str, tuple[bytes, ...]] = {A: (spki(KEY),), B: (spki(STRANGER),)}
        self.refusals: dict[str, str] = {}  # spool id or agent id → why
        self.policies: dict[str, bytes] = {}
        self.changed: Callable[[str], None] = lambda _: None

    def admit(self, agent_id: str, *, spool_id: str, run_id: str, address: str) -> str | None:
        assert (run_id, address) == ("", ""), "they say nothing behind a broker"
        return self.refusals.get(spool_id or agent_id)

    def seen(self, agent_id: str, *, address: str, transport: str, clock_skew: float | None = None) -> None:
        assert clock_skew is None, "the broker's delay is in it"
        self.told.append(("seen", agent_id, transport))

    def status(self, agent_id: str, document: bytes) -> None:
        raise AssertionError("it came through a broker")

    def relayed_status(self, agent_id: str, document: bytes) -> None:
        if document == b"poison":
            raise RuntimeError("a fault that nobody foresaw")
        self.told.append(("status", agent_id, document.decode()))

    def public_keys(self, agent_id: str) -> tuple[bytes, ...]:
        return self.keys.get(agent_id, ())

    def lost(self, agent_id: str, document: bytes) -> None:
        raise AssertionError("agents leave no will at a broker")

    def downlink(self, agent_id: str) -> bytes | None:
        return self.policies.get(agent_id)

    def subscribe(self, changed: Callable[[str], None]) -> Callable[[], None]:
        self.changed = changed
        return lambda: None

    def audit(self, kind: str, **fields: str) -> None:
        self.told.append((kind, fields["agent_id"], fields["detail"]))

    def heard(self, kind: str) -> list[tuple[str, ...]]:
        return [one for one in self.told if one[0] == kind]


class Site:
    """A broker on a port, and inputs that run against it one after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.fleet = Fleet()
        self.metrics = Metrics()
        self.batches: list[Batch] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = 0
        self.broker: ServiceProcess | None = None

    def start_broker(self, *extra: str, persistence: bool = True, pki: dict[str, Path] | None = None) -> None:
        self.broker = mosquitto.broker(
            self.directory, port=self.port, persistence=persistence, extra=("log_type all", *extra), pki=pki
        )

    async def accept(self, batch: Batch) -> None:
        self.entered += 1
        await self.gate.wait()
        self.batches.append(batch)

    def input(self, **settings: Any) -> MqttBroker:
        own = {"endpoint": f"localhost:{self.port}", "tls": None, "keep_alive": 1, "connect_timeout": 2} | settings
        contexts = TlsContexts.__new__(TlsContexts)  # the input asks it nothing
        context = InputContext(self.directory, self.metrics, contexts, time.time, self.fleet, node_name="collector-1")
        return build("mqtt_broker", Config.model_validate(own), context)

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[MqttBroker]:
        """An input that reads, stopped as the daemon stops it."""
        one = self.input(**settings)
        await one.start()
        before = self.said("Sending SUBACK")
        task = asyncio.create_task(one.run(self.accept))
        try:
            await self.until(lambda: task.done() or self.said("Sending SUBACK") > before, "a subscription")
            yield one
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def publish(self, *messages: tuple[str, bytes], qos: int = 1, retain: bool = False) -> None:
        async with aiomqtt.Client("localhost", self.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            for name, payload in messages:
                await client.publish(name, payload, qos=qos, retain=retain)

    async def until(self, happened: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not happened():
            assert time.monotonic() < deadline, f"no {what}"
            await asyncio.sleep(0.01)

    def said(self, text: str) -> int:
        """How often the broker logged this."""
        log = self.directory / "mosquitto.log"
        return log.read_text().count(text) if log.exists() else 0

    @property
    def events(self) -> bytes:
        return b"".join(b"".join(batch.payload) for batch in self.batches)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"input": "mqtt_broker", **labels}) or 0.0

    def dropped(self, reason: str) -> float:
        return self.metric("nd_input_dropped_events_total", reason=reason)

    async def stored(self, expected: bytes) -> None:
        await self.until(lambda: self.events == expected, f"{expected[:80]!r}")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The broker is ended at the end."""
    need(fetch.MOSQUITTO)
    made = Site(tmp_path)
    try:
        yield made
    finally:
        if made.broker is not None:
            os.kill(made.broker.pid, signal.SIGCONT)
            made.broker.kill()


async def test_a_signed_envelope_is_stored_under_the_agents_name(site: Site) -> None:
    """Named, with its spool's ids; the address is the broker's; behind is no skew, ahead is."""
    site.start_broker()
    hour_ns = 3600 * 10**9
    async with site.running():
        await site.publish((topic(), envelope(0, count=3, sent_at_ns=time.time_ns() - hour_ns)))
        await site.publish((topic(), envelope(3, sent_at_ns=time.time_ns() + hour_ns)))
        await site.stored(lines(0, 4))
    origins = [section.origin for batch in site.batches for section in batch.sections]
    assert {(one.input, one.address, one.port, one.agent_id, one.spool_id) for one in origins} == {
        ("mqtt_broker", "localhost", site.port, A, SPOOL_ID)
    }
    assert [one.clock_skew_seconds for one in origins] == [0, 3600]
    assert ("seen", A, "mqtt_broker") in site.fleet.told


BAD_BODY = lines(0, 2)
HOSTILE = {
    "unsigned": [(topic(), envelope(key=None)), (topic(), lines(0)), (topic(), b"")],
    "bad_signature": [
        (topic(), envelope(key=STRANGER)),
        (topic(), envelope()[:-1] + b"\0"),
        (topic("ghost"), envelope(agent_id="ghost")),
    ],
    "wrong_sender": [
        (topic(B), envelope()),
        (topic(channel="metrics"), envelope()),
        (topic(channel="status"), envelope()),
        (topic(), envelope(stream=STATUS_STREAM)),
    ],
    "foreign_topic": [("nd/v1/agents/NOT-ONE/events", envelope()), ("nd/v1/agents/-/events", b"x")],
    "bad_envelope": [(topic(), envelope()[:40]), (topic(), envelope(length=len(BAD_BODY) - 3, count=1, body=BAD_BODY))],
    "too_large": [(topic(), envelope(count=10_001, body=b"{}\n" * 10_001))],
    "not_admitted": [(topic(), envelope(spool_id="anothers00000000"))],
}


async def test_what_nobody_vouches_for_is_refused_and_blocks_nothing(site: Site) -> None:
    """Counted, audited, acknowledged, whatever it is; the good one behind arrives; nothing comes again."""
    site.start_broker()
    site.fleet.refusals["anothers00000000"] = "foreign_spool"
    async with site.running(receive_maximum=2):
        for messages in HOSTILE.values():
            await site.publish(*messages)
        await site.publish((topic(), envelope()), qos=0)
        await site.publish((topic(), envelope(7)))
        await site.stored(lines(7))
    expected = {reason: len(messages) for reason, messages in HOSTILE.items()} | {"qos0": 1}
    assert {reason: site.dropped(reason) for reason in expected} == expected
    assert site.metric("nd_input_received_events_total") == 1 + sum(expected.values())
    hostile = [one for one in site.fleet.told if one[0] in HOSTILE]
    silent = ("too_large", "not_admitted")
    assert len(hostile) == sum(len(messages) for reason, messages in HOSTILE.items() if reason not in silent)
    async with site.running():
        await site.publish((topic(), envelope(8)))
        await site.stored(lines(7) + lines(8))
    assert site.metric("nd_input_received_events_total") == 2 + sum(expected.values())


async def test_a_revoked_agents_messages_are_refused(site: Site) -> None:
    """Its key is still known to somebody; the inventory says no."""
    site.start_broker()
    site.fleet.refusals[A] = "revoked_agent"
    async with site.running():
        await site.publish((topic(), envelope(count=5)))
        await site.until(lambda: site.dropped("not_admitted") == 1, "refusal")
    assert site.events == b""


async def test_an_older_key_that_is_still_good_is_good(site: Site) -> None:
    """A renewal lies between signing and reading."""
    site.start_broker()
    site.fleet.keys[A] = (spki(STRANGER), b"no key", spki(KEY))
    async with site.running():
        await site.publish((topic(), envelope()))
        await site.stored(lines(0))


async def test_a_replay_is_acknowledged_and_stored_once(site: Site) -> None:
    """In one batch and later; the same name with other events is no replay."""
    site.start_broker()
    one = (topic(), envelope(0, count=2))
    async with site.running():
        await site.publish(one, one)
        await site.stored(lines(0, 2))
        await site.publish(one, (topic(), envelope(0, count=2, body=lines(5, 2))))
        await site.stored(lines(0, 2) + lines(5, 2))
    assert site.metric("nd_input_known_events_total") == 4


async def test_a_slow_spool_holds_exactly_receive_maximum(site: Site) -> None:
    """The others wait at the broker; then all arrive, in order."""
    site.start_broker()
    async with site.running(receive_maximum=4):
        site.gate.clear()
        await site.publish(*((topic(), envelope(n)) for n in range(20)))
        await site.until(lambda: site.entered, "accept")
        await asyncio.to_thread(mosquitto.publish_plain, site.port)  # the broker has looked at everything before this
        delivered = site.said("Sending PUBLISH to nd-collector-1")
        assert delivered == 4
        site.gate.set()
        await site.stored(lines(0, 20))


async def test_a_broker_that_sends_more_than_it_may_is_not_read(site: Site) -> None:
    """mosquitto 2.0.11 does so while we acknowledge; unacknowledged messages stay below twice Receive Maximum."""
    site.start_broker()
    got: list[Message] = []
    settings = LinkSettings(
        host="localhost", port=site.port, client_id="reader", tls=None, username=None, password=None, keep_alive=60,
        timeout=5, session_expiry=60, receive_maximum=4, max_packet_bytes=2**20,
    )  # fmt: skip
    link = await Link.open(settings, received=got.append, ended=lambda: None)
    await link.subscribe({"$share/g/x": 1})
    await site.publish(*(("x", b"%d" % n) for n in range(100)))
    for number in range(100):
        await site.until(lambda done=number: len(got) > done, "message")  # type: ignore[misc]  # bound now
        await asyncio.sleep(0.002)
        assert len(got) - number <= 2 * settings.receive_maximum
        link.acknowledge(got[number].packet_id)
    assert [message.payload for message in got] == [b"%d" % n for n in range(100)]
    await link.aclose()


async def test_more_than_we_read_on_from_is_taken_before_the_answer_to_our_subscription(site: Site) -> None:
    """That answer stands behind messages which nobody reads unless those before them are acknowledged."""
    broker = EagerBroker()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", site.port)
    task = asyncio.create_task(site.input(receive_maximum=4).run(site.accept))
    try:
        await site.until(lambda: len(broker.acknowledged) == HELD, "acknowledgement of all")  # nobody signed them
        await site.until(lambda: site.metric("nd_input_connections") == 1, "subscription")
        assert broker.subscriptions == 1
    finally:
        task.cancel()
        await asyncio.wait({task})
        server.close()


async def test_what_was_not_acknowledged_comes_again_to_the_same_session(site: Site) -> None:
    """Cut off between receiving and acknowledging: the next process has the same identifier, events and ids."""
    site.start_broker()
    one = site.input()
    task = asyncio.create_task(one.run(site.accept))
    await site.until(lambda: site.said("Sending SUBACK"), "subscription")
    site.gate.clear()
    await site.publish((topic(), envelope(0)), (topic(), envelope(1)))
    await site.until(lambda: site.entered, "accept")
    for _ in range(2):  # the second cancel cuts
        task.cancel()
        await asyncio.sleep(0)
    with suppress(asyncio.CancelledError):
        await task
    assert site.batches == []
    site.gate.set()
    async with site.running():
        await site.stored(lines(0, 2))
    assert site.said("as nd-collector-1 (p5, c0") == 2
    assert site.metric("nd_input_lost_sessions_total") == 0


async def test_a_stop_takes_what_the_spool_was_being_handed(site: Site) -> None:
    """One cancel waits, acknowledges, and nothing comes twice."""
    site.start_broker()
    async with site.running():
        site.gate.clear()
        await site.publish((topic(), envelope(0)))
        await site.until(lambda: site.entered, "accept")
        asyncio.get_running_loop().call_later(0.2, site.gate.set)
    assert site.events == lines(0)
    async with site.running():
        await site.publish((topic(), envelope(1)))
        await site.stored(lines(0, 2))
    assert site.metric("nd_input_known_events_total") == 0


async def test_messages_wait_at_a_broker_that_keeps_them(site: Site) -> None:
    """The collector is away, the broker is killed with what it holds: all of it arrives."""
    site.start_broker()
    async with site.running():
        pass
    await site.publish(*((topic(), envelope(n)) for n in range(5)))
    await asyncio.to_thread(mosquitto.publish_plain, site.port)
    site.broker.kill()
    site.start_broker()
    async with site.running():
        await site.stored(lines(0, 5))
    assert site.metric("nd_input_lost_sessions_total") == 0


async def test_a_session_that_the_broker_lost_is_told(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Not at the first start; once for each loss, over a restart of ours too."""
    site.start_broker(persistence=False)
    async with site.running():
        site.broker.kill()
        site.start_broker(persistence=False)
        await site.until(lambda: site.metric("nd_input_lost_sessions_total") == 1, "word of it")
        await site.publish((topic(), envelope(0)))
        await site.stored(lines(0))
    site.broker.kill()
    site.start_broker(persistence=False)
    async with site.running():
        assert site.metric("nd_input_lost_sessions_total") == 2
    assert "has lost our session nd-collector-1" in caplog.text


async def test_a_frozen_broker_is_left_and_found_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Silence for twice the keep-alive; then the old session goes on."""
    site.start_broker()
    async with site.running():
        os.kill(site.broker.pid, signal.SIGSTOP)
        await site.until(lambda: "not reading from" in caplog.text, "notice")
        assert site.metric("nd_input_connections") == 0
        os.kill(site.broker.pid, signal.SIGCONT)
        await site.publish((topic(), envelope(0)))
        await site.stored(lines(0))
    assert site.metric("nd_input_lost_sessions_total") == 0


async def test_a_broker_that_is_away_does_not_keep_the_input_from_starting(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and tried again until it is there."""
    one = site.input()
    await one.start()
    task = asyncio.create_task(one.run(site.accept))
    await site.until(lambda: "Connection refused" in caplog.text, "word of it")
    site.start_broker()
    await site.until(lambda: site.metric("nd_input_connections") == 1, "connection")
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert caplog.text.count("not reading from") == 1


async def test_another_client_with_our_identifier_is_suspected(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """mosquitto 2.0 just closes, so it is a question; the pauses grow."""
    site.start_broker()
    async with (
        site.running(),
        aiomqtt.Client("localhost", site.port, identifier="nd-collector-1", protocol=aiomqtt.ProtocolVersion.V5),
    ):
        await site.until(lambda: "has another client our identifier, nd-collector-1?" in caplog.text, "word of it")


@asynccontextmanager
async def strict_broker(directory: Path) -> AsyncIterator[LinkSettings]:
    """Our own listener for agents: it says why it closes, and grants no subscription but an agent's own."""
    files = Files(directory)
    names = {"ca_file": "ca.crt", "cert_file": "server.crt", "key_file": "server.key"}
    metrics = Metrics()
    tls = TlsConfig(**{key: directory / name for key, name in names.items()})
    contexts = TlsContexts(tls, metrics=metrics, clock=time.time)
    listener = mqtt.build(
        "mqtt", mqtt.Config(listen=["127.0.0.1:0"]), InputContext(directory, metrics, contexts, time.time)
    )
    await listener.start()

    async def accept(batch: Batch) -> None:
        raise AssertionError("nobody publishes")

    task = asyncio.create_task(listener.run(accept))
    pair = files.authority.issue(A, names=[f"URI:nd:agent:{A}"])
    try:
        yield LinkSettings(
            host="localhost", port=listener.addresses[0].port, client_id=A, tls=files.client(pair), username=None,
            password=None, keep_alive=5, timeout=5, session_expiry=60, receive_maximum=4, max_packet_bytes=2**20,
        )  # fmt: skip
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_take_over_that_is_told_is_known_as_one(tmp_path: Path) -> None:
    """DISCONNECT 142 (MQTT 5): the input makes an ERROR of it and waits long."""
    ended = asyncio.Event()
    async with strict_broker(tmp_path) as settings:
        first = await Link.open(settings, received=lambda _: None, ended=ended.set)
        second = await Link.open(settings, received=lambda _: None, ended=lambda: None)
        await asyncio.wait_for(ended.wait(), WAIT_SECONDS)
        assert first.error is not None
        assert first.error.is_taken_over
        assert second.error is None
        await first.aclose()
        await second.aclose()


async def test_a_subscription_that_is_not_granted_names_the_topic(tmp_path: Path) -> None:
    """And what to do."""
    async with strict_broker(tmp_path) as settings:
        link = await Link.open(settings, received=lambda _: None, ended=lambda: None)
        with pytest.raises(BrokerError, match=r"subscribe to nd/v1/agents/\+/events .*grant read on it"):
            await link.subscribe({"nd/v1/agents/agent-a/policy": 1, "nd/v1/agents/+/events": 1})
        with pytest.raises(BrokerError, match=r"grant write on it|connection was lost"):
            await link.publish_retained("nd/v1/agents/other/policy", b"x")
        await link.aclose()


async def test_a_name_and_password_are_shown_and_a_wrong_one_is_said(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The password is in no log line."""
    passwords = site.directory / "passwords"
    passwords.write_text("reader:right\n")
    fetch.ensure(fetch.MOSQUITTO)
    mosquitto.hash_passwords(passwords)
    site.start_broker("allow_anonymous false", f"password_file {passwords}")
    one = site.input(username="reader", password="wrong-one")
    task = asyncio.create_task(one.run(site.accept))
    await site.until(lambda: "the broker refuses us" in caplog.text, "word of it")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with site.running(username="reader", password="right"):
        await site.until(lambda: site.metric("nd_input_connections") == 1, "connection")
    assert "wrong-one" not in caplog.text


async def test_a_broker_with_another_ca_is_not_believed(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its certificate is checked, and the log says which setting is meant."""
    theirs, ours = Certificates.make(tmp_path / "theirs"), Certificates.make(tmp_path / "ours")
    site.start_broker(pki={"ca": theirs.ca, "cert": theirs.server_cert, "key": theirs.server_key})
    one = site.input(tls={"ca_file": str(ours.ca)})
    task = asyncio.create_task(one.run(site.accept))
    await site.until(lambda: "is tls.ca_file right?" in caplog.text, "word of it")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(OSError, match=r"tls: .*no\.crt"):
        await site.input(tls={"ca_file": "no.crt"}).start()


async def test_status_reports_are_believed_when_signed(site: Site) -> None:
    """The fleet gets the document as the agent made it; a bare one is nobody's."""
    site.start_broker()
    now = time.time_ns()
    fields: dict[str, Any] = {"stream": STATUS_STREAM, "first": now, "last": now, "count": 1}
    signed = envelope(body=b'{"run_id":"x"}\n', **fields)
    async with site.running():
        await site.publish((topic(channel="status"), b'{"run_id":"y"}'), (topic(channel="status"), signed))
        await site.until(lambda: site.fleet.heard("status"), "a report")
    assert site.fleet.heard("status") == [("status", A, '{"run_id":"x"}')]
    assert site.dropped("unsigned") == 1


async def test_a_fault_of_ours_does_not_block_the_queue(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Said with its traceback, counted, acknowledged; what follows is taken."""
    site.start_broker()
    poison = envelope(body=b"poison\n", stream=STATUS_STREAM)
    async with site.running():
        await site.publish((topic(channel="status"), poison), (topic(), envelope(0)))
        await site.stored(lines(0))
    assert site.dropped("fault") == 1
    assert "a fault that nobody foresaw" in caplog.text


async def test_policies_lie_retained_for_agents_that_were_heard(site: Site) -> None:
    """At the first message, at each change, and anew at a broker that forgot; nobody else's is there."""
    site.start_broker(persistence=False)
    site.fleet.policies = {A: b"policy 1", B: b"never heard"}

    async def retained() -> dict[str, bytes]:
        found = {}
        async with aiomqtt.Client("localhost", site.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe("nd/v1/agents/+/policy", qos=1)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    async for message in client.messages:
                        found[str(message.topic)] = bytes(message.payload)
        return found

    async def wait_for(policy: bytes) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := await retained()) != {topic(A, "policy"): policy}:
            assert time.monotonic() < deadline, found

    async with site.running():
        site.fleet.changed(B)
        await site.publish((topic(), envelope(0)))
        await wait_for(b"policy 1")
        site.fleet.policies[A] = b"policy 2"
        site.fleet.changed(A)
        await wait_for(b"policy 2")
        site.broker.kill()
        site.start_broker(persistence=False)
        await site.until(lambda: site.metric("nd_input_lost_sessions_total") == 1, "a new connection")
        await site.publish((topic(), envelope(1)))
        await wait_for(b"policy 2")


@given(st.binary(max_size=300), st.sampled_from([topic(), topic(channel="status"), "nd/v1/agents/a/policy", ""]))
def test_any_bytes_are_refused_or_checked_and_nothing_else(payload: bytes, name: str) -> None:
    """With and without the look of an envelope."""
    checker = Checker(
        Fleet(), limits=Limits(length_bytes=1000, events=10), input_name="mqtt_broker", address="b", port=1
    )
    for data in (payload, b"NDE1" + payload, envelope()[: len(payload)] + payload):
        with pytest.raises(NotTaken):
            checker.check(name, data, now_ns=0)


def test_an_envelope_is_the_agents_on_each_of_its_topics_only() -> None:
    """Events and metrics have their own; a forged signature of the right form is none."""
    checker = Checker(Fleet(), limits=Limits(length_bytes=1000, events=10), input_name="i", address="b", port=1)
    metrics = envelope(stream="metrics")
    assert isinstance(checker.check(topic(channel="metrics"), metrics, now_ns=0), Checked)
    with pytest.raises(NotTaken, match="no stream"):
        checker.check(topic(), metrics, now_ns=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "Field required"),
        ({"endpoint": "broker"}, "host:port"),
        ({"endpoint": "b:1", "password": "x"}, "belongs to a name"),
        ({"endpoint": "b:1", "tls": {"cert_file": "a"}}, "come together"),
        ({"endpoint": "b:1", "group": "a/b"}, "group"),
        ({"endpoint": "b:1", "topics": ["x"]}, "topics"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    """With the key that is wrong."""
    with pytest.raises(ValueError, match=said):
        Config.model_validate(settings)
