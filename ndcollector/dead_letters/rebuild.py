"""Dead letters to what an output can be given: the same bytes, with the arrays that outputs slice by.

Promises: an event's line is byte for byte what was refused; a batch has one stream and one spool, ascending sequences,
and `replay` set, so that no output takes it for a repeat; a record that could not be decoded is decoded anew.
Refuses: I/O.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from ndagent.core.decoding import Decoded, decode_all
from ndagent.core.spool import Record
from ndagent.wire.codec import Decoder
from ndagent.wire.ecs import MAX_HOST_BYTES, partition_key
from ndagent.wire.ecs_lines import priority_of
from ndagent.wire.record import EventBatch, Origin
from ndcollector.dead_letters.letters import Letter


class Rebuilt(NamedTuple):
    """Something to send, or an Undecodable, and the letters that it came from."""

    decoded: Decoded
    letters: Sequence[Letter]


def rebuild(letters: Sequence[Letter], decoder: Decoder) -> list[Rebuilt]:
    """Everything in these letters, in their order; runs in any thread."""
    found: list[Rebuilt] = []
    for run in _runs(letters):
        if run[0].event is None:
            (decoded,) = decode_all(decoder, run[0].head["stream"], [_record(run[0])], replay=True)
            found.append(Rebuilt(decoded, run))
        else:
            found.append(Rebuilt(_batch(run), run))
    return found


def _runs(letters: Sequence[Letter]) -> Iterator[list[Letter]]:
    run: list[Letter] = []
    for letter in letters:
        if run and not _follows(run[-1], letter):
            yield run
            run = []
        run.append(letter)
    if run:
        yield run


def _follows(before: Letter, letter: Letter) -> bool:
    same = all(before.head[key] == letter.head[key] for key in ("stream", "spool_id"))
    same = same and before.is_routed == letter.is_routed
    return same and None not in (before.event, letter.event) and letter.head["sequence"] > before.head["sequence"]


def _record(letter: Letter) -> Record:
    head = letter.head
    received = head.get("received_at_ns")
    return Record(
        head["sequence"],
        letter.events,
        received if type(received) is int else _time_ns(letter),
        letter.body,
        head["spool_id"],
    )


def _time_ns(letter: Letter) -> int:
    try:
        return int(datetime.fromisoformat(letter.head["time"]).timestamp() * 1e9)
    except ValueError:
        return 0


def _batch(run: Sequence[Letter]) -> EventBatch:
    lines = [letter.event_line for letter in run]
    known: dict[str, int] = {}
    names = [str(letter.head.get("origin", "")) for letter in run]
    events = [letter.event or {} for letter in run]
    hosts = [_host_of(event) for event in events]
    named = [None if "host.hostname" in event else host for event, host in zip(events, hosts, strict=True)]
    places = [_place(line, host) for line, host in zip(lines, named, strict=True)]
    origins = array("I", [known.setdefault(name, len(known)) for name in names])
    head = run[0].head
    return EventBatch(
        stream=head["stream"],
        spool_id=head["spool_id"],
        sequences=[letter.head["sequence"] for letter in run],
        received_at_ns=min(map(_time_ns, run)),
        ndjson=b"".join(lines),
        lengths=array("I", map(len, lines)),
        priorities=bytes(map(priority_of, events)),
        host_offsets=array("I", [offset for offset, _ in places]),
        host_lengths=array("H", [length for _, length in places]),
        keys=array("I", map(_key, events, hosts, names)),
        origins=origins,
        origin_blobs=tuple(Origin("dead_letters", name, 0).packed for name in known),
        replay=True,
    )


def _member(event: Mapping[str, Any], *names: str) -> Any:
    found: Any = event
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _host_of(event: Mapping[str, Any]) -> str | None:
    name = _member(event, "host", "hostname") or _member(event, "host", "name")
    return name if isinstance(name, str) and name else None


def _place(line: bytes, host: str | None) -> tuple[int, int]:
    """Where the host's text stands in the line (any place with this text will do); 0, 0 where it does not."""
    if host is None:
        return 0, 0
    text = orjson.dumps(host)
    offset = line.find(text) + 1
    return (offset, len(text) - 2) if offset and len(text) - 2 <= MAX_HOST_BYTES else (0, 0)


def _key(event: Mapping[str, Any], host: str | None, origin: str) -> int:
    address = _member(event, "log", "source", "ip") or _member(event, "source", "ip")
    text = host or (address if isinstance(address, str) and address else origin)
    return partition_key(text.encode("utf-8", "replace"))
