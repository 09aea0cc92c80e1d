"""The inventory's file: SQLite tables, their version, opening, and what happens to a damaged file.

Promises: a commit survives a power cut (WAL, synchronous FULL); a file of a newer version is refused and left alone;
one that is no database, or damaged, is set aside under `quarantine/` and never deleted; made by root, the file belongs
to the directory's owner. Refuses: knowing what the rows mean.
"""

import os
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

from ndcollector.pki.store import PRIVATE, adopt, make_directory, sync

FILE = "inventory.sqlite"
QUARANTINE = "quarantine"
SCHEMA_VERSION = 1
BUSY_SECONDS = 5.0
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PRIMARY_CODE = 0xFF  # extended result codes keep the primary one in the low byte (sqlite.org/rescode.html)

_TABLES = """
CREATE TABLE agents (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, hostname TEXT NOT NULL, os TEXT NOT NULL, os_name TEXT NOT NULL,
    architecture TEXT NOT NULL, version TEXT NOT NULL, group_name TEXT NOT NULL, roles TEXT NOT NULL,
    origin TEXT NOT NULL,              -- "token", "recovered" from the PKI's index, "added" by a person
    token_id TEXT, enrolled_at REAL NOT NULL,
    first_seen REAL, last_seen REAL, address TEXT NOT NULL DEFAULT '', transport TEXT NOT NULL DEFAULT '',
    runs TEXT NOT NULL DEFAULT '[]',   -- ids of its last processes, the newest last
    clock_skew REAL, pending_events INTEGER, pending_bytes INTEGER, lag_seconds REAL,
    policy_version INTEGER, policy_result TEXT, trust_bundle TEXT NOT NULL DEFAULT '', endpoint TEXT,
    status BLOB, status_at REAL,       -- its last report, as wire/status.py reads it
    revoked_at REAL, revoked_reason TEXT, clone_at REAL, clone_reason TEXT
);
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY, agent_id TEXT NOT NULL REFERENCES agents ON DELETE CASCADE, issuer TEXT NOT NULL,
    not_before REAL NOT NULL, not_after REAL NOT NULL,
    spki BLOB,                         -- public key (DER); NULL where only the PKI's index was left
    revoked_at REAL
);
CREATE INDEX certificates_of ON certificates (agent_id);
CREATE INDEX certificates_by_key ON certificates (spki);
CREATE TABLE spools (
    spool_id TEXT PRIMARY KEY, agent_id TEXT NOT NULL REFERENCES agents ON DELETE CASCADE, registered_at REAL NOT NULL
);
CREATE INDEX spools_of ON spools (agent_id);
CREATE TABLE shed (
    agent_id TEXT NOT NULL REFERENCES agents ON DELETE CASCADE, input TEXT NOT NULL, since_ns INTEGER NOT NULL,
    until_ns INTEGER NOT NULL, events INTEGER NOT NULL, PRIMARY KEY (agent_id, input, since_ns)
) WITHOUT ROWID;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, secret_sha256 BLOB NOT NULL, group_name TEXT NOT NULL, roles TEXT NOT NULL,
    uses INTEGER NOT NULL, uses_left INTEGER NOT NULL, created_at REAL NOT NULL, created_by TEXT NOT NULL,
    expires_at REAL, revoked_at REAL, ca_fingerprints TEXT NOT NULL
);
CREATE TABLE token_uses (
    token_id TEXT NOT NULL REFERENCES tokens ON DELETE CASCADE, spki BLOB NOT NULL,
    agent_id TEXT NOT NULL REFERENCES agents ON DELETE CASCADE, used_at REAL NOT NULL, address TEXT NOT NULL,
    PRIMARY KEY (token_id, spki)
) WITHOUT ROWID;
"""


class InventoryError(Exception):
    """The inventory cannot be used; the text says why and what to do."""


class DamagedInventory(InventoryError):
    """The file is no database any more; `set_aside` makes room for a new one."""


def connect(path: Path) -> sqlite3.Connection:
    """The database, made if it is not there. Raises InventoryError; OSError where there is no directory."""
    _make_file(path)
    try:
        database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    except sqlite3.Error as error:
        raise explained(error, path) from error
    try:
        _use_wal(database)
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        _make_tables(database, path)
    except sqlite3.Error as error:
        database.close()
        raise explained(error, path) from error
    except BaseException:
        database.close()
        raise
    return database


def _use_wal(database: sqlite3.Connection) -> None:
    """Where two make the file at once, SQLite tells one of them that it is busy without waiting, whatever `timeout`."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _PRIMARY_CODE != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(BUSY_SECONDS / 100)
        else:
            return


def check(database: sqlite3.Connection, path: Path) -> None:
    """Read all of it once; raises DamagedInventory."""
    try:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise explained(error, path) from error
    if found != "ok":
        raise DamagedInventory(f"{path}: damaged ({found})")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is to blame, not the moment."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY_CODE in _CORRUPT


def explained(error: sqlite3.Error, path: Path) -> InventoryError:
    """The error as one that a person can act on."""
    if is_damage(error):
        return DamagedInventory(f"{path}: damaged ({error}); a running collector sets it aside and makes a new one")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return InventoryError(f"{path}: {error}: only the daemon's user and root may use it; use sudo")
    return InventoryError(f"{path}: {error}")


def set_aside(path: Path, *, now: float) -> Path:
    """Move the file and its write-ahead log to quarantine; gives where the file is now."""
    directory = path.parent / QUARANTINE
    make_directory(directory)
    stem = f"inventory-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S}"
    taken = len(list(directory.glob(f"{stem}*.sqlite")))
    target = directory / f"{stem}-{taken:03}.sqlite"
    for suffix in ("-shm", "-wal", ""):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(target.with_name(target.name + suffix))
    sync(directory)
    sync(path.parent)
    return target


def _make_file(path: Path) -> None:
    """Before SQLite does: 0600, and the owner's whom its log files then follow."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
    except FileExistsError:
        return
    try:
        adopt(descriptor, path.parent)
    finally:
        os.close(descriptor)
    sync(path.parent)


def _make_tables(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise InventoryError(
            f"{path}: has version {version}, this program knows {SCHEMA_VERSION}: it was written by a newer one. "
            "Install that again, or restore the file from before the update"
        )
    if version == SCHEMA_VERSION:
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        if database.execute("PRAGMA user_version").fetchone() == (0,):  # else another process was faster
            for statement in _TABLES.split(";\n"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise
