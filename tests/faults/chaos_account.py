"""The final account of a chaos run: what was owed, what came, and where the two differ.

What is *owed*, and so must be at every output at least once:

  * agents: every line that was written to their files. An agent answers for its lines until the collector has them on
    disk, whatever is killed meanwhile. One exception: behind a customer's MQTT broker that was killed -9, the lines
    that were written and not delivered by then are *maybe*: mosquitto acknowledges before it saves, as
    docs/mqtt-broker.md says.
  * syslog devices: there is no acknowledgement. Owed are the messages of connections that ended in good order (both
    sides said close_notify, so the collector had read all), unless the collector was killed or stopped between the
    opening of the connection and SETTLE_SECONDS after its end; while its disk was bad or it was frozen, that time does
    not run. Everything else that was begun is *maybe*: it may come, and no more than once from the device.

A failure is: an owed id missing at an output; an id that nobody sent; a message cut although its connection was never
broken; a gap in the sequence of the collector's own spool; an output's ledger that does not add up or calls anything
evicted, quarantined, dead-lettered or filtered; a message under two event ids, unless it comes from an agent whose disk
was full (REREADS: then a crash may make it read lines again, says ndagent/core/checkpoints.py). Duplicates are allowed
(at least once) and counted.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

SETTLE_SECONDS = 5.0
"""Far more than the milliseconds in which a healthy collector makes durable what it has read."""

REREADS = frozenset({"a2"})
"""Agents whose disks fail in a storm."""

_ID = re.compile(r"id ([as]\d)\.(\d+)\.(\d+);")
_SHOWN = 20


class Id(NamedTuple):
    """One message: who sent it, on which connection (0 for an agent's file), and its number there."""

    source: str
    connection: int
    number: int

    def __str__(self) -> str:
        return f"{self.source}.{self.connection}.{self.number}"


class Span(NamedTuple):
    """From … to, CLOCK_MONOTONIC."""

    began: float
    ended: float


@dataclass
class History:
    """What the driver notes while the run runs."""

    downs: list[Span] = field(default_factory=list)  # the collector killed or stopped, until it was ready again
    troubles: list[Span] = field(default_factory=list)  # its disk bad, or itself frozen
    at_risk: dict[str, set[int]] = field(default_factory=dict)  # agent → lines that a killed broker may have had

    def settled_at(self, closed: float) -> float:
        """When what was read until `closed` is certainly durable."""
        at = closed
        for trouble in sorted(self.troubles):
            if trouble.began <= at + SETTLE_SECONDS:
                at = max(at, trouble.ended)
        return at + SETTLE_SECONDS

    def is_safe(self, opened: float, closed: float) -> bool:
        """Whether the collector lived from before `opened` until what came by `closed` was durable."""
        settled = self.settled_at(closed)
        return not any(down.began <= settled and down.ended >= opened for down in self.downs)


@dataclass
class Claims:
    """Ids that must come, and ids that may."""

    owed: set[Id] = field(default_factory=set)
    maybe: set[Id] = field(default_factory=set)
    breakable: set[tuple[str, int]] = field(default_factory=set)  # connections whose last message may be cut

    def add_agent(self, name: str, written: int, at_risk: set[int]) -> None:
        """All lines of an agent's file."""
        self.owed |= {Id(name, 0, number) for number in range(written) if number not in at_risk}
        self.maybe |= {Id(name, 0, number) for number in at_risk}

    def add_device(self, name: str, journal: Path, history: History) -> None:
        """All connections of a device."""
        for text in journal.read_text().splitlines() if journal.exists() else ():
            entry = json.loads(text)
            connection = int(entry["key"].rpartition(".")[2])
            ids = {Id(name, connection, number) for number in range(entry["count"])}
            if entry["how"] == "clean" and history.is_safe(entry["opened"], entry["closed"]):
                self.owed |= ids
            else:
                self.maybe |= ids
            if entry["how"] != "clean":
                self.breakable.add((name, connection))


@dataclass
class Arrived:
    """What one output has."""

    events: int = 0
    ids: Counter[Id] = field(default_factory=Counter)
    event_ids: dict[Id, set[str]] = field(default_factory=dict)
    positions: set[int] = field(default_factory=set)  # in the collector's spool
    names: dict[int, str] = field(default_factory=dict)  # position → event.id
    pieces: list[str] = field(default_factory=list)  # messages that were cut on the way
    strangers: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, lines: Iterable[bytes]) -> "Arrived":
        """From the events as the collector made them."""
        found = cls()
        for line in lines:
            found.add(orjson.loads(line))
        return found

    def add(self, event: dict[str, Any]) -> None:
        """One event."""
        self.events += 1
        place = _position(event)
        self.positions.add(place)
        self.names[place] = event["event"]["id"]
        match = _ID.search(event["message"])
        if "_truncated" in event.get("tags", ()):
            self.pieces.append(event["message"])
        elif match is None:
            self.strangers.append(event["message"])
        else:
            one = Id(match[1], int(match[2]), int(match[3]))
            self.ids[one] += 1
            self.event_ids.setdefault(one, set()).add(event["event"]["id"])

    def recognise(self, whole: "Arrived") -> None:
        """Count as there what a store that goes by event.id has under that id, from another place in the spool.

        An agent's batch whose acknowledgement was lost comes again, under the ids that it had.
        """
        known = set(self.names.values())
        self.positions |= {place for place, name in whole.names.items() if name in known}

    @property
    def duplicates(self) -> int:
        """Events beyond the first of each id."""
        return self.ids.total() - len(self.ids)

    @property
    def renamed(self) -> list[Id]:
        """Messages under several event ids, by which a receiver could not tell that they are one."""
        return sorted(one for one, names in self.event_ids.items() if len(names) > 1 and one.source not in REREADS)


