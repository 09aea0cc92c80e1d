"""The mqtt input with real sockets and certificates: what is on disk at PUBACK, who is refused, which limits hold."""

import asyncio
import contextlib
import ssl
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mqtt_client import PINGREQ, V5, V311, Client, packet, split, text, u16, u32
from tls_peers import Files, wait_refused

from ndagent.core.metrics import Metrics
from ndagent.core.tls import TlsConfig, TlsContexts
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.envelope import Header, pack
from ndagent.wire.record import Batch, Flags, Section, pack_body
from ndcollector.inputs import InputContext
from ndcollector.inputs.mqtt import Config, Mqtt, build
from ndcollector.inputs.mqtt_peer import MAX_UNREAD_BYTES

WAIT_SECONDS = 20
A, B = "agent-a", "agent-b"
EVENTS, METRICS, STATUS, POLICY = (f"nd/v1/agents/{A}/{name}" for name in ("events", "metrics", "status", "policy"))
SPOOL_ID = "0123456789abcdef"
PINGRESP = (0xD0, b"")
BOTH = pytest.mark.parametrize("version", [V5, V311], ids=["5", "3.1.1"])


def lines(count: int, start: int = 0) -> bytes:
    return b"".join(
        b'{"message":"%d","event":{"id":"%s-%d"}}\n' % (n, SPOOL_ID.encode(), n) for n in range(start, start + count)
    )


def envelope(ndjson: bytes, *, first: int = 0, **fields: Any) -> bytes:
    """One of agent A, as it should be unless `fields` say otherwise."""
    count = ndjson.count(b"\n")
    header = {
        "stream": "security_events", "spool_id": SPOOL_ID, "first": first, "last": first + max(1, count) - 1,
        "count": count, "length": len(ndjson), "sent_at_ns": time.time_ns(), "agent_id": A, "run_id": "ab" * 8,
    } | fields  # fmt: skip
    return pack(Header(**header), ndjson)


class Fleet:
    """A gate that remembers what it was asked and told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.refusals: dict[str, str] = {}  # spool id or agent id → why
        self.policies: dict[str, bytes] = {}
        self._changed: list[Callable[[str], None]] = []

    def admit(self, agent_id: str, *, spool_id: str, run_id: str, address: str) -> str | None:
        return self.refusals.get(spool_id or agent_id)

    def seen(self, agent_id: str, *, address: str, transport: str, clock_skew: float | None = None) -> None:
        self.told.append(("seen", agent_id, transport))

    def status(self, agent_id: str, document: bytes) -> None:
        self.told.append(("status", agent_id, document.decode()))

    def lost(self, agent_id: str, document: bytes) -> None:
        self.told.append(("lost", agent_id, document.decode()))

    def relayed_status(self, agent_id: str, document: bytes) -> None:
        raise AssertionError("there is no broker")

    def public_keys(self, agent_id: str) -> tuple[bytes, ...]:
        raise AssertionError("there is no broker")

    def downlink(self, agent_id: str) -> bytes | None:
        return self.policies.get(agent_id)

    def subscribe(self, changed: Callable[[str], None]) -> Callable[[], None]:
        self._changed.append(changed)
        return lambda: self._changed.remove(changed)

    def audit(self, kind: str, **fields: str) -> None:
        self.told.append((kind, fields["agent_id"], fields["detail"]))

    def set_policy(self, agent_id: str, policy: bytes) -> None:
        self.policies[agent_id] = policy
        for changed in self._changed:
            changed(agent_id)


class Spool:
    """An Accept that remembers what came; `free` lets it wait as a full spool does."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(self, batch: Batch) -> None:
        await self.free.wait()
        pack_body(batch)  # raises if sections and payload disagree
        self.batches.append(batch)

    @property
    def count(self) -> int:
        return sum(batch.count for batch in self.batches)

    def sections(self, stream: str = "security_events") -> list[tuple[Section, bytes]]:
        """Every section of a stream with its bytes, in order."""
        found = []
        for batch in self.batches:
            payload, at = b"".join(batch.payload), 0
            for section in batch.sections:
                if batch.stream == stream:
                    found.append((section, payload[at : at + section.length]))
                at += section.length
        return found

    def payload(self, stream: str = "security_events") -> bytes:
        return b"".join(data for _, data in self.sections(stream))


class Stage:
    """An input that runs, with its PKI, its fleet and its metrics."""

    def __init__(self, files: Files, metrics: Metrics, contexts: TlsContexts, plug: Mqtt, fleet: Fleet) -> None:
        self.files = files
        self.metrics = metrics
        self.contexts = contexts
        self.plug = plug
        self.fleet = fleet
        self.spool = Spool()
        self.task = asyncio.create_task(plug.run(self.spool))
        self._contexts: dict[str, ssl.SSLContext] = {}

    @property
    def port(self) -> int:
        return self.plug.addresses[0].port

    def context(self, agent_id: str = A) -> ssl.SSLContext:
        """An agent's; the same certificate each time."""
        if agent_id not in self._contexts:
            pair = self.files.authority.issue(agent_id, names=[f"URI:nd:agent:{agent_id}"])
            self._contexts[agent_id] = self.files.client(pair)
        return self._contexts[agent_id]

    async def client(self, agent_id: str = A, *, version: int = V5, welcome: bool = True, **connect: Any) -> Client:
        """A client that was let in, unless it is to do that itself."""
        client = await asyncio.to_thread(Client, self.context(agent_id), self.port, version=version)
        if welcome:
            answer = await asyncio.to_thread(client.connect, connect.pop("client_id", agent_id), **connect)
            assert answer is not None
            assert answer[1][:2] == b"\0\0"
        return client

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"input": "mqtt", **labels}) or 0

    def dropped(self, reason: str) -> float:
        return self.value("nd_input_dropped_events_total", reason=reason)

    def refused(self, reason: str) -> float:
        return self.value("nd_input_refused_connections_total", reason=reason)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that no event tells of."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=WAIT_SECONDS)
        assert self.task.cancelled(), self.task


