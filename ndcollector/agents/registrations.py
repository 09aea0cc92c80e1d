"""Which spool is whose: claimed in memory at once, written together, and durable before anybody is answered.

Promises: `claim` answers at once and never gives a spool of a live agent to another; `settle` returns when the claims
it is asked about are on the disk. Whoever acknowledges (the collector's accept) awaits that, so that no agent is told
that its events are stored while a crash could still give its spool away. A disk that does not take the claims makes
`settle` wait, said once a minute, and is tried again. Of one agent only so many new spools are taken within an hour.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal

from ndagent.core.log import Throttle
from ndagent.wire.status import is_spool_id
from ndcollector.agents.database import Database
from ndcollector.agents.inventory import Inventory
from ndcollector.agents.member import Member
from ndcollector.agents.schema import InventoryError

log = logging.getLogger("agents")

MAX_NEW_SPOOLS = 16
"""Spool ids that one agent may register within `NEW_SPOOLS_SECONDS`."""
NEW_SPOOLS_SECONDS = 3600.0
RETRY_SECONDS = 1.0
CLOSE_SECONDS = 2.0
_SAY_SECONDS = 60.0

Refusal = Literal["foreign_spool", "too_many_spools", "malformed"]


class Registrations:
    """The spools of a fleet. `written` is told what has become durable, for the audit trail."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        written: Callable[[Mapping[str, str]], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._written = written
        self._owners: dict[str, str] = {}
        self._waiting: dict[str, str] = {}  # claimed, not yet durable
        self._writing: asyncio.Task[None] | None = None
        self._trouble = Throttle(_SAY_SECONDS, clock=monotonic)
        self.is_blocked = False
        """Whether the disk, or somebody who holds the file, keeps claims from being written; `settle` waits then."""

    def load(self, owners: dict[str, str]) -> None:
        """What the inventory says; what is claimed and not yet there stays claimed."""
        self._owners = {**owners, **self._waiting}

    def of(self) -> dict[str, list[str]]:
        """Agent → its spools. Called in the inventory's thread, too."""
        found: dict[str, list[str]] = {}
        for spool_id, agent_id in list(self._owners.items()):
            found.setdefault(agent_id, []).append(spool_id)
        return found

    def claim(self, member: Member, spool_id: str, members: Mapping[str, Member]) -> Refusal | None:
        """Whether this spool is this agent's from now on; None means yes."""
        owner = self._owners.get(spool_id)
        if owner == member.id:
            return None
        if not is_spool_id(spool_id):
            return "malformed"
        if owner is not None and owner in members and members[owner].revoked_at is None:
            return "foreign_spool"
        if not member.may_register(self._monotonic(), most=MAX_NEW_SPOOLS, within_seconds=NEW_SPOOLS_SECONDS):
            return "too_many_spools"
        self._owners[spool_id] = self._waiting[spool_id] = member.id
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="registering spools")
        return None

    async def settle(self, spool_ids: Collection[str] | None = None) -> None:
        """Return when these claims (None: all) are durable; costs nothing where none of them waits."""
        while self._writing is not None and (spool_ids is None or not self._waiting.keys().isdisjoint(spool_ids)):
            await asyncio.shield(self._writing)

    async def aclose(self) -> None:
        """Write what waits; give up on what the disk does not take, for which nobody was answered."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=CLOSE_SECONDS)
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})

    async def _write(self) -> None:
        try:
            while self._waiting:
                claims = dict(self._waiting)
                try:
                    await self._database.call(partial(Inventory.register_spools, claims=claims, now=self._clock()))
                except (InventoryError, OSError) as error:
                    self.is_blocked = True
                    if self._trouble.allow("write") is not None:
                        log.error("spools of agents cannot be registered, their events wait: %s", error)
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                self.is_blocked = False
                self._waiting = {key: one for key, one in self._waiting.items() if claims.get(key) != one}
                self._written(claims)
        finally:
            self.is_blocked = False
            self._writing = None
