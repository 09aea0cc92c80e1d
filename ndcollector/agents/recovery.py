"""Bringing the inventory and the PKI's index together, when the daemon starts and whenever the index has changed.

Promises: an agent that holds a certificate of ours is in the inventory, also after the inventory was lost or when the
certificate was made by hand (`ndcollector pki issue --agent`); one whose every certificate was revoked, also by
`ndcollector pki revoke`, is refused. What the index does not know (group, spools, tokens) is not invented.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ndagent.wire.enrolment import HostFacts
from ndcollector.agents.inventory import Held, Inventory, Newcomer
from ndcollector.pki.store import ISSUED, Certificate, list_certificates


@dataclass(slots=True)
class Reconciled:
    """What was done: ids of agents."""

    added: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)


def reconcile(inventory: Inventory, pki: Path, *, now: float) -> Reconciled:
    """Do it; raises InventoryError, and PkiError where the index is damaged."""
    done = Reconciled()
    agents = {one.id: one for one in inventory.agents()}
    known = inventory.certificates()
    for agent_id, certificates in _by_agent(list_certificates(pki)).items():
        agent = agents.get(agent_id)
        is_current = any(one.is_current(datetime.fromtimestamp(now, UTC)) for one in certificates)
        if agent is None and not is_current:
            continue
        serials = {one.serial: one for one in known.get(agent_id, ())}
        missing = [one for one in certificates if one.serial not in serials and one.not_after.timestamp() > now]
        revoked = [one.serial for one in certificates if one.revoked_at is not None and one.serial in serials]
        held = [Held.of(one, _key_in(pki / ISSUED / f"agent-{agent_id}.crt", one.serial)) for one in missing]
        if agent is None:
            inventory.add(Newcomer(agent_id, HostFacts("", ""), "recovered"), held, now=now)
            done.added.append(agent_id)
            continue
        for one in held:
            inventory.add_certificate(agent_id, one, now=now)
        if any(serials[one].revoked_at is None for one in revoked):
            inventory.mark_certificates_revoked(revoked, now=now)
        if agent.revoked_at is None and all(one.revoked_at is not None for one in certificates):
            inventory.mark_revoked(agent_id, reason=certificates[-1].reason, now=now)
            done.revoked.append(agent_id)
    return done


def _by_agent(index: Sequence[Certificate]) -> dict[str, list[Certificate]]:
    found: dict[str, list[Certificate]] = {}
    for one in index:
        if one.kind == "agent":
            found.setdefault(one.name, []).append(one)
    return found


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
