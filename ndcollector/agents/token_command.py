"""`ndcollector agents token create|ls|revoke|rm`: what lets a host become an agent.

Promises: the token's text is shown once and kept nowhere; of the others only their ids are named.
"""

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime

import orjson

from ndagent.core.settings import parse_duration
from ndagent.wire.enrolment import MAX_FINGERPRINTS
from ndcollector.agents import tokens
from ndcollector.agents.desk import Desk
from ndcollector.agents.schema import InventoryError
from ndcollector.agents.tokens import TokenRow, Wish
from ndcollector.agents.trust import endpoints
from ndcollector.audit import person

Command = Callable[[Desk, argparse.Namespace], int]
Finish = Callable[[argparse.ArgumentParser, Command], None]

MAX_USES = 100_000
_NEVER = "never"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", finish: Finish) -> None:
    """Add `token` and its subcommands."""
    token = commands.add_parser("token", help="make and revoke enrolment tokens")
    tokens_commands = token.add_subparsers(dest="token_command", required=True, metavar="COMMAND")
    parser = tokens_commands.add_parser("create", help="make a token; its text is shown this once")
    parser.add_argument("--group", default="", help="group of the agents that enrol with it, for policies")
    parser.add_argument("--role", action="append", default=[], help="a role of theirs, for policies; repeatable")
    parser.add_argument("--uses", type=int, default=1, help="how many agents may enrol with it (default: %(default)s)")
    parser.add_argument(
        "--expires", type=_expiry, default="24h", metavar="T", help="after 90m, 24h, 7d …, or never (default: 24h)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    finish(parser, _create)
    parser = tokens_commands.add_parser("ls", help="every token: its state, uses and group")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    finish(parser, _ls)
    parser = tokens_commands.add_parser("revoke", help="nobody enrols with it any more; who did stays")
    parser.add_argument("id", metavar="ID")
    finish(parser, _revoke)
    parser = tokens_commands.add_parser("rm", help="forget a token that cannot be used any more")
    parser.add_argument("id", metavar="ID")
    finish(parser, _remove)


def _expiry(text: str) -> float | None:
    """Seconds from now; None for never."""
    if text == _NEVER:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, or never") from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


def _create(desk: Desk, arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.uses <= MAX_USES:
        raise InventoryError(f"--uses must be from 1 to {MAX_USES}")
    for name in (arguments.group, *arguments.role):
        if len(name) > 255 or not name.isprintable():
            raise InventoryError(f"{name!r} cannot name a group or role; use up to 255 printable characters")
    bundle, now = desk.trust.bundle(), time.time()
    if len(bundle.certificates) > MAX_FINGERPRINTS:
        raise InventoryError(
            f"agents would have {len(bundle.certificates)} CAs to check this collector with, a token names up to "
            f"{MAX_FINGERPRINTS}: let agents.ca_file name a file with those that issue collectors' certificates"
        )
    expires_at = None if arguments.expires is None else now + arguments.expires
    wish = Wish(arguments.uses, expires_at, arguments.group, tuple(arguments.role))
    token = tokens.create(desk.inventory, wish, ca_fingerprints=bundle.fingerprints, created_by=person(), now=now)
    desk.audit.record("token_created", token_id=token.id, uses=wish.uses, group=wish.group, expires_at=expires_at)
    if arguments.json:
        print(orjson.dumps({"id": token.id, "token": token.text, "uses": wish.uses, "expires_at": expires_at}).decode())
        return 0
    https = endpoints(desk.config.agents, desk.config.inputs, desk.config.tls.cert_file).https
    print(token.text)
    print(
        f"\nFor {wish.uses} agent{'s' if wish.uses > 1 else ''}, {_until(expires_at)}. Next, on the host:\n"
        f"  ndagent enroll --url https://{https[0] if https else 'COLLECTOR:8443'} --token {token.text}"
    )
    return 0


def _ls(desk: Desk, arguments: argparse.Namespace) -> int:
    now = time.time()
    found = tokens.list_tokens(desk.inventory)
    if arguments.json:
        for one in found:
            print(orjson.dumps(_as_json(one, now)).decode())
        return 0
    print(f"{'ID':<10} {'STATE':<8} {'USES':<11} {'EXPIRES':<17} {'BY':<12} GROUP")
    for one in found:
        uses = f"{one.uses - one.uses_left}/{one.uses}"
        expires = _NEVER if one.expires_at is None else f"{datetime.fromtimestamp(one.expires_at, UTC):%Y-%m-%d %H:%M}"
        print(f"{one.id:<10} {one.state(now):<8} {uses:<11} {expires:<17} {one.created_by:<12} {one.group}".rstrip())
    return 0


def _revoke(desk: Desk, arguments: argparse.Namespace) -> int:
    tokens.revoke(desk.inventory, arguments.id, now=time.time())
    desk.audit.record("token_revoked", token_id=arguments.id)
    print(f"Nobody enrols with token {arguments.id} from now on; agents that did are not touched.")
    return 0


def _remove(desk: Desk, arguments: argparse.Namespace) -> int:
    tokens.forget(desk.inventory, arguments.id, now=time.time())
    desk.audit.record("token_removed", token_id=arguments.id)
    print(f"Removed token {arguments.id}.")
    return 0


def _until(expires_at: float | None) -> str:
    return "for ever" if expires_at is None else f"until {datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d %H:%M} UTC"


def _as_json(token: TokenRow, now: float) -> dict[str, object]:
    return {
        "id": token.id,
        "state": token.state(now),
        "uses": token.uses,
        "uses_left": token.uses_left,
        "group": token.group,
        "roles": token.roles,
        "created_at": token.created_at,
        "created_by": token.created_by,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
        "ca_fingerprints": token.ca_fingerprints,
    }
