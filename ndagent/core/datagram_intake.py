"""From UDP sockets to batches: who sent what, back-pressure that a datagram cannot feel, and every loss by its number.

    sockets (SO_REUSEPORT) ──recvmmsg──► by sender ──► translate ──► Batcher ──accept──► spool
                └─ the kernel's drop counter ──► nd_input_dropped_events{reason="kernel_queue_full"}

Promises:
  * a datagram is one message, exactly as it came, from the address that the kernel says; a longer one than
    `max_message_bytes` is cut and flagged. (A protocol whose datagrams are no messages comes with a `translate` of its
    own: as soon as the spool has enough, the rest of what was read waits untranslated);
  * while the spool cannot take more, nothing is read, and what the kernel then drops is counted as ours: there is one
    place of loss, and its figure is the kernel's own, per socket too (nd_input_datagrams_lost_total);
  * senders are remembered in a table of at most `max_senders` (senders.py), the least recently seen out first;
  * with `rates`, what an address sends beyond its rate is dropped and counted (UDP cannot wait), and takes nothing from
    the others;
  * a stop takes what is in the queues as the spool has room for it, and counts what it cannot take.
Refuses: acknowledging (UDP has none), and believing an address more than that: it can be forged.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import ClassVar, Literal

from pydantic import Field

from ndagent.core import messages
from ndagent.core.batcher import Batcher
from ndagent.core.datagrams import MAX_DATAGRAM_BYTES, MOST, FromOne, Receiver, bind_datagrams, queue_bytes
from ndagent.core.interfaces import Accept
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.networks import AllowedNetworks
from ndagent.core.origin_limits import OriginLimits
from ndagent.core.progress import Signs
from ndagent.core.senders import Senders
from ndagent.core.settings import ByteSize, Listen, ListenAddress, Settings, format_size
from ndagent.core.waiting import first
from ndagent.wire.framing import Chunk
from ndagent.wire.record import Flags, Framing, Origin

Translate = Callable[[Origin, bool, list[bytes]], Iterable[Chunk]]
"""Sender, whether the datagrams are cut, datagrams → whole messages; asked for one chunk at a time."""

READS_A_TURN = 8
"""Then the loop may do something else: with MOST datagrams a read, 2 000 of them."""
CHUNK_BYTES = 2**20
"""A longer one would be a record of its own length, and all of that is decoded at once."""
GATHER_SECONDS = 0.01
"""A socket that had less than a whole read is left alone for so long. Woken by the first of each few, more than half of
the work at 50 000 messages a second is waking up: 15 µs of CPU each, 7 to 8 with it."""
BURST_BYTES_PER_SECOND = 400 * 2**20
"""And for no longer than such a burst takes to fill half of its queue: 100 000 datagrams a second, for each of which
the kernel may count 4 KiB. Without it a queue of 208 KiB, as kernels give it, overflows while nobody looks."""
SHORTEST_REST_SECONDS = 0.001
"""What the loop's timers can do; whoever could rest less does not."""
_SHOWN_BYTES = 64
_LOOK_EVERY_SECONDS = 1.0
_SAY_EVERY_SECONDS = 60.0
_KERNEL_QUEUE_FULL = "kernel_queue_full"
_RATE_LIMITED = "rate_limited"
_MISREAD = "decoder_failed"


class DatagramLimits(Settings):
    """What senders may take of this machine."""

    receive_buffer_bytes: ByteSize = Field(
        default=16 * 2**20,
        ge=2**16,
        description="Queue of each socket in the kernel; it gives more than net.core.rmem_max only to CAP_NET_ADMIN.",
    )
    buffer_bytes: ByteSize = Field(
        default=64 * 2**20, ge=2**16, description="Messages waiting for the spool; beyond it the kernel's queue fills."
    )
    max_senders: int = Field(
        default=16384, ge=16, le=2**20, description="Senders (address and port) remembered at a time, 600 B each."
    )


class DatagramConfig(Settings):
    """Settings that every input over UDP has."""

    transport: ClassVar[Literal["udp"]] = "udp"
    listen: tuple[ListenAddress, ...] = Field(min_length=1, description="Addresses to receive at.")
    sockets: int = Field(
        default=2, ge=1, le=16, description="Sockets at each address; the kernel spreads the senders over them."
    )
    max_message_bytes: ByteSize = Field(
        default=MAX_DATAGRAM_BYTES, ge=480, le=MAX_DATAGRAM_BYTES,
        description="A longer datagram is cut and tagged _truncated.",
    )  # fmt: skip  # RFC 5426 §3.2: at least 480, and 2048 is wished
    limits: DatagramLimits = Field(default=DatagramLimits(), description="What senders may take of this machine.")


