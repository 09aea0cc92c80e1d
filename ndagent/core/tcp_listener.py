"""Accepts TCP connections: who may connect and how many; and ends them without losing their data.

`Listener` is what TLS and plain TCP have in common, `TcpListener` the plain one.

Promises:
  * limits hold before anything is read: networks, connections in total and per address;
  * while reading is paused nobody new is accepted either, so memory stays bounded;
  * a stop takes what peers had already sent: they get a FIN and are read until they fall silent.
Refuses: what is said on a connection (the handler's).
"""

import asyncio
import logging
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, TypeVar

from pydantic import Field

from ndagent.core import messages
from ndagent.core.listening import BACKLOG, bind, keep_alive
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.networks import AllowedNetworks
from ndagent.core.settings import Duration, Listen, Settings
from ndagent.core.tcp_connection import Connection, Handler, TcpConnection
from ndagent.core.tls_refusal import Refused

IDLE_CHECKS = 4  # per idle_timeout: a silent peer is closed between 1 and 1.25 times of it
SILENCE_SECONDS = 0.1  # a stop takes a peer that sent nothing for so long to be done
OUT_OF_FILES_SECONDS = 0.5
LOG_SECONDS = 60


class ConnectionLimits(Settings):
    """What connections may take of this machine."""

    connections: int = Field(default=20_000, ge=1, description="Open connections in total.")
    connections_per_address: int = Field(default=2_000, ge=1, description="Open connections from one address.")
    idle_timeout: Duration = Field(
        default=0.0,
        ge=0,
        description="A peer that sends nothing for this long is closed; 0 means never. Firewalls may be silent for "
        "hours, and TCP keepalive finds dead ones in 3 minutes.",
    )
    drain_timeout: Duration = Field(
        default=2.0, ge=0, description="At stop, how long to go on taking what peers are still sending."
    )


One = TypeVar("One", bound=Connection)


class Listener(ABC, Generic[One]):
    """Listens on all addresses of one input. `name` labels metrics and logs.

    A kind of listener says what becomes of a socket that was accepted (`_welcome`), and what else runs while it serves
    (`_parts`).
    """

    def __init__(
        self,
        listen: Sequence[Listen],
        *,
        name: str,
        allow: AllowedNetworks,
        limits: ConnectionLimits,
        metrics: Metrics,
    ) -> None:
        self.addresses: list[Listen] = []
        self.started = asyncio.Event()
        self._sockets: list[socket.socket] = []
        self._listen = listen
        self._name = name
        self._networks = allow
        self._connection_limits = limits
        self._metrics = metrics
        self._log = logging.getLogger(name)
        self._connections: set[One] = set()
        self._per_address: Counter[str] = Counter()
        self._reading = asyncio.Event()
        self._reading.set()
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
        self._log.info("listening", extra={**messages.LISTENING, "addresses": [str(one) for one in self.addresses]})

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
        try:
            if not self._sockets:
                await self.start()
            async with asyncio.TaskGroup() as group:
                for listening in self._sockets:
                    group.create_task(self._accept_from(listening))
                for part in self._parts():
                    group.create_task(part)
                if self._connection_limits.idle_timeout:
                    group.create_task(self._close_idle())
        finally:
            self._last_call()
            self._close_sockets()

    async def stop(self) -> None:
        """End every connection, when its peer falls silent or at drain_timeout."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connection_limits.drain_timeout
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

    # ---- what a connection asks ----

    def refuse(self, connection: One, refusal: Refused) -> None:
        """Count and log a connection that ends against its will."""
        self._refused(connection.address, refusal)

    def forget(self, connection: One) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self._open_gauge.set(len(self._connections))
        self._per_address[connection.address] -= 1
        if self._per_address[connection.address] <= 0:
            del self._per_address[connection.address]

    # ---- of each kind ----

    @abstractmethod
    async def _welcome(self, accepted: socket.socket, address: str, port: int) -> None:
        """A peer that may connect: take it, or have it wait for its turn."""

    def _parts(self) -> Iterable[Coroutine[Any, Any, None]]:
        """What runs beside accepting, until it is cancelled."""
        return ()

    def _last_call(self) -> None:
        """Serving ends, and nobody has closed the door yet."""

    def _waiting_in_all(self) -> int:
        """Accepted, and no connection yet."""
        return 0

    def _waiting_from(self, address: str) -> int:  # noqa: ARG002 - for kinds that have some
        """The same, of one address."""
        return 0

    # ---- inside ----

    async def _accept_from(self, listening: socket.socket) -> None:
        while True:
            await self._reading.wait()
            try:
                accepted, peer = listening.accept()
            except BlockingIOError:
                await _readable(listening)  # not sock_accept(): cancelled, it may have a connection that nobody gets
                continue
            except ConnectionError:
                continue  # gone before it was accepted
            except OSError as error:  # out of files or memory: the connection waits in the kernel's queue
                if self._trouble_log.allow("accept") is not None:
                    self._log.warning(
                        "cannot accept: %s; raise LimitNOFILE of this service", error, extra=messages.OUT_OF_FILES
                    )
                await asyncio.sleep(OUT_OF_FILES_SECONDS)
                continue
            accepted.setblocking(False)
            if self._may_connect(accepted, peer[0]):
                await self._welcome(accepted, peer[0], peer[1])
            await asyncio.sleep(0)  # somebody may stand at the door all the time

    def _may_connect(self, accepted: socket.socket, address: str) -> bool:
        try:
            self._check_address(address)
        except Refused as refusal:
            accepted.close()
            self._refused(address, refusal)
            return False
        return True

    async def _connect(self, connection: One, accepted: socket.socket) -> None:
        """Hand the socket to the loop, with this connection as its protocol."""
        self._connections.add(connection)
        self._per_address[connection.address] += 1
        self._open_gauge.set(len(self._connections))
        keep_alive(accepted)
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: connection, accepted)
        except (OSError, asyncio.CancelledError) as error:
            accepted.close()
            connection.connection_lost(None)
            if isinstance(error, asyncio.CancelledError):
                raise

    def _check_address(self, address: str) -> None:
        self._networks.check_address(address)
        limits = self._connection_limits
        if len(self._connections) + self._waiting_in_all() >= limits.connections:
            raise Refused("too_many_connections", f"limits.connections is {limits.connections}")
        if self._per_address[address] + self._waiting_from(address) >= limits.connections_per_address:
            limit = limits.connections_per_address
            raise Refused("too_many_from_address", f"limits.connections_per_address is {limit}")

    def _refused(self, address: str, refusal: Refused) -> None:
        self._metrics.refused.labels(self._name, refusal.reason).inc()
        silenced = self._refusal_log.allow(address)
        if silenced is not None:
            fields = {"peer": address, "reason": refusal.reason, "detail": refusal.detail, "silenced": silenced}
            text = "refused %s: %s; %s"
            self._log.warning(text, address, refusal, refusal.remedy, extra={**messages.PEER_REFUSED, **fields})

    async def _close_idle(self) -> None:
        silent: Counter[One] = Counter()
        while True:
            await asyncio.sleep(self._connection_limits.idle_timeout / IDLE_CHECKS)
            if not self._reading.is_set():
                continue
            quiet = [connection for connection in self._connections if not connection.active]
            silent = Counter({connection: silent[connection] + 1 for connection in quiet})
            for connection in self._connections:
                connection.active = False
            for connection, checks in silent.items():
                if checks >= IDLE_CHECKS:
                    connection.drop(Refused("idle"))


async def _readable(sock: socket.socket) -> None:
    """Return when somebody wants to connect."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(sock, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(sock)


