"""An https input in this process: real TLS, a spool that tests can hold, a fleet of a few agents, and clients."""

import asyncio
import contextlib
import io
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from tls_peers import Files, Pair, connect

from ndagent.core.interfaces import Accept
from ndagent.core.metrics import Metrics
from ndagent.core.settings import Listen
from ndagent.core.tls import TlsConfig, TlsContexts
from ndagent.wire import routes
from ndagent.wire.envelope import Header, pack
from ndagent.wire.record import Batch
from ndcollector.inputs import InputContext
from ndcollector.inputs.agent_gate import Enroller
from ndcollector.inputs.https import Config, Https, HttpsLimits

WAIT_SECONDS = 20.0
AGENT, OTHER = "abcdefghijklmnop", "ponmlkjihgfedcba"
SPOOL = "0123456789abcdef"

Serve = Callable[..., Any]
"""The fixture: `async with serve(accept_timeout=0.2) as site`."""


class Fleet:
    """A Gate: agents are known unless `refused` says why not; a spool belongs to who named it first."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.spools: dict[str, str] = {}
        self.reports: list[tuple[str, bytes]] = []
        self.policies: dict[str, bytes] = {}
        self.audited: list[tuple[str, dict[str, str]]] = []
        self.heard: list[tuple[str, str]] = []

    def admit(self, agent_id: str, *, spool_id: str, run_id: str, address: str) -> str | None:
        if agent_id in self.refused:
            return self.refused[agent_id]
        if spool_id and self.spools.setdefault(spool_id, agent_id) != agent_id:
            return f"spool {spool_id} is another agent's"
        return None

    def seen(self, agent_id: str, *, address: str, transport: str) -> None:
        self.heard.append((agent_id, transport))

    def status(self, agent_id: str, document: bytes) -> None:
        self.reports.append((agent_id, document))

    def lost(self, agent_id: str, document: bytes) -> None:
        raise AssertionError("HTTPS has no wills")

    def relayed_status(self, agent_id: str, document: bytes) -> None:
        raise AssertionError("there is no broker")

    def public_keys(self, agent_id: str) -> tuple[bytes, ...]:
        raise AssertionError("there is no broker")

    def downlink(self, agent_id: str) -> bytes | None:
        return self.policies.get(agent_id)

    def subscribe(self, changed: Callable[[str], None]) -> Callable[[], None]:
        raise AssertionError("HTTPS pushes nothing")

    def audit(self, kind: str, **fields: str) -> None:
        self.audited.append((kind, fields))


class Disk:
    """Where batches go: durable once `room` is set; `failing` is raised instead."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.asked = 0
        """Batches that were handed over, durable or not."""
        self.room = asyncio.Event()
        self.room.set()
        self.failing: Exception | None = None
        self.full: set[str] = set()
        """Streams that wait."""

    async def accept(self, batch: Batch) -> None:
        self.asked += 1
        while batch.stream in self.full:
            await asyncio.sleep(0.01)
        await self.room.wait()
        if self.failing is not None:
            raise self.failing
        self.batches.append(batch)

    @property
    def lines(self) -> list[bytes]:
        return [line for batch in self.batches for line in b"".join(batch.payload).splitlines()]