def _position(event: dict[str, Any]) -> int:
    """An event's place in the collector's spool: its id, or where an agent named it, beside that."""
    place = event.get("ndcollector", {}).get("position") or event["event"]["id"]
    return int(str(place).rpartition("-")[2], 36)


def judge(
    name: str, arrived: Arrived, claims: Claims, line: dict[str, Any] | None, *, once: bool = False
) -> list[str]:
    """What is wrong at one output, in words; `line` is its line of the ledger; `once`: it has no duplicates."""
    wrong = []
    if once and arrived.events > len(arrived.positions):
        wrong.append(f"{name}: {arrived.events - len(arrived.positions)} events came twice to a store that can tell")
    missing = sorted(claims.owed - arrived.ids.keys())
    if missing:
        wrong.append(f"{name}: {len(missing)} of {len(claims.owed)} owed messages are missing: {_shown(missing)}")
    unknown = sorted(arrived.ids.keys() - claims.owed - claims.maybe)
    if unknown:
        wrong.append(f"{name}: {len(unknown)} ids that nobody sent: {_shown(unknown)}")
    if arrived.strangers:
        wrong.append(f"{name}: {len(arrived.strangers)} events without an id: {_shown(arrived.strangers)}")
    if len(set(arrived.pieces)) > len(claims.breakable):
        wrong.append(f"{name}: more cut messages than broken connections: {_shown(arrived.pieces)}")
    if arrived.renamed:
        wrong.append(f"{name}: {len(arrived.renamed)} messages have several event ids: {_shown(arrived.renamed)}")
    gaps = sorted(set(range(min(arrived.positions, default=0), len(arrived.positions))) - arrived.positions)
    if gaps:
        wrong.append(f"{name}: gaps in the spool's sequence: {_shown(gaps)}")
    return wrong + _judge_ledger(name, arrived, line)


def _judge_ledger(name: str, arrived: Arrived, line: dict[str, Any] | None) -> list[str]:
    if line is None:
        return [f"{name}: the ledger has no line for it"]
    lost = {part: line[part] for part in ("pending", "filtered", "dead_lettered", "quarantined", "evicted")}
    wrong = [f"{name}: the ledger calls {count} events {part}" for part, count in lost.items() if count]
    if line["delivered"] + sum(lost.values()) != line["appended"]:
        wrong.append(f"{name}: the ledger does not add up: {line}")
    if line["appended"] != len(arrived.positions):
        wrong.append(f"{name}: the ledger has {line['appended']} events, {len(arrived.positions)} are there")
    return wrong


def _shown(things: Sequence[object]) -> str:
    more = f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else ""
    return ", ".join(map(str, things[:_SHOWN])) + more
