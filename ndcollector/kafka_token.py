"""Tokens for SASL OAUTHBEARER (RFC 7628): from a file that someone renews, or by client credentials (RFC 6749 §4.4).

Promises: a file is read at every connection; what the authorisation server said stands in the error (see oauth.py).
Refuses: refresh tokens and any flow that needs a person.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import AuthenticationFailedError
from pydantic import SecretStr

from ndcollector.oauth import ClientCredentials, TokenError


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
        secret = settings.client_secret
        self._credentials = ClientCredentials(
            settings.token_url or "",
            client_id=settings.client_id or "",
            client_secret=secret.get_secret_value() if secret is not None else "",
            more={"scope": settings.scope} if settings.scope else None,
            clock=clock,
        )

    @classmethod
    def of(cls, settings: Any) -> "TokenSource | None":
        """The source these SASL settings need, None where they use a password."""
        return cls(settings) if settings.mechanism == "OAUTHBEARER" else None

    async def token(self) -> str:
        """A token that is good now; raises AuthenticationFailedError with the reason."""
        if self._settings.token_file is not None:
            return await asyncio.to_thread(_read, self._settings.token_file)
        try:
            return await self._credentials.token()
        except TokenError as error:
            raise AuthenticationFailedError(str(error)) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise AuthenticationFailedError(f"{path}: no token: {error}") from error
