"""The two doors for operators: health, readiness and metrics on loopback; commands on a unix socket.

Promises: the TCP listener tells nothing about evidence (any local user can reach it) and answers only requests whose
Host header is an address or the name it listens on, so that a web page cannot read it by DNS rebinding. The socket is
0660 and asks the kernel who called (SO_PEERCRED): root, the daemon's own user, or its group. A socket that another
daemon serves is left to it. A local user with many open connections to the TCP listener pushes out its own oldest ones,
not the monitoring, and what is no HTTP is answered and not logged. Refuses: everything else.

The routes: GET /health, /ready, /metrics; on the socket GET /v1/ledger, /v1/ledger/origins, /v1/status, /v1/tap, POST
/v1/replay, /v1/reload, and those of dead_letters/routes.py and sources/routes.py.
"""

import asyncio
import errno
import logging
import os
import socket
import struct
from array import array
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Protocol

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from ndagent.core.interfaces import Unavailable
from ndagent.core.settings import Listen, is_address
from ndcollector.dead_letters.desk import Desk
from ndcollector.dead_letters.routes import routes
from ndcollector.sources.desk import SourcesDesk
from ndcollector.sources.routes import routes as source_routes
from ndcollector.tap.look import Wish
from ndcollector.tap.route import stream_tap

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)
_SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module has no name for it
_MAX_GROUPS_BYTES = 1024  # getsockopt() in Python allows no more: 256 groups
_MAX_CONNECTIONS = 256
_MAX_REQUEST_BYTES = 65536


