"""A listener whose handler answers, over real TLS: who is let in by whom it serves, and how writing is bounded."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tls_peers import Files, connect, wait_refused

from ndagent.core.allow_list import AllowConfig, AllowList
from ndagent.core.metrics import Metrics
from ndagent.core.settings import Listen
from ndagent.core.tls import Peers, TlsConfig, TlsContexts
from ndagent.core.tls_identity import PeerCertificate
from ndagent.core.tls_listener import LimitsConfig, TlsListener
from ndagent.core.tls_protocol import TlsConnection

WAIT_SECONDS = 20.0


class Echo:
    """Sends back what it gets, and notes what it is told."""

    def __init__(self, certificate: PeerCertificate | None, connection: TlsConnection) -> None:
        self.certificate = certificate
        self.connection = connection
        self.taken = b""
        self.paused: list[bool] = []
        self.over = asyncio.Event()
        connection.writing_paused = self.paused.append

    def received(self, data: memoryview) -> None:
        self.taken += data
        self.connection.write(data)

    def ended(self) -> None:
        self.over.set()


class Site:
    """A listener that serves, its files, and the handlers it made."""

    def __init__(self, files: Files, contexts: TlsContexts, metrics: Metrics, peers: Peers) -> None:
        self.files = files
        self.contexts = contexts
        self.metrics = metrics
        self.handlers: list[Echo] = []
        self.listener = TlsListener(
            [Listen("127.0.0.1", 0)], name="echo", kind="agent", contexts=contexts, allow=AllowList(AllowConfig()),
            limits=LimitsConfig(), handler=self._meet, metrics=metrics, peers=peers,
        )  # fmt: skip

    def _meet(self, certificate: PeerCertificate | None, connection: TlsConnection) -> Echo:
        self.handlers.append(Echo(certificate, connection))
        return self.handlers[-1]

    @property
    def port(self) -> int:
        return self.listener.addresses[0].port

    def client(self, *names: str, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client with a certificate of these names; without one if there are none."""
        return self.files.client(self.files.authority.issue("x", names=names) if names else None, version=version)

    async def connect(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        return await asyncio.to_thread(connect, context, self.port)

    async def is_refused(self, context: ssl.SSLContext) -> bool:
        return await asyncio.to_thread(wait_refused, context, self.port)

    def refused(self, reason: str) -> float:
        name = "nd_input_refused_connections_total"
        return self.metrics.registry.get_sample_value(name, {"input": "echo", "reason": reason}) or 0


Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(Peers.AGENTS) as site`."""

    @asynccontextmanager
    async def serving(peers: Peers, *, crl: bool = False) -> AsyncIterator[Site]:
        files, metrics = Files(tmp_path), Metrics()
        if crl:
            files.write_crl()
        names = {"ca_file": "ca.crt", "cert_file": "server.crt", "key_file": "server.key"}
        config = TlsConfig(**{key: tmp_path / name for key, name in names.items()})
        site = Site(files, TlsContexts(config, metrics=metrics, clock=time.time), metrics, peers)
        await site.listener.start()
        task = asyncio.create_task(site.listener.serve())
        try:
            yield site
        finally:
            task.cancel()
            await asyncio.wait({task})
            await site.listener.stop()

    return serving


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


AGENT = "URI:nd:agent:abc2"


@pytest.mark.parametrize("peers", Peers)
async def test_an_agent_gets_its_bytes_back(serve: Serve, peers: Peers) -> None:
    """A megabyte in both directions at once, decrypted, encrypted, in order."""
    data = bytes(range(256)) * 4096
    async with serve(peers) as site:
        with await site.connect(site.client(AGENT)) as client:
            site.handlers[0].connection.max_unread_bytes = 2 * len(data)

            def talk() -> bytes:
                client.sendall(data)
                back = b""
                while len(back) < len(data):
                    back += client.recv(65536)
                return back

            assert await asyncio.to_thread(talk) == data
        await asyncio.wait_for(site.handlers[0].over.wait(), WAIT_SECONDS)
    assert site.handlers[0].certificate is not None
    assert AGENT in site.handlers[0].certificate.names


async def test_agents_need_an_agents_certificate(serve: Serve) -> None:
    """Not none, not a device's, and not one of the customer's PKI, which knows no agents."""
    async with serve(Peers.AGENTS) as site:
        for names in ((), ("URI:nd:device:fw",), ("DNS:host.example",)):
            assert await site.is_refused(site.client(*names))
        assert site.refused("no_certificate") == 1
        assert site.refused("wrong_kind") == 2
        assert site.handlers == []


async def test_anyone_may_come_without_a_certificate_but_not_with_a_wrong_one(serve: Serve) -> None:
    """Who enrols has none yet; who shows one must be what it says."""
    async with serve(Peers.ANYONE) as site:
        with await site.connect(site.client()) as client:
            await until(lambda: len(site.handlers) == 1)
            client.sendall(b"token")
            assert await asyncio.to_thread(client.recv, 100) == b"token"
        assert site.handlers[0].certificate is None
        for names in (("URI:nd:device:fw",), ("DNS:host.example",)):
            assert await site.is_refused(site.client(*names))
        site.files.authority = type(site.files.authority)("another CA")
        assert await site.is_refused(site.client(AGENT))
        assert site.refused("unknown_ca") == 1
        assert len(site.handlers) == 1


@pytest.mark.parametrize("peers", [Peers.AGENTS, Peers.ANYONE])
async def test_agents_and_the_api_speak_tls_1_3_only(serve: Serve, peers: Peers) -> None:
    """tls.minimum_version is there for devices."""
    async with serve(peers) as site:
        assert await site.is_refused(site.client(AGENT, version=ssl.TLSVersion.TLSv1_2))
        assert site.refused("tls_version") == 1


async def test_a_revoked_agent_is_cut_off_and_those_without_certificate_stay(serve: Serve) -> None:
    """The new CRL is asked about each certificate; a connection without one has nothing to ask about."""
    async with serve(Peers.ANYONE, crl=True) as site:
        pair = site.files.authority.issue("x", names=[AGENT])
        with await site.connect(site.files.client(pair)), await site.connect(site.client()) as other:
            await until(lambda: len(site.handlers) == 2)
            site.files.authority.revoke(pair)
            site.files.write_crl()
            assert site.contexts.reload()
            await asyncio.wait_for(site.handlers[0].over.wait(), WAIT_SECONDS)
            assert site.refused("certificate_revoked") == 1
            other.sendall(b"still here")
            assert await asyncio.to_thread(other.recv, 100) == b"still here"


async def test_a_peer_that_does_not_read_is_told_about_and_then_cut(serve: Serve) -> None:
    """A handler hears that its peer is slow; one that writes on all the same loses the peer, not the memory."""
    async with serve(Peers.AGENTS) as site:
        with await site.connect(site.client(AGENT)):
            await until(lambda: len(site.handlers) == 1)
            echo = site.handlers[0]
            echo.connection.max_unread_bytes = 1 << 20
            block = b"x" * 65536
            async with asyncio.timeout(WAIT_SECONDS):
                while not echo.over.is_set():
                    echo.connection.write(block)
                    assert echo.connection.unread_bytes <= (1 << 20) + 2 * len(block)
                    await asyncio.sleep(0)
            assert echo.paused[0] is True


async def test_a_handler_holds_its_own_connection_only(serve: Serve) -> None:
    """What one peer sends waits in the kernel, the other is served; a listener's resume does not undo the hold."""
    async with serve(Peers.AGENTS) as site:
        context = site.client(AGENT)
        with await site.connect(context) as held, await site.connect(context) as other:
            await until(lambda: len(site.handlers) == 2)
            first = next(one for one in site.handlers if one.connection.port == held.getsockname()[1])
            first.connection.hold()
            held.sendall(b"wait")
            site.listener.pause_reading()
            site.listener.resume_reading()
            other.sendall(b"now")
            assert await asyncio.to_thread(other.recv, 100) == b"now"
            assert first.taken == b""
            site.listener.pause_reading()
            first.connection.release()
            assert first.taken == b""
            site.listener.resume_reading()
            assert await asyncio.to_thread(held.recv, 100) == b"wait"


async def test_a_pinned_session_answers_too(serve: Serve) -> None:
    """pyOpenSSL's engine encrypts as the ssl module's does."""
    async with serve(Peers.DEVICES) as site:
        pair = site.files.authority.issue("x", names=["URI:nd:agent:abc2"])
        site.listener._allow = AllowList(AllowConfig(fingerprints=(pair.fingerprint,)))
        with await site.connect(site.files.client(pair)) as client:
            client.sendall(b"pinned")
            assert await asyncio.to_thread(client.recv, 100) == b"pinned"
