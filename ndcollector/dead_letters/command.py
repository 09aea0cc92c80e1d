"""`ndcollector dlq ls | show | replay | purge`: look at dead letters, send them again, remove them.

Promises: ls and show only read the files, so they work beside a running collector and without one, and cost it
nothing. Replay asks the collector, which sends them through the output's own chain. Purge asks it where one runs, and
takes its place (a lock) where none does; it removes what was counted before, no more, asks first on a terminal, and
keeps a copy with --archive before anything leaves. On a terminal nothing of a letter can command it. Exit status 0 when
it is done, 1 when it was refused or did not end well.
Refuses: changing letters. Mend the cause, or an output's transform, and replay.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from ndagent.core.dead_letters import whole_lines_end
from ndagent.core.deliveries import DIRECTORY
from ndagent.core.log import printable
from ndagent.core.settings import format_size
from ndagent.core.yaml_file import ConfigError
from ndagent.wire.where import WhereError, compile_where
from ndcollector.admin_client import AdminClient, AdminError
from ndcollector.audit import Audit, person
from ndcollector.config import CollectorConfig, add_config_option, load
from ndcollector.dead_letters.desk import close_replay, orphan, purge_file
from ndcollector.dead_letters.letters import SUFFIX, Letter, Summary, Wanted, letter_time, letters
from ndcollector.dead_letters.lock import LettersLocked, locked
from ndcollector.dead_letters.progress import Progress
from ndcollector.dead_letters.progress import load as load_progress
from ndcollector.spool_command import DEFAULT_SOCKET
from ndcollector.tap.pretty import pretty, safe_json

_LOOK_SECONDS = 0.5
_REASONS = 5
_SHOWN = 300
"""Characters of an event or an answer; --json shows all."""
_AGE = re.compile(r"(\d+)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EXAMPLES = """\
examples:
  ndcollector dlq ls                                        what there is, and why
  ndcollector dlq show siem --since 12h                     the letters of the last twelve hours
  ndcollector dlq show siem --reason mapper_parsing --json | jq .event
  ndcollector dlq replay siem --where 'host glob "fw-*"'    send these again, now that the cause is mended
  ndcollector dlq replay old --to siem                      to another output
  ndcollector dlq purge siem --before 30d --archive old.ndjson

--where is described in docs/where.md, all of it in docs/dead-letters.md.
"""


class _Failed(Exception):
    """In words for a person; exit status 1."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `dlq` and its subcommands."""
    form = argparse.RawDescriptionHelpFormatter
    text = "dead letters: ls, show, replay, purge"
    dlq = subparsers.add_parser("dlq", help=text, description=__doc__, epilog=_EXAMPLES, formatter_class=form)
    commands = dlq.add_subparsers(dest="dlq_command", required=True, metavar="COMMAND")
    parser = _add(commands, "ls", ls, "each output's letters: how many, how old, why")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser = _add(commands, "show", show, "the letters themselves")
    _add_output(parser)
    text = "at most N, 0 for all (default: %(default)s)"
    parser.add_argument("--limit", type=int, default=20, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="whole letters, one JSON object a line")
    _add_wanted(parser, "since")
    parser = _add(commands, "replay", replay, "send letters again through the running collector")
    _add_output(parser)
    parser.add_argument("--to", metavar="OUTPUT", help="send them to this output instead")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the end")
    parser.add_argument("--stop", action="store_true", help="end the replay that is under way; what was sent has left")
    _add_wanted(parser, "since", "before")
    parser = _add(commands, "purge", purge, "remove letters for good")
    _add_output(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="first write them to this new file")
    _add_wanted(parser, "since", "before")


