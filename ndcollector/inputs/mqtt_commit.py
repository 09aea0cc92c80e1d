"""Makes agents' publishes durable, many in one record, and says of each when it is.

Promises:
  * order: parcels of one stream reach `accept` in the order of `add`, hence in the order of each connection;
  * `settled` is called with what was in a batch once `accept` returned, never before: that is the acknowledgement;
  * per stream at most two accepts at a time; what comes meanwhile shares the next batch;
  * back-pressure: above `buffer_bytes` the input is told to pause, below half of it to go on; nothing is dropped;
  * QoS 0 publishes that a stop could not make durable are counted as dropped; the others were never acknowledged.
Refuses: threads, I/O, waiting in `add`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ndagent.core import messages
from ndagent.core.batcher import CHUNK_OVERHEAD_BYTES, IN_FLIGHT, MAX_BATCH_EVENTS, MAX_GATHER_SECONDS
from ndagent.core.interfaces import Accept
from ndagent.core.metrics import Metrics
from ndagent.core.progress import Signs
from ndagent.wire.record import Batch
from ndcollector.inputs.agent_batches import FORMAT, Name, Parcel

if TYPE_CHECKING:
    from ndcollector.inputs.mqtt_peer import Peer

MAX_BATCH_BYTES = 2**20


class Publication(NamedTuple):
    """One publish on its way to the spool; `packet_id` is 0 at QoS 0, `name` None where it was no envelope."""

    peer: "Peer"
    packet_id: int
    name: Name | None
    parcel: Parcel


Settled = Callable[[Sequence[Publication]], None]


class _Stream:
    """What waits for one stream's spool."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, Publication]] = deque()
        self.ready = asyncio.Event()


class Commits:
    """`add` from protocols; `run` beside them; `finish` when no more will be added."""

    def __init__(
        self,
        accept: Accept,
        *,
        name: str,
        streams: Sequence[str],
        settled: Settled,
        paused: Callable[[bool], None],
        metrics: Metrics,
        clock: Callable[[], float],
        buffer_bytes: int,
    ) -> None:
        self._accept = accept
        self._name = name
        self._settled = settled
        self._set_paused = paused
        self._metrics = metrics
        self._clock = clock
        self._buffer_bytes = buffer_bytes
        self._streams = {stream: _Stream() for stream in streams}
        self._finished = False
        self._paused = False
        self._waiting = self._commits = 0
        self._received = metrics.received.labels(name)
        self._unacknowledged = metrics.unacknowledged.labels(name)
        metrics.paused.labels(name).set(0)
        self.buffered_bytes = 0
        """What was added or reserved and is not durable yet, overhead included."""

    def add(self, publication: Publication) -> None:
        """Take one publish; the caller goes on reading until it is told to pause."""
        stream = self._streams[publication.parcel.stream]
        stream.waiting.append((self._clock(), publication))
        stream.ready.set()
        self._waiting += 1
        self.reserve(_cost(publication))

    def reserve(self, size_bytes: int) -> None:
        """Count bytes that are held on the way here; a negative size gives them back."""
        self.buffered_bytes += size_bytes
        if self._paused and self.buffered_bytes <= self._buffer_bytes // 2:
            self._pause(False)
        elif not self._paused and self.buffered_bytes > self._buffer_bytes:
            self._pause(True)

    async def run(self) -> None:
        """Hand batches on until `finish` was called and all are durable. What `accept` raises ends it."""
        try:
            async with asyncio.TaskGroup() as group:
                for stream in self._streams.values():
                    for _ in range(IN_FLIGHT):
                        group.create_task(self._hand_on(stream))
        finally:
            self._count_rest()

    def signs(self) -> Signs:
        """See core/progress.py. What is merely reserved is a peer's to finish, and may take as long as that likes."""
        return Signs(self._waiting > 0, self._commits)

    def finish(self) -> None:
        """No more `add`: `run` returns when everything is durable."""
        self._finished = True
        for stream in self._streams.values():
            stream.ready.set()

    async def _hand_on(self, stream: _Stream) -> None:
        while True:
            if not stream.waiting:
                if self._finished:
                    return
                stream.ready.clear()
                await stream.ready.wait()
                continue
            entries = _next_batch(stream.waiting)
            try:
                await self._accept(_sealed(entries))
            except BaseException:
                stream.waiting.extendleft(reversed(entries))  # _count_rest counts them
                raise
            self._settle([publication for _, publication in entries])

    def _settle(self, publications: list[Publication]) -> None:
        self._commits += 1
        self._waiting -= len(publications)
        self._received.inc(sum(one.parcel.section.count for one in publications))
        unacknowledged = sum(one.parcel.section.count for one in publications if not one.packet_id)
        if unacknowledged:
            self._unacknowledged.inc(unacknowledged)
        self._settled(publications)
        self.reserve(-sum(map(_cost, publications)))

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        self._metrics.paused.labels(self._name).set(paused)
        self._set_paused(paused)

    def _count_rest(self) -> None:
        """What is left now was never acknowledged; nobody will repeat what came at QoS 0."""
        rest = [one for stream in self._streams.values() for _, one in stream.waiting]
        lost = sum(one.parcel.section.count for one in rest if not one.packet_id)
        for stream in self._streams.values():
            stream.waiting.clear()
        if lost:
            self._received.inc(lost)
            self._metrics.count_drop(input=self._name, reason="stopped", events=lost)
            logging.getLogger(self._name).error(
                "stopped with %d events of QoS 0 that the spool had not taken; give the spool room (spool.max_bytes), "
                "and have the sender publish at QoS 1",
                lost, extra=messages.EVENTS_LOST_AT_STOP,
            )


def _cost(publication: Publication) -> int:
    return publication.parcel.section.length + CHUNK_OVERHEAD_BYTES


def _next_batch(waiting: "deque[tuple[float, Publication]]") -> list[tuple[float, Publication]]:
    """The longest beginning that fits in one record: by bytes, by events, and by time (one received_at for all)."""
    first = waiting.popleft()
    taken, began = [first], first[0]
    length, events = first[1].parcel.section.length, first[1].parcel.section.count
    while waiting:
        at, publication = waiting[0]
        section = publication.parcel.section
        length += section.length
        events += section.count
        if length > MAX_BATCH_BYTES or events > MAX_BATCH_EVENTS or at - began > MAX_GATHER_SECONDS:
            break
        taken.append(waiting.popleft())
    return taken


def _sealed(entries: list[tuple[float, Publication]]) -> Batch:
    parcels = [publication.parcel for _, publication in entries]
    return Batch(
        parcels[0].stream,
        FORMAT,
        int(entries[0][0] * 1e9),
        [parcel.section for parcel in parcels],
        [piece for parcel in parcels for piece in parcel.payload],
    )
