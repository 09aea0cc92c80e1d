"""The server's side of mutual TLS: contexts from files, their reload, and who is still trusted after one.

Promises:
  * a client without a good certificate never gets through a handshake, and nobody resumes a session past a newer CRL;
  * new files are taken whole or not at all: no PEM block may be cut off, certificate and key must match, CAs and CRLs
    must parse, each CRL must be signed by one of the CAs; until then the last good ones stay in use and a WARNING says
    what is wrong, once;
  * what expires is exported and logged: WARNING from 14 days before, ERROR from 3 days before and after.
Refuses: sockets (tls_protocol.py, tls_listener.py); deciding whom a listener lets in (allow_list.py).

Not set on purpose: VERIFY_X509_STRICT. It refuses CAs without key identifiers or critical basic constraints, which are
common in devices' and companies' own PKIs and no weaker for it. Set: PARTIAL_CHAIN, so that an issuing CA alone in
`ca_file` is enough and what stands in that file is exactly whom we trust; a client's certificate must still name
clientAuth if it names any usage (OpenSSL's purpose check).
"""

import _ssl
import contextlib
import ctypes
import enum
import logging
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from OpenSSL import SSL, crypto
from pydantic import Field

from ndagent.core import messages
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.settings import ConfigPath, Settings
from ndagent.core.tls_refusal import REVOKED, UNTRUSTED
from ndagent.core.tls_session import PinnedSession, Session, TlsSession, decide_on_certificate
from ndagent.core.watching import changes

log = logging.getLogger("tls")

DAY_SECONDS = 86400
WARN_DAYS, ERROR_DAYS = 14, 3
_VERIFY_FLAGS = crypto.X509StoreFlags.PARTIAL_CHAIN
_SSL_MODE_RELEASE_BUFFERS = 0x10  # ssl.h; the ssl module sets it by itself, pyOpenSSL has no name for it
_OP_NO_RENEGOTIATION = 0x40000000
_SSL_CTRL_SET_SESS_CACHE_MODE, _SSL_SESS_CACHE_OFF, _SSL_SESS_CACHE_SERVER = 44, 0, 2  # ssl.h
_BEGIN, _END = re.compile(rb"-----BEGIN [^\n-]+-----"), re.compile(rb"-----END [^\n-]+-----")


class TlsConfig(Settings):
    """The certificate files of every mutual-TLS listener; changes on disk are picked up while running."""

    ca_file: ConfigPath = Field(
        default=Path("pki/ca.crt"), description="CA certificates (PEM) that peers' certificates must come from."
    )
    cert_file: ConfigPath = Field(
        default=Path("pki/server.crt"), description="This collector's certificate and its intermediates (PEM)."
    )
    key_file: ConfigPath = Field(
        default=Path("pki/server.key"), description="The key of cert_file (PEM, not encrypted)."
    )
    crl_file: ConfigPath | None = Field(
        default=None,
        description="Certificate revocation lists (PEM), one for each CA that issues clients; "
        "null means ca.crl beside ca_file if that exists.",
    )
    minimum_version: Literal["1.2", "1.3"] = Field(default="1.2", description="Oldest TLS version that is accepted.")


class Peers(enum.Enum):
    """Whom a listener serves, which decides what its handshakes ask for."""

    DEVICES = "a certificate, and TLS of tls.minimum_version or newer: devices cannot all do 1.3"
    AGENTS = "a certificate, and TLS 1.3"
    ANYONE = "TLS 1.3; a certificate only of those who have one: who enrols has none yet"


class TlsFilesError(Exception):
    """Certificate files that cannot be used; the text names the file, the fault and the remedy."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom one set of files trusts, for checking certificates that came in under an earlier set."""

    store: crypto.X509Store

    def lost(self, certificate: bytes, chain: Sequence[bytes]) -> str | None:
        """Why this certificate (DER) would no longer get in, or None. Time is not a reason: see `reload`."""
        try:
            leaf, *others = (crypto.load_certificate(crypto.FILETYPE_ASN1, der) for der in (certificate, *chain))
            crypto.X509StoreContext(self.store, leaf, others).verify_certificate()
        except crypto.X509StoreContextError as error:
            code = error.errors[0]
            if code == REVOKED:
                return "certificate_revoked"
            return "unknown_ca" if code in UNTRUSTED else None
        return None


