"""The sums in memory, and the algebra that keeps them equal to what spools and cursors say.

    Stream     received(origin), which together are `position`: every sequence of the spool up to there, once
    Account    one output on one stream: offset, delivered, filtered, dead_lettered, quarantined, evicted (origin)

Invariants, whatever happens and in whatever order (`tests/ledger` checks them after every step):
    sum of received                  = position
    sum of each fate of an account   = the same figure in its cursor's account
    pending(origin)                  = received - offset - all fates; together what the cursor has still to settle
`offset` is what this output does not owe under that name: what came before it began, or what is accounted for under
another name.

How a sum gets its name: what is not known at once is booked on a name in parentheses first, so that the sums are right
at every moment, and *moved* to the senders once it has been counted. All moves only add and subtract: they may come in
any order, late, or never, and no sum over all origins changes by one.

Refuses: files, clocks, threads. Belongs to whoever holds it.
"""

from array import array
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ndagent.core.spool.position import Position
from ndcollector.ledger.origins import REPEATS, UNKNOWN, UNREADABLE, VANISHED

OFFSET, DELIVERED, FILTERED, DEAD_LETTERED, QUARANTINED, EVICTED = range(6)
COLUMNS = ("offset", "delivered", "filtered", "dead_lettered", "quarantined", "evicted")
FATES = COLUMNS[1:]

Kind = Literal["received", "owed", "delivered", "shift"]


@dataclass(frozen=True, slots=True)
class ToCount:
    """A range of a stream whose events stand under (unknown) until somebody has counted whose they are.

    `received`: on the stream; accounts with a number below `accounts_below` owe them as well, later ones began with
    them behind. `owed`: before an account, not settled. `delivered`: by an account, all of them. `shift`: settled by an
    account in ways that cannot be told apart, and so accounted for under (unknown).
    """

    number: int
    stream: str
    kind: Kind
    first: int
    end: int
    account: int = 0
    accounts_below: int = 0


class Unnamed(NamedTuple):
    """The part of a ToCount that an account knows."""

    kind: Kind
    first: int
    end: int


class Tallied(NamedTuple):
    """What a feed noted, by origin number."""

    settled: Mapping[int, int]
    filtered: Mapping[int, int]
    dead_lettered: Mapping[int, int]


NOTHING = Tallied({}, {}, {})


def frontier(position: Position) -> int:
    """The first event that was never settled: where a cursor stands, or stood before a replay."""
    return position.resume_at if position.sequence < position.replay_until else position.sequence


def repeats_pending(position: Position) -> int:
    """Events of a replay that are still to be sent again."""
    return max(position.replay_until - position.sequence, 0)


def fates_of(position: Position) -> tuple[int, ...]:
    """delivered, filtered, dead_lettered, quarantined, evicted, as the cursor's account has them."""
    account = position.account(frontier(position))
    return (account.delivered, account.filtered, account.dead_lettered, account.quarantined, account.evicted)


class Column:
    """A sum for each origin number; numbers it has not heard of are zero."""

    __slots__ = ("total", "values")

    def __init__(self) -> None:
        self.values: array[int] = array("q")
        self.total = 0

    def __getitem__(self, origin: int) -> int:
        return self.values[origin] if origin < len(self.values) else 0

    def add(self, origin: int, count: int) -> None:
        """Add to one origin's sum."""
        if origin >= len(self.values):
            self.values.extend([0] * (origin + 1 - len(self.values)))
        self.values[origin] += count
        self.total += count

    def move(self, counts: Mapping[int, int], source: int) -> None:
        """Take these from `source`: the total stays."""
        for origin, count in counts.items():
            self.add(origin, count)
        self.add(source, -sum(counts.values()))


