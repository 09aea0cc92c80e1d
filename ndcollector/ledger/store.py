"""ledger.db: the sums on disk, one SQLite file that one thread of the daemon writes and anybody may read.

Promises: a `write` is one transaction, durable when it returns (WAL, synchronous FULL: with NORMAL a power cut would
take back minutes of sums whose cursors stay, while a sync a second costs nothing that shows); a file of a newer version
is left alone and refused; one that is damaged is moved to `quarantine/`, never deleted.
Refuses: knowing what the sums mean (books.py), trying again (ledger.py).

The tables are documented, column by column, in docs/ledger.md; times are Unix seconds, or nanoseconds in `…_ns`.
"""

import os
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ndagent.core.spool.position import Position
from ndcollector.ledger.books import COLUMNS, Account, Stream, ToCount
from ndcollector.ledger.origins import PSEUDO
from ndcollector.sources import rows as source_rows
from ndcollector.sources.changes import SourceChanges

FILE = "ledger.db"
QUARANTINE = "quarantine"
VERSION = 1
BUSY_SECONDS = 2.0
KEPT_CLOSED = 64
"""Accounts, and as many spools, of which the sums stay though they can no longer change; the oldest go first."""

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PRIMARY_CODE = 0xFF  # extended result codes keep the primary one in the low byte (sqlite.org/rescode.html)
_POSITION = "sequence, start, filtered, dead_lettered, quarantined, evicted, replayed, replay_until, resume_at"

_TABLES = """
CREATE TABLE origins (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE spools (
    id INTEGER PRIMARY KEY, stream TEXT NOT NULL, spool_ids TEXT NOT NULL, position INTEGER NOT NULL,
    opened_at REAL NOT NULL, closed_at REAL, closed_why TEXT NOT NULL
);
CREATE TABLE received (
    spool INTEGER NOT NULL, origin INTEGER NOT NULL, events INTEGER NOT NULL,
    first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, PRIMARY KEY (spool, origin)
) WITHOUT ROWID;
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY, spool INTEGER NOT NULL, output TEXT NOT NULL, opened_at REAL NOT NULL, closed_at REAL,
    closed_why TEXT NOT NULL, generation INTEGER NOT NULL, sequence INTEGER NOT NULL, start INTEGER NOT NULL,
    filtered INTEGER NOT NULL, dead_lettered INTEGER NOT NULL, quarantined INTEGER NOT NULL, evicted INTEGER NOT NULL,
    replayed INTEGER NOT NULL, replay_until INTEGER NOT NULL, resume_at INTEGER NOT NULL
);
CREATE TABLE fates (
    account INTEGER NOT NULL, origin INTEGER NOT NULL, before INTEGER NOT NULL, delivered INTEGER NOT NULL,
    filtered INTEGER NOT NULL, dead_lettered INTEGER NOT NULL, quarantined INTEGER NOT NULL, evicted INTEGER NOT NULL,
    PRIMARY KEY (account, origin)
) WITHOUT ROWID;
CREATE TABLE to_count (
    id INTEGER PRIMARY KEY, stream TEXT NOT NULL, kind TEXT NOT NULL, first INTEGER NOT NULL, until INTEGER NOT NULL,
    account INTEGER NOT NULL, accounts_below INTEGER NOT NULL
);
CREATE TABLE dropped (input TEXT NOT NULL, reason TEXT NOT NULL, events INTEGER NOT NULL, PRIMARY KEY (input, reason))
"""


class LedgerError(Exception):
    """The file cannot be used now; the text says why."""


class DamagedLedger(LedgerError):
    """The file is no database any more; `set_aside` makes room for a new one."""


class NewerLedger(LedgerError):
    """A later version of the program wrote it."""


class SumRows(NamedTuple):
    """Sums of some origins: their numbers, and whole columns, copied so that a thread may read them."""

    owner: int
    origins: Sequence[int]
    columns: "tuple[array[int], ...]"

    def rows(self) -> Iterator[tuple[int, ...]]:
        """(owner, origin, sums …)."""
        for origin in self.origins:
            sums = (column[origin] if origin < len(column) else 0 for column in self.columns)
            yield (self.owner, origin, *sums)


