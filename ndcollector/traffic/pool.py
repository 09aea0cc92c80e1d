"""Exchanges over HTTP/1.1 with one of an output's endpoints."""

import aiohttp

from ndagent.core.interfaces import Unavailable
from ndcollector.outputs import OutputContext
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.request import Answer, Request, retry_after


class Pool:
    """An Exchange. Connects when the first request comes."""

    def __init__(self, name: str, config: HttpOutputConfig, context: OutputContext) -> None:
        self._name = name
        self._config = config
        self._context = context
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, request: Request) -> Answer:
        """See Exchange."""
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=True)
        base = self._config.endpoints[0]
        url = base.rstrip("/") + request.path
        try:
            async with self._session.request(
                request.method, url, data=request.body, headers=request.headers, allow_redirects=False
            ) as response:
                body = await response.content.read(self._config.max_answer_bytes)
                headers = {name.lower(): value for name, value in response.headers.items()}
                answer = Answer(response.status, headers, body, base)
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{base}: {error}") from error
        if answer.status == 429 or answer.status >= 500:
            raise Unavailable(answer.reason, retry_after(answer))
        return answer

    async def aclose(self) -> None:
        """Close the connections; safe at any time."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
