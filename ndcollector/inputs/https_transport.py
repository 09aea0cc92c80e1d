"""HTTP over one TLS connection of ours: what aiohttp's server protocol takes for an asyncio transport.

Promises:
  * aiohttp sees a transport like any other: flow control in both directions, `peername`, and the peer's certificate
    under CERTIFICATE; certificates, handshakes, limits and reloads stay the listener's;
  * a response larger than the peer reads waits here as the plaintext it is, and aiohttp is told to wait: what is
    encrypted ahead of a slow reader is at most UNREAD_BYTES;
  * `close` lets what was written arrive: close_notify and FIN first, then what the peer still sends is read and thrown
    away for LINGER_SECONDS. Unread bytes at a close would make the kernel send a reset, which destroys the response;
  * `since` tells how long a peer has been at a request's header, or has not read what it was sent: `overdue` says so.
Refuses: half-closed connections. A peer that ends its sending side ends the connection, as in aiohttp's own server:
what it had sent whole is handled, and nobody is there to be answered.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from aiohttp import StreamReader
from aiohttp.web_protocol import RequestHandler

from ndagent.core.tls_identity import PeerCertificate
from ndagent.core.tls_protocol import TlsConnection
from ndagent.core.tls_refusal import Refused
from ndagent.wire.record import Origin

CERTIFICATE = "peer_certificate"
"""`get_extra_info` of it is a PeerCertificate, or None for a peer that has none."""

UNREAD_BYTES = 256 * 1024
SLICE_BYTES = 16 * 1024  # one TLS record
LINGER_SECONDS = 2.0


def agent_of(certificate: PeerCertificate | None) -> str:
    """The agent's id in a certificate; empty without one."""
    return Origin("", "", 0, names=certificate.names).agent_id if certificate is not None else ""


class HttpTransport(asyncio.Transport):
    """Both sides of one connection: the Handler of a TlsConnection and the transport of an aiohttp protocol.

    `left` is called once when the connection is over.
    """

    def __init__(
        self, connection: TlsConnection, certificate: PeerCertificate | None, *, left: Callable[[], None]
    ) -> None:
        super().__init__({"peername": (connection.address, connection.port), CERTIFICATE: certificate})
        self.certificate = certificate
        self.agent_id = agent_of(certificate)
        self.busy = False
        """A request is being answered; see HttpServer."""
        self.origin: Origin | None = None
        """What events of this peer are labelled with; see HttpServer."""
        self.named: Origin | None = None
        """The same for its last envelope: the spool packs an origin once, and it is seldom another."""
        self._connection = connection
        self._left = left
        self._loop = asyncio.get_running_loop()
        self._protocol: RequestHandler | None = None
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._slow = False  # the kernel takes no more for now
        self._told = False  # aiohttp knows
        self._closing = False
        self._over = False
        self._linger: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None
        self._header_since: float | None = None
        self._slow_since: float | None = None
        connection.max_unread_bytes = UNREAD_BYTES
        connection.writing_paused = self._writing_paused

    # ---- called by the TLS connection

    def received(self, data: memoryview) -> None:
        """See tls_protocol.Handler."""
        if self._closing or self._protocol is None:
            return
        if not self.busy and self._header_since is None and (self._body is None or self._body.is_eof()):
            self._header_since = self._loop.time()
        self._protocol.data_received(bytes(data))

    def ended(self) -> None:
        """See tls_protocol.Handler. aiohttp hears of it in the next turn of the loop, as asyncio does it."""
        self._closing = self._over = True
        self._left()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._slow_since = self._header_since = None
        if self._linger is not None:
            self._linger.cancel()
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, None)

    def _writing_paused(self, paused: bool) -> None:
        self._slow = paused
        self._slow_since = self._loop.time() if paused else None
        if not paused:
            self._pump()

    # ---- called by the server

    def serve(self, protocol: RequestHandler) -> None:
        """Begin: the protocol gets this transport."""
        self._protocol = protocol
        protocol.connection_made(self)

    def request_began(self, body: StreamReader) -> None:
        """A request's header is complete; its body may go on after its answer, if that was a refusal."""
        self.busy = True
        self._body = body
        self._header_since = None

    def overdue(self, now: float, *, header_seconds: float, response_seconds: float) -> Refused | None:
        """Why this peer has taken too long, if it has."""
        if self._slow_since is not None:
            late = now - self._slow_since > response_seconds
            return Refused("response_timeout", f"{self._waiting_bytes} bytes wait") if late else None
        since = self._header_since
        return Refused("request_timeout") if since is not None and now - since > header_seconds else None

    def drop(self, refusal: Refused) -> None:
        """End the connection at once, counted and logged by the listener."""
        self._connection.drop(refusal)

    # ---- called by aiohttp

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.WriteTransport."""
        if self._closing or not data:
            return
        view = memoryview(data if isinstance(data, bytes) else bytes(data))
        if not self._waiting:
            view = self._send(view)
        if view:
            self._waiting.append(view)
            self._waiting_bytes += len(view)
            if not self._told and self._protocol is not None:
                self._told = True
                self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """See asyncio.WriteTransport."""
        return self._waiting_bytes + self._connection.unread_bytes

    def is_closing(self) -> bool:
        """See asyncio.BaseTransport."""
        return self._closing

    def close(self) -> None:
        """See asyncio.BaseTransport."""
        if not self._closing:
            self._closing = True
            if not self._waiting:
                self._finish()

    def abort(self) -> None:
        """See asyncio.WriteTransport."""
        self._closing = True
        self._connection.close()

    def pause_reading(self) -> None:
        """See asyncio.ReadTransport."""
        self._connection.hold()

    def resume_reading(self) -> None:
        """See asyncio.ReadTransport."""
        self._connection.release()

    def can_write_eof(self) -> bool:
        """TLS has no half-closed connections here."""
        return False

    # ---- inside

    def _send(self, view: memoryview) -> memoryview:
        """Send while the peer keeps up; what is left."""
        while view and not self._slow and not self._over:
            self._connection.write(view[:SLICE_BYTES])
            view = view[SLICE_BYTES:]
        return view

    def _pump(self) -> None:
        while self._waiting and not self._slow:
            left = self._send(self._waiting.popleft())
            if left:
                self._waiting.appendleft(left)
        self._waiting_bytes = sum(map(len, self._waiting))
        if self._waiting:
            return
        if self._closing:
            self._finish()
        elif self._told and self._protocol is not None:
            self._told = False
            self._protocol.resume_writing()

    def _finish(self) -> None:
        if self._over:
            return
        self._linger = self._loop.call_later(LINGER_SECONDS, self._connection.close)
        self._connection.finish()
        self._connection.release()