@dataclass(frozen=True, slots=True)
class _Files:
    """One whole, checked set of files and what was built from it."""

    contents: Mapping[Path, bytes]
    contexts: Mapping[Peers, ssl.SSLContext]
    pinned: SSL.Context
    trust: Trust
    expiries: Mapping[Path, datetime]
    crl_path: Path | None


class TlsContexts:
    """The current server contexts. Raises TlsFilesError when the files cannot be used at the start.

    `reload` swaps them; each new connection asks for a `session`, so it sees the newest. Subscribers are called after a
    swap, to drop peers that are no longer trusted.
    """

    def __init__(self, config: TlsConfig, *, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._subscribers: list[Callable[[], None]] = []
        self._expiry_log = Throttle(DAY_SECONDS, clock=clock)
        self._rejected: Mapping[Path, bytes] | None = None
        self._files = _load(config)
        self.check_expiry()

    @property
    def context(self) -> ssl.SSLContext:
        """The current context for devices; do not keep it."""
        return self._files.contexts[Peers.DEVICES]

    @property
    def trust(self) -> Trust:
        """Whom the current files trust."""
        return self._files.trust

    def session(self, pins: frozenset[bytes] = frozenset(), peers: Peers = Peers.DEVICES) -> TlsSession:
        """TLS for one accepted connection; `pins` (devices only) are SHA-256 fingerprints to accept without a CA."""
        return PinnedSession(self._files.pinned, pins) if pins else Session(self._files.contexts[peers])

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after each swap; the result ends that."""
        self._subscribers.append(changed)
        return lambda: self._subscribers.remove(changed)

    def reload(self) -> bool:
        """Take the files as they are now; True if they were new and good. Never raises for what is in them."""
        contents: Mapping[Path, bytes] | None = None
        try:
            contents = _read(self._config)
            if contents in (self._files.contents, self._rejected):
                return False
            self._refuse_lost_crl(contents)
            files = _load(self._config)
        except TlsFilesError as error:
            self._reject(error, contents)
            return False
        self._take(files)
        return True

    def prepare(self, config: TlsConfig) -> Callable[[], None]:
        """Read and check the files of another configuration; calling the result takes them up, as a reload does.

        Raises TlsFilesError if they cannot be used. Nothing changes before the call.
        """
        files = _load(config)

        def take_up() -> None:
            self._config = config
            self._take(files)

        return take_up

    def _refuse_lost_crl(self, contents: Mapping[Path, bytes]) -> None:
        """A CRL that is used without being named must not end by a deleted file: the revoked would get in again."""
        crl = self._files.crl_path
        if crl is not None and crl not in contents:
            raise TlsFilesError(f"{crl}: is gone; put it back (or restart to go without revocation)")

    def _take(self, files: _Files) -> None:
        gone = self._files.expiries.keys() - files.expiries.keys()
        self._files = files
        self._rejected = None
        for path in gone:  # files that are no longer used must not alert; outputs have some of their own there
            with contextlib.suppress(KeyError):
                self._metrics.certificate_expiry.remove(str(path))
        self._expiry_log = Throttle(DAY_SECONDS, clock=self._clock)
        self._metrics.reloads.labels("tls", "done").inc()
        log.info(
            "certificates reloaded",
            extra={**messages.CERTIFICATES_RELOADED, "files": sorted(map(str, self._files.contents))},
        )
        self.check_expiry()
        for changed in tuple(self._subscribers):
            changed()

    def _reject(self, error: TlsFilesError, contents: Mapping[Path, bytes] | None) -> None:
        self._rejected = contents  # as they were before: what has come meanwhile is yet to be tried
        self._metrics.reloads.labels("tls", "refused").inc()
        log.warning(
            "new certificate files are not usable yet, the last good ones stay in use: %s", error,
            extra=messages.CERTIFICATES_UNUSABLE,
        )

    async def watch(self) -> None:
        """Reload whenever a file changes, until cancelled; looks once a minute too: not every file system tells."""
        async for _ in changes(lambda: {path.parent for path in _paths(self._config)}):
            self.reload()
            self.check_expiry()

    def check_expiry(self) -> None:
        """Export when each file's first entry expires; log what is near, once a day and file."""
        now = self._clock()
        for path, expires in self._files.expiries.items():
            timestamp = expires.timestamp()
            self._metrics.certificate_expiry.labels(str(path)).set(timestamp)
            days = (timestamp - now) / DAY_SECONDS
            if days < WARN_DAYS and self._expiry_log.allow(path) is not None:
                self._say_expiry(path, days)

    def _say_expiry(self, path: Path, days: float) -> None:
        what = "expired" if days < 0 else f"expires in {days:.1f} days"
        if path == self._files.crl_path:
            remedy = "past its nextUpdate it refuses every client: put a fresh CRL there"
        else:
            remedy = "clients will refuse this collector, or be refused, once it has: put a new one there"
        level = logging.ERROR if days < ERROR_DAYS else logging.WARNING
        log.log(
            level, "%s %s; %s (it is picked up while running)", path, what, remedy,
            extra=messages.CERTIFICATE_EXPIRES,
        )


def _read(config: TlsConfig) -> dict[Path, bytes]:
    return {path: _read_file(path) for path in _paths(config)}


def _load(config: TlsConfig) -> _Files:
    """Build from one state of the files: OpenSSL opens them by name, so look again afterwards."""
    while True:
        contents = _read(config)
        files = _build(config, contents)
        if _read(config) == contents:
            return files


def _paths(config: TlsConfig) -> list[Path]:
    """The files in use; the CRL is optional unless it is named."""
    paths = [config.ca_file, config.cert_file, config.key_file]
    crl = config.crl_file or config.ca_file.with_name("ca.crl")
    return [*paths, crl] if config.crl_file or crl.exists() else paths


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFilesError(f"{path}: {error.strerror}; check the path and that this user may read it") from error


def _check_whole(path: Path, content: bytes) -> None:
    """The parsers skip a block without an end: half of ca.crt would be fewer CAs, and their peers would be dropped."""
    if len(_BEGIN.findall(content)) != len(_END.findall(content)):
        raise TlsFilesError(f"{path}: a PEM block in it has no end: it is being written, or was cut off; write it anew")


def _build(config: TlsConfig, contents: Mapping[Path, bytes]) -> _Files:
    for path, content in contents.items():
        _check_whole(path, content)
    required = {config.ca_file, config.cert_file, config.key_file}
    crl_path = next((path for path in contents if path not in required), None)
    with _naming(config.ca_file):
        authorities = x509.load_pem_x509_certificates(contents[config.ca_file])
    with _naming(config.cert_file):
        certificate = x509.load_pem_x509_certificates(contents[config.cert_file])[0]
    crls = _parse_crls(crl_path, contents[crl_path], authorities) if crl_path else []
    expiries = {
        config.ca_file: min(one.not_valid_after_utc for one in authorities),
        config.cert_file: certificate.not_valid_after_utc,
    }
    if crl_path:
        expiries[crl_path] = min(one.next_update_utc or certificate.not_valid_after_utc for one in crls)
    contexts = {peers: _server_context(config, crl_path, peers) for peers in Peers}
    trust = Trust(_store(crypto.X509Store(), authorities, crls))
    return _Files(contents, contexts, _pinned_context(config, authorities, crls), trust, expiries, crl_path)


def _parse_crls(
    path: Path, content: bytes, authorities: Sequence[x509.Certificate]
) -> list[x509.CertificateRevocationList]:
    end = b"-----END X509 CRL-----"
    with _naming(path, "it must be PEM; convert with: openssl crl -inform DER -in x.crl -out ca.crl"):
        crls = [x509.load_pem_x509_crl(piece + end) for piece in content.split(end)[:-1]]
        if not crls:
            raise ValueError("holds no CRL")
    for crl in crls:
        if not any(_signed(crl, authority) for authority in authorities):
            issuer = crl.issuer.rfc4514_string()
            raise TlsFilesError(f"{path}: the CRL of {issuer} is not signed by a CA in tls.ca_file; replace it")
    return crls


def _signed(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return crl.issuer == authority.subject and crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]  # a CA's key can sign
    except (InvalidSignature, TypeError, ValueError):
        return False


def _server_context(config: TlsConfig, crl_path: Path | None, peers: Peers) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    older = config.minimum_version == "1.2" and peers is Peers.DEVICES
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if older else ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL if peers is Peers.ANYONE else ssl.CERT_REQUIRED
    # A resumed session would pass a CRL that was loaded later, and a ticket that a sender never reads turns its close
    # into a reset: none of either.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    _keep_no_sessions(context)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    with _naming(config.key_file, f"it must be the unencrypted key of {config.cert_file}"):
        context.load_cert_chain(config.cert_file, config.key_file, password=_no_password)
    with _naming(config.ca_file):
        context.load_verify_locations(config.ca_file)
    if crl_path:
        with _naming(crl_path):
            context.load_verify_locations(crl_path)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def _keep_no_sessions(context: ssl.SSLContext) -> None:
    """Turn off OpenSSL's cache of TLS 1.2 sessions, which the ssl module has no switch for.

    It keeps 20 480 of them at 12 KB each, and whoever resumes one is not verified again for two hours, whatever expires
    meanwhile. Raises TlsFilesError where the switch is not found rather than serve with the cache on.
    """
    # CPython's PySSLContext (Modules/_ssl.c) begins with the SSL_CTX pointer in every version since 3.2.
    ssl_ctx = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    try:
        control = ctypes.CDLL(_ssl.__file__).SSL_CTX_ctrl
    except (AttributeError, OSError) as error:
        raise TlsFilesError(f"OpenSSL's session cache cannot be turned off: {error}; use Debian's python3") from error
    control.argtypes, control.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p], ctypes.c_long
    before = control(ssl_ctx, _SSL_CTRL_SET_SESS_CACHE_MODE, _SSL_SESS_CACHE_OFF, None)
    if before != _SSL_SESS_CACHE_SERVER:
        raise TlsFilesError(f"OpenSSL's session cache was in mode {before}: not the context that was meant")


