"""`ndagent status`: what the agent on this machine does, from the file that it keeps current.

Exit status 0: it runs, is enrolled and reaches a collector; 1: it does not, and the lines say which of these.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from ndagent.config import AgentConfig, add_config_option, load
from ndagent.core.log import printable
from ndagent.core.process_user import WITH_RIGHTS
from ndagent.core.settings import format_size
from ndagent.core.yaml_file import ConfigError
from ndagent.reporting import FILE_SECONDS, STATUS_FILE

_LOG = "Event Viewer, Application, source ndagent" if sys.platform == "win32" else "journalctl -u ndagent"
_STALE_SECONDS = 4 * FILE_SECONDS


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `status`."""
    parser = commands.add_parser("status", help="show inputs, spool, collector, certificate and policy of this agent")
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="the agent's own report, for scripts")
    parser.set_defaults(handler=_status)


def _status(arguments: argparse.Namespace) -> int:
    try:
        config = load(arguments.config) if Path(arguments.config).exists() else AgentConfig()
        file = config.state_dir / STATUS_FILE
        content = file.read_bytes()
        found: dict[str, Any] = orjson.loads(content)
        age_seconds = time.time() - found["sent_at_ns"] / 1e9
        said = lines(found, age_seconds=age_seconds, now=time.time())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except FileNotFoundError:
        print(f"no agent has run here yet ({file} is not there)", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error}; run it {WITH_RIGHTS}", file=sys.stderr)
        return 1
    except (ValueError, KeyError, TypeError):
        print(f"{file} is damaged, or is not a report of this version; a running agent writes it anew", file=sys.stderr)
        return 1
    if arguments.json:
        sys.stdout.buffer.write(content + b"\n")
    else:
        print(*map(printable, said), sep="\n")
    return 0 if _is_fresh(age_seconds) and found["agent_id"] and found["endpoint"] else 1


def lines(found: dict[str, Any], *, age_seconds: float, now: float) -> list[str]:
    """The report in words."""
    result = [_running(found, age_seconds), _member(found, now)]
    result.append(f"collector  {found['endpoint'] or 'none answers'}")
    policy = found["policy"]
    if policy:
        said = f": {policy['message']}" if policy["message"] else ""
        result.append(f"policy     version {policy['version']}, {policy['result'].replace('_', ' ')}{said}")
    for spool in found["spools"]:
        used, room = format_size(spool["bytes"]), format_size(spool["max_bytes"])
        result.append(f"spool      {spool['stream']}: {spool['pending_events']} events wait; {used} of {room}")
    for one in found["inputs"]:
        lost = f", {one['dropped']} lost" if one["dropped"] else ""
        why = f": {one['message']}" if one["message"] else ""
        result.append(f"input      {one['name']} ({one['type']}): {one['state']}{why}; {one['received']} events{lost}")
    result += [f"given up   {one['events']} events of {one['input']}" for one in found["shed"]]
    return [*result, f"ledger     {found['ledger']}"]


def _is_fresh(age_seconds: float) -> bool:
    """A report from the future is one from before the clock was set back: a running agent writes the next at once."""
    return abs(age_seconds) < _STALE_SECONDS


def _running(found: dict[str, Any], age_seconds: float) -> str:
    if _is_fresh(age_seconds):
        return f"agent      runs (pid {found['pid']}, version {found['version']})"
    if age_seconds < 0:
        return "agent      has not reported since the clock was set back: it does not run, or hangs"
    return f"agent      has not reported for {age_seconds:.0f} s: it does not run, or hangs; see {_LOG}"


def _member(found: dict[str, Any], now: float) -> str:
    if not found["agent_id"]:
        return "enrolled   no: ndagent enroll --url https://COLLECTOR:8443 --token TOKEN"
    days = (found["certificate_not_after"] - now) / 86400
    group = f", group {found['group']}" if found["group"] else ""
    return f"enrolled   as {found['agent_id']}{group}; certificate: {days:.0f} days left"
