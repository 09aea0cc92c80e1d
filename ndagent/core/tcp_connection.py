"""One accepted TCP connection, on any asyncio loop: `Connection` is what every kind has, `TcpConnection` the plain one.

Promises:
  * every byte that the peer sent before it closed reaches the handler's `received`, in order, also when reading was
    paused meanwhile; `ended` is called once after it;
  * reading is the TCP transport's, so a pause stops at the kernel, and what is read passes through one buffer that all
    connections of the process share: it is used within one call, on one thread.
Refuses: deciding who may come in (the listener does), framing.
"""

import asyncio
import enum
import socket
import sys
from typing import Protocol, cast

from ndagent.core.tls_refusal import Refused

READ_BYTES = 256 * 1024
LINGER_SECONDS = 2.0
_RECEIVED = memoryview(bytearray(READ_BYTES))
_ESTABLISHED = b"\1"  # tcpi_state, the first byte of linux/tcp.h's struct tcp_info


class Handler(Protocol):
    """What speaks with a peer; one per connection that was let in."""

    def received(self, data: memoryview) -> None:
        """What the peer sent; valid only during the call. Raises Refused to have the connection dropped."""

    def ended(self) -> None:
        """No more will come, for whatever reason."""


class State(enum.Enum):
    """Where a connection is in its life; it only goes forward."""

    HANDSHAKE = 1
    OPEN = 2
    CLOSING = 3  # we have said that we stop; what the peer still sends is taken
    OVER = 4  # nothing that comes is looked at


class Connection(asyncio.BufferedProtocol):
    """What a listener and a handler may do with a connection; `active` is set by every read, for whoever seeks idle
    ones.
    """

    __slots__ = ("_handler", "_held", "_paused", "_state", "_transport", "active", "address", "port")

    def __init__(self, *, address: str, port: int, state: State = State.OPEN) -> None:
        self.address = address
        self.port = port
        self.active = True
        self._handler: Handler | None = None
        self._state = state
        self._paused = False  # by the listener
        self._held = False  # by the handler
        self._transport: asyncio.Transport | None = None

    # ---- called by the listener ----

    def pause_reading(self) -> None:
        """Stop reading from the kernel; a handshake under way goes on and then stops."""
        self._paused = True
        self._stop_reading()

    def resume_reading(self) -> None:
        """Read again, first what the kernel kept; a connection that its handler holds goes on waiting."""
        self._paused = False
        if not self._held and self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    def finish(self) -> None:
        """Tell the peer that we stop, unless it has, and go on taking what it sends until `close`."""
        raise NotImplementedError

    def drop(self, refusal: Refused) -> None:
        """Close a peer that may no longer stay."""
        raise NotImplementedError

    def close(self) -> None:
        """Close now; what was received stays."""
        self._end()
        if self._transport is not None:
            self._transport.close()
            if self._transport.get_write_buffer_size():  # a peer that never reads would keep the socket for ever
                asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.abort)

    # ---- called by the handler ----

    def hold(self) -> None:
        """Stop reading this one connection; what was read already still comes."""
        self._held = True
        self._stop_reading()

    def release(self) -> None:
        """Undo hold."""
        self._held = False
        if not self._paused:
            self.resume_reading()

    # ---- called by the loop ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        self._transport = cast("asyncio.Transport", transport)
        if self._state is State.OVER:  # dropped before the loop had it
            self._transport.close()

    # ---- inside ----

    def _stop_reading(self) -> None:
        """A handshake under way goes on first: it ends by itself, and then looks at `_paused` and `_held`."""
        if self._state is not State.HANDSHAKE and self._transport and not self._transport.is_closing():
            self._transport.pause_reading()

    def _peer_listens(self) -> bool:
        """Whether it has neither closed nor been reset. To tell one that has that we stop is an error, or is answered
        with a reset, and then the transport ends before what the peer had sent is read; its end comes by itself.
        """
        if self._transport is None or self._transport.is_closing():
            return False
        sock = self._transport.get_extra_info("socket")
        try:
            if sys.platform == "linux":
                return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _ESTABLISHED)
            sock.getpeername()
        except OSError:
            return False
        return True

    def _half_close(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            try:
                self._transport.write_eof()
            except OSError:  # the peer is gone already
                self._transport.abort()

    def _end(self) -> None:
        """Nothing more is taken, and the handler hears that its input ended."""
        self._state = State.OVER
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.ended()


class TcpHost(Protocol):
    """What a plain connection asks of its listener."""

    def admit(self, connection: "TcpConnection") -> Handler:
        """It is there: who speaks?"""

    def refuse(self, connection: "TcpConnection", refusal: Refused) -> None:
        """Count and log; the connection closes by itself."""

    def forget(self, connection: "TcpConnection") -> None:
        """The connection is gone."""


class TcpConnection(Connection):
    """Without TLS: what comes is what the peer sent, and nothing is ever said to it."""

    __slots__ = ("_host",)

    def __init__(self, host: TcpHost, *, address: str, port: int) -> None:
        super().__init__(address=address, port=port)
        self._host = host

    def finish(self) -> None:
        """See Connection; a FIN is all that we can say."""
        if self._state is not State.OPEN:
            self.close()
            return
        self._state = State.CLOSING
        if self._peer_listens():
            self._half_close()

    def drop(self, refusal: Refused) -> None:
        """See Connection."""
        self._host.refuse(self, refusal)
        self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        super().connection_made(transport)
        if self._state is not State.OVER:
            self._handler = self._host.admit(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """See asyncio.BufferedProtocol; the same memory for every connection."""
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        self.active = True
        if self._handler is None:
            return
        try:
            self._handler.received(_RECEIVED[:nbytes])
        except Refused as refusal:
            self.drop(refusal)

    def eof_received(self) -> bool:
        """A FIN: the sender is done."""
        self._end()
        return False  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """See asyncio.BaseProtocol; a reset ends the input as a FIN does."""
        self._end()
        self._transport = None
        self._host.forget(self)
