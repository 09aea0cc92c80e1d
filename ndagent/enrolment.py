"""Getting a certificate and, before it runs out, the next one. Runs in processes of its own: `enroll` and `renew`.

    enroll   GET /agents/v1/ca from whoever answers → keep the CAs that the token names → POST token and CSR, verified
    renew    POST CSR, verified, with the certificate that is to be followed

Promises: the key is made here and never leaves; a token is sent only to a collector whose certificate comes from a CA
that the token itself names; a request that was not answered is repeated with the same key, which costs no second use
of a token; a key that turns out to be another agent's gives way to a new one, once; what is refused says why, in the
collector's words.
Refuses: running inside the daemon: making keys and reading certificates takes a library of 8 MB that it never needs.
"""

import contextlib
import platform
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from ndagent import __version__
from ndagent.https_client import Answer as HttpAnswer
from ndagent.https_client import HttpError, HttpsConnection, Place, Proxy
from ndagent.identity import (
    Identity,
    IdentityStore,
    NoIdentity,
    make_private_directory,
    verifying_context,
    write_private,
)
from ndagent.wire import routes
from ndagent.wire.enrolment import Answer, BadToken, EnrolRequest, HostFacts, Refusal, RenewRequest, Token, fingerprint
from ndagent.wire.fields import BadDocument

DEFAULT_PORT = 8443
TIMEOUT_SECONDS = 30.0
_NOT_THIS_KEY = "bad_csr"


class EnrolmentFailed(Exception):
    """Not enrolled or not renewed; the text says why and what to do. `final`: trying again will not help.

    `reason` is the collector's, where it was one that refused.
    """

    def __init__(self, message: str, *, final: bool, reason: str = "") -> None:
        super().__init__(message)
        self.final = final
        self.reason = reason


def parse_url(url: str) -> Place:
    """Where `https://collector[:port]` is; raises EnrolmentFailed that shows a good example."""
    parts = urlsplit(url if "//" in url else f"https://{url}")
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError:
        port = 0
    if parts.scheme != "https" or not parts.hostname or not port or parts.path.strip("/"):
        raise EnrolmentFailed(f"{url!r} is not a collector's URL; write https://collector.example.net:8443", final=True)
    return Place(parts.hostname, port)


async def enrol(url: str, token_text: str, store: IdentityStore, *, proxy: Proxy | None = None) -> Identity:
    """Get this host's certificate; raises EnrolmentFailed."""
    place = parse_url(url)
    try:
        token = Token.parse(token_text)
    except BadToken as error:
        raise EnrolmentFailed(str(error), final=True) from error
    ca = await _trusted_authorities(place, token, proxy)

    async def ask(key: ec.EllipticCurvePrivateKey) -> Answer:
        request = EnrolRequest(token.text, _csr(key), host_facts())
        connection = HttpsConnection(place, context=verifying_context(ca), timeout_seconds=TIMEOUT_SECONDS, proxy=proxy)
        return await _ask(connection, routes.ENROLL, request.to_json())

    return _take_up(*await _with_a_key(store, ask), store)


async def renew(store: IdentityStore, *, proxy: Proxy | None = None, endpoints: Sequence[str] = ()) -> Identity:
    """Get the certificate that follows this one; raises EnrolmentFailed.

    From the first collector that answers: those that ndagent.yaml names, then those that enrolment told.
    """
    identity = store.load()
    context = store.context(identity)  # at once: a renewal beside this one removes the files of the last but one
    failure = EnrolmentFailed("no HTTPS endpoint is known: enroll again, the collector tells them", final=True)
    for endpoint in dict.fromkeys((*endpoints, *identity.endpoints.https)):
        place = Place.parse(endpoint)

        async def ask(key: ec.EllipticCurvePrivateKey, place: Place = place) -> Answer:
            connection = HttpsConnection(place, context=context, timeout_seconds=TIMEOUT_SECONDS, proxy=proxy)
            return await _ask(connection, routes.RENEW, RenewRequest(_csr(key)).to_json())

        try:
            answer, key = await _with_a_key(store, ask)
            if answer.agent_id != identity.agent_id:
                text = f"{place} renewed for agent {answer.agent_id}, this is {identity.agent_id}: it is not taken up"
                raise EnrolmentFailed(text, final=False)  # noqa: TRY301 - the next collector may know better
            return _take_up(answer, key, store)
        except EnrolmentFailed as error:
            failure = error
    raise failure


