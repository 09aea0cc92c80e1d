"""What one connection does with its socket; the TLS session is a stand-in that says what it is told to."""

import asyncio
import contextlib
import socket

import pytest

from ndagent.core import tcp_connection
from ndagent.core.tcp_connection import Handler
from ndagent.core.tls_protocol import TlsConnection
from ndagent.core.tls_refusal import Refused
from ndagent.core.tls_session import TlsSession


class Talkative:
    """A session with 60 KB of answers, as a peer that asks for key updates can have it."""

    ended: str | None = None
    attention = False

    def handshake(self, data: memoryview) -> bool:
        return bool(data)

    def decrypt(self, data: memoryview | bytes, plain: memoryview) -> int:
        return 0

    def output(self) -> bytes:
        return b"x" * 60_000

    def close(self) -> bytes:
        return b""

    def certificate(self) -> bytes:
        return b""

    def chain(self) -> list[bytes]:
        return []


class Listener:
    """A host that lets everybody in and a handler that takes everything."""

    def __init__(self) -> None:
        self.admitted = asyncio.Event()
        self.forgotten = asyncio.Event()

    def admit(self, connection: TlsConnection, session: TlsSession) -> Handler:
        self.admitted.set()
        return self

    def refuse(self, connection: TlsConnection, refusal: Refused) -> None:
        pass

    def forget(self, connection: TlsConnection) -> None:
        self.forgotten.set()

    def received(self, data: memoryview) -> None:
        pass

    def ended(self) -> None:
        pass


async def test_a_peer_that_reads_nothing_cannot_keep_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """close() waits for what is still to be sent; a revoked peer with a full window would stay for ever."""
    monkeypatch.setattr(tcp_connection, "LINGER_SECONDS", 0.05)
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as peer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            peer.connect(listening.getsockname())
        accepted, _ = await asyncio.to_thread(listening.accept)
        accepted.setblocking(False)
        host = Listener()
        connection = TlsConnection(host, Talkative(), address="", port=0, handshake_timeout_seconds=5)
        await loop.connect_accepted_socket(lambda: connection, accepted)
        await loop.sock_sendall(peer, b"hello")
        async with asyncio.timeout(5):
            await host.admitted.wait()
            connection.drop(Refused("certificate_revoked"))
            await host.forgotten.wait()