def nothing_beside(_chunk: Chunk) -> int:
    """A chunk's payload is all that is kept of it."""
    return 0


def as_they_came(_origin: Origin, is_cut: bool, datagrams: list[bytes]) -> Iterator[Chunk]:
    """Each datagram a message. Octet counts keep them apart whatever is in them; they are the record's own framing."""
    flags = Flags.TRUNCATED if is_cut else Flags.NONE
    at_once = len(datagrams) if sum(map(len, datagrams)) <= CHUNK_BYTES else CHUNK_BYTES // MAX_DATAGRAM_BYTES
    for start in range(0, len(datagrams), at_once):
        some = datagrams[start : start + at_once]
        payload = b"".join([b"%d %b" % (len(message), message) for message in some])
        yield Chunk(Framing.OCTET_COUNTED, flags, len(some), payload)


def _weight(found: FromOne) -> int:
    """Bytes, and one for each datagram: even those of none come to an end."""
    return sum(map(len, found.datagrams)) + len(found.datagrams)


class _Socket:
    """One socket, what the kernel lost at it, and its name in metrics."""

    def __init__(self, sock: socket.socket, name: str, *, datagram_bytes: int, most: int) -> None:
        self.sock = sock
        self.name = name
        self.receiver = Receiver(sock, datagram_bytes=datagram_bytes, most=most)
        self.told = 0
        self.rest_seconds = min(GATHER_SECONDS, queue_bytes(sock) / BURST_BYTES_PER_SECOND)
        self.resting: asyncio.TimerHandle | None = None

    def newly_lost(self) -> int:
        lost = self.receiver.lost
        found, self.told = lost - self.told, lost
        return found