def _add(commands: Any, name: str, work: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    add_config_option(parser)
    parser.add_argument("--state-dir", type=Path, help="look here instead of reading the configuration")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="admin socket (default: the configuration's)")

    def handler(args: argparse.Namespace) -> int:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # terminals may know less than UTF-8
        try:
            return work(args)
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (_Failed, AdminError, LettersLocked) as error:
            print(f"ndcollector dlq {name}: {printable(str(error))}", file=sys.stderr)
        except PermissionError as error:
            remedy = "use sudo, or join the collector's group"
            print(f"ndcollector dlq {name}: {error.filename}: {error.strerror}; {remedy}", file=sys.stderr)
        except OSError as error:
            print(f"ndcollector dlq {name}: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 1

    parser.set_defaults(handler=handler)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="whose letters; see: ndcollector dlq ls")


def _add_wanted(parser: argparse.ArgumentParser, *times: str) -> None:
    parser.add_argument("--reason", metavar="TEXT", help="only letters whose reason has this text in it")
    parser.add_argument("--where", metavar="EXPR", help="only events that match, such as 'severity <= 4'")
    for name in times:
        text = f"only letters {'since' if name == 'since' else 'older than'} this time, or this long ago (30m, 12h, 7d)"
        parser.add_argument(f"--{name}", metavar="TIME", type=read_time, help=text)


def read_time(text: str) -> str:
    """A time, or an age such as 12h, as letters have it; raises argparse's error."""
    age = _AGE.fullmatch(text)
    try:
        if age is not None:
            return letter_time(datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: int(age[1])}))
        return letter_time(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        wanted = "a time such as 2026-03-01T12:00:00Z, nor an age such as 12h"
        raise argparse.ArgumentTypeError(f"{text!r} is neither {wanted}") from None


# ---- reading


class _File(NamedTuple):
    """One output's letters, and what a replay under way has sent of them already."""

    output: str
    path: Path
    progress: Progress | None

    def letters(self, wanted: Wanted, *, end: int | None = None) -> Iterator[Letter | None]:
        """The wanted ones that have not left, and None for damage where everything is wanted."""
        has_left = Wanted.read(self.progress.wanted) if self.progress is not None else None
        at = self.progress.at if self.progress is not None else 0
        for offset, letter in letters(self.path, end=end):
            if has_left is not None and offset < at and has_left(letter):
                continue
            if wanted(letter) or (letter is None and wanted == Wanted()):
                yield letter


def ls(args: argparse.Namespace) -> int:
    """Print what each output has; 0 also where there is nothing."""
    config = None if args.state_dir else _config(args)
    directory = _directory(args)
    # Not glob, which says nothing where one may not read.
    for path in sorted(one for one in directory.iterdir() if one.suffix == SUFFIX) if directory.exists() else []:
        file = _File(path.stem, path, load_progress(path))
        summary = Summary()
        for letter in file.letters(Wanted()):
            summary.add(letter)
        output = config.outputs.get(file.output) if config is not None else None
        limit: int | None = getattr(output, "dead_letter_max_bytes", None)
        size = path.stat().st_size - (file.progress.gone_bytes if file.progress else 0)
        (_print_json if args.json else _print_summary)(file, summary, size, limit)
    return 0


def _print_summary(file: _File, summary: Summary, size: int, limit: int | None) -> None:
    share = f"{_size(size)} of {_size(limit)} ({size / limit:.0%})" if limit else _size(size)
    print(f"{file.output}  {summary.events} events in {summary.letters} letters  {share}")
    if summary.letters:
        print(f"  oldest {summary.oldest}  newest {summary.newest}")
    for reason, events in summary.reasons.most_common(_REASONS):
        print(f"  {events:>8}  {printable(reason)}")
    more = len(summary.reasons) - _REASONS
    if more > 0:
        print(f"  and {more} more reasons")
    if summary.damaged:
        print(f"  {summary.damaged} damaged lines, which stay in {file.path}")
    if file.progress is not None:
        progress = file.progress
        print(f"  replay to {printable(progress.to)}: {progress.replayed} taken, {progress.refused} refused again")


def _print_json(file: _File, summary: Summary, size: int, limit: int | None) -> None:
    found = {
        "output": file.output, "events": summary.events, "letters": summary.letters, "damaged": summary.damaged,
        "bytes": size, "max_bytes": limit, "oldest": summary.oldest, "newest": summary.newest,
        "reasons": dict(summary.reasons.most_common()),
        "replay": None if file.progress is None else {"to": file.progress.to, "replayed": file.progress.replayed},
    }  # fmt: skip
    _write_line(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))


