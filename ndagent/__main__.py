"""The `ndagent` command, and the only place that exits.

Each command stands in the file of its subject as `add_parser(subparsers)`, which sets `handler`: Namespace → exit
status. Exit statuses: 0 done, 1 a finding or a mistake in the configuration, 2 wrong usage (argparse), 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

from ndagent import __version__
from ndagent.footprint import keep_small

_VERSION = f"ndagent {__version__}"


def _version(_arguments: argparse.Namespace) -> int:
    print(_VERSION)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; man pages and completion are made from it."""
    from ndagent import (  # `version` needs none of them
        check_command,
        enroll_command,
        reload_command,
        run_command,
        service_command,
        status_command,
    )

    parser = argparse.ArgumentParser(
        prog="ndagent", description="Reads this host's logs and ships them to a Neurodefender collector."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (run_command, check_command, enroll_command, status_command, reload_command, service_command):
        module.add_parser(commands)
    parser.add_argument("--version", action="version", version=_VERSION)
    commands.add_parser("version", help="print the version").set_defaults(handler=_version)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run one command; the value is the exit status. Without `argv` the process is the command's own."""
    if argv is None:
        keep_small()
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.handler(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        print(f"{error.filename or 'ndagent'}: {error.strerror or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