def _pinned_context(
    config: TlsConfig, authorities: Sequence[x509.Certificate], crls: Sequence[x509.CertificateRevocationList]
) -> SSL.Context:
    """As _server_context, for PinnedSession; the files were proved good there."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION if config.minimum_version == "1.3" else SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | _OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(_SSL_MODE_RELEASE_BUFFERS)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, decide_on_certificate)
    with _naming(config.cert_file):
        context.use_certificate_chain_file(str(config.cert_file))
        context.use_privatekey_file(str(config.key_file))
    _store(context.get_cert_store(), authorities, crls)
    return context


def _store(
    store: crypto.X509Store | None,
    authorities: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList],
) -> crypto.X509Store:
    if store is None:
        raise TlsFilesError("this pyOpenSSL gives no certificate store")
    for authority in authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
    for crl in crls:
        store.add_crl(crl)
    store.set_flags(_VERIFY_FLAGS | (crypto.X509StoreFlags.CRL_CHECK if crls else 0))
    return store


def _no_password() -> NoReturn:
    raise ValueError("the key is encrypted; store it without a password, readable by this service's user only")


@contextlib.contextmanager
def _naming(path: Path, remedy: str = "it must be PEM") -> Iterator[None]:
    """Errors of the parsers, with the file they are about."""
    try:
        yield
    except (ssl.SSLError, SSL.Error, crypto.Error, ValueError, IndexError, OSError) as error:
        raise TlsFilesError(f"{path}: {error}; {remedy}") from error
