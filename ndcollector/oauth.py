"""Tokens by OAuth 2.0 client credentials (RFC 6749 §4.4), for Kafka and for outputs that speak HTTP.

Promises: a token is asked for once, however many want it at the same time, and kept until MARGIN_SECONDS before it runs
out (half its life where that is shorter, half a minute where it is not told); `forget` drops one that was refused, but
not the one that replaced it meanwhile; what the authorisation server said stands in the error, without our secret.
Refuses: refresh tokens and any flow that needs a person; following redirects, which would show the secret elsewhere.
"""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Callable
from urllib.parse import quote_plus

import aiohttp

from ndcollector.client_sockets import connector
from ndcollector.traffic.body import AnswerTooLargeError, read_at_most

MARGIN_SECONDS = 60.0
_UNTOLD_LIFE_SECONDS = 60.0
"""RFC 6749 §5.1 lets a server leave expires_in out. One that is asked before every request would soon refuse us."""
_ANSWER_SECONDS = 10.0
_FAILURE_STANDS_SECONDS = 1.0
"""For all who waited meanwhile: each of them asking a dead server in turn would take minutes."""
_ANSWER_BYTES = 1 << 20
_SHOWN_BYTES = 200


class TokenError(Exception):
    """No token; the text names the server, the reason and what to look at."""


class ClientCredentials:
    """One client at one authorisation server. `context` gives what its TLS is checked with; None: the system's CAs."""

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        client_secret: str,
        more: dict[str, str] | None = None,
        context: Callable[[], ssl.SSLContext] | None = None,
        proxy: str | None = None,
        proxy_headers: dict[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._shown = url.partition("?")[0]  # a query may hold a key
        self._form = {"grant_type": "client_credentials"} | (more or {})
        # RFC 6749 §2.3.1: both parts form-encoded, then HTTP basic authentication
        login = ":".join(map(quote_plus, (client_id, client_secret))).encode()
        self._headers = {"Authorization": f"Basic {base64.b64encode(login).decode()}"}
        self._secret = client_secret
        self._context = context
        self._proxy = {"proxy": proxy, "proxy_headers": proxy_headers} if proxy else {}
        self._clock = clock
        self._token = ""
        self._good_until = 0.0
        self._asking = asyncio.Lock()
        self._failure: tuple[TokenError, float] | None = None

    async def token(self) -> str:
        """A token that is good now; raises TokenError."""
        async with self._asking:
            if self._token and self._clock() < self._good_until:
                return self._token
            if self._failure is not None and self._clock() - self._failure[1] < _FAILURE_STANDS_SECONDS:
                raise TokenError(str(self._failure[0]))
            try:
                await self._ask()
            except TokenError as error:
                self._failure = error, self._clock()
                raise
            return self._token

    def forget(self, token: str) -> None:
        """This token was refused: the next to come asks for another one."""
        if token == self._token:
            self._token = ""

    async def _ask(self) -> None:
        asked_at = self._clock()
        try:
            answer = await self._post()
            token, life = str(answer["access_token"]), float(answer.get("expires_in", _UNTOLD_LIFE_SECONDS))
        except TimeoutError as error:
            raise TokenError(f"{self._shown}: no token: no answer within {_ANSWER_SECONDS:g}s") from error
        except AnswerTooLargeError as error:
            raise TokenError(f"{self._shown}: no token: it answers too much for one; is it the token's URL?") from error
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TokenError(f"{self._shown}: no token: {error!r}") from error
        if not token.isascii() or not token.isprintable() or not token:
            raise TokenError(f"{self._shown}: no token: what it gave is none that a header field can carry")
        self._token = token
        self._good_until = asked_at + max(life - MARGIN_SECONDS, life / 2)

    async def _post(self) -> dict[str, str]:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        tls = {"ssl": self._context()} if self._context is not None and self._url.startswith("https:") else {}
        async with (
            aiohttp.ClientSession(connector=connector(), timeout=timeout) as session,
            session.post(
                self._url, data=self._form, headers=self._headers, allow_redirects=False, **tls, **self._proxy  # type: ignore[arg-type]  # two kinds of values
            ) as response,
        ):
            body = await read_at_most(response.content, _ANSWER_BYTES)
            if response.status != 200:
                said = self.hide(body[:_SHOWN_BYTES].decode("utf-8", "replace"))
                raise TokenError(f"{self._shown}: HTTP {response.status}: {said}; check client_id and client_secret")
            answer: dict[str, str] = json.loads(body)
            return answer

    def secrets(self) -> list[str]:
        """What must not stand in a log."""
        return [self._secret, self._headers["Authorization"], self._token]

    def hide(self, text: str) -> str:
        """The text without our secret, which a server may send back, plain or as it was shown."""
        for secret in (self._secret, self._headers["Authorization"].rpartition(" ")[2]):
            text = text.replace(secret, "***") if secret else text
        return text