@dataclass(slots=True)
class Account:
    """One output's sums on one stream, for as long as its cursor lives. They hold at `position`."""

    number: int
    output: str
    position: Position
    opened_at: float
    columns: tuple[Column, ...] = field(default_factory=lambda: tuple(Column() for _ in COLUMNS))
    dirty: set[int] = field(default_factory=set)
    generation: int = 0  # of the cursor's slot on disk when this was last written
    closed_at: float | None = None
    closed_why: str = ""

    def add(self, column: int, origin: int, count: int) -> None:
        """Add to one sum."""
        if count:
            self.columns[column].add(origin, count)
            self.dirty.add(origin)

    def move(self, column: int, counts: Mapping[int, int], source: int = UNKNOWN) -> None:
        """Name what stands under `source`."""
        self.columns[column].move(counts, source)
        self.dirty.update(counts, (source,))

    def fates(self) -> tuple[int, ...]:
        """The totals, in the order of FATES."""
        return tuple(column.total for column in self.columns[1:])

    def settled(self, origin: int) -> int:
        """Events of this origin that are not pending."""
        return sum(column[origin] for column in self.columns[1:])

    # ---- following the cursor

    def follow(self, after: Position, tally: Tallied = NOTHING) -> "Unnamed | None":
        """Take up where the cursor is now; what `tally` names is booked on its origins if it is all that happened.

        Otherwise (something was given up to make room in between) the fates stand under (unknown), and the result is
        the range of events whose owners are still to be counted.
        """
        before, self.position = self.position, after
        changes = [now - then for now, then in zip(fates_of(after), fates_of(before), strict=True)]
        first, end = frontier(before), frontier(after)
        self.add(OFFSET, REPEATS, before.replayed - after.replayed)
        repeats = after.replayed - before.replayed + repeats_pending(before) - repeats_pending(after)
        named = _named(tally)
        rest = [change - sum(counts.values()) for change, counts in zip(changes, named, strict=True)]
        if min(rest) < 0:
            named, rest = [{}, {}, {}, {}, {}], changes
        for column, counts in enumerate(named, start=DELIVERED):
            for origin, count in counts.items():
                self.add(column, origin, count)
        rest = self._book_repeats(rest, repeats)
        self.add(QUARANTINED, UNREADABLE, rest[QUARANTINED - 1])
        for column in (DELIVERED, FILTERED, DEAD_LETTERED, EVICTED):
            self.add(column, UNKNOWN, rest[column - 1])
        if not sum(rest[:3]) or any(named):
            return None
        return Unnamed("shift" if sum(rest[1:3]) else "delivered", first + rest[EVICTED - 1], end)

    def _book_repeats(self, rest: list[int], repeats: int) -> list[int]:
        """Of what has no name yet, so many were repeats that an operator asked for."""
        left = []
        for column, count in enumerate(rest, start=DELIVERED):
            taken = min(count, repeats)
            self.add(column, REPEATS, taken)
            repeats -= taken
            left.append(count - taken)
        return left


def _named(tally: Tallied) -> list[dict[int, int]]:
    """The tally by fate, in the order of FATES."""
    lost = [tally.filtered, tally.dead_lettered]
    delivered = dict(tally.settled)
    for counts in lost:
        for origin, count in counts.items():
            delivered[origin] = delivered.get(origin, 0) - count
    return [delivered, *map(dict, lost), {}, {}]


