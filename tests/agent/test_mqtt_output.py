"""The agent's way over MQTT: against our own listener, a real mosquitto, and peers that misbehave."""

import asyncio
import contextlib
import gc
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from services import fetch, mosquitto
from services.need import need
from services.process import free_port
from tls_peers import SERVER, Files

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.https_client import Place
from ndagent.outputs import Target, TransportContext, mqtt
from ndagent.wire.envelope import Header, pack
from tests.agent.tls_server import Site as Pki
from tests.agent.tls_server import Talk, relay, serving
from tests.e2e.test_mqtt import SPOOL_ID, A, Stage, lines, start

WAIT_SECONDS = 8
__all__ = ["start"]
Start = Callable[..., contextlib.AbstractAsyncContextManager[Stage]]


class Way(mqtt.Mqtt):
    """The transport under test, and the policies that came down by it."""

    def __init__(self, context: ssl.SSLContext, port: int, *, host: str = "localhost", **config: Any) -> None:
        self.offered: list[bytes] = []
        address = "127.0.0.1" if host == "localhost" else None
        around = TransportContext(A, lambda: context, self._offer)
        settings = mqtt.Config(type="mqtt", **config)
        super().__init__(settings, around, Target("mqtt", Place(host, port, address)))

    async def _offer(self, policy: bytes) -> None:
        self.offered.append(policy)

    async def batch(self, count: int = 3, *, first: int = 0, ndjson: bytes | None = None, **fields: Any) -> None:
        body = lines(count, first) if ndjson is None else ndjson
        header = Header(
            **{
                "stream": "security_events", "spool_id": SPOOL_ID, "first": first, "last": first + count - 1,
                "count": count, "length": len(body), "sent_at_ns": 1, "agent_id": A, "run_id": "ab" * 8, **fields,
            }
        )  # fmt: skip
        await self.send(pack(header, body), header)


@asynccontextmanager
async def way_to(context: ssl.SSLContext, port: int, **config: Any) -> AsyncIterator[Way]:
    way = Way(context, port, **config)
    try:
        yield way
    finally:
        await way.aclose()
        await way.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_batch_is_on_disk_when_send_returns(start: Start) -> None:
    """Not before; many at a time go over one connection."""
    async with start() as stage, way_to(stage.context(), stage.port) as way:
        await way.probe()
        stage.spool.free.clear()
        sending = asyncio.gather(*(way.batch(first=first) for first in range(0, 300, 3)))
        await until(lambda: stage.plug.commits.buffered_bytes > 0)
        assert not sending.done()
        stage.spool.free.set()
        await sending
        assert stage.spool.count == 300
        assert stage.value("nd_input_accepted_connections_total") == 1


async def test_the_collectors_receive_maximum_is_kept(start: Start) -> None:
    """Fewer at a time than we would send; nobody closes the connection over it."""
    async with start(receive_maximum=2) as stage, way_to(stage.context(), stage.port) as way:
        await asyncio.gather(*(way.batch(first=first) for first in range(0, 90, 3)))
        assert stage.spool.count == 90
        assert stage.value("nd_input_accepted_connections_total") == 1


async def test_more_than_the_collector_takes_in_a_packet_is_rejected_before_it_is_sent(start: Start) -> None:
    """Smaller pieces are taken over the same connection; it would be closed over this one, for ever."""
    async with start(max_packet_bytes=4096) as stage, way_to(stage.context(), stage.port) as way:
        await way.batch()
        noise = b'{"message":"%s","event":{"id":"%s-9"}}\n' % (ssl.RAND_bytes(4000).hex().encode(), SPOOL_ID.encode())
        with pytest.raises(Rejected, match="takes packets of 4096 bytes"):
            await way.batch(1, first=9, ndjson=noise)
        await way.batch(first=3)
        assert stage.spool.count == 6
        assert stage.value("nd_input_accepted_connections_total") == 1


async def test_what_the_collector_refuses_is_told_apart(start: Start) -> None:
    """153 (0x99) is never; 135 for an agent that may not is later, and a person's business."""
    async with start() as stage, way_to(stage.context(), stage.port) as way:
        with pytest.raises(Rejected, match="reason code 0x99"):
            await way.batch(3, ndjson=b"not three lines\n" * 2, length=32)
        await way.batch()
        with pytest.raises(Unavailable, match=r"0x87.*revoked"):
            await way.batch(agent_id="agent-b")


