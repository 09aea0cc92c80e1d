"""The inventory: what is known of each agent, in SQLite. Used by the daemon in a thread of its own, and by commands.

Promises: every method is one transaction, durable when it returns; daemon and commands work on the same file at the
same time (a writer waits up to `BUSY_SECONDS`, then InventoryError). Errors of SQLite come out as InventoryError or
DamagedInventory. Refuses: certificates (pki does these) and the hot path (fleet.py answers from memory).

Times are Unix seconds.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ndcollector.agents import schema
from ndcollector.agents.rows import Agent, Heard, Held, Newcomer, Remembered
from ndcollector.agents.schema import InventoryError

MAX_SPOOLS = 64
"""Spool ids remembered for an agent, the newest; it has one per stream, and a new one after some crashes."""
MAX_SHED = 64
"""Reports of shed events remembered for an agent, the newest."""
FORGET_EXPIRED_SECONDS = 30 * 86400.0

_KNOWN = (
    "id, name, hostname, os, os_name, architecture, version, group_name, roles, origin, token_id, enrolled_at, "
    "first_seen, last_seen, address, transport, runs, clock_skew, pending_events, pending_bytes, lag_seconds, "
    "policy_version, policy_result, trust_bundle, endpoint, status_at, revoked_at, revoked_reason, clone_at, "
    "clone_reason"
)


_HELD = "serial, issuer, not_before, not_after, spki, revoked_at"


class NotThere(InventoryError):
    """No such agent or token."""


class Inventory:
    """One connection. Open it in the thread that uses it."""

    def __init__(self, path: Path) -> None:
        """Raises InventoryError, OSError."""
        self.path = path
        self._database = schema.connect(path)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def check(self) -> None:
        """Read all of it once; raises DamagedInventory."""
        schema.check(self._database, self.path)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database, its errors explained."""
        try:
            yield self._database
        except sqlite3.Error as error:
            raise schema.explained(error, self.path) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: durable at the end, or nothing happened."""
        with self.reading() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    @property
    def changes(self) -> int:
        """A number that is another one after another connection (a command) has changed something."""
        with self.reading() as database:
            (version,) = database.execute("PRAGMA data_version").fetchone()
            return int(version)

    # ---- looking

    def agents(self) -> list[Agent]:
        """All of them, by name."""
        with self.reading() as database:
            return [_agent(row) for row in database.execute(f"SELECT {_KNOWN} FROM agents ORDER BY name")]  # noqa: S608 - a constant

    def find(self, which: str) -> Agent:
        """By id, or by name; raises NotThere."""
        query = f"SELECT {_KNOWN} FROM agents WHERE id = ? OR name = ? ORDER BY id = ? DESC"  # noqa: S608 - a constant
        with self.reading() as database:
            row = database.execute(query, (which, which, which)).fetchone()
        if row is None:
            raise NotThere(f"{which} is neither the id nor the name of an agent; see `ndcollector agents ls`")
        return _agent(row)

    def count(self) -> int:
        """How many agents there are, revoked ones too."""
        with self.reading() as database:
            return int(database.execute("SELECT count(*) FROM agents").fetchone()[0])

    def standing(self) -> dict[str, bool]:
        """Id → whether it is not revoked, of every agent."""
        with self.reading() as database:
            return {row[0]: bool(row[1]) for row in database.execute("SELECT id, revoked_at IS NULL FROM agents")}

    def owners(self) -> dict[str, str]:
        """Serial → agent, of every certificate."""
        with self.reading() as database:
            return dict(database.execute("SELECT serial, agent_id FROM certificates"))

    def certificates(self) -> dict[str, list[Held]]:
        """Every certificate by agent, the newest last."""
        found: dict[str, list[Held]] = {}
        query = f"SELECT agent_id, {_HELD} FROM certificates ORDER BY not_before, rowid"  # noqa: S608 - a constant
        with self.reading() as database:
            for agent_id, *columns in database.execute(query):
                found.setdefault(agent_id, []).append(Held(*columns))
        return found

    def certificates_of(self, agent_id: str) -> list[Held]:
        """Every certificate of one agent, the newest last."""
        query = f"SELECT {_HELD} FROM certificates WHERE agent_id = ? ORDER BY not_before, rowid"  # noqa: S608 - a constant
        with self.reading() as database:
            return [Held(*columns) for columns in database.execute(query, (agent_id,))]

    def owner_of_key(self, spki: bytes) -> str | None:
        """The agent whose key (DER) this is or was."""
        with self.reading() as database:
            return owner_of_key(database, spki)

    def spools(self) -> dict[str, str]:
        """Spool id → agent, the longest registered first."""
        with self.reading() as database:
            return dict(database.execute("SELECT spool_id, agent_id FROM spools ORDER BY registered_at, spool_id"))

    def status(self, agent_id: str) -> bytes | None:
        """The agent's last report."""
        with self.reading() as database:
            row = database.execute("SELECT status FROM agents WHERE id = ?", (agent_id,)).fetchone()
        return row[0] if row is not None else None

    def shed(self, agent_id: str) -> list[tuple[str, int, int, int]]:
        """What it gave up: (input, since_ns, until_ns, events), the oldest first."""
        query = "SELECT input, since_ns, until_ns, events FROM shed WHERE agent_id = ? ORDER BY since_ns"
        with self.reading() as database:
            return list(database.execute(query, (agent_id,)))

    def shed_events(self) -> int:
        """What all of them gave up, as far as it is remembered."""
        with self.reading() as database:
            return int(database.execute("SELECT coalesce(sum(events), 0) FROM shed").fetchone()[0])

    # ---- changing

    def add(self, newcomer: Newcomer, held: Sequence[Held] = (), *, now: float) -> None:
        """A new agent; one that is there gets the certificates it lacks."""
        with self.writing() as database:
            insert_agent(database, newcomer, now=now)
            _insert_certificates(database, newcomer.id, held)

    def add_certificate(self, agent_id: str, held: Held, *, now: float) -> None:
        """A certificate that was issued to an agent; what has expired long ago is forgotten."""
        with self.writing() as database:
            _insert_certificates(database, agent_id, [held])
            row = (agent_id, now - FORGET_EXPIRED_SECONDS)
            database.execute("DELETE FROM certificates WHERE agent_id = ? AND not_after < ?", row)

    def mark_certificates_revoked(self, serials: Iterable[str], *, now: float) -> None:
        """Their keys speak for nobody any more."""
        query = "UPDATE certificates SET revoked_at = coalesce(revoked_at, ?) WHERE serial = ?"
        with self.writing() as database:
            database.executemany(query, [(now, serial) for serial in serials])

    def register_spools(self, claims: Mapping[str, str], *, now: float) -> None:
        """Bind spool ids to agents, also ones that were another's; of one agent's the newest MAX_SPOOLS are kept.

        An agent that is not there any more gets none.
        """
        with self.writing() as database:
            for spool_id, agent_id in claims.items():
                database.execute(
                    "INSERT OR REPLACE INTO spools SELECT ?, id, ? FROM agents WHERE id = ?", (spool_id, now, agent_id)
                )
            for agent_id in set(claims.values()):
                database.execute(
                    "DELETE FROM spools WHERE agent_id = ? AND spool_id NOT IN (SELECT spool_id FROM spools "
                    "WHERE agent_id = ? ORDER BY registered_at DESC, spool_id LIMIT ?)",
                    (agent_id, agent_id, MAX_SPOOLS),
                )

    def heard(self, news: Iterable[Heard]) -> None:
        """Write what was heard of many agents, at once."""
        with self.writing() as database:
            for one in news:
                _write_heard(database, one)

    def rename(self, agent_id: str, name: str) -> None:
        """Give it another name; raises InventoryError where another agent has it."""
        with self.writing() as database:
            owner = database.execute("SELECT id FROM agents WHERE name = ?", (name,)).fetchone()
            if owner is not None and owner[0] != agent_id:
                raise InventoryError(f"{name} is the name of {owner[0]} already; choose another")
            _update_one(database, "UPDATE agents SET name = ? WHERE id = ?", (name, agent_id))

    def move(self, agent_id: str, group: str, roles: Sequence[str]) -> None:
        """Give it another group and other roles."""
        with self.writing() as database:
            row = (group, json.dumps(list(roles)), agent_id)
            _update_one(database, "UPDATE agents SET group_name = ?, roles = ? WHERE id = ?", row)

    def mark_revoked(self, agent_id: str, *, reason: str, now: float) -> None:
        """Refuse it from now on; the first time and reason stay."""
        query = (
            "UPDATE agents SET revoked_at = coalesce(revoked_at, ?), revoked_reason = coalesce(revoked_reason, ?) "
            "WHERE id = ?"
        )
        with self.writing() as database:
            _update_one(database, query, (now, reason, agent_id))

    def mark_clone(self, agent_id: str, *, reason: str | None, now: float) -> None:
        """Suspect it, or (None) no longer."""
        with self.writing() as database:
            row = (None if reason is None else now, reason, agent_id)
            _update_one(database, "UPDATE agents SET clone_at = ?, clone_reason = ? WHERE id = ?", row)

    def restore(self, remembered: Iterable["Remembered"], *, now: float) -> None:
        """Put back what the daemon still has in memory after the file was lost."""
        with self.writing() as database:
            for one in remembered:
                insert_agent(database, one.newcomer, now=now)
                _insert_certificates(database, one.newcomer.id, one.held)
                rows = [(spool_id, one.newcomer.id, now) for spool_id in one.spools]
                database.executemany("INSERT OR REPLACE INTO spools VALUES (?, ?, ?)", rows)
                row = (one.name, one.revoked_at, one.clone_at, one.newcomer.id)
                database.execute("UPDATE agents SET name = ?, revoked_at = ?, clone_at = ? WHERE id = ?", row)

    def remove(self, agent_id: str) -> None:
        """Forget it, with its spools and certificates."""
        with self.writing() as database:
            _update_one(database, "DELETE FROM agents WHERE id = ?", (agent_id,))