def show(args: argparse.Namespace) -> int:
    """Print letters, the oldest first."""
    file, wanted = _file(args), _wanted(args)
    shown = 0
    for letter in file.letters(wanted):
        if args.limit and shown >= args.limit:
            print(f"more than {args.limit}; --limit 0 shows all", file=sys.stderr)
            break
        if letter is not None:
            shown += 1
            _write_line(letter.line) if args.json else _show_letter(letter)
    return 0


def _show_letter(letter: Letter) -> None:
    head = letter.head
    print(f"{head['time']}  {printable(head['stream'])} {head['sequence']}  {printable(head['reason'])}")
    if isinstance(head.get("response"), str):
        print(f"    answer: {_cut(printable(head['response']))}")
    if letter.event is None:
        print(f"    {letter.events} events that could not be decoded, {len(letter.body)} bytes")
    else:
        print(f"    event:  {_cut(pretty(letter.event, raw=False, colour=False))}")


def _cut(text: str) -> str:
    more = len(text) - _SHOWN
    return f"{text[:_SHOWN]} … and {more} characters more" if more > 0 else text


def _write_line(line: bytes) -> None:
    if sys.stdout.isatty():
        print(safe_json(line))
    else:
        sys.stdout.buffer.write(line)


# ---- replay


def replay(args: argparse.Namespace) -> int:
    """Ask the collector for a replay, or to stop one."""
    if args.stop:
        return _stop(args)
    wish = {"output": args.output, "wanted": _wanted(args).plain()}
    answer = _ask(args, "replay", {**wish, "to": args.to} if args.to else wish)
    print(f"replaying {printable(args.output)} to {printable(answer['to'])}")
    if args.no_wait:
        return 0
    try:
        return _follow(args)
    except KeyboardInterrupt:
        print(f"it goes on in the collector; to end it: ndcollector dlq replay {args.output} --stop", file=sys.stderr)
        return 0


def _follow(args: argparse.Namespace) -> int:
    told = 0.0
    while True:
        with closing(AdminClient(_socket(args))) as client:
            outputs = orjson.loads(client.get("/v1/dlq").read())
        found: Mapping[str, Any] = next((one for one in outputs if one["output"] == args.output), {})
        if found.get("last_replay") is not None:
            return _say_end(args.output, found["last_replay"])
        under_way = found.get("replay")
        if under_way is not None and sys.stderr.isatty() and time.monotonic() - told > 5:
            told = time.monotonic()
            share = under_way["done_bytes"] / max(1, under_way["of_bytes"])
            print(f"{share:.0%}: {under_way['replayed']} taken, {under_way['refused']} refused again", file=sys.stderr)
        time.sleep(_LOOK_SECONDS)


def _say_end(output: str, ended: Mapping[str, Any]) -> int:
    print(f"{ended['ended']}: {ended['replayed']} events taken, {ended['refused']} refused again")
    if ended["refused"]:
        print(f"why: ndcollector dlq show {output}")
    return 1 if ended["refused"] else 0


def _stop(args: argparse.Namespace) -> int:
    ended: Mapping[str, Any]
    file = _file(args)
    try:
        with locked(_directory(args)):
            if file.progress is None:
                raise _Failed(f"no replay of {args.output!r} is under way")
            close_replay(orphan(file.path.parent, args.output), file.progress)
            ended = {"ended": "stopped", "replayed": file.progress.replayed, "refused": file.progress.refused}
    except (LettersLocked, PermissionError):  # who may not open the directory may still be one whom the daemon obeys
        ended = _ask(args, "stop", {"output": args.output})
    _say_end(args.output, ended)
    return 0


# ---- purge


