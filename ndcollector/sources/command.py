"""`ndcollector sources`: who sends, how often, how well, and who has gone quiet; and what to expect of whom.

Promises: asks the running collector; `ls` and `show` read its files where none runs. Quiet sources come first; names
are printed so that a terminal obeys none of them. Exit status 0; of `ls --quiet` 1 if somebody is quiet; 1 if there is
no such source.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from ndagent.core.log import printable
from ndagent.core.settings import format_duration, parse_duration
from ndagent.core.yaml_file import ConfigError
from ndcollector.admin_client import AdminClient, AdminError, add_socket_options, socket_path
from ndcollector.config import load
from ndcollector.ledger.command import is_served
from ndcollector.ledger.store import FILE, LedgerError, Store
from ndcollector.sources.rows import plain, source_of
from ndcollector.sources.table import NEVER

Row = Mapping[str, Any]

_EXAMPLES = """\
examples:
  ndcollector sources ls                              everybody, the quiet ones first
  ndcollector sources ls 'nd:device:fw-*' --quiet     who of these is quiet (exit status 1 if one is)
  ndcollector sources show nd:device:fw-1             one sender and its channels, in full
  ndcollector sources expect nd:device:fw-1 10m       quiet after ten minutes, whatever was learned
  ndcollector sources expect 192.0.2.7 never          its silence means nothing
  ndcollector sources expect nd:device:fw-1 learned   back to its own rhythm
  ndcollector sources forget nd:device:old-1          it was taken out of service

How a rhythm is learned and what the events look like stands in docs/sources.md.
"""
_HEADS = (
    "source", "channel", "state", "last heard", "usual pause", "quiet after", "events/s", "format", "skew", "lost",
)  # fmt: skip
_RIGHT = {"last heard", "usual pause", "quiet after", "events/s", "skew", "lost"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `sources` and its subcommands."""
    form = argparse.RawDescriptionHelpFormatter
    text = "who sends, and who has gone quiet: ls, show, expect, forget"
    sources = subparsers.add_parser("sources", help=text, description=text, epilog=_EXAMPLES, formatter_class=form)
    commands = sources.add_subparsers(dest="sources_command", required=True, metavar="COMMAND")
    parser = _add(commands, "ls", _ls, "a line for each sender and channel")
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="only senders that match (* and ?: any text)")
    parser.add_argument("--quiet", action="store_true", help="only those that are quiet")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser = _add(commands, "show", _show, "one sender and its channels, in full")
    parser.add_argument("name", metavar="NAME", help="as `ls` shows it")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser = _add(commands, "expect", _expect, "say yourself how long a source may be silent")
    parser.add_argument("name", metavar="NAME", help="as `ls` shows it, or will")
    parser.add_argument("silence", metavar="SILENCE", type=_silence, help="such as 90s, 10m, 2d; or never, or learned")
    parser.add_argument("--channel", default="", metavar="NAME", help="only this channel of an agent")
    parser = _add(commands, "forget", _forget, "forget a source, its rhythm, and that it is quiet")
    parser.add_argument("name", metavar="NAME", help="as `ls` shows it; its channels go with it")
    parser.add_argument("--channel", metavar="NAME", help="only this channel of an agent")


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    work: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    add_socket_options(parser)
    parser.set_defaults(handler=_answering(work))
    return parser


