"""`ndagent service`: the agent as a Windows service: made, taken away, started, stopped, looked at.

Exit status 0 done (status: it runs), 1 not done, 3 it does not run (as `systemctl status`). Where there is no Windows,
it says what to type instead.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ndagent.config import add_config_option

_INSTEAD = {
    "install": "systemctl enable ndagent",
    "remove": "systemctl disable --now ndagent",
    "start": "systemctl start ndagent",
    "stop": "systemctl stop ndagent",
    "status": "systemctl status ndagent",
}
_HELP = {
    "install": "register the service and its event log source; it starts with Windows",
    "remove": "stop it and take it away; configuration and state stay",
    "start": "start it and wait until it runs",
    "stop": "stop it and wait until it has stopped",
    "status": "whether it runs",
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `service`."""
    parser = commands.add_parser("service", help="the Windows service: install, remove, start, stop, status")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, words in _HELP.items():
        one = actions.add_parser(action, help=words)
        add_config_option(one)
        one.set_defaults(handler=_service)


def _service(arguments: argparse.Namespace) -> int:
    if sys.platform != "win32":
        print(f"there are no Windows services here; type: {_INSTEAD[arguments.action]}", file=sys.stderr)
        return 1
    from ndagent import windows_service_command  # pywin32 is there on Windows only

    action: Callable[[Path], int] = getattr(windows_service_command, arguments.action)
    return windows_service_command.in_words(action, Path(arguments.config).absolute())
