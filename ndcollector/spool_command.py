"""`ndcollector spool ls | verify | export | replay`: look into the spools under `<state_dir>/spool`.

Promises: ls, verify and export only read and work beside a running daemon; verify exits 0 if all is clean and 1 if
anything is damaged, naming file, offset and sequences. Replay moves a cursor itself where no daemon runs, and asks the
daemon over its admin socket where one does.
Refuses: repairing. The daemon quarantines what it cannot read by itself; nothing here is ever needed to start it.
"""

import argparse
import http.client
import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from ndagent.core.settings import format_size
from ndagent.core.spool import SpoolLocked, offline
from ndagent.core.spool.offline import Finding
from ndagent.core.spool.position import NO_END
from ndagent.core.spool.record import Record
from ndagent.core.yaml_file import ConfigError
from ndagent.wire.codec import make_decoder
from ndagent.wire.decoder import split_messages
from ndagent.wire.devices import FAMILIES
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import CorruptBody, unpack_body
from ndcollector.admin_client import AdminClient
from ndcollector.config import CollectorConfig, add_config_option, load

Split = Callable[[Record], Iterator[tuple[int, bytes]]]

DEFAULT_SOCKET = Path("/run/ndcollector/admin.sock")
DEFAULT_STREAM = "security_events"
_ANSWER_BYTES = 64 * 1024


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `spool` and its subcommands; each sets `handler`, called with the namespace, returning the exit code."""
    spool = subparsers.add_parser("spool", help="look into the spools: ls, verify, export, replay")
    commands = spool.add_subparsers(dest="spool_command", required=True, metavar="COMMAND")
    _add(commands, "ls", ls, "segments, sizes, sequences, times, and each output's ledger")
    _add(commands, "verify", verify, "check every record; exit 0 clean, 1 damaged")
    parser = _add(commands, "export", export, "write events to a file or stdout")
    formats = "raw: messages as they came, one a line; ndjson: decoded"
    parser.add_argument("--format", choices=["raw", "ndjson"], default="raw", help=formats)
    parser.add_argument("--out", type=Path, help="file to write (default: stdout)")
    _add_range(parser, required=False)
    parser = _add(commands, "replay", replay, "send events to an output again")
    parser.add_argument("--output", required=True, help="name of the output")
    parser.add_argument("--socket", type=Path, help="the running daemon's admin socket (default: the configuration's)")
    _add_range(parser, required=True)


def _add(commands: Any, name: str, handler: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    add_config_option(parser)
    parser.add_argument("--state-dir", type=Path, help="look here instead of reading the configuration")
    default = DEFAULT_STREAM if name in ("export", "replay") else None
    parser.add_argument("--stream", default=default, help=f"only this stream (default: {default or 'all'})")
    parser.set_defaults(handler=handler)
    return parser


def _add_range(parser: argparse.ArgumentParser, *, required: bool) -> None:
    text = "sequence, or a time such as 2026-03-01T12:00:00Z (UTC where no offset is given)"
    parser.add_argument("--from", dest="first", required=required, help=f"first event: {text}")
    parser.add_argument("--to", dest="end", help=f"stop before: {text}")


def ls(args: argparse.Namespace) -> int:
    """Print segments and cursors."""
    for directory in _directories(args):
        summary = offline.summarise(directory)
        total = sum(segment.size_bytes for segment in summary.segments)
        _say(f"{directory}  id {summary.spool_id or '-'}  next {summary.next_sequence}  {_size(total)}")
        for segment in summary.segments:
            times = f"{_time(segment.oldest_ns)} .. {_time(segment.newest_ns)}"
            _say(f"  {segment.name}  {_size(segment.size_bytes):>10}  {segment.first}..{segment.end}  {times}")
        for name, saved in summary.cursors.items():
            if saved is None:
                _say(f"  cursor {name}: damaged, would start again")
                continue
            account = saved.position.account(summary.next_sequence)
            ledger = "  ".join(f"{key} {value}" for key, value in account._asdict().items())
            _say(f"  cursor {name}  at {saved.position.sequence}  {ledger}")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Print what is damaged; 0 if nothing is."""
    damaged = 0
    for directory in _directories(args):
        findings = offline.verify(directory)
        damaged += len(findings)
        for finding in findings:
            _say(_describe(finding))
        if not findings:
            _say(f"{directory}: clean")
    return 1 if damaged else 0


def export(args: argparse.Namespace) -> int:
    """Write the events of a range; what cannot be read is named on stderr, the rest is written, and the exit is 1."""
    directory = _directory(args)
    first = _sequence(directory, args.first) if args.first else 0
    end = _sequence(directory, args.end) if args.end else NO_END
    split = _decoded(args.stream, _decode_settings(args)) if args.format == "ndjson" else _raw
    damaged = 0
    with ExitStack() as stack:
        out: BinaryIO = stack.enter_context(args.out.open("wb")) if args.out else sys.stdout.buffer
        for item in offline.records(directory, first, end):
            try:
                if isinstance(item, Record):
                    _write(out, split(item), first, end)
                    continue
                problem = _describe(item)
            except CorruptBody as error:
                problem = f"{directory}: record {item.sequence if isinstance(item, Record) else ''}: {error}"
            damaged += 1
            _say(problem, sys.stderr)
        out.flush()
    return 1 if damaged else 0