async def test_a_lost_connection_fails_all_publishes_at_once_and_the_next_opens_another(start: Start) -> None:
    """No time-outs are waited for."""
    async with start() as stage, way_to(stage.context(), stage.port) as way:
        await way.probe()
        stage.spool.free.clear()
        sending = [asyncio.create_task(way.batch(first=first)) for first in range(0, 30, 3)]
        await until(lambda: stage.plug.commits.buffered_bytes > 0 and len(way._wire._waiting) == 10)  # type: ignore[union-attr]
        for peer in tuple(stage.plug._peers):
            peer._connection.close()
        outcomes = await asyncio.wait_for(asyncio.gather(*sending, return_exceptions=True), 5)
        assert all(isinstance(one, Unavailable) and "connection was lost" in one.reason for one in outcomes)
        stage.spool.free.set()
        await asyncio.gather(*(way.batch(first=first) for first in range(0, 30, 3)))


async def test_policies_are_handed_on(start: Start) -> None:
    """The retained one at once, newer ones as they come."""
    async with start() as stage:
        stage.fleet.set_policy(A, b"first")
        async with way_to(stage.context(), stage.port) as way:
            await way.probe()
            await until(lambda: way.offered == [b"first"])
            stage.fleet.set_policy(A, b"second")
            await until(lambda: way.offered == [b"first", b"second"])


async def test_the_end_is_told_to_the_collector_only_if_nobody_said_goodbye(start: Start) -> None:
    """The will."""
    async with start() as stage:
        async with way_to(stage.context(), stage.port) as way:
            await way.batch()
        await until(lambda: not stage.plug._peers)
        assert ("lost", A, "") not in stage.fleet.told
        async with way_to(stage.context(), stage.port) as way:
            await way.batch(first=3)
            way._wire._cut()  # type: ignore[union-attr]
            await until(lambda: ("lost", A, "") in stage.fleet.told)


async def test_a_way_that_was_closed_does_not_come_back(start: Start) -> None:
    """It would take over from the connection that came after it."""
    async with start() as stage:
        way = Way(stage.context(), stage.port)
        await way.batch()
        await way.aclose()
        with pytest.raises(Unavailable, match="closed"):
            await way.batch(first=3)
        await until(lambda: not stage.plug._peers)


async def test_a_refused_certificate_is_told_fast(start: Start, tmp_path: Path) -> None:
    """In seconds, with what to look at; none of ours, a stranger's, and one whose collector is somebody else."""
    (tmp_path / "other").mkdir()
    stranger = Files(tmp_path / "other")
    pair = stranger.authority.issue(A, names=[f"URI:nd:agent:{A}"])
    async with start() as stage:
        nobody, wrong = stage.files.client(None), stage.files.client(pair)
        for context in (nobody, wrong):
            async with way_to(context, stage.port) as way:
                with pytest.raises(Unavailable, match=r"ndagent status|alert|refused"):
                    await asyncio.wait_for(way.probe(), 4)
        async with way_to(stranger.client(pair), stage.port) as way:
            with pytest.raises(Unavailable, match=r"(?i)certificate verify failed"):
                await asyncio.wait_for(way.probe(), 4)


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Reads and says nothing."""
    while await reader.read(1 << 16):
        pass


async def test_silence_ends_in_time_and_leaves_nothing_open(tmp_path: Path) -> None:
    """Below TLS and above it; also where the caller did not want to wait so long."""
    pki = Pki(tmp_path)
    for context in (None, pki.server):
        async with serving(silent, context) as seen, way_to(pki.client, seen.port, connect_timeout=0.3) as way:
            with pytest.raises(Unavailable, match="timed out"):
                await way.probe()
            await until(lambda seen=seen: seen.open == 0)
            cut = asyncio.create_task(way.probe())
            await asyncio.sleep(0.1)
            cut.cancel()
            await asyncio.wait({cut})
            await until(lambda seen=seen: seen.open == 0)
    gc.collect()  # what nobody retrieved is told by the loop, and a warning fails the test


async def test_a_collector_that_takes_and_never_acknowledges_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is cut, so that what it was sent is not kept and added to."""
    monkeypatch.setattr(mqtt, "_ACK_SECONDS", 0.2)
    async with start() as stage, way_to(stage.context(), stage.port) as way:
        await way.probe()
        stage.spool.free.clear()
        with pytest.raises(Unavailable, match=r"no PUBACK within 0\.2 s"):
            await way.batch()
        assert way._wire is not None
        assert way._wire.is_lost
        stage.spool.free.set()
        await way.batch(first=3)


