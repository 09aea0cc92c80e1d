"""Which endpoints there are: as written, every address of a name, or what SRV records say (RFC 2782).

Promises: at most MAX_ENDPOINTS; what DNS says is believed for its TTL; a name that stands for nothing now keeps what it
stood for last, and so do its addresses of the IP version that name servers say nothing of.
Refuses: judging who is well, and asking by itself (the pool does, beside the sends).
"""

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import chain
from urllib.parse import SplitResult, urlsplit

from ndagent.core import discovery as dns
from ndagent.core.discovery import Found, LastKnown, Srv
from ndcollector.traffic.config import HttpOutputConfig

MAX_ENDPOINTS = 64
_DEFAULT_PORTS = {"http": 80, "https": 443}
_WEIGHT_OF_NONE = 0.01  # RFC 2782: a small chance beside others that have a weight

Addresses = Callable[[str], Awaitable[Found[str]]]
Services = Callable[[str], Awaitable[Found[Srv]]]


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint. `address` is connected to instead of the URL's host, whose name the certificate must have."""

    url: str
    address: str | None = None
    priority: int = 0
    weight: float = 1.0

    def __str__(self) -> str:
        """For logs and metrics: without path and query, which may be long and hold a key."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}" + (f" ({self.address})" if self.address else "")


class Discovery:
    """Turns the configured URLs into targets."""

    def __init__(
        self,
        config: HttpOutputConfig,
        *,
        log: logging.Logger,
        clock: Callable[[], float],
        addresses: Addresses = dns.addresses,
        services: Services = dns.services,
    ) -> None:
        self._config = config
        self._addresses = addresses
        self._services = services
        self._known: LastKnown[Target] = LastKnown(
            log, remedy="what it stood for last stays in use; check DNS, or the host in url", clock=clock
        )
        self._ttl_seconds = 0.0

    @property
    def is_fixed(self) -> bool:
        """Whether `targets` will always be the same."""
        return self._config.discovery == "static"

    async def targets(self) -> Found[Target]:
        """All of them, and after how many seconds to ask again. Never raises for what DNS says."""
        self._ttl_seconds = dns.LONGEST_SECONDS
        found = await asyncio.gather(*map(self._of, self._config.endpoints))
        unique = list(dict.fromkeys(chain.from_iterable(found)))
        if not unique:
            self._ttl_seconds = dns.SHORTEST_SECONDS
        return Found(sorted(unique, key=lambda one: (one.priority, -one.weight))[:MAX_ENDPOINTS], self._ttl_seconds)

    async def _of(self, url: str) -> list[Target]:
        host = urlsplit(url).hostname or ""
        if self._config.discovery == "dns":
            return await self._known.find(url, host, lambda: self._by_address(url, host))
        if self._config.discovery == "srv":
            return await self._known.find(url, host, lambda: self._by_records(url, host))
        return [Target(url)]

    async def _by_address(self, url: str, host: str) -> list[Target]:
        found = await self._believed(self._addresses(host))
        known = [one.address for one in self._known.last(url) if one.address is not None]
        kept = [one for one in known if ipaddress.ip_address(one).version in found.unheard]
        return [Target(url, address) for address in sorted({*found.values, *kept})]

    async def _by_records(self, url: str, name: str) -> list[Target]:
        found = await self._believed(self._services(name))
        parts = urlsplit(url)
        return [
            Target(_at(parts, one), priority=one.priority, weight=float(one.weight) or _WEIGHT_OF_NONE)
            for one in found.values
        ]

    async def _believed(self, look_up: "Awaitable[Found[dns.T]]") -> "Found[dns.T]":
        try:
            found = await look_up
        except (OSError, UnicodeError):
            self._ttl_seconds = min(self._ttl_seconds, dns.SYSTEM_SECONDS)
            raise
        self._ttl_seconds = min(self._ttl_seconds, found.ttl_seconds)
        return found


def _at(parts: SplitResult, record: Srv) -> str:
    """The URL with the record's host and port in place of its own."""
    host = f"[{record.host}]" if ":" in record.host else record.host
    port = "" if record.port == _DEFAULT_PORTS[parts.scheme] else f":{record.port}"
    return parts._replace(netloc=host + port).geturl()