def replay(args: argparse.Namespace) -> int:
    """Set a cursor back, here or in the daemon."""
    directory = _directory(args)
    first = _sequence(directory, args.first)
    end = _sequence(directory, args.end) if args.end else None
    try:
        events = offline.replay(directory, args.output, first, end)
    except (SpoolLocked, PermissionError):  # who may not open the spool may still be one whom the daemon obeys
        return _ask_daemon(_socket(args), output=args.output, stream=args.stream, first=first, end=end)
    except LookupError as error:
        _say(f"ndcollector spool replay: {error.args[0]}", sys.stderr)
        return 1
    _say(f"output {args.output}: {events} events of {args.stream} will be sent again when the daemon starts")
    return 0


def _ask_daemon(path: Path, *, output: str, stream: str, first: int, end: int | None) -> int:
    request: dict[str, object] = {"output": output, "stream": stream, "from": first}
    if end is not None:
        request["to"] = end
    connection = AdminClient(path)
    try:
        connection.request("POST", "/v1/replay", json.dumps(request), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read(_ANSWER_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        _say(f"{path}: the daemon does not answer: {error}; is it running, is --socket right?", sys.stderr)
        return 1
    finally:
        connection.close()
    done = response.status < http.HTTPStatus.MULTIPLE_CHOICES
    _say(answer or f"HTTP {response.status}", sys.stdout if done else sys.stderr)
    return 0 if done else 1


def _config(args: argparse.Namespace) -> CollectorConfig:
    try:
        return load(args.config)
    except ConfigError as error:
        raise SystemExit(f"{error}\n(--state-dir DIR looks into a spool without a configuration)") from error


def _root(args: argparse.Namespace) -> Path:
    state_dir: Path = args.state_dir or _config(args).state_dir
    return state_dir / "spool"


def _socket(args: argparse.Namespace) -> Path:
    if args.socket is not None or args.state_dir is not None:
        return args.socket or DEFAULT_SOCKET
    path: Path = _config(args).admin.socket
    return path


def _decode_settings(args: argparse.Namespace) -> DecodeSettings:
    if args.state_dir is not None:
        return DecodeSettings(observer_name=socket.gethostname(), devices=FAMILIES)  # as without a word on them
    settings: DecodeSettings = _config(args).decode_settings()
    return settings


def _directories(args: argparse.Namespace) -> list[Path]:
    root = _root(args)
    names = [args.stream] if args.stream else sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    return [root / name for name in names if _exists(root / name)]


def _directory(args: argparse.Namespace) -> Path:
    directory: Path = _root(args) / args.stream
    _exists(directory)
    return directory


def _exists(directory: Path) -> bool:
    if not directory.is_dir():
        raise SystemExit(f"{directory}: no such spool; --stream names one, --state-dir or -c says where to look")
    return True


def _sequence(directory: Path, text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SystemExit(f"{text!r} is neither a sequence nor a time such as 2026-03-01T12:00:00Z") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return offline.find_time(directory, int(moment.timestamp()) * 10**9 + moment.microsecond * 1000)


def _raw(record: Record) -> Iterator[tuple[int, bytes]]:
    """(sequence, line) of each message; a message that holds a line feed keeps it. Raises CorruptBody."""
    body = unpack_body(record.body)
    if body.format not in ("syslog", "ecs"):
        raise CorruptBody(f"format {body.format!r} has no lines of its own; use --format ndjson")
    sequence, at = record.sequence, 0
    for section in body.sections():
        payload = bytes(body.payload[at : at + section.length])
        at += section.length
        for message in split_messages(payload, framing=section.framing, count=section.count):
            yield sequence, message
            sequence += 1


def _decoded(stream: str, settings: DecodeSettings) -> Split:
    """(sequence, NDJSON line) of each event, as the outputs get them. Raises CorruptBody."""
    decoder = make_decoder(settings)

    def decode(record: Record) -> Iterator[tuple[int, bytes]]:
        events = decoder.decode(
            record.body,
            stream=stream,
            spool_id=record.spool_id,
            sequence=record.sequence,
            received_at_ns=record.received_at_ns,
        )
        lines = (line.removesuffix(b"\n") for line in events.lines())
        return zip(events.sequences, lines, strict=True)

    return decode


def _write(out: BinaryIO, lines: Iterator[tuple[int, bytes]], first: int, end: int) -> None:
    out.writelines(line + b"\n" for sequence, line in lines if first <= sequence < end)


def _describe(finding: Finding) -> str:
    events = f"events {finding.first}.." + ("?" if finding.end is None else f"{finding.end - 1}")
    return f"{finding.path}: offset {finding.offset}: {events}: {finding.what}"


def _size(size: int) -> str:
    return format_size(size) if size % 1024 == 0 and size else f"{size / 2**20:.1f}MiB"


def _time(ns: int | None) -> str:
    return "-" if ns is None else datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _say(text: str, stream: Any = None) -> None:
    print(text, file=stream or sys.stdout)
