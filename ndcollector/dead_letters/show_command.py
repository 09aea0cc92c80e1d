"""`ndcollector dlq ls | show`: what there is, and why; nothing of a letter can command the terminal."""

import argparse
import sys

import orjson

from ndagent.core.log import printable
from ndagent.core.settings import format_size
from ndcollector.dead_letters.asked import LetterFile, configured, directory_of, file_of, wanted_of
from ndcollector.dead_letters.letters import SUFFIX, Letter, Summary, Wanted
from ndcollector.dead_letters.progress import load as load_progress
from ndcollector.tap.pretty import pretty, safe_json

_REASONS = 5
_SHOWN = 300
"""Characters of an event or an answer; --json shows all."""


def ls(args: argparse.Namespace) -> int:
    """Print what each output has; 0 also where there is nothing."""
    config = None if args.state_dir else configured(args)
    directory = directory_of(args)
    # Not glob, which says nothing where one may not read.
    for path in sorted(one for one in directory.iterdir() if one.suffix == SUFFIX) if directory.exists() else []:
        file = LetterFile(path.stem, path, load_progress(path))
        summary = Summary()
        for letter in file.letters(Wanted()):
            summary.add(letter)
        output = config.outputs.get(file.output) if config is not None else None
        limit: int | None = getattr(output, "dead_letter_max_bytes", None)
        size = path.stat().st_size - (file.progress.gone_bytes if file.progress else 0)
        (_print_json if args.json else _print_summary)(file, summary, size, limit)
    return 0


def _print_summary(file: LetterFile, summary: Summary, size: int, limit: int | None) -> None:
    share = f"{_size(size)} of {_size(limit)} ({size / limit:.0%})" if limit else _size(size)
    print(f"{file.output}  {summary.events} events in {summary.letters} letters  {share}")
    if summary.letters:
        print(f"  oldest {printable(str(summary.oldest))}  newest {printable(str(summary.newest))}")
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


def _print_json(file: LetterFile, summary: Summary, size: int, limit: int | None) -> None:
    found = {
        "output": file.output, "events": summary.events, "letters": summary.letters, "damaged": summary.damaged,
        "bytes": size, "max_bytes": limit, "oldest": summary.oldest, "newest": summary.newest,
        "reasons": dict(summary.reasons.most_common()),
        "replay": None if file.progress is None else {"to": file.progress.to, "replayed": file.progress.replayed},
    }  # fmt: skip
    _write_line(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))


def show(args: argparse.Namespace) -> int:
    """Print letters, the oldest first."""
    file, wanted = file_of(args), wanted_of(args)
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
    print(f"{printable(head['time'])}  {printable(head['stream'])} {head['sequence']}  {printable(head['reason'])}")
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


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 2**20:.1f}MiB" if size >= 2**20 and size % 2**20 else format_size(size)
