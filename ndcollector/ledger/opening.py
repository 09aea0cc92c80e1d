"""What a start makes of the file and a spool: whatever the last process did not get to write is counted, or said.

A ledger and a spool are written one after the other, so a crash leaves them apart by about a second:

    the spool holds more than was received    its records are counted (ToCount, `received`)
    a cursor is behind its account            the account was durable, and the output's side too, when the cursor was
                                              not yet: the cursor goes on where the account says (`resumed`), so that
                                              nothing is sent or counted twice. Only where the cursor's file is exactly
                                              the one that the account was written over
    a cursor is ahead of its account          the ledger could not be written then: what lies between is counted
    a cursor is somewhere else                it began again, or a person set it: an account is closed, another begins
    the spool is another one                  as above, with all of its accounts
    the spool ends before the ledger          a power cut or a backup took back what was counted: (vanished)

Promises: pure; afterwards the invariants of books.py hold. Refuses: reading files.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ndagent.core.spool.position import Position, Saved
from ndcollector.ledger.books import Account, Stream, ToCount, fates_of, frontier, repeats_pending

log = logging.getLogger("ledger")

_IDS_KEPT = 4


@dataclass(frozen=True, slots=True)
class SpoolView:
    """What must be known of a spool: `known` ids it bears, `new` ones it will; cursors with what is on disk of them."""

    stream: str
    known: frozenset[str]
    new: tuple[str, ...]
    first_sequence: int
    next_sequence: int
    cursors: Mapping[str, tuple[Position, Saved | None]]


@dataclass(slots=True)
class Opened:
    """A stream that can go on. `closed` are spools and accounts (with their spool's number) that cannot."""

    stream: Stream
    jobs: list[ToCount] = field(default_factory=list)
    resumed: dict[str, Position] = field(default_factory=dict)
    closed_stream: Stream | None = None
    closed_accounts: list[tuple[int, Account]] = field(default_factory=list)


def open_stream(
    loaded: Stream | None, jobs: Iterable[ToCount], view: SpoolView, *, number: Callable[[], int], now: float
) -> Opened:
    """Bring a stream's sums up to its spool; `number` gives each account and range a number of its own."""
    stream, closed = _same_spool(loaded, view, number=number, now=now)
    opened = Opened(stream, closed_stream=closed, jobs=[] if closed else list(jobs))
    kept = [one for one in stream.ids if one not in view.new]
    stream.ids = (*kept, *view.new)[-_IDS_KEPT:]
    _receive(opened, view, number)
    for output in [output for output in stream.accounts if output not in view.cursors]:
        close_account(opened.closed_accounts, stream, output, "its output is no longer configured", now=now)
    for output, (position, saved) in view.cursors.items():
        _open_account(opened, output, position, saved, view, number=number, now=now)
    return opened


def close_account(into: list[tuple[int, Account]], stream: Stream, output: str, why: str, *, now: float) -> None:
    """Its sums stay as they are."""
    account = stream.accounts.pop(output)
    account.closed_at, account.closed_why = now, why
    into.append((stream.number, account))


def begin_account(
    stream: Stream, output: str, position: Position, *, number: Callable[[], int], now: float
) -> list[ToCount]:
    """A new account, and what is to be counted for it."""
    account = stream.begin(number(), output, position, now=now)
    first, end = frontier(position), stream.position
    return [ToCount(number(), stream.stream, "owed", first, end, account.number)] if first < end else []


def _same_spool(
    loaded: Stream | None, view: SpoolView, *, number: Callable[[], int], now: float
) -> tuple[Stream, Stream | None]:
    if loaded is not None and (not view.known.isdisjoint(loaded.ids) or not loaded.position):
        return loaded, None
    if loaded is not None:
        log.warning("spool %s is another one than before: a new page begins, the old one is kept closed", view.stream)
        loaded.closed_at, loaded.closed_why = now, "the spool was made anew"
    return Stream(number(), view.stream, (), now), loaded


def _receive(opened: Opened, view: SpoolView, number: Callable[[], int]) -> None:
    stream, before = opened.stream, opened.stream.position
    unnamed = stream.reached(view.next_sequence)
    if unnamed < 0:
        log.error(
            "spool %s ends %d events before the ledger: a power cut or a restored backup took them; they stand under "
            "(vanished)", view.stream, -unnamed,
        )  # fmt: skip
    first = max(before, view.first_sequence)
    if unnamed > 0 and first < view.next_sequence:
        job = number()  # also the dividing line: accounts begun later have a higher one
        opened.jobs.append(ToCount(job, view.stream, "received", first, view.next_sequence, accounts_below=job))


def _open_account(
    opened: Opened,
    output: str,
    position: Position,
    saved: Saved | None,
    view: SpoolView,
    *,
    number: Callable[[], int],
    now: float,
) -> None:
    stream = opened.stream
    account = stream.accounts.get(output)
    if account is not None and _was_interrupted(account, saved, view):
        position = account.position.evicted_to(view.first_sequence)
        opened.resumed[output] = position
    if account is not None and not may_follow(account.position, position):
        log.warning(
            "output %s of stream %s: its cursor does not go on where the ledger has it; its account begins anew, the "
            "old one is kept closed", output, stream.stream,
        )  # fmt: skip
        close_account(opened.closed_accounts, stream, output, "its cursor began again", now=now)
        account = None
    if account is None:
        opened.jobs += begin_account(stream, output, position, number=number, now=now)
        return
    unnamed = account.follow(position)
    if unnamed is not None:
        opened.jobs.append(ToCount(number(), stream.stream, *unnamed, account.number))


def _was_interrupted(account: Account, saved: Saved | None, view: SpoolView) -> bool:
    """Whether the account was written just before its cursor would have been."""
    ours = account.position
    return (
        saved is not None
        and saved.generation == account.generation
        and saved.position != ours
        and ours.sequence <= view.next_sequence
        and frontier(ours) <= view.next_sequence
        and saved.position.start == ours.start
    )


def may_follow(before: Position, after: Position) -> bool:
    """Whether a cursor can have come from the one to the other."""
    changes = [now - then for now, then in zip(fates_of(after), fates_of(before), strict=True)]
    repeats = after.replayed - before.replayed + repeats_pending(before) - repeats_pending(after)
    settled = frontier(after) - frontier(before)
    return (
        after.start == before.start
        and after.replayed >= before.replayed
        and min(*changes, repeats, settled) >= 0
        and sum(changes) == repeats + settled
    )
