"""Revocation: marking certificates as revoked, and the CRL that tells listeners so.

Promises: a revocation is in the index before it is reported; a CRL never forgets what the one before it said, even if
the index was lost (unless the certificate has expired for longer than a CRL lives); CRL numbers only grow, whatever was
restored from a backup. `refresh_crl_if_due` keeps the CRL from running out: past nextUpdate every client is refused.
"""

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ndcollector.pki import store
from ndcollector.pki.keys import load_authority
from ndcollector.pki.store import Certificate, PkiError

CRL_DAYS = 30
_BACKDATE = timedelta(hours=1)

REASONS = {
    flag.value: flag
    for flag in x509.ReasonFlags
    if flag not in (x509.ReasonFlags.certificate_hold, x509.ReasonFlags.remove_from_crl)  # we know no way back
}
"""Names as in RFC 5280 §5.3.1 → cryptography's flags."""


def revoke(directory: Path, which: str, *, now: datetime, reason: str = "unspecified") -> list[Certificate]:
    """Revoke by serial, by name, or by kind:name (every current certificate of that name); returns the revoked.

    Raises PkiError if nothing fits, if a bare name fits more than one kind, or if the CA's key is not here.
    """
    if reason not in REASONS:
        raise PkiError(f"{reason!r} is not a reason; known: {', '.join(sorted(REASONS))}")
    with store.locked(directory):
        ca, key = load_authority(directory)
        found = _find(store.list_certificates(directory), which, now)
        for certificate in found:
            store.record_revoked(directory, serial=certificate.serial, now=now, reason=reason)
        write_crl(directory, ca, key, now=now)
    return found


def refresh_crl_if_due(directory: Path, *, now: datetime) -> bool:
    """Sign the CRL anew when half of its life is over or it cannot be used; True if a new one was written.

    Without the CA's key here nothing happens: whoever holds it must bring a CRL. Blocks on the lock and the disk: call
    it in a thread. Raises PkiError or OSError when a CRL is due and cannot be made: every client is refused soon.
    """
    if not _is_due(directory, now) or not (directory / store.CA_KEY).exists():
        return False
    with store.locked(directory):
        if not _is_due(directory, now):  # another process was faster
            return False
        write_crl(directory, *load_authority(directory), now=now)
    return True


def crl_expiry(directory: Path) -> datetime | None:
    """When the CRL runs out (nextUpdate); None if there is none that can be read."""
    crl = _read_crl(directory)
    return crl.next_update_utc if crl is not None else None


def write_crl(directory: Path, ca: x509.Certificate, key: ec.EllipticCurvePrivateKey, *, now: datetime) -> None:
    """A CRL of everything revoked so far; call under the lock."""
    previous = _read_crl(directory)
    if previous is not None and not previous.is_signature_valid(key.public_key()):
        previous = None
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - _BACKDATE)
        .next_update(now + timedelta(days=CRL_DAYS))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(x509.CRLNumber(_next_number(previous, now)), critical=False)
    )
    for entry in _entries(store.list_certificates(directory), previous, now):
        builder = builder.add_revoked_certificate(entry)
    crl = builder.sign(key, hashes.SHA256())
    store.overwrite(directory / store.CA_CRL, crl.public_bytes(serialization.Encoding.PEM), store.PUBLIC)


def _entries(
    index: list[Certificate], previous: x509.CertificateRevocationList | None, now: datetime
) -> list[x509.RevokedCertificate]:
    forgettable = {one.serial for one in index if one.not_after + timedelta(days=CRL_DAYS) < now}
    entries = {f"{entry.serial_number:X}": entry for entry in previous or ()}
    for one in index:
        if one.revoked_at is not None and one.serial not in entries:
            entries[one.serial] = _entry(one, one.revoked_at)
    return [entry for serial, entry in entries.items() if serial not in forgettable]


def _entry(certificate: Certificate, revoked_at: datetime) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(int(certificate.serial, 16)).revocation_date(revoked_at)
    flag = REASONS.get(certificate.reason, x509.ReasonFlags.unspecified)
    if flag is not x509.ReasonFlags.unspecified:  # RFC 5280 §5.3.1: absent rather than unspecified
        builder = builder.add_extension(x509.CRLReason(flag), critical=False)
    return builder.build()


def _next_number(previous: x509.CertificateRevocationList | None, now: datetime) -> int:
    """Unix time, or one more than before: grows even past a lost or restored file (RFC 5280 §5.2.3)."""
    clock = int(now.timestamp())
    if previous is None:
        return clock
    try:
        number = previous.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:  # made with another tool
        return clock
    return max(clock, number + 1)


def _is_due(directory: Path, now: datetime) -> bool:
    crl = _read_crl(directory)
    if crl is None or crl.next_update_utc is None:
        return True
    return now >= crl.last_update_utc + (crl.next_update_utc - crl.last_update_utc) / 2


def _read_crl(directory: Path) -> x509.CertificateRevocationList | None:
    try:
        return x509.load_pem_x509_crl((directory / store.CA_CRL).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _find(index: list[Certificate], which: str, now: datetime) -> list[Certificate]:
    serial = which.replace(":", "").lstrip("0").upper()
    if by_serial := [one for one in index if one.serial == serial]:
        if by_serial[0].revoked_at is not None:
            raise PkiError(f"{serial} is revoked already, since {by_serial[0].revoked_at:%Y-%m-%d %H:%M}")
        return by_serial
    kind, _, name = which.rpartition(":")
    named = [one for one in index if one.name == name and kind in ("", one.kind)]
    found = [one for one in named if one.is_current(now)]
    kinds = sorted({one.kind for one in found})
    if len(kinds) > 1:
        raise PkiError(f"{name} is more than one: say {' or '.join(f'{kind}:{name}' for kind in kinds)}")
    if not found:
        state = "has no certificate that is still valid" if named else "is neither a name nor a serial issued here"
        raise PkiError(f"{which} {state}; see `ndcollector pki list`")
    return found
