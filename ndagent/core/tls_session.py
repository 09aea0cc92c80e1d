"""One connection's TLS, without a socket: ciphertext in, plaintext and ciphertext out.

Promises:
  * `decrypt` gives every byte that was decrypted, also when the same call meets a close_notify or a damaged record;
  * no buffer of a session grows past what one slice of ciphertext needs, so 10 000 idle sessions stay small;
  * after the handshake nothing is sent unless asked: a syslog sender never reads, and bytes that it has not read turn
    its close() into a reset, which destroys what it sent last.
Refuses: sockets, policy beyond what OpenSSL verifies, logging.

Two engines, one shape. `Session` is the ssl module's. It cannot accept a certificate that no CA vouches for, which is
what RFC 5425 §4.2.2 asks for with fingerprints, so listeners that list fingerprints use `PinnedSession`, which is
pyOpenSSL's: the same OpenSSL calls, about 5 µs more per record.
"""

import contextlib
import hashlib
import ssl
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from OpenSSL.crypto import X509

from ndagent.core.tls_refusal import UNTRUSTED, Refused, refusal_for, refusal_for_reason, refusal_for_verify_code

SLICE_BYTES = 16 * 1024
"""Ciphertext goes in by slices: a memory BIO keeps the room it once needed for as long as the connection lives."""

MAX_RECORD_BYTES = 16 * 1024 + 2048  # RFC 5246 §6.2.3; RFC 8446 §5.2 allows less
_WRONG_USAGE = 26


class TlsSession(Protocol):
    """What a connection needs of its TLS."""

    ended: str | None
    """None while the peer may send more; "" after its close_notify; otherwise what damaged the stream."""

    attention: bool
    """After decrypt(): it ended, or there is output()."""

    def handshake(self, data: memoryview) -> bool:
        """Take ciphertext; True once done, and then `decrypt(b"")` gives what came with it. Raises Refused."""

    def decrypt(self, data: memoryview | bytes, plain: memoryview) -> int:
        """Take ciphertext and fill `plain`, which has room for it and MAX_RECORD_BYTES more; how much was filled."""

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Plaintext to ciphertext; only after the handshake and before close()."""

    def output(self) -> bytes:
        """Ciphertext that must be sent now; call after each handshake(), and after decrypt() if `attention`."""

    def close(self) -> bytes:
        """The last ciphertext to send: close_notify (RFC 5425 §4.4 asks for it)."""

    def certificate(self) -> bytes:
        """The peer's certificate, DER; empty where it had none and needed none."""

    def chain(self) -> list[bytes]:
        """The certificates that the peer sent along, DER."""


class Session:
    """TLS by the ssl module."""

    __slots__ = ("_incoming", "_object", "_outgoing", "attention", "ended")

    def __init__(self, context: ssl.SSLContext) -> None:
        self.ended: str | None = None
        self.attention = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self, data: memoryview) -> bool:
        """See TlsSession."""
        self._incoming.write(data)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise refusal_for(error) from None
        return True

    def decrypt(self, data: memoryview | bytes, plain: memoryview) -> int:
        """See TlsSession."""
        size = len(data)
        if size <= SLICE_BYTES:
            self._incoming.write(data)
            filled = self._read(plain, 0)
        else:
            filled = 0
            for start in range(0, size, SLICE_BYTES):
                self._incoming.write(data[start : start + SLICE_BYTES])
                filled = self._read(plain, filled)
        if self._outgoing.pending:
            self.attention = True
        return filled

    def _read(self, plain: memoryview, filled: int) -> int:
        incoming, read = self._incoming, self._object.read
        try:
            # A read gives one record whole, so nothing is left inside OpenSSL once its input is empty.
            while self.ended is None and incoming.pending:
                got: int = read(MAX_RECORD_BYTES, plain[filled:] if filled else plain)  # type: ignore[assignment]  # typeshed knows no buffer
                if not got:
                    self._end("")
                filled += got
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._end("")
        except ssl.SSLError as error:
            self._end(error.reason or str(error))
        return filled

    def _end(self, why: str) -> None:
        self.ended = why
        self.attention = True

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """See TlsSession."""
        self._object.write(data)  # a memory BIO takes all of it
        return self._outgoing.read()

    def output(self) -> bytes:
        """See TlsSession."""
        self.attention = self.ended is not None
        return self._outgoing.read()

    def close(self) -> bytes:
        """See TlsSession."""
        # An error means that close_notify is written and the peer's is still to come, or that the stream is damaged.
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._object.unwrap()
        return self._outgoing.read()

    def certificate(self) -> bytes:
        """See TlsSession."""
        return self._object.getpeercert(binary_form=True) or b""

    def chain(self) -> list[bytes]:
        """See TlsSession."""
        source = self._object if hasattr(self._object, "get_unverified_chain") else self._object._sslobj  # type: ignore[attr-defined]  # noqa: SLF001 - public only from 3.13 on
        found = source.get_unverified_chain() or []
        return [one if isinstance(one, bytes) else ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in found]


