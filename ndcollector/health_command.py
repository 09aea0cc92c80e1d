"""`ndcollector health`: does the collector on this machine live, and would it take data? For container runtimes.

Promises: asks the admin listener of the configuration; exit status 0 if the answer is yes, 1 with the reasons if not,
or if nobody answers within 5 s. `--ready` asks whether data is taken now; without it, whether the process answers at
all, which is what a runtime may kill it for: a full spool is no reason to. Refuses: judging outputs; they wait.
"""

import argparse
import http.client
import json
import sys
from contextlib import closing

from ndagent.core.log import printable
from ndagent.core.yaml_file import ConfigError
from ndcollector.config import add_config_option, load

_TIMEOUT_SECONDS = 5.0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `health`."""
    parser = commands.add_parser("health", help="exit 0 if the collector on this machine answers (for containers)")
    add_config_option(parser)
    parser.add_argument("--ready", action="store_true", help="and if it takes data now")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask; 0 if all is well."""
    route = "/ready" if arguments.ready else "/health"
    try:
        listen = load(arguments.config).admin.listen
        with closing(http.client.HTTPConnection(listen.host, listen.port, timeout=_TIMEOUT_SECONDS)) as connection:
            connection.request("GET", route, headers={"Host": f"{listen.host}:{listen.port}"})
            answer = connection.getresponse()
            said = json.loads(answer.read())
    except ConfigError as error:
        return _bad(str(error))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _bad(f"nobody answers at {listen}: {error}")
    if answer.status != http.HTTPStatus.OK:
        return _bad("; ".join(map(str, said.get("reasons", ()))) or f"HTTP {answer.status}")
    print("ready" if arguments.ready else "alive")
    return 0


def _bad(why: str) -> int:
    print(f"ndcollector health: {printable(why)}", file=sys.stderr)
    return 1
