"""What the far side has of batches that it took in part, so that only the rest is sent again.

A far side may take some events of a request and refuse others, or take the first of several requests that a batch had
to be cut into. The machine knows only "all" and "not all" (see Rejected) and sends the others again, which would double
what arrived. An output that learns more notes it here and asks for the rest before each send.

Promises: only what was noted as taken is ever left out, and never of a replay, which an operator asked for; at most
`most_events` are remembered, and what is forgotten is sent twice, never lost; costs nothing while nothing is noted.
Refuses: surviving a restart.
"""

from ndagent.wire.record import EventBatch

MOST_EVENTS = 1 << 17
"""Some 20 MB, and several batches of default size for each of four sends under way."""

_Source = tuple[str, str]


class Taken:
    """For one output. All methods are for the loop's thread."""

    def __init__(self, *, most_events: int = MOST_EVENTS) -> None:
        self._most_events = most_events
        self._noted: dict[tuple[_Source, int], None] = {}  # in the order in which they were noted

    def note(self, events: EventBatch) -> None:
        """The far side has all of these, but not all of the batch that they came in."""
        if events.replay:
            return
        source = (events.stream, events.spool_id)
        self._noted |= dict.fromkeys((source, sequence) for sequence in events.sequences)
        while len(self._noted) > self._most_events:
            del self._noted[next(iter(self._noted))]

    def rest(self, events: EventBatch) -> EventBatch:
        """Those of the batch that the far side has not got; the batch itself where nothing is known of it."""
        if not self._noted or events.replay:
            return events
        source = (events.stream, events.spool_id)
        missing = [i for i, sequence in enumerate(events.sequences) if (source, sequence) not in self._noted]
        return events if len(missing) == len(events) else events.select(missing)

    def forget(self, events: EventBatch) -> None:
        """The whole batch is with the far side, and send() returns for it: nobody will ask again."""
        if not self._noted or events.replay:
            return
        source = (events.stream, events.spool_id)
        for sequence in events.sequences:
            self._noted.pop((source, sequence), None)
