"""The HTTP server behind the HTTPS listener: a table of routes over aiohttp's protocol, errors as JSON, all counted.

Promises: each request ends in one response, counted under its route's name and status (whatever a peer asks for, the
labels are few); routes that need a certificate are not reached without one (401); what is no HTTP is answered 400 and
not logged; a handler that fails is logged, throttled, and answered 500.
Refuses: knowing what routes do. Modules bring lists of Route; agents' routes are one, an API may be another.
"""

import asyncio
import logging
from collections import Counter as Counts
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from ndagent.core.instruments import Instrument
from ndagent.core.log import Throttle
from ndagent.core.tls_identity import PeerCertificate
from ndagent.core.tls_refusal import Refused
from ndagent.wire.record import Origin
from ndcollector.inputs.https_problem import (
    FAILED,
    MALFORMED,
    NO_CERTIFICATE,
    NOT_FOUND,
    STOPPING,
    STOPPING_SECONDS,
    Problem,
    method_not_allowed,
)
from ndcollector.inputs.https_transport import CERTIFICATE, HttpTransport

OTHER = "other"
"""The route label of requests that no route takes."""
MAX_LINE_BYTES, MAX_HEADERS = 8190, 64
LINGERING_SECONDS = 5.0
"""How long to read a body on that was refused half-way: its sender must get to reading the answer."""
LOG_SECONDS = 60.0
SERVER = "ndcollector"
"""Which version, and of what else, is nobody's business."""
_TRANSPORT = web.RequestKey("transport", HttpTransport)


@dataclass(frozen=True, slots=True)
class Call:
    """One request and who makes it. `origin` is what events that come with it are labelled with."""

    http: web.BaseRequest
    origin: Origin
    connection: HttpTransport

    @property
    def agent_id(self) -> str:
        """From the certificate; empty without one."""
        return self.connection.agent_id


@dataclass(frozen=True, slots=True)
class Route:
    """What answers `method path`; raises Problem, or returns the response. `name` is the metric's label."""

    method: str
    path: str
    name: str
    handle: Callable[[Call], Awaitable[web.StreamResponse]]
    certificate: bool = True
    """Whether an agent's certificate is needed."""


