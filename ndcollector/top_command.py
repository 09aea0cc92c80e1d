"""`ndcollector top`: inputs, outputs and spools of the running collector, again every second, until Ctrl-C.

Promises: rates are the difference of two looks at `/v1/status`, whatever they are shown as; `--once` prints one table,
`--json` the numbers, both for scripts. A collector that restarts meanwhile is waited for. Exit status 1 if it does not
answer when asked for the first time. Refuses: history; Prometheus has it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from ndagent.core.log import printable
from ndcollector.admin_client import AdminClient, AdminError, add_socket_options, socket_path

Status = Mapping[str, Any]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `top`."""
    parser = commands.add_parser("top", help="show rates, lag and health live")
    add_socket_options(parser)
    parser.add_argument("--once", action="store_true", help="print once and exit")
    parser.add_argument("--json", action="store_true", help="one JSON object each time instead of tables")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=1.0, help="between two looks (default: %(default)s)"
    )
    parser.set_defaults(handler=run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Show what the collector does until Ctrl-C, or once."""
    try:
        path = socket_path(arguments)
        first = fetch(path)
        looks = _looks(path, first, arguments)
        looks = islice(looks, 1) if arguments.once else looks
        if arguments.json:
            _print_json(looks)
        else:
            from ndcollector.top_tables import print_tables, show_live  # rich takes longer to load than all the rest

            print_tables(looks) if arguments.once else show_live(with_rates(first, first), looks)
    except AdminError as error:
        print(f"ndcollector top: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def fetch(path: Path) -> Status:
    """One look; raises AdminError."""
    with closing(AdminClient(path)) as client:
        status: Status = json.load(client.get("/v1/status"))
    return status


def _looks(path: Path, before: Status, arguments: argparse.Namespace) -> Iterator[Status | AdminError]:
    """Another look each interval; an error in place of one that failed."""
    while True:
        time.sleep(arguments.interval)
        try:
            now = fetch(path)
        except AdminError as error:
            yield error
            continue
        yield with_rates(before, now)
        before = now


def _print_json(looks: Iterator[Status | AdminError]) -> None:
    for now in looks:
        if isinstance(now, AdminError):
            raise now
        print(json.dumps(now), flush=True)


def with_rates(before: Status, now: Status) -> dict[str, Any]:
    """`now` with `events_per_second` for inputs and outputs and `bytes_per_second` for inputs.

    A restart, or a replay, sets counters back: that is a rate of 0, not a negative one.
    """
    seconds = now["time"] - before["time"]

    def rate(part: str, keys: Sequence[str], field: str, line: Status) -> float:
        old = [one for one in before[part] if all(one[key] == line[key] for key in keys)]
        return max(0.0, (line[field] - old[0][field]) / seconds) if old and seconds > 0 else 0.0

    inputs = [
        {
            **line,
            "events_per_second": rate("inputs", ["input"], "received", line),
            "bytes_per_second": rate("inputs", ["input"], "received_bytes", line),
        }
        for line in now["inputs"]
    ]
    outputs = [
        {**line, "events_per_second": rate("outputs", ["output", "stream"], "settled", line)} for line in now["outputs"]
    ]
    return {**now, "inputs": inputs, "outputs": outputs}
