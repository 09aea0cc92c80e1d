"""`ndcollector schema export`: the JSON Schema of each stream's events, to stdout or into files."""

import argparse
import json
import sys
from pathlib import Path

from ndcollector.schema import STREAMS, schema


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `schema` and its subcommand."""
    command = subparsers.add_parser("schema", help="the JSON Schema of what stands on topics and in files: export")
    commands = command.add_subparsers(dest="schema_command", required=True, metavar="COMMAND")
    parser = commands.add_parser("export", help="print one stream's schema, or write those of all streams")
    parser.add_argument("--stream", choices=sorted(STREAMS), default="security_events", help="default: %(default)s")
    parser.add_argument("--out", metavar="DIRECTORY", type=Path, help="write <stream>.schema.json for every stream")
    parser.set_defaults(handler=_export)


def _export(arguments: argparse.Namespace) -> int:
    if arguments.out is None:
        print(_text(arguments.stream), end="")
        return 0
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for stream in STREAMS:
            path = arguments.out / f"{stream}.schema.json"
            path.write_text(_text(stream), encoding="utf-8")
            print(path)
    except OSError as error:
        print(f"{error.filename or arguments.out}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _text(stream: str) -> str:
    return json.dumps(schema(stream), indent=2, ensure_ascii=False) + "\n"
