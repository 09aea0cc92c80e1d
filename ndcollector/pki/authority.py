"""The CA itself: making it, and issuing certificates. See the package's head for promises and files."""

import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from ndcollector.pki import revocation, store
from ndcollector.pki.keys import (
    fingerprint,
    load_authority,
    load_bundle,
    load_or_make_key,
    new_key,
    pem,
    public_key_of,
)
from ndcollector.pki.names import Subject
from ndcollector.pki.store import Certificate, PkiError

CA_DAYS = 3650
DEFAULT_DAYS = {"server": 825, "device": 825, "agent": 90}  # agents renew by themselves; people renew the others
BACKDATE = timedelta(hours=1)  # a device whose clock is a little behind must accept a new certificate
SERVER = "server"  # file name of the collector's own pair


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate and where it lies; `key` and `key_file` are None where the peer kept its key (a CSR)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None
    certificate_file: Path
    key_file: Path | None
    ca_file: Path


def init(directory: Path, server: Subject, *, now: datetime) -> Issued:
    """A new CA with an empty CRL, and the collector's own pair.

    Raises PkiError if a CA is here already. A run that a crash cut short is taken up where it stopped.
    """
    store.make_directory(directory)
    with store.locked(directory):
        if (directory / store.CA_CERTIFICATE).exists():
            raise PkiError(
                f"{directory} has a CA already; `ndcollector pki issue --server {server.name}` makes a collector's "
                "pair, --dir names another directory"
            )
        key = load_or_make_key(directory / store.CA_KEY)
        certificate = self_signed(key, now)
        store.create(
            directory / store.CA_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM), store.PUBLIC
        )
        return _issue(directory, server, directory / SERVER, now=now, days=None, csr=None)


def issue(
    directory: Path,
    subject: Subject,
    *,
    now: datetime,
    days: int | None = None,
    csr: bytes | None = None,
    renew: bool = False,
) -> Issued:
    """A certificate for `subject`: with a new key, or for the key in a certificate request (whose wishes are ignored).

    Raises PkiError: no CA or no key of it here, a bad request, or a current certificate of this name without `renew`.
    Renewing leaves the older one valid until it expires or is revoked.
    """
    with store.locked(directory):
        current = [
            one for one in store.list_certificates(directory) if (one.kind, one.name) == (subject.kind, subject.name)
        ]
        current = [one for one in current if one.is_current(now)]
        if current and not renew:
            raise PkiError(
                f"{subject.kind} {subject.name} has a certificate until {current[-1].not_after:%Y-%m-%d}; "
                "add --renew for a second one, or revoke it first"
            )
        stem = _stem(directory, subject)
        if renew:
            subject = _with_names_of(subject, stem.with_name(stem.name + ".crt"))
        return _issue(directory, subject, stem, now=now, days=days, csr=csr)


def sign(
    directory: Path, subject: Subject, *, now: datetime, csr: bytes, days: int | None = None
) -> tuple[x509.Certificate, Certificate]:
    """A certificate for the key in a request, for a peer that will keep it itself: only the index is written.

    Any number may be current for one name. Gives the certificate and its line of the index; raises PkiError.
    """
    with store.locked(directory):
        ca, ca_key = load_authority(directory)
        days = DEFAULT_DAYS[subject.kind] if days is None else days
        certificate = _leaf(subject, public_key_of(csr), ca, ca_key, now=now, days=days)
        entry = _entry(subject, certificate, ca)
        store.record_issued(directory, entry)
    return certificate, entry


def renew_server(directory: Path, *, now: datetime) -> Issued | None:
    """The collector's own pair anew if the CA that issues now did not issue it; None if it did, or a CA not ours.

    For a rotation, which holds the lock.
    """
    path = directory / f"{SERVER}.crt"
    names = _names_in(path)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    name = next((uri.removeprefix("nd:server:") for uri in uris if uri.startswith("nd:server:")), None)
    if name is None:
        return None
    current = x509.load_pem_x509_certificate(path.read_bytes())
    issuers = [one for one in load_bundle(directory) if one.subject == current.issuer]
    if not issuers or issuers == [load_authority(directory)[0]]:
        return None
    subject = _with_names_of(Subject("server", name), path)
    return _issue(directory, subject, directory / SERVER, now=now, days=None, csr=None)


