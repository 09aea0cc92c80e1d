"""`ndcollector reload`: have the running collector read its configuration and certificates again, and say how it went.

Promises: returns when the reload is over; exit status 0 if it works with the new files, 1 with the reason if the old
ones stay. This is the unit's ExecReload=, so that `systemctl reload` waits and fails as this does; SIGHUP asks for the
same and tells nobody. Refuses: changing anything by itself.
"""

import argparse
import sys
from contextlib import closing

from ndagent.core.log import printable
from ndcollector.admin_client import AdminClient, AdminError, add_socket_options, socket_path

_PATIENCE_SECONDS = 80.0
"""Inputs and outputs that are exchanged may take long to end; systemd itself waits for 90 s."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `reload`."""
    parser = commands.add_parser("reload", help="have the running collector read its configuration and certificates")
    add_socket_options(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and wait; 0 if it was done."""
    try:
        with closing(AdminClient(socket_path(arguments), timeout_seconds=_PATIENCE_SECONDS)) as client:
            client.post("/v1/reload", b"{}").read()
    except AdminError as error:
        for line in str(error).splitlines():
            print(f"ndcollector reload: {printable(line)}", file=sys.stderr)
        print("ndcollector reload: not done; a collector that runs goes on as before", file=sys.stderr)
        return 1
    print("reloaded")
    return 0