Start = Callable[..., contextlib.AbstractAsyncContextManager[Stage]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """`async with start(receive_maximum=…) as stage`; `crl=True`: with a revocation list, `fleet=False`: no gate."""

    @asynccontextmanager
    async def starting(*, crl: bool = False, fleet: bool = True, **settings: Any) -> AsyncIterator[Stage]:
        files, metrics, gate = Files(tmp_path), Metrics(), Fleet()
        if crl:
            files.write_crl()
        names = {"ca_file": "ca.crt", "cert_file": "server.crt", "key_file": "server.key"}
        config = TlsConfig(**{key: tmp_path / name for key, name in names.items()})
        contexts = TlsContexts(config, metrics=metrics, clock=time.time)
        context = InputContext(tmp_path, metrics, contexts, time.time, fleet=gate if fleet else None)
        plug = build("mqtt", Config.model_validate({"listen": ["127.0.0.1:0"], **settings}), context)
        await plug.start()
        stage = Stage(files, metrics, contexts, plug, gate)
        try:
            yield stage
        finally:
            stage.spool.free.set()
            stage.task.cancel()
            await asyncio.wait({stage.task}, timeout=WAIT_SECONDS)

    return starting


async def answers(client: Client, *packets: bytes, count: int = 1) -> list[tuple[int, bytes] | None]:
    """Send these, and read so many packets."""

    def exchange() -> list[tuple[int, bytes] | None]:
        client.send(*packets)
        return [client.read() for _ in range(count)]

    return await asyncio.to_thread(exchange)


def dribble(client: Client, data: bytes, pause_seconds: float) -> tuple[int, bytes] | None:
    """Send a byte at a time until an answer comes; all in one thread, as a TLS socket is not for two."""
    client.socket.settimeout(pause_seconds)
    for byte in data:
        try:
            client.send(bytes((byte,)))
            answer = client.socket.recv(4096)
        except TimeoutError:
            continue
        except (ConnectionError, ssl.SSLError):
            return None
        return split(answer)[0] if answer else None
    raise AssertionError("all of it was sent, and no answer came")


def acks(*packet_ids: int) -> list[tuple[int, bytes]]:
    return [(0x40, u16(packet_id)) for packet_id in packet_ids]


class TestPublish:
    """From PUBLISH to PUBACK."""

    @BOTH
    async def test_an_envelope_is_on_disk_when_its_puback_comes(self, start: Start, version: int) -> None:
        """And not before; its section says whose it is, and whose ids its events may keep."""
        async with start() as stage:
            client = await stage.client(version=version)
            with client:
                stage.spool.free.clear()
                waiting = asyncio.create_task(answers(client, client.write.publish(EVENTS, envelope(lines(3)), 1)))
                await stage.until(lambda: stage.plug.commits.buffered_bytes > 0)
                await asyncio.sleep(0.05)
                assert not waiting.done()
                stage.spool.free.set()
                assert await waiting == acks(1)
            ((section, data),) = stage.spool.sections()
            assert data == lines(3)
            assert (section.count, section.origin.agent_id, section.origin.spool_id) == (3, A, SPOOL_ID)
            assert section.origin.address == "127.0.0.1"
            assert stage.spool.batches[0].format == "ecs"
            assert stage.value("nd_input_received_events_total") == 3
            await stage.until(lambda: stage.value("nd_input_connections") == 0)
            assert stage.plug.commits.buffered_bytes == 0

    async def test_an_agent_that_sends_too_fast_is_not_read_and_others_are(self, start: Start) -> None:
        """What it sends meanwhile waits at its end, is not lost, and its silence does not end it."""
        async with start(limits={"events_per_second_per_origin": 50.0}) as stage:
            with await stage.client() as noisy, await stage.client(B) as quiet:
                assert await answers(noisy, noisy.write.publish(EVENTS, lines(200), 1)) == acks(1)
                assert stage.value("nd_input_limited_origins") == 1
                late = asyncio.create_task(answers(noisy, noisy.write.publish(EVENTS, lines(1), 2)))
                topic = EVENTS.replace(A, B)
                assert await answers(quiet, quiet.write.publish(topic, b"{}", 1)) == acks(1)
                assert not late.done()
                assert stage.value("nd_input_limited_origins") == 1
                assert await late == acks(2)
                assert stage.value("nd_input_limited_seconds_total") >= 2
            assert stage.value("nd_input_received_events_total") == 202

    @BOTH
    async def test_plain_lines(self, start: Start, version: int) -> None:
        """Whoever has a certificate and no envelope: one line without an end, several, empty ones between."""
        async with start() as stage:
            client = await stage.client(version=version)
            with client:
                write = client.write.publish
                sent = [write(EVENTS, b'{"message":"hi"}', 1), write(EVENTS, b"{}\n{}\n", 2),
                        write(METRICS, b'\n{"a":1}\n\r\n\n{"b":2}', 3)]  # fmt: skip
                assert await answers(client, *sent, count=3) == acks(1, 2, 3)
            assert stage.spool.payload() == b'{"message":"hi"}\n{}\n{}\n'
            assert stage.spool.payload("metrics") == b'{"a":1}\n{"b":2}\n'
            assert [section.count for section, _ in stage.spool.sections()] == [1, 2]
            assert stage.spool.sections()[0][0].origin.spool_id == ""

    async def test_many_publishes_share_a_record(self, start: Start) -> None:
        """What comes while one is being synced is one batch, section by section, in order; so group commit is cheap."""
        async with start() as stage:
            client = await stage.client()
            with client:
                stage.spool.free.clear()
                sent = [client.write.publish(EVENTS, envelope(lines(2, 2 * n), first=2 * n), n + 1) for n in range(60)]
                assert await answers(client, *sent[:1], PINGREQ) == [PINGRESP]
                assert await answers(client, *sent[1:], PINGREQ) == [PINGRESP]
                stage.spool.free.set()
                assert await answers(client, count=60) == acks(*range(1, 61))
            assert len(stage.spool.batches) <= 5
            assert stage.spool.payload() == lines(120)

    async def test_two_streams_and_the_status_keep_the_order_of_pubacks(self, start: Start) -> None:
        """[MQTT-4.6.0-2] holds over topics."""
        async with start() as stage:
            client = await stage.client()
            with client:
                sent = [
                    client.write.publish(EVENTS, envelope(lines(1)), 1),
                    client.write.publish(METRICS, envelope(b'{"m":1}\n', stream="metrics", spool_id="b" * 16), 2),
                    client.write.publish(STATUS, b'{"s":1}', 3),
                    client.write.publish(EVENTS, envelope(lines(1, 1), first=1, stream="alerts"), 4),
                ]
                assert await answers(client, *sent, count=4) == acks(1, 2, 3, 4)
            assert [stage.spool.payload(name) for name in ("metrics", "alerts")] == [b'{"m":1}\n', lines(1, 1)]
            assert ("status", A, '{"s":1}') in stage.fleet.told

    @BOTH
    async def test_qos_0_is_taken_counted_and_labelled(self, start: Start, version: int) -> None:
        """No PUBACK; the metric counts it, the decoded event carries the tag."""
        async with start() as stage:
            client = await stage.client(version=version)
            with client:
                write = client.write.publish
                assert await answers(client, write(EVENTS, b'{"message":"a"}', qos=0), PINGREQ) == [PINGRESP]
                await stage.until(lambda: stage.spool.count == 1)
                assert await answers(client, write(EVENTS, b'{"message":"b"}', 1)) == acks(1)
            assert [section.flags for section, _ in stage.spool.sections()] == [Flags.UNACKNOWLEDGED, Flags.NONE]
            assert stage.value("nd_input_unacknowledged_events_total") == 1
            decoded = [_decode(batch) for batch in stage.spool.batches]
            assert b'"tags":["_unacknowledged"]' in decoded[0]
            assert b"tags" not in decoded[1]

    async def test_an_envelope_that_comes_again_is_stored_once(self, start: Start) -> None:
        """A sender repeats what was in flight when its connection broke; other bytes of that name are other events."""
        async with start() as stage:
            sent = envelope(lines(2))
            for number in range(3):
                client = await stage.client()
                with client:
                    again = client.write.publish(EVENTS, sent, number + 1, dup=number > 0)
                    assert await answers(client, again) == acks(number + 1)
            assert stage.spool.payload() == lines(2)
            assert stage.value("nd_input_known_events_total") == 4
            client = await stage.client()
            with client:
                other = envelope(lines(2).replace(b"message", b"massage"))
                assert await answers(client, client.write.publish(EVENTS, other, 1)) == acks(1)
            assert stage.spool.count == 4

    async def test_an_envelope_that_comes_again_while_it_is_being_stored_is_stored_once(self, start: Start) -> None:
        """A slow spool is when senders reconnect and repeat: both get their PUBACK with the first, none before."""
        async with start() as stage:
            stage.spool.free.clear()
            first = await stage.client(client_id="")
            second = await stage.client()
            with first, second:
                sent = [envelope(lines(2, 2 * n), first=2 * n) for n in range(3)]
                for client in (first, second):
                    packets = [client.write.publish(EVENTS, one, number) for number, one in enumerate(sent, 7)]
                    assert await answers(client, *packets, PINGREQ) == [PINGRESP]
                stage.spool.free.set()
                assert await answers(first, count=3) == acks(7, 8, 9)
                assert await answers(second, count=3) == acks(7, 8, 9)
            assert stage.spool.payload() == lines(6)
            assert not stage.plug.under_way

    async def test_large_envelopes_are_opened_in_a_thread_and_keep_their_order(self, start: Start) -> None:
        """Those behind them wait, the connection is held, the loop is not."""
        async with start(max_packet_bytes="4MiB") as stage:
            client = await stage.client()
            with client:
                big = b"".join(b'{"message":"%d %s"}\n' % (n, b"x" * 500) for n in range(2000))
                parts = [big, lines(1), big, lines(1, 1)]
                sent = [
                    client.write.publish(EVENTS, envelope(part, first=10_000 * n), n + 1)
                    for n, part in enumerate(parts)
                ]
                assert await answers(client, *sent, count=4) == acks(1, 2, 3, 4)
                assert await answers(client, PINGREQ) == [PINGRESP]
            assert stage.spool.payload() == b"".join(parts)

    @pytest.mark.parametrize("last", ["DISCONNECT", "a broken rule", "a stop"])
    async def test_what_came_before_the_end_is_taken(self, start: Start, last: str) -> None:
        """Also what waits behind a large envelope; at QoS 0 nobody would send it again."""
        async with start(max_packet_bytes="4MiB") as stage:
            client = await stage.client()
            with client:
                big = b"".join(b'{"message":"%d %s"}\n' % (n, b"x" * 500) for n in range(2000))
                parts = [big, lines(1), big[::-1][1:] + b"\n", lines(1, 1)]
                packets = [
                    client.write.publish(EVENTS, envelope(part, first=9999 * n), qos=0) for n, part in enumerate(parts)
                ]
                end = {"DISCONNECT": client.write.disconnect(), "a broken rule": b"\x34", "a stop": PINGREQ}[last]
                await asyncio.to_thread(client.send, *packets, end)
                answer = await asyncio.to_thread(client.read)
                if last == "a stop":
                    assert answer == PINGRESP
                    await stage.stop()
                await stage.until(lambda: stage.spool.count == sum(part.count(b"\n") for part in parts))
            assert stage.spool.payload() == b"".join(parts)

    async def test_ids_are_kept_only_where_a_fleet_knows_the_spool(self, start: Start) -> None:
        """Without one nobody knows whose spool that is: the collector gives the ids."""
        async with start(fleet=False) as stage:
            client = await stage.client()
            with client:
                ahead = envelope(lines(1), sent_at_ns=time.time_ns() + 100 * 10**9)
                assert await answers(client, client.write.publish(EVENTS, ahead, 1)) == acks(1)
            ((section, _),) = stage.spool.sections()
            assert section.origin.spool_id == ""
            assert 98 <= section.origin.clock_skew_seconds <= 100


def _decode(batch: Batch) -> bytes:
    body = b"".join(pack_body(batch))
    decoder = make_decoder(DecodeSettings(observer_name="c"))
    return decoder.decode(
        body, stream=batch.stream, spool_id="z" * 16, sequence=0, received_at_ns=batch.received_at_ns, replay=False
    ).ndjson


BAD = {
    "an envelope that is cut": envelope(lines(3))[:-5],
    "only the magic": b"NDE1",
    "malformed msgpack": b"NDE1" + (9).to_bytes(4, "little") + bytes(2) + b"\xc1" * 9 + b"body",
    "a body that is no zstd": envelope(lines(3))[:-60] + b"\0" * 60,
    "a count that is not the lines": envelope(lines(3), count=2, last=1),
    "a length that is not the bytes": envelope(lines(3), length=len(lines(3)) - 1),
    "too many events": envelope(b"{}\n" * 10_001),
    "a million empty events": envelope(b"{}\n" * 1_000_000),
    "plain lines beyond the limit": b"{}\n" * 10_001,
    "nothing": b"",
    "only line ends": b"\n\r\n\n",
    "a bomb": envelope(b"\n", length=9 * 2**20, count=1),
}


class TestRefused:
    """What is never taken, and how the sender learns of it."""

    @pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
    async def test_a_bad_payload(self, start: Start, payload: bytes) -> None:
        """5: PUBACK 153 and the connection goes on. 3.1.1: closed. Counted in both, taken in neither."""
        async with start(max_packet_bytes="4MiB") as stage:
            client = await stage.client()
            with client:
                sent = [client.write.publish(EVENTS, payload, 1), client.write.publish(EVENTS, envelope(lines(1)), 2)]
                first, second = await answers(client, *sent, count=2)
                assert first is not None
                assert first[1][:3] == u16(1) + bytes((153,))
                assert second == acks(2)[0]
            client = await stage.client(version=V311)
            with client:
                assert await answers(client, client.write.publish(EVENTS, payload, 1)) == [None]
            assert stage.spool.payload() == lines(1)
            assert stage.dropped("bad_envelope") + stage.dropped("too_large") == 2

    async def test_a_bomb_costs_no_more_than_its_limit(self, start: Start) -> None:
        """100 MB of line ends in a few KB, under a header that declares what is allowed."""
        async with start() as stage:
            client = await stage.client()
            with client:
                bomb = envelope(b"\n" * 100_000_000, count=9000, last=8999, length=8 * 2**20)
                tracemalloc.start()
                (answer,) = await answers(client, client.write.publish(EVENTS, bomb, 1))
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert answer is not None
                assert answer[1][2] == 153
                assert peak < 20 * 2**20

    @pytest.mark.parametrize("sent", [envelope(lines(1), agent_id=B), envelope(lines(1), stream="metrics"),
                                      envelope(lines(1), stream="internal")],
                             ids=["another agent", "another stream", "ours"])  # fmt: skip
    async def test_an_envelope_of_somebody_else(self, start: Start, sent: bytes) -> None:
        """Its agent is not the certificate's, or its stream not the topic's: 135, told to the audit."""
        async with start() as stage:
            client = await stage.client()
            with client:
                (answer,) = await answers(client, client.write.publish(EVENTS, sent, 1))
                assert answer is not None
                assert answer[1][2] == 135
            assert stage.dropped("wrong_sender") == 1
            assert [told[:2] for told in stage.fleet.told if told[0] == "wrong_sender"] == [("wrong_sender", A)]
            assert stage.spool.count == 0

    async def test_a_spool_that_the_fleet_refuses(self, start: Start) -> None:
        """135 with its reason, not counted as lost: at QoS 1 the agent keeps its events. At QoS 0 they are."""
        async with start() as stage:
            stage.fleet.refusals[SPOOL_ID] = "a clone"
            client = await stage.client()
            with client:
                write = client.write.publish
                (answer,) = await answers(client, write(EVENTS, envelope(lines(2)), 1))
                assert answer == (0x40, u16(1) + b"\x87\x0a\x1f" + text("a clone"))
                assert stage.dropped("not_admitted") == 0
                assert await answers(client, write(EVENTS, envelope(lines(2)), qos=0), PINGREQ) == [PINGRESP]
            assert stage.dropped("not_admitted") == 2

    async def test_plain_lines_of_an_agent_that_is_revoked_while_connected(self, start: Start) -> None:
        """What has no envelope is asked about too: where there is no CRL, nothing else ends a live connection."""
        async with start() as stage:
            client = await stage.client()
            with client:
                write = client.write.publish
                assert await answers(client, write(EVENTS, lines(2), 1)) == [(0x40, u16(1))]
                stage.fleet.refusals[A] = "revoked_agent"
                (answer,) = await answers(client, write(EVENTS, lines(2), 1))
                assert answer is not None
                assert 135 in answer[1][:3]  # PUBACK, or by then DISCONNECT
            assert stage.spool.count == 2

    async def test_an_agent_that_is_revoked_while_connected_and_silent(self, start: Start) -> None:
        """Cut off within moments, without a CRL and without a word of its own; others stay."""
        async with start() as stage:
            client, other = await stage.client(), await stage.client(B)
            with client, other:
                stage.fleet.refusals[A] = "revoked_agent"
                answer = await asyncio.to_thread(client.read)
                assert answer is not None
                assert (answer[0], answer[1][0]) == (0xE0, 135)
                assert await asyncio.to_thread(client.read) is None
                assert await answers(other, PINGREQ) == [PINGRESP]
                assert stage.refused("not_admitted") == 1

    async def test_an_agent_that_the_fleet_refuses(self, start: Start) -> None:
        """CONNACK 135, in 3.1.1 5."""
        async with start() as stage:
            stage.fleet.refusals[A] = "revoked"
            for version, code in ((V5, 135), (V311, 5)):
                client = await stage.client(version=version, welcome=False)
                with client:
                    answer = await asyncio.to_thread(client.connect, A)
                    assert answer is not None
                    assert answer[1][1] == code
                    assert await asyncio.to_thread(client.read) is None
            assert stage.refused("not_admitted") == 2

    async def test_a_foreign_topic(self, start: Start) -> None:
        """5: 135 and it goes on. 3.1.1: closed, after the PUBACKs before it. Audited and counted."""
        async with start() as stage:
            foreign = f"nd/v1/agents/{B}/events"
            client = await stage.client()
            with client:
                first, second = await answers(
                    client, client.write.publish(foreign, b"{}", 1), client.write.publish(EVENTS, b"{}", 2), count=2
                )
                assert first is not None
                assert first[1][:3] == u16(1) + b"\x87"
                assert second == acks(2)[0]
            client = await stage.client(version=V311)
            with client:
                sent = [client.write.publish(EVENTS, b"{}", 1), client.write.publish(foreign, b"{}", 2)]
                assert await answers(client, *sent, count=2) == [*acks(1), None]
            assert stage.dropped("foreign_topic") == 2
            assert stage.fleet.told.count(("not_allowed", A, foreign)) == 2
            assert stage.spool.count == 2

    @pytest.mark.parametrize("names", [["URI:nd:device:x"], ["DNS:x"], ["URI:nd:agent:Not_An_Id"]])
    async def test_certificates_that_are_no_agents(self, start: Start, names: Sequence[str]) -> None:
        """No agent's URI, no way in; nor without a certificate."""
        async with start() as stage:
            for pair in (stage.files.authority.issue("x", names=names), None):
                context = stage.files.client(pair)
                assert await asyncio.to_thread(wait_refused, context, stage.port)

    async def test_older_tls_is_refused(self, start: Start) -> None:
        """Agents speak 1.3."""
        async with start() as stage:
            pair = stage.files.authority.issue(A, names=[f"URI:nd:agent:{A}"])
            context = stage.files.client(pair, version=ssl.TLSVersion.TLSv1_2)
            assert await asyncio.to_thread(wait_refused, context, stage.port)


class TestLimits:
    """Every limit, from both sides."""

    async def test_receive_maximum(self, start: Start) -> None:
        """5: one more than told is 147. 3.1.1: it is not read, until there is room again."""
        async with start(receive_maximum=4) as stage:
            stage.spool.free.clear()
            client = await stage.client()
            with client:
                sent = [client.write.publish(EVENTS, b"{}", number) for number in range(1, 6)]
                assert await answers(client, *sent[:4], PINGREQ) == [PINGRESP]
                (answer,) = await answers(client, sent[4])
                assert answer is not None
                assert (answer[0], answer[1][0]) == (0xE0, 147)
            client = await stage.client(version=V311)
            with client:
                sent = [client.write.publish(EVENTS, b"{}", number) for number in range(1, 6)]
                assert await answers(client, *sent[:4], PINGREQ) == [PINGRESP]
                waiting = asyncio.create_task(answers(client, sent[4], PINGREQ, count=6))
                await asyncio.sleep(0.1)
                peer = next(one for one in stage.plug._peers if one.session.version == V311)
                assert peer.held
                assert peer.session.reader.packets == 6
                stage.spool.free.set()
                assert sorted(filter(None, await waiting)) == sorted([*acks(1, 2, 3, 4, 5), PINGRESP])

    async def test_max_packet_bytes(self, start: Start) -> None:
        """Exactly as large is taken, one byte more is 149."""
        async with start(max_packet_bytes=20_000) as stage:
            client = await stage.client()
            with client:
                room = 20_000 - len(client.write.publish(EVENTS, b"x" * 19_000, 1)) + 19_000
                fits = client.write.publish(EVENTS, b'{"a":"' + b"x" * (room - 8) + b'"}', 1)
                assert len(fits) == 20_000
                assert await answers(client, fits) == acks(1)
                larger = client.write.publish(EVENTS, b"x" * (room + 1), 2)
                (answer,) = await answers(client, larger[:10])
                assert answer is not None
                assert (answer[0], answer[1][0]) == (0xE0, 149)
            assert stage.refused("protocol_error") == 1

    async def test_buffer_bytes(self, start: Start) -> None:
        """A full spool stops reading, memory stays bounded, all is acknowledged once there is room."""
        async with start(receive_maximum=1000, limits={"buffer_bytes": "1MiB"}) as stage:
            stage.spool.free.clear()
            client = await stage.client()
            with client:
                payload = b'{"m":"' + b"x" * 10_000 + b'"}'
                sent = [client.write.publish(EVENTS, payload, number) for number in range(1, 501)]
                sending = asyncio.create_task(answers(client, *sent, count=500))
                await stage.until(lambda: stage.value("nd_input_paused") == 1)
                for _ in range(20):
                    await asyncio.sleep(0.01)
                    assert stage.plug.commits.buffered_bytes < 2**20 + 2**19
                stage.spool.free.set()
                assert await sending == acks(*range(1, 501))
            assert stage.spool.count == 500
            assert stage.value("nd_input_paused") == 0

    async def test_partial_bytes(self, start: Start) -> None:
        """Those who hold back the end of a large packet while too much is held are closed; a small one is not."""
        async with start(limits={"partial_bytes": "64KiB"}) as stage:
            small, large = await stage.client(B), await stage.client()
            with small, large:
                topic = f"nd/v1/agents/{B}/events"
                whole = small.write.publish(topic, b"{}", 1)
                await asyncio.to_thread(small.send, whole[:-1])
                (answer,) = await answers(large, large.write.publish(EVENTS, b"x" * 200_000, 1)[:100_000])
                assert answer is not None
                assert (answer[0], answer[1][0]) == (0xE0, 137)
                assert await answers(small, whole[-1:]) == acks(1)
                assert stage.refused("too_many_part_messages") == 1
                await stage.until(lambda: stage.plug.partial_bytes == 0)

    async def test_a_peer_that_says_nothing_or_never_ends_its_connect(self, start: Start) -> None:
        """Closed at connect_timeout, whatever it dribbles."""
        async with start(connect_timeout="1s") as stage:
            silent, slow = await stage.client(welcome=False), await stage.client(B, welcome=False)
            with silent, slow:
                ended = asyncio.create_task(asyncio.to_thread(dribble, slow, slow.write.connect(B)[:-1], 0.2))
                assert await asyncio.to_thread(silent.read) is None
                assert await ended is None
            assert stage.refused("no_connect") == 2

    @BOTH
    async def test_keep_alive_counts_whole_packets(self, start: Start, version: int) -> None:
        """Half a packet, a byte at a time, is no sign of life [MQTT-3.1.2-22]; PINGREQ is."""
        async with start() as stage:
            dead, alive = await stage.client(version=version, keep_alive=1), await stage.client(B, keep_alive=1)
            with dead, alive:
                data = dead.write.publish(EVENTS, b"x" * 100, 1)
                ended = asyncio.create_task(asyncio.to_thread(dribble, dead, data[:40], 0.1))
                while not ended.done():
                    assert await answers(alive, PINGREQ) == [PINGRESP]
                    await asyncio.sleep(0.3)
                answer = await ended
                assert answer is None if version == V311 else (answer and answer[1][0]) == 141
                assert await answers(alive, PINGREQ) == [PINGRESP]
                assert stage.refused("keep_alive") == 1

    async def test_a_full_spool_is_not_the_agents_silence(self, start: Start) -> None:
        """While nobody is read, nobody is dead."""
        async with start(limits={"buffer_bytes": "64KiB"}) as stage:
            client = await stage.client(keep_alive=1)
            with client:
                stage.spool.free.clear()
                await asyncio.to_thread(client.send, client.write.publish(EVENTS, b"x" * 70_000, 1), PINGREQ)
                await asyncio.sleep(3)
                stage.spool.free.set()
                assert sorted(filter(None, await answers(client, count=2))) == [*acks(1), PINGRESP]

    async def test_an_agent_that_never_reads(self, start: Start) -> None:
        """It is not read either once our answers pile up; what is held for it is bounded."""
        async with start() as stage:
            client = await stage.client()
            with client:
                assert await answers(client, client.write.subscribe(5, (POLICY, 0))) == [(0x90, u16(5) + b"\0\0")]
                (peer,) = stage.plug._peers
                async with asyncio.timeout(WAIT_SECONDS):
                    while not peer.held:
                        stage.fleet.set_policy(A, b"x" * 50_000)
                        await asyncio.sleep(0)
                assert peer._connection.unread_bytes < 2 * MAX_UNREAD_BYTES
                packets = peer.session.reader.packets
                await asyncio.to_thread(client.send, PINGREQ)
                await asyncio.sleep(0.2)
                assert peer.session.reader.packets == packets


class TestDownlink:
    """Policies down."""

    @BOTH
    async def test_what_is_there_and_what_comes(self, start: Start, version: int) -> None:
        """With SUBACK what is retained, later what is new; to the agent it is for."""
        async with start() as stage:
            stage.fleet.policies[A] = b"v1"
            client, other = await stage.client(version=version), await stage.client(B)
            with client, other:
                suback, first = await answers(client, client.write.subscribe(5, (POLICY, 1)), count=2)
                assert suback is not None
                assert suback[1][-1] == 1
                assert first is not None
                assert first[0] == 0x33
                assert first[1].endswith(b"v1")
                assert await answers(other, other.write.subscribe(5, (f"nd/v1/agents/{B}/policy", 1))) == [
                    (0x90, u16(5) + b"\0\1")
                ]
                stage.fleet.set_policy(A, b"v2")
                (second,) = await answers(client)
                assert second is not None
                assert second[0] == 0x32
                assert second[1].endswith(b"v2")
                assert await answers(other, PINGREQ) == [PINGRESP]

    async def test_nothing_else_can_be_subscribed_to(self, start: Start) -> None:
        """SUBACK 135, audited."""
        async with start() as stage:
            client = await stage.client()
            with client:
                (suback,) = await answers(client, client.write.subscribe(5, ("#", 1), (f"nd/v1/agents/{B}/policy", 0)))
                assert suback == (0x90, u16(5) + b"\0\x87\x87")
            assert ("not_allowed", A, "#") in stage.fleet.told


class TestConnections:
    """Who is there, who was, and how it ended."""

    async def test_a_newer_connection_takes_over(self, start: Start) -> None:
        """142 to the older, without its will: the agent is not gone. What the older had sent is taken."""
        async with start() as stage:
            stage.spool.free.clear()
            old = await stage.client(will=(STATUS, b"gone"))
            with old:
                await asyncio.to_thread(old.send, old.write.publish(EVENTS, b'{"old":1}', 1))
                await stage.until(lambda: stage.plug.commits.buffered_bytes > 0)
                new = await stage.client()
                with new:
                    answer = await asyncio.to_thread(old.read)
                    assert answer is not None
                    assert (answer[0], answer[1][0]) == (0xE0, 142)
                    assert await asyncio.to_thread(old.read) is None
                    stage.spool.free.set()
                    assert await answers(new, new.write.publish(EVENTS, b'{"new":1}', 1)) == acks(1)
            assert stage.spool.payload() == b'{"old":1}\n{"new":1}\n'
            await stage.until(lambda: not stage.plug._peers)
            assert not [told for told in stage.fleet.told if told[0] == "lost"]

    async def test_without_an_identifier_nobody_is_taken_over(self, start: Start) -> None:
        """mosquitto_pub on a host with a running agent does not throw it out."""
        async with start() as stage:
            agent, tool = await stage.client(), await stage.client(client_id="")
            with agent, tool:
                for one in (agent, tool):
                    assert await answers(one, PINGREQ) == [PINGRESP]

    async def test_another_identifier_is_refused(self, start: Start) -> None:
        """133, audited."""
        async with start() as stage:
            client = await stage.client(welcome=False)
            with client:
                answer = await asyncio.to_thread(client.connect, B)
                assert answer is not None
                assert answer[1][1] == 133
            assert [told[:2] for told in stage.fleet.told] == [("not_allowed", A)]

    @BOTH
    async def test_the_will_tells_a_lost_connection(self, start: Start, version: int) -> None:
        """Not one that was ended with DISCONNECT."""
        async with start() as stage:
            for number, leave in enumerate((False, True)):
                client = await stage.client(version=version, will=(STATUS, b"gone %d" % number))
                with client:
                    if leave:
                        await asyncio.to_thread(client.send, client.write.disconnect())
                        assert await asyncio.to_thread(client.read) is None
                await stage.until(lambda: not stage.plug._peers)
            assert [told for told in stage.fleet.told if told[0] == "lost"] == [("lost", A, "gone 0")]
            assert stage.fleet.told.count(("seen", A, "mqtt")) >= 2

    async def test_a_revoked_agent_is_dropped(self, start: Start) -> None:
        """Its live connection, within moments of the reload; others stay."""
        async with start(crl=True) as stage:
            pair = stage.files.authority.issue("x", names=[f"URI:nd:agent:{B}"])
            bad = await asyncio.to_thread(Client, stage.files.client(pair), stage.port)
            good = await stage.client()
            with bad, good:
                assert await asyncio.to_thread(bad.connect, B) is not None
                stage.files.authority.revoke(pair)
                stage.files.write_crl()
                assert stage.contexts.reload()
                assert await asyncio.to_thread(bad.read) is None
                assert stage.refused("certificate_revoked") == 1
                assert await answers(good, PINGREQ) == [PINGRESP]

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"\x34\x05", 155), (packet(0x10, b""), 130), (b"\x00\x00", 129),
            (packet(0x30, text("a") + b"\x03\x23\0\1"), 148), (b"\x32\xff\xff\xff\xff", 129), (packet(0xF0, b""), 130),
        ],
    )  # fmt: skip
    async def test_a_broken_rule_ends_it_with_its_reason(self, start: Start, data: bytes, reason: int) -> None:
        """DISCONNECT, then the end; counted."""
        async with start() as stage:
            client = await stage.client()
            with client:
                first, second = await answers(client, data, count=2)
                assert first is not None
                assert (first[0], first[1][0]) == (0xE0, reason)
                assert second is None
            assert stage.refused("protocol_error") == 1

    async def test_no_session_is_kept(self, start: Start) -> None:
        """Session Present 0, and Session Expiry Interval 0 to whom wants more."""
        async with start() as stage:
            for _ in range(2):
                client = await stage.client(welcome=False)
                with client:
                    answer = await asyncio.to_thread(client.connect, A, clean=False, values=[(0x11, u32(3600))])
                    assert answer is not None
                    assert answer[1][:2] == b"\0\0"
                    assert b"\x11" + u32(0) in answer[1]