class Site:
    """The input and what is around it."""

    def __init__(
        self,
        directory: Path,
        *,
        crl: bool = False,
        enrolment: Enroller | None = None,
        pki: Path | None = None,
        accept: Accept | None = None,
        **limits: Any,
    ) -> None:
        """`pki` is a directory of the built-in CA to trust, `accept` a spool, instead of the test's own."""
        self.directory = directory
        self.files, self.metrics, self.fleet, self.disk = Files(directory), Metrics(), Fleet(), Disk()
        if crl:
            self.files.write_crl()
        names = {"ca_file": "ca.crt", "cert_file": "server.crt", "key_file": "server.key"}
        config = TlsConfig(**{key: (pki or directory) / name for key, name in names.items()})
        self.contexts = TlsContexts(config, metrics=self.metrics, clock=time.time)
        self.settings = Config(listen=(Listen("127.0.0.1", 0),), limits=HttpsLimits(**limits))
        self.pairs: dict[str, Pair] = {}
        self.enrolment = enrolment
        self.accept = accept or self.disk.accept

    async def start(self) -> None:
        context = InputContext(self.directory, self.metrics, self.contexts, time.time, self.fleet, self.enrolment)
        self.input = Https("https", self.settings, context)
        await self.input.start()
        self.port = self.input.addresses[0].port
        self._running = asyncio.create_task(self.input.run(self.accept))
        await until(lambda: self.input._server is not None)

    async def stop(self) -> None:
        """As the intake stops it."""
        self._running.cancel()
        await asyncio.wait({self._running}, timeout=WAIT_SECONDS)
        assert self._running.done()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running

    @property
    def running(self) -> bool:
        return not self._running.done()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def pair(self, agent_id: str = AGENT) -> Pair:
        """The agent's certificate, always the same."""
        if agent_id not in self.pairs:
            self.pairs[agent_id] = self.files.authority.issue(agent_id, names=[f"URI:nd:agent:{agent_id}"])
        return self.pairs[agent_id]

    def context(self, agent_id: str | None = AGENT) -> ssl.SSLContext:
        """A client's TLS; None for one without certificate."""
        return self.files.client(self.pair(agent_id) if agent_id else None)

    @asynccontextmanager
    async def client(self, agent_id: str | None = AGENT, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
        """An aiohttp client of one agent; it keeps its connections."""
        connector = aiohttp.TCPConnector(ssl=self.context(agent_id), **options)
        async with aiohttp.ClientSession(self.url, connector=connector) as session:
            yield session

    async def raw(self, agent_id: str | None = AGENT) -> ssl.SSLSocket:
        """A blocking TLS socket of one agent."""
        return await asyncio.to_thread(connect, self.context(agent_id), self.port)

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"input": "https", **labels}) or 0

    def answered(self, route: str, status: int) -> float:
        return self.sample("nd_input_requests_total", route=route, status=str(status))

    def refused(self, reason: str) -> float:
        return self.sample("nd_input_refused_connections_total", reason=reason)


def events(count: int, *, first: int = 1, spool_id: str = SPOOL) -> bytes:
    """NDJSON of an agent's events."""
    return b"".join(
        orjson.dumps({"message": f"event {number}", "event": {"id": f"{spool_id}-{number}"}}) + b"\n"
        for number in range(first, first + count)
    )


def envelope(count: int = 3, *, first: int = 1, ndjson: bytes | None = None, **fields: Any) -> bytes:
    """An envelope of AGENT as it would send it; `fields` replace those of the header."""
    body = events(count, first=first) if ndjson is None else ndjson
    header: dict[str, Any] = {
        "stream": "security_events", "spool_id": SPOOL, "first": first, "last": first + count - 1, "count": count,
        "length": len(body), "sent_at_ns": time.time_ns(), "agent_id": AGENT, "run_id": "00112233445566aa",
    }  # fmt: skip
    return pack(Header(**{**header, **fields}), body)


async def post(client: aiohttp.ClientSession, data: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """An envelope on its way: status and document of the answer."""
    sent = {"Content-Type": routes.ENVELOPE_TYPE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    body = io.BytesIO(data) if isinstance(data, bytes) and len(data) > 1 << 20 else data  # else aiohttp warns
    async with client.post(routes.BATCHES, data=body, headers=sent) as response:
        return response.status, await response.json()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def request(
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = routes.BATCHES,
    kind: str = routes.NDJSON_TYPE,
    more: str = "",
) -> bytes:
    """One request as bytes."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}"
    )
    return head.encode() + b"\r\n" + body


def read_all(client: ssl.SSLSocket) -> bytes:
    """What comes until the server ends it."""
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
        while piece := client.recv(65536):
            data += piece
    return data


def read_responses(client: ssl.SSLSocket, count: int) -> list[bytes]:
    """So many responses (all have a Content-Length, or no body); heads and bodies."""
    data, found = bytearray(), []
    while len(found) < count:
        while b"\r\n\r\n" not in data:
            data += _more(client, data)
        head, _, data = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        length = int(lengths[0].split(b":")[1]) if lengths and b" 304 " not in head else 0
        while len(data) < length:
            data += _more(client, data)
        found.append(bytes(head + b"\r\n\r\n" + data[:length]))
        data = data[length:]
    assert not data
    return found


def _more(client: ssl.SSLSocket, data: bytearray) -> bytes:
    piece = client.recv(65536)
    assert piece, f"the server ended after {bytes(data[:300])!r}"
    return piece


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])
