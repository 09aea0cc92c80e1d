"""One TCP connection to a receiver, with TLS inside or without: bytes out, and to know how far they are.

Promises:
  * `write` returns when the bytes have left this process, so what is held here is one slice of WRITE_BYTES;
  * `acknowledged` returns when the far side's TCP has all of them: the kernel's send queue is empty (SIOCOUTQ);
  * `lost` says why the connection is no more, as soon as the kernel knows it: a FIN counts, since nobody who closed
    takes anything, and so does whatever damaged the TLS; a silent death is found within KEEPALIVE_SECONDS.
Refuses: knowing what the far side's process did with the bytes. No TCP tells.

Why not the ssl support of asyncio's streams: what `drain` waits for leaves out the ciphertext under it, so that nobody
could say when bytes have left the process. The TLS is the ssl module's, over memory, as on the listening side.
"""

import asyncio
import fcntl
import socket
import ssl
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

WRITE_BYTES = 64 * 1024
KEEPALIVE_SECONDS = 25
FINISH_SECONDS = 2.0
"""How long a receiver may take to close its end after we have closed ours."""

VERDICT_SECONDS = 0.2
"""See `opened`. Most servers send session tickets at once, and then nothing is waited for."""

_READ_BYTES = 16 * 1024
_LOOK_SECONDS = (0.0005, 0.02)  # the first look at the send queue, and the longest pause between two
_QUEUE = struct.Struct("i")
_CLOSED = "the receiver closed the connection"
_SEE = "see tls.cert_file and what the receiver's log says"


class ConnectionLost(ConnectionError):
    """The connection is no more, or never was: the text says why."""


