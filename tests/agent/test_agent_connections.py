"""Far sides that accept and then say nothing: no try of the agent's may leave a socket behind, or a batch in memory."""

import asyncio
import ssl
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from collector_process import Certificates

from ndagent.core.interfaces import Unavailable
from ndagent.https_client import Place
from ndagent.outputs import Target, TransportContext, https, mqtt
from ndagent.wire.envelope import Header

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")

TRIES = 4
CONNACK = b"\x20\x03\x00\x00\x00"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def nothing(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Take it all and never answer."""
    while await reader.read(65536):
        pass


async def welcome_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """CONNACK to whatever comes first, and silence."""
    await reader.read(65536)
    writer.write(CONNACK)
    await nothing(reader, writer)


@asynccontextmanager
async def far_side(handler: Handler, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """A server's port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the far side's own end is not what is looked at
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def sockets() -> int:
    """Descriptors of this process that are sockets."""
    return sum(stat.S_ISSOCK(one.stat().st_mode) for one in Path("/proc/self/fd").iterdir() if one.exists())


async def back_to(before: int) -> int:
    """How many sockets are left, once it is no more than before or patience is over."""
    deadline = asyncio.get_running_loop().time() + 3
    while sockets() > before and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)
    return sockets()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    files = Certificates.make(tmp_path_factory.mktemp("pki"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.server_cert, files.server_key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(files.ca)
    return server, client


async def ignored(_data: bytes) -> None:
    """A policy that nobody wants."""


def context_of(client: ssl.SSLContext) -> TransportContext:
    return TransportContext(agent_id="a" * 16, tls=lambda: client, offer=ignored)


def place(port: int) -> Place:
    return Place("localhost", port, "127.0.0.1")


async def test_an_mqtt_server_that_never_says_connack_costs_no_socket(contexts) -> None:
    """A load balancer with nothing behind it: the agent asks it for days."""
    server, client = contexts
    async with far_side(nothing, server) as port:
        target = Target("mqtt", place(port))
        transport = mqtt.build(mqtt.Config(connect_timeout=0.3), context_of(client), target)
        before = sockets()
        for _ in range(TRIES):
            with pytest.raises(Unavailable, match="timed out"):
                await transport.probe()
        await transport.aclose()
        assert await back_to(before) == before


@pytest.mark.parametrize("way", ["https", "mqtt"])
async def test_a_proxy_that_never_answers_costs_no_socket(contexts, way: str) -> None:
    """CONNECT, and silence."""
    _, client = contexts
    async with far_side(nothing, None) as port:
        proxy, context, target = f"http://127.0.0.1:{port}", context_of(client), Target(way, place(1))
        transport = (
            https.build(https.Config(timeout=0.3, proxy=proxy), context, target)
            if way == "https"
            else mqtt.build(mqtt.Config(connect_timeout=0.3, proxy=proxy), context, target)
        )
        before = sockets()
        for _ in range(TRIES):
            with pytest.raises(Unavailable):
                await transport.probe()
        await transport.aclose()
        assert await back_to(before) == before


async def test_publishes_that_are_never_acknowledged_do_not_gather(contexts, monkeypatch) -> None:
    """A collector whose spool is full for a day answers pings and nothing else; each try was kept in memory."""
    monkeypatch.setattr(mqtt, "_ACK_SECONDS", 0.2)
    server, client = contexts
    async with far_side(welcome_only, server) as port:
        target = Target("mqtt", place(port))
        transport = mqtt.build(mqtt.Config(connect_timeout=5), context_of(client), target)
        header = Header("security_events", "s" * 16, 0, 0, 1, 1, 0, "a" * 16, "0" * 16)
        before = sockets()
        for _ in range(TRIES):
            with pytest.raises(Unavailable, match="no PUBACK"):
                await transport.send(b"x" * 1000, header)
        wire = transport._wire
        assert wire is not None
        assert len(wire._paho._out_messages) <= 1
        await transport.aclose()
        assert await back_to(before) == before


async def test_publishes_that_somebody_stopped_waiting_for_do_not_gather(contexts) -> None:
    """By default `delivery.timeout` ends a try before the way's own patience does: the same far side, the same end."""
    server, client = contexts
    async with far_side(welcome_only, server) as port:
        transport = mqtt.build(mqtt.Config(connect_timeout=5), context_of(client), Target("mqtt", place(port)))
        header = Header("security_events", "s" * 16, 0, 0, 1, 1, 0, "a" * 16, "0" * 16)
        before = sockets()
        kept = []
        for _ in range(TRIES):
            await transport.probe()
            wire = transport._wire
            assert wire is not None
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await transport.send(b"x" * 1000, header)
            kept.append((len(wire._paho._out_messages), wire.is_lost))
        assert kept == [(1, True)] * TRIES
        await transport.aclose()
        assert await back_to(before) == before
