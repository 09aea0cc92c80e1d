"""How `ndcollector top` looks: tables by rich, on a terminal again and again, anywhere else as plain text.

Promises: text from the collector is escaped; a width of 160 columns where there is no terminal to ask.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ndagent.core.log import printable
from ndcollector.admin_client import AdminError
from ndcollector.top_command import Status

_ALERT_SHARE = 0.8
"""Of a spool's limit; from here on the daemon's log warns, too."""
_WIDTH_IN_A_PIPE = 160
_TO_THE_LEFT = {"INPUT", "OUTPUT", "SPOOL", "TYPE", "STREAM", "STATE", "BREAKER", "DEAD LETTERS"}


def print_tables(looks: Iterable[Status | AdminError]) -> None:
    """Print each look; raises AdminError where one failed."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE)
    for now in looks:
        if isinstance(now, AdminError):
            raise now
        console.print(tables(now))


def show_live(first: Status, looks: Iterable[Status | AdminError]) -> None:
    """Show the looks in place of each other; one that failed leaves its reason until the next one."""
    with Live(tables(first), screen=True, auto_refresh=False) as live:
        live.refresh()
        for now in looks:
            reason = Text(printable(str(now)), style="red")
            live.update(reason if isinstance(now, AdminError) else tables(now), refresh=True)


def tables(status: Status) -> Group:
    """Everything, for a terminal."""
    shown: list[RenderableType] = [_head(status)]
    for columns, rows in _parts(status):
        shown += [Text(), _table(columns, rows)]
    return Group(*shown)


def _parts(status: Status) -> Iterator[tuple[Sequence[str], list[list[Text]]]]:
    columns = ["INPUT", "TYPE", "STATE", "CONNECTIONS", "EVENTS/S", "MB/S", "RECEIVED", "DROPPED", "REFUSED"]
    yield columns, [_input(line) for line in status["inputs"]]
    columns = ["OUTPUT", "TYPE", "STREAM", "BREAKER", "EVENTS/S", "LAG", "LAG AGE", "DELIVERED", "DEAD", "LOST"]
    yield columns, [_output(line) for line in status["outputs"]]
    yield ["SPOOL", "USED", "SIZE", "LIMIT", "STATE"], [_spool(line) for line in status["spools"]]
    if letters := [line for line in status["dead_letters"] if line["bytes"] or line["replay"]]:
        yield ["DEAD LETTERS", "USED", "SIZE", "LIMIT", "EVENTS", "STATE"], [_letters(line) for line in letters]


def _head(status: Status) -> Text:
    not_ready = status["not_ready_because"]
    head = Text(f"{printable(status['node_name'])}  ndcollector {status['version']}  ")
    head.append("ready" if not not_ready else printable("; ".join(not_ready)), "green" if not not_ready else "red")
    head.append("  ledger adds up" if status["adds_up"] else "  ledger: an append is under way")
    head.append(f"  {status['taps']} taps" if status["taps"] else "")
    return head


def _input(line: Status) -> list[Text]:
    state = _flag("paused: spool full", "red") if line["paused"] else _flag("reading", "green")
    if line["limited"]:
        state.append(f", {line['limited']} slowed", "yellow")
    dropped = sum(line["dropped"].values())
    return [
        *map(_name, (line["input"], line["type"])), state, _count(line["connections"]),
        _count(line["events_per_second"]), Text(f"{line['bytes_per_second'] / 1e6:.1f}"), _count(line["received"]),
        _count(dropped, alarming=True), _count(line["refused_connections"]),
    ]  # fmt: skip


def _output(line: Status) -> list[Text]:
    breaker = line["breaker"]
    return [
        *map(_name, (line["output"], line["type"], line["stream"])),
        _flag(breaker, "green" if breaker == "closed" else "red"), _count(line["events_per_second"]),
        _count(line["lag_events"]), Text(age(line["lag_seconds"])), _count(line["delivered"]),
        _count(line["dead_lettered"], alarming=True), _count(line["quarantined"] + line["evicted"], alarming=True),
    ]  # fmt: skip


def _spool(line: Status) -> list[Text]:
    share = line["bytes"] / line["max_bytes"]
    state = _flag("full", "red") if line["full"] else _flag("ok", "green")
    used = _flag(f"{share:.0%}", "red" if share >= _ALERT_SHARE else "")
    return [_name(line["stream"]), used, Text(size(line["bytes"])), Text(size(line["max_bytes"])), state]


def _letters(line: Status) -> list[Text]:
    share, replay = line["fill"], line["replay"]
    limit = line["max_bytes"]
    state = _flag("blocked" if share >= 1 else "kept", "red" if share >= _ALERT_SHARE else "yellow")
    if replay is not None:
        state = _flag(f"replay: {replay['replayed']} taken, {replay['refused']} refused", "yellow")
    return [
        _name(line["output"]), _flag(f"{share:.0%}", "red" if share >= _ALERT_SHARE else ""),
        Text(size(line["bytes"])), Text("-" if limit is None else size(limit)),
        Text("…") if line["events"] is None else _count(line["events"], alarming=True), state,
    ]  # fmt: skip


def _table(columns: Sequence[str], rows: list[list[Text]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in _TO_THE_LEFT else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _name(text: str) -> Text:
    return Text(printable(text))


def _flag(text: str, colour: str) -> Text:
    return Text(text, style=colour)


def _count(number: float, *, alarming: bool = False) -> Text:
    return Text(f"{number:,.0f}".replace(",", " "), style="red" if alarming and number else "")


def age(seconds: float) -> str:
    """A duration at a glance."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds / unit:.1f}{name}"
    return f"{seconds:.1f}s"


def size(count: float) -> str:
    """Bytes at a glance."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