def _issue(
    directory: Path, subject: Subject, stem: Path, *, now: datetime, days: int | None, csr: bytes | None
) -> Issued:
    """Index first, then key, then certificate: whatever a crash leaves can be revoked, and no pair is half old."""
    ca, ca_key = load_authority(directory)
    if revocation.crl_expiry(directory) is None:  # also after an init that was cut short
        revocation.write_crls(directory, now=now)
    key = None if csr is not None else new_key()
    public = key.public_key() if key is not None else public_key_of(csr or b"")
    days = DEFAULT_DAYS[subject.kind] if days is None else days
    certificate = _leaf(subject, public, ca, ca_key, now=now, days=days)
    store.record_issued(directory, _entry(subject, certificate, ca))
    store.make_directory(stem.parent)
    certificate_file, key_file = stem.with_name(stem.name + ".crt"), stem.with_name(stem.name + ".key")
    aside = _serial_in(certificate_file) or f"{now:%Y%m%dT%H%M%S}"
    store.set_aside(key_file, aside)
    store.set_aside(certificate_file, aside)
    if key is not None:
        store.overwrite(key_file, pem(key), store.PRIVATE)
    else:
        key_file.unlink(missing_ok=True)  # kept aside; beside the new certificate it would be a wrong pair
    store.overwrite(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), store.PUBLIC)
    return Issued(certificate, key, certificate_file, key_file if key else None, directory / store.CA_CERTIFICATE)


def _stem(directory: Path, subject: Subject) -> Path:
    """Where the pair goes: the collector's own name renews server.crt, everything else lies in issued/."""
    if subject.kind == "server":
        names = _names_in(directory / f"{SERVER}.crt")
        if names is None or subject.uri in names.get_values_for_type(x509.UniformResourceIdentifier):
            return directory / SERVER
    return directory / store.ISSUED / f"{subject.kind}-{subject.name}"


def _with_names_of(subject: Subject, path: Path) -> Subject:
    """A renewal that says nothing about DNS names and addresses keeps those of the certificate it replaces."""
    names = _names_in(path)
    if names is None or subject.dns or subject.ips:
        return subject
    dns = tuple(names.get_values_for_type(x509.DNSName))
    return replace(subject, dns=dns, ips=tuple(map(str, names.get_values_for_type(x509.IPAddress))))


def _names_in(path: Path) -> x509.SubjectAlternativeName | None:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def self_signed(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """A CA of its own, good for leaves only."""
    # The random part keeps two CAs apart in trust stores and error messages.
    common_name = f"Neurodefender collector CA {secrets.token_hex(4)}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    return (
        _builder(name, name, key.public_key(), begin=now - BACKDATE, end=now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _leaf(
    subject: Subject,
    public: CertificatePublicKeyTypes,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    *,
    now: datetime,
    days: int,
) -> x509.Certificate:
    # Outliving the CA is a promise nobody can keep.
    end = min(now + timedelta(days=min(days, CA_DAYS)), ca.not_valid_after_utc)
    if days < 1 or end <= now:
        raise PkiError(
            f"the certificate would not be valid: {days} days, and the CA ends {ca.not_valid_after_utc:%Y-%m-%d}"
        )
    # TLS 1.2 with RSA key exchange needs keyEncipherment (RFC 5246 §7.4.2); other keys only sign.
    usage = _key_usage(digital_signature=True, key_encipherment=isinstance(public, rsa.RSAPublicKey))
    ca_identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(subject.distinguished_name, ca.subject, public, begin=now - BACKDATE, end=end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(subject.usage, critical=False)
        .add_extension(subject.alternative_name, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_identifier), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    name: x509.Name, issuer: x509.Name, public: CertificatePublicKeyTypes, *, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(
            issuer_name=issuer,
            subject_name=name,
            public_key=public,
            serial_number=x509.random_serial_number(),  # 159 random bits; RFC 5280 §4.1.2.2 allows 20 octets
        )
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _entry(subject: Subject, certificate: x509.Certificate, ca: x509.Certificate) -> Certificate:
    return Certificate(
        subject.kind,
        subject.name,
        f"{certificate.serial_number:X}",
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        issuer=fingerprint(ca),
    )


def _serial_in(path: Path) -> str:
    try:
        return f"{x509.load_pem_x509_certificate(path.read_bytes()).serial_number:X}"
    except (FileNotFoundError, ValueError):
        return ""
