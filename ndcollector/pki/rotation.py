"""Rotating the CA: a second one, an overlap in which both are trusted, and the end of the first.

    stage      a second CA is made; ca.crt trusts both, everything is still issued by the first
    activate   the second one issues from now on, this collector's own certificate first; both are trusted
    retire     the first leaves ca.crt and ca.crl, its key is deleted

Promises: one step at a time, in this order; each may be cut off at any instruction and is gone on with by the same
call again (also a finished one: then it changes nothing); whatever a crash leaves, ca.crt and ca.crl can be loaded
together, and `issue`, `revoke` and the daemon's CRL work in every phase, signing for both CAs. Who holds only the
first CA can check this collector until `activate`; whose certificate comes from the first is let in until `retire`.
Refuses: to know who has which bundle; the callers bring reasons to wait (`waiting_for`), and the person may overrule.

The phase is nowhere written down. It follows from which keys there are:

    ca.key                      steady
    ca.key, ca.next.key         staged: ca.next.key is the key of the second CA
    ca.key, ca.old.key          activated: ca.key is the second CA's, ca.old.key the first's, for its CRL only

`ca.key` says who issues (keys.py), so the one rename ca.next.key → ca.key is the change-over. Order of writes: a CA is
trusted before it has a CRL, and its CRL is gone before it is: a CRL of a CA that is not in ca.crt is refused by TLS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ndcollector.pki import revocation, store
from ndcollector.pki.authority import Issued, renew_server, self_signed
from ndcollector.pki.keys import certificate_of, fingerprint, load_authority, load_bundle, load_key, load_or_make_key
from ndcollector.pki.store import Certificate, PkiError

SHOWN = 5  # of those who are waited for, in a message


class Phase(StrEnum):
    """Where a rotation stands."""

    STEADY = "steady"
    STAGED = "staged"
    ACTIVATED = "activated"


@dataclass(frozen=True, slots=True)
class Rotation:
    """How it stands: `issuing` is the CA that issues, `other` the second one (staged) or the first (activated)."""

    phase: Phase
    issuing: x509.Certificate
    other: x509.Certificate | None


def look(directory: Path) -> Rotation:
    """How the rotation stands; only reads. Raises PkiError where there is no CA, or no key of it."""
    issuing, _ = load_authority(directory)
    for name, phase in ((store.CA_NEXT_KEY, Phase.STAGED), (store.CA_OLD_KEY, Phase.ACTIVATED)):
        if (directory / name).exists():
            return Rotation(phase, issuing, certificate_of(load_key(directory / name), load_bundle(directory)))
    return Rotation(Phase.STEADY, issuing, None)


def stage(directory: Path, *, now: datetime) -> Rotation:
    """Make a second CA and trust it beside the first. Raises PkiError while an earlier rotation is not over."""
    with store.locked(directory):
        rotation = look(directory)
        if rotation.phase is Phase.ACTIVATED:
            raise PkiError("the rotation before this one is not over: finish it with `ndcollector pki rotate --retire`")
        if any(not one.issuer for one in store.list_certificates(directory)):
            store.record_authority(directory, fingerprint(rotation.issuing))
        key = load_or_make_key(directory / store.CA_NEXT_KEY)
        bundle = load_bundle(directory)
        if certificate_of(key, bundle) is None:
            _write_bundle(directory, [*bundle, self_signed(key, now)])
        revocation.write_crls(directory, now=now)
        return look(directory)


def activate(directory: Path, *, now: datetime, waiting_for: Sequence[str] = ()) -> Issued | None:
    """Issue from the second CA, beginning with this collector's own pair (None if that is not ours, or is done).

    Raises PkiError where nothing is staged, and while `waiting_for` names anybody.
    """
    with store.locked(directory):
        phase = look(directory).phase
        if phase is Phase.STEADY:
            raise PkiError("there is no second CA yet: `ndcollector pki rotate --stage` makes one")
        if phase is Phase.STAGED:
            _refuse_to_leave(waiting_for, "would no longer trust this collector")
            _change_over(directory)
        issuing, _ = load_authority(directory)
        others = [one for one in load_bundle(directory) if one != issuing]
        _write_bundle(directory, [issuing, *others])  # the first is what a person takes for the CA
        revocation.write_crls(directory, now=now)
        return renew_server(directory, now=now)


def retire(directory: Path, *, now: datetime, waiting_for: Sequence[str] = ()) -> x509.Certificate | None:
    """Trust the first CA no longer; gives its certificate, None if it was gone already.

    Raises PkiError before `activate`, and while `waiting_for` names anybody.
    """
    with store.locked(directory):
        rotation = look(directory)
        if rotation.phase is Phase.STAGED:
            raise PkiError("the second CA does not issue yet: `ndcollector pki rotate --activate` comes first")
        if rotation.phase is Phase.STEADY:
            return None
        if rotation.other is not None:
            _refuse_to_leave(waiting_for, "would be refused from now on")
            _forget(directory, rotation.other)
        (directory / store.CA_OLD_KEY).unlink()
        revocation.write_crls(directory, now=now)
        return rotation.other


def holders(directory: Path, *, now: datetime) -> list[Certificate]:
    """Whose newest certificate still comes from the first CA, one line of the index for each; empty when steady."""
    rotation = look(directory)
    old = rotation.issuing if rotation.phase is Phase.STAGED else rotation.other
    if rotation.phase is Phase.STEADY or old is None:
        return []
    newest: dict[tuple[str, str], Certificate] = {}
    for one in store.list_certificates(directory):  # the oldest first
        if one.is_current(now):
            newest[one.kind, one.name] = one
    return [one for one in newest.values() if one.issuer in ("", fingerprint(old))]


def _refuse_to_leave(names: Sequence[str], what: str) -> None:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise PkiError(f"{', '.join(names[:SHOWN])}{more} {what}: wait for them, renew them, or add --force")


def _change_over(directory: Path) -> None:
    """Keep the first CA's key for its CRL, then let the second's take its place: that rename is the change."""
    old = directory / store.CA_OLD_KEY
    old.unlink(missing_ok=True)  # of a try before this one
    store.create(old, (directory / store.CA_KEY).read_bytes(), store.PRIVATE)
    (directory / store.CA_NEXT_KEY).replace(directory / store.CA_KEY)
    store.sync(directory)


def _forget(directory: Path, ca: x509.Certificate) -> None:
    """Its CRL goes first: TLS refuses a CRL whose CA it does not trust, and a restart would not come up."""
    rest = [one for one in load_bundle(directory) if one != ca]
    crls = revocation.read_crls(directory)
    kept = [one.public_bytes(serialization.Encoding.PEM) for one in crls if one.issuer != ca.subject]
    store.overwrite(directory / store.CA_CRL, b"".join(kept), store.PUBLIC)
    _write_bundle(directory, rest)


def _write_bundle(directory: Path, bundle: Sequence[x509.Certificate]) -> None:
    content = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in bundle)
    if content != (directory / store.CA_CERTIFICATE).read_bytes():
        store.overwrite(directory / store.CA_CERTIFICATE, content, store.PUBLIC)