class Daemon(Protocol):
    """What the doors need of the daemon."""

    @property
    def dead_letters(self) -> Desk:
        """What is done with dead letters."""

    @property
    def sources_desk(self) -> SourcesDesk:
        """Who sends, and who is quiet."""

    def not_ready_because(self) -> list[str]:
        """Reasons why data would not be taken now; empty means ready."""

    def ledger(self) -> dict[str, object]:
        """The conservation ledger as plain data."""

    async def origins(self, *, origin: str | None, output: str | None, stream: str | None) -> dict[str, object]:
        """The ledger per origin as plain data, only rows that match."""

    async def replay(self, *, output: str, stream: str | None, start: int, until: int | None) -> dict[str, object]:
        """Set cursors back; raises ValueError for a request that is wrong, Unavailable for one that is too early."""

    async def reload_now(self) -> str | None:
        """Read the configuration again; why that was refused, None where it was done."""

    def status(self) -> dict[str, object]:
        """What `ndcollector top` shows, as plain data."""

    def tap(self, wish: Wish) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A live look at events; see tap/route.py for what it raises."""


class AdminServer:
    """Serves both doors until `aclose`. `port` is the port really bound (useful when the configuration says 0)."""

    def __init__(self, *, daemon: Daemon, registry: CollectorRegistry) -> None:
        self._daemon = daemon
        self._registry = registry
        self._runners: list[web.AppRunner] = []
        self._listener: asyncio.Server | None = None
        self._socket: tuple[Path, int | None] | None = None  # with its inode: a later daemon's is not ours to delete
        self.port = 0

    async def listen(self, address: Listen) -> None:
        """Open the loopback listener; raises OSError."""
        middlewares = [_only_for_host(address.host)]
        app = web.Application(middlewares=middlewares, client_max_size=_MAX_REQUEST_BYTES)
        app.add_routes(
            [web.get("/health", self._health), web.get("/ready", self._ready), web.get("/metrics", self._metrics)]
        )
        server = (await self._start(app)).server
        assert server is not None  # noqa: S101 - there from setup() to cleanup()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(_Entrance(server).admit, address.host, address.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def listen_socket(self, path: Path) -> None:
        """Open the unix socket, replacing one that a dead daemon left; raises OSError."""
        _make_room(path)
        app = web.Application(middlewares=[_only_for_operators], client_max_size=_MAX_REQUEST_BYTES)
        app.add_routes(
            [
                web.get("/v1/ledger", self._ledger),
                web.get("/v1/ledger/origins", self._origins),
                web.get("/v1/status", self._status),
                web.get("/v1/tap", self._tap),
                web.post("/v1/replay", self._replay),
                web.post("/v1/reload", self._reload),
                *routes(self._daemon.dead_letters),
                *source_routes(self._daemon.sources_desk),
            ]
        )
        runner = await self._start(app)
        old_mask = os.umask(0o117)  # 0660 from the first instant, not by a chmod that comes later
        try:
            await web.UnixSite(runner, str(path)).start()
        finally:
            os.umask(old_mask)
        self._socket = path, _inode(path)

    async def aclose(self) -> None:
        """Close both doors."""
        if self._listener is not None:
            self._listener.close()
        for runner in self._runners:
            await runner.cleanup()
        if self._socket is not None:
            path, inode = self._socket
            if _inode(path) == inode:
                path.unlink(missing_ok=True)

    async def _start(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(
            app, access_log=None, logger=_http_log, handle_signals=False, keepalive_timeout=15, shutdown_timeout=1
        )
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _ready(self, _request: web.Request) -> web.Response:
        reasons = self._daemon.not_ready_because()
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def _metrics(self, _request: web.Request) -> web.Response:
        # In a thread: 1000 series take about 10 ms, which would be felt by every connection.
        text = await asyncio.to_thread(generate_latest, self._registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _ledger(self, _request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self._daemon.ledger()), content_type="application/json")

    async def _origins(self, request: web.Request) -> web.Response:
        wanted = {name: request.query.get(name) for name in ("origin", "output", "stream")}
        answer = await self._daemon.origins(**wanted)
        # In a thread: the rows of many thousand senders are megabytes.
        body = await asyncio.to_thread(orjson.dumps, answer)
        return web.Response(body=body, content_type="application/json")

    async def _status(self, _request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self._daemon.status()), content_type="application/json")

    async def _tap(self, request: web.Request) -> web.StreamResponse:
        return await stream_tap(request, self._daemon.tap)

    async def _reload(self, _request: web.Request) -> web.Response:
        refusal = await self._daemon.reload_now()
        if refusal is not None:
            return web.json_response({"error": refusal}, status=409)
        return web.json_response({"reloaded": True})

    async def _replay(self, request: web.Request) -> web.Response:
        try:
            wish = orjson.loads(await request.read())
            output, stream, start = wish["output"], wish.get("stream"), int(wish["from"])
            until = int(wish["to"]) if "to" in wish else None
            answer = await self._daemon.replay(output=output, stream=stream, start=start, until=until)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        except Unavailable as error:
            return web.json_response({"error": str(error)}, status=503)
        log.info("replay asked for by an operator", extra={"output": output, "from_sequence": start, "until": until})
        return web.json_response(answer)


class _Entrance:
    """Lets everybody in; whoever is no longer among the last _MAX_CONNECTIONS that came must go."""

    def __init__(self, server: web.Server) -> None:
        self._server = server
        self._newest: deque[web.RequestHandler] = deque()

    def admit(self) -> web.RequestHandler:
        """The handler of one more connection."""
        if len(self._newest) >= _MAX_CONNECTIONS:
            # Soon, not now: one that was accepted in this same turn of the loop gets its transport only in the next.
            asyncio.get_running_loop().call_soon(_abort, self._newest.popleft())
        self._newest.append(handler := self._server())
        return handler


def _abort(handler: web.RequestHandler) -> None:
    if handler.transport is not None:
        handler.transport.abort()


def _is_our_fault(record: logging.LogRecord) -> bool:
    """aiohttp logs a traceback for each request that is no HTTP; whoever sends one has been told."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_is_our_fault)


def _make_room(path: Path) -> None:
    """See that the socket can be made there; raises OSError where a living process serves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):  # nothing there, or what a dead daemon left
            return
        except BlockingIOError:  # its backlog is full: it lives
            pass
    raise OSError(errno.EADDRINUSE, "another collector serves it; give each its own admin.socket")


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _only_for_host(name: str) -> Middleware:
    @web.middleware
    async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
        # A rebinding page has its own name here; an address cannot be rebound.
        if host not in (name, "localhost") and not is_address(host.strip("[]")):
            raise web.HTTPMisdirectedRequest(text="the Host header must be localhost, an address or admin.listen")
        return await handler(request)

    return check_host


@web.middleware
async def _only_for_operators(request: web.Request, handler: Handler) -> web.StreamResponse:
    peer = request.transport.get_extra_info("socket") if request.transport else None
    if peer is None:
        raise web.HTTPForbidden(text="no peer credentials")
    _pid, uid, gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid not in (0, os.geteuid()) and os.getegid() not in (gid, *_groups(peer)):
        raise web.HTTPForbidden(text="only root, the collector's user and its group may use this socket")
    request["uid"] = uid
    return await handler(request)


def _groups(peer: socket.socket) -> "array[int]":
    """The caller's supplementary groups: `usermod -aG ndcollector alice` is how alice becomes an operator."""
    groups: array[int] = array("I")
    with suppress(OSError):  # more groups than fit, or a kernel that does not say
        groups.frombytes(peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES))
    return groups
