"""`ndcollector agents ls|show|add|rename|move|clear|revoke|rm` and `agents token …`: the inventory for people.

Promises: works beside a running daemon and without one; what changes who is trusted is in the audit trail, with who
typed it; `--json` gives one object a line; exit status 1 and one line on stderr when it cannot.
"""

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import orjson
from cryptography import x509

from ndagent.core.yaml_file import ConfigError
from ndagent.wire.enrolment import HostFacts
from ndcollector.agents import token_command
from ndcollector.agents.desk import Desk, opened
from ndcollector.agents.recovery import public_key_bytes
from ndcollector.agents.rows import Agent, Held, Newcomer
from ndcollector.agents.schema import InventoryError
from ndcollector.agents.show import as_json, describe, table
from ndcollector.agents.trust import TrustError
from ndcollector.config import add_config_option
from ndcollector.pki.names import Subject
from ndcollector.pki.revocation import REASONS, revoke_all
from ndcollector.pki.store import CA_KEY, Certificate, PkiError, list_certificates

_PREFIX = "nd:agent:"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `agents` and its subcommands."""
    text = "enrol agents, look at them, revoke them"
    commands = subparsers.add_parser("agents", help=text).add_subparsers(
        dest="agents_command", required=True, metavar="COMMAND"
    )
    token_command.add_parser(commands, _finish)
    listing = _add(commands, "ls", _ls, "every agent: who, where, how far behind")
    listing.add_argument("--group", help="only this group")
    show = _add(commands, "show", _show, "all that is known of one agent")
    show.add_argument("which", metavar="ID|NAME")
    for parser in (listing, show):
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_changes(commands)


def _add_changes(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(commands, "add", _add_agent, "take in an agent whose certificate another PKI issued")
    parser.add_argument("file", metavar="FILE", type=Path, help="its certificate (PEM), with the SAN URI:nd:agent:<id>")
    _add_place(parser, group="")
    parser = _add(commands, "rename", _rename, "give an agent another name")
    parser.add_argument("which", metavar="ID|NAME")
    parser.add_argument("name", metavar="NEW-NAME")
    parser = _add(commands, "move", _move, "give an agent another group and other roles")
    parser.add_argument("which", metavar="ID|NAME")
    _add_place(parser, group=None)
    parser = _add(commands, "clear", _clear, "an agent suspected to be a clone is none")
    parser.add_argument("which", metavar="ID|NAME")
    parser = _add(commands, "revoke", _revoke, "refuse an agent from now on, live connections too")
    parser.add_argument("which", metavar="ID|NAME")
    parser.add_argument("--reason", choices=sorted(REASONS), default="unspecified", help="default: %(default)s")
    parser = _add(commands, "rm", _remove, "forget a revoked agent")
    parser.add_argument("which", metavar="ID|NAME")
    parser.add_argument("--force", action="store_true", help="one that is not revoked is revoked first")


def _add_place(parser: argparse.ArgumentParser, *, group: str | None) -> None:
    parser.add_argument("--group", default=group, help="its group, for policies")
    parser.add_argument("--role", action="append", help="a role, for policies; repeatable")


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[Desk, argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    _finish(parser, command)
    return parser


def _finish(parser: argparse.ArgumentParser, command: Callable[[Desk, argparse.Namespace], int]) -> None:
    add_config_option(parser)
    parser.set_defaults(handler=lambda arguments: _guarded(command, arguments))


def _guarded(command: Callable[[Desk, argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        with opened(arguments.config) as desk:
            return command(desk, arguments)
    except (ConfigError, InventoryError, PkiError, TrustError) as error:
        print(error, file=sys.stderr)
        return 1


# ---- looking


def _ls(desk: Desk, arguments: argparse.Namespace) -> int:
    agents = [one for one in desk.inventory.agents() if arguments.group in (None, one.group)]
    certificates = desk.inventory.certificates()
    now, silent_after = time.time(), desk.config.agents.silent_after
    if arguments.json:
        for one in agents:
            print(orjson.dumps(as_json(one, certificates.get(one.id, []), now=now, silent_after=silent_after)).decode())
        return 0
    print(*table(agents, certificates, now=now, silent_after=silent_after), sep="\n")
    return 0


def _show(desk: Desk, arguments: argparse.Namespace) -> int:
    agent = desk.inventory.find(arguments.which)
    held, status = desk.inventory.certificates_of(agent.id), desk.inventory.status(agent.id)
    found = as_json(agent, held, now=time.time(), silent_after=desk.config.agents.silent_after)
    found["spool_ids"] = [spool_id for spool_id, owner in desk.inventory.spools().items() if owner == agent.id]
    names = ("input", "since_ns", "until_ns", "events")
    found["shed"] = [dict(zip(names, one, strict=True)) for one in desk.inventory.shed(agent.id)]
    found["status"] = orjson.loads(status) if status else None
    print(orjson.dumps(found).decode() if arguments.json else describe(found))
    return 0


# ---- changing


def _add_agent(desk: Desk, arguments: argparse.Namespace) -> int:
    certificate = _certificate(arguments.file)
    agent_id = _agent_id(certificate, arguments.file)
    if any(one.id == agent_id for one in desk.inventory.agents()):
        raise InventoryError(f"{agent_id} is in the inventory already; see `ndcollector agents show {agent_id}`")
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    held = Held(f"{certificate.serial_number:X}", "", begin, end, public_key_bytes(certificate))
    newcomer = Newcomer(agent_id, HostFacts("", ""), "added", arguments.group, tuple(arguments.role or ()))
    desk.inventory.add(newcomer, [held], now=time.time())
    desk.audit.record("agent_added", agent_id=agent_id, serial=held.serial, group=arguments.group)
    print(f"Added agent {agent_id} (certificate {held.serial}, until {certificate.not_valid_after_utc:%Y-%m-%d}).")
    return 0


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise InventoryError(f"{path}: not a certificate in PEM: {error}") from None


def _agent_id(certificate: x509.Certificate, path: Path) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    ids = [uri.removeprefix(_PREFIX) for uri in uris if uri.startswith(_PREFIX)]
    if len(ids) != 1:
        raise InventoryError(f"{path}: needs exactly one subject alternative name URI:{_PREFIX}<id>")
    return Subject("agent", ids[0]).name


def _rename(desk: Desk, arguments: argparse.Namespace) -> int:
    agent = desk.inventory.find(arguments.which)
    if not arguments.name or len(arguments.name) > 255 or not arguments.name.isprintable():
        raise InventoryError(f"{arguments.name!r} cannot be a name; use 1 to 255 printable characters")
    desk.inventory.rename(agent.id, arguments.name)
    desk.audit.record("agent_renamed", agent_id=agent.id, name=arguments.name, former=agent.name)
    print(f"Agent {agent.id}, {agent.name} until now, is {arguments.name}.")
    return 0


def _move(desk: Desk, arguments: argparse.Namespace) -> int:
    agent = desk.inventory.find(arguments.which)
    if arguments.group is None and arguments.role is None:
        raise InventoryError("say where to: --group GROUP, --role ROLE")
    group = agent.group if arguments.group is None else arguments.group
    roles = agent.roles if arguments.role is None else tuple(arguments.role)
    desk.inventory.move(agent.id, group, roles)
    desk.audit.record("agent_moved", agent_id=agent.id, group=group, roles=roles)
    print(f"Agent {agent.name} is in group {group or '(none)'}, with roles {', '.join(roles) or '(none)'}.")
    return 0


def _clear(desk: Desk, arguments: argparse.Namespace) -> int:
    agent = desk.inventory.find(arguments.which)
    desk.inventory.mark_clone(agent.id, reason=None, now=time.time())
    desk.audit.record("clone_cleared", agent_id=agent.id, why=agent.clone_reason)
    print(f"Agent {agent.name} is not suspected any more.")
    return 0


def _revoke(desk: Desk, arguments: argparse.Namespace) -> int:
    agent = desk.inventory.find(arguments.which)
    return 0 if revoke(desk, agent, reason=arguments.reason) else 1


def revoke(desk: Desk, agent: Agent, *, reason: str) -> bool:
    """First in the inventory, which every route asks, then in the CRL, which ends live connections; False: no CRL."""
    now = datetime.now(UTC)
    desk.inventory.mark_revoked(agent.id, reason=reason, now=now.timestamp())
    issued = [one for one in _issued(desk, agent) if one.is_current(now)]
    try:
        revoked = revoke_all(desk.pki, Subject("agent", agent.id), now=now, reason=reason) if issued else []
    except PkiError as error:
        desk.audit.record("agent_revoked", agent_id=agent.id, reason=reason, crl_error=str(error))
        print(f"Agent {agent.name} is refused from now on, but no CRL says so: {error}", file=sys.stderr)
        return False
    serials = [one.serial for one in revoked]
    desk.inventory.mark_certificates_revoked(serials, now=now.timestamp())
    desk.audit.record("agent_revoked", agent_id=agent.id, reason=reason, serials=serials)
    print(f"Revoked agent {agent.name} ({agent.id}) and {len(serials)} certificates; a live connection ends by itself.")
    if not serials and any(one.is_current(now.timestamp()) for one in desk.inventory.certificates_of(agent.id)):
        print("Its certificate is another PKI's: revoke it there too.")
    return True


def _issued(desk: Desk, agent: Agent) -> list[Certificate]:
    return [one for one in list_certificates(desk.pki) if (one.kind, one.name) == ("agent", agent.id)]


def _remove(desk: Desk, arguments: argparse.Namespace) -> int:
    agent = desk.inventory.find(arguments.which)
    if agent.revoked_at is None and not arguments.force:
        raise InventoryError(f"{agent.name} is not revoked: `ndcollector agents revoke {agent.id}`, or add --force")
    is_out = not any(one.is_current(datetime.now(UTC)) for one in _issued(desk, agent))
    if not is_out and not revoke(desk, agent, reason=agent.revoked_reason or "cessationOfOperation"):
        print(f"It stays in the inventory as revoked: bring {CA_KEY} back and try again.", file=sys.stderr)
        return 1
    desk.inventory.remove(agent.id)
    desk.audit.record("agent_removed", agent_id=agent.id, name=agent.name)
    print(f"Removed agent {agent.name} ({agent.id}). Enrolled again, its host is a new agent.")
    return 0