@dataclass(slots=True)
class Stream:
    """One spool's sums: what was received up to `position`, and the outputs' accounts."""

    number: int
    stream: str
    ids: tuple[str, ...]
    opened_at: float
    position: int = 0
    received: Column = field(default_factory=Column)
    first_ns: "array[int]" = field(default_factory=lambda: array("q"))
    last_ns: "array[int]" = field(default_factory=lambda: array("q"))
    dirty: set[int] = field(default_factory=set)
    accounts: dict[str, Account] = field(default_factory=dict)
    closed_at: float | None = None
    closed_why: str = ""

    def receive(self, counts: Mapping[int, int], first_ns: int, last_ns: int) -> None:
        """Events of some batches; `position` is moved by `reached`."""
        for origin, count in counts.items():
            self.received.add(origin, count)
            self.seen(origin, first_ns, last_ns)
        self.dirty.update(counts)

    def seen(self, origin: int, first_ns: int, last_ns: int) -> None:
        """When an origin was heard of."""
        missing = origin + 1 - len(self.last_ns)
        if missing > 0:
            self.first_ns.extend([0] * missing)
            self.last_ns.extend([0] * missing)
        known = self.first_ns[origin]
        self.first_ns[origin] = min(known, first_ns) if known else first_ns
        self.last_ns[origin] = max(self.last_ns[origin], last_ns)

    def reached(self, position: int) -> int:
        """All below this sequence was received; what nobody named is (unknown). Returns how many events that is."""
        self.position = position
        unnamed = position - self.received.total
        self._unnamed(UNKNOWN if unnamed >= 0 else VANISHED, unnamed)
        return unnamed

    def _unnamed(self, origin: int, count: int) -> None:
        if count:
            self.received.add(origin, count)
            self.dirty.add(origin)

    def begin(self, number: int, output: str, position: Position, *, now: float) -> Account:
        """A new account of an output whose cursor stands here.

        What the cursor has counted so far, and what it has yet to settle, is (unknown) until it has been counted; see
        ToCount, `owed`.
        """
        account = Account(number, output, position, now)
        for column, count in enumerate(fates_of(position), start=DELIVERED):
            account.add(column, UNKNOWN, count)
        for origin in range(len(self.received.values)):
            account.add(OFFSET, origin, self.received[origin])
        account.add(OFFSET, REPEATS, -repeats_pending(position))
        owed = self.position - frontier(position)
        account.add(OFFSET, UNKNOWN, -owed - sum(account.fates()))
        self.accounts[output] = account
        return account

    def pending(self, account: Account, origin: int) -> int:
        """What an account owes an origin."""
        return self.received[origin] - account.columns[OFFSET][origin] - account.settled(origin)

    # ---- moves

    def name(self, job: ToCount, counts: Mapping[int, int]) -> None:
        """Take up whose events the range of a job holds: as many of them as could still be read."""
        if job.kind == "received":
            self.received.move(counts, UNKNOWN)
            self.dirty.update(counts, (UNKNOWN,))
            for account in self.accounts.values():
                if account.number >= job.accounts_below:
                    account.move(OFFSET, counts)
            return
        found = next((one for one in self.accounts.values() if one.number == job.account), None)
        if found is None:
            return  # its output is gone meanwhile
        if job.kind == "delivered":
            found.move(DELIVERED, counts)
        elif job.kind == "shift":
            found.move(OFFSET, counts)
        else:
            found.move(OFFSET, {origin: -count for origin, count in counts.items()})

    def recount(self, account: Account) -> "Recount | None":
        """What to count to know what an account owes to whom, where something it lost was nobody's; None if it is so.

        Only while nothing else of this stream is to be counted: that would be counted twice.
        """
        if not any(self.pending(account, origin) for origin in (UNKNOWN, UNREADABLE, VANISHED)):
            return None
        owed = {origin: self.pending(account, origin) for origin in self.origins() if origin != REPEATS}
        return Recount(account, frontier(account.position), self.position, owed)

    def copy(self) -> "Stream":
        """As it is now, for a thread that takes its time."""
        return deepcopy(self)

    def origins(self) -> Iterable[int]:
        """Every number that has a sum here."""
        most = [len(self.received.values)]
        most += [len(column.values) for account in self.accounts.values() for column in account.columns]
        return range(max(most))


@dataclass(frozen=True, slots=True)
class Recount:
    """What an account seemed to owe to whom at one moment, and the range in which all of that stands."""

    account: Account
    first: int
    end: int
    owed: Mapping[int, int]

    def take_up(self, counts: Mapping[int, int]) -> bool:
        """Owe what is there, and account for the rest under the names in parentheses; False if not all was found."""
        if sum(counts.values()) != self.end - self.first:
            return False
        for origin in {*self.owed, *counts}:
            self.account.add(OFFSET, origin, self.owed.get(origin, 0) - counts.get(origin, 0))
        return True


def errors(stream: Stream, account: Account, position: Position) -> list[str]:
    """Where the sums of an account are not those of its cursor at this position; empty if they all add up."""
    found = []
    for name, ours, theirs in zip(FATES, account.fates(), fates_of(position), strict=True):
        if ours != theirs:
            found.append(f"{name}: {ours} over all origins, {theirs} by the cursor")
    owed = stream.position - frontier(position) + repeats_pending(position)
    pending = stream.received.total - account.columns[OFFSET].total - sum(account.fates())
    if pending != owed:
        found.append(f"pending: {pending} over all origins, {owed} by the cursor")
    if stream.received.total != stream.position:
        found.append(f"received: {stream.received.total} over all origins, {stream.position} by the spool")
    return found
