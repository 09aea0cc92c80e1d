"""`ndagent reload`: have the running agent read its configuration again, and say how it went. The unit's ExecReload=.

Promises: returns when the reload is over, by the file that the agent keeps current; exit status 0 if it works with the
new configuration, 1 with the reason if the old one stays. Refuses: guessing which process the agent is: a number in a
file may be another one's by now. systemd says it in MAINPID, a person with --pid.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from ndagent.config import add_config_option, load
from ndagent.core.log import printable
from ndagent.core.yaml_file import ConfigError
from ndagent.reporting import STATUS_FILE

_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.05


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `reload`; Windows has no such signal, a saved file is enough there."""
    if sys.platform == "win32":
        return
    parser = commands.add_parser("reload", help="have the running agent read its configuration (systemctl reload)")
    add_config_option(parser)
    parser.add_argument(
        "--pid", type=int, default=os.environ.get("MAINPID"), help="the agent's process (default: $MAINPID)"
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and wait; 0 if it was done."""
    if arguments.pid is None:
        print("ndagent reload: which process? Use `systemctl reload ndagent`, or give --pid", file=sys.stderr)
        return 2
    try:
        refusal = _reload(int(arguments.pid), load(arguments.config).state_dir / STATUS_FILE)
    except ConfigError as error:
        refusal = str(error)
    except ProcessLookupError:
        refusal = f"process {arguments.pid} does not run"
    except TimeoutError:
        refusal = f"no answer within {_PATIENCE_SECONDS:.0f} s; its log says more: journalctl -u ndagent"
    if refusal:
        for line in refusal.splitlines():
            print(f"ndagent reload: {printable(line)}", file=sys.stderr)
        print("ndagent reload: not done; an agent that runs goes on as before", file=sys.stderr)
        return 1
    print("reloaded")
    return 0


def _reload(pid: int, file: Path) -> str:
    """Why it was refused, empty if it was done. Raises TimeoutError, ProcessLookupError."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    os.kill(pid, 0)
    before = _reloads(pid, file, answered=0, deadline=deadline)
    os.kill(pid, getattr(signal, "SIGHUP"))  # noqa: B009 - Windows has none, and no `reload`
    after = _reloads(pid, file, answered=before["asked"] + 1, deadline=deadline)
    return str(after["refusal"])


def _reloads(pid: int, file: Path, *, answered: int, deadline: float) -> dict[str, Any]:
    """What this process says of its reloads, once it has answered so many."""
    while time.monotonic() < deadline:
        try:
            found = orjson.loads(file.read_bytes())
            if found["pid"] == pid and found["reloads"]["answered"] >= answered:
                reloads: dict[str, Any] = found["reloads"]
                return reloads
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # none yet, or an older agent's
        time.sleep(_LOOK_SECONDS)
    raise TimeoutError