async def _with_a_key(
    store: IdentityStore, ask: Callable[[ec.EllipticCurvePrivateKey], Awaitable[Answer]]
) -> tuple[Answer, ec.EllipticCurvePrivateKey]:
    """The answer for the key that waits for one, or for a new key where that one is another agent's by now.

    An enrolment whose answer was lost may have made an agent of it: no other token, and no renewal, would ever get a
    certificate for it. (The same token does, for a day.)
    """
    key = _pending_key(store)
    try:
        return await ask(key), key
    except EnrolmentFailed as error:
        if error.reason != _NOT_THIS_KEY:
            raise
    store.pending_key.unlink(missing_ok=True)
    key = _pending_key(store)
    try:
        return await ask(key), key
    except EnrolmentFailed as error:
        if error.reason == _NOT_THIS_KEY:
            store.pending_key.unlink(missing_ok=True)
        raise


def host_facts() -> HostFacts:
    """What the inventory shows of this machine."""
    name = ""
    with contextlib.suppress(OSError):
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    return HostFacts(
        hostname=socket.gethostname() or "unknown",
        os="windows" if sys.platform == "win32" else sys.platform,
        os_name=name or platform.platform(terse=True),
        architecture=platform.machine(),
        version=__version__,
    )


async def _trusted_authorities(place: Place, token: Token, proxy: Proxy | None) -> str:
    """The collector's CA certificates (PEM) that the token names. Nothing secret is said on this connection."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    connection = HttpsConnection(place, context=unverified, timeout_seconds=TIMEOUT_SECONDS, proxy=proxy)
    found = await _get(connection, routes.CA)
    try:
        authorities = x509.load_pem_x509_certificates(found)
    except ValueError:
        authorities = []
    named = [one for one in authorities if fingerprint(one.public_bytes(Encoding.DER)) in token.ca_fingerprints]
    if not named:
        raise EnrolmentFailed(
            f"{place} is not the collector that made this token: none of its CAs has a fingerprint that the token "
            "names. Check the URL; somebody may be in between",
            final=True,
        )
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in named)


async def _get(connection: HttpsConnection, path: str) -> bytes:
    try:
        answer = await connection.request("GET", path)
    except HttpError as error:
        raise EnrolmentFailed(str(error), final=False) from error
    finally:
        await connection.aclose()
    if answer.status != 200:
        raise EnrolmentFailed(f"{connection.place} answers {answer.status} to {path}: is it a collector?", final=False)
    return answer.body


async def _ask(connection: HttpsConnection, path: str, body: bytes) -> Answer:
    try:
        answer = await connection.request("POST", path, headers={"Content-Type": "application/json"}, body=body)
        if answer.status != 200:
            raise _refused(connection.place, answer)
        return Answer.from_json(answer.body)
    except HttpError as error:
        raise EnrolmentFailed(str(error), final=False) from error
    except BadDocument as error:
        raise EnrolmentFailed(f"{connection.place} answers what is no answer: {error}", final=False) from error
    finally:
        await connection.aclose()


def _refused(place: Place, answer: HttpAnswer) -> EnrolmentFailed:
    try:
        refusal = Refusal.from_json(answer.body)
    except BadDocument:
        return EnrolmentFailed(f"{place} answers {answer.status}: is there a proxy in between?", final=False)
    final = 400 <= answer.status < 500 and answer.status != 429
    text = f"{place} refused: {refusal.message} ({refusal.reason})"
    return EnrolmentFailed(text, final=final, reason=refusal.reason)


def _pending_key(store: IdentityStore) -> ec.EllipticCurvePrivateKey:
    """The key of the request that was not answered, or a new one, on disk before it is used."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        key = load_pem_private_key(store.pending_key.read_bytes(), None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and not _is_in_use(key, store):
            return key
    key = ec.generate_private_key(ec.SECP256R1())
    make_private_directory(store.directory)
    write_private(store.pending_key, _pem(key))
    return key


def _is_in_use(key: ec.EllipticCurvePrivateKey, store: IdentityStore) -> bool:
    """Whether the request was answered after all: a kill may come between storing the answer and removing the key."""
    with contextlib.suppress(NoIdentity, OSError, ValueError):
        pair = (store.directory / store.load().pair).read_bytes()
        return x509.load_pem_x509_certificate(pair).public_key() == key.public_key()
    return False


def _csr(key: ec.EllipticCurvePrivateKey) -> str:
    """A request with no wishes in it: the collector decides every name and extension."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _take_up(answer: Answer, key: ec.EllipticCurvePrivateKey, store: IdentityStore) -> Identity:
    try:
        certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
    except ValueError as error:
        raise EnrolmentFailed(f"the collector's answer holds no certificate: {error}", final=False) from error
    if certificate.public_key() != key.public_key():
        raise EnrolmentFailed("the collector answered with a certificate for another key", final=False)
    end: datetime = certificate.not_valid_after_utc
    try:
        return store.store(answer, key=_pem(key), not_after=int(end.timestamp()))
    except NoIdentity as error:
        raise EnrolmentFailed(f"the collector's answer cannot be used: {error}", final=False) from error


def state_directory(state_dir: Path) -> IdentityStore:
    """Where the identity lies below an agent's state directory."""
    return IdentityStore(state_dir / "identity")
