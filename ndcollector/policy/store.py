"""What was applied, which version each agent has to run, and what it said about it: `<state_dir>/policy/policy.db`.

Promises:
  * a version number is given out once: the counter is committed (fsync) with what it stands for, and never runs behind
    the clock, so that a database that was lost or restored from a backup does not repeat versions that agents saw;
  * an agent keeps its version as long as its settings stay the same, whatever changes for others;
  * daemon and commands may use it at the same time, each write is one transaction;
  * what root makes belongs to the state directory's owner, as the daemon must write to it.

Refuses: signing, merging, and being the inventory: an agent is here from the first time that a policy was for it.
Every call blocks for a commit's time at most; the daemon calls what may be slow in a thread.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ndcollector.policy.applying import Agent
from ndcollector.policy.layers import Policies

KEPT_APPLIED = 32
MAX_AGENTS = 100_000
BUSY_SECONDS = 10.0
"""How long a call waits for another writer. The daemon calls on its loop and should wait for less."""
_FORMAT = 1
_SCHEMA = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS counter (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS applied (
    version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL, applied_by TEXT NOT NULL, policies TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS agents (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, agent_group TEXT NOT NULL, roles TEXT NOT NULL,
    version INTEGER NOT NULL, digest TEXT NOT NULL,
    in_force INTEGER, result TEXT, message TEXT, since INTEGER) WITHOUT ROWID;
PRAGMA user_version = {_FORMAT};
COMMIT;
"""
_COLUMNS = "id, name, agent_group, roles, version, digest, in_force, result, message, since"


class PolicyStoreError(Exception):
    """The store cannot be used; the message says why."""


class Superseded(Exception):
    """Something was applied since the caller looked: look again."""


@dataclass(frozen=True, slots=True)
class Applied:
    """One `ndcollector policy apply`."""

    version: int
    applied_at: int
    applied_by: str
    policies: Policies


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent said of its policy: the version in force, and what became of the last one that it was sent."""

    in_force: int
    result: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One agent: what it has to run since which version, and its last report (None: none yet) since when."""

    agent: Agent
    version: int
    digest: str
    report: Report | None = None
    since: int = 0


