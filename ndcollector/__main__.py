"""The `ndcollector` command, and the only place that exits.

Each command stands in the file of its subject (`pki/command.py`, `spool_command.py` …) as `add_parser(subparsers)`,
which sets `handler`: Namespace → exit status. Exit statuses: 0 done, 1 a finding or a mistake in the configuration,
2 wrong usage (argparse), 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

from ndagent.core.process_user import process_user
from ndagent.core.supervision import in_words
from ndagent.wire.codec import codec_name
from ndcollector import (
    __version__,
    check_command,
    health_command,
    reload_command,
    run_command,
    schema_command,
    spool_command,
    top_command,
    topics_command,
)
from ndcollector.agents import command as agents
from ndcollector.dead_letters import command as dead_letters
from ndcollector.demo import run as demo
from ndcollector.ledger import command as ledger
from ndcollector.pki import command as pki
from ndcollector.policy import command as policy
from ndcollector.sources import command as sources
from ndcollector.tap import command as tap

_VERSION = f"ndcollector {__version__} (codec: {codec_name()})"


def _version(_arguments: argparse.Namespace) -> int:
    print(_VERSION)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; man pages and completion are made from it."""
    parser = argparse.ArgumentParser(
        prog="ndcollector", description="Collects logs over mutual TLS, spools them durably, forwards them onward."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = (
        run_command, check_command, demo, pki, agents, policy, schema_command, spool_command, dead_letters, ledger,
        sources, tap, top_command, topics_command, reload_command, health_command,
    )  # fmt: skip
    for module in modules:
        module.add_parser(commands)
    parser.add_argument("--version", action="version", version=_VERSION)
    commands.add_parser("version", help="print version and codec").set_defaults(handler=_version)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run one command; the value is the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.handler(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `ndcollector spool export | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        print(f"{in_words(error)} (as user {process_user()})", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
