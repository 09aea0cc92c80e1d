"""Mutual TLS over one accepted TCP connection, on any asyncio loop.

Promises:
  * every byte that the peer sent before it closed reaches `received`, in order, also when reading was paused meanwhile;
  * `received` is only called for a peer whose certificate and permission were checked; `ended` is called once after it;
  * what the peer may make us hold is bounded: one record, a handshake deadline, `max_unread_bytes` that it never reads.
Refuses: deciding who may come in (the listener's `admit`), framing.

Why not `create_server(ssl=…)`: it loses what a peer sent before it closed while reading was paused, hides refused
handshakes, and holds a large buffer per connection. Here reading is the TCP transport's (tcp_connection.py), and
ciphertext and plaintext pass through two buffers that all connections of the process share.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from ndagent.core.tcp_connection import LINGER_SECONDS, READ_BYTES, Connection, Handler, State
from ndagent.core.tls_refusal import Refused
from ndagent.core.tls_session import MAX_RECORD_BYTES, TlsSession

HANDSHAKE_READ_BYTES = 16 * 1024  # so that a client cannot push much behind its handshake before it may be paused
MAX_UNREAD_BYTES = 64 * 1024  # a peer that asks for key updates and never reads the answers
_CIPHERTEXT = memoryview(bytearray(READ_BYTES))
_PLAINTEXT = memoryview(bytearray(READ_BYTES + 2 * MAX_RECORD_BYTES))


class Host(Protocol):
    """What a connection asks of its listener."""

    def admit(self, connection: "TlsConnection", session: TlsSession) -> Handler:
        """The handshake is done: who speaks? Raises Refused."""

    def refuse(self, connection: "TlsConnection", refusal: Refused) -> None:
        """Count and log; the connection closes by itself."""

    def forget(self, connection: "TlsConnection") -> None:
        """The connection is gone."""


class TlsConnection(Connection):
    """One connection.

    A handler that writes may set `max_unread_bytes` (beyond it the connection is cut) and `writing_paused`, which is
    called with True when the peer reads too slowly and with False when it has caught up.
    """

    __slots__ = ("_host", "_session", "_timer", "max_unread_bytes", "writing_paused")

    def __init__(
        self, host: Host, session: TlsSession, *, address: str, port: int, handshake_timeout_seconds: float
    ) -> None:
        super().__init__(address=address, port=port, state=State.HANDSHAKE)
        self.max_unread_bytes = MAX_UNREAD_BYTES
        self.writing_paused: Callable[[bool], None] | None = None
        self._host = host
        self._session: TlsSession | None = session
        loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = loop.call_later(handshake_timeout_seconds, self._handshake_timed_out)

    @property
    def session(self) -> TlsSession | None:
        """The TLS of a peer that was let in and is still there."""
        return self._session if self._handler is not None else None

    # ---- called by the listener ----

    def finish(self) -> None:
        """Tell the peer that we stop (close_notify, FIN) and go on taking what it sends until `close`."""
        if self._state is not State.OPEN or self._session is None:
            self.close()
            return
        self._state = State.CLOSING
        if self._peer_listens():
            self._send(self._session.close())
            self._half_close()

    def drop(self, refusal: Refused) -> None:
        """Close a peer that may no longer stay."""
        self._host.refuse(self, refusal)
        if self._session is not None and self._handler is not None:
            self._send(self._session.close())
        self.close()

    # ---- called by the handler ----

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt and send; what the peer does not read is held, up to `max_unread_bytes`. After the end: nothing."""
        if self._state is State.OPEN and self._session is not None:
            self._send(self._session.encrypt(data))

    @property
    def unread_bytes(self) -> int:
        """Ciphertext that the peer's kernel has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    # ---- called by the loop ----

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """See asyncio.BufferedProtocol; the same memory for every connection."""
        return _CIPHERTEXT if self._handler is not None else _CIPHERTEXT[:HANDSHAKE_READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        self.active = True
        if self._handler is not None:
            self._read(_CIPHERTEXT[:nbytes])
        elif self._state is State.HANDSHAKE:
            self._shake_hands(_CIPHERTEXT[:nbytes])

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        if self.writing_paused is not None:
            self.writing_paused(True)

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        if self.writing_paused is not None:
            self.writing_paused(False)

    def eof_received(self) -> bool:
        """A FIN. Without close_notify before it the end is the same: syslog has no other mark (RFC 5425 §4.4)."""
        if self._state is State.HANDSHAKE:
            self._refuse(Refused("closed_in_handshake"))
        self._end()
        return False  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BaseProtocol; a reset ends the input as a FIN does."""
        if self._state is State.HANDSHAKE:
            self._host.refuse(self, Refused("closed_in_handshake", str(exc or "")))
        self._end()
        self._transport = None
        self._host.forget(self)

    # ---- inside ----

    def _shake_hands(self, data: memoryview) -> None:
        session: TlsSession = self._session  # type: ignore[assignment]  # there until OVER
        try:
            done = session.handshake(data)
            self._send(session.output())
            if not done:
                return
            self._handler = self._host.admit(self, session)
        except Refused as refusal:
            self._send(session.output() or session.close())
            self._refuse(refusal)
            return
        self._cancel_timer()
        self._state = State.OPEN
        self._read(b"")
        if self._paused or self._held:
            self._stop_reading()

    def _read(self, data: memoryview | bytes) -> None:
        session: TlsSession = self._session  # type: ignore[assignment]  # both are there while OPEN or CLOSING
        size = session.decrypt(data, _PLAINTEXT)
        if size:
            try:
                self._handler.received(_PLAINTEXT[:size])  # type: ignore[union-attr]
            except Refused as refusal:
                self.drop(refusal)
                return
        if session.attention:
            self._send(session.output())
            if session.ended is not None:
                self._peer_ended(session)

    def _peer_ended(self, session: TlsSession) -> None:
        if session.ended:
            self._host.refuse(self, Refused("tls_error", session.ended))
        if self._state is State.OPEN:
            self._send(session.close())
        self.close()

    def _send(self, data: bytes) -> None:
        if not data or self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > self.max_unread_bytes:
            self._transport.abort()

    def _handshake_timed_out(self) -> None:
        self._timer = None
        if self._state is State.HANDSHAKE:
            self._refuse(Refused("handshake_timeout"))

    def _refuse(self, refusal: Refused) -> None:
        """Close so that our alert arrives: unread bytes at close() would make the kernel send a reset instead."""
        self._host.refuse(self, refusal)
        self._end()
        self._half_close()
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.close)

    def _end(self) -> None:
        """See Connection; the TLS state is let go of."""
        self._cancel_timer()
        self._session = None
        super()._end()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
