"""Tokens for SASL OAUTHBEARER (RFC 7628): from a file that someone renews, or by client credentials (RFC 6749 §4.4).

Promises: a token is asked for once and kept until a minute before it runs out; a file is read at every connection;
what the authorisation server said stands in the error. Refuses: refresh tokens and any flow that needs a person.
"""

import asyncio
import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote_plus

import aiohttp
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import AuthenticationFailedError
from pydantic import SecretStr

_MARGIN_SECONDS = 60.0
_ANSWER_SECONDS = 10.0
_SHOWN_BYTES = 200


class Settings(Protocol):
    """The part of the SASL settings that tokens need."""

    token_file: Path | None
    token_url: str | None
    client_id: str | None
    client_secret: SecretStr | None
    scope: str | None


class TokenSource(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """What aiokafka asks for a token at each new connection."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._token = ""
        self._good_until = 0.0
        self._asking = asyncio.Lock()

    @classmethod
    def of(cls, settings: Any) -> "TokenSource | None":
        """The source these SASL settings need, None where they use a password."""
        return cls(settings) if settings.mechanism == "OAUTHBEARER" else None

    async def token(self) -> str:
        """A token that is good now; raises AuthenticationFailedError with the reason."""
        if self._settings.token_file is not None:
            return await asyncio.to_thread(_read, self._settings.token_file)
        async with self._asking:  # connections to several brokers come at once
            if self._clock() >= self._good_until:
                await self._ask()
            return self._token

    async def _ask(self) -> None:
        settings = self._settings
        form = {"grant_type": "client_credentials"} | ({"scope": settings.scope} if settings.scope else {})
        asked_at = self._clock()
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS)) as session,
                session.post(settings.token_url or "", data=form, headers=self._credentials()) as response,
            ):
                if response.status != 200:
                    said = (await response.content.read(_SHOWN_BYTES)).decode("utf-8", "replace")
                    raise AuthenticationFailedError(f"{settings.token_url}: HTTP {response.status}: {said}")
                answer = await response.json(content_type=None)
                self._token = str(answer["access_token"])
                self._good_until = asked_at + float(answer.get("expires_in", 0)) - _MARGIN_SECONDS
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise AuthenticationFailedError(f"{settings.token_url}: no token: {error!r}") from error

    def _credentials(self) -> dict[str, str]:
        """RFC 6749 §2.3.1: both parts form-encoded, then HTTP basic authentication."""
        secret = self._settings.client_secret
        parts = (self._settings.client_id or "", secret.get_secret_value() if secret is not None else "")
        text = ":".join(map(quote_plus, parts)).encode()
        return {"Authorization": f"Basic {base64.b64encode(text).decode()}"}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise AuthenticationFailedError(f"{path}: no token: {error}") from error