def purge(args: argparse.Namespace) -> int:
    """Count, ask, keep a copy, remove."""
    wanted, file = _wanted(args), _file(args)
    with file.path.open("rb") as held:  # while it is open no other file gets its inode
        end, inode = whole_lines_end(held.fileno()), os.fstat(held.fileno()).st_ino
        found = sum(letter.events for letter in file.letters(wanted, end=end) if letter is not None)
        if not found:
            print("no such letters")
            return 0
        _confirm(args, found)
        if args.archive is not None:
            _archive(args.archive, file, wanted, end)
        wish = {"output": args.output, "wanted": wanted.plain(), "end": end, "inode": inode}
        purged = _purge(args, file, wanted, wish)
    print(f"{purged} events purged")
    return 0


def _confirm(args: argparse.Namespace, events: int) -> None:
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise _Failed(f"{events} events would be lost for good; say --yes")
    kept = f" (a copy goes to {args.archive})" if args.archive else ""
    if input(f"Remove {events} events of {args.output} for good{kept}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise _Failed("nothing was removed")


def _archive(path: Path, file: _File, wanted: Wanted, end: int) -> None:
    """Durable when it returns; an existing file is not overwritten."""
    try:
        out = path.open("xb")
    except FileExistsError:
        raise _Failed(f"{path} exists; choose a new file") from None
    with out:
        os.fchmod(out.fileno(), 0o640)
        for letter in file.letters(wanted, end=end):
            if letter is not None:
                out.write(letter.line)
        out.flush()
        os.fsync(out.fileno())
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _purge(args: argparse.Namespace, file: _File, wanted: Wanted, wish: dict[str, Any]) -> int:
    try:
        with locked(_directory(args)):
            if load_progress(file.path) is not None:
                raise _Failed(f"a replay is not at its end; first: ndcollector dlq replay {args.output} --stop")
            if file.path.stat().st_ino != wish["inode"]:
                raise _Failed("the letters changed meanwhile; look again")
            events = purge_file(orphan(file.path.parent, args.output), wanted, end=wish["end"])
            audit = Audit(file.path.parent.parent, by=person(), clock=time.time)
            audit.record("dead_letters_purged", output=args.output, events=events, **wanted.plain())
            return events
    except (LettersLocked, PermissionError):
        return int(_ask(args, "purge", wish)["purged"])


# ---- where, and whom to ask


def _ask(args: argparse.Namespace, what: str, wish: Mapping[str, Any]) -> Mapping[str, Any]:
    with closing(AdminClient(_socket(args))) as client:
        answer: Mapping[str, Any] = orjson.loads(client.post(f"/v1/dlq/{what}", orjson.dumps(wish)).read())
    return answer


def _config(args: argparse.Namespace) -> CollectorConfig:
    try:
        return load(args.config)
    except ConfigError as error:
        raise _Failed(f"{error}\n(--state-dir DIR needs no configuration)") from error


def _directory(args: argparse.Namespace) -> Path:
    state_dir: Path = args.state_dir or _config(args).state_dir
    return state_dir / DIRECTORY


def _file(args: argparse.Namespace) -> _File:
    path = _directory(args) / f"{args.output}{SUFFIX}"
    if "/" in args.output or not path.exists():
        raise _Failed(f"there are no dead letters of {args.output!r}; ndcollector dlq ls shows what there is")
    return _File(args.output, path, load_progress(path))


def _socket(args: argparse.Namespace) -> Path:
    if args.socket is not None or args.state_dir is not None:
        return args.socket or DEFAULT_SOCKET
    path: Path = _config(args).admin.socket
    return path


def _wanted(args: argparse.Namespace) -> Wanted:
    try:
        where = None if args.where is None else compile_where(args.where)
    except WhereError as error:
        raise _Failed(f"--where: {error}") from error
    since, before = getattr(args, "since", None), getattr(args, "before", None)
    return Wanted(reason=args.reason, where=where, since=since, before=before)


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 2**20:.1f}MiB" if size >= 2**20 and size % 2**20 else format_size(size)
