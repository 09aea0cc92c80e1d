"""To a collector over HTTPS: one POST for an envelope, 2xx means that it is on the collector's disk.

Promises: up to MAX_REQUESTS at a time, each on a connection of its own that is kept; an answer that may be different
later (429, 5xx, 401, 403, a proxy's page) is Unavailable, and only what cannot ever be taken (400, 413, 415, 422 with
the collector's own words in it) is Rejected.
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
from ndagent.wire.enrolment import Refusal
from ndagent.wire.envelope import Header
from ndagent.wire.fields import BadDocument

_NEVER = frozenset({400, 413, 415, 422})
_GARBLED = frozenset({"malformed_request", "bad_key"})
"""What a collector says of a request that is not as we send them: somebody on the way rewrote it."""
_NOT_MODIFIED = 304
MAX_REQUESTS = 6
"""At a time: a collector takes eight of one agent (inputs.https.limits.requests_per_agent)."""


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
        self._turn = asyncio.Semaphore(MAX_REQUESTS)
        self._closed = False
        self._etag = ""

    @property
    def sign(self) -> None:
        """See Transport."""
        return

    async def send(self, packed: bytes, header: Header) -> None:
        """See Transport."""
        headers = {"Content-Type": routes.ENVELOPE_TYPE, routes.IDEMPOTENCY_KEY: header.key}
        self._check(await self._request("POST", routes.BATCHES, headers=headers, body=packed))

    async def report(self, document: bytes) -> None:
        """See Transport. With it comes the question whether there is a newer policy."""
        headers = {"Content-Type": "application/json"}
        self._check(await self._request("POST", routes.STATUS, headers=headers, body=document))
        await self._pull_policy()

    async def probe(self) -> None:
        """See Transport. The policy's route is only for agents that may send; the CA's would be for everybody."""
        await self._pull_policy()

    async def aclose(self) -> None:
        """See Transport."""
        self._closed = True
        await asyncio.gather(*(connection.aclose() for connection in self._idle))
        self._idle.clear()

    async def _pull_policy(self) -> None:
        headers = {"If-None-Match": self._etag} if self._etag else {}
        answer = await self._request("GET", routes.POLICY, headers=headers)
        if answer.status == _NOT_MODIFIED:
            return
        self._check(answer)
        if answer.status == 200 and answer.body:
            self._etag = answer.headers.get("etag", "")
            await self._context.offer(answer.body)

    async def _request(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        async with self._turn:
            return await self._exchange(method, path, headers=headers, body=body)

    async def _exchange(self, method: str, path: str, *, headers: dict[str, str] | None, body: bytes) -> Answer:
        connection = self._idle.pop() if self._idle else self._connection()
        try:
            answer = await connection.request(method, path, headers=headers, body=body)
        except HttpError as error:
            raise Unavailable(f"https: {error}") from error
        except BaseException:
            await connection.aclose()
            raise
        if self._closed:
            await connection.aclose()
        else:
            self._idle.append(connection)
        return answer

    def _connection(self) -> HttpsConnection:
        return HttpsConnection(
            self._target.place,
            context=self._context.tls(),
            timeout_seconds=self._config.timeout,
            connect_timeout_seconds=self._config.connect_timeout,
            proxy=self._proxy,
        )

    def _check(self, answer: Answer) -> None:
        """Raise Rejected or Unavailable unless the collector did as it was asked."""
        if 200 <= answer.status < 300:
            return
        refusal = _refusal(answer)
        if refusal is None:
            text = f"{self._target} answers {answer.status} and says no more; is there a proxy in between?"
            raise Unavailable(text, answer.retry_after_seconds)
        if answer.status in _NEVER and refusal.reason not in _GARBLED:
            raise Rejected(f"{self._target} refused: {refusal.message} ({refusal.reason})")
        text = f"{self._target} answers {answer.status}: {refusal.message} ({refusal.reason})"
        raise Unavailable(text, answer.retry_after_seconds)


def _refusal(answer: Answer) -> Refusal | None:
    """What a collector says when it refuses; None where somebody else answered."""
    try:
        return Refusal.from_json(answer.body)
    except BadDocument:
        return None