@dataclass(slots=True)
class Changes:
    """What one transaction writes."""

    names: list[tuple[int, str]] = field(default_factory=list)
    spools: list[tuple[Any, ...]] = field(default_factory=list)
    accounts: list[tuple[Any, ...]] = field(default_factory=list)
    received: list[SumRows] = field(default_factory=list)
    fates: list[SumRows] = field(default_factory=list)
    to_count: list[ToCount] | None = None  # all of them; None: as they are
    dropped: list[tuple[str, str, int]] = field(default_factory=list)
    sources: SourceChanges | None = None

    def add_stream(self, stream: Stream, *, everything: bool) -> None:
        """What is new of a stream and its accounts; they count as written from here on."""
        ids = " ".join(stream.ids)
        times = (stream.opened_at, stream.closed_at, stream.closed_why)
        self.spools.append((stream.number, stream.stream, ids, stream.position, *times))
        columns = (stream.received.values[:], stream.first_ns[:], stream.last_ns[:])
        origins = range(len(columns[0])) if everything else sorted(stream.dirty)
        stream.dirty.clear()
        if origins:
            self.received.append(SumRows(stream.number, origins, columns))
        for account in stream.accounts.values():
            self.add_account(account, stream.number, everything=everything)

    def add_account(self, account: Account, spool: int, *, everything: bool) -> None:
        """What is new of an account."""
        position = account.position
        counters = [getattr(position, name) for name in _POSITION.split(", ")]
        times = (account.opened_at, account.closed_at, account.closed_why)
        self.accounts.append((account.number, spool, account.output, *times, account.generation, *counters))
        most = max(len(column.values) for column in account.columns)
        origins = range(most) if everything else sorted(account.dirty)
        account.dirty.clear()
        if origins:
            columns = tuple(column.values[:] for column in account.columns)
            self.fates.append(SumRows(account.number, origins, columns))


@dataclass(slots=True)
class Loaded:
    """What a file holds: closed streams and accounts are not in it."""

    names: list[str] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    to_count: list[ToCount] = field(default_factory=list)
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)
    next_number: int = 1  # of spools, accounts and ranges alike
    sources: list[tuple[Any, ...]] = field(default_factory=list)  # see sources/rows.py
    said: tuple[str, int] | None = None


class Store:
    """One connection. Open it in the thread that uses it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Raises LedgerError, OSError."""
        self.path = path
        try:
            self._database = _connect(path, read_only=read_only)
        except sqlite3.Error as error:
            raise explained(error, path) from error

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def load(self) -> Loaded:
        """All open sums. Raises LedgerError."""
        try:
            return _load(self._database)
        except sqlite3.Error as error:
            raise explained(error, self.path) from error
        except (ValueError, TypeError, IndexError, OverflowError) as error:  # rows that no version of this wrote
            raise DamagedLedger(f"{self.path}: {error}") from error

    def write(self, changes: Changes) -> None:
        """One transaction; durable on return, or nothing happened. Raises LedgerError."""
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                _write(database, changes)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise explained(error, self.path) from error

    def closed(self) -> list[tuple[Any, ...]]:
        """(stream, output, closed_at, why, sums of FATES) of each account that can change no more."""
        query = (
            "SELECT s.stream, a.output, coalesce(a.closed_at, s.closed_at), "
            "CASE WHEN a.closed_at IS NULL THEN s.closed_why ELSE a.closed_why END, "
            "sum(f.delivered), sum(f.filtered), sum(f.dead_lettered), sum(f.quarantined), sum(f.evicted) "
            "FROM accounts a JOIN spools s ON s.id = a.spool LEFT JOIN fates f ON f.account = a.id "
            "WHERE a.closed_at IS NOT NULL OR s.closed_at IS NOT NULL GROUP BY a.id ORDER BY a.id"
        )
        try:
            return list(self._database.execute(query))
        except sqlite3.Error as error:
            raise explained(error, self.path) from error


