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
import logging
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from pydantic import Field

from ndagent.core.allow_list import AllowList
from ndagent.core.listening import bind, keep_alive
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.rate import Rate
from ndagent.core.settings import Duration, Listen, Settings
from ndagent.core.tls import Peers, TlsContexts, Trust
from ndagent.core.tls_identity import CertificateCache, PeerCertificate, check_size
from ndagent.core.tls_protocol import Handler, TlsConnection
from ndagent.core.tls_refusal import Refused
from ndagent.core.tls_session import TlsSession
from ndagent.core.tls_waiting import Waiting, WaitingRoom

IDLE_CHECKS = 4  # per idle_timeout: a silent peer is closed between 1 and 1.25 times of it
SILENCE_SECONDS = 0.1  # a stop takes a peer that sent nothing for so long to be done
OUT_OF_FILES_SECONDS = 0.5
LOG_SECONDS = 60
PRESSED_HANDSHAKE_SECONDS = 1.0  # what is left of handshake_timeout when `handshakes` is reached


class LimitsConfig(Settings):
    """What peers may take of this machine."""

    connections: int = Field(default=20_000, ge=1, description="Open connections in total.")
    connections_per_address: int = Field(default=2_000, ge=1, description="Open connections from one address.")
    handshakes_per_second: int = Field(
        default=1_000, ge=1, description="New connections beyond this wait; addresses take turns."
    )
    handshakes: int = Field(
        default=128, ge=1, description="Handshakes under way at a time (up to 180 KB each); more wait as above."
    )
    handshake_timeout: Duration = Field(default=10.0, gt=0, description="A handshake that takes longer is refused.")
    idle_timeout: Duration = Field(
        default=0.0,
        ge=0,
        description="A peer that sends nothing for this long is closed; 0 means never. Firewalls may be silent for "
        "hours, and TCP keepalive finds dead ones in 3 minutes.",
    )
    drain_timeout: Duration = Field(
        default=2.0, ge=0, description="At stop, how long to go on taking what peers are still sending."
    )


class HandlerFactory(Protocol):
    """Who speaks with a peer that was let in; may raise Refused."""

    def __call__(self, certificate: PeerCertificate | None, connection: TlsConnection) -> Handler:
        """One handler per connection; `certificate` is None only where peers need none (Peers.ANYONE)."""


