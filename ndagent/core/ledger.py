"""The conservation ledger: where every event went, computed from sequences at the moment somebody asks.

    per output and stream   appended = delivered + pending + filtered + dead_lettered + quarantined + evicted
    in this process         received = appended + dropped, over all inputs and streams

The first is told since the output began, the second, and the line of `text`, since this process did.

Promises: no counters of its own; outputs' accounts come from their cursors and hold across restarts, the inputs' side
from the metrics and from how far each spool has grown since this process opened it. `adds_up` is exact whenever no
append is under way: an input counts an event as received once it is durable or refused, so for an instant the spool
may be ahead.
Refuses: guessing which input a missing event came through; that is what the inputs' own counters show.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from ndagent.core.instruments import values
from ndagent.core.metrics import Metrics
from ndagent.core.spool import Account, Spool


@dataclass(frozen=True, slots=True)
class InputLine:
    """One input since this process started: `received` = appended + the sum of `dropped` (by reason)."""

    input: str
    received: int
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One cursor: what became of the events of a stream at an output."""

    output: str
    stream: str
    appended: int
    delivered: int
    pending: int
    filtered: int
    dead_lettered: int
    quarantined: int
    evicted: int

    @property
    def adds_up(self) -> bool:
        """The law of this line; a negative part is a broken law, too."""
        parts = (self.delivered, self.pending, self.filtered, self.dead_lettered, self.quarantined, self.evicted)
        return min(parts) >= 0 and sum(parts) == self.appended


@dataclass(frozen=True, slots=True)
class Ledger:
    """A snapshot. `appended` counts what the spools took since this process opened them, `before` is how it began."""

    inputs: tuple[InputLine, ...]
    outputs: tuple[OutputLine, ...]
    appended: Mapping[str, int]
    before: Mapping[tuple[str, str], Account]

    @property
    def received(self) -> int:
        """Events that inputs made durable or refused."""
        return sum(line.received for line in self.inputs)

    @property
    def dropped(self) -> int:
        """Events that inputs refused, whatever the reason."""
        return sum(sum(line.dropped.values()) for line in self.inputs)

    @property
    def adds_up(self) -> bool:
        """Whether both laws hold."""
        inputs_add_up = self.received == sum(self.appended.values()) + self.dropped
        return inputs_add_up and all(line.adds_up for line in self.outputs)

    @property
    def text(self) -> str:
        """`received N · delivered N · dropped N`, and what else became of events where anything did.

        Delivered means by every output of its stream: the output that is furthest behind counts, and of several the one
        that leaves out least. Dropped includes what an output lost to a damaged disk or a full spool. All since this
        process began, except what is still pending.
        """
        worst = [min(lines, key=self._behind) for lines in self._by_stream().values()]

        def together(part: str) -> int:
            return sum(getattr(line, part) - getattr(self._before(line), part, 0) for line in worst)

        lost = self.dropped + together("quarantined") + together("evicted")
        parts = {"received": self.received, "delivered": together("delivered"), "dropped": lost}
        others = {"pending": sum(line.pending for line in worst), "filtered": together("filtered")}
        others["dead-lettered"] = together("dead_lettered")
        parts |= {name: count for name, count in others.items() if count}
        return " · ".join(f"{name} {count}" for name, count in parts.items())

    def _before(self, line: OutputLine) -> Account | None:
        return self.before.get((line.output, line.stream))

    def _behind(self, line: OutputLine) -> tuple[int, int]:
        """Lowest where the most is still owed: what an output leaves out on purpose, nobody owes it."""
        before = self._before(line)
        delivered = line.delivered - (before.delivered if before else 0)
        filtered = line.filtered - (before.filtered if before else 0)
        return delivered + filtered, filtered

    def plain(self) -> dict[str, object]:
        """As plain data, for the admin socket and the CLI."""
        lines = {"inputs": [asdict(line) for line in self.inputs], "outputs": [asdict(line) for line in self.outputs]}
        return {"adds_up": self.adds_up, "text": self.text, "appended": dict(self.appended), **lines}

    def _by_stream(self) -> dict[str, list[OutputLine]]:
        streams: dict[str, list[OutputLine]] = {}
        for line in self.outputs:
            streams.setdefault(line.stream, []).append(line)
        return streams


class Bookkeeper:
    """Takes snapshots.

    Make it right after the spools are opened: what they hold then is not this process's.
    """

    def __init__(self, spools: Mapping[str, Spool], metrics: Metrics) -> None:
        self._spools = spools
        self._metrics = metrics
        self._opened_at = {stream: spool.next_sequence for stream, spool in spools.items()}
        self._before = {
            (name, stream): cursor.account()
            for stream, spool in spools.items()
            for name, cursor in spool.cursors.items()
        }

    def snapshot(self) -> Ledger:
        """The ledger as of now."""
        appended = {stream: spool.next_sequence - self._opened_at[stream] for stream, spool in self._spools.items()}
        return Ledger(
            inputs=tuple(self._inputs()), outputs=tuple(self.outputs()), appended=appended, before=self._before
        )

    def outputs(self) -> Iterator[OutputLine]:
        """The account of each cursor."""
        for stream, spool in self._spools.items():
            for name, cursor in list(spool.cursors.items()):
                account: Account = cursor.account()
                yield OutputLine(output=name, stream=stream, **account._asdict())

    def _inputs(self) -> Iterator[InputLine]:
        received = {labels["input"]: value for labels, value in values(self._metrics.received)}
        dropped: dict[str, dict[str, int]] = {}
        for labels, value in values(self._metrics.dropped):
            dropped.setdefault(labels["input"], {})[labels["reason"]] = value
        for name in sorted({*received, *dropped}):
            yield InputLine(name, received.get(name, 0), dropped.get(name, {}))

