"""The contracts between plugs and machine: Input, Output, Accept, and the two ways a send can fail.

A call that returns is the acknowledgement; a call that waits is back-pressure. There are no callbacks to forget.

Order of calls: an Input gets one `start`, then `run` (again if it failed; it then starts itself), and is ended by
cancelling `run`. An Output is built, gets any number of `send` (up to `in_flight` at a time), `sync` before a cursor is
saved, and one `aclose`, which is safe at any time, also before the first send and twice.
"""

from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ndagent.wire.record import Batch, EventBatch

if TYPE_CHECKING:
    from ndagent.core.spool import Cursor
    from ndagent.core.spool.position import Position
    from ndagent.core.tally import Tally

Accept = Callable[[Batch], Awaitable[None]]
"""Returns once the batch is durable (Spool.append is one). Waits while there is no room; never drops."""


LONGEST_RETRY_AFTER_SECONDS = 3600.0
"""A far side that asks for more than this is mistaken, and nobody would be there to correct it."""

MAX_RESPONSE_CHARACTERS = 2000
"""Of what a far side answered, kept with each dead letter."""


class Unavailable(Exception):
    """Later: the far side cannot take the events now. The data waits; nothing is lost.

    `retry_after_seconds` is the far side's own wish, None where it said nothing. 401 and 403 are Unavailable too: a
    person must act and the data must still be there when they have.
    """

    def __init__(self, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Rejected(Exception):
    """Never: the far side will not take these events however often they are sent.

    `indexes` are positions in the batch that was sent; None means the far side did not say which, and the machine
    bisects to find out. All other events of the batch are taken to be not delivered.

    What its dead letters say besides `reason`: `reasons`, where the far side gave one for an event, by its position
    (they are the indexes where no others are given), and `response`, its answer (status and text, cut) as it came.
    """

    def __init__(
        self,
        reason: str,
        indexes: Sequence[int] | None = None,
        *,
        reasons: Mapping[int, str] | None = None,
        response: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.indexes = sorted(reasons) if indexes is None and reasons else indexes
        self.reasons: Mapping[int, str] = reasons or {}
        self.response = None if response is None else response[:MAX_RESPONSE_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Routed:
    """What a route made of a batch: every event of it is in exactly one of the three.

    `filtered` has for each event that was left out on purpose its origin, an index into the `origin_blobs` that
    `events` shares with the batch. `failed` are events, as they came, that could not be changed as they must be before
    they may be sent, and why.
    """

    events: EventBatch
    filtered: "array[int]" = field(default_factory=lambda: array("I"))
    failed: Sequence[tuple[EventBatch, str]] = ()


Route = Callable[[EventBatch], Awaitable[Routed]]
"""Which events an output gets, and how they look to it. Answers by the events alone, so that a batch that is routed
again (a retry after a restart, a replay) fares as it did; keeps their order; never adds one."""


class Journal(Protocol):
    """Keeps whose events became what (the collector's ledger). An agent has none."""

    def settled(self, stream: str, cursor: "Cursor", before: "Position", tally: "Tally") -> None:
        """The cursor was just moved on from `before`, over events that the tally counts; repeats are not in it."""

    async def commit(self) -> None:
        """Return once all that was noted is durable, or after a bounded time; never raises."""


class Input(Protocol):
    """Turns what arrives from outside into batches."""

    async def start(self) -> None:
        """Open what data will come through, or raise OSError that names it: then nothing stays open."""

    async def run(self, accept: Accept) -> None:
        """Serve until cancelled. Acknowledge the peer only after accept() returned; stop reading while it waits."""


class Output(Protocol):
    """Hands events to one destination, connecting when it needs to."""

    async def send(self, events: EventBatch) -> None:
        """Return once the far side owns the events; raise Unavailable or Rejected, nothing else on purpose."""

    async def sync(self) -> None:
        """Make all that send() returned for survive a crash; called before the cursor passes it on disk."""

    async def aclose(self) -> None:
        """Let go of connections and files; what was not sent stays in the spool."""
