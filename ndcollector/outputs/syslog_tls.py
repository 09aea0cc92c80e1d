"""The `syslog_tls` output: events as syslog over TLS (RFC 5425), for receivers that speak nothing better. Best effort.

The protocol has no acknowledgement: nobody can know what the receiver did with an event. What can be known is done:

  * send() returns when the far side's TCP has every byte, not before;
  * the cursor stays behind a *replay window*. sync(), which the machine calls before the cursor moves, returns when the
    connection has outlived what was sent by `replay_window.seconds`, or `replay_window.bytes` more have gone out behind
    it. If the connection breaks before that, sync() raises, and the machine sends again from the cursor, in order. So
    the window lies in the spool: it takes no memory, and a crash of ours loses nothing of it;
  * what is sent again carries the same event.id (formats rfc5424, cef, leef), and nd_output_resent_events_total counts
    it, but for what a process before this one had sent.

Lost without a trace is therefore: what a receiver had taken longer than the window ago, and then lost. Longer ago than
the window before its end it must have stopped reading, or kept it in memory only. Whoever cannot have that uses `relp`.

Promises: one connection, order of receipt, also over a failure; a receiver that does not read stops this output alone.
Refuses: plain TCP, and UDP.
"""

import asyncio
import logging
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal, Self

from pydantic import Field, model_validator

from ndagent.core.dispatcher import SAVE_EVERY_SECONDS
from ndagent.core.interfaces import Unavailable
from ndagent.core.settings import ByteSize, Duration, SettingError, Settings
from ndagent.core.waiting import first
from ndagent.wire.record import EventBatch
from ndcollector.formats import Format, FormatConfig
from ndcollector.outputs import OutputContext
from ndcollector.outputs.syslog_connection import WRITE_BYTES, Connection, ConnectionLost
from ndcollector.outputs.syslog_endpoint import Receivers, SyslogReceivers, check_lengths
from ndcollector.routing.config import RoutedConfig
from ndcollector.traffic.tls import ClientTls, ClientTlsConfig

_LOOK_SECONDS = 0.05
_ORDER_SECONDS = 2 * SAVE_EVERY_SECONDS
"""After a break the machine's next sync() is waited for, so that what is sent again comes before what is new."""


class ReplayWindow(Settings):
    """What is sent again when a connection breaks: what was sent on it last."""

    seconds: Duration = Field(
        default=2.0,  # twice this fits into the dispatcher's SAVE_AT_STOP_SECONDS
        ge=0,
        le=600,
        description="How long a connection must outlive an event. With more than 2s a stop no longer waits for it, "
        "and the next start sends the last events twice.",
    )
    bytes: ByteSize = Field(
        default=64 * 2**20,
        ge=1024,
        description="Or how much must have been sent behind it, so that repeats are bounded.",
    )


