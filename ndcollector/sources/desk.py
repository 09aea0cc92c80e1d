"""What operators ask of the sources, for the admin routes: rows with what was lost of them, `expect`, `forget`.

Promises: what was changed is in the file when the answer is given (or the log says why it is not, ledger.py), and in
the audit trail with the user id that the kernel gave for who asked. Refuses: HTTP.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from ndagent.core.supervision import in_words
from ndcollector.audit import Audit
from ndcollector.sources.sources import Sources

log = logging.getLogger("sources")


class SourcesDesk:
    """`lost` gives events that an output gave up or could not deliver, by sender; `commit` is the ledger's."""

    def __init__(
        self,
        sources: Sources,
        *,
        lost: Callable[[], Mapping[str, int]],
        commit: Callable[[], Awaitable[None]],
        audit: Audit,
    ) -> None:
        self._sources = sources
        self._lost = lost
        self._commit = commit
        self._audit = audit

    def rows(self, pattern: str | None, *, only_quiet: bool) -> list[dict[str, object]]:
        """See Sources.plain; of a channel it is not known what was lost."""
        lost = self._lost()
        found = self._sources.plain(pattern, only_quiet=only_quiet)
        return [{**row, "lost": None if row["channel"] else lost.get(str(row["name"]), 0)} for row in found]

    async def expect(self, name: str, channel: str, seconds: float, *, uid: int | None) -> dict[str, object]:
        """See Sources.expect."""
        row = self._sources.expect(name, channel, seconds)
        await self._commit()
        await self._note("source_expected", name=name, channel=channel, seconds=seconds, uid=uid)
        return row

    async def forget(self, name: str, channel: str | None, *, uid: int | None) -> dict[str, object]:
        """See Sources.forget."""
        count = self._sources.forget(name, channel)
        await self._commit()
        await self._note("source_forgotten", name=name, channel=channel, sources=count, uid=uid)
        return {"forgotten": count}

    async def _note(self, kind: str, **fields: object) -> None:
        try:
            await asyncio.to_thread(lambda: self._audit.record(kind, **fields))
        except OSError as error:
            log.error("the audit trail cannot be written: %s", in_words(error))
