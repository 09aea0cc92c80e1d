"""Letters in a dead-letter file: read one by one, told apart, summed up.

Promises: memory is bounded by the longest line, and that by MAX_LETTER_BYTES: what is longer, or no letter, is damage,
counted and never wanted, so it stays in the file. What is wanted is a function of the line alone: asked again after a
crash it gives the same answer. A half line at the end is a write under way and not looked at.
Refuses: changing the file (rewrite.py).
"""

import base64
import binascii
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from ndagent.core.dead_letters import later_format
from ndagent.wire.where import Where, compile_where

MAX_LETTER_BYTES = 64 << 20
SUFFIX = ".ndjson"
_EVENT_KEY = b',"event":'  # inside a JSON string its quotes would be escaped, and nothing nests before it
_BODY_KEY = b'"body_base64":'
_REASONS_COUNTED = 1000
_REASON_SHOWN = 200


class Letter(NamedTuple):
    """One line; `head` is all of it, parsed."""

    offset: int
    line: bytes
    head: Mapping[str, Any]

    @property
    def events(self) -> int:
        """How many events it stands for: a record that could not be decoded has many."""
        count = self.head.get("count", 1)
        return count if type(count) is int and count > 0 else 1

    @property
    def event(self) -> Mapping[str, Any] | None:
        """The event; None for a record that could not be decoded."""
        found = self.head.get("event")
        return found if isinstance(found, dict) else None

    @property
    def is_routed(self) -> bool:
        """Whether it is as it was to be sent: what is not has to pass the output's route (its redaction) first."""
        return self.event is not None and not self.head.get("unrouted", False)

    @property
    def event_line(self) -> bytes:
        """The event's bytes, exactly as they were to be sent, with a line feed."""
        return self.line[self.line.index(_EVENT_KEY) + len(_EVENT_KEY) :].removesuffix(b"\n")[:-1] + b"\n"

    @property
    def body(self) -> bytes:
        """The record that could not be decoded."""
        return base64.b64decode(self.head["body_base64"], validate=True)


def parse(offset: int, line: bytes) -> Letter | None:
    """The letter in a line; None where there is none that could be sent again."""
    if later_format(line):
        return None  # it may mean something else by the same names
    try:
        head = _load(line)
        letter = Letter(offset, line, head)
        texts = [head["time"], head["reason"], head["stream"], head["spool_id"]]
        if not all(isinstance(one, str) for one in texts) or type(head["sequence"]) is not int:
            return None
        if letter.event is None:
            base64.b64decode(head["body_base64"], validate=True)
        elif _EVENT_KEY not in line:
            return None  # written by hand, with other spaces
    except (orjson.JSONDecodeError, KeyError, TypeError, binascii.Error, ValueError):
        return None
    return letter


def _load(line: bytes) -> dict[str, Any]:
    """Head and event apart: an event may be nested as deep as the parser allows, which in one piece is too deep."""
    head, key, event = line.partition(_EVENT_KEY)
    if not key:
        return orjson.loads(line)  # type: ignore[no-any-return]  # what is no object is found by its use
    if not event.endswith(b"}\n"):
        raise ValueError("something stands behind the event")
    return {**orjson.loads(head + b"}"), "event": orjson.loads(event[:-2])}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters; no condition wants them all. Times are RFC 3339 in UTC, as letters have them."""

    reason: str | None = None
    where: Where | None = None
    since: str | None = None
    before: str | None = None

    def __call__(self, letter: Letter | None) -> bool:
        """Whether it is one. A record that could not be decoded has no fields, so no `where` holds for it."""
        if letter is None:
            return False
        head, time = letter.head, letter.head["time"]
        if self.reason is not None and self.reason.casefold() not in head["reason"].casefold():
            return False
        if (self.since is not None and time < self.since) or (self.before is not None and time >= self.before):
            return False
        if self.where is None:
            return True
        event = letter.event
        return event is not None and self.where.matches(event, stream=head["stream"], origin=head.get("origin", ""))

    def plain(self) -> dict[str, str]:
        """As JSON can hold it."""
        found = {"reason": self.reason, "where": self.where, "since": self.since, "before": self.before}
        return {key: str(value) for key, value in found.items() if value is not None}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Wanted":
        """Inverse of `plain`; raises ValueError (a WhereError for the expression)."""
        known = {"reason", "where", "since", "before"}
        unknown = sorted(set(plain) - known)
        if unknown or not all(isinstance(value, str) for value in plain.values()):
            raise ValueError(f"unknown: {', '.join(unknown)}" if unknown else "texts are expected")
        where = compile_where(plain["where"]) if "where" in plain else None
        times = {key: letter_time(datetime.fromisoformat(plain[key])) for key in ("since", "before") if key in plain}
        return cls(reason=plain.get("reason"), where=where, **times)


def letter_time(moment: datetime) -> str:
    """A time as letters write it, so that text compares as time does."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def lines(file: BinaryIO, start: int, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of those that end by `end`; a line that is too long comes in pieces, which are no letters."""
    file.seek(start)
    at = start
    while end is None or at < end:
        line = file.readline(MAX_LETTER_BYTES)
        is_cut = not line.endswith(b"\n") and len(line) < MAX_LETTER_BYTES
        if is_cut or (end is not None and at + len(line) > end):
            return
        yield at, line
        at += len(line)


def letters(path: Path, end: int | None = None) -> Iterator[tuple[int, Letter | None]]:
    """(offset, letter or None for damage); nothing where there is no file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for offset, line in lines(file, 0, end):
            yield offset, parse(offset, line)


def count_events(path: Path, end: int) -> int:
    """Events in the first `end` bytes; quicker than parsing, because only records that hold many are parsed."""
    found = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return 0
    with file:
        for offset, line in lines(file, 0, end):
            letter = parse(offset, line) if _BODY_KEY in line else None
            found += letter.events if letter is not None else 1
    return found


@dataclass(slots=True)
class Summary:
    """What `dlq ls` says of one file."""

    letters: int = 0
    events: int = 0
    damaged: int = 0
    oldest: str | None = None
    newest: str | None = None
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, letter: Letter | None) -> None:
        """One more."""
        if letter is None:
            self.damaged += 1
            return
        time, reason = letter.head["time"], letter.head["reason"][:_REASON_SHOWN]
        self.letters += 1
        self.events += letter.events
        self.oldest = min(self.oldest or time, time)
        self.newest = max(self.newest or time, time)
        if reason not in self.reasons and len(self.reasons) >= _REASONS_COUNTED:
            reason = "other reasons"  # a far side that quotes each event would fill the table
        self.reasons[reason] += letter.events
