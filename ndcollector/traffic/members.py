"""The endpoints that an output has now, and what is done about them beside the requests.

Promises: once there is an endpoint, nothing here holds up a request: DNS is asked anew when its TTL has passed, health
checks and comparisons have their own pace; an endpoint that DNS no longer names gets no more requests, and its
connections close when the last of them has ended.
Refuses: requests and their outcomes (pool.py).
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics
from ndcollector.traffic.config import HealthConfig, HttpOutputConfig
from ndcollector.traffic.connection import Connection
from ndcollector.traffic.discovery import Discovery, Target
from ndcollector.traffic.endpoint import Endpoint
from ndcollector.traffic.outliers import outliers
from ndcollector.traffic.tending import Tending
from ndcollector.traffic.tls import ClientTls

_MARGIN_SECONDS = 1.0


class Members:
    """Of the output called `name`. `changed` is called when there are others, or one may be tried again."""

    def __init__(
        self,
        config: HttpOutputConfig,
        *,
        name: str,
        metrics: Metrics,
        tls: ClientTls,
        discovery: Discovery,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._name = name
        self._metrics = metrics
        self._tls = tls
        self._discovery = discovery
        self._clock = clock
        self._changed = changed
        self._log = logging.getLogger(name)
        self._endpoints: dict[Target, Endpoint] = {}
        self._connections: dict[Endpoint, Connection] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._finding = asyncio.Lock()
        self._tending = Tending(self._log)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._endpoints.values())

    def __len__(self) -> int:
        return len(self._endpoints)

    def connection(self, endpoint: Endpoint) -> Connection:
        """To one of them, or to one that is leaving."""
        return self._connections[endpoint]

    async def find_first(self) -> None:
        """Return once there is an endpoint; raises Unavailable where there is none."""
        async with self._finding:
            if self._endpoints:
                return
            pause = await self._find()
            if not self._endpoints:
                urls = ", ".join(str(Target(url)) for url in self._config.endpoints)  # a query may hold a key
                raise Unavailable(f"{urls}: DNS knows no address of it; check DNS, or the host in url")
            if not self._discovery.is_fixed:
                self._tending.start(self._find, after_seconds=pause)
            if self._config.health is not None:
                health = self._config.health
                self._tending.start(lambda: self._check_all(health))
            if self._config.outliers.enabled and (len(self._endpoints) > 1 or not self._discovery.is_fixed):
                self._tending.start(self._compare, after_seconds=self._config.outliers.every)

    async def aclose(self) -> None:
        """Close all connections, those under way too; safe at any time."""
        endpoints, self._endpoints = self._endpoints, {}
        for endpoint in endpoints.values():
            endpoint.retire()  # before any wait: after a long one its labels are those of the output's successor
        await self._tending.aclose()
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        connections, self._connections = self._connections, {}
        await asyncio.gather(*(connection.aclose() for connection in connections.values()))

    async def _find(self) -> float:
        found = await self._discovery.targets()
        before = set(self._endpoints)
        for target in before.difference(found.values):
            self._let_go(self._endpoints.pop(target))
        known = {target: self._endpoints.get(target) or self._new(target) for target in found.values}
        if before and before != set(known):
            names = ", ".join(map(str, known))
            self._log.info("endpoints are now: %s", names)
        self._endpoints = known
        self._changed()
        return found.ttl_seconds

    def _new(self, target: Target) -> Endpoint:
        endpoint = Endpoint(target, self._config, name=self._name, metrics=self._metrics)
        self._connections[endpoint] = Connection(target, self._config, tls=self._tls, clock=self._clock)
        return endpoint

    def _let_go(self, endpoint: Endpoint) -> None:
        endpoint.retire()
        task = asyncio.create_task(self._close_when_idle(endpoint))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _close_when_idle(self, endpoint: Endpoint) -> None:
        await asyncio.sleep(self._config.request_timeout + _MARGIN_SECONDS)  # by then each request has ended
        await self._connections.pop(endpoint).aclose()

    async def _check_all(self, health: HealthConfig) -> float:
        await asyncio.gather(*(self._check(endpoint, health) for endpoint in self))
        return health.every

    async def _check(self, endpoint: Endpoint, health: HealthConfig) -> None:
        parts = urlsplit(endpoint.target.url)
        url = f"{parts.scheme}://{parts.netloc}{health.path}"
        connection = self._connections[endpoint]
        is_well = await connection.is_well(url, expect=health.expect, timeout_seconds=health.timeout)
        endpoint.checked(is_well, self._clock())
        self._changed()

    async def _compare(self) -> float:
        now = self._clock()
        inside = {endpoint: endpoint.tally for endpoint in self if not endpoint.is_ejected(now)}
        verdicts = outliers(inside, self._config.outliers, out_already=len(self) - len(inside))
        for endpoint in self:
            endpoint.compared(verdicts.get(endpoint), now)
        self._changed()
        return self._config.outliers.every
