"""`ndcollector policy diff | apply | status | explain AGENT | rotate-key`: policy for people.

Promises: diff, status and explain only read; apply refuses unless every layer and every agent's merged policy is good,
then gives it a version, and a running daemon hands it out by itself: no signal, no socket, so it works as well while
the daemon is down. Exit status 0: done; 1: something is wrong, said on stderr with file, line and column.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from ndagent.core.yaml_file import ConfigError
from ndcollector.agents.inventory import Inventory
from ndcollector.agents.schema import FILE as INVENTORY
from ndcollector.agents.schema import InventoryError
from ndcollector.audit import Audit, person
from ndcollector.config import CollectorConfig, add_config_option, load
from ndcollector.pki.store import PkiError
from ndcollector.policy import views
from ndcollector.policy.applying import Agent, Resolver
from ndcollector.policy.keys import PolicyKeys
from ndcollector.policy.layers import EMERGENCY, Policies, load_policies
from ndcollector.policy.store import Applied, PolicyStore, PolicyStoreError, Row


class _Mistake(Exception):
    """What was asked for cannot be done; the text says why and what to do."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `policy` and its subcommands."""
    commands = subparsers.add_parser("policy", help="what agents read and how they ship it").add_subparsers(
        dest="policy_command", required=True, metavar="COMMAND"
    )
    diff = commands.add_parser("diff", help="what `apply` would change for which agents")
    _add_agent(diff, "only this one")
    _finish(diff, _diff)
    _finish(commands.add_parser("apply", help="give the layers a version and hand them out"), _apply)
    status = commands.add_parser("status", help="which agent has which version, and what it made of it")
    _add_agent(status, "only this one")
    _finish(status, _status)
    explain = commands.add_parser("explain", help="which layer set each value of an agent's policy")
    _add_agent(explain, "name or id; one that is not known yet is explained by --group and --role", required=True)
    explain.add_argument("--pending", action="store_true", help="the files as they are, not what was applied")
    explain.add_argument("--group", default=None, help="as if it were in this group")
    explain.add_argument("--role", action="append", default=None, help="as if it had this role; repeatable")
    _finish(explain, _explain)
    rotate = commands.add_parser("rotate-key", help="replace the key that policies are signed with, in two steps")
    rotate.add_argument("--finish", action="store_true", help="second step: the new key signs")
    rotate.add_argument("--force", action="store_true", help="although agents that are left behind must enrol again")
    _finish(rotate, _rotate_key)


