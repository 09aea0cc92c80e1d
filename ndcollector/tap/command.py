"""`ndcollector tap`: events live, from an input, a stream or an output of the running collector, until Ctrl-C.

Promises: what stands on stdout is events only: to a pipe the exact NDJSON, on a terminal nothing that it would obey.
What the tap missed is said on stderr. Exit status 0 when it ended by --limit or Ctrl-C, 1 when the collector did not
answer, refused, or stopped. Refuses: completeness; a tap never holds up the pipeline, so it may miss events.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPException, HTTPResponse
from typing import TextIO

import orjson

from ndagent.core.log import printable
from ndcollector.admin_client import AdminClient, AdminError, add_socket_options, socket_path
from ndcollector.tap.pretty import pretty, safe_json

_EXAMPLES = """\
examples:
  ndcollector tap                                            every event, one readable line each
  ndcollector tap --output siem --where 'severity <= warning and host glob "fw-*"'
  ndcollector tap --input syslog_tls --limit 5               messages as they came, before any parsing
  ndcollector tap --stream security_events --sample 1% | jq  one event of a hundred, as NDJSON

--where is described in docs/where.md.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `tap`."""
    parser = commands.add_parser(
        "tap", help="show events live", epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_socket_options(parser)
    point = parser.add_mutually_exclusive_group()
    point.add_argument("--input", metavar="NAME", help="messages as this input received them")
    point.add_argument("--output", metavar="NAME", help="events as this output took them")
    point.add_argument("--stream", metavar="NAME", help="events of this stream (default: of every stream)")
    parser.add_argument("--where", metavar="EXPR", help="only events that match, such as 'severity <= 4'")
    parser.add_argument("--sample", metavar="N|N%", type=read_share, help="one event of N, or N percent of them")
    parser.add_argument("--limit", metavar="N", type=_at_least_one, help="end after N events")
    parser.add_argument(
        "--format", choices=["pretty", "ndjson"], help="default: pretty on a terminal, ndjson anywhere else"
    )
    parser.set_defaults(handler=run)


def read_share(text: str) -> float:
    """`10` (one of ten) or `5%` as a share of 1; raises argparse's error."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else 1 / int(text)
    except (ValueError, ZeroDivisionError):
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not N (one event of N) or N% (more than 0, at most 100)")
    return share


def _at_least_one(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Show events until the limit, Ctrl-C or the collector's end."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal may know less than UTF-8
    show = _writer(arguments.format, raw=arguments.input is not None)
    unseen = _Unseen(sys.stderr)
    shown = 0
    try:
        with closing(AdminClient(socket_path(arguments))) as client:
            for line in _lines(client.get("/v1/tap", _query(arguments))):
                if line.startswith(b"["):
                    unseen.now(orjson.loads(line)[1])
                    continue
                show(line)
                shown += 1
    except AdminError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        unseen.total()
    if arguments.limit is not None and shown >= arguments.limit:
        return 0
    _say("the collector ended the tap: it stops")
    return 1


def _query(arguments: argparse.Namespace) -> dict[str, str]:
    wanted = {"share": arguments.sample, **{name: getattr(arguments, name) for name in _SAME_NAME}}
    return {name: str(value) for name, value in wanted.items() if value is not None}


_SAME_NAME = ("input", "output", "stream", "where", "limit")


def _lines(response: HTTPResponse) -> Iterator[bytes]:
    """Whole lines until the daemon ends the tap, in whichever way."""
    try:
        yield from (line for line in response if line.endswith(b"\n"))
    except (HTTPException, OSError):
        return


def _writer(form: str | None, *, raw: bool) -> Callable[[bytes], None]:
    """What is done with each line."""
    is_terminal = sys.stdout.isatty()
    if form == "pretty" or (form is None and is_terminal):
        colour = is_terminal and "NO_COLOR" not in os.environ  # https://no-color.org
        return lambda line: print(pretty(orjson.loads(line), raw=raw, colour=colour), flush=True)
    if is_terminal:
        return lambda line: print(safe_json(line), flush=True)
    return _write_exactly


def _write_exactly(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


class _Unseen:
    """Says how many events passed unseen: while it grows, and at the end."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._events = 0

    def now(self, events: int) -> None:
        """So many by now."""
        if events > self._events:
            print(f"{events - self._events} events not shown: more than a tap may look at", file=self._out)
        self._events = events

    def total(self) -> None:
        """All in all."""
        if self._events:
            print(
                f"{self._events} events not shown in all; --where or --sample narrows what is looked at", file=self._out
            )


def _say(text: str) -> None:
    print(f"ndcollector tap: {printable(text)}", file=sys.stderr)
