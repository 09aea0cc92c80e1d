"""`ndcollector schema export`: the JSON Schema of each stream's events, or what Elasticsearch needs to know of them."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from ndcollector.outputs.elasticsearch_template import COMPONENT, component_template
from ndcollector.schema import STREAMS, schema


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `schema` and its subcommand."""
    command = subparsers.add_parser("schema", help="the JSON Schema of what stands on topics and in files: export")
    commands = command.add_subparsers(dest="schema_command", required=True, metavar="COMMAND")
    parser = commands.add_parser("export", help="print one stream's schema, or write those of all streams")
    parser.add_argument("--stream", choices=sorted(STREAMS), default="security_events", help="default: %(default)s")
    parser.add_argument("--out", metavar="DIRECTORY", type=Path, help="write <stream>.schema.json for every stream")
    parser.add_argument(
        "--form",
        choices=("json-schema", "elasticsearch", "opensearch"),
        default="json-schema",
        help=f"or all streams' fields as the component template {COMPONENT} (default: %(default)s)",
    )
    parser.set_defaults(handler=_export)


def _export(arguments: argparse.Namespace) -> int:
    if arguments.form != "json-schema":
        texts = {f"{COMPONENT}.component.json": _json(component_template(arguments.form))}
    elif arguments.out is None:
        texts = {arguments.stream: _json(schema(arguments.stream))}
    else:
        texts = {f"{stream}.schema.json": _json(schema(stream)) for stream in STREAMS}
    if arguments.out is None:
        print(*texts.values(), end="")
        return 0
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            path = arguments.out / name
            path.write_text(text, encoding="utf-8")
            print(path)
    except OSError as error:
        print(f"{error.filename or arguments.out}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _json(found: Mapping[str, object]) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