class DatagramIntake:
    """An Input; see the module. Made by the plug of a protocol; `format` is that of the batches it makes.

    `datagrams_a_read` are read at a time: as many as `translate` may work at before the loop does something else.
    `beside_bytes` says what is kept with a chunk besides its payload: buffer_bytes holds for both.
    """

    def __init__(
        self,
        name: str,
        config: DatagramConfig,
        *,
        allow: AllowedNetworks,
        metrics: Metrics,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        translate: Translate = as_they_came,
        beside_bytes: Callable[[Chunk], int] = nothing_beside,
        format: str = "syslog",  # noqa: A002 - the batch's word for it
        datagrams_a_read: int = MOST,
        rates: OriginLimits | None = None,
    ) -> None:
        self._name = name
        self._translate = translate
        self._beside_bytes = beside_bytes
        self._format = format
        self._datagrams_a_read = datagrams_a_read
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._log = logging.getLogger(name)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=monotonic)
        self._sockets: list[_Socket] = []
        self._senders = Senders(name, allow=allow, most=config.limits.max_senders, metrics=metrics)
        self._rates = rates
        self._batcher: Batcher | None = None
        self._reading = False
        self._stopping = False
        self._room = asyncio.Event()  # the batcher takes more
        self._waiting: Iterator[tuple[Origin, Chunk]] = iter(())  # what was read and does not fit yet
        self._failed: asyncio.Future[None] | None = None
        self.receiving: socket.socket | None = None
        """The socket that the datagrams given to `translate` came to: where a protocol that answers answers from."""
        self.answer_to = b""
        """Who sent them, for `answer_address`."""
        reading = [] if translate is as_they_came else [_MISREAD]
        for reason in (_KERNEL_QUEUE_FULL, "not_allowed", *reading, *([] if rates is None else [_RATE_LIMITED])):
            metrics.dropped.labels(name, reason)  # there from the start: a rate needs the zero
        self._bytes = metrics.received_bytes.labels(name)

    @property
    def addresses(self) -> list[Listen]:
        """Where it receives, with the ports that the kernel chose."""
        names = (one.sock.getsockname() for one in self._sockets)
        return list(dict.fromkeys(Listen(name[0], name[1]) for name in names))

    def signs(self) -> Signs:
        """See core/progress.py."""
        return self._batcher.signs() if self._batcher is not None else Signs(False, 0)

    async def start(self) -> None:
        """Open all sockets; raises OSError that names the address that cannot be had."""
        if self._sockets:
            return
        try:
            for listen in self._config.listen:
                self._open(listen)
        except BaseException:
            self._close()
            raise
        self._say_queue()

    async def run(self, accept: Accept) -> None:
        """Receive until cancelled; then take what is queued and wait until it is durable (a second cancel cuts)."""
        await self.start()
        self._failed = asyncio.get_running_loop().create_future()
        self._batcher = batcher = Batcher(
            accept,
            name=self._name,
            paused=self._pause,
            metrics=self._metrics,
            clock=self._clock,
            buffer_bytes=self._config.limits.buffer_bytes,
            format=self._format,
        )
        self._room.set()
        self._stopping = False
        handing_on = asyncio.create_task(batcher.run(), name=f"{self._name}: batches")
        looking = asyncio.create_task(self._look(), name=f"{self._name}: losses")
        try:
            self._read(True)
            ends = {handing_on, looking, self._failed}
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:  # none ends by itself but by an error
                ended.result()
        finally:
            await self._shut_down(batcher, looking, handing_on)

    async def _shut_down(
        self, batcher: Batcher, looking: "asyncio.Task[None]", handing_on: "asyncio.Task[None]"
    ) -> None:
        try:
            self._stopping = True
            self._read(False)
            looking.cancel()
            await asyncio.wait({looking})
            with suppress(OSError):
                await self._take_the_rest(handing_on)
            self._count_losses()
            self._senders.report()
            if not self._room.is_set():
                self._count_the_rest()
            self._close()
            batcher.finish()
            await handing_on  # a second cancel goes on to it
        finally:
            if not handing_on.done():
                handing_on.cancel()
                await asyncio.wait({handing_on})
            self._count_the_rest()
            self._close()

    # ---- sockets

    def _open(self, listen: Listen) -> None:
        for number in range(self._config.sockets):
            sock = bind_datagrams(listen, receive_buffer_bytes=self._config.limits.receive_buffer_bytes)
            listen = Listen(listen.host, sock.getsockname()[1])  # the other sockets share the port that was chosen
            name = f"{listen}#{number}"
            most = self._datagrams_a_read
            self._sockets.append(_Socket(sock, name, datagram_bytes=self._config.max_message_bytes, most=most))
            self._metrics.datagrams_lost.labels(self._name, name)

    def _close(self) -> None:
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            one.sock.close()

    def _say_queue(self) -> None:
        wanted, found = self._config.limits.receive_buffer_bytes, queue_bytes(self._sockets[0].sock)
        if found < wanted:
            self._log.warning(
                "the kernel queues %s for each socket, not %s: bursts will be lost. Raise it: sysctl -w "
                "net.core.rmem_max=%d, and restart", format_size(found), format_size(wanted), wanted,
            )

    def _pause(self, paused: bool) -> None:
        """The batcher's word; what waits goes first when there is room again, and may fill it anew."""
        if paused:
            self._room.clear()
        else:
            self._room.set()
            self._hand_on()
        self._read(self._room.is_set() and not self._stopping)

    def _read(self, wanted: bool) -> None:
        if wanted == self._reading:
            return
        self._reading = wanted
        loop = asyncio.get_running_loop()
        for one in self._sockets:
            if wanted:
                loop.add_reader(one.sock, self._readable, one)
                continue
            loop.remove_reader(one.sock)
            if one.resting is not None:
                one.resting.cancel()
                one.resting = None

    # ---- datagrams

    def _readable(self, one: _Socket) -> None:
        try:
            for _ in range(READS_A_TURN):
                found = one.receiver.receive_by_sender()
                self._take(one, found)
                if not self._reading:
                    return
                if sum(len(group.datagrams) for group in found) < self._datagrams_a_read:
                    self._rest(one)
                    return
        except OSError as error:
            assert self._failed is not None  # noqa: S101 - run made it before it read
            if not self._failed.done():
                self._failed.set_exception(error)

    def _rest(self, one: _Socket) -> None:
        if one.rest_seconds < SHORTEST_REST_SECONDS:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(one.sock)
        one.resting = loop.call_later(one.rest_seconds, self._go_on, one)

    def _go_on(self, one: _Socket) -> None:
        one.resting = None
        asyncio.get_running_loop().add_reader(one.sock, self._readable, one)

    async def _take_the_rest(self, handing_on: "asyncio.Task[None]") -> None:
        """What the queues hold now, as there is room for it; what comes meanwhile is not ours any more."""
        most = {one.name: queue_bytes(one.sock) // 2 for one in self._sockets}
        await self._until_room(handing_on)
        for one in self._sockets:
            while most[one.name] > 0 and self._room.is_set() and (found := one.receiver.receive_by_sender()):
                most[one.name] -= sum(map(_weight, found))
                self._take(one, found)
                await self._until_room(handing_on)

    async def _until_room(self, handing_on: "asyncio.Task[None]") -> None:
        """Return when nothing waits any more, or nobody takes it: what is left then is counted."""
        while not self._room.is_set() and not handing_on.done():
            await first(self._room.wait(), asyncio.wait({handing_on}))

    def _count_the_rest(self) -> None:
        """After a stop that ran out of time: what was read and what the queues hold, as far as one can know it."""
        left = sum(chunk.count for _, chunk in self._waiting)
        for one in self._sockets:
            most = queue_bytes(one.sock) // 2
            with suppress(OSError):
                while most > 0 and (found := one.receiver.receive_by_sender()):
                    most -= sum(map(_weight, found))
                    left += sum(len(one.datagrams) for one in found)
        if left:
            self._drop("stopped", left)
            self._log.error(
                "stopped with %d messages in the queues that the spool had no room for", left,
                extra=messages.EVENTS_LOST_AT_STOP,
            )

    def _take(self, one: _Socket, found: Iterable[FromOne]) -> None:
        self._waiting = self._chunks(one.sock, found)
        self._hand_on()

    def _hand_on(self) -> None:
        """What was read, chunk by chunk until the batcher has enough."""
        assert self._batcher is not None  # noqa: S101 - run made it before it read
        while self._room.is_set():
            made = next(self._waiting, None)
            if made is None:
                return
            origin, chunk = made
            self._batcher.add(origin, chunk, beside_bytes=self._beside_bytes(chunk))

    def _chunks(self, sock: socket.socket, found: Iterable[FromOne]) -> Iterator[tuple[Origin, Chunk]]:
        self.receiving = sock
        for sender, is_cut, datagrams in found:
            origin = self._senders.origin(sender)
            if origin is None:
                self._drop("not_allowed", len(datagrams))
                continue
            self.answer_to = sender
            sizes = list(map(len, datagrams))
            self._bytes.inc(sum(sizes))
            most = len(sizes) if self._rates is None else self._within_rate(self._rates, origin, sizes)
            if most:
                for chunk in self._translate(origin, is_cut, datagrams[:most]):
                    yield origin, chunk

    def _within_rate(self, rates: OriginLimits, origin: Origin, sizes: list[int]) -> int:
        """How many of its messages may pass; the others are counted."""
        most = rates.admit(origin.identity, sizes=sizes)
        beyond = len(sizes) - most
        if beyond:
            self._drop(_RATE_LIMITED, beyond)
            if (silenced := self._throttle.allow((_RATE_LIMITED, origin.identity))) is not None:
                self._log.error(
                    "%s sends more than limits allow to one sender, and UDP cannot wait: what is beyond is lost "
                    "(limits.events_per_second_per_origin, limits.bytes_per_second_per_origin)", origin.identity,
                    extra={"origin": origin.identity, "silenced": silenced},
                )  # fmt: skip
        return most

    # ---- losses

    def misread(self, origin: Origin, datagram: bytes) -> None:
        """For a `translate` in whose except a bug of its own ended up: it costs this datagram, not those behind."""
        self._drop(_MISREAD, 1)
        silenced = self._throttle.allow(_MISREAD)
        if silenced is not None:
            self._log.exception(
                "a datagram of %d bytes from %s could not be read because of a bug here, and is lost. Please report "
                "this traceback with the datagram's first bytes: %s", len(datagram), origin.address,
                datagram[:_SHOWN_BYTES].hex(), extra={"silenced": silenced},
            )  # fmt: skip

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            self._count_losses()
            self._senders.report()

    def _count_losses(self) -> None:
        lost = 0
        for one in self._sockets:
            found = one.newly_lost()
            self._metrics.datagrams_lost.labels(self._name, one.name).inc(found)
            lost += found
        if not lost:
            return
        self._drop(_KERNEL_QUEUE_FULL, lost)
        if self._throttle.allow("lost") is not None:
            self._log.error(
                "%d datagrams were lost since the last look: the kernel's queue was full, and UDP cannot wait. Raise "
                "limits.receive_buffer_bytes, or have the device send over TCP or TLS", lost,
                extra=messages.DATAGRAMS_LOST,
            )

    def _drop(self, reason: str, events: int) -> None:
        self._metrics.received.labels(self._name).inc(events)  # received is durable or refused
        self._metrics.count_drop(input=self._name, reason=reason, events=events)