class TlsListener:
    """Listens on all addresses of one input. `name` labels metrics and logs, `kind` is its peers' nd: URI kind.

    Devices may come with certificates of the customer's own PKI, which have no such URI; others may not.
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
    ) -> None:
        self.addresses: list[Listen] = []
        self.started = asyncio.Event()
        self._sockets: list[socket.socket] = []
        self._listen = listen
        self._name = name
        self._kind = kind
        self._peers = peers
        self._contexts = contexts
        self._allow = allow
        self._limits = limits
        self._handler = handler
        self._metrics = metrics
        self._log = logging.getLogger(name)
        self._connections: set[TlsConnection] = set()
        self._per_address: Counter[str] = Counter()
        self._handshakes: dict[TlsConnection, tuple[float, Trust]] = {}  # since when, under whom; the oldest first
        self._handshake_over = asyncio.Event()
        self._waiting = WaitingRoom()
        self._certificates = CertificateCache()
        self._reading = asyncio.Event()
        self._reading.set()
        self._contexts_changed = asyncio.Event()
        self._open_gauge = metrics.connections.labels(name)
        self._accepted = metrics.accepted.labels(name)

    # ---- life ----

    async def start(self) -> None:
        """Listen on every address, or on none: OSError names the one that cannot be had. Serving begins in `serve`."""
        try:
            for listen in self._listen:
                self._sockets.append(await bind(listen))
                self.addresses.append(Listen(*self._sockets[-1].getsockname()[:2]))
        except OSError:
            self._close_sockets()
            raise
        self.started.set()
        self._log.info("listening", extra={"addresses": [str(one) for one in self.addresses]})

    def _close_sockets(self) -> None:
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()
        self.addresses.clear()
        self.started.clear()

    async def serve(self) -> None:
        """Accept until cancelled; connections stay open then, see `stop`. Starts first if nobody has."""
        loop = asyncio.get_running_loop()
        self._refusal_log = Throttle(LOG_SECONDS, clock=loop.time)
        self._trouble_log = Throttle(LOG_SECONDS, clock=loop.time)
        per_second = self._limits.handshakes_per_second
        rate = Rate(per_second, burst=max(1.0, per_second / 10), clock=loop.time, sleep=asyncio.sleep)
        unsubscribe = self._contexts.subscribe(self._contexts_changed.set)
        try:
            if not self._sockets:
                await self.start()
            async with asyncio.TaskGroup() as group:
                for listening in self._sockets:
                    group.create_task(self._accept_from(listening))
                group.create_task(self._begin_handshakes(rate))
                group.create_task(self._drop_untrusted())
                if self._limits.idle_timeout:
                    group.create_task(self._close_idle())
        finally:
            unsubscribe()
            self._close_sockets()
            self._waiting.close()

    async def stop(self) -> None:
        """End every connection, when its peer falls silent or at drain_timeout."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.drain_timeout
        try:
            for connection in tuple(self._connections):
                connection.finish()
            while self._connections and loop.time() < deadline:
                await self._close_silent()
        finally:
            self._close_all()

    async def _close_silent(self) -> None:
        for connection in self._connections:
            connection.active = not self._reading.is_set()  # whoever is not read cannot show that it is sending
        await asyncio.sleep(SILENCE_SECONDS)
        for connection in tuple(self._connections):
            if not connection.active:
                connection.close()

    def _close_all(self) -> None:
        if self._connections:
            self._log.warning(
                "closed %d connections that may still have been sending; what was under way is the sender's to repeat",
                len(self._connections),
            )
        for connection in tuple(self._connections):
            connection.close()

    # ---- back-pressure ----

    def pause_reading(self) -> None:
        """Stop reading from every connection and accepting new ones; the senders' TCP windows fill up."""
        self._reading.clear()
        for connection in self._connections:
            connection.active = True
            connection.pause_reading()

    def resume_reading(self) -> None:
        """Undo pause_reading."""
        self._reading.set()
        for connection in tuple(self._connections):
            connection.resume_reading()

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
        self._refused(connection.address, refusal)

    def forget(self, connection: TlsConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self._leave_handshake(connection)
        self._open_gauge.set(len(self._connections))
        self._per_address[connection.address] -= 1
        if self._per_address[connection.address] <= 0:
            del self._per_address[connection.address]

    # ---- inside ----

    async def _accept_from(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._reading.wait()
            try:
                accepted, peer = await loop.sock_accept(listening)
            except ConnectionError:
                continue  # gone before it was accepted
            except OSError as error:  # out of files or memory: the connection waits in the kernel's queue
                if self._trouble_log.allow("accept") is not None:
                    self._log.warning("cannot accept: %s; raise LimitNOFILE of this service", error)
                await asyncio.sleep(OUT_OF_FILES_SECONDS)
                continue
            try:
                self._check_address(peer[0])
            except Refused as refusal:
                accepted.close()
                self._refused(peer[0], refusal)
            else:
                self._waiting.put(Waiting(accepted, peer[0], peer[1]))
            await asyncio.sleep(0)  # sock_accept does not yield while somebody stands at the door

    async def _begin_handshakes(self, rate: Rate) -> None:
        while True:
            await self._waiting.ready()
            await self._reading.wait()
            await self._handshake_place()
            await rate.take()
            # Only now: it may be the turn of one who came meanwhile.
            await self._begin_handshake(self._waiting.take())

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
        self._connections.add(connection)
        self._handshakes[connection] = loop.time(), self._contexts.trust
        self._per_address[address] += 1
        self._open_gauge.set(len(self._connections))
        keep_alive(accepted)
        try:
            await loop.connect_accepted_socket(lambda: connection, accepted)
        except (OSError, asyncio.CancelledError) as error:
            accepted.close()
            connection.connection_lost(None)
            if isinstance(error, asyncio.CancelledError):
                raise

    def _check_address(self, address: str) -> None:
        self._allow.check_address(address)
        if len(self._connections) + len(self._waiting) >= self._limits.connections:
            raise Refused("too_many_connections", f"limits.connections is {self._limits.connections}")
        if self._per_address[address] + self._waiting.waiting_from(address) >= self._limits.connections_per_address:
            limit = self._limits.connections_per_address
            raise Refused("too_many_from_address", f"limits.connections_per_address is {limit}")

    def _refused(self, address: str, refusal: Refused) -> None:
        self._metrics.refused.labels(self._name, refusal.reason).inc()
        silenced = self._refusal_log.allow(address)
        if silenced is not None:
            fields = {"peer": address, "reason": refusal.reason, "detail": refusal.detail, "silenced": silenced}
            self._log.warning("refused %s: %s; %s", address, refusal, refusal.remedy, extra=fields)

    async def _close_idle(self) -> None:
        silent: Counter[TlsConnection] = Counter()
        while True:
            await asyncio.sleep(self._limits.idle_timeout / IDLE_CHECKS)
            if not self._reading.is_set():
                continue
            quiet = [connection for connection in self._connections if not connection.active]
            silent = Counter({connection: silent[connection] + 1 for connection in quiet})
            for connection in self._connections:
                connection.active = False
            for connection, checks in silent.items():
                if checks >= IDLE_CHECKS:
                    connection.drop(Refused("idle"))

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
