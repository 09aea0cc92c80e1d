"""To a collector over HTTPS: one POST for an envelope, 2xx means that it is on the collector's disk.

Promises: as many requests at a time as there are sends under way, each on a connection of its own that is kept; an
answer that may be different later (429, 5xx, 401, 403, a proxy's page) is Unavailable, and only what cannot ever be
taken (400, 413, 415 with the collector's own words in it) is Rejected.
Refuses: choosing between collectors (collector.py).
"""

import asyncio
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.settings import Duration
from ndagent.https_client import Answer, HttpError, HttpsConnection, Proxy, check_proxy
from ndagent.outputs import Target, TransportConfig, TransportContext
from ndagent.wire import routes
from ndagent.wire.envelope import Header
from ndagent.wire.fields import BadDocument, Fields

_NEVER = frozenset({400, 413, 415, 422})
MAX_IDLE = 4


class Config(TransportConfig):
    """Settings of the way over HTTPS."""

    type: Literal["https"] = Field(default="https", description="Envelopes over HTTPS, TLS 1.3 with our certificate.")
    timeout: Duration = Field(default=30.0, gt=0, description="A request that is not answered by then has failed.")
    proxy: Annotated[str, AfterValidator(check_proxy)] | None = Field(
        default=None, description="HTTP proxy that does CONNECT.", examples=["http://proxy.example.net:3128"]
    )


def build(config: Config, context: TransportContext, target: Target) -> "Https":
    """The transport, not connected yet."""
    return Https(config, context, target)


class Https:
    """See the module."""

    def __init__(self, config: Config, context: TransportContext, target: Target) -> None:
        self._config = config
        self._context = context
        self._target = target
        self._proxy = Proxy.parse(config.proxy) if config.proxy else None
        self._idle: list[HttpsConnection] = []
        self._closed = False
        self._etag = ""

    @property
    def sign(self) -> None:
        """See Transport."""
        return

    async def send(self, packed: bytes, header: Header) -> None:
        """See Transport."""
        headers = {"Content-Type": routes.ENVELOPE_TYPE, routes.IDEMPOTENCY_KEY: header.key}
        answer = await self._request("POST", routes.BATCHES, headers=headers, body=packed)
        if answer.status in _NEVER and (reason := _collectors_words(answer)):
            raise Rejected(f"{self._target} refused the batch: {reason}")
        self._check(answer)

    async def report(self, document: bytes) -> None:
        """See Transport. With it comes the question whether there is a newer policy."""
        headers = {"Content-Type": "application/json"}
        self._check(await self._request("POST", routes.STATUS, headers=headers, body=document))
        await self._pull_policy()

    async def probe(self) -> None:
        """See Transport."""
        self._check(await self._request("GET", routes.CA))

    async def aclose(self) -> None:
        """See Transport."""
        self._closed = True
        await asyncio.gather(*(connection.aclose() for connection in self._idle))
        self._idle.clear()

    async def _pull_policy(self) -> None:
        headers = {"If-None-Match": self._etag} if self._etag else {}
        answer = await self._request("GET", routes.POLICY, headers=headers)
        if answer.status == 200 and answer.body:
            self._etag = answer.headers.get("etag", "")
            await self._context.offer(answer.body)

    async def _request(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        connection = self._idle.pop() if self._idle else self._connection()
        try:
            answer = await connection.request(method, path, headers=headers, body=body)
        except HttpError as error:
            raise Unavailable(f"https: {error}") from error
        except BaseException:
            await connection.aclose()
            raise
        if self._closed or len(self._idle) >= MAX_IDLE:
            await connection.aclose()
        else:
            self._idle.append(connection)
        return answer

    def _connection(self) -> HttpsConnection:
        return HttpsConnection(
            self._target.place, context=self._context.tls(), timeout_seconds=self._config.timeout, proxy=self._proxy
        )

    def _check(self, answer: Answer) -> None:
        """Raise Unavailable unless the collector did as it was asked."""
        if not 200 <= answer.status < 300:
            words = _collectors_words(answer) or "and says no more; is there a proxy in between?"
            raise Unavailable(f"{self._target} answers {answer.status}: {words}", answer.retry_after_seconds)


def _collectors_words(answer: Answer) -> str:
    """The reason in a collector's refusal; empty where somebody else answered."""
    try:
        fields = Fields.parse(answer.body, max_bytes=64 * 1024)
        return fields.text("message", at_most=4096)
    except BadDocument:
        return ""
