"""A small PKI and blocking TLS clients for tests; independent of the product's own PKI code on purpose."""

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
DAY = dt.timedelta(days=1)


def now() -> dt.datetime:
    """The present, as certificates write it."""
    return dt.datetime.now(dt.UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class Pair:
    """A certificate with its key, and what must be sent along with it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: list[x509.Certificate] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return "sha-256:" + self.certificate.fingerprint(hashes.SHA256()).hex(":").upper()

    def pem(self) -> bytes:
        return b"".join(one.public_bytes(Encoding.PEM) for one in (self.certificate, *self.chain))

    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def write(self, certificate: Path, key: Path) -> None:
        certificate.write_bytes(self.pem())
        key.write_bytes(self.key_pem())


class Authority(Pair):
    """A CA: issues, revokes, and signs CRLs."""

    def __init__(self, name: str = "test CA", parent: "Authority | None" = None) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = parent.certificate.subject if parent else _name(name)
        builder = _builder(_name(name), issuer, key, now() - DAY, now() + 3650 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        certificate = builder.sign(parent.key if parent else key, hashes.SHA256())
        super().__init__(certificate, key, [certificate] if parent else [])
        self.revoked: list[int] = []

    def issue(
        self,
        name: str,
        *,
        names: Sequence[str] = (),
        usage: Sequence[x509.ObjectIdentifier] = (CLIENT,),
        since: dt.timedelta = -DAY,
        until: dt.timedelta = 365 * DAY,
    ) -> Pair:
        """A certificate; `names` are "DNS:…", "IP:…", "URI:…", `since` and `until` relative to now."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _leaf(name, self.certificate.subject, key, names, usage, since, until)
        return Pair(builder.sign(self.key, hashes.SHA256()), key, list(self.chain))

    def crl(self, *, until: dt.timedelta = 30 * DAY) -> bytes:
        """The present CRL, PEM."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now() - 2 * DAY).next_update(now() + until)
        for serial in self.revoked:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now() - DAY).build()
            builder = builder.add_revoked_certificate(one)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def revoke(self, pair: Pair) -> None:
        self.revoked.append(pair.certificate.serial_number)


def self_signed(name: str, *, until: dt.timedelta = 365 * DAY) -> Pair:
    """What a firewall makes by itself: no CA, no extended key usage."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _leaf(name, _name(name), key, [], [], -2 * DAY, until)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    since: dt.datetime,
    until: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )


def _leaf(
    name: str,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    usage: Sequence[x509.ObjectIdentifier],
    since: dt.timedelta,
    until: dt.timedelta,
) -> x509.CertificateBuilder:
    builder = _builder(_name(name), issuer, key, now() + since, now() + until)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    return builder


def _general(text: str) -> x509.GeneralName:
    kind, _, value = text.partition(":")
    if kind == "IP":
        return x509.IPAddress(ipaddress.ip_address(value))
    return x509.DNSName(value) if kind == "DNS" else x509.UniformResourceIdentifier(value)


class Files:
    """A directory with ca.crt, server.crt, server.key and, on demand, ca.crl; also makes clients' contexts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority()
        self.server = self.authority.issue("collector", names=["DNS:localhost", "IP:127.0.0.1"], usage=[SERVER])
        self.write()

    def write(self) -> None:
        (self.directory / "ca.crt").write_bytes(self.authority.certificate.public_bytes(Encoding.PEM))
        self.server.write(self.directory / "server.crt", self.directory / "server.key")

    def write_crl(self, *, until: dt.timedelta = 30 * DAY) -> None:
        (self.directory / "ca.crl").write_bytes(self.authority.crl(until=until))

    def client(self, pair: Pair | None, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client's context; None for a client without a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.directory / "ca.crt")
        if version:
            context.minimum_version = context.maximum_version = version
        if pair:
            pair.write(self.directory / "client.crt", self.directory / "client.key")
            context.load_cert_chain(self.directory / "client.crt", self.directory / "client.key")
        return context


def connect(context: ssl.SSLContext, port: int, *, timeout: float = 10) -> ssl.SSLSocket:
    """A connected client; blocks, so call it in a thread."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    try:
        return context.wrap_socket(raw, server_hostname="localhost")
    except BaseException:
        raw.close()
        raise


def send_and_close(context: ssl.SSLContext, port: int, data: bytes) -> None:
    """What a polite sender does: send, close_notify, close; it never reads."""
    client = connect(context, port)
    try:
        client.sendall(data)
        client.settimeout(0.0)
        with contextlib.suppress(ssl.SSLError, OSError):
            client.unwrap()  # writes close_notify; the answer is not awaited
    finally:
        client.close()


def wait_refused(context: ssl.SSLContext, port: int) -> bool:
    """True if the server ends the connection without taking anything; under TLS 1.3 that shows only on reading."""
    try:
        client = connect(context, port)
    except (ssl.SSLError, OSError):
        return True
    with client:
        try:
            return client.recv(1) == b""
        except TimeoutError:
            return False
        except (ssl.SSLError, OSError):
            return True
