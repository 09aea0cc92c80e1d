"""The one HTTPS listener: agents' batches, status, policy and enrolment, over TLS 1.3.

Promises: who shows a certificate must be an agent (nd:agent: URI of a CA in tls.ca_file), who shows none reaches only
enrolment and the CA certificates; a certificate that is revoked while connected is cut off with the next reload; other
connections stay over reloads of the certificate files. What holds for batches stands in https_batches.py. A stop
answers the requests under way, refuses new ones with 503, and withdraws what the spool has not taken by then: no agent
was told that it is stored. Events of a batch that is refused (4xx) are not lost: its agent has them and decides.
Refuses: HTTP/2, resumed TLS sessions, requests that come without one of the routes (404).

    TlsListener ─ HttpTransport ─ aiohttp's protocol ─ HttpServer ─ routes: Batches · Reports · Enrolling
"""

import asyncio
from contextlib import suppress
from typing import ClassVar, Literal, cast

from pydantic import Field

from ndagent.core.allow_list import AllowConfig, AllowList
from ndagent.core.interfaces import Accept
from ndagent.core.origin_limits import OriginLimits, OriginLimitsConfig
from ndagent.core.settings import ByteSize, Duration, Listen, ListenAddress, Settings
from ndagent.core.tcp_connection import Handler
from ndagent.core.tls import Peers
from ndagent.core.tls_identity import PeerCertificate
from ndagent.core.tls_listener import LimitsConfig, TlsListener
from ndagent.core.tls_protocol import TlsConnection
from ndagent.wire import routes
from ndagent.wire.envelope import Limits
from ndcollector.inputs import InputContext
from ndcollector.inputs.https_agents import Reports, no_content
from ndcollector.inputs.https_batches import STREAMS, Batches, BatchLimits
from ndcollector.inputs.https_body import BodyLimits, Budget
from ndcollector.inputs.https_server import Crowd, HttpServer, Route
from ndcollector.inputs.https_transport import HttpTransport, agent_of

CERTIFICATE_KIND = "agent"
LOOK_SECONDS = 1.0  # how often slow peers are looked for
WITHDRAW_SECONDS = 1.0  # for answering 503 to who waits when a stop runs out of patience


class HttpsLimits(LimitsConfig, OriginLimitsConfig):
    """The listener's limits, and those of requests."""

    connections_per_agent: int = Field(default=16, ge=1, description="Open connections of one agent's certificate.")
    connections_without_certificate: int = Field(
        default=256, ge=1, description="Open connections of peers that have no certificate, in total."
    )
    max_body_bytes: ByteSize = Field(default=4 * 2**20, ge=1024, description="Of one request, as it is sent.")
    max_batch_bytes: ByteSize = Field(default=8 * 2**20, ge=1024, description="Of one batch, decompressed.")
    max_batch_events: int = Field(default=10_000, ge=1, le=2**20, description="Events in one batch.")
    buffer_bytes: ByteSize = Field(
        default=64 * 2**20, ge=2**20, description="Of all requests that are read or wait for the spool; beyond: 503."
    )
    requests: int = Field(default=1024, ge=1, description="Batches under way at a time; beyond: 429.")
    requests_per_agent: int = Field(default=8, ge=1, description="Batches of one agent under way; beyond: 429.")
    remembered_batches: int = Field(
        default=65_536, ge=1, description="Keys of stored batches kept to know a repeat by, of all agents (300 B each)."
    )
    header_timeout: Duration = Field(default=10.0, gt=0, description="A request's header must be complete by then.")
    body_timeout: Duration = Field(
        default=10.0, gt=0, description="A body must be complete by then; body_bytes_per_second adds to it."
    )
    body_bytes_per_second: ByteSize = Field(
        default=4096, ge=1, description="Each so many bytes of a body give it a second more."
    )
    response_timeout: Duration = Field(
        default=30.0, gt=0, description="A peer that does not read its response for so long is closed."
    )
    keepalive_timeout: Duration = Field(default=75.0, gt=0, description="How long a connection may wait for a request.")
    accept_timeout: Duration = Field(
        default=15.0, gt=0, description="A batch that the spool has not taken by then is answered 503."
    )
    drain_timeout: Duration = Field(
        default=3.0, ge=0, le=8, description="At stop, how long requests under way may take to be answered."
    )


class Config(Settings):
    """Settings of an https input."""

    streams: ClassVar[tuple[str, ...]] = tuple(sorted(STREAMS))
    """What it feeds."""

    type: Literal["https"] = Field(default="https", description="Agents over HTTPS; TLS 1.3, client certificates.")
    listen: tuple[ListenAddress, ...] = Field(
        default=(Listen("0.0.0.0", 8443),), min_length=1, description="Addresses to listen on."
    )
    limits: HttpsLimits = Field(default=HttpsLimits(), description="What peers may take of this machine.")