class Config(SyslogReceivers, RoutedConfig):
    """Events as syslog over TLS. Best effort: the protocol has no acknowledgement. `relp` has."""

    type: Literal["syslog_tls"] = "syslog_tls"
    framing: Literal["octet_counted", "lf"] = Field(
        default="octet_counted", description="As RFC 5425 has it, or a line for each message."
    )
    format: Format = Field(
        default=FormatConfig(name="raw"),
        description="The message as it came, where it was kept, or another form; cef, leef, ecs and flat get a syslog "
        "header.",
    )
    tls: ClientTlsConfig = ClientTlsConfig()
    replay_window: ReplayWindow = ReplayWindow()
    timeout: Duration = Field(
        default=30.0, gt=0, description="A send that takes longer counts as unavailable; more than the replay window."
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_header(cls, written: object) -> object:
        return with_header(written)

    @model_validator(mode="after")
    def _outlasts_the_window(self) -> Self:
        if self.timeout <= self.replay_window.seconds + 1:
            raise SettingError(("timeout",), "must be more than replay_window.seconds by a second at least")
        return self


def with_header(written: object) -> object:
    """A syslog receiver cannot read a line without a header: one that is not asked for is added.

    CEF and LEEF get the older one, which is what their receivers were made for.
    """
    if not isinstance(written, dict) or "format" not in written:
        return written
    asked = written["format"]
    fields = {"name": asked} if isinstance(asked, str) else asked
    if not isinstance(fields, dict) or fields.get("name") in ("raw", "rfc5424") or "syslog_header" in fields:
        return written
    header = "rfc3164" if fields.get("name") in ("cef", "leef") else "rfc5424"
    return {**written, "format": {**fields, "syslog_header": header}}


def build(name: str, config: Config, context: OutputContext) -> "SyslogTlsOutput":
    """The output; connects at its first send."""
    logging.getLogger(name).info(
        "best effort: syslog over TLS has no acknowledgement; what was sent in the last %gs of a connection is sent "
        "again when it breaks, what the receiver loses later is lost unseen (use relp where that matters)",
        config.replay_window.seconds,
    )
    return SyslogTlsOutput(name, config, context)


class Link:
    """A connection, how much of what send() returned for went out on it, and how much of that has left the window."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sent_bytes = 0
        self.sent_at = 0.0
        self.confirmed_bytes = 0

    def note(self, sent_bytes: int, now: float) -> None:
        """A send ended well."""
        self.sent_bytes += sent_bytes
        self.sent_at = now

    @property
    def owes(self) -> bool:
        """Whether the machine takes something for sent that may have to be sent again."""
        return self.sent_bytes > self.confirmed_bytes


class SyslogTlsOutput:
    """See the module."""

    def __init__(self, name: str, config: Config, context: OutputContext) -> None:
        self._config = config
        self._resent = context.metrics.resent.labels(name)
        clock = asyncio.get_running_loop().time
        self._clock: Callable[[], float] = clock
        tls = ClientTls(config.tls, name=name, metrics=context.metrics)
        self._receivers = Receivers(
            config,
            name=name,
            tls=tls,
            server_name=config.tls.server_name,
            send_seconds=config.timeout,
            clock=clock,
        )
        self._turn = asyncio.Lock()
        self._link: Link | None = None
        self._owed: str | None = None  # why the next sync() must raise
        self._told = asyncio.Event()
        self._sent_until: dict[tuple[str, str], int] = {}

    async def send(self, events: EventBatch) -> None:
        """Return once the receiver's TCP has the events; raises Unavailable, and Rejected for what is too long."""
        if not len(events):
            return
        check_lengths(events, self._config.max_message_bytes)
        async with self._turn:
            await self._in_order()
            link = await self._linked()
            self._count(events)
            sent_bytes, is_whole, begun = 0, False, self._clock()
            try:
                for data in self._frames(events):
                    await link.connection.write(data)
                    sent_bytes += len(data)
                is_whole = True
                await link.connection.acknowledged()
            except ConnectionLost as error:
                self._receivers.leave(link.connection.endpoint)
                raise self._drop(link, str(error)) from error
            except asyncio.CancelledError:
                self._receivers.given_up(link.connection.endpoint, self._clock() - begun)
                if not is_whole:
                    self._drop(link, "a send was given up amid a frame")
                raise
            link.note(sent_bytes, self._clock())

    async def sync(self) -> None:
        """Return once what was sent has left the replay window; raises Unavailable if it must be sent again."""
        link = self._link
        if link is not None and link.connection.lost is not None:
            self._drop(link, link.connection.lost)
        if self._owed is not None:
            raise self._tell()
        if link is None or not link.owes:
            return
        try:
            await self._outlive(link)
        except Unavailable:
            raise self._tell() from None

    async def aclose(self) -> None:
        """Close in order; what was sent in the last moments may be sent again by the next process."""
        link, self._link = self._link, None
        if link is not None:
            await link.connection.finish()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that no one has ended."""
        return self._link is not None and self._link.connection.lost is None

    @property
    def held_bytes(self) -> int:
        """Of what is being sent, in this process and not yet the kernel's."""
        return self._link.connection.held_bytes if self._link is not None else 0

    async def _in_order(self) -> None:
        """After a break: until the machine was told, and has begun again at its cursor. It asks every second."""
        link = self._link
        if link is not None and link.connection.lost is not None:
            self._drop(link, link.connection.lost)
        if self._owed is not None and not self._told.is_set():
            try:
                async with asyncio.timeout(_ORDER_SECONDS):
                    await self._told.wait()
            except TimeoutError:
                self._told.set()  # it has nothing settled to ask about; it will be told when it has

    async def _linked(self) -> Link:
        link = self._link
        if link is not None and self._receivers.may_return(link.connection.endpoint):
            preferred = None
            with suppress(Unavailable):
                preferred = await self._receivers.connect(before=link.connection.endpoint)
            if preferred is not None:
                await self._return(link, preferred)
        if self._link is None:
            self._link = Link(await self._receivers.connect())
        return self._link

    async def _return(self, link: Link, preferred: Connection) -> None:
        """From a receiver to a better one, once the first owes nothing: that holds up sends for a window."""
        try:
            if link.owes:
                await self._outlive(link)
        except BaseException:
            preferred.abort("given up")
            raise
        self._link = Link(preferred)
        await link.connection.finish()

    async def _outlive(self, link: Link) -> None:
        """Return once what was sent until now has left the window; raises Unavailable if the link ends before."""
        sent_bytes, sent_at = link.sent_bytes, link.sent_at
        while link.confirmed_bytes < sent_bytes:
            if self._is_out_of_window(link, sent_bytes, sent_at):
                link.confirmed_bytes = max(sent_bytes, link.confirmed_bytes)
                return
            await first(link.connection.ended.wait(), asyncio.sleep(_LOOK_SECONDS))
            if link.connection.lost is not None and link.confirmed_bytes < sent_bytes:
                raise self._drop(link, link.connection.lost)

    def _drop(self, link: Link, reason: str) -> Unavailable:
        """The link is no more; what is owed on it, the machine must hear of."""
        described = f"{link.connection.endpoint}: {reason}"
        if self._link is link:
            self._link = None
            if link.owes:
                self._receivers.leave(link.connection.endpoint)
                self._owed = self._owed or described
                self._told.clear()
        link.connection.abort(reason)
        return Unavailable(described)

    def _tell(self) -> Unavailable:
        reason, self._owed = self._owed, None
        self._told.set()
        return Unavailable(reason or "")

    def _is_out_of_window(self, link: Link, sent_bytes: int, sent_at: float) -> bool:
        window = self._config.replay_window
        return self._clock() - sent_at >= window.seconds or link.sent_bytes - sent_bytes >= window.bytes

    def _count(self, events: EventBatch) -> None:
        """What went out before, at least in part, and goes out again."""
        key = events.stream, events.spool_id
        until = self._sent_until.get(key, -1)
        if not events.replay:
            again = sum(sequence <= until for sequence in events.sequences) if events.sequences[0] <= until else 0
            if again:
                self._resent.inc(again)
        self._sent_until[key] = max(until, events.sequences[-1])

    def _frames(self, events: EventBatch) -> Iterator[bytes]:
        if self._config.framing == "lf":
            return iter((events.ndjson,))
        return octet_counted(events.ndjson, events.lengths)


def octet_counted(lines: bytes, lengths: "array[int]") -> Iterator[bytes]:
    """Frames "MSG-LEN SP MSG" (RFC 5425 §4.3) in pieces of about WRITE_BYTES; the lines' LFs are left out."""
    piece: list[bytes] = []
    size = start = 0
    for length in lengths:
        end = start + length
        piece.append(b"%d %b" % (length - 1, lines[start : end - 1]))
        start = end
        size += length
        if size >= WRITE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    yield b"".join(piece)
