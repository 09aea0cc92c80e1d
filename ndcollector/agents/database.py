"""The inventory in a thread of its own, for the daemon: calls in order, a damaged file replaced while running.

Promises: `call` runs one function on the inventory at a time; a busy or full disk is InventoryError and nothing has
changed; a damaged file is set aside (never deleted), said once at ERROR, and replaced by one with what memory and the
PKI's index still know, after which the call is made again. Refuses: the loop's time: nothing here blocks it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ndagent.core import messages
from ndagent.core.log import Throttle
from ndcollector.agents import schema
from ndcollector.agents.inventory import Inventory
from ndcollector.agents.recovery import IndexWatch, Reconciled
from ndcollector.agents.rows import Remembered
from ndcollector.agents.schema import DamagedInventory, InventoryError
from ndcollector.pki.store import PkiError

log = logging.getLogger("agents")

T = TypeVar("T")

_SAY_SECONDS = 3600.0


class Database:
    """`pki` is the directory of the built-in PKI (it may not exist); `remembered` gives what memory still has."""

    def __init__(
        self,
        state_dir: Path,
        pki: Path,
        *,
        clock: Callable[[], float],
        remembered: Callable[[], Iterable[Remembered]],
    ) -> None:
        self.path = state_dir / schema.FILE
        self._index = IndexWatch(pki)
        self._clock = clock
        self._remembered = remembered
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inventory")
        self._inventory: Inventory | None = None
        self._trouble = Throttle(_SAY_SECONDS, clock=clock)

    async def open(self) -> None:
        """Open or make the file; raises InventoryError for a newer version, OSError."""
        await self._in_thread(self._open)

    async def call(self, function: Callable[[Inventory], T]) -> T:
        """The function's value, once it has run in the thread; raises InventoryError and what the function raises."""
        return await self._in_thread(lambda: self._call(function))

    async def reconcile_if_changed(self) -> bool:
        """Look whether the PKI's index has changed and bring the inventory up to it; True if that changed anything."""
        return await self._in_thread(self._reconcile_if_changed)

    async def aclose(self) -> None:
        """Finish what was called, and close the file."""
        await self._in_thread(self._close)
        self._thread.shutdown()

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    # ---- in the thread

    def _open(self) -> None:
        try:
            self._inventory = Inventory(self.path)
            self._inventory.check()
        except DamagedInventory as error:
            self._replace(error)
        try:
            self._reconcile_if_changed()
        except DamagedInventory:
            raise
        except InventoryError as error:  # a full disk, say: no reason not to deliver what fills it
            log.error("agents cannot be compared with the PKI yet: %s; it is tried again by itself", error)

    def _call(self, function: Callable[[Inventory], T]) -> T:
        if self._inventory is None:
            raise InventoryError(f"{self.path}: not open")
        try:
            return function(self._inventory)
        except DamagedInventory as error:
            self._replace(error)
            return function(self._inventory)

    def _replace(self, error: DamagedInventory) -> None:
        if self._inventory is not None:
            self._inventory.close()
        aside = schema.set_aside(self.path, now=self._clock())
        self._inventory = Inventory(self.path)
        self._inventory.restore(self._remembered(), now=self._clock())
        self._index.start_anew()
        self._reconcile_if_changed()
        log.error(
            "the agents' inventory was damaged and is set aside as %s (%s); agents that hold a certificate are known "
            "again, but tokens are gone: make new ones with `ndcollector agents token create`", aside, error,
            extra=messages.INVENTORY_DAMAGED,
        )  # fmt: skip

    def _reconcile_if_changed(self) -> bool:
        if self._inventory is None:
            return False
        try:
            done = self._index.reconcile(self._inventory, now=self._clock())
        except PkiError as error:
            if self._trouble.allow("index") is not None:
                log.error("agents cannot be compared with the PKI: %s", error)
            done = Reconciled()
        if done.added:
            log.warning("%d agents were found in the PKI's index only, and added", len(done.added))
        for agent_id in done.revoked:
            log.info("agent revoked through the PKI", extra={"agent_id": agent_id})
        return bool(done.added or done.revoked)

    def _close(self) -> None:
        if self._inventory is not None:
            self._inventory.close()
            self._inventory = None
