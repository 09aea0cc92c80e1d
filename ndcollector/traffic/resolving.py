"""What aiohttp asks for addresses when it connects: the one that discovery chose, or the system's.

Promises: an address that discovery chose is the one connected to; any other name is looked up once, however many
connections want it, and after that a new connection uses what is known while the next look-up runs beside it: a dead
name server holds up nobody who has sent before. Refuses: TTLs (the system's look-up has none).
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable

from aiohttp.abc import AbstractResolver, ResolveResult

from ndagent.core.discovery import SYSTEM_SECONDS, Resolve, resolve_host


class Resolver(AbstractResolver):
    """For one endpoint's connections."""

    def __init__(self, address: str | None, *, clock: Callable[[], float], resolve: Resolve = resolve_host) -> None:
        self._address = address
        self._clock = clock
        self._resolve = resolve
        self._known: dict[str, list[str]] = {}
        self._good_until = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - any family will do
    ) -> list[ResolveResult]:
        """See AbstractResolver."""
        if self._address is not None:
            return [_result(host, self._address, port)]
        is_known = host in self._known
        if not is_known or self._clock() >= self._good_until:
            looking = self._look_up_once(host, port)
            if not is_known:
                await asyncio.shield(looking)  # who gives up takes nobody along
        return [_result(host, address, port) for address in self._known[host]]

    async def close(self) -> None:
        """See AbstractResolver."""
        if self._looking is not None:
            self._looking.cancel()

    def _look_up_once(self, host: str, port: int) -> "asyncio.Task[None]":
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_up(host, port))
            self._looking.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits
        return self._looking

    async def _look_up(self, host: str, port: int) -> None:
        """Where it fails, what is known stays in use."""
        self._good_until = self._clock() + SYSTEM_SECONDS
        try:
            self._known[host] = await self._resolve(host, port)
        except UnicodeError as error:
            raise OSError(f"DNS cannot have such a name: {error}") from error


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ipaddress.ip_address(address.partition("%")[0]).version == 6 else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
