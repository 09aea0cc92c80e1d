"""Splunk's HTTP Event Collector as published, in memory; a peer with faults that a test turns on.

    async with SplunkHec() as server:          # server.url, and one token: server.token
        server.events                          # what an indexer has: [{"time": …, "host": …, "event": …}, …]
        server.settings.ack = True             # the token has indexer acknowledgement
        server.index()                         # what was taken is indexed now (without ack at once)
        server.restart()                       # forgets channels, and what was taken and not indexed
        server.keeps_front = False             # whether events in front of a bad one are taken; both are right
        server.number_from = 1                 # how `invalid-event-number` counts
        server.answer = (503, b'{"text":"Server is busy","code":9}')
        server.lose_answers = 1                # does the work, then cuts the connection
        server.max_content = 100_000           # 413 with a page, as splunkd answers

Kept: the table of codes with their statuses and texts; events one after the other in a body, gzip; `index` against the
token's; the raw endpoint with its lines and channel; channels and ackIds from 0, an id told true once and then
forgotten; health. Not kept: query string tokens, metrics, Splunk's own parsing of raw lines (a line is an event).
"""

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

_GUID = re.compile(r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
CODES = {
    0: (200, "Success"), 1: (403, "Token disabled"), 2: (401, "Token is required"), 3: (401, "Invalid authorization"),
    4: (403, "Invalid token"), 5: (400, "No data"), 6: (400, "Invalid data format"), 7: (400, "Incorrect index"),
    8: (500, "Internal server error"), 9: (503, "Server is busy"), 10: (400, "Data channel is missing"),
    11: (400, "Invalid data channel"), 12: (400, "Event field is required"), 13: (400, "Event field cannot be blank"),
    14: (400, "ACK is disabled"), 15: (400, "Error in handling indexed fields"),
    16: (400, "Query string authorization is not enabled"), 17: (200, "HEC is healthy"),
    18: (503, "HEC is unhealthy, queues are full"), 23: (503, "Server is shutting down"),
    24: (200, "Success, queue approaching capacity"), 26: (429, "HEC queue at capacity"),
    27: (429, "HEC ACK channel at capacity"),
}  # fmt: skip


@dataclass
class TokenSettings:
    """What an administrator sets for a token."""

    ack: bool = False
    enabled: bool = True
    indexes: list[str] = field(default_factory=lambda: ["main", "security"])


class Fault(Exception):
    """An answer other than success."""

    def __init__(self, code: int, **more: object) -> None:
        super().__init__(CODES[code][1])
        self.code = code
        self.more = more


class SplunkHec:
    """See the module."""

    def __init__(self) -> None:
        self.token = "11111111-2222-3333-4444-555555555555"
        self.settings = TokenSettings()
        self.events: list[dict[str, Any]] = []
        self.requests: list[tuple[str, int]] = []  # path with query, events taken
        self.asked: list[tuple[str, list[int]]] = []  # channel and ids of questions for acknowledgement
        self.channels: dict[str, int] = {}  # its next ackId
        self.keeps_front = True
        self.number_from = 0
        self.poison: Callable[[Any], bool] = lambda _event: False
        self.max_content = 838_860_800
        self.lose_answers = 0
        self.answer: tuple[int, bytes] | None = None
        self.is_healthy = True
        self.answers_acks = True
        self._waiting: list[tuple[str, int, list[dict[str, Any]]]] = []
        self._acknowledged: set[tuple[str, int]] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it listens; the same after stop and start."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=2**30, middlewares=[self._guard])
        for path in ("", "/event", "/event/1.0"):
            app.router.add_post(f"/services/collector{path}", self._event)
        app.router.add_post("/services/collector/raw", self._raw)
        app.router.add_post("/services/collector/ack", self._ack)
        app.router.add_get("/services/collector/health", self._health)
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close everything; what it holds stays."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def index(self) -> None:
        """What was taken is indexed: acknowledged when asked for."""
        for channel, identity, events in self._waiting:
            self.events += events
            self._acknowledged.add((channel, identity))
        self._waiting.clear()

    def restart(self) -> None:
        """As an indexer that dies and comes back: numbers and queues were in memory."""
        self.channels.clear()
        self._waiting.clear()
        self._acknowledged.clear()

    # The HTTP layer.

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.answer is not None and request.method == "POST":
            return web.Response(status=self.answer[0], body=self.answer[1])
        try:
            if request.method == "POST":
                self._authenticate(request)
            return await handler(request)
        except Fault as fault:
            return _said(fault.code, **fault.more)

    def _authenticate(self, request: web.Request) -> None:
        given = request.headers.get("Authorization")
        if given is None:
            raise Fault(2)
        if not given.startswith("Splunk "):
            raise Fault(3)
        if given != f"Splunk {self.token}":
            raise Fault(4)
        if not self.settings.enabled:
            raise Fault(1)

    async def _body(self, request: web.Request) -> bytes:
        body = await request.read()
        if len(body) > self.max_content:
            raise web.HTTPRequestEntityTooLarge(max_size=self.max_content, actual_size=len(body))
        return gzip.decompress(body) if request.headers.get("Content-Encoding") == "gzip" else body

    def _channel(self, request: web.Request, *, required: bool) -> str | None:
        channel = request.headers.get("X-Splunk-Request-Channel") or request.query.get("channel")
        if channel is None:
            if required:
                raise Fault(10)
            return None
        if not _GUID.fullmatch(channel):
            raise Fault(11)
        return channel

    async def _event(self, request: web.Request) -> web.StreamResponse:
        channel = self._channel(request, required=self.settings.ack)
        body = (await self._body(request)).decode("utf-8", "replace").strip()
        if not body:
            raise Fault(5)
        taken: list[dict[str, Any]] = []
        try:
            self._parse(body, taken)
        except Fault:
            if self.keeps_front:
                self.events += taken  # without an ackId nobody can ask for them
            raise
        return self._take(request, channel, taken)

    def _parse(self, body: str, taken: list[dict[str, Any]]) -> None:
        decoder, at = json.JSONDecoder(), 0
        while at < len(body):
            number = len(taken) + self.number_from
            try:
                found, at = decoder.raw_decode(body, at)
            except ValueError:
                raise Fault(6, **{"invalid-event-number": number}) from None
            while at < len(body) and body[at].isspace():
                at += 1
            if not isinstance(found, dict) or self.poison(found.get("event")):
                raise Fault(6, **{"invalid-event-number": number})
            if found.get("event") is None:
                raise Fault(12, **{"invalid-event-number": number})
            if found["event"] == "":
                raise Fault(13, **{"invalid-event-number": number})
            if any(isinstance(value, dict) for value in found.get("fields", {}).values()):
                raise Fault(15, **{"invalid-event-number": number})
            if found.get("index", "main") not in self.settings.indexes:
                raise Fault(7, **{"invalid-event-number": len(taken) + 1})
            taken.append(found)

    async def _raw(self, request: web.Request) -> web.StreamResponse:
        channel = self._channel(request, required=True)
        if request.query.get("index", "main") not in self.settings.indexes:
            raise Fault(7, **{"invalid-event-number": 0})
        lines = (await self._body(request)).decode("utf-8", "replace").splitlines()
        known = {k: v for k, v in request.query.items() if k in ("host", "source", "sourcetype", "index")}
        taken = [{**known, "event": line} for line in lines if line.strip()]
        if not taken:
            raise Fault(5)
        if any(self.poison(one["event"]) for one in taken):
            raise Fault(6)
        return self._take(request, channel, taken)

    def _take(self, request: web.Request, channel: str | None, taken: list[dict[str, Any]]) -> web.StreamResponse:
        self.requests.append((request.path_qs, len(taken)))
        more = {}
        if self.settings.ack:
            assert channel is not None
            identity = self.channels.get(channel, 0)
            self.channels[channel] = identity + 1
            self._waiting.append((channel, identity, taken))
            more = {"ackId": identity}
        else:
            self.events += taken
        if self.lose_answers:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return _said(0, **more)

    async def _ack(self, request: web.Request) -> web.StreamResponse:
        if not self.settings.ack:
            raise Fault(14)
        channel = self._channel(request, required=True)
        assert channel is not None
        try:
            wanted = [int(one) for one in (await request.json())["acks"]]
        except (ValueError, KeyError, TypeError):
            raise Fault(6) from None
        self.asked.append((channel, wanted))
        told = {str(one): self.answers_acks and (channel, one) in self._acknowledged for one in wanted}
        self._acknowledged -= {(channel, int(one)) for one, is_true in told.items() if is_true}
        return web.json_response({"acks": told})

    async def _health(self, _request: web.Request) -> web.StreamResponse:
        return _said(17 if self.is_healthy else 18)


def _said(code: int, **more: object) -> web.Response:
    status, text = CODES[code]
    return web.json_response({"text": text, "code": code, **more}, status=status)
