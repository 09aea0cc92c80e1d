"""The two doors for operators: health, readiness and metrics on loopback; commands on a unix socket.

Promises: the TCP listener tells nothing about evidence (any local user can reach it) and answers only requests whose
Host header names it, so that a web page cannot read it by DNS rebinding. The socket is 0660 and asks the kernel who
called (SO_PEERCRED): root, the daemon's own user, or a member of its group. Refuses: everything else.

The routes: GET /health, /ready, /metrics; on the socket GET /v1/ledger and POST /v1/replay.
"""

import asyncio
import logging
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from ndagent.core.settings import Listen

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)
_MAX_REQUEST_BYTES = 65536


class Daemon(Protocol):
    """What the doors need of the daemon."""

    def not_ready_because(self) -> list[str]:
        """Reasons why data would not be taken now; empty means ready."""

    def ledger(self) -> dict[str, object]:
        """The conservation ledger as plain data."""

    async def replay(self, *, output: str, stream: str | None, start: int, until: int | None) -> dict[str, object]:
        """Set cursors back; raises ValueError that says what was wrong with the request."""


class AdminServer:
    """Serves both doors until `aclose`. `port` is the port really bound (useful when the configuration says 0)."""

    def __init__(self, *, daemon: Daemon, registry: CollectorRegistry) -> None:
        self._daemon = daemon
        self._registry = registry
        self._runners: list[web.AppRunner] = []
        self._socket_path: Path | None = None
        self.port = 0

    async def listen(self, address: Listen) -> None:
        """Open the loopback listener; raises OSError."""
        allowed = {address.host, "127.0.0.1", "localhost", "::1"}
        app = web.Application(middlewares=[_only_for_hosts(allowed)], client_max_size=_MAX_REQUEST_BYTES)
        app.add_routes(
            [web.get("/health", self._health), web.get("/ready", self._ready), web.get("/metrics", self._metrics)]
        )
        runner = await self._start(app)
        await web.TCPSite(runner, address.host, address.port).start()
        self.port = runner.addresses[0][1]

    async def listen_socket(self, path: Path) -> None:
        """Open the unix socket, replacing one that a dead daemon left; raises OSError."""
        app = web.Application(middlewares=[_only_for_operators], client_max_size=_MAX_REQUEST_BYTES)
        app.add_routes([web.get("/v1/ledger", self._ledger), web.post("/v1/replay", self._replay)])
        runner = await self._start(app)
        old_mask = os.umask(0o117)  # 0660 from the first instant, not by a chmod that comes later
        try:
            await web.UnixSite(runner, str(path)).start()
        finally:
            os.umask(old_mask)
        self._socket_path = path

    async def aclose(self) -> None:
        """Close both doors."""
        for runner in self._runners:
            await runner.cleanup()
        if self._socket_path is not None:
            with suppress(FileNotFoundError):
                self._socket_path.unlink()

    async def _start(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None, handle_signals=False, keepalive_timeout=15, shutdown_timeout=1)
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

    async def _replay(self, request: web.Request) -> web.Response:
        try:
            wish = orjson.loads(await request.read())
            output, stream, start = wish["output"], wish.get("stream"), int(wish["from"])
            until = int(wish["to"]) if "to" in wish else None
            answer = await self._daemon.replay(output=output, stream=stream, start=start, until=until)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        log.info("replay asked for by an operator", extra={"output": output, "from_sequence": start, "until": until})
        return web.json_response(answer)


def _only_for_hosts(allowed: set[str]) -> Middleware:
    @web.middleware
    async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
        if host.strip("[]") not in allowed:
            raise web.HTTPMisdirectedRequest(text="the Host header must name this listener")
        return await handler(request)

    return check_host


@web.middleware
async def _only_for_operators(request: web.Request, handler: Handler) -> web.StreamResponse:
    peer = request.transport.get_extra_info("socket") if request.transport else None
    if peer is None:
        raise web.HTTPForbidden(text="no peer credentials")
    _pid, uid, gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid not in (0, os.geteuid()) and gid != os.getegid():
        raise web.HTTPForbidden(text="only root, the collector's user or its group may use this socket")
    return await handler(request)