def owner_of_key(database: sqlite3.Connection, spki: bytes) -> str | None:
    """Inside a transaction or not."""
    query = "SELECT agent_id FROM certificates WHERE spki = ? UNION SELECT agent_id FROM token_uses WHERE spki = ?"
    row = database.execute(query, (spki, spki)).fetchone()
    return None if row is None else str(row[0])


def insert_agent(database: sqlite3.Connection, newcomer: Newcomer, *, now: float) -> None:
    """Inside a transaction. Its name is its host's; where that is taken, its id says which one it is."""
    facts = newcomer.facts
    name = facts.hostname or newcomer.id
    taken = database.execute("SELECT 1 FROM agents WHERE name = ?", (name,)).fetchone()
    database.execute(
        "INSERT OR IGNORE INTO agents (id, name, hostname, os, os_name, architecture, version, group_name, roles, "
        "origin, token_id, enrolled_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            newcomer.id,
            f"{name}-{newcomer.id}" if taken else name,
            facts.hostname,
            facts.os,
            facts.os_name,
            facts.architecture,
            facts.version,
            newcomer.group,
            json.dumps(newcomer.roles),
            newcomer.origin,
            newcomer.token_id,
            now,
        ),
    )


def _insert_certificates(database: sqlite3.Connection, agent_id: str, held: Iterable[Held]) -> None:
    database.executemany(
        # The daemon's look at the PKI's index may have been faster, and that does not say the key.
        "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET spki = coalesce(spki, excluded.spki)",
        [(one.serial, agent_id, one.issuer, one.not_before, one.not_after, one.spki, one.revoked_at) for one in held],
    )


