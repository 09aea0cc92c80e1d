"""Which collectors there are: fixed ones, every address of a name, and DNS SRV records (RFC 2782).

Promises: at most MAX_TARGETS targets, in the order in which they should be tried: the protocols as configured, then the
priorities of SRV records, then this agent's own order of equals, so that a fleet spreads over its collectors and each
agent stays with one; names that cannot be resolved now keep the targets found for them last.
Refuses: connecting, and judging who is up (collector.py).
"""

import asyncio
import hashlib
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from ndagent.core.log import Throttle
from ndagent.https_client import Place
from ndagent.outputs import Target

log = logging.getLogger("collector")

MAX_TARGETS = 64
SRV_PREFIX = "srv:"
_SAY_EVERY_SECONDS = 600.0
_WEIGHT_OF_NONE = 0.01  # RFC 2782: a small chance beside others that have a weight, an equal one among themselves

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of a host; raises OSError."""


class Srv(NamedTuple):
    """One SRV record."""

    priority: int
    weight: int
    host: str
    port: int


Services = Callable[[str], Awaitable[list[Srv]]]
"""The SRV records of a name; raises OSError."""


@dataclass(frozen=True, slots=True)
class _Found:
    place: Place
    priority: int
    weight: int


class Discovery:
    """Turns configured endpoints into targets.

    `spread` is what this agent's own order of equals is drawn from (its id); None keeps the order of the configuration.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Iterable[str]],
        *,
        spread: str | None,
        clock: Callable[[], float],
        resolve: Resolve | None = None,
        services: Services | None = None,
    ) -> None:
        self._endpoints = {protocol: tuple(found) for protocol, found in endpoints.items()}
        self._spread = spread
        self._resolve = resolve or resolve_host
        self._services = services or find_services
        self._last: dict[str, list[_Found]] = {}
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=clock)

    async def targets(self) -> list[Target]:
        """All of them, the one to try first in front. Never raises for what DNS says."""
        found: list[Target] = []
        for protocol, endpoints in self._endpoints.items():
            groups = [await self._found(endpoint) for endpoint in endpoints]
            if self._spread is not None:
                groups = [list(chain.from_iterable(groups))]
            for group in groups:
                in_order = sorted(group, key=lambda one: (one.priority, self._own_order(one)))
                found += [Target(protocol, one.place) for one in in_order]
        return found[:MAX_TARGETS]

    async def _found(self, endpoint: str) -> list[_Found]:
        try:
            self._last[endpoint] = await self._look_up(endpoint)
        except OSError as error:
            if self._throttle.allow(endpoint) is not None:
                log.warning("%s cannot be resolved (%s); check DNS, or name it in outputs", endpoint, error)
        return self._last.get(endpoint, [])

    async def _look_up(self, endpoint: str) -> list[_Found]:
        if endpoint.startswith(SRV_PREFIX):
            records = await self._services(endpoint.removeprefix(SRV_PREFIX))
        else:
            place = Place.parse(endpoint)
            records = [Srv(0, 0, place.host, place.port)]
        found: list[_Found] = []
        for record in sorted(records):
            for address in await self._resolve(record.host, record.port):
                place = Place(record.host, record.port, address)
                found.append(_Found(place, record.priority, record.weight))
        return found

    def _own_order(self, found: _Found) -> float:
        """Drawn once for each agent and place: the smallest comes first, as often as its weight says (RFC 2782).

        The smallest of exponential variables is each one with a probability in proportion to its rate.
        """
        if self._spread is None:
            return -found.weight
        digest = hashlib.sha256(f"{self._spread} {found.place}".encode()).digest()
        drawn = (int.from_bytes(digest[:8], "big") + 1) / 2**64
        return -math.log(drawn) / (found.weight or _WEIGHT_OF_NONE)


async def resolve_host(host: str, port: int) -> list[str]:
    """The host's addresses as the system finds them, each once."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def find_services(name: str) -> list[Srv]:
    """SRV records by dnspython, which is only loaded where somebody configured one."""
    try:
        import dns.asyncresolver
        import dns.exception
    except ImportError as error:
        raise OSError("DNS SRV records need dnspython: pip install 'neurodefender-collector[srv]'") from error
    try:
        answer = await dns.asyncresolver.resolve(name, "SRV")
    except dns.exception.DNSException as error:
        raise OSError(str(error)) from error
    return [Srv(one.priority, one.weight, str(one.target).rstrip("."), one.port) for one in answer]