async def test_tries_of_a_batch_that_waits_for_the_spool_do_not_gather_in_the_collector(start: Start) -> None:
    """A spool without room for a day, and an agent that comes again every minute: only who is there is answered."""
    async with start() as stage, way_to(stage.context(), stage.port) as way:
        await way.probe()
        stage.spool.free.clear()
        for _ in range(6):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await way.batch()
        (waiting,) = stage.plug.under_way.values()
        assert len(waiting) <= 2
        last = asyncio.create_task(way.batch())
        await until(lambda: any(peer.session.open for peer, _ in waiting))
        stage.spool.free.set()
        await last
        assert stage.spool.count == 3


async def test_through_a_proxy(start: Start) -> None:
    """CONNECT, then TLS with the collector itself; a proxy that refuses is named."""
    heads: list[bytes] = []
    async with start() as stage, serving(relay(heads)) as proxy:
        async with way_to(stage.context(), stage.port, proxy=f"http://127.0.0.1:{proxy.port}") as way:
            await way.batch()
            assert stage.spool.count == 3
        assert heads[0].startswith(f"CONNECT localhost:{stage.port} ".encode())

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 No\r\n\r\n")

    talk: Talk = refuses
    async with start() as stage, serving(talk) as proxy:
        way = Way(stage.context(), stage.port, proxy=f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(Unavailable, match=f"proxy 127.0.0.1:{proxy.port} answered 407"):
            await way.probe()


# ---- a broker that is not ours


@asynccontextmanager
async def broker(directory: Path, *extra: str) -> AsyncIterator[tuple[Files, ssl.SSLContext, int]]:
    need(fetch.MOSQUITTO)
    files = Files(directory)
    files.server = files.authority.issue("broker", names=["DNS:localhost", "IP:127.0.0.1"], usage=[SERVER])
    files.write()
    pki = {"ca": directory / "ca.crt", "cert": directory / "server.crt", "key": directory / "server.key"}
    port = free_port()
    process = await asyncio.to_thread(lambda: mosquitto.broker(directory, port=port, pki=pki, extra=extra))
    try:
        yield files, files.client(files.authority.issue(A, names=[f"URI:nd:agent:{A}"])), port
    finally:
        await asyncio.to_thread(process.kill)


@pytest.mark.service
async def test_a_broker_without_a_subscriber_is_no_delivery(tmp_path: Path) -> None:
    """PUBACK 16: the broker has thrown it away. An agent that believes in a mere PUBACK loses it."""
    async with broker(tmp_path) as (_, context, port), way_to(context, port) as way:
        with pytest.raises(Unavailable, match="no collector is subscribed"):
            await way.batch()
        reader = Way(context, port)
        reader._context = TransportContext("collector", lambda: context, reader._offer)
        await reader.probe()
        assert reader._wire is not None
        await reader._wire._client.subscribe("nd/v1/agents/+/events", qos=1)
        await way.batch()
        await reader.aclose()


@pytest.mark.service
async def test_a_broker_that_forbids_the_topic_is_no_delivery(tmp_path: Path) -> None:
    """PUBACK 135."""
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    acl.chmod(0o600)
    async with broker(tmp_path, f"acl_file {acl}") as (_, context, port), way_to(context, port) as way:
        with pytest.raises(Unavailable, match="reason code 0x87"):
            await way.batch()


@pytest.mark.service
async def test_a_broker_that_is_killed_fails_what_is_under_way(tmp_path: Path) -> None:
    """And says so; nothing hangs."""
    async with broker(tmp_path) as (_, context, port), way_to(context, port) as way:
        await way.probe()
    with pytest.raises(Unavailable):
        await Way(context, port, connect_timeout=1).probe()


@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x97])
async def test_every_other_refusal_is_unavailable(code: int, monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    """Quota exceeded (0x97) among them: data waits."""
    async with start() as stage, way_to(stage.context(), stage.port) as way:
        await way.probe()
        wire = way._wire
        assert wire is not None
        told = wire._acknowledged

        class Reason:
            value = code

        wire._paho.on_publish = lambda c, u, mid, _reason, p: told(c, u, mid, Reason(), p)
        with pytest.raises(Unavailable, match=f"reason code {code:#04x}"):
            await way.batch()
