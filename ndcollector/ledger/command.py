"""`ndcollector ledger`: whose events were received, and what became of them at each output; and the proof of it.

Promises: asks the running collector, and where none runs reads its files without changing them; senders that something
is wrong with come first (evicted, dead-lettered, quarantined, pending, then whoever has been silent longest); names are
printed so that a terminal obeys none of them. Exit status 0 if all sums add up, 1 if not or if they cannot be had.
Refuses: repairing; what does not add up is a bug, and its figures belong into a report.
"""

import argparse
import fcntl
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ndagent.core.log import printable
from ndagent.core.yaml_file import ConfigError
from ndcollector.admin_client import AdminClient, AdminError, add_socket_options, socket_path
from ndcollector.config import load
from ndcollector.ledger.config import LedgerConfig
from ndcollector.ledger.look import look
from ndcollector.ledger.store import LedgerError

_PARTS = ("delivered", "pending", "filtered", "dead_lettered", "quarantined", "evicted")
_HEADS = ("origin", "stream", "first seen", "last seen", "received", "output", *_PARTS)
_LEFT = {"origin", "stream", "first seen", "last seen", "output"}

_EXAMPLES = """\
examples:
  ndcollector ledger                                  every sender, the ones with losses first
  ndcollector ledger --origin 'nd:device:fw-*'        only these senders
  ndcollector ledger --output siem --json | jq        one output, as JSON

What the names in parentheses mean, and how the proof is made, stands in docs/ledger.md.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `ledger`."""
    parser = commands.add_parser(
        "ledger", help="show what became of each sender's events, and prove that it adds up", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_socket_options(parser)
    parser.add_argument("--origin", metavar="PATTERN", help="only senders whose name matches (* and ? stand for text)")
    parser.add_argument("--output", metavar="NAME", help="only this output")
    parser.add_argument("--stream", metavar="NAME", help="only this stream")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="look into this directory; no collector is asked")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the ledger; 0 if it adds up."""
    try:
        found = _fetch(arguments)
    except (AdminError, LedgerError, ConfigError) as error:
        print(f"ndcollector ledger: {printable(str(error))}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(found))
    else:
        for line in lines(found):
            print(printable(line))
    return 0 if found["adds_up"] else 1


def _fetch(arguments: argparse.Namespace) -> Mapping[str, Any]:
    wanted = {name: getattr(arguments, name) for name in ("origin", "output", "stream")}
    if arguments.state_dir is not None:
        return _look(arguments.state_dir, LedgerConfig().max_origins, wanted)
    query = {name: value for name, value in wanted.items() if value is not None}
    try:
        with closing(AdminClient(socket_path(arguments))) as client:
            answer: Mapping[str, Any] = json.loads(client.get("/v1/ledger/origins", query).read())
            return answer
    except AdminError:
        if arguments.socket is not None:
            raise
        config = load(arguments.config)
        if is_served(config.state_dir):  # a daemon lives there: its files are not the whole truth
            raise
        return _look(config.state_dir, config.ledger.max_origins, wanted)


def _look(state_dir: Path, max_origins: int, wanted: Mapping[str, str | None]) -> Mapping[str, Any]:
    report = look(state_dir, max_origins=max_origins, clock=time.time)
    return report.plain(origin=wanted["origin"], output=wanted["output"], stream=wanted["stream"])


def is_served(state_dir: Path) -> bool:
    """Whether a process holds the lock of one of the spools there."""
    for path in state_dir.glob("spool/*/lock"):
        with path.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The table, the proofs, and what else must be said."""
    yield from _table([cells for row in sorted(found["origins"], key=_worst_first) for cells in _cells(row)])
    yield ""
    for stream in found["streams"]:
        for output in stream["outputs"]:
            parts = " + ".join(f"{_words(part)} {output[part]}" for part in ("before", *_PARTS))
            yield f"{stream['stream']} → {output['output']}: received {stream['received']} = {parts}"
        if not stream["outputs"]:
            yield f"{stream['stream']}: received {stream['received']}, no output reads it"
    for drop in found["dropped"]:
        yield f"not received: input {drop['input']} dropped {drop['events']} events ({drop['reason']})"
    for old in found["closed"]:
        parts = ", ".join(f"{_words(part)} {old[part]}" for part in _PARTS if old.get(part))
        where = f"{old['stream']} → {old['output']}"
        yield f"closed {_time(old['closed_at'])}: {where}: {parts or 'nothing'} ({old['why']})"
    if found["uncounted"]:
        yield f"{found['uncounted']} events under (unknown) are being counted now"
    if found["unsaved_since"] is not None:
        yield f"NOT SAVED since {_time(found['unsaved_since'])}: see the collector's log"
    yield from (f"DOES NOT ADD UP: {problem}" for problem in found["problems"])
    if found["adds_up"]:
        yield "adds up"


def _worst_first(row: Mapping[str, Any]) -> tuple[Any, ...]:
    def most(part: str) -> int:
        return max((output[part] for output in row["outputs"]), default=0)

    losses = (-most(part) for part in ("evicted", "dead_lettered", "quarantined", "pending"))
    return (*losses, row["last_seen"] or 0.0, row["origin"])


def _cells(row: Mapping[str, Any]) -> Iterator[list[str]]:
    head = [row["origin"], row["stream"], _time(row["first_seen"]), _time(row["last_seen"]), str(row["received"])]
    if not row["outputs"]:
        yield [*head, "-", *("-" for _ in _PARTS)]
    for output in row["outputs"]:
        yield [*head, output["output"], *(str(output[part]) for part in _PARTS)]


def _table(rows: list[list[str]]) -> Iterator[str]:
    if not rows:
        yield "no sender matches"
        return
    rows = [[_words(head) for head in _HEADS], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if head in _LEFT else cell.rjust(width)
            for cell, width, head in zip(row, widths, _HEADS, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _words(part: str) -> str:
    return part.replace("_", "-")


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
