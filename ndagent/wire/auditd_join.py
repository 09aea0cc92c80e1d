"""Records of Linux audit logs, in any order, joined into events.

Promises: every line that goes in comes out in exactly one Joined, or is among `open_lines` until then. The table of
open events is bounded in events and in bytes; over a limit the oldest goes out first. An unparsable line is a Joined of
its own. Refuses: clocks (`now` comes in, any monotonic seconds), meaning (auditd_ecs.py).

When is an event whole? Its EOE has come; its PROCTITLE has (the kernel writes it last, and auditd keeps EOE out of the
file by default); it is of a kind that is always one record (what programs say: USER_LOGIN, SERVICE_START …); records
that are `timeout_seconds` younger have come (a backlog is joined as fast as it is read); or nothing came for so long.
A record that comes later still is an event of its own, with the same serial.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from ndagent.wire.auditd import Record, parse_line

MAX_RECORDS = 1024
"""Records of one event; an EXECVE of the kernel's largest command line (128 KiB a piece) stays below."""

_LAST = frozenset({"EOE", "PROCTITLE"})
_ALONE = re.compile(
    r"(?:USER|CRED|DAEMON|ADD|DEL|GRP|ACCT|CHGRP|CHUSER|SERVICE|SYSTEM|ROLE|CRYPTO|VIRT|RESP|LABEL|ANOM_LOGIN|USYS|TEST|"
    r"TRUSTED)_\w+|TEST|SOFTWARE_UPDATE"
)
"""Types from user space (1100-1299 and 2100-2999 in linux/audit.h and libaudit.h): one record each, and no EOE."""

_Key = tuple[str, int, int, int]


class Joined(NamedTuple):
    """One event: its records in order of arrival; none and one line where that was no audit record.

    `is_cut`: it went out because a limit was reached, so more of it may follow.
    """

    records: list[Record]
    line: bytes = b""
    is_cut: bool = False

    @property
    def lines(self) -> list[bytes]:
        """The lines as they came."""
        return [record.raw for record in self.records] or [self.line]


class _Open:
    __slots__ = ("records", "size", "touched")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.size = 0
        self.touched = 0.0


class Joiner:
    """See the module."""

    def __init__(self, *, timeout_seconds: float, max_open_events: int, max_open_bytes: int) -> None:
        self._timeout = timeout_seconds
        self._max_events = max_open_events
        self._max_bytes = max_open_bytes
        self._open: OrderedDict[_Key, _Open] = OrderedDict()  # by first record
        self._bytes = 0

    def __len__(self) -> int:
        """Events that are open."""
        return len(self._open)

    @property
    def open_lines(self) -> list[bytes]:
        """Lines of the open events; given to `add` of a new Joiner they open them again."""
        return [record.raw for event in self._open.values() for record in event.records]

    def add(self, lines: Iterable[bytes], now: float) -> list[Joined]:
        """Take lines (without LF) in the order in which they stand in the file; what became whole by them."""
        done: list[Joined] = []
        for line in lines:
            record = parse_line(line)
            if record is None:
                done.append(Joined([], line))
            elif record.key not in self._open and _ALONE.fullmatch(record.type):
                done.append(Joined([record]))
            else:
                self._add(record, now, done)
        return done

    def expire(self, now: float) -> list[Joined]:
        """Events to which nothing was added for the timeout."""
        due = [key for key, event in self._open.items() if now - event.touched >= self._timeout]
        return [self._close(key) for key in due]

    def flush(self) -> list[Joined]:
        """All that is open, the oldest first."""
        return [self._close(key) for key in list(self._open)]

    def _add(self, record: Record, now: float, done: list[Joined]) -> None:
        key = record.key
        event = self._open.get(key)
        if event is None:
            self._expire_before(record, done)
            event = self._open[key] = _Open()
        event.records.append(record)
        event.touched = now
        event.size += len(record.raw)
        self._bytes += len(record.raw)
        if record.type in _LAST:
            done.append(self._close(key))
        elif len(event.records) >= MAX_RECORDS:
            done.append(self._close(key, is_cut=True))
        while len(self._open) > self._max_events or self._bytes > self._max_bytes:
            done.append(self._close(next(iter(self._open)), is_cut=True))

    def _expire_before(self, record: Record, done: list[Joined]) -> None:
        """Close what is older than this record by the timeout, by that node's own clock, the oldest first."""
        limit = record.seconds + record.milliseconds / 1000 - self._timeout
        while self._open:
            node, seconds, milliseconds, _ = key = next(iter(self._open))
            if node != record.node or seconds + milliseconds / 1000 > limit:
                return
            done.append(self._close(key))

    def _close(self, key: _Key, *, is_cut: bool = False) -> Joined:
        event = self._open.pop(key)
        self._bytes -= event.size
        return Joined(event.records, is_cut=is_cut)
