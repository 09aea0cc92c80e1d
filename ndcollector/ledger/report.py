"""Rows and proofs, as plain data: what the admin socket answers and `ndcollector ledger --json` prints.

For each output of a stream the proof is that of books.py: the sums over all origins are the cursor's own account, and
what is pending is what the cursor has still to settle. For each origin: nothing that was not received is owed or
settled. A sum that is still being counted excuses the rows of its stream, not the totals.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ndagent.core.spool.position import Position
from ndcollector.ledger.books import FATES, OFFSET, Account, Stream, ToCount, errors
from ndcollector.ledger.origins import PSEUDO


class Page(NamedTuple):
    """One stream's sums, the spool's end, and where its cursors stand."""

    stream: Stream
    next_sequence: int
    cursors: Mapping[str, Position]


@dataclass(frozen=True, slots=True)
class Report:
    """A look at everything at one moment. `closed` are rows of Store.closed."""

    pages: Sequence[Page]
    names: Sequence[str]
    jobs: Sequence[ToCount]
    dropped: Mapping[tuple[str, str], int]
    closed: Sequence[tuple[Any, ...]]
    unsaved_since: float | None = None

    def plain(self, *, origin: str | None, output: str | None, stream: str | None) -> dict[str, object]:
        """All of it, or only the rows that match; the proof is always over everything."""
        problems = [problem for page in self.pages for problem in self._problems(page)]
        wanted = [page for page in self.pages if stream in (None, page.stream.stream)]
        return {
            "adds_up": not problems,
            "problems": problems,
            "unsaved_since": self.unsaved_since,
            "uncounted": sum(job.end - job.first for job in self.jobs if job.kind in ("received", "owed")),
            "streams": [self._totals(page, output) for page in wanted],
            "origins": [row for page in wanted for row in self._rows(page, origin, output)],
            "dropped": [{"input": name, "reason": why, "events": n} for (name, why), n in sorted(self.dropped.items())],
            "closed": [_closed(row) for row in self.closed if output in (None, row[1]) and stream in (None, row[0])],
        }

    def _problems(self, page: Page) -> Iterator[str]:
        name, sums = page.stream.stream, page.stream
        if sums.position != page.next_sequence:
            yield f"{name}: the ledger ends at {sums.position}, the spool at {page.next_sequence}"
        for output, position in page.cursors.items():
            account = sums.accounts.get(output)
            if account is None:
                yield f"{name} → {output}: has no account"
                continue
            yield from (f"{name} → {output}: {error}" for error in errors(sums, account, position))
            if not any(job.stream == name for job in self.jobs):
                yield from self._impossible(page, output, account)

    def _impossible(self, page: Page, output: str, account: Account) -> Iterator[str]:
        """Origins that are owed less than nothing: something was counted twice."""
        for origin in range(len(PSEUDO), len(self.names)):
            pending = page.stream.pending(account, origin)
            if pending < 0:
                yield f"{page.stream.stream} → {output}: {self.names[origin]}: {-pending} more settled than received"

    def _totals(self, page: Page, output: str | None) -> dict[str, object]:
        sums = page.stream
        outputs = [
            self._output(sums, account, None) for name, account in sums.accounts.items() if output in (None, name)
        ]
        return {"stream": sums.stream, "received": sums.received.total, "since": sums.opened_at, "outputs": outputs}

    def _output(self, sums: Stream, account: Account, origin: int | None) -> dict[str, object]:
        """An account's figures, of one origin or over all; they add up to `received` less what came `before`."""
        if origin is None:
            figures = [column.total for column in account.columns]
            pending = sums.received.total - sum(figures)
        else:
            figures = [column[origin] for column in account.columns]
            pending = sums.pending(account, origin)
        fates = dict(zip(FATES, figures[1:], strict=True))
        return {"output": account.output, "before": figures[OFFSET], "pending": pending, **fates}

    def _rows(self, page: Page, pattern: str | None, output: str | None) -> Iterator[dict[str, object]]:
        sums = page.stream
        for origin in sums.origins():
            name = self.names[origin]
            if pattern is not None and not fnmatchcase(name, pattern):
                continue
            accounts = [account for one, account in sums.accounts.items() if output in (None, one)]
            outputs = [self._output(sums, account, origin) for account in accounts]
            received = sums.received[origin]
            if not received and not any(value for row in outputs for value in row.values() if isinstance(value, int)):
                continue
            seen = origin < len(sums.last_ns) and sums.last_ns[origin] > 0
            yield {
                "origin": name,
                "stream": sums.stream,
                "received": received,
                "first_seen": sums.first_ns[origin] / 1e9 if seen else None,
                "last_seen": sums.last_ns[origin] / 1e9 if seen else None,
                "outputs": outputs,
            }


def _closed(row: tuple[Any, ...]) -> dict[str, object]:
    stream, output, closed_at, why, *fates = row
    sums = {name: total or 0 for name, total in zip(FATES, fates, strict=True)}
    return {"stream": stream, "output": output, "closed_at": closed_at, "why": why, **sums}
