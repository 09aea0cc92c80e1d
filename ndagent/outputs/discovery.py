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
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from ndagent.core.log import Throttle
from ndagent.https_client import Place
from ndagent.outputs import SRV_PREFIX, Target

log = logging.getLogger("collector")

MAX_TARGETS = 64
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
    weight: float


class Discovery:
    """Turns configured endpoints into targets.

    `spread` is what this agent's own order of equals is drawn from (its id); None keeps the order of the configuration.
    Hosts of `proxied` protocols are not resolved: their proxy does that, and may be the only one that can.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Iterable[str]],
        *,
        spread: str | None,
        proxied: Container[str] = (),
        clock: Callable[[], float],
        resolve: Resolve | None = None,
        services: Services | None = None,
    ) -> None:
        self._endpoints = {protocol: tuple(found) for protocol, found in endpoints.items()}
        self._spread = spread
        self._proxied = proxied
        self._resolve = resolve or resolve_host
        self._services = services or find_services
        self._last: dict[tuple[str, str], list[_Found]] = {}
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=clock)

    async def targets(self) -> list[Target]:
        """All of them, the one to try first in front. Never raises for what DNS says."""
        found: list[Target] = []
        share = MAX_TARGETS // max(1, len(self._endpoints))  # a name with many addresses must not crowd out a protocol
        for protocol, endpoints in self._endpoints.items():
            groups = [await self._found(protocol, endpoint) for endpoint in endpoints]
            if self._spread is not None:
                groups = [list(chain.from_iterable(groups))]
            in_order: list[Target] = []
            for group in groups:
                ranked = sorted(group, key=lambda one: (one.priority, self._own_order(one)))
                in_order += [Target(protocol, one.place) for one in ranked]
            found += list(dict.fromkeys(in_order))[:share]
        return found

    async def _found(self, protocol: str, endpoint: str) -> list[_Found]:
        try:
            self._last[protocol, endpoint] = await self._look_up(protocol, endpoint)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that DNS cannot have
            if self._throttle.allow(endpoint) is not None:
                log.warning("%s cannot be resolved (%s); check DNS, or name it in outputs", endpoint, error)
        return self._last.get((protocol, endpoint), [])

    async def _look_up(self, protocol: str, endpoint: str) -> list[_Found]:
        if endpoint.startswith(SRV_PREFIX):
            records = await self._services(endpoint.removeprefix(SRV_PREFIX))
        else:
            place = Place.parse(endpoint)
            records = [Srv(0, 0, place.host, place.port)]
        found: list[_Found] = []
        failure: OSError | UnicodeError | None = None
        for record in sorted(records)[:MAX_TARGETS]:
            try:
                found += await self._places(protocol, record)
            except (OSError, UnicodeError) as error:
                failure = error  # one name that is gone must not take the others with it
        if failure is not None and not found:
            raise failure
        return found

    async def _places(self, protocol: str, record: Srv) -> list[_Found]:
        if protocol in self._proxied:
            return [_Found(Place(record.host, record.port), record.priority, record.weight)]
        addresses = await self._resolve(record.host, record.port)
        weight = record.weight / len(addresses) if addresses else 0.0  # a record's chance, however many addresses
        return [_Found(Place(record.host, record.port, one), record.priority, weight) for one in addresses]

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
    found = [Srv(one.priority, one.weight, str(one.target).rstrip("."), one.port) for one in answer]
    return [one for one in found if one.host]  # a target of "." says that there is no such service (RFC 2782)