def build(name: str, config: Config, context: InputContext) -> "Https":
    """The input, not listening yet."""
    return Https(name, config, context)


class Https:
    """See the module."""

    def __init__(self, name: str, config: Config, context: InputContext) -> None:
        self._name = name
        self._limits = config.limits
        self._context = context
        self._listener = TlsListener(
            config.listen,
            name=name,
            kind=CERTIFICATE_KIND,
            contexts=context.tls,
            allow=AllowList(AllowConfig()),
            limits=config.limits,
            handler=self._new_peer,
            metrics=context.metrics,
            peers=Peers.ANYONE,
        )
        self._crowd = Crowd(config.limits.connections_per_agent, config.limits.connections_without_certificate)
        self._server: HttpServer | None = None

    @property
    def started(self) -> asyncio.Event:
        """Set once it listens on `addresses`."""
        return self._listener.started

    @property
    def addresses(self) -> list[Listen]:
        """Where it listens, with the ports that the kernel chose."""
        return self._listener.addresses

    async def start(self) -> None:
        """Listen on all addresses; raises OSError that names the one that cannot be had."""
        await self._listener.start()

    async def run(self, accept: Accept) -> None:
        """Serve until cancelled; then answer what is under way."""
        budget = Budget(self._limits.buffer_bytes)
        batches = self._batches(accept, budget)
        server = self._server = HttpServer(
            self._routes(batches, budget),
            name=self._name,
            keepalive_seconds=self._limits.keepalive_timeout,
            requests=self._context.metrics.requests,
        )
        looking = asyncio.create_task(self._look(server), name=f"{self._name}: slow peers")
        serving = asyncio.create_task(self._listener.serve(), name=f"{self._name}: connections")
        try:
            await asyncio.wait({looking, serving}, return_when=asyncio.FIRST_COMPLETED)
            for task in (looking, serving):
                if task.done():  # neither ends by itself but by an error
                    task.result()
        finally:
            await self._shut_down(server, batches, looking, serving)

    def _batches(self, accept: Accept, budget: Budget) -> Batches:
        limits = self._limits
        return Batches(
            accept,
            name=self._name,
            limits=BatchLimits(
                body=self._body_limits(),
                envelope=Limits(limits.max_batch_bytes, limits.max_batch_events),
                requests=limits.requests,
                requests_per_agent=limits.requests_per_agent,
                remembered=limits.remembered_batches,
                accept_seconds=limits.accept_timeout,
            ),
            budget=budget,
            rates=OriginLimits.make(limits, clock=asyncio.get_running_loop().time),
            gate=self._context.fleet,
            metrics=self._context.metrics,
            clock=self._context.clock,
        )

    def _body_limits(self) -> BodyLimits:
        limits = self._limits
        return BodyLimits(limits.max_body_bytes, limits.body_timeout, limits.body_bytes_per_second)

    def _routes(self, batches: Batches, budget: Budget) -> list[Route]:
        limits, context = self._body_limits(), self._context
        found = [*batches.routes(), *Reports(context.fleet, limits=limits, budget=budget).routes()]
        if context.enrolment is None:
            found.append(Route("GET", routes.CA, "ca", no_content, certificate=False))  # agents probe it
        else:
            # Late: it brings the fleet's database along.
            from ndcollector.inputs.https_enrolment import Enrolling

            found += Enrolling(context.enrolment, limits=limits, budget=budget).routes()
        return found

    def _new_peer(self, certificate: PeerCertificate | None, connection: TlsConnection) -> Handler:
        server = cast("HttpServer", self._server)  # there since before the first connection
        leave = self._crowd.enter(agent_of(certificate))
        transport = HttpTransport(connection, certificate, left=leave)
        server.meet(transport)
        return transport

    async def _look(self, server: HttpServer) -> None:
        limits = self._limits
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, limits.header_timeout / 4, limits.response_timeout / 4))
            server.drop_overdue(header_seconds=limits.header_timeout, response_seconds=limits.response_timeout)

    async def _shut_down(
        self,
        server: HttpServer,
        batches: Batches,
        looking: "asyncio.Task[None]",
        serving: "asyncio.Task[None]",
    ) -> None:
        looking.cancel()
        serving.cancel()
        try:
            await asyncio.wait({looking, serving})
            server.stop()
            if not await server.answered(self._limits.drain_timeout):
                batches.withdraw()
                await server.answered(WITHDRAW_SECONDS)
        finally:
            batches.withdraw()
            with suppress(asyncio.CancelledError):  # a second cancel: what follows is short and must be
                await batches.settled()
            server.close()
            await self._listener.stop()
            await server.shutdown(0)