def _answering(work: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        try:
            return work(arguments)
        except (AdminError, LedgerError, ConfigError) as error:
            print(f"ndcollector sources: {printable(str(error))}", file=sys.stderr)
            return 1

    return run


def _silence(text: str) -> float:
    if text in ("never", "learned"):
        return NEVER if text == "never" else 0.0
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; or never, or learned") from None
    if not seconds:
        raise argparse.ArgumentTypeError("nobody speaks all the time; write never to have silence mean nothing")
    return seconds


def _ls(arguments: argparse.Namespace) -> int:
    rows = sorted(_rows(arguments, arguments.pattern, only_quiet=arguments.quiet), key=_quiet_first)
    _print(arguments, rows, table(rows, time.time()))
    return 1 if arguments.quiet and rows else 0


def _show(arguments: argparse.Namespace) -> int:
    rows = [row for row in _rows(arguments, None, only_quiet=False) if row["name"] == arguments.name]
    if not rows:
        raise AdminError(f"no source {arguments.name!r}; see: ndcollector sources ls")
    _print(arguments, rows, (line for row in rows for line in in_full(row)))
    return 0


def _expect(arguments: argparse.Namespace) -> int:
    wish = {"name": arguments.name, "channel": arguments.channel, "seconds": arguments.silence}
    row = _post(arguments, "expect", wish)
    after = row["quiet_after_seconds"]
    said = f"quiet after {format_duration(round(after))} of silence" if after else "its silence means nothing"
    print(printable(f"{row['name']} {row['channel']}".rstrip() + f": {said}"))
    return 0


def _forget(arguments: argparse.Namespace) -> int:
    answer = _post(arguments, "forget", {"name": arguments.name, "channel": arguments.channel})
    print(f"forgotten: {answer['forgotten']}")
    return 0


def _post(arguments: argparse.Namespace, what: str, wish: Mapping[str, object]) -> Row:
    with closing(AdminClient(socket_path(arguments))) as client:
        answer: Row = json.loads(client.post(f"/v1/sources/{what}", json.dumps(wish).encode()).read())
        return answer


def _rows(arguments: argparse.Namespace, pattern: str | None, *, only_quiet: bool) -> list[Row]:
    query = {"pattern": pattern, "quiet": "1" if only_quiet else None}
    try:
        with closing(AdminClient(socket_path(arguments))) as client:
            wanted = {name: value for name, value in query.items() if value is not None}
            rows: list[Row] = json.loads(client.get("/v1/sources", wanted).read())
            return rows
    except AdminError:
        if arguments.socket is not None:
            raise
        config = load(arguments.config)
        if is_served(config.state_dir) or not (config.state_dir / FILE).exists():
            raise
    store = Store((config.state_dir / FILE).resolve(), read_only=True)
    try:
        found = [plain(source_of(row), time.time()) for row in store.load().sources]
    finally:
        store.close()
    return [
        row for row in found
        if (pattern is None or fnmatchcase(str(row["name"]), pattern)) and (row["state"] == "quiet" or not only_quiet)
    ]  # fmt: skip


def _print(arguments: argparse.Namespace, rows: Sequence[Row], lines: Iterator[str]) -> None:
    for line in (json.dumps(row) for row in rows) if arguments.json else lines:
        print(line if arguments.json else printable(line))


def _quiet_first(row: Row) -> tuple[Any, ...]:
    return row["state"] != "quiet", row["state"] != "awaited", row["name"], row["channel"]


def table(rows: Sequence[Row], now: float) -> Iterator[str]:
    """A head, and one line each."""
    if not rows:
        yield "no source matches"
        return
    cells = [_HEADS, *(_cells(row, now) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        placed = (
            cell.rjust(width) if head in _RIGHT else cell.ljust(width)
            for cell, width, head in zip(line, widths, _HEADS, strict=True)
        )
        yield "  ".join(placed).rstrip()


def _cells(row: Row, now: float) -> tuple[str, ...]:
    last, usual, after, skew = (
        row["last_seen"], row["usual_pause_seconds"], row.get("quiet_after_seconds"), row["clock_skew_seconds"],
    )  # fmt: skip
    return (
        printable(row["name"]),
        printable(row["channel"]) or "-",
        row["state"],
        "-" if last is None else f"{_length(max(now - last, 0))} ago",
        _length(usual),
        "never" if row["expected"] == "never" else _length(after),
        f"{'~' if row['events_are_an_estimate'] else ''}{row['rate']:.3g}",
        printable(row["format"] or "-"),
        "-" if skew is None else f"{'-' if skew < 0 else '+'}{_length(abs(skew))}",
        "-" if row.get("lost") is None else str(row["lost"]),
    )


def in_full(row: Row) -> Iterator[str]:
    """A field a line; what is not known is left out."""
    head = f"{row['name']}  {row['channel']}".rstrip()
    yield printable(head)
    for key, value in row.items():
        if key in ("name", "channel") or value is None or value is False or value == "":
            continue
        yield printable(f"  {key.replace('_', ' '):<22} {_value(key, value)}")


def _value(key: str, value: Any) -> str:
    if key in ("first_seen", "last_seen", "quiet_since"):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _length(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g}{name}"
    return f"{seconds:.3g}s"