class _Protocol(RequestHandler):
    """aiohttp's, with errors in our words; its own way to log a scan is a traceback each."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature
    ) -> web.StreamResponse:
        """See RequestHandler: an error of the parser, or of a response that could not be written."""
        server = cast("HttpServer | None", self._manager)
        if server is None or request.writer.output_size > 0:
            raise ConnectionError("the peer is gone, or has a part of the response already")
        response = server.error(status, exc)
        response.headers["Server"] = SERVER
        response.force_close()
        return response


class HttpServer(web.Server):
    """Serves connections that `meet` is given, until `stop`.

    `stopping` True: requests that begin get 503, and each connection is closed after its response.
    """

    def __init__(self, routes: Iterable[Route], *, name: str, keepalive_seconds: float, requests: Instrument) -> None:
        super().__init__(
            self._handle,
            request_factory=self._request,
            access_log=None,
            keepalive_timeout=keepalive_seconds,
            tcp_keepalive=False,  # the listener's
            auto_decompress=False,  # bodies are counted before and after
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=LINGERING_SECONDS,
        )
        self.stopping = False
        self._name = name
        self._requests = requests
        self._counted: dict[tuple[str, int], Instrument] = {}
        self._log = logging.getLogger(name)
        self._failure_log = Throttle(LOG_SECONDS, clock=self._loop.time)
        self._table: dict[str, dict[str, Route]] = {}
        for route in routes:
            self._table.setdefault(route.path, {})[route.method] = route
        self._open: set[HttpTransport] = set()
        self._idle = asyncio.Event()
        self._under_way = 0

    # ---- connections

    def meet(self, transport: HttpTransport) -> None:
        """Serve this connection."""
        self._open.add(transport)
        transport.serve(_Protocol(self, loop=self._loop, **self._kwargs))

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """See web.Server."""
        transport = self._connections.get(handler)
        super().connection_lost(handler, exc)
        self._open.discard(cast("HttpTransport", transport))

    def drop_overdue(self, *, header_seconds: float, response_seconds: float) -> None:
        """End the connections of peers that take too long; call it now and then."""
        now = self._loop.time()
        for transport in tuple(self._open):
            refusal = transport.overdue(now, header_seconds=header_seconds, response_seconds=response_seconds)
            if refusal is not None:
                transport.drop(refusal)

    def stop(self) -> None:
        """From now on: idle connections are closed, the others after the response they wait for; requests get 503."""
        self.stopping = True
        for transport in tuple(self._open):
            if not transport.busy:
                transport.close()

    async def answered(self, seconds: float) -> bool:
        """Wait for the requests under way, at most so long; whether all have their response."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._under_way:
                    self._idle.clear()
                    await self._idle.wait()
        return not self._under_way

    def close(self) -> None:
        """Close every connection once what was written to it has left."""
        for transport in tuple(self._open):
            transport.close()

    # ---- requests

    def _request(
        self,
        message: Any,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: Any,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        request = web.BaseRequest(message, payload, protocol, writer, task, self._loop)
        transport = request[_TRANSPORT] = cast("HttpTransport", protocol.transport)
        transport.request_began(payload)
        return request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request[_TRANSPORT]  # also of a peer that is gone: what it sent whole counts
        methods = self._table.get(request.path)
        route = methods.get(request.method) if methods else None
        self._under_way += 1
        try:
            response = await self._answer(methods, route, request, transport)
        finally:
            transport.busy = False
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        self._count(route.name if route else OTHER, response.status)
        response.headers["Server"] = SERVER
        if self.stopping:
            response.force_close()
        return response

    async def _answer(
        self,
        methods: dict[str, Route] | None,
        route: Route | None,
        request: web.BaseRequest,
        transport: HttpTransport,
    ) -> web.StreamResponse:
        try:
            handle = self._handler(methods, route, transport)
            return await handle(Call(request, self._origin(transport), transport))
        except Problem as problem:
            return problem.response()
        except web.RequestPayloadError:  # chunks or a length that make no sense
            response = Problem(400, *MALFORMED).response()
            response.force_close()
            return response
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: whatever a handler did not foresee
            return self.error(500, error, route.name if route else OTHER, counted=False)

    def _handler(
        self, methods: dict[str, Route] | None, route: Route | None, transport: HttpTransport
    ) -> Callable[[Call], Awaitable[web.StreamResponse]]:
        """What answers the request; raises Problem where nothing may."""
        if self.stopping:
            raise Problem(503, *STOPPING, retry_after_seconds=STOPPING_SECONDS)
        if methods is None:
            raise Problem(404, *NOT_FOUND)
        if route is None:
            raise method_not_allowed(", ".join(sorted(methods)))
        if route.certificate and transport.certificate is None:
            raise Problem(401, *NO_CERTIFICATE)
        return route.handle

    def _origin(self, transport: HttpTransport) -> Origin:
        """One per connection: the spool packs an origin once."""
        if transport.origin is None:
            address, port = transport.get_extra_info("peername")
            certificate = cast("PeerCertificate | None", transport.get_extra_info(CERTIFICATE))
            known = (certificate.subject, certificate.serial, certificate.names) if certificate else ("", "", ())
            transport.origin = Origin(self._name, address, port, *known)
        return transport.origin

    def error(
        self, status: int, error: BaseException | None, route: str = OTHER, *, counted: bool = True
    ) -> web.Response:
        """The response for what went wrong; logged unless it is the peer's fault."""
        if counted:
            self._count(route, status)
        if isinstance(error, HttpProcessingError) or status < 500:
            return Problem(status, *MALFORMED).response()
        if self._failure_log.allow((route, type(error))) is not None:
            self._log.error("a request to %s failed; please report this traceback", route, exc_info=error)
        return Problem(status, *FAILED).response()

    def _count(self, route: str, status: int) -> None:
        counter = self._counted.get((route, status))
        if counter is None:
            counter = self._counted[route, status] = self._requests.labels(self._name, route, str(status))
        counter.inc()


class Crowd:
    """Who is connected: at most so many of one agent, and so many that have no certificate."""

    def __init__(self, per_agent: int, without_certificate: int) -> None:
        self._per_agent = per_agent
        self._without_certificate = without_certificate
        self._open: Counts[str] = Counts()  # by agent's id; "" has no certificate

    def enter(self, agent_id: str) -> Callable[[], None]:
        """One more ("" has no certificate); raises Refused where that is too many. Call the result at its end."""
        if agent_id and self._open[agent_id] >= self._per_agent:
            raise Refused("too_many_from_agent", f"limits.connections_per_agent is {self._per_agent}")
        if not agent_id and self._open[""] >= self._without_certificate:
            limit = self._without_certificate
            raise Refused("too_many_without_certificate", f"limits.connections_without_certificate is {limit}")
        self._open[agent_id] += 1
        return lambda: self._leave(agent_id)

    def _leave(self, agent_id: str) -> None:
        self._open[agent_id] -= 1
        if not self._open[agent_id]:
            del self._open[agent_id]