def _update_one(database: sqlite3.Connection, query: str, row: Sequence[object]) -> None:
    if database.execute(query, row).rowcount == 0:
        raise NotThere(f"{row[-1]} is not the id of an agent; see `ndcollector agents ls`")


def _write_heard(database: sqlite3.Connection, one: Heard) -> None:
    database.execute(
        "UPDATE agents SET first_seen = coalesce(first_seen, ?), last_seen = coalesce(?, last_seen), address = ?, "
        "transport = ?, runs = ?, "
        "clock_skew = coalesce(?, clock_skew) WHERE id = ?",
        (one.first_seen, one.last_seen, one.address, one.transport, json.dumps(one.runs), one.clock_skew, one.id),
    )
    report = one.report
    if report is None:
        return
    changed = database.execute(
        "UPDATE agents SET status = ?, status_at = ?, hostname = coalesce(nullif(?, ''), hostname), "
        "os = coalesce(nullif(?, ''), os), version = coalesce(nullif(?, ''), version), pending_events = ?, "
        "pending_bytes = ?, lag_seconds = ?, policy_version = ?, policy_result = ?, trust_bundle = ?, endpoint = ? "
        "WHERE id = ?",
        (
            report.status,
            report.status_at,
            report.hostname,
            report.os,
            report.version,
            report.pending_events,
            report.pending_bytes,
            report.lag_seconds,
            report.policy_version,
            report.policy_result,
            report.trust_bundle,
            report.endpoint,
            one.id,
        ),
    ).rowcount
    if changed and report.shed:
        _write_shed(database, one.id, report.shed)


def _write_shed(database: sqlite3.Connection, agent_id: str, shed: Sequence[tuple[str, int, int, int]]) -> None:
    """A loss that goes on is reported again, larger, with the same beginning."""
    database.executemany(
        "INSERT INTO shed (agent_id, input, since_ns, until_ns, events) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET until_ns = max(until_ns, excluded.until_ns), events = max(events, excluded.events)",
        [(agent_id, *one) for one in shed],
    )
    database.execute(
        "DELETE FROM shed WHERE agent_id = ? AND since_ns < (SELECT since_ns FROM shed WHERE agent_id = ? "
        "ORDER BY since_ns DESC LIMIT 1 OFFSET ?)",
        (agent_id, agent_id, MAX_SHED - 1),
    )


def _agent(row: Sequence[object]) -> Agent:
    values = list(row)
    values[8] = tuple(json.loads(str(row[8])))
    values[16] = tuple(json.loads(str(row[16])))
    return Agent(*values)  # type: ignore[arg-type]  # the columns of _KNOWN, in order
