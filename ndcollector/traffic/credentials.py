"""The header fields that say who we are: bearer, basic, API key, OAuth 2.0, and a signature over time and body.

Promises: a token file is read anew when it changes, an OAuth token is renewed before it runs out; after a 401 `renewed`
says whether there is something newer to try, so that a request is repeated once and no refused token twice; `hide`
takes every secret out of text that a far side sent back, before it reaches a log; a warning where there is no TLS.
Refuses: judging answers (the pool does).

A signature is `t=<Unix seconds>,<algorithm>=<hex>` with the HMAC of `<Unix seconds>.<body>`, the body as it went out,
compressed or not; docs/traffic.md shows how a receiver checks it.
"""

import asyncio
import base64
import hmac
import ipaddress
import logging
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ndagent.core.interfaces import Unavailable
from ndcollector.oauth import ClientCredentials, TokenError
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.credentials_config import BasicConfig, BearerConfig, HmacConfig, OAuth2Config

INLINE_BYTES = 64 * 1024
"""So much is signed on the loop: some 100 µs; more goes to a thread."""

_SHORTEST_SECRET = 4  # what is shorter would blot out innocent text and is no secret


def warn_of_plain_http(config: HttpOutputConfig, log: logging.Logger) -> None:
    """Say whose credentials anybody on the way can read, if any; not of this machine itself."""
    if not config.shows_credentials:
        return
    oauth2 = config.credentials.oauth2 if config.credentials is not None else None
    urls = [*config.endpoints, *([oauth2.token_url] if oauth2 is not None else [])]
    if readable := [url.partition("?")[0] for url in urls if url.startswith("http:") and not _is_here(url)]:
        log.warning(
            "credentials go to %s without TLS: anybody in between can read and use them; write https://",
            ", ".join(readable),
        )


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def basic(config: BasicConfig) -> str:
    """The value of an Authorization or Proxy-Authorization field (RFC 7617)."""
    login = f"{config.username}:{config.password.get_secret_value()}".encode()
    return "Basic " + base64.b64encode(login).decode()


class Credentials:
    """For one output. `clock` gives Unix seconds, `context` what TLS to an authorisation server is checked with."""

    def __init__(
        self, config: HttpOutputConfig, *, clock: Callable[[], float], context: Callable[[], ssl.SSLContext]
    ) -> None:
        self._clock = clock
        self._hmac = config.hmac
        self._fields = {name: value.get_secret_value() for name, value in config.headers.items()}
        self._more_secrets = [urlsplit(url).query for url in config.endpoints]  # some far sides want a key there
        if (login := config.proxy_credentials) is not None:
            self._more_secrets += [login.password.get_secret_value(), basic(login)]
        self._bearer: BearerConfig | None = None
        self._file_token = ""
        self._oauth: ClientCredentials | None = None
        kinds = config.credentials
        if kinds is None:
            return
        if kinds.basic is not None:
            self._fields["Authorization"] = basic(kinds.basic)
            self._more_secrets.append(kinds.basic.password.get_secret_value())
        elif kinds.api_key is not None:
            self._fields[kinds.api_key.header] = kinds.api_key.key.get_secret_value()
        elif kinds.oauth2 is not None:
            self._oauth = _oauth(kinds.oauth2, config, context)
        elif kinds.bearer is not None:
            self._bearer = kinds.bearer
            if kinds.bearer.token is not None:
                self._fields["Authorization"] = f"{kinds.bearer.scheme} {kinds.bearer.token.get_secret_value()}"

    async def fields(self) -> dict[str, str]:
        """For one request; raises Unavailable where a token cannot be had."""
        if self._oauth is not None:
            try:
                return {**self._fields, "Authorization": f"Bearer {await self._oauth.token()}"}
            except TokenError as error:
                raise Unavailable(str(error)) from error
        if self._token_file is None or self._bearer is None:
            return self._fields
        if not self._file_token:
            await asyncio.to_thread(self.look)
        if not self._file_token:
            raise Unavailable(f"{self._token_file}: no token in it; it must be one line that this user may read")
        return {**self._fields, "Authorization": f"{self._bearer.scheme} {self._file_token}"}

    async def renewed(self, refused: Mapping[str, str]) -> bool:
        """Whether `fields` will now give others than these, which were refused."""
        if self._oauth is not None:
            self._oauth.forget(refused.get("Authorization", "").partition(" ")[2])
            return True
        if self._token_file is None:
            return False
        await asyncio.to_thread(self.look)
        return bool(self._file_token) and not refused.get("Authorization", "").endswith(f" {self._file_token}")

    async def signature(self, body: bytes) -> dict[str, str]:
        """The field that signs this body now; empty where none is configured."""
        if self._hmac is None:
            return {}
        if len(body) <= INLINE_BYTES:
            return _sign(self._hmac, int(self._clock()), body)
        return await asyncio.to_thread(_sign, self._hmac, int(self._clock()), body)

    @property
    def has_file(self) -> bool:
        """Whether `look` has anything to look at."""
        return self._token_file is not None

    def look(self) -> None:
        """Read the token file again; one that is being written leaves the last good token in use. Blocks."""
        if self._token_file is None:
            return
        try:
            found = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return  # `fields` says so where there is no token at all
        if found and found.isprintable():
            self._file_token = found

    def hide(self, text: bytes, shown: Mapping[str, str]) -> bytes:
        """The text without any of our secrets, nor the fields that were shown, which may have been renewed since."""
        secrets = [*self._fields.values(), *self._more_secrets, *shown.values(), self._file_token]
        if self._oauth is not None:
            secrets += self._oauth.secrets()
        for secret in secrets:
            for part in (secret, secret.rpartition(" ")[2]):
                if len(part) >= _SHORTEST_SECRET:
                    text = text.replace(part.encode(), b"***")
        return text

    @property
    def _token_file(self) -> Path | None:
        return self._bearer.token_file if self._bearer is not None else None


def _oauth(
    settings: OAuth2Config, config: HttpOutputConfig, context: Callable[[], ssl.SSLContext]
) -> ClientCredentials:
    more = {"scope": settings.scope, "audience": settings.audience}
    login = config.proxy_credentials
    return ClientCredentials(
        settings.token_url,
        client_id=settings.client_id,
        client_secret=settings.client_secret.get_secret_value(),
        more={key: value for key, value in more.items() if value},
        context=context,
        proxy=config.proxy,
        proxy_headers={"Proxy-Authorization": basic(login)} if login is not None else None,
    )


def _sign(config: HmacConfig, now: int, body: bytes) -> dict[str, str]:
    digest = hmac.new(config.secret.get_secret_value().encode(), b"%d." % now, config.algorithm)
    digest.update(body)
    return {config.header: f"t={now},{config.algorithm}={digest.hexdigest()}"}
