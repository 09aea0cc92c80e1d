"""Accepts TCP connections for mutual TLS: who may connect, how many, how fast; and ends them without losing their data.

Promises:
  * limits hold before any TLS work: networks, connections in total and per address; a burst beyond
    `handshakes_per_second` or `handshakes` waits its turn, address by address, it is not refused: a flood from one
    address does not delay another;
  * slow handshakes cannot keep others out: with all places taken, one that is older than a second makes room;
  * a peer whose certificate is revoked or no longer trusted after a reload is dropped, also one whose handshake began
    before it; every other connection stays;
  * while reading is paused nobody new is accepted either, so memory stays bounded;
  * a stop takes what peers had already sent: they get close_notify and FIN and are read until they fall silent.
Refuses: what is said inside the TLS (the handler's).
"""

import asyncio
import contextlib
import socket
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pydantic import Field

from ndagent.core.allow_list import AllowList
from ndagent.core.metrics import Metrics
from ndagent.core.rate import Rate
from ndagent.core.settings import Duration, Listen
from ndagent.core.tcp_connection import Handler
from ndagent.core.tcp_listener import ConnectionLimits, Listener
from ndagent.core.tls import Peers, TlsContexts, Trust
from ndagent.core.tls_identity import CertificateCache, PeerCertificate, check_size
from ndagent.core.tls_protocol import TlsConnection
from ndagent.core.tls_refusal import Refused
from ndagent.core.tls_session import TlsSession
from ndagent.core.tls_waiting import Waiting, WaitingRoom
from ndagent.core.waiting import to_its_end

PRESSED_HANDSHAKE_SECONDS = 1.0  # what is left of handshake_timeout when `handshakes` is reached


class LimitsConfig(ConnectionLimits):
    """What peers may take of this machine."""

    handshakes_per_second: int = Field(
        default=1_000, ge=1, description="New connections beyond this wait; addresses take turns."
    )
    handshakes: int = Field(
        default=128, ge=1, description="Handshakes under way at a time (up to 180 KB each); more wait as above."
    )
    handshake_timeout: Duration = Field(default=10.0, gt=0, description="A handshake that takes longer is refused.")


class HandlerFactory(Protocol):
    """Who speaks with a peer that was let in; may raise Refused."""

    def __call__(self, certificate: PeerCertificate | None, connection: TlsConnection) -> Handler:
        """One handler per connection; `certificate` is None only where peers need none (Peers.ANYONE)."""