class TcpListener(Listener[TcpConnection]):
    """Plain TCP: a peer that may connect is let in at once. `handler` makes who speaks with it.

    Its peers may have sent and closed before they are accepted, so a stop lets in who stands at the door.
    """

    def __init__(
        self,
        listen: Sequence[Listen],
        *,
        name: str,
        allow: AllowedNetworks,
        limits: ConnectionLimits,
        handler: Callable[[TcpConnection], Handler],
        metrics: Metrics,
    ) -> None:
        super().__init__(listen, name=name, allow=allow, limits=limits, metrics=metrics)
        self._handler = handler
        self._late: list[tuple[socket.socket, str, int]] = []  # accepted when serving ended
        self._joining: set[asyncio.Task[None]] = set()

    def admit(self, connection: TcpConnection) -> Handler:
        """See TcpHost."""
        self._accepted.inc()
        return self._handler(connection)

    async def stop(self) -> None:
        """See Listener."""
        late, self._late = self._late, []
        try:
            while late:
                accepted, address, port = late.pop()
                if self._may_connect(accepted, address):
                    await self._welcome(accepted, address, port)
            if self._joining:
                await asyncio.wait(self._joining)
        except asyncio.CancelledError:
            self._close_all()
            raise
        finally:
            for accepted, _, _ in late:
                accepted.close()
        await super().stop()

    def _last_call(self) -> None:
        for listening in self._sockets:
            try:
                for _ in range(BACKLOG + 1):  # the kernel lets one more in
                    accepted, peer = listening.accept()
                    accepted.setblocking(False)
                    self._late.append((accepted, peer[0], peer[1]))
            except BlockingIOError:
                continue  # that was the last
            except OSError as error:
                self._log.warning(
                    "cannot accept those who wait: %s; what they had sent is theirs to repeat. Raise LimitNOFILE of "
                    "this service", error, extra=messages.OUT_OF_FILES,
                )  # fmt: skip

    async def _welcome(self, accepted: socket.socket, address: str, port: int) -> None:
        connection = TcpConnection(self, address=address, port=port)
        joining = asyncio.create_task(self._connect(connection, accepted), name=f"{self._name}: {address}")
        self._joining.add(joining)
        joining.add_done_callback(self._joining.discard)
        await asyncio.shield(joining)  # a stop that comes now lets it in first
        if not self._reading.is_set():  # paused meanwhile
            connection.pause_reading()
