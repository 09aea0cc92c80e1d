"""Dead letters as a daemon left them, in numbers: what tests of `ndcollector dlq` start from."""

import base64
from pathlib import Path
from typing import Any

import orjson

from ndagent.core.dead_letters import DeadLetters
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section, pack_body
from ndcollector.dead_letters.desk import purge_file
from ndcollector.dead_letters.letters import Wanted

SPOOL_ID = "deadspool"
TIME = "2026-11-25T01:00:00.000+00:00"


def letter(sequence: int, *, output: str = "archive", reason: str = "mapper_parsing_exception", **more: Any) -> bytes:
    """One event's letter, as DeadLetters writes it."""
    event = {
        "@timestamp": "2026-11-25T00:59:00Z",
        "event": {"id": f"{SPOOL_ID}-{sequence}", "sequence": sequence},
        "host": {"hostname": f"fw-{sequence % 3}"},
        "message": f"number {sequence}",
    }
    head = {
        "time": TIME, "output": output, "stream": "security_events", "spool_id": SPOOL_ID, "sequence": sequence,
        "reason": reason, "origin": "nd:device:fw-1",
    }  # fmt: skip
    return orjson.dumps({**head, **more, "event": event}, option=orjson.OPT_APPEND_NEWLINE)


def body_letter(first: int, messages: list[bytes], *, output: str = "archive", is_damaged: bool = False) -> bytes:
    """A record's letter, which a better decoder can read unless it is damaged."""
    text = b"".join(message + b"\n" for message in messages)
    section = Section(Origin("syslog_tls", "10.0.0.1", 1), Framing.LF, Flags.NONE, len(text), len(messages))
    body = b"".join(pack_body(Batch("security_events", "syslog", 1, [section], [text])))
    head = {
        "time": TIME, "output": output, "stream": "security_events", "spool_id": SPOOL_ID, "sequence": first,
        "reason": "decoder_failed: ValueError", "count": len(messages), "received_at_ns": 1_700_000_000 * 10**9,
    }  # fmt: skip
    data = body[: len(body) // 2] if is_damaged else body
    return orjson.dumps({**head, "body_base64": base64.b64encode(data).decode()}, option=orjson.OPT_APPEND_NEWLINE)


def write_letters(state_dir: Path, data: bytes, *, output: str = "archive") -> Path:
    """The file of an output."""
    path = state_dir / "dead_letters" / f"{output}.ndjson"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def purged(store: DeadLetters, wanted: Wanted, *, end: int) -> int:
    """What a command that looked at the file as it is purges of it."""
    return purge_file(store, wanted, end=end, inode=store.path.stat().st_ino)


def sequences(path: Path) -> list[int]:
    """Of the letters in a file, or of the events in an output's."""
    if not path.exists():
        return []
    found = [orjson.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [one["sequence"] if "sequence" in one else one["event"]["sequence"] for one in found]
