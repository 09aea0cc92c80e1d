"""The `ndagent` command. This release has the parts it shares with the collector; the agent itself follows."""

import argparse
import sys
from collections.abc import Sequence

from ndagent import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run one command; the value is the exit status."""
    parser = argparse.ArgumentParser(prog="ndagent", description="The Neurodefender agent.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("version", help="print the version")
    parser.parse_args(argv)
    print(f"ndagent {__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