class TlsListener(Listener[TlsConnection]):
    """Listens on all addresses of one input. `name` labels metrics and logs, `kind` is its peers' nd: URI kind.

    Devices may come with certificates of the customer's own PKI, which have no such URI; others may not.
    `let_in_at_stop`: a stop lets in whom it had accepted, though the handshake is not done yet: a sender without
    acknowledgements takes what it sends right behind it for delivered.
    """

    def __init__(
        self,
        listen: Sequence[Listen],
        *,
        name: str,
        kind: str,
        contexts: TlsContexts,
        allow: AllowList,
        limits: LimitsConfig,
        handler: HandlerFactory,
        metrics: Metrics,
        peers: Peers = Peers.DEVICES,
        let_in_at_stop: bool = False,
    ) -> None:
        super().__init__(listen, name=name, allow=allow, limits=limits, metrics=metrics)
        self._let_in_at_stop = let_in_at_stop
        self._kind = kind
        self._peers = peers
        self._contexts = contexts
        self._allow = allow
        self._limits = limits
        self._handler = handler
        self._handshakes: dict[TlsConnection, tuple[float, Trust]] = {}  # since when, under whom; the oldest first
        self._handshake_over = asyncio.Event()
        self._waiting = WaitingRoom()
        self._certificates = CertificateCache()
        self._contexts_changed = asyncio.Event()

    async def serve(self) -> None:
        """See Listener."""
        unsubscribe = self._contexts.subscribe(self._contexts_changed.set)
        try:
            await super().serve()
        finally:
            unsubscribe()

    async def stop(self) -> None:
        """See Listener."""
        try:
            if self._let_in_at_stop and self._reading.is_set():
                await self._let_in()
        finally:
            self._waiting.close()
            await super().stop()

    async def _let_in(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.drain_timeout):
                while self._waiting or self._handshakes:
                    if self._waiting and len(self._handshakes) < self._limits.handshakes:
                        await self._begin_handshake(self._waiting.take())
                        continue
                    self._handshake_over.clear()
                    await self._handshake_over.wait()

    def _parts(self) -> Iterable[Coroutine[Any, Any, None]]:
        yield self._begin_handshakes()
        yield self._drop_untrusted()

    # ---- what a TlsConnection asks ----

    def admit(self, connection: TlsConnection, session: TlsSession) -> Handler:
        """Check the certificate; raises Refused."""
        certificate = self._checked(connection, session)
        handler = self._handler(certificate, connection)
        self._accepted.inc()
        self._leave_handshake(connection)
        if not self._reading.is_set():
            connection.pause_reading()
        return handler

    def _checked(self, connection: TlsConnection, session: TlsSession) -> PeerCertificate | None:
        der = session.certificate()
        if not der and self._peers is Peers.ANYONE:
            return None
        chain = session.chain()
        check_size(der, chain)
        certificate = self._certificates.get(der)
        _, verified_by = self._handshakes[connection]
        if verified_by is not self._contexts.trust:
            self._check_still_trusted(der, self._contexts.trust.lost(der, chain))
        certificate.require_kind(self._kind, typed_only=self._peers is not Peers.DEVICES)
        self._allow.check_certificate(certificate)
        return certificate

    def refuse(self, connection: TlsConnection, refusal: Refused) -> None:
        """Count and log a connection that ends against its will."""
        self._leave_handshake(connection)
        super().refuse(connection, refusal)

    def forget(self, connection: TlsConnection) -> None:
        """A connection is gone."""
        self._leave_handshake(connection)
        super().forget(connection)

    # ---- inside ----

    async def _welcome(self, accepted: socket.socket, address: str, port: int) -> None:
        self._waiting.put(Waiting(accepted, address, port))

    def _waiting_in_all(self) -> int:
        return len(self._waiting)

    def _waiting_from(self, address: str) -> int:
        return self._waiting.waiting_from(address)

    async def _begin_handshakes(self) -> None:
        per_second, loop = self._limits.handshakes_per_second, asyncio.get_running_loop()
        rate = Rate(per_second, burst=max(1.0, per_second / 10), clock=loop.time, sleep=asyncio.sleep)
        while True:
            await self._waiting.ready()
            await self._reading.wait()
            await self._handshake_place()
            await rate.take()
            # Only now: it may be the turn of one who came meanwhile.
            await to_its_end(self._begin_handshake(self._waiting.take()))

    async def _handshake_place(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self._handshakes) >= self._limits.handshakes:
            oldest, (began, _) = next(iter(self._handshakes.items()))
            left = began + PRESSED_HANDSHAKE_SECONDS - loop.time()
            if left <= 0:
                oldest.drop(Refused("handshake_timeout", "limits.handshakes is reached"))
                continue
            self._handshake_over.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._handshake_over.wait()

    def _leave_handshake(self, connection: TlsConnection) -> None:
        if self._handshakes.pop(connection, None) is not None:
            self._handshake_over.set()

    async def _begin_handshake(self, waiting: Waiting) -> None:
        accepted, address, port = waiting
        loop = asyncio.get_running_loop()
        connection = TlsConnection(
            self,
            self._contexts.session(self._allow.pins, self._peers),
            address=address,
            port=port,
            handshake_timeout_seconds=self._limits.handshake_timeout,
        )
        self._handshakes[connection] = loop.time(), self._contexts.trust
        await self._connect(connection, accepted)

    async def _drop_untrusted(self) -> None:
        """After each reload: ask OpenSSL, in a thread, about every certificate that is connected, each once."""
        while True:
            await self._contexts_changed.wait()
            self._contexts_changed.clear()
            connected: dict[bytes, list[TlsConnection]] = {}
            chains: dict[bytes, list[bytes]] = {}
            for connection in self._connections:
                session = connection.session
                if session is not None and (certificate := session.certificate()):
                    connected.setdefault(certificate, []).append(connection)
                    if certificate not in chains:
                        chains[certificate] = session.chain()
            lost = await asyncio.to_thread(_lost, self._contexts.trust, chains)
            for der, reason in lost.items():
                try:
                    self._check_still_trusted(der, reason)
                except Refused as refusal:
                    for connection in connected[der]:
                        if connection.session is not None:  # it may have gone meanwhile
                            connection.drop(refusal)

    def _check_still_trusted(self, der: bytes, lost: str | None) -> None:
        """Raise Refused for a reason to lose trust, unless it is the CA and the certificate is trusted without one."""
        pinned = lost == "unknown_ca" and self._certificates.get(der).fingerprint in self._allow.pins
        if lost and not pinned:
            raise Refused(lost, "after a reload of the certificate files")


def _lost(trust: Trust, chains: Mapping[bytes, Sequence[bytes]]) -> dict[bytes, str | None]:
    return {certificate: trust.lost(certificate, chain) for certificate, chain in chains.items()}
