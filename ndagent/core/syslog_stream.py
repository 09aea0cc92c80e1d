"""Syslog over connections into batches: octet-counted or LF-framed (RFC 6587), told apart by itself, per connection.

    Listener ──► one peer per connection: framing ──► Batcher ──accept──► spool

The inputs over TLS and over plain TCP are made of this; they differ in their listener and in what they know of a peer.

Promises:
  * everything a peer sent before it closed is handed to the spool in order, cut messages and broken framing included
    and marked;
  * while the spool cannot take more, reading stops, and the senders wait; one that sends faster than `limits` allow to
    its origin waits alone;
  * messages whose end has not come are bounded together (`partial_bytes`): whoever has held back the end of a long one
    for longest is dropped then;
  * a stop takes what peers had already sent.
Refuses: parsing (raw first; the decoder's job).
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from pydantic import Field

from ndagent.core.batcher import Batcher
from ndagent.core.interfaces import Accept
from ndagent.core.metrics import Metrics
from ndagent.core.origin_limits import OriginLimits, OriginLimitsConfig
from ndagent.core.progress import Signs
from ndagent.core.settings import ByteSize, Listen
from ndagent.core.slowing import Slowing, slowing
from ndagent.core.tcp_connection import Connection, Handler
from ndagent.core.tcp_listener import Listener
from ndagent.core.tls_refusal import Refused
from ndagent.wire.codec import make_framer
from ndagent.wire.framing import Chunk, Framer
from ndagent.wire.record import Batch, Flags, Origin

FEED_BYTES = 32 * 1024
"""Framed at a time, so that a chunk of the shortest messages holds 16 384 of them at most (see MAX_BATCH_EVENTS)."""
ORDINARY_PARTIAL_BYTES = 4096


class StreamLimits(OriginLimitsConfig):
    """How much may wait for the spool or for its own end."""

    buffer_bytes: ByteSize = Field(
        default=16 * 2**20, ge=2**16, description="Messages waiting for the spool; beyond this, reading stops."
    )
    partial_bytes: ByteSize = Field(
        default=32 * 2**20,
        ge=2**16,
        description="Messages whose end has not come yet, of all peers together; beyond this, those of more than 4 KiB "
        "are cut and their peers dropped, the one that has held back the end for longest first.",
    )


class SyslogStream:
    """An Input; see the module. A kind of it sets `_listener`, whose handlers it makes with `_peer`."""

    _listener: Listener[Any]

    def __init__(
        self, name: str, *, max_message_bytes: int, limits: StreamLimits, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._name = name
        self._max_message_bytes = max_message_bytes
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._batcher: Batcher | None = None
        self.slowing: Slowing | None = None
        self.unreported_bytes = 0  # read since the last batch
        self.partial_bytes = 0
        self._long_partials: dict[_Peer, None] = {}
        """Who holds back the end of a message longer than ORDINARY_PARTIAL_BYTES; for longest first."""
        self._received_bytes = metrics.received_bytes.labels(name)
        self._framing_errors = metrics.framing_errors.labels(name)

    @property
    def started(self) -> asyncio.Event:
        """Set once it listens on `addresses`."""
        return self._listener.started

    @property
    def addresses(self) -> list[Listen]:
        """Where it listens, with the ports that the kernel chose."""
        return self._listener.addresses

    def signs(self) -> Signs:
        """See core/progress.py."""
        return self._batcher.signs() if self._batcher is not None else Signs(False, 0)

    async def start(self) -> None:
        """Listen on all addresses; raises OSError that names the one that cannot be had."""
        await self._listener.start()

    async def run(self, accept: Accept) -> None:
        """Serve until cancelled; then take what peers had sent and wait until it is durable (a second cancel cuts)."""

        async def counted(batch: Batch) -> None:
            self._report_bytes()
            await accept(batch)

        self._batcher = Batcher(
            counted,
            name=self._name,
            paused=self._pause,
            metrics=self._metrics,
            clock=self._clock,
            buffer_bytes=self._limits.buffer_bytes,
        )
        self._pause(False)  # should an earlier run have failed while it was paused: whoever would lift that is gone
        loop = asyncio.get_running_loop()
        rates = OriginLimits.make(self._limits, clock=loop.time)
        self.slowing = slowing(rates, name=self._name, metrics=self._metrics, loop=loop)
        handing_on = asyncio.create_task(self._batcher.run(), name=f"{self._name}: batches")
        serving = asyncio.create_task(self._listener.serve(), name=f"{self._name}: connections")
        try:
            done, _ = await asyncio.wait({handing_on, serving}, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:  # neither ends by itself but by an error
                ended.result()
        finally:
            await self._shut_down(self._batcher, serving, handing_on)

    async def _shut_down(
        self, batcher: Batcher, serving: "asyncio.Task[None]", handing_on: "asyncio.Task[None]"
    ) -> None:
        try:
            serving.cancel()
            await asyncio.wait({serving})
            if self.slowing is not None:
                self.slowing.lift()
            await self._listener.stop()
            batcher.finish()
            await handing_on  # a second cancel goes on to it
        finally:
            if not handing_on.done():
                handing_on.cancel()
                await asyncio.wait({handing_on})
            self._report_bytes()

    def _pause(self, paused: bool) -> None:
        if paused:
            self._listener.pause_reading()
        else:
            self._listener.resume_reading()

    def _peer(self, origin: Origin, connection: Connection) -> Handler:
        """Who speaks on a connection of this origin."""
        batcher = cast("Batcher", self._batcher)  # there since before the first connection
        return _Peer(self, batcher.add, origin, make_framer(self._max_message_bytes), connection)

    def note_partial(self, peer: "_Peer", change: int, *, is_long: bool, is_new: bool) -> None:
        """What `peer` holds has changed by so many bytes; `is_new` if it belongs to another message than before.

        Drops those that have held back the end of a long one for longest while there is too much, and raises Refused
        where that is `peer` itself.
        """
        self.partial_bytes += change
        if is_new or not is_long:
            self._long_partials.pop(peer, None)
        if not is_long:
            return
        self._long_partials.setdefault(peer)
        limit = self._limits.partial_bytes
        while self.partial_bytes > limit:
            longest = next(iter(self._long_partials), peer)
            longest.is_cut = True
            refusal = Refused("too_many_part_messages", f"limits.partial_bytes is {limit}")
            if longest is peer:
                raise refusal
            longest.drop(refusal)

    def count_framing_errors(self, errors: int) -> None:
        """Framing was lost; the messages around it were taken."""
        self._framing_errors.inc(errors)

    def _report_bytes(self) -> None:
        """Once per batch: a metric costs more than a small read."""
        self._received_bytes.inc(self.unreported_bytes)
        self.unreported_bytes = 0


class _Peer:
    """One sender: its framing, and what its messages are labelled with."""

    __slots__ = ("_add", "_connection", "_framer", "_framing_errors", "_input", "_origin", "_partial_bytes", "is_cut")

    def __init__(
        self,
        syslog: SyslogStream,
        add: Callable[[Origin, Chunk], None],
        origin: Origin,
        framer: Framer,
        connection: Connection,
    ) -> None:
        self._input = syslog
        self._connection = connection
        self._add = add
        self._origin = origin
        self._framer = framer
        self._framing_errors = 0
        self._partial_bytes = 0
        self.is_cut = False  # dropped amid a message, which as a line would look like a whole one

    def received(self, data: memoryview) -> None:
        """See tcp_connection.Handler."""
        self._input.unreported_bytes += len(data)
        framer = self._framer
        events = 0
        for start in range(0, len(data), FEED_BYTES):
            for chunk in framer.feed(data[start : start + FEED_BYTES]):
                self._add(self._origin, chunk)
                events += chunk.count
        if self._input.slowing is not None:
            self._input.slowing.charge(self, self._origin.identity, events=events, size_bytes=len(data))
        if framer.framing_errors != self._framing_errors:
            self._input.count_framing_errors(framer.framing_errors - self._framing_errors)
            self._framing_errors = framer.framing_errors
        if framer.pending_bytes != self._partial_bytes:
            self._note_partial(framer.pending_bytes, is_new=events > 0)

    def set_slowed(self, slowed: bool) -> None:
        """See slowing.Slowed."""
        self._connection.active = True  # its silence is our doing
        if slowed:
            self._connection.hold()
        else:
            self._connection.release()

    def drop(self, refusal: Refused) -> None:
        """End the connection; `ended` is called."""
        self._connection.drop(refusal)

    def _note_partial(self, size: int, *, is_new: bool) -> None:
        change, self._partial_bytes = size - self._partial_bytes, size
        self._input.note_partial(self, change, is_long=size > ORDINARY_PARTIAL_BYTES, is_new=is_new)

    def ended(self) -> None:
        """See tcp_connection.Handler."""
        self._note_partial(0, is_new=True)
        if self._input.slowing is not None:
            self._input.slowing.forget(self)
        for chunk in self._framer.close():
            cut = self.is_cut and chunk.flags is Flags.NONE
            self._add(self._origin, chunk._replace(flags=Flags.TRUNCATED) if cut else chunk)