class PinnedSession:
    """TLS by pyOpenSSL: also accepts a certificate that no CA vouches for if its fingerprint is listed.

    Expired and revoked stay refused. `context` must call `decide_on_certificate` (see tls.py).
    """

    __slots__ = ("_connection", "_held", "_pins", "_verify_code", "attention", "ended")

    def __init__(self, context: SSL.Context, pins: frozenset[bytes]) -> None:
        self.ended: str | None = None
        self.attention = True  # bio_read is the only way to know
        self._pins = pins
        self._verify_code = 0
        self._held = False
        self._connection = SSL.Connection(context, None)
        self._connection.set_app_data(self)
        self._connection.set_accept_state()

    def decide(self, certificate: x509.Certificate, code: int, depth: int, verified: bool) -> bool:
        """OpenSSL asks about each certificate, the leaf last. Faults of trust alone are forgiven, to a listed leaf."""
        if not verified:
            if code not in UNTRUSTED and code not in {3, _WRONG_USAGE}:  # 3: a self-signed one has no CRL
                self._verify_code = code
                return False
            self._verify_code = self._verify_code or code
        if depth or not self._verify_code:
            return True
        return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest() in self._pins

    def handshake(self, data: memoryview) -> bool:
        """See TlsSession."""
        if data:
            self._connection.bio_write(bytes(data))
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            if self._verify_code:
                raise refusal_for_verify_code(self._verify_code, f"verification error {self._verify_code}") from None
            raise refusal_for_reason(_reason(error)) from None
        if self._verify_code and hashlib.sha256(self.certificate()).digest() not in self._pins:
            raise Refused("unknown_ca", "fingerprint not listed")  # decide() said so already; nothing may depend on it
        # pyOpenSSL cannot turn TLS 1.3 tickets off. Held back, they go out with the next bytes that must.
        self._held = self._connection.get_protocol_version_name() == "TLSv1.3"
        return True

    def decrypt(self, data: memoryview | bytes, plain: memoryview) -> int:
        """See TlsSession."""
        filled = 0
        for start in range(0, max(1, len(data)), SLICE_BYTES):
            if data:
                self._connection.bio_write(bytes(data[start : start + SLICE_BYTES]))
            filled = self._read(plain, filled)
        return filled

    def _read(self, plain: memoryview, filled: int) -> int:
        try:
            while self.ended is None:
                filled += self._connection.recv_into(plain[filled:], MAX_RECORD_BYTES)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.ended = ""
        except SSL.Error as error:
            self.ended = _reason(error)
        return filled

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """See TlsSession."""
        self._connection.sendall(bytes(data))
        return self._take()

    def output(self) -> bytes:
        """See TlsSession."""
        return b"" if self._held else self._take()

    def _take(self) -> bytes:
        pieces = []
        try:
            while True:
                pieces.append(self._connection.bio_read(SLICE_BYTES))
        except SSL.WantReadError:
            return b"".join(pieces)

    def close(self) -> bytes:
        """See TlsSession."""
        with contextlib.suppress(SSL.Error):  # the stream is already damaged
            self._connection.shutdown()
        return self._take()

    def certificate(self) -> bytes:
        """See TlsSession."""
        certificate = self._connection.get_peer_certificate(as_cryptography=True)
        return certificate.public_bytes(Encoding.DER) if certificate else b""

    def chain(self) -> list[bytes]:
        """See TlsSession."""
        chain = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        return [certificate.public_bytes(Encoding.DER) for certificate in chain]


def decide_on_certificate(connection: SSL.Connection, certificate: X509, code: int, depth: int, verified: int) -> bool:
    """pyOpenSSL's verify callback, which is per context; the answer is the session's."""
    session: PinnedSession = connection.get_app_data()
    return session.decide(certificate.to_cryptography(), code, depth, bool(verified))


def _reason(error: SSL.Error) -> str:
    queue = error.args[0] if error.args else []
    return str(queue[0][2]) if isinstance(queue, list) and queue else "unexpected eof while reading"
