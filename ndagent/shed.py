"""What this agent had to give up because its spool was full or too old: how much of which input, and from when to when.

Promises: every event that the cursor counts as evicted is in one of the sums here, also where its record cannot be read
any more (under the input name UNREADABLE); the sums survive a restart, because a collector that was away for a day has
to hear of them after it; they are written when they grow, before the events' files are deleted.
Refuses: deciding what is given up (core/spool/room.py), telling (reporting.py).
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import orjson

from ndagent.core.spool.files import Files
from ndagent.core.spool.room import GivenUp
from ndagent.core.spool.scan import Found, scan_file
from ndagent.identity import write_private
from ndagent.wire.record import CorruptBody, unpack_body
from ndagent.wire.status import MAX_SHED, Shed

log = logging.getLogger(__name__)

UNREADABLE = "unreadable"


class ShedBook:
    """One per agent, for all of its spools; used from their commit threads and from the loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._sums: dict[str, Shed] = {}
        try:
            self._sums = {shed.input: shed for shed in map(_shed, orjson.loads(path.read_bytes()))}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.error("%s is damaged (%s): what was given up until now is forgotten, and counted anew", path, error)

    def totals(self) -> tuple[Shed, ...]:
        """By input, since the agent was installed."""
        with self._lock:
            return tuple(self._sums.values())[:MAX_SHED]

    def mourn(self, files: Files, given_up: Sequence[GivenUp]) -> None:
        """See Spool.open: count what is in the files that are about to go. Never raises."""
        try:
            for one in given_up:
                self._count(files, one)
            with self._lock:
                plain = orjson.dumps([_plain(shed) for shed in self._sums.values()])
            write_private(self._path, plain)
        except OSError as error:
            log.warning("%s cannot be written: %s; after a restart the collector hears of less", self._path, error)

    def _count(self, files: Files, lost: GivenUp) -> None:
        counted = 0
        try:
            for found in scan_file(files, lost.segment, lost.end):
                if isinstance(found, Found) and found.header.sequence + found.header.events > lost.first:
                    counted += self._count_record(found, max(0, lost.first - found.header.sequence))
        except OSError as error:
            log.warning("%s cannot be read: %s; what was lost of it has no input's name", lost.segment.path, error)
        missing = lost.end - lost.first - counted
        if missing > 0:
            at_ns = int(lost.segment.changed_at * 1e9)
            self._add(UNREADABLE, missing, at_ns)

    def _count_record(self, found: Found, settled: int) -> int:
        """Events of the record behind the first `settled` ones, which the collector has."""
        try:
            sections = unpack_body(found.body).sections()
        except CorruptBody:
            return 0
        counted = 0
        for section in sections:
            lost = max(0, section.count - settled)
            settled = max(0, settled - section.count)
            if lost:
                self._add(section.origin.input, lost, found.header.received_at_ns)
            counted += lost
        return counted

    def _add(self, name: str, events: int, at_ns: int) -> None:
        with self._lock:
            before = self._sums.get(name) or Shed(name, 0, at_ns, at_ns)
            since, until = min(before.since_ns, at_ns), max(before.until_ns, at_ns)
            self._sums[name] = Shed(name, before.events + events, since, until)


def _shed(plain: dict[str, Any]) -> Shed:
    shed = Shed(**plain)
    if type(shed.input) is not str or not all(type(one) is int for one in (shed.events, shed.since_ns, shed.until_ns)):
        raise TypeError("not sums by input")
    return shed


def _plain(shed: Shed) -> dict[str, object]:
    return {"input": shed.input, "events": shed.events, "since_ns": shed.since_ns, "until_ns": shed.until_ns}
