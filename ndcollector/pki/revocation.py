"""Revocation: marking certificates as revoked, and the CRL that tells listeners so.

Promises: a revocation is in the index before it is reported; one whose CRL could not be written is told by the next
command or within the hour by the daemon; a CRL never forgets what the one before it said, even if
the index was lost (unless the certificate has expired for longer than a CRL lives); CRL numbers only grow, whatever was
restored from a backup. `refresh_crl_if_due` keeps the CRL from running out: past nextUpdate every client is refused.

Of two CAs (see rotation.py) each signs a CRL of its own, both in ca.crl, and each lists every serial revoked here,
whichever of them issued it: 159 random bits meet nothing else, and so a lost index forgets nothing. A CRL that stands
there of another CA in ca.crt is kept as it is.
"""

import contextlib
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization

from ndcollector.pki import store
from ndcollector.pki.keys import Authority, fingerprint, load_authorities, load_bundle
from ndcollector.pki.names import Subject
from ndcollector.pki.store import Certificate, PkiError

CRL_DAYS = 30
_BACKDATE = timedelta(hours=1)
_END = b"-----END X509 CRL-----"

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
        index = store.list_certificates(directory)
        if any(_is_untold(index, crl, now) for crl in read_crls(directory)):
            write_crls(directory, now=now)  # an earlier try ended between the two; it will be found revoked already
        return _revoke(directory, _find(index, which, now), now=now, reason=reason)


def revoke_all(directory: Path, subject: Subject, *, now: datetime, reason: str = "unspecified") -> list[Certificate]:
    """Revoke every current certificate of this name; none is fine. Raises PkiError as `revoke` does."""
    with store.locked(directory):
        index = store.list_certificates(directory)
        mine = [one for one in index if (one.kind, one.name) == (subject.kind, subject.name)]
        return _revoke(directory, [one for one in mine if one.is_current(now)], now=now, reason=reason)


def _revoke(directory: Path, found: list[Certificate], *, now: datetime, reason: str) -> list[Certificate]:
    _check_can_tell(directory, found)
    for certificate in found:
        store.record_revoked(directory, serial=certificate.serial, now=now, reason=reason)
    write_crls(directory, now=now)
    return found


def _check_can_tell(directory: Path, found: list[Certificate]) -> None:
    """A revocation that its CA cannot sign would be reported and have no effect."""
    trusted = {fingerprint(one) for one in load_bundle(directory)}
    can_sign = {fingerprint(one) for one, _ in load_authorities(directory)}
    if any(one.issuer in trusted - can_sign for one in found):
        raise PkiError(
            f"the key of the CA that issued {found[0].name} is not in {directory}; bring it back as "
            f"{store.CA_OLD_KEY} (or {store.CA_NEXT_KEY}) and try again"
        )


def refresh_crl_if_due(directory: Path, *, now: datetime) -> bool:
    """Sign the CRL anew when half of its life is over, it cannot be used or does not tell all; True if one was written.

    Without the CA's key here nothing happens: whoever holds it must bring a CRL. Blocks on the lock and the disk: call
    it in a thread. Raises PkiError or OSError when a CRL is due and cannot be made: every client is refused soon.
    """
    if not (directory / store.CA_KEY).exists() or not _is_due(directory, now):
        return False
    with store.locked(directory):
        if not _is_due(directory, now):  # another process was faster
            return False
        write_crls(directory, now=now)
    return True


def crl_expiry(directory: Path) -> datetime | None:
    """When the first CRL runs out (nextUpdate); None if there is none that can be read."""
    expiries = [one.next_update_utc for one in read_crls(directory) if one.next_update_utc is not None]
    return min(expiries, default=None)


def write_crls(directory: Path, *, now: datetime) -> None:
    """A CRL of each CA whose key is here, of everything revoked so far; call under the lock."""
    authorities = load_authorities(directory)
    before = read_crls(directory)
    ours = [one for one in before if any(_signed(one, ca) for ca, _ in authorities)]
    entries = _entries(store.list_certificates(directory), ours, now)
    crls = [_signed_crl(authority, entries, ours, now=now) for authority in authorities]
    trusted = load_bundle(directory)
    others = [one for one in before if one not in ours and any(_signed(one, ca) for ca in trusted)]
    content = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in [*crls, *others])
    store.overwrite(directory / store.CA_CRL, content, store.PUBLIC)


def _signed_crl(
    authority: Authority,
    entries: list[x509.RevokedCertificate],
    before: list[x509.CertificateRevocationList],
    *,
    now: datetime,
) -> x509.CertificateRevocationList:
    ca, key = authority
    previous = next((one for one in before if _signed(one, ca)), None)
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - _BACKDATE)
        .next_update(now + timedelta(days=CRL_DAYS))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(x509.CRLNumber(_next_number(previous, now)), critical=False)
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256())


def _signed(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    try:
        return crl.issuer == ca.subject and crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]  # a CA's key can sign
    except (InvalidSignature, TypeError, ValueError):
        return False


def _entries(
    index: list[Certificate], before: list[x509.CertificateRevocationList], now: datetime
) -> list[x509.RevokedCertificate]:
    forgettable = {one.serial for one in index if one.not_after + timedelta(days=CRL_DAYS) < now}
    entries = {f"{entry.serial_number:X}": entry for crl in before for entry in crl}
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
    crls, index = read_crls(directory), store.list_certificates(directory)
    return any(_is_due_of(ca, crls, index, now) for ca, _ in load_authorities(directory))


def _is_due_of(
    ca: x509.Certificate, crls: list[x509.CertificateRevocationList], index: list[Certificate], now: datetime
) -> bool:
    crl = next((one for one in crls if _signed(one, ca)), None)
    if crl is None or crl.next_update_utc is None or _is_untold(index, crl, now):
        return True
    return now >= crl.last_update_utc + (crl.next_update_utc - crl.last_update_utc) / 2


def _is_untold(index: list[Certificate], crl: x509.CertificateRevocationList, now: datetime) -> bool:
    """Whether the index has a revocation that the CRL has not: a kill or a full disk came between the two."""
    revoked = [one for one in index if one.revoked_at is not None and one.not_after + timedelta(days=CRL_DAYS) >= now]
    return any(crl.get_revoked_certificate_by_serial_number(int(one.serial, 16)) is None for one in revoked)


def read_crls(directory: Path) -> list[x509.CertificateRevocationList]:
    """Those in ca.crl that can be read; a broken one is as good as none."""
    found = []
    try:
        pieces = (directory / store.CA_CRL).read_bytes().split(_END)[:-1]
    except FileNotFoundError:
        return []
    for piece in pieces:
        with contextlib.suppress(ValueError):
            found.append(x509.load_pem_x509_crl(piece + _END))
    return found


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
