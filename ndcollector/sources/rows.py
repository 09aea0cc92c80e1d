"""A source as a row of the table `sources` in ledger.db, and back (columns: docs/sources.md).

Refuses: knowing SQLite; the statements that the ledger's store runs stand here as text. The table is made where it is
not there yet and changes nothing else, so a version without it goes on with the same file.
"""

from array import array
from typing import Any

from ndagent.wire.record import Framing
from ndcollector.sources.rhythm import HOURS
from ndcollector.sources.table import Source

TABLES = """
CREATE TABLE IF NOT EXISTS sources (
    name TEXT NOT NULL, channel TEXT NOT NULL, since REAL NOT NULL, input TEXT NOT NULL, address TEXT NOT NULL,
    stream TEXT NOT NULL, framing INTEGER NOT NULL, format TEXT NOT NULL, last_seen REAL NOT NULL,
    events INTEGER NOT NULL, parse_failures INTEGER NOT NULL, truncated INTEGER NOT NULL,
    framing_errors INTEGER NOT NULL, skew REAL, load REAL NOT NULL, expected REAL NOT NULL, quiet_since REAL NOT NULL,
    is_estimate INTEGER NOT NULL, pauses INTEGER NOT NULL, recent_sum REAL NOT NULL, recent_logs REAL NOT NULL,
    hours BLOB, PRIMARY KEY (name, channel)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources_said (
    id INTEGER PRIMARY KEY CHECK (id = 1), spool_id TEXT NOT NULL, sequence INTEGER NOT NULL
)
"""
_COLUMNS = (
    "name", "channel", "since", "input", "address", "stream", "framing", "format", "last_seen", "events",
    "parse_failures", "truncated", "framing_errors", "skew", "load", "expected", "quiet_since", "is_estimate",
)  # fmt: skip
_FRAMINGS = {int(one): one.name.lower().replace("_", "-") for one in Framing}
_OF_RHYTHM = ("pauses", "recent_sum", "recent_logs")

SELECT = f"SELECT {', '.join((*_COLUMNS, *_OF_RHYTHM, 'hours'))} FROM sources ORDER BY last_seen"  # noqa: S608 - constants
PUT = f"INSERT OR REPLACE INTO sources VALUES ({', '.join('?' * (len(_COLUMNS) + len(_OF_RHYTHM) + 1))})"  # noqa: S608 - constants
DELETE = "DELETE FROM sources WHERE name = ? AND channel = ?"
PUT_SAID = "INSERT OR REPLACE INTO sources_said VALUES (1, ?, ?)"
SELECT_SAID = "SELECT spool_id, sequence FROM sources_said"


def row_of(source: Source) -> tuple[Any, ...]:
    """For PUT."""
    rhythm = source.rhythm
    hours = None if rhythm.hours is None else rhythm.hours.tobytes()
    own = (getattr(source, name) for name in _COLUMNS)
    return (*own, *(getattr(rhythm, name) for name in _OF_RHYTHM), hours)


def source_of(row: tuple[Any, ...]) -> Source:
    """From SELECT. Raises ValueError, TypeError for a row that no version of this wrote."""
    *own, pauses, recent_sum, recent_logs, hours = row
    source = Source(**dict(zip(_COLUMNS, own, strict=True)))
    source.is_estimate = bool(source.is_estimate)
    rhythm = source.rhythm
    rhythm.pauses, rhythm.recent_sum, rhythm.recent_logs = int(pauses), float(recent_sum), float(recent_logs)
    if hours is not None:
        rhythm.hours = array("f", hours)
        if len(rhythm.hours) != HOURS:
            raise ValueError(f"source {source.name!r}: {len(rhythm.hours)} hours in a week")
    return source


def plain(source: Source, now: float) -> dict[str, object]:
    """A source as operators see it; times are Unix seconds, None where there is none."""
    usual = source.rhythm.usual(now, now)
    return {
        "name": source.name,
        "channel": source.channel,
        "input": source.input or None,
        "address": source.address or None,
        "stream": source.stream or None,
        "state": "quiet" if source.quiet_since else "awaited" if not source.last_seen else "heard",
        "first_seen": source.since if source.last_seen else None,
        "last_seen": source.last_seen or None,
        "quiet_since": source.quiet_since or None,
        "events": source.events,
        "events_are_an_estimate": source.is_estimate,
        "rate": source.rate(now),
        "usual_pause_seconds": usual or None,
        "expected": "never" if source.expected < 0 else source.expected or None,
        "framing": _FRAMINGS.get(source.framing),
        "format": source.format or None,
        "clock_skew_seconds": source.skew,
        "parse_failures": source.parse_failures,
        "truncated": source.truncated,
        "framing_errors": source.framing_errors,
    }
