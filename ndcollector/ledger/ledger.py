"""The ledger of a running collector: told of commits, settled events and evictions, it keeps ledger.db up to date.

    spool ──witness──► received ┐
    feeds ──settled──► fates    ├─ sums in memory ──commit──► one transaction in a thread ──► then cursors are saved
    spool ──mourn────► evicted  ┘      └─ and the sources' rows with it (ndcollector/sources)

Promises:
  * a cursor is saved only after what it has counted is in the file, by name, unless the file cannot be written: then
    the log says so once, the gauge nd_ledger_saved is 0, deliveries go on, and everything is written when it can be
    (all sums are in memory). A crash before that costs at most names: the next start counts from the spool, whose
    segments are held for it as long as there is room;
  * `commit` returns within COMMIT_SECONDS, whatever the disk does; callers at the same time share one transaction;
  * names of what is evicted are in the file before the segment is deleted (or after EVICTION_SECONDS without them);
  * a damaged file is set aside and written anew from memory; at a start, from the spools;
  * a reload changes nothing here: spools and cursors outlive dispatchers.
Refuses: counting repeats that an operator asked for (they stand under (repeats)), and naming what cannot be known.
(Past 400 lines: one set of sums that commits, cursors and counts all change; everything separable stands beside it.)
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ndagent.core import messages
from ndagent.core.instruments import values
from ndagent.core.metrics import Metrics
from ndagent.core.spool import Cursor, Spool
from ndagent.core.spool.files import Files, OsFiles
from ndagent.core.spool.position import Position
from ndagent.core.spool.room import GivenUp
from ndagent.core.spool.segment import spool_id_text
from ndagent.core.tally import Tally
from ndcollector.ledger.books import (
    DEAD_LETTERED,
    EVICTED,
    QUARANTINED,
    Account,
    Stream,
    Tallied,
    ToCount,
    Unnamed,
    frontier,
)
from ndcollector.ledger.config import LedgerConfig
from ndcollector.ledger.counting import Counted, count_range, count_segment
from ndcollector.ledger.file import LedgerFile
from ndcollector.ledger.fresh import Fresh
from ndcollector.ledger.opening import SpoolView, begin_account, close_account, may_follow, open_stream
from ndcollector.ledger.origins import Origins
from ndcollector.ledger.report import Page, Report
from ndcollector.ledger.store import FILE, Changes, DamagedLedger, LedgerError, Loaded
from ndcollector.sources.alerts import STREAM as ALERTS
from ndcollector.sources.alerts import said_since
from ndcollector.sources.sources import Sources

log = logging.getLogger("ledger")

COMMIT_SECONDS = 5.0
"""An fsync takes milliseconds; a disk that needs longer than this is in trouble, and cursors must not wait for it."""
EVICTION_SECONDS = 1.0
"""How long appends that need room may wait for the names of what is given up."""
WRITE_EVERY_SECONDS = 1.0
RECOUNT_EVERY_SECONDS = 60.0
RECOUNT_EVENTS = 1_000_000
"""Reading the heads of more would be work that shows; an output that catches up is looked at then."""
_START_SECONDS = 2.0  # what a crash left is counted within milliseconds; more than that goes on beside the inputs


class Ledger:
    """One per collector: `open` after the spools, `run` beside them, `aclose` after they are closed."""

    def __init__(
        self,
        state_dir: Path,
        *,
        config: LedgerConfig,
        metrics: Metrics,
        clock: Callable[[], float],
        files: Files | None = None,
        sources: Sources | None = None,
    ) -> None:
        self._sources = sources
        self.path = state_dir / FILE
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._files = files or OsFiles()
        self._file = LedgerFile(self.path, clock=clock)
        self._origins = Origins(config.max_origins)
        self._streams: dict[str, Stream] = {}
        self._spools: dict[str, Spool] = {}
        self._fresh: dict[str, Fresh] = {}
        self._numbers = itertools.count(1)
        self._jobs: list[ToCount] = []
        self._closed_streams: list[Stream] = []  # until they are written
        self._closed_accounts: list[tuple[int, Account]] = []
        self._dropped: dict[tuple[str, str], int] = {}
        self._names_written = 0
        self._write_everything = False
        self._unsaved_since: float | None = None
        self._closing = False
        self._waiting: list[asyncio.Future[None]] = []
        self._recounting: tuple[str, int] | None = None
        self._recount_at = 0.0
        self._writing: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- life

    async def open(self, spools: Mapping[str, Spool]) -> None:
        """Load the file, take up what the spools say, and go on from there; never raises for the file's sake."""
        self._loop = asyncio.get_running_loop()
        loaded = await self._file.load()
        if self._file.trouble is not None:
            self._trouble(self._file.trouble)
        self._write_everything = not self._file.is_loaded
        self._origins = Origins(self._config.max_origins, loaded.names)
        self._names_written = len(self._origins) if not self._write_everything else 0
        self._numbers = itertools.count(loaded.next_number)
        self._dropped = loaded.dropped
        known = {stream.stream: stream for stream in loaded.streams}
        for name, spool in spools.items():
            self._open_stream(name, spool, known.get(name), [job for job in loaded.to_count if job.stream == name])
        self._hold()
        await self._load_sources(loaded)
        self._counting = asyncio.create_task(self._count_jobs(), name="ledger counts")
        await asyncio.wait({self._counting}, timeout=_START_SECONDS)
        await self.commit()
        for spool in spools.values():
            for cursor in spool.cursors.values():
                if cursor.unsaved:  # it goes on where its account was, and a second crash must find it there
                    await cursor.save()

    async def run(self) -> None:
        """Write what is new every second, until cancelled: an output that delivers nothing asks for no commit."""
        while True:
            await asyncio.sleep(WRITE_EVERY_SECONDS)
            if asyncio.get_running_loop().time() >= self._recount_at:
                self._count_soon()
            await self.commit()

    async def aclose(self) -> None:
        """Write the rest, let go of the file; never raises."""
        self._closing = True
        if self._sources is not None:
            self._sources.save_all()
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.wait({self._counting})
        await self.commit()
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=COMMIT_SECONDS)
        await asyncio.wait({asyncio.ensure_future(self._file.aclose())}, timeout=COMMIT_SECONDS)
        self._loop = None

    # ---- what it is told

    def settled(self, stream: str, cursor: Cursor, before: Position, tally: Tally) -> None:
        """See Journal. A bug in here must not hold up a delivery: the proof will show what it cost."""
        page = self._streams.get(stream)
        if page is None:
            return
        try:
            self._settled(page, cursor, before, tally)
        except Exception:
            log.exception(
                "the ledger does not add up for output %s any more; please report this", cursor.name,
                extra=messages.LEDGER_WRONG,
            )

    def _settled(self, page: Stream, cursor: Cursor, before: Position, tally: Tally) -> None:
        account = self._follow(page, cursor, before)
        numbered = self._origins.numbered
        named = Tallied(numbered(tally.settled), numbered(tally.filtered), numbered(tally.dead_lettered))
        self._take_up(page, account, account.follow(cursor.position, named))

    async def commit(self) -> None:
        """See Journal."""
        if self._loop is None:
            return
        done = self._loop.create_future()
        self._waiting.append(done)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_waiting(), name="ledger writes")
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await done
        except TimeoutError:
            self._trouble(f"{self.path}: a write takes longer than {COMMIT_SECONDS:g}s")

    def mourn(self, stream: str, files: Files, given_up: Sequence[GivenUp]) -> None:
        """See Spool.open: in the commit thread, while the files are still there."""
        if self._loop is None:
            return
        segments: dict[tuple[Path, int, int], Counted] = {}
        for lost in given_up:
            first = max(lost.first, frontier(lost.before))
            if first >= lost.end:
                continue
            key = (lost.segment.path, first, lost.end)
            if key not in segments:
                segments[key] = Counted()
                try:
                    count_segment(files, lost.segment, first, lost.end, segments[key])
                except OSError as error:
                    log.warning("%s cannot be read: %s; whose events were lost is not known", key[0], error)
            job = self._evicted(stream, lost.cursor, segments[key])
            told = asyncio.run_coroutine_threadsafe(job, self._loop)
            with suppress(TimeoutError):  # it is told all the same, a little later
                told.result(EVICTION_SECONDS)

    # ---- what it tells

    async def report(self, *, origin: str | None, output: str | None, stream: str | None) -> dict[str, object]:
        """Rows and proofs as plain data (report.py)."""
        self._follow_cursors()
        pages = [
            Page(self._streams[name].copy(), spool.next_sequence, {c.name: c.position for c in spool.cursors.values()})
            for name, spool in self._spools.items()
            if name in self._streams
        ]
        closed = await self._file.closed()
        report = Report(
            pages, names=list(self._origins.names), jobs=list(self._jobs), dropped=self._all_dropped(),
            closed=closed, unsaved_since=self._unsaved_since,
        )  # fmt: skip
        return await asyncio.to_thread(report.plain, origin=origin, output=output, stream=stream)

    def lost(self) -> dict[str, int]:
        """Events evicted, dead-lettered or quarantined, by sender: of each stream at the output that lost most."""
        found: dict[str, int] = {}
        for page in self._streams.values():
            worst: dict[int, int] = {}
            for account in page.accounts.values():
                columns = [account.columns[column] for column in (DEAD_LETTERED, QUARANTINED, EVICTED)]
                for origin in range(max(len(column.values) for column in columns)):
                    worst[origin] = max(worst.get(origin, 0), sum(column[origin] for column in columns))
            for origin, events in worst.items():
                name = self._origins.names[origin]
                found[name] = found.get(name, 0) + events
        return found

    # ---- opening

    def _open_stream(self, name: str, spool: Spool, known: Stream | None, jobs: list[ToCount]) -> None:
        view = SpoolView(
            name,
            frozenset(map(spool_id_text, spool.known_ids)),
            tuple(dict.fromkeys(map(spool_id_text, (spool.identity, spool.own_id)))),
            spool.first_sequence,
            spool.next_sequence,
            {cursor.name: (cursor.position, cursor.found) for cursor in spool.cursors.values()},
        )
        opened = open_stream(known, jobs, view, number=self._number, now=self._clock())
        for output, position in opened.resumed.items():
            spool.cursors[output].resume(position)
        self._jobs += opened.jobs
        if opened.closed_stream is not None:
            self._closed_streams.append(opened.closed_stream)
        self._closed_accounts.extend(opened.closed_accounts)
        self._streams[name], self._spools[name] = opened.stream, spool
        self._fresh[name] = Fresh()
        spool.witness = self._fresh[name].take

    def _take_in(self, page: Stream) -> None:
        """Book what was received since the last time; before anybody looks at the sums."""
        fresh = self._fresh[page.stream]
        if fresh.events:
            taken = fresh.let_go()
            if self._sources is not None:
                self._sources.heard(page.stream, taken)
            page.receive(self._origins.numbered(taken.events), fresh.first_ns, fresh.last_ns)
            page.reached(fresh.position)

    async def _load_sources(self, loaded: Loaded) -> None:
        """The sources as they were saved, and what was said of them after that: its records are in the spool."""
        if self._sources is None:
            return
        spool, said = self._spools.get(ALERTS), {}
        if spool is not None and loaded.said is not None and loaded.said[0] == spool_id_text(spool.identity):
            with suppress(OSError):  # a disk that cannot be read is the spool's to report
                said = await asyncio.to_thread(said_since, self._files, spool.directory, loaded.said[1])
        try:
            self._sources.load(loaded.sources, said)
        except (ValueError, TypeError) as error:
            self._write_everything = True
            log.error("%s: sources cannot be read: %s; they are learned anew", self.path, error)
        if spool is not None:
            self._sources.attach(lambda: (spool_id_text(spool.identity), spool.next_sequence))

    # ---- following

    def _take_up(self, page: Stream, account: Account, unnamed: Unnamed | None) -> None:
        if unnamed is not None:
            self._jobs.append(ToCount(self._number(), page.stream, *unnamed, account.number))
            self._count_soon()

    def _follow_cursors(self) -> None:
        """What cursors did without an output: gaps passed, events given up, replays begun, outputs gone and new."""
        for name, page in self._streams.items():
            self._take_in(page)
            cursors = self._spools[name].cursors
            for output in [output for output in page.accounts if output not in cursors]:
                close_account(
                    self._closed_accounts, page, output, "its output is no longer configured", now=self._clock()
                )
            for cursor in cursors.values():
                account = self._follow(page, cursor, cursor.position)
                account.generation = cursor.saved.generation if cursor.saved else 0

    def _follow(self, page: Stream, cursor: Cursor, position: Position) -> Account:
        """The account of a cursor, brought to where that stands; a new one where it did not come from the old place."""
        account = page.accounts.get(cursor.name)
        if account is not None and not may_follow(account.position, position):
            close_account(self._closed_accounts, page, cursor.name, "its cursor began again", now=self._clock())
            account = None
        if account is None:
            self._take_in(page)
            begun = begin_account(page, cursor.name, position, number=self._number, now=self._clock())
            self._jobs += begun
            if begun:
                self._count_soon()
            return page.accounts[cursor.name]
        self._take_up(page, account, account.follow(position))
        return account

    async def _evicted(self, stream: str, output: str, lost: Counted) -> None:
        page = self._streams[stream]
        self._follow_cursors()
        account = page.accounts.get(output)
        if account is not None:
            account.move(EVICTED, self._origins.numbered(lost.events))
        await self.commit()

    # ---- counting what has no name yet

    def _count_soon(self) -> None:
        if not self._closing and (self._counting is None or self._counting.done()):
            self._counting = asyncio.create_task(self._count_jobs(), name="ledger counts")

    async def _count_jobs(self) -> None:
        failed: set[int] = set()
        while jobs := [job for job in self._jobs if job.number not in failed]:
            job = jobs[0]
            directory = self._spools[job.stream].directory
            try:
                counted = await asyncio.to_thread(count_range, self._files, directory, job.first, job.end)
            except OSError as error:
                failed.add(job.number)
                log.warning("%s cannot be read: %s; its events get their names at the next start", directory, error)
                continue
            self._jobs.remove(job)
            take_up_count(self._streams[job.stream], job, counted, self._origins)
        await self._recount()

    async def _recount(self) -> None:
        """Find out what accounts owe to whom where they lost something that had no name: by what is still there."""
        self._recount_at = asyncio.get_running_loop().time() + RECOUNT_EVERY_SECONDS
        for name, page in self._streams.items():
            for account in list(page.accounts.values()):
                self._take_in(page)
                wanted = None if any(job.stream == name for job in self._jobs) else page.recount(account)
                if wanted is None or wanted.end - wanted.first > RECOUNT_EVENTS:
                    continue
                self._recounting = (name, wanted.first)
                with suppress(OSError):
                    spool = self._spools[name]
                    counted = await asyncio.to_thread(
                        count_range, self._files, spool.directory, wanted.first, wanted.end
                    )
                    wanted.take_up(self._origins.numbered(counted.events))
                self._recounting = None

    # ---- writing

    async def _write_waiting(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                if self._file.is_refused:
                    self._follow_cursors()
                    self._hold()
                else:
                    await self._write_now()
            except (LedgerError, OSError) as error:
                self._write_everything = True
                self._trouble(str(error))
            except Exception as bug:
                self._write_everything = True
                self._trouble(repr(bug))
                log.exception("the ledger cannot be written; please report this traceback")
            finally:
                for done in waiting:
                    if not done.done():
                        done.set_result(None)

    async def _write_now(self) -> None:
        """One transaction; into a new file, and with everything, where the old one turns out to be damaged."""
        for is_last in (False, True):
            changes, held = self._changes(), self._held()
            streams, accounts = len(self._closed_streams), len(self._closed_accounts)
            try:
                await self._file.write(changes)
                break
            except DamagedLedger as error:
                if is_last:
                    raise
                self._write_everything = True
                await self._file.start_anew(error)
        del self._closed_streams[:streams], self._closed_accounts[:accounts]
        self._saved()
        self._hold(held)

    def _changes(self) -> Changes:
        self._follow_cursors()
        everything, self._write_everything = self._write_everything, False
        changes = Changes(to_count=list(self._jobs))
        if everything:
            self._names_written = 0
        changes.names = list(enumerate(self._origins.names))[self._names_written :]
        self._names_written = len(self._origins)
        for page in (*self._streams.values(), *self._closed_streams):
            changes.add_stream(page, everything=everything)
        for spool, account in self._closed_accounts:
            changes.add_account(account, spool, everything=everything)
        changes.dropped = [(name, reason, events) for (name, reason), events in self._all_dropped().items()]
        self._metrics.ledger_origins.set(len(self._origins))
        if self._sources is not None:
            changes.sources = self._sources.changes(everything=everything)
        return changes

    def _all_dropped(self) -> dict[tuple[str, str], int]:
        found = dict(self._dropped)
        for labels, events in values(self._metrics.dropped):
            key = (labels["input"], labels["reason"])
            found[key] = self._dropped.get(key, 0) + events
        return found

    def _held(self) -> dict[str, int]:
        """From where on the records of each stream would be needed after a crash now."""
        held = {}
        for name, page in self._streams.items():
            fronts = [frontier(account.position) for account in page.accounts.values()]
            if self._recounting is not None and self._recounting[0] == name:
                fronts.append(self._recounting[1])
            held[name] = min([page.position, *fronts, *(job.first for job in self._jobs if job.stream == name)])
        return held

    def _hold(self, held: Mapping[str, int] | None = None) -> None:
        for name, sequence in (held or self._held()).items():
            self._spools[name].hold(sequence)

    def _saved(self) -> None:
        if self._unsaved_since is not None:
            log.info("%s is written again; it holds everything", self.path, extra=messages.LEDGER_SAVED_AGAIN)
        self._unsaved_since = None
        self._metrics.ledger_saved.set(1)

    def _trouble(self, what: str) -> None:
        self._metrics.ledger_saved.set(0)
        if self._unsaved_since is None:
            self._unsaved_since = self._clock()
            log.error(
                "the ledger per origin is not saved: %s. Deliveries go on and nothing is forgotten while this process "
                "runs; after a crash some events would stand under (unknown). Check the disk", what,
                extra=messages.LEDGER_UNSAVED,
            )  # fmt: skip

    def _number(self) -> int:
        return next(self._numbers)


def take_up_count(page: Stream, job: ToCount, counted: Counted, origins: Origins) -> None:
    """Name what was counted; what was not found stays under (unknown), and the log says how much that is."""
    page.name(job, origins.numbered(counted.events))
    if job.kind == "received":
        for blob, (first_ns, last_ns) in counted.times.items():
            page.seen(origins.number(blob), first_ns, last_ns)
    missing = job.end - job.first - sum(counted.events.values())
    if missing:
        log.warning(
            "%d events of stream %s from sequence %d on are nobody's in the ledger: their records are gone or damaged",
            missing, job.stream, job.first,
        )  # fmt: skip
