"""Which collectors there are: fixed ones, every address of a name, and DNS SRV records (RFC 2782).

Promises: at most MAX_TARGETS targets, in the order in which they should be tried: the protocols as configured, then the
priorities of SRV records, then this agent's own order of equals, so that a fleet spreads over its collectors and each
agent stays with one; names that cannot be resolved now keep the targets found for them last.
Refuses: connecting, and judging who is up (collector.py).
"""

import hashlib
import logging
import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from ndagent.core.discovery import LastKnown, Resolve, Services, Srv, find_services, resolve_host
from ndagent.https_client import Place
from ndagent.outputs import SRV_PREFIX, Target

log = logging.getLogger("collector")

MAX_TARGETS = 64
_WEIGHT_OF_NONE = 0.01  # RFC 2782: a small chance beside others that have a weight, an equal one among themselves


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
        self._known: LastKnown[_Found] = LastKnown(log, remedy="check DNS, or name it in outputs", clock=clock)

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
        return await self._known.find((protocol, endpoint), endpoint, lambda: self._look_up(protocol, endpoint))

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
