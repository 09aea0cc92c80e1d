"""EventBatches made by hand for the tests of the `file` output: what the decoder would give, without the decoder."""

import itertools
from array import array
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson

from ndagent.wire.record import EventBatch

SPOOL_ID = "0123456789abcdef"
NOON = datetime(2026, 7, 28, 12, 0, 0, tzinfo=UTC)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(number: int) -> str:
    """The number as it stands in event.id."""
    text = ""
    while number or not text:
        number, digit = divmod(number, 36)
        text = DIGITS[digit] + text
    return text


def batch(
    first: int, count: int, *, hosts: Sequence[str] = ("fw-1",), stream: str = "security_events",
    spool_id: str = SPOOL_ID, received: datetime = NOON, apart: timedelta = timedelta(0), replay: bool = False,
    message: str = "it works", line_bytes: int = 0,
) -> EventBatch:
    """`count` events from sequence `first` on; hosts take turns; `line_bytes` pads every line to that size."""
    lines, offsets, lengths = [], array("I"), array("H")
    for sequence, host in zip(range(first, first + count), itertools.cycle(hosts), strict=False):
        created = (received + apart * (sequence - first)).isoformat(timespec="microseconds").replace("+00:00", "Z")
        event = {
            "@timestamp": created,
            "event": {"id": f"{spool_id}-{base36(sequence)}", "sequence": sequence, "created": created},
            "host": {"hostname": host},
            "message": message,
        }
        line = orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
        if line_bytes:
            line = line.replace(b'"message":"', b'"message":"' + b"x" * (line_bytes - len(line)))
        at = line.index(b'"hostname":"') + 12
        lines.append(line)
        offsets.append(at if host else 0)
        lengths.append(line.index(b'"},"message"') - at)
    return EventBatch(
        stream=stream, spool_id=spool_id, sequences=range(first, first + count),
        received_at_ns=int(received.timestamp() * 1e9), ndjson=b"".join(lines),
        lengths=array("I", map(len, lines)), priorities=bytes([134] * count), host_offsets=offsets,
        host_lengths=lengths, keys=array("I", [7] * count), origins=array("I", [0] * count), replay=replay,
    )


def sequences(*paths: Path) -> list[int]:
    """event.sequence of every line of these files, in order; a half line or junk fails the test."""
    found = []
    for path in paths:
        data = path.read_bytes()
        assert data.endswith(b"\n") or not data, f"{path} ends in a half line"
        found += [orjson.loads(line)["event"]["sequence"] for line in data.splitlines()]
    return found