class PolicyStore:
    """`<state_dir>/policy/policy.db`; made on the first write."""

    def __init__(self, state_dir: Path, *, busy_seconds: float = BUSY_SECONDS, max_agents: int = MAX_AGENTS) -> None:
        self.directory = state_dir / "policy"
        self._path = self.directory / "policy.db"
        self._busy_seconds = busy_seconds
        self._max_agents = max_agents

    # ---- reading

    def applied_version(self) -> int:
        """The version of what was applied last; 0 for none."""
        with self._read() as db:
            return _applied_version(db) if db else 0

    def latest(self) -> Applied | None:
        """What was applied last."""
        with self._read() as db:
            return _latest(db) if db else None

    def rows(self) -> dict[str, Row]:
        """Every agent that ever asked, by id."""
        with self._read() as db:
            found = db.execute(f"SELECT {_COLUMNS} FROM agents") if db else ()  # noqa: S608 - a constant
            return {row[0]: _row(row) for row in found}

    # ---- writing

    def apply(
        self, policies: Policies, *, by: str, now: float, wanted: Mapping[Agent, str]
    ) -> tuple[Applied, list[Row]]:
        """Give these layers a version, and every agent whose settings they change; returns it and the changed.

        `wanted` are all known agents with the digests of what they should run.
        """
        with self._write() as db:
            version = _next_version(db, now)
            applied = Applied(version, int(now), by, policies)
            db.execute("INSERT INTO applied VALUES (?, ?, ?, ?)", (version, int(now), by, json.dumps(policies.plain())))
            db.execute(
                "DELETE FROM applied WHERE version NOT IN (SELECT version FROM applied ORDER BY version DESC LIMIT ?)",
                (KEPT_APPLIED,),
            )
            rows = self._place(db, wanted, new=version, moved=lambda: version)
            return applied, [row for row in rows.values() if row.version == version]

    def assign(self, wanted: Mapping[Agent, str], *, applied: int, now: float) -> dict[str, Row]:
        """The agents' rows, by id, with the versions under which they get settings of these digests.

        A new agent gets the version that was applied; those that were moved to other layers share a new one. One commit
        for all. Raises Superseded if `applied` is not the latest, and PolicyStoreError if there are too many agents.
        """
        with self._write() as db:
            if _applied_version(db) != applied:
                raise Superseded
            return self._place(db, wanted, new=applied, moved=cache(lambda: _next_version(db, now)))

    def _place(
        self, db: sqlite3.Connection, wanted: Mapping[Agent, str], *, new: int, moved: Callable[[], int]
    ) -> dict[str, Row]:
        """Rows for these agents: `new` for those without one, their own version where the digest is the same."""
        (count,) = db.execute("SELECT count(*) FROM agents").fetchone()
        rows = {}
        for agent, digest in wanted.items():
            before = _find(db, agent.id)
            if before is None:
                count += 1
                rows[agent.id] = Row(agent, new, digest)
            else:
                version = before.version if before.digest == digest else moved()
                rows[agent.id] = Row(agent, version, digest, before.report, before.since)
        if count > self._max_agents:
            raise PolicyStoreError(f"{self._path}: {count} agents, {self._max_agents} are allowed")
        _put(db, rows.values())
        return rows

    def report(self, reports: Mapping[str, tuple[Report, int]]) -> None:
        """Keep what agents said, by id, with the time; agents that are not here are passed over."""
        with self._write() as db:
            db.executemany(
                "UPDATE agents SET in_force = ?, result = ?, message = ?, since = ? WHERE id = ?",
                [(one.in_force, one.result, one.message, since, id_) for id_, (one, since) in reports.items()],
            )

    def forget(self, agent_id: str) -> None:
        """The agent is no more."""
        with self._write() as db:
            db.execute("DELETE FROM agents WHERE id = ?", (agent_id,))

    # ---- the database

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection | None]:
        if not self._path.exists():
            yield None
            return
        with self._connection() as db:
            yield db if self._is_made(db) else None

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        try:
            self._make()
        except OSError as error:
            raise PolicyStoreError(f"{error.filename}: {error.strerror}") from error
        with self._connection() as db:
            if not self._is_made(db):
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(_SCHEMA)
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.rollback()
                raise
            db.commit()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            db = sqlite3.connect(self._path, timeout=self._busy_seconds, isolation_level=None)
            try:
                db.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL could forget a commit
                yield db
            finally:
                db.close()
        except sqlite3.Error as error:
            raise PolicyStoreError(f"{self._path}: {error}") from error

    def _is_made(self, db: sqlite3.Connection) -> bool:
        (made,) = db.execute("PRAGMA user_version").fetchone()
        if made > _FORMAT:
            raise PolicyStoreError(
                f"{self._path}: has version {made}, this program knows {_FORMAT}: it was written by a newer one. "
                "Install that again, or restore the file from before the update"
            )
        return bool(made)

    def _make(self) -> None:
        if self._path.exists():
            return
        self.directory.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o750, exist_ok=True)
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640))
        if os.geteuid() == 0:
            owner = self.directory.parent.stat()
            for path in (self.directory, self._path):
                os.chown(path, owner.st_uid, owner.st_gid)


def _version(db: sqlite3.Connection) -> int:
    found = db.execute("SELECT version FROM counter").fetchone()
    return int(found[0]) if found else 0


def _next_version(db: sqlite3.Connection, now: float) -> int:
    version = max(_version(db) + 1, int(now))
    db.execute("DELETE FROM counter")
    db.execute("INSERT INTO counter VALUES (?)", (version,))
    return version


def _applied_version(db: sqlite3.Connection) -> int:
    (found,) = db.execute("SELECT max(version) FROM applied").fetchone()
    return int(found or 0)


def _latest(db: sqlite3.Connection) -> Applied | None:
    found = db.execute("SELECT * FROM applied ORDER BY version DESC LIMIT 1").fetchone()
    return Applied(found[0], found[1], found[2], Policies.from_plain(json.loads(found[3]))) if found else None


def _find(db: sqlite3.Connection, agent_id: str) -> Row | None:
    found = db.execute(f"SELECT {_COLUMNS} FROM agents WHERE id = ?", (agent_id,)).fetchone()  # noqa: S608 - a constant
    return _row(found) if found else None


def _put(db: sqlite3.Connection, rows: Iterable[Row]) -> None:
    db.executemany(
        f"INSERT OR REPLACE INTO agents ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
        [
            (
                row.agent.id, row.agent.name, row.agent.group, json.dumps(row.agent.roles), row.version, row.digest,
                *((row.report.in_force, row.report.result, row.report.message) if row.report else (None, None, None)),
                row.since,
            )
            for row in rows
        ],
    )  # fmt: skip


def _row(found: Sequence[object]) -> Row:
    id_, name, group, roles, version, digest, in_force, result, message, since = found
    agent = Agent(str(id_), str(name), str(group), tuple(json.loads(str(roles))))
    report = None if result is None else Report(int(str(in_force)), str(result), str(message))
    return Row(agent, int(str(version)), str(digest), report, int(str(since)))
