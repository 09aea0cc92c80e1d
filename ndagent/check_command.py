"""`ndagent check`: what is wrong with the configuration, without starting and without touching a running agent.

Promises: every mistake in the files with line and column, then what the agent would stumble over on this machine. Only
reads. Exit status 1 if there is an error, 0 with or without warnings.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator

from ndagent.config import AgentConfig, add_config_option, load
from ndagent.core.process_user import process_user
from ndagent.core.yaml_file import ConfigError
from ndagent.identity import IdentityStore, NoIdentity


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `check`."""
    parser = commands.add_parser("check", help="say everything that is wrong with the configuration")
    add_config_option(parser)
    parser.set_defaults(handler=_check)


def _check(arguments: argparse.Namespace) -> int:
    try:
        config = load(arguments.config)
    except ConfigError as error:
        count = len(error.faults)
        print(error, f"{count} error{'s' if count > 1 else ''}", sep="\n", file=sys.stderr)
        return 1
    for warning in warnings(config):
        print(f"warning: {warning}", file=sys.stderr)
    inputs, outputs = ", ".join(config.inputs) or "none", ", ".join(config.outputs)
    print(f"{arguments.config}: valid; inputs: {inputs}; outputs: {outputs}")
    return 0


def warnings(config: AgentConfig) -> Iterator[str]:
    """What the machine around a valid configuration lacks."""
    if not config.inputs:
        yield "inputs: is empty; nothing is read (unless a policy sets inputs up)"
    existing = next(one for one in (config.state_dir, *config.state_dir.parents) if one.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        yield f"state_dir: user {process_user()} cannot write to {existing}; does the agent's?"
    try:
        identity = IdentityStore(config.state_dir / "identity").load()
    except NoIdentity as error:
        yield str(error)
        return
    if identity.not_after < time.time():
        yield "the certificate has expired: enroll again, or set the clock right"