class Connection(asyncio.Protocol):
    """`tls` is a context and the name that must stand in the far side's certificate; None for plain TCP.

    `received` gets the connection and what the far side says, and b"" when the connection is lost.
    """

    def __init__(
        self, endpoint: Any, tls: tuple[ssl.SSLContext, str] | None, received: "Callable[[Connection, bytes], None]"
    ) -> None:
        self.endpoint = endpoint
        self.is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: str | None = None
        self.ended = asyncio.Event()
        """Set with `lost`."""
        self._received = received
        self._spoke = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._tls: ssl.SSLObject | None = None
        if tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            context, name = tls
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    async def opened(self) -> None:
        """Return once bytes may be written. Raises ConnectionLost.

        A server of TLS 1.3 looks at our certificate when for us the handshake is over. Bytes that it gets meanwhile and
        never reads turn its refusal into a reset, which says nothing: so it gets a moment to say no, or anything else.
        """
        try:
            await self.is_open
            if self._tls is not None and self._tls.version() == "TLSv1.3":
                with suppress(TimeoutError):
                    async with asyncio.timeout(VERDICT_SECONDS):
                        await self._spoke.wait()
            self._check()
        except ConnectionLost as error:
            if str(error) != _CLOSED or self._tls is None:
                raise
            # As GnuTLS servers refuse a certificate: without a word.
            raise ConnectionLost(f"{_CLOSED} in the handshake; {_SEE}") from None

    async def write(self, data: bytes) -> None:
        """Return once all of it is the kernel's. Raises ConnectionLost. A cancel may leave half of it sent."""
        view = memoryview(data)
        for start in range(0, len(view), WRITE_BYTES):
            self._check()
            self._send(self._encrypt(view[start : start + WRITE_BYTES]))
            await self._can_write.wait()
        self._check()

    async def acknowledged(self) -> None:
        """Return once the far side's TCP has what was written. Raises ConnectionLost."""
        pause, longest = _LOOK_SECONDS
        while self.unacknowledged_bytes:
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)
        self._check()

    @property
    def unacknowledged_bytes(self) -> int:
        """Of what was written, TLS included; 0 when the connection is lost: nobody will tell."""
        if self._transport is None or self.lost is not None:
            return 0
        handle = cast("socket.socket", self._transport.get_extra_info("socket")).fileno()
        try:
            (queued,) = _QUEUE.unpack(fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(_QUEUE.size)))  # SIOCOUTQ, tcp(7)
        except (OSError, ValueError):  # closed just now
            return 0
        return self.held_bytes + int(queued)

    @property
    def held_bytes(self) -> int:
        """What the kernel has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    async def finish(self) -> None:
        """Close in order (close_notify, FIN), and wait a moment for the far side to close too; never raises."""
        if self._transport is None or self.lost is not None:
            self.abort("closed")
            return
        if self._tls is not None:
            with suppress(ssl.SSLError):  # it wants the far side's, which is not waited for here
                self._tls.unwrap()  # RFC 5425 §4.4
            self._send(self._outgoing.read())
        if self._transport.can_write_eof():
            self._transport.write_eof()
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await self.ended.wait()
        except TimeoutError:
            pass
        finally:
            self.abort("closed")

    def abort(self, reason: str) -> None:
        """Close now; what the kernel has is still sent. Safe at any time."""
        self._end(reason)
        if self._transport is not None:
            self._transport.abort()

    # ---- called by the loop ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        self._transport = cast("asyncio.Transport", transport)
        if self.lost is not None:  # given up meanwhile
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=0)  # so that "may write" means "all is the kernel's"
        _watch(cast("socket.socket", transport.get_extra_info("socket")))
        if self._tls is None:
            self.is_open.set_result(None)
        else:
            self._shake_hands()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.lost is not None:
            return
        if self._tls is None:
            self._received(self, data)
            return
        self._incoming.write(data)
        was_open = self.is_open.done()
        if was_open or self._shake_hands():
            if was_open or self._incoming.pending:
                self._spoke.set()
            self._decrypt(self._tls)

    def eof_received(self) -> bool:
        """The far side takes no more."""
        self._end(_CLOSED)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self._end(getattr(exc, "strerror", None) or str(exc or "the connection was closed"))
        self._transport = None

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._can_write.clear()

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._can_write.set()

    # ---- inside ----

    def _check(self) -> None:
        if self.lost is not None:
            raise ConnectionLost(self.lost)

    def _encrypt(self, data: memoryview) -> bytes | memoryview:
        if self._tls is None:
            return data
        try:
            self._tls.write(data)  # a memory BIO takes all of it
        except ssl.SSLError as error:
            self._give_up(_in_words(error))
            self._check()
        return self._outgoing.read()

    def _send(self, data: bytes | memoryview) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _shake_hands(self) -> bool:
        """Whether it is done."""
        tls = cast("ssl.SSLObject", self._tls)
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send(self._outgoing.read())
            return False
        except ssl.SSLError as error:  # ours is told to the far side by an alert
            self._send(self._outgoing.read())
            self._give_up(_in_words(error))
            return False
        self._send(self._outgoing.read())
        self.is_open.set_result(None)
        return True

    def _decrypt(self, tls: ssl.SSLObject) -> None:
        """What the far side says: also tickets, key updates, and the alert with which TLS 1.3 refuses a certificate."""
        try:
            while data := tls.read(_READ_BYTES):
                self._received(self, data)
        except ssl.SSLWantReadError:
            self._send(self._outgoing.read())
        except ssl.SSLZeroReturnError:
            self._give_up(_CLOSED)
        except ssl.SSLError as error:
            self._give_up(_in_words(error))
        else:
            self._give_up(_CLOSED)

    def _give_up(self, reason: str) -> None:
        self._end(reason)
        if self._transport is not None:
            self._transport.close()  # sends what there is; see FINISH_SECONDS
            asyncio.get_running_loop().call_later(FINISH_SECONDS, self._transport.abort)

    def _end(self, reason: str) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        self.ended.set()
        self._spoke.set()
        self._can_write.set()
        self._received(self, b"")
        if not self.is_open.done():
            self.is_open.set_exception(ConnectionLost(reason))
            self.is_open.exception()  # whoever waited may have been cancelled: it need not be looked at


def _watch(connection: socket.socket) -> None:
    """Let the kernel find out that a far side is gone without a word."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEPALIVE_SECONDS * 1000),
    ):
        connection.setsockopt(level, option, value)


def _in_words(error: ssl.SSLError) -> str:
    """OpenSSL's reason, and who found fault with whom."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}; see tls.ca_file and tls.server_name"
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "alert" in reason:
        return f"it refused the connection: {reason}; {_SEE}"
    return f"TLS failed: {reason}"
