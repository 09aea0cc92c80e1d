"""HTTP/1.1 to one endpoint: connections that are kept, a whole answer or an exception.

Promises: an answer is whole, read within `request_timeout` and at most `max_answer_bytes`; redirects are not followed;
a kept connection that the far side closed meanwhile is opened anew, which says nothing about the far side; a request
that fails or is cancelled takes its connection with it; a large body goes out in pieces, as fast as it is taken.
Refuses: choosing, counting, trying again (pool.py), cookies, HTTP/2, the environment's proxies.

aiohttp's client and not the agent's own (ndagent/https_client.py): the collector has aiohttp in memory for its API, and
it brings connection pools, proxies, happy eyeballs and content codings.
"""

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from ndagent.core.interfaces import Unavailable
from ndcollector.client_sockets import connector
from ndcollector.traffic.body import AnswerTooLargeError, read_at_most
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.credentials import basic
from ndcollector.traffic.discovery import Target
from ndcollector.traffic.request import Answer, Request
from ndcollector.traffic.resolving import Resolver
from ndcollector.traffic.tls import ClientTls

_PIECE_BYTES = 256 * 1024
_KEEP_SECONDS = 15.0


class Connection:
    """To one target. Make it on the loop; connects when the first request comes."""

    def __init__(
        self, target: Target, config: HttpOutputConfig, *, tls: ClientTls, clock: Callable[[], float]
    ) -> None:
        self._target = target
        self._config = config
        self._tls = tls
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        login = config.proxy_credentials
        self._proxy: dict[str, Any] = {"proxy": config.proxy} if config.proxy else {}
        self._to_proxy: dict[str, str] = {}
        if login is not None:
            shown = {"Proxy-Authorization": basic(login)}
            self._proxy["proxy_headers"] = shown  # of CONNECT; a plain request is the proxy's own
            self._to_proxy = shown if target.url.startswith("http:") else {}

    def url(self, path: str) -> str:
        """Where a request with this path goes."""
        return f"{self._target.url.rstrip('/')}{path}" if path else self._target.url

    async def exchange(self, request: Request, fields: Mapping[str, str]) -> Answer:
        """One request with these fields too. Raises aiohttp.ClientError, OSError, TimeoutError, AnswerTooLargeError."""
        url = URL(self.url(request.path), encoded=True)
        headers = {**request.headers, **fields, **self._to_proxy}
        async with asyncio.timeout(self._config.request_timeout):
            while True:
                seen = SimpleNamespace(reused=False)
                try:
                    return await self._talk(request.method, url, headers, request.body, seen)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    if not seen.reused:
                        raise
                # each such failure uses up a kept connection, and there are at most as many as places

    async def is_well(self, url: str, *, expect: tuple[int, ...], timeout_seconds: float) -> bool:
        """Whether a GET of this URL is answered as expected; for health checks, which show no credentials."""
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await self._talk("GET", URL(url, encoded=True), {}, b"", SimpleNamespace(reused=False))
        except (Unavailable, AnswerTooLargeError, aiohttp.ClientError, OSError, TimeoutError):
            return False  # Unavailable: our own TLS files are not usable now
        return answer.status in expect

    async def aclose(self) -> None:
        """Close all; safe at any time, and the next request opens anew."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _talk(
        self, method: str, url: URL, headers: Mapping[str, str], body: bytes, seen: SimpleNamespace
    ) -> Answer:
        async with self._opened().request(
            method,
            url,
            data=_Body(body) if body else None,
            headers=headers,
            allow_redirects=False,
            trace_request_ctx=seen,
            **self._security(),
            **self._proxy,
        ) as response:
            found = await read_at_most(response.content, self._config.max_answer_bytes)
            fields = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, fields, found, str(self._target))

    def _security(self) -> dict[str, Any]:
        """Asked for each request: a context that was read anew makes new connections."""
        if not self._target.url.startswith("https:"):
            return {}
        name = self._config.tls.server_name
        return {"ssl": self._tls.context, **({"server_hostname": name} if name else {})}

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            opened = connector(
                limit=self._config.concurrency.maximum + 1,  # and one for health checks
                resolver=Resolver(self._target.address, clock=self._clock),
                use_dns_cache=False,
                keepalive_timeout=_KEEP_SECONDS,
            )
            self._session = aiohttp.ClientSession(
                connector=opened,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._config.connect_timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[_trace()],
                headers={"User-Agent": "ndcollector"},
            )
        return self._session


def _trace() -> aiohttp.TraceConfig:
    async def reused(_session: object, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.reused = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    return trace


class _Body(aiohttp.Payload):
    """Bytes that go out piece by piece: aiohttp writes bytes whole, past all back-pressure, and warns of it."""

    _autoclose = True

    def __init__(self, value: bytes) -> None:
        super().__init__(value, content_type="application/octet-stream")
        self._size = len(value)

    async def write(self, writer: AbstractStreamWriter) -> None:
        view = memoryview(self._value)
        for start in range(0, len(view), _PIECE_BYTES):
            await writer.write(view[start : start + _PIECE_BYTES])

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None  # noqa: ARG002 - it is the body's
    ) -> None:
        await self.write(writer)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)