def _add_agent(parser: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    parser.add_argument("agent", metavar="AGENT", nargs=None if required else "?", help=text)


def _finish(parser: argparse.ArgumentParser, command: "Callable[[_Office, argparse.Namespace], int]") -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_config_option(parser)
    parser.set_defaults(handler=lambda arguments: _guarded(command, arguments))


def _guarded(command: "Callable[[_Office, argparse.Namespace], int]", arguments: argparse.Namespace) -> int:
    try:
        return command(_Office(load(arguments.config)), arguments)
    except (ConfigError, PkiError, PolicyStoreError, InventoryError, _Mistake) as error:
        print(error, file=sys.stderr)
        return 1


class _Office:
    """What the commands work on: the layers' directory, the store, the keys."""

    def __init__(self, config: CollectorConfig) -> None:
        self.directory = config.policies.directory
        self.store = PolicyStore(config.state_dir)
        self._inventory = config.state_dir / INVENTORY
        self._audit = Audit(config.state_dir, by=person(), clock=time.time)
        self.keys = PolicyKeys(config.tls.ca_file.parent)

    def applied(self) -> Policies:
        """What was applied last; nothing at first."""
        latest = self.store.latest()
        return latest.policies if latest else Policies()

    def rows(self) -> list[Row]:
        """All agents of the inventory, with what they have to run; version 0: nothing was applied since they came.

        Without an inventory (the customer's own PKI may do without): all that have ever asked for a policy.
        """
        rows = self.store.rows()
        if not self._inventory.exists():
            return list(rows.values())
        with closing(Inventory(self._inventory)) as inventory:
            agents = [Agent.of(agent) for agent in inventory.agents() if agent.revoked_at is None]
        nothing = Row(Agent(""), 0, "")
        return [replace(rows.get(agent.id, nothing), agent=agent) for agent in agents]

    def agents(self) -> list[Agent]:
        """The same, without what they have to run."""
        return [row.agent for row in self.rows()]

    def checked(self) -> Policies:
        """The files' layers, good for all; raises ConfigError or _Mistake."""
        policies = load_policies(self.directory)
        faults = Resolver(policies).faults(self.agents())
        if faults:
            raise _Mistake("\n".join(faults))
        return policies

    def apply(self, policies: Policies) -> tuple[Applied, list[Row]]:
        """Give them a version, for all agents whose settings or signing key change."""
        self.keys.public_key()  # makes it on first use: before anything says that there is a policy
        resolver = Resolver(policies, self.keys.next_public_key())
        wanted = {agent: resolver.wanted(agent).digest for agent in self.agents()}
        applied, changed = self.store.apply(policies, by=person(), now=time.time(), wanted=wanted)
        self._audit.record("policy_applied", version=applied.version, agents=len(changed))
        return applied, changed


def _diff(office: _Office, arguments: argparse.Namespace) -> int:
    agents = office.agents() if arguments.agent is None else [_known(office.agents(), arguments.agent)]
    found = views.difference(office.applied(), office.checked(), agents)
    _show(found, views.difference_text(found), as_json=arguments.json)
    return 0


def _apply(office: _Office, arguments: argparse.Namespace) -> int:
    before, policies = office.store.latest(), office.checked()
    _warn_of_nobody(policies, office.agents())
    if before is not None and before.policies.is_same_as(policies):
        found: dict[str, Any] = {"version": before.version, "changed": []}
        _show(found, [f"Nothing to apply: version {before.version} says the same."], as_json=arguments.json)
        return 0
    applied, changed = office.apply(policies)
    names = sorted(row.agent.title for row in changed)
    text = [f"Applied as version {applied.version}; known agents that get new settings: {len(names)}."]
    if names:
        text.append("A running collector hands them out; `ndcollector policy status` shows who has taken them.")
    _show({"version": applied.version, "changed": names}, text, as_json=arguments.json)
    return 0


def _warn_of_nobody(policies: Policies, agents: Iterable[Agent]) -> None:
    """A typing error in a selector would make an emergency that nobody hears of."""
    selector = policies.selector
    if EMERGENCY in policies.layers and selector and not any(map(selector.selects, agents)):
        print("policies/local/emergency.yaml: selector: no known agent is selected", file=sys.stderr)


def _status(office: _Office, arguments: argparse.Namespace) -> int:
    rows = office.rows()
    if arguments.agent is not None:
        agent = _known([row.agent for row in rows], arguments.agent)
        rows = [row for row in rows if row.agent == agent]
    found = views.standing(office.store.latest(), rows)
    _show(found, views.standing_text(found), as_json=arguments.json)
    return 0


def _explain(office: _Office, arguments: argparse.Namespace) -> int:
    if arguments.group is None and arguments.role is None:
        agent = _known(office.agents(), arguments.agent)
    else:
        agent = Agent(arguments.agent, arguments.agent, arguments.group or "", tuple(arguments.role or ()))
    policies = office.checked() if arguments.pending else office.applied()
    if not arguments.pending and not policies.layers:
        raise _Mistake("nothing was applied yet; --pending explains the files as they are")
    found = views.explanation(agent, Resolver(policies).wanted(agent))
    _show(found, views.explanation_text(found), as_json=arguments.json)
    return 0


def _rotate_key(office: _Office, arguments: argparse.Namespace) -> int:
    if arguments.finish:
        behind = sorted(
            row.agent.title for row in office.rows() if row.report is None or row.report.in_force != row.version
        )
        if behind and not arguments.force:
            raise _Mistake(
                "agents that have not taken their latest policy, and with it the new key: "
                f"{views.some(behind)}; wait for them, or add --force and enrol them again"
            )
        office.keys.finish_rotation()
    else:
        office.keys.begin_rotation()
    applied, _ = office.apply(office.applied())
    text = (
        "The new key signs from now on; the old one is gone."
        if arguments.finish
        else "Agents are told of the new key. Then: ndcollector policy rotate-key --finish"
    )
    _show({"version": applied.version, "finished": arguments.finish}, [text], as_json=arguments.json)
    return 0


def _known(agents: Iterable[Agent], which: str) -> Agent:
    found = [agent for agent in agents if which in (agent.id, agent.name)]
    if len(found) > 1:
        raise _Mistake(f"{which}: {len(found)} agents have this name; give the id: {', '.join(a.id for a in found)}")
    if not found:
        raise _Mistake(f"{which}: no agent has this name or id; `ndcollector agents ls` names them")
    return found[0]


def _show(found: Mapping[str, Any], text: Iterable[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    for line in text:
        print(line)
