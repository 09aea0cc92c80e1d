"""The two events about a source, gone quiet and back, and their way into the spool: each exactly once.

An event and what was said so far about its source stand in one record (Batch.checkpoint), so that a crash leaves both
or none. `said_until` is the place in the spool up to which the saved table knows what was said: whatever a start finds
behind it, `said_since` reads from the records.

Promises: one batch at a time, in order; what waits is bounded (MOST_WAITING), and who is beyond that is told of later.
Refuses: deciding who is quiet.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import msgpack
import orjson

from ndagent.core.interfaces import Accept
from ndagent.core.metrics import Metrics
from ndagent.core.spool.files import Files
from ndagent.core.spool.offline import records
from ndagent.core.spool.record import Record
from ndagent.core.spool.scan import NO_LIMIT
from ndagent.wire.ecs import ECS_VERSION
from ndagent.wire.record import Batch, Checkpoint, CorruptBody, Flags, Framing, Origin, Section, unpack_body
from ndcollector.sources.table import Key, Source

log = logging.getLogger("sources")

INPUT = "sources"
"""The name of the input that these events come through."""
STREAM = "alerts"
MOST_WAITING = 10_000
_A_BATCH = 500

What = Literal["quiet", "back"]


class Notice(NamedTuple):
    """What is to be said: the source, when it happened, and the event."""

    source: Source
    what: What
    at: float
    events: int  # of the source, by then
    line: bytes


class Said(NamedTuple):
    """What was said last about a source, when, and the input that it came through."""

    what: str
    at: float
    input: str


def origin_of(node_name: str) -> Origin:
    """Of the events that the collector makes itself; in the ledger they stand under nd:server:<its name>."""
    return Origin(INPUT, "", 0, names=(f"URI:nd:server:{node_name}",))


class Alerts:
    """Says one batch after the other. `said` is told when a batch is durable; `next_sequence` is the spool's."""

    def __init__(
        self, *, node_name: str, metrics: Metrics, next_sequence: Callable[[], int], said: Callable[[Notice], None]
    ) -> None:
        self._origin = origin_of(node_name)
        self._observer = {"name": node_name, "type": "collector", "product": "ndcollector"}
        self._received = metrics.received.labels(INPUT)
        self._next_sequence = next_sequence
        self._said = said
        self._waiting: list[Notice] = []
        self._there = asyncio.Event()
        self._before: int | None = None  # where the spool ended before the batch that is under way

    @property
    def is_full(self) -> bool:
        """Whether nothing more can wait."""
        return len(self._waiting) >= MOST_WAITING

    @property
    def said_until(self) -> int:
        """All that was said below this sequence is known to the table."""
        return self._next_sequence() if self._before is None else self._before

    def say(self, source: Source, what: What, *, now: float, since: float, usual: float) -> None:
        """Have it said soon. `since`: the last message, or when we began to wait; `usual`: pause, 0 if not learned."""
        source.is_speaking = True
        line = self._line(source, what, now=now, since=since, usual=usual)
        self._waiting.append(Notice(source, what, now, source.events, line))
        self._there.set()

    async def run(self, accept: Accept) -> None:
        """Hand on what is to be said, until cancelled."""
        while True:
            await self._there.wait()
            while self._waiting:
                await self._hand_on(accept, self._waiting[:_A_BATCH])
            self._there.clear()

    async def _hand_on(self, accept: Accept, notices: Sequence[Notice]) -> None:
        self._before = self._next_sequence()
        task = asyncio.ensure_future(accept(self._batch(notices)))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task  # what is being written becomes durable all the same; a second cancel goes through to it
            self._settle(notices)
            raise
        self._settle(notices)

    def _settle(self, notices: Sequence[Notice]) -> None:
        self._before = None
        del self._waiting[: len(notices)]
        self._received.inc(len(notices))
        for notice in notices:
            notice.source.is_speaking = False
            self._said(notice)

    def _batch(self, notices: Sequence[Notice]) -> Batch:
        payload = b"".join(notice.line for notice in notices)
        section = Section(self._origin, Framing.LF, Flags.NONE, len(payload), len(notices))
        parts = {pack_key(one.source.key): msgpack.packb([one.what, one.at, one.source.input]) for one in notices}
        at_ns = round(notices[-1].at * 1e9)
        return Batch(STREAM, "ecs", at_ns, [section], [payload], Checkpoint(INPUT, parts))

    def _line(self, source: Source, what: What, *, now: float, since: float, usual: float) -> bytes:
        of = f"{source.name} ({source.channel})" if source.channel else source.name
        silent = max(now - since, 0.0)
        if what == "quiet":
            learned = f"it usually speaks every {_words(usual)}" if usual else "a person expects more of it"
            message = f"{of} has been quiet for {_words(silent)}; {learned}"
        else:
            message = f"{of} is back after {_words(silent)}"
        about: dict[str, object] = {"name": source.name, "input": source.input, "usual_pause_seconds": round(usual, 3)}
        if source.channel:
            about["channel"] = source.channel
        event = {
            "@timestamp": _time(now),
            "ecs": {"version": ECS_VERSION.decode()},
            "message": message,
            "event": {
                "kind": "alert", "module": "ndcollector", "dataset": "ndcollector.sources", "action": f"source-{what}",
                "created": _time(now), "start": _time(since), "duration": round(silent * 1e9), "reason": message,
            },
            "observer": self._observer,
            "ndcollector": {"source": about},
        }  # fmt: skip
        return orjson.dumps(event) + b"\n"


def pack_key(key: Key) -> bytes:
    """As it stands in a checkpoint."""
    return bytes(msgpack.packb(list(key)))


def said_since(files: Files, directory: Path, sequence: int) -> dict[Key, Said]:
    """What was said last about each source, in the records from this sequence on. Raises OSError."""
    found: dict[Key, Said] = {}
    for item in records(directory, sequence, NO_LIMIT, files):
        if not isinstance(item, Record):
            continue
        with suppress(CorruptBody, ValueError, TypeError, msgpack.UnpackException):
            checkpoint = unpack_body(item.body).checkpoint
            if checkpoint is None or checkpoint.input != INPUT or isinstance(checkpoint.position, bytes):
                continue
            for packed, state in checkpoint.position.items():
                name, channel = msgpack.unpackb(packed)
                what, at, input_name = msgpack.unpackb(state)
                found[str(name), str(channel)] = Said(str(what), float(at), str(input_name))
    return found


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _words(seconds: float) -> str:
    """A length of time as people say it."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"
