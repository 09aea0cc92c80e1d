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
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from ndagent.core.dead_letters import whole_lines_end
from ndagent.core.log import printable
from ndcollector.admin_client import AdminClient, AdminError
from ndcollector.audit import Audit, person
from ndcollector.config import add_config_option
from ndcollector.dead_letters.asked import Failed, LetterFile, directory_of, file_of, read_time, socket_of, wanted_of
from ndcollector.dead_letters.desk import close_replay, orphan, purge_file
from ndcollector.dead_letters.letters import Wanted
from ndcollector.dead_letters.lock import LettersLocked, locked
from ndcollector.dead_letters.progress import load as load_progress
from ndcollector.dead_letters.rewrite import LettersChanged
from ndcollector.dead_letters.show_command import ls, show

_LOOK_SECONDS = 0.5
_UNSEEN_SECONDS = 60.0
"""A replay begins when a file was counted that a restart left: a gigabyte takes seconds."""

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
        except LettersChanged:
            print(f"ndcollector dlq {name}: the letters changed meanwhile; look again", file=sys.stderr)
        except (Failed, AdminError, LettersLocked) as error:
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


# ---- replay


def replay(args: argparse.Namespace) -> int:
    """Ask the collector for a replay, or to stop one."""
    if args.stop:
        return _stop(args)
    wish = {"output": args.output, "wanted": wanted_of(args).plain()}
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
    seen = time.monotonic()
    while time.monotonic() - seen < _UNSEEN_SECONDS:
        with closing(AdminClient(socket_of(args))) as client:
            outputs = orjson.loads(client.get("/v1/dlq").read())
        found: Mapping[str, Any] = next((one for one in outputs if one["output"] == args.output), {})
        if found.get("last_replay") is not None:
            return _say_end(args.output, found["last_replay"])
        under_way = found.get("replay")
        if under_way is not None:
            seen = time.monotonic()
        if under_way is not None and sys.stderr.isatty() and time.monotonic() - told > 5:
            told = time.monotonic()
            share = under_way["done_bytes"] / max(1, under_way["of_bytes"])
            print(f"{share:.0%}: {under_way['replayed']} taken, {under_way['refused']} refused again", file=sys.stderr)
        time.sleep(_LOOK_SECONDS)
    raise Failed(f"the replay of {args.output!r} is not under way; the collector's log says why")


def _say_end(output: str, ended: Mapping[str, Any]) -> int:
    print(f"{ended['ended']}: {ended['replayed']} events taken, {ended['refused']} refused again")
    if ended["refused"]:
        print(f"why: ndcollector dlq show {output}")
    return 1 if ended["refused"] or ended["ended"] not in ("done", "stopped") else 0


def _stop(args: argparse.Namespace) -> int:
    ended: Mapping[str, Any]
    file = file_of(args)
    try:
        with locked(directory_of(args)):
            if file.progress is None:
                raise Failed(f"no replay of {args.output!r} is under way")
            close_replay(orphan(file.path.parent, args.output), file.progress)
            ended = {"ended": "stopped", "replayed": file.progress.replayed, "refused": file.progress.refused}
    except (LettersLocked, PermissionError):  # who may not open the directory may still be one whom the daemon obeys
        ended = _ask(args, "stop", {"output": args.output})
    _say_end(args.output, ended)
    return 0


# ---- purge


def purge(args: argparse.Namespace) -> int:
    """Count, ask, keep a copy, remove."""
    wanted, file = wanted_of(args), file_of(args)
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
        raise Failed(f"{events} events would be lost for good; say --yes")
    kept = f" (a copy goes to {args.archive})" if args.archive else ""
    print(f"Remove {events} events of {args.output} for good{kept}? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failed("nothing was removed")


def _archive(path: Path, file: LetterFile, wanted: Wanted, end: int) -> None:
    """Durable when it returns; an existing file is not overwritten."""
    try:
        out = path.open("xb")
    except FileExistsError:
        raise Failed(f"{path} exists; choose a new file") from None
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


def _purge(args: argparse.Namespace, file: LetterFile, wanted: Wanted, wish: dict[str, Any]) -> int:
    try:
        with locked(directory_of(args)):
            if load_progress(file.path) is not None:
                raise Failed(f"a replay is not at its end; first: ndcollector dlq replay {args.output} --stop")
            store = orphan(file.path.parent, args.output)
            events = purge_file(store, wanted, end=wish["end"], inode=wish["inode"])
            audit = Audit(file.path.parent.parent, by=person(), clock=time.time)
            audit.record("dead_letters_purged", output=args.output, events=events, **wanted.plain())
            return events
    except (LettersLocked, PermissionError):
        return int(_ask(args, "purge", wish)["purged"])


def _ask(args: argparse.Namespace, what: str, wish: Mapping[str, Any]) -> Mapping[str, Any]:
    with closing(AdminClient(socket_of(args))) as client:
        answer: Mapping[str, Any] = orjson.loads(client.post(f"/v1/dlq/{what}", orjson.dumps(wish)).read())
    return answer