class TestStop:
    """Cancelling `run` is a graceful stop."""

    async def test_what_was_read_is_acknowledged_before_the_end(self, start: Start) -> None:
        """Then 139, so that the agent goes elsewhere; its will is not told."""
        async with start() as stage:
            stage.spool.free.clear()
            client = await stage.client(will=(STATUS, b"gone"))
            with client:
                await asyncio.to_thread(client.send, client.write.publish(EVENTS, b"{}", 1))
                await stage.until(lambda: stage.plug.commits.buffered_bytes > 0)
                stopping = asyncio.create_task(stage.stop())
                await asyncio.sleep(0.05)
                assert not stopping.done()
                stage.spool.free.set()
                first, second, third = await answers(client, count=3)
                await stopping
            assert first == acks(1)[0]
            assert second is not None
            assert (second[0], second[1][0]) == (0xE0, 139)
            assert third is None
            assert not [told for told in stage.fleet.told if told[0] == "lost"]
            assert stage.spool.count == 1

    async def test_a_stop_before_a_blocked_spool_counts_what_nobody_will_repeat(self, start: Start) -> None:
        """QoS 0 is lost and counted; QoS 1 was not acknowledged, so it is not."""
        async with start() as stage:
            stage.spool.free.clear()
            client = await stage.client()
            with client:
                write = client.write.publish
                await asyncio.to_thread(client.send, write(EVENTS, b"{}\n{}", qos=0), write(EVENTS, b"{}", 1), PINGREQ)
                assert await answers(client) == [PINGRESP]
                stage.task.cancel()
                await asyncio.sleep(0.05)
                stage.task.cancel()
                await asyncio.wait({stage.task}, timeout=WAIT_SECONDS)
            assert stage.dropped("stopped") == 2
            assert stage.value("nd_input_received_events_total") == 2

    async def test_a_spool_that_fails_acknowledges_nothing(self, start: Start) -> None:
        """The input ends with the error, for the supervisor to start it again; the agent is told to go, not lied to."""
        async with start() as stage:

            async def broken(batch: Batch) -> None:
                raise RuntimeError("spool is closed")

            await stage.stop()
            stage.task = asyncio.create_task(stage.plug.run(broken))
            await asyncio.wait_for(stage.plug.started.wait(), WAIT_SECONDS)
            client = await stage.client()
            with client:
                first, second = await answers(client, client.write.publish(EVENTS, b"{}", 1), count=2)
                assert first is not None
                assert (first[0], first[1][0], second) == (0xE0, 139, None)
            with pytest.raises(ExceptionGroup, match="TaskGroup"):
                await stage.task

    async def test_it_can_be_run_again(self, start: Start) -> None:
        """A restart by the supervisor after a failure."""
        async with start() as stage:
            await stage.stop()
            stage.task = asyncio.create_task(stage.plug.run(stage.spool))
            await asyncio.wait_for(stage.plug.started.wait(), WAIT_SECONDS)
            client = await stage.client()
            with client:
                assert await answers(client, client.write.publish(EVENTS, b"{}", 1)) == acks(1)


def test_the_defaults_are_those_of_the_manual() -> None:
    """DESIGN §6, and what the CONNACK tells."""
    config = Config()
    assert [str(one) for one in config.listen] == ["0.0.0.0:8883"]
    assert (config.receive_maximum, config.max_packet_bytes, config.max_keep_alive) == (64, 2**20, 600)
    assert config.streams == ("alerts", "metrics", "security_events")
