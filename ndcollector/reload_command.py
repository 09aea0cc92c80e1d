"""`ndcollector reload`: have the running collector read its configuration and certificates again, and say how it went.

Promises: returns when the reload is over; exit status 0 if it works with the new files, 1 with the reason if the old
ones stay. This is the unit's ExecReload=, so that `systemctl reload` waits and fails as this does; SIGHUP asks for the
same and tells nobody. There the daemon is found by its socket and not by the configuration, which may name another one
by now, or hold a secret that only the daemon sees (LoadCredential=); what is wrong with it the daemon says.
Refuses: changing anything by itself.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

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
        socket = arguments.socket or _held_socket(os.environ) or socket_path(arguments)
        with closing(AdminClient(socket, timeout_seconds=_PATIENCE_SECONDS)) as client:
            client.post("/v1/reload", b"{}").read()
    except AdminError as error:
        for line in str(error).splitlines():
            print(f"ndcollector reload: {printable(line)}", file=sys.stderr)
        print("ndcollector reload: not done; a collector that runs goes on as before", file=sys.stderr)
        return 1
    print("reloaded")
    return 0


def _held_socket(environ: Mapping[str, str]) -> Path | None:
    """The daemon's socket in the directory that systemd keeps for this unit; None where that is not sure."""
    if "RUNTIME_DIRECTORY" not in environ or not environ.get("MAINPID"):  # nobody is reloaded by us
        return None
    places = [Path(place) for place in environ["RUNTIME_DIRECTORY"].split(":")]
    found = [file for place in places if place.is_dir() for file in place.iterdir() if file.is_socket()]
    return found[0] if len(found) == 1 else None
