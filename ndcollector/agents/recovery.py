"""Bringing the inventory and the PKI's index together, when the daemon starts and whenever the index has changed.

Promises: an agent that holds a certificate of ours is in the inventory, also after the inventory was lost or when the
certificate was made by hand (`ndcollector pki issue --agent`); one whose newest certificate was revoked, also by
`ndcollector pki revoke`, is refused; a look costs what is new in the index. What the index does not know (group,
spools, tokens) is not invented.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ndagent.wire.enrolment import HostFacts
from ndcollector.agents.inventory import Inventory
from ndcollector.agents.rows import Held, Newcomer
from ndcollector.pki.store import INDEX, ISSUED, Certificate, PkiError, certificate_of, read_index


@dataclass(slots=True)
class Reconciled:
    """What was done: ids of agents."""

    added: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)


class IndexWatch:
    """Follows the PKI's index, which only grows: each look reads what is new."""

    def __init__(self, pki: Path) -> None:
        self._pki = pki
        self._at = 0
        self._inode = 0

    def start_anew(self) -> None:
        """Look at all of it the next time."""
        self._at = 0

    def reconcile(self, inventory: Inventory, *, now: float) -> Reconciled:
        """Bring the inventory up to what is new; raises InventoryError, and PkiError where the index is damaged."""
        try:
            status = (self._pki / INDEX).stat()
        except OSError:
            return Reconciled()
        if status.st_ino != self._inode or status.st_size < self._at:  # restored from a backup
            self._at, self._inode = 0, status.st_ino
        if status.st_size <= self._at:
            return Reconciled()
        entries, end = read_index(self._pki, self._at)
        done = _reconcile(inventory, self._pki, entries, now=now)
        self._at = end
        return done


def _reconcile(inventory: Inventory, pki: Path, entries: Iterable[dict[str, str]], *, now: float) -> Reconciled:
    issued, revoked = _agents_in(entries)
    agents, owners = inventory.standing(), inventory.owners()
    done = Reconciled()
    for serial, one in issued.items():
        if serial in owners or one.not_after.timestamp() <= now:
            continue
        held = Held.of(one, _key_in(pki / ISSUED / f"agent-{one.name}.crt", serial))
        if one.name in agents:
            inventory.add_certificate(one.name, held, now=now)
        elif one.revoked_at is None:
            inventory.add(Newcomer(one.name, HostFacts("", ""), "recovered"), [held], now=now)
            agents[one.name] = True
            done.added.append(one.name)
        owners[serial] = one.name
    known = [serial for serial in revoked if serial in owners]
    if known:
        inventory.mark_certificates_revoked(known, now=now)
    for agent_id in dict.fromkeys(owners[serial] for serial in known):
        newest = inventory.certificates_of(agent_id)[-1:]
        if agents.get(agent_id) and newest and newest[0].serial in revoked:
            inventory.mark_revoked(agent_id, reason=revoked[newest[0].serial], now=now)
            done.revoked.append(agent_id)
    return done


def _agents_in(entries: Iterable[dict[str, str]]) -> tuple[dict[str, Certificate], dict[str, str]]:
    """Agents' certificates, and what was revoked with its reason, by serial."""
    issued: dict[str, Certificate] = {}
    revoked: dict[str, str] = {}
    try:
        for entry in entries:
            if entry["event"] == "issued" and entry["kind"] == "agent":
                issued[entry["serial"]] = certificate_of(entry)
            elif entry["event"] == "revoked":
                serial = entry["serial"]
                revoked[serial] = entry["reason"]
                if serial in issued:
                    issued[serial] = replace(issued[serial], revoked_at=datetime.fromisoformat(entry["at"]))
    except (KeyError, ValueError, TypeError) as error:
        raise PkiError(f"the PKI's {INDEX} is damaged ({error})") from error
    return issued, revoked


def _key_in(path: Path, serial: str) -> bytes | None:
    """The public key, where the PKI keeps the certificate."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
    return public_key_bytes(certificate) if f"{certificate.serial_number:X}" == serial else None


def public_key_bytes(certificate: x509.Certificate) -> bytes:
    """SubjectPublicKeyInfo in DER."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
