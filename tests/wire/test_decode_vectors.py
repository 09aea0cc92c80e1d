"""Golden vectors: what each real message becomes, whole line for whole line, through both twins.

The expectations in vectors/*.jsonl were written down from the RFCs and the devices' documents, not from what came out.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from decode_twins import Decode, body_of, octet_counted, one_section

from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import NO_PRIORITY, Flags, Framing

SPOOL_ID, SEQUENCE = "k3v9", 46655
VECTORS = [
    json.loads(line)
    for path in sorted(Path(__file__).parent.joinpath("vectors", "decode").glob("*.jsonl"))
    for line in path.read_text().splitlines()
]


def _raw(vector: dict[str, Any]) -> bytes:
    return bytes.fromhex(vector["hex"]) if "hex" in vector else vector["text"].encode()


def _settings(vector: dict[str, Any]) -> DecodeSettings:
    return DecodeSettings(
        "collector-1",
        keep_original=vector.get("keep_original", "on_error"),
        timezone=vector.get("timezone", "UTC"),
    )


def _received_at_ns(vector: dict[str, Any]) -> int:
    moment = datetime.fromisoformat(vector["received_at"]).replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000


def _arguments(vector: dict[str, Any]) -> dict[str, Any]:
    return {"spool_id": SPOOL_ID, "sequence": SEQUENCE, "received_at_ns": _received_at_ns(vector)}


def test_there_are_vectors_of_every_kind() -> None:
    """A moved folder must not turn these tests into nothing."""
    assert len(VECTORS) >= 180


FRAMED = [  # an LF cannot stand inside an LF-terminated message
    pytest.param(vector, framing, id=f"{vector['name']}-{framing.name}")
    for vector in VECTORS
    for framing in Framing
    if framing != Framing.LF or b"\n" not in _raw(vector)
]


@pytest.mark.parametrize(("vector", "framing"), FRAMED)
def test_a_message_becomes_exactly_this_line(decode: Decode, vector: dict[str, Any], framing: Framing) -> None:
    """Every byte of the line is fixed: receivers parse it, and a replay must give the same again."""
    raw = _raw(vector)
    payload = octet_counted(raw + b"\n") if framing == Framing.OCTET_COUNTED else raw + b"\n"
    body = one_section(payload, framing=framing, flags=Flags(vector.get("flags", 0)))
    batch = decode(_settings(vector), body, **_arguments(vector))
    assert json.loads(batch.ndjson) == vector["expected"]
    assert batch.ndjson == orjson.dumps(vector["expected"]) + b"\n"


def test_all_vectors_in_one_body_give_the_lines_they_give_alone(decode: Decode) -> None:
    """Neighbours must not leak into each other through memos and reused tables."""
    plain = [v for v in VECTORS if not {"timezone", "keep_original", "flags"} & v.keys()]
    plain = [v for v in plain if v["received_at"] == plain[0]["received_at"]]
    body = body_of([octet_counted(_raw(v) + b"\n") for v in plain], framing=Framing.OCTET_COUNTED)
    batch = decode(_settings(plain[0]), body, **_arguments(plain[0]))
    for offset, (line, vector) in enumerate(zip(batch.lines(), plain, strict=True)):
        expected = vector["expected"]
        event = {**expected["event"], "sequence": SEQUENCE + offset, "id": json.loads(line)["event"]["id"]}
        assert json.loads(line) == {**expected, "event": event}


def test_the_arrays_say_what_the_lines_say(decode: Decode) -> None:
    """Outputs route and key by the arrays and never look into the lines."""
    plain = [v for v in VECTORS if not {"timezone", "keep_original", "flags"} & v.keys()]
    body = body_of([octet_counted(_raw(v) + b"\n") for v in plain], framing=Framing.OCTET_COUNTED)
    batch = decode(_settings(plain[0]), body, **_arguments(plain[0]))
    assert len(batch) == len(plain) == len(batch.priorities) == len(batch.keys) == len(batch.origins)
    assert sum(batch.lengths) == len(batch.ndjson)
    for index, line in enumerate(batch.lines()):
        event = json.loads(line)
        start, length = batch.host_offsets[index], batch.host_lengths[index]
        host = json.loads(b'"' + line[start : start + length] + b'"') if start else None
        assert host == event.get("host", {}).get("hostname")
        assert batch.priorities[index] == event.get("log", {}).get("syslog", {}).get("priority", NO_PRIORITY)
        assert line.endswith(b"}\n")
        assert line.count(b"\n") == 1
