"""`ndcollector pki rotate`: where a rotation of the CA stands, and its next step.

Promises: a step that would cut somebody off names whom and does nothing, unless --force; without a step it only looks.
Whom it waits for: agents that have not reported the bundle with both CAs (activate), and everybody whose certificate
still comes from the first CA (retire).
"""

import argparse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from ndcollector.config import CollectorConfig, load
from ndcollector.pki.keys import fingerprint, load_bundle
from ndcollector.pki.rotation import Phase, activate, holders, look, retire, stage
from ndcollector.pki.store import CA_CERTIFICATE, PkiError

Finish = Callable[[argparse.ArgumentParser, Callable[[argparse.Namespace], int]], None]

_NEXT = {
    Phase.STEADY: "ndcollector pki rotate --stage",
    Phase.STAGED: "ndcollector pki rotate --activate",
    Phase.ACTIVATED: "ndcollector pki rotate --retire",
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", finish: Finish) -> None:
    """Add `rotate`."""
    text = "replace the CA, in three steps; without one, say where it stands"
    parser = commands.add_parser("rotate", help=text, description=text)
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--stage", action="store_true", help="make a second CA and trust both")
    steps.add_argument("--activate", action="store_true", help="issue from the second CA, this collector's pair first")
    steps.add_argument("--retire", action="store_true", help="trust the first CA no longer")
    parser.add_argument("--force", action="store_true", help="although somebody is cut off by it")
    finish(parser, _rotate)


def _rotate(arguments: argparse.Namespace) -> int:
    config = load(arguments.config) if arguments.config.exists() else None
    directory, now = _directory(arguments, config), datetime.now(UTC)
    step = _step(arguments)
    if step is not None:
        phase = look(directory).phase
        waiting = [] if arguments.force else _waiting_for(directory, phase, config, now)
        print(step(directory, waiting, now))
        _audit(config, directory, arguments)
    for line in _standing(directory, config, now):
        print(line)
    return 0


def _directory(arguments: argparse.Namespace, config: CollectorConfig | None) -> Path:
    if arguments.dir is not None:
        return Path(arguments.dir)
    return config.tls.ca_file.parent if config is not None else Path(arguments.config).parent.absolute() / "pki"


def _step(arguments: argparse.Namespace) -> Callable[[Path, list[str], datetime], str] | None:
    if arguments.stage:
        return _stage
    if arguments.activate:
        return _activate
    return _retire if arguments.retire else None


def _stage(directory: Path, _waiting: list[str], now: datetime) -> str:
    stage(directory, now=now)
    return "A second CA is made and trusted; a running collector takes it up and hands it to its agents."


def _activate(directory: Path, waiting: list[str], now: datetime) -> str:
    issued = activate(directory, now=now, waiting_for=waiting)
    pair = "" if issued is None else " This collector's own pair is renewed; it is taken up without a restart."
    return f"The second CA issues from now on.{pair}"


def _retire(directory: Path, waiting: list[str], now: datetime) -> str:
    retired = retire(directory, now=now, waiting_for=waiting)
    return "There is no CA to retire." if retired is None else f"Retired: {_name(retired)}. Its key is deleted."


def _standing(directory: Path, config: CollectorConfig | None, now: datetime) -> Iterator[str]:
    rotation = look(directory)
    yield f"phase        {rotation.phase}"
    yield f"issuing      {_name(rotation.issuing)}"
    if rotation.other is not None:
        yield f"{'next' if rotation.phase is Phase.STAGED else 'retiring':<12} {_name(rotation.other)}"
    waiting = _waiting_for(directory, rotation.phase, config, now)
    if waiting:
        yield f"waiting for  {len(waiting)}: {', '.join(waiting[:20])}{' …' if len(waiting) > 20 else ''}"
    blind = _blind_tokens(directory, config, now) if rotation.phase is Phase.STAGED else []
    if blind:
        yield f"tokens       {', '.join(blind)} name the first CA only and end with --activate: make new ones"
    if rotation.phase is not Phase.STEADY:
        yield f"next         {_NEXT[rotation.phase]}{' (once nobody is waited for)' if waiting else ''}"


def _name(ca: x509.Certificate) -> str:
    return f"{ca.subject.rfc4514_string()} ({fingerprint(ca)[:16]}…, until {ca.not_valid_after_utc:%Y-%m-%d})"


def _waiting_for(directory: Path, phase: Phase, config: CollectorConfig | None, now: datetime) -> list[str]:
    """Names, agents by the name in the inventory."""
    if phase is Phase.STEADY:
        return []
    names, unaware = _agents(directory, config, now)
    if phase is Phase.STAGED:
        return [names[agent_id] for agent_id in unaware]
    holding = [one for one in holders(directory, now=now) if one.kind != "agent" or one.name in names]
    found = [names.get(one.name, one.name) if one.kind == "agent" else f"{one.kind} {one.name}" for one in holding]
    return list(dict.fromkeys([*found, *(names[agent_id] for agent_id in unaware)]))


def _agents(directory: Path, config: CollectorConfig | None, now: datetime) -> tuple[dict[str, str], list[str]]:
    """Id → name of the agents that may still come, and those of them that have not reported today's bundle."""
    # Late: most of what `pki` does needs no inventory, and the inventory needs pki.
    from ndcollector.agents.inventory import Inventory
    from ndcollector.agents.schema import FILE, InventoryError
    from ndcollector.agents.trust import TrustError, TrustFile

    if config is None or not (config.state_dir / FILE).exists():
        return {}, []
    try:
        bundle = TrustFile(lambda: config.agents.ca_file or directory / CA_CERTIFICATE).bundle().fingerprint
        inventory = Inventory(config.state_dir / FILE)
        try:
            held, agents = inventory.certificates(), inventory.agents()
        finally:
            inventory.close()
    except (InventoryError, TrustError) as error:
        raise PkiError(str(error)) from error
    coming = [
        one
        for one in agents
        if one.revoked_at is None and any(each.is_current(now.timestamp()) for each in held.get(one.id, ()))
    ]
    return {one.id: one.name for one in coming}, [one.id for one in coming if one.trust_bundle != bundle]


def _blind_tokens(directory: Path, config: CollectorConfig | None, now: datetime) -> list[str]:
    """Ids of usable tokens that do not name every CA of today."""
    from ndcollector.agents.inventory import Inventory
    from ndcollector.agents.schema import FILE
    from ndcollector.agents.tokens import list_tokens

    if config is None or not (config.state_dir / FILE).exists():
        return []
    today = {fingerprint(one) for one in load_bundle(directory)}
    inventory = Inventory(config.state_dir / FILE)
    try:
        found = list_tokens(inventory)
    finally:
        inventory.close()
    usable = [one for one in found if one.state(now.timestamp()) == "usable"]
    return [one.id for one in usable if not today <= set(one.ca_fingerprints)]


def _audit(config: CollectorConfig | None, directory: Path, arguments: argparse.Namespace) -> None:
    from ndcollector.audit import Audit, person

    if config is None or not config.state_dir.is_dir():
        return
    step = "stage" if arguments.stage else "activate" if arguments.activate else "retire"
    issuing = fingerprint(look(directory).issuing)
    trail = Audit(config.state_dir, by=person(), clock=lambda: datetime.now(UTC).timestamp())
    trail.record("ca_rotation", step=step, issuing=issuing, force=arguments.force)
