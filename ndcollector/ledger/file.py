"""The ledger's file in a thread of its own: opened, written, and set aside where it is damaged.

Promises: calls run one at a time and never on the loop; a damaged file is moved to `quarantine/` and a new one made; a
file that could not be read when it was opened is set aside before anything else is written to its place; a newer
version's is left alone (`is_refused`). Refuses: trying again and telling anybody; both are for who calls.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ndcollector.ledger.store import Changes, DamagedLedger, LedgerError, Loaded, NewerLedger, Store, set_aside

log = logging.getLogger("ledger")

T = TypeVar("T")


class LedgerFile:
    """`is_loaded` says whether the file holds what `load` gave, `trouble` why it could not be used then."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self.path = path
        self.store: Store | None = None
        self.is_loaded = True
        self.is_refused = False
        self.trouble: str | None = None
        self._was_unread = False
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def load(self) -> Loaded:
        """What it holds; nothing where it cannot be used. Never raises for the file's sake."""
        return await self._in_thread(self._load)

    async def write(self, changes: Changes) -> None:
        """One transaction. Raises LedgerError (DamagedLedger: see start_anew), OSError."""
        await self._in_thread(lambda: self._write(changes))

    async def start_anew(self, error: DamagedLedger) -> None:
        """Set the damaged file aside and make a new one, to which everything is to be written. Raises as `write`."""
        await self._in_thread(lambda: self._start_anew(error))

    async def closed(self) -> list[tuple[Any, ...]]:
        """See Store.closed; nothing where there is no file now."""
        store = self.store
        if store is None:
            return []
        try:
            return await self._in_thread(store.closed)
        except LedgerError as error:
            log.warning("closed accounts cannot be read: %s", error)
            return []

    async def aclose(self) -> None:
        """After what is under way; nothing may be asked any more."""
        store, self.store = self.store, None
        if store is not None:
            await self._in_thread(store.close)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    # ---- in the thread

    def _load(self) -> Loaded:
        try:
            self.store = Store(self.path)
            return self.store.load()
        except NewerLedger as error:
            self.is_refused = True
            self.trouble = f"{error}; it is left alone, and this run is not in it. Install the newer version again"
        except DamagedLedger as error:
            self.is_loaded = False
            try:
                self._start_anew(error)
            except (LedgerError, OSError) as failed:
                self._was_unread = True
                self.trouble = f"{error}, and cannot be replaced: {failed}"
        except (LedgerError, OSError) as error:
            self._let_go()
            self.is_loaded, self._was_unread = False, True
            self.trouble = str(error)
        return Loaded()

    def _write(self, changes: Changes) -> None:
        if self.store is None:
            if self._was_unread and self.path.exists():  # what stands in it and what is in memory are not one ledger
                set_aside(self.path, now=self._clock())
            self._was_unread = False
            self.store = Store(self.path)
        self.store.write(changes)

    def _start_anew(self, error: DamagedLedger) -> None:
        self._let_go()
        aside = set_aside(self.path, now=self._clock())
        log.error("%s; it is set aside as %s and made anew. Check the disk (dmesg, smartctl)", error, aside)
        self.store = Store(self.path)

    def _let_go(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = None
