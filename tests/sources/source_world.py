"""Sources on a clock that tests move: senders that speak at their times, and what was said about them."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import orjson

from ndagent.core.instruments import values
from ndagent.core.metrics import Metrics
from ndagent.core.spool.record import Entry
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section, pack_body
from ndcollector.ledger.fresh import Fresh
from ndcollector.sources.config import SourcesConfig
from ndcollector.sources.sources import Sources

MONDAY = 1_763_942_400.0
UDP = "syslog_udp"
LAST_SEEN = 8
"""Its column in a row."""
DECODER = make_decoder(DecodeSettings(observer_name="here"))


def device(name: str, *, input_name: str = "syslog_tls") -> Origin:
    """With a certificate."""
    return Origin(input_name, "192.0.2.1", 40000, names=(f"URI:nd:device:{name}",))


def agent(name: str = "a1") -> Origin:
    """An agent's, through https."""
    return Origin("https", "192.0.2.9", 50000, names=(f"URI:nd:agent:{name}",), clock_skew_seconds=3)


class World:
    """Sources, and the spool of alerts as a list."""

    def __init__(self, *, now: float = MONDAY, **settings: Any) -> None:
        self.now = now
        self.up = now  # the monotonic clock
        self.config = SourcesConfig(**{"learn": "0s", **settings})
        self.listening: set[str] = {"syslog_tls", UDP, "https"}
        self.said: list[dict[str, Any]] = []
        self.metrics = Metrics()
        self.end = 0
        self.begin()

    def begin(self, rows: list[tuple[Any, ...]] | None = None) -> None:
        """A new process, with what the last one saved."""
        self.sources = Sources(
            lambda: self.config,
            node_name="here",
            metrics=self.metrics,
            listening=lambda: self.listening,
            clock=lambda: self.now,
            monotonic=lambda: self.up,
        )
        self.sources.load(rows or [], {})
        self.sources.attach(lambda: ("spool", len(self.said)))

    def restart(self, *, down_seconds: float = 0.0) -> None:
        """Stop in good order, start later."""
        self.sources.save_all()
        rows = sorted(
            self.sources.changes(everything=True).rows, key=lambda row: float(row[LAST_SEEN])
        )  # as rows.SELECT
        self.now += down_seconds
        self.begin(rows)

    def heard(self, **counts: int) -> None:
        """Devices sent something just now."""
        self.heard_from({device(name): count for name, count in counts.items()})

    def heard_from(self, counts: Mapping[Origin, int]) -> None:
        fresh, self.end = Fresh(), self.end + sum(counts.values())
        fresh.events = {origin.packed: count for origin, count in counts.items()}
        fresh.framings = dict.fromkeys(fresh.events, Framing.LF)
        fresh.last_ns, fresh.position = round(self.now * 1e9), self.end
        self.sources.heard("security_events", fresh)

    def decoded(self, batch: Batch, *, is_new: bool = True) -> None:
        """A batch was committed (unless it was before) and decoded just now."""
        if is_new:
            self.committed(batch)
        body = b"".join(pack_body(batch))
        events = DECODER.decode(
            body, stream=batch.stream, spool_id="s", sequence=0, received_at_ns=batch.received_at_ns, replay=False
        )
        self.sources.decoded(batch.stream, [events], self.end)

    def committed(self, batch: Batch) -> None:
        """Its heads are counted as the ledger counts them."""
        fresh, self.end = Fresh(), self.end + batch.count
        entry = SimpleNamespace(
            sections=batch.sections, received_at_ns=batch.received_at_ns, sequence=self.end - batch.count,
            count=batch.count,
        )  # fmt: skip
        fresh.take([cast("Entry", entry)])
        self.sources.heard(batch.stream, fresh)

    async def tick(self) -> None:
        """A second's look; what is to be said is durable at once."""
        await self.sources.tick()
        alerts = self.sources._alerts
        while alerts._waiting:
            await alerts._hand_on(self._accept, alerts._waiting[:500])

    async def look(self) -> None:
        """Until all that was decoded by now is taken up."""
        await self.live(3)

    async def live(self, seconds: float, speak: Callable[[float], None] = lambda _: None, *, step: float = 1.0) -> None:
        """Let time pass in steps; `speak` is called with the seconds that have passed."""
        passed = 0.0
        while passed < seconds:
            speak(passed)
            await self.tick()
            self.now += step
            self.up += step
            passed += step

    async def rhythm(self, seconds: float, *names: str, every: int = 60) -> None:
        """These devices speak at regular times for so long; the last message is `every` seconds ago at the end."""

        def speak(passed: float) -> None:
            if passed % every == 0:
                self.heard(**dict.fromkeys(names, 1))

        await self.live(seconds, speak, step=min(every, 60))

    async def _accept(self, batch: Batch) -> None:
        assert batch.stream == "alerts"
        assert batch.checkpoint is not None
        lines = b"".join(batch.payload).splitlines()
        assert len(lines) == batch.count
        self.said += [orjson.loads(line) for line in lines]

    def count(self, name: str) -> int:
        """A metric without labels."""
        ((_, found),) = values(getattr(self.metrics, name))
        return found

    def actions(self) -> list[tuple[str, str]]:
        """(name, action) of each event said."""
        return [(one["ndcollector"]["source"]["name"], one["event"]["action"]) for one in self.said]

    def row(self, name: str, channel: str = "") -> dict[str, Any]:
        """A source as operators see it."""
        (found,) = (row for row in self.sources.plain() if (row["name"], row["channel"]) == (name, channel))
        return found


def batch_of(
    messages: Mapping[Origin, list[bytes]], *, at: float, form: str = "syslog", flags: Flags = Flags.NONE
) -> Batch:
    """Messages, a section for each sender."""
    payload = [b"".join(one + b"\n" for one in lines) for lines in messages.values()]
    sections = [
        Section(origin, Framing.LF, flags, len(data), len(lines))
        for (origin, lines), data in zip(messages.items(), payload, strict=True)
    ]
    return Batch("security_events", form, round(at * 1e9), sections, payload)


def event_of(dataset: str, **more: object) -> bytes:
    """An agent's event as its inputs make it."""
    event = {"@timestamp": "2025-11-24T00:00:00Z", "event": {"kind": "event", "dataset": dataset}, "message": "x"}
    return orjson.dumps(event | more)