def explained(error: sqlite3.Error, path: Path) -> LedgerError:
    """The error as one that a person can act on."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & _PRIMARY_CODE in _DAMAGE:
        return DamagedLedger(f"{path}: damaged ({error})")
    return LedgerError(f"{path}: {error}")


def set_aside(path: Path, *, now: float) -> Path:
    """Move the file and its write-ahead log to quarantine; gives where it is now. Raises OSError."""
    directory = path.parent / QUARANTINE
    directory.mkdir(mode=0o700, exist_ok=True)
    stem = f"ledger-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S}"
    target = directory / f"{stem}-{len(list(directory.glob(f'{stem}*.db'))):03}.db"
    for suffix in ("-shm", "-wal", ""):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(target.with_name(target.name + suffix))
    return target


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    if read_only:
        database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    else:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
        database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _prepare(database, path, read_only=read_only)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise NewerLedger(f"{path}: has version {version}, this program knows {VERSION}")
    if not read_only:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        _make_tables(database, version)
        for statement in source_rows.TABLES.split(";\n"):
            database.execute(statement)
    elif version != VERSION:
        raise DamagedLedger(f"{path}: holds no ledger")


def _make_tables(database: sqlite3.Connection, version: int) -> None:
    if version == VERSION:
        return
    database.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";\n"):
        database.execute(statement)
    database.executemany("INSERT INTO origins VALUES (?, ?)", enumerate(PSEUDO))
    database.execute(f"PRAGMA user_version = {VERSION}")
    database.execute("COMMIT")


def _write(database: sqlite3.Connection, changes: Changes) -> None:
    database.executemany(_put("origins", 2), changes.names)
    database.executemany(_put("spools", 7), changes.spools)
    database.executemany(_put("accounts", 16), changes.accounts)
    for sums in changes.received:
        database.executemany(_put("received", 5), sums.rows())
    for sums in changes.fates:
        database.executemany(_put("fates", 2 + len(COLUMNS)), sums.rows())
    database.executemany(_put("dropped", 3), changes.dropped)
    if changes.sources is not None:
        _write_sources(database, changes.sources)
    if changes.to_count is not None:
        database.execute("DELETE FROM to_count")
        rows = [
            (job.number, job.stream, job.kind, job.first, job.end, job.account, job.accounts_below)
            for job in changes.to_count
        ]
        database.executemany(_put("to_count", 7), rows)
    if any(row[4] is not None for row in changes.accounts) or any(row[5] is not None for row in changes.spools):
        _forget_closed(database)


def _write_sources(database: sqlite3.Connection, changes: SourceChanges) -> None:
    if changes.everything:
        database.execute("DELETE FROM sources")
    database.executemany(source_rows.DELETE, changes.gone)
    database.executemany(source_rows.PUT, changes.rows)
    if changes.said is not None:
        database.execute(source_rows.PUT_SAID, changes.said)


def _put(table: str, columns: int) -> str:
    return f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * columns)})"  # noqa: S608 - constants


def _forget_closed(database: sqlite3.Connection) -> None:
    closed = "closed_at IS NOT NULL"
    spools = f"SELECT id FROM spools WHERE {closed} ORDER BY closed_at DESC LIMIT -1 OFFSET {KEPT_CLOSED}"  # noqa: S608 - constants
    accounts = f"SELECT id FROM accounts WHERE {closed} ORDER BY closed_at DESC LIMIT -1 OFFSET {KEPT_CLOSED}"  # noqa: S608 - constants
    database.execute(f"DELETE FROM spools WHERE id IN ({spools})")  # noqa: S608 - constants
    database.execute("DELETE FROM received WHERE spool NOT IN (SELECT id FROM spools)")
    database.execute("DELETE FROM accounts WHERE spool NOT IN (SELECT id FROM spools)")
    database.execute(f"DELETE FROM accounts WHERE id IN ({accounts})")  # noqa: S608 - constants
    database.execute("DELETE FROM fates WHERE account NOT IN (SELECT id FROM accounts)")


def _load(database: sqlite3.Connection) -> Loaded:
    loaded = Loaded()
    for number, name in database.execute("SELECT id, name FROM origins ORDER BY id"):
        if number >= len(PSEUDO):
            if number != len(PSEUDO) + len(loaded.names):
                raise ValueError(f"origin {number} is out of order")
            loaded.names.append(name)
    for table in ("spools", "accounts", "to_count"):
        (highest,) = database.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()  # noqa: S608 - constants
        loaded.next_number = max(loaded.next_number, highest + 1)
    query = "SELECT id, stream, spool_ids, opened_at, position FROM spools WHERE closed_at IS NULL ORDER BY id"
    for number, name, ids, opened_at, position in database.execute(query).fetchall():
        stream = Stream(number, name, tuple(ids.split()), opened_at, position)
        _load_stream(database, stream, most=len(PSEUDO) + len(loaded.names))
        loaded.streams.append(stream)
    for number, stream_name, kind, first, end, account, below in database.execute("SELECT * FROM to_count ORDER BY id"):
        loaded.to_count.append(ToCount(number, stream_name, kind, first, end, account, below))
    for name, reason, events in database.execute("SELECT input, reason, events FROM dropped"):
        loaded.dropped[name, reason] = int(events)
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'sources'").fetchone():  # not in an older one's
        loaded.sources = database.execute(source_rows.SELECT).fetchall()
        loaded.said = database.execute(source_rows.SELECT_SAID).fetchone()
    return loaded


def _load_stream(database: sqlite3.Connection, stream: Stream, *, most: int) -> None:
    query = "SELECT origin, events, first_ns, last_ns FROM received WHERE spool = ? ORDER BY origin"
    for origin, events, first_ns, last_ns in database.execute(query, (stream.number,)):
        _check_origin(origin, most)
        stream.received.add(origin, events)
        if last_ns:
            stream.seen(origin, first_ns, last_ns)
    query = f"SELECT id, output, opened_at, generation, {_POSITION} FROM accounts WHERE spool = ? AND closed_at IS NULL"  # noqa: S608 - constants
    for number, output, opened_at, generation, *counters in database.execute(query, (stream.number,)).fetchall():
        account = Account(number, output, Position(*counters), opened_at, generation=generation)
        for origin, *sums in _sums(database, number):
            _check_origin(origin, most)
            for column, total in enumerate(sums):
                account.add(column, origin, total)
        account.dirty.clear()
        stream.accounts[output] = account


def _sums(database: sqlite3.Connection, account: int) -> Iterable[tuple[int, ...]]:
    query = (
        "SELECT origin, before, delivered, filtered, dead_lettered, quarantined, evicted FROM fates "
        "WHERE account = ? ORDER BY origin"
    )
    return database.execute(query, (account,))


def _check_origin(origin: int, most: int) -> None:
    if not 0 <= origin < most:
        raise ValueError(f"origin {origin} has no name")
