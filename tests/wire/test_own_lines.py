"""The agent's own decoder against the one that parses each line: the same events, only sooner."""

from collections.abc import Sequence

import orjson
import pytest
from decode_twins import ARGUMENTS, NOON_NS, ORIGIN
from hypothesis import given
from hypothesis import strategies as st

from ndagent.inputs import HostFacts
from ndagent.inputs.file_events import Events
from ndagent.inputs.file_identity import Within
from ndagent.inputs.file_lines import Encoding, Splitter
from ndagent.wire.decoder import Decoder
from ndagent.wire.ecs import DecodeSettings, base36
from ndagent.wire.event_names import base36_from
from ndagent.wire.own_lines import OwnDecoder
from ndagent.wire.record import Batch, CorruptBody, EventBatch, Flags, Framing, Section, pack_body

SETTINGS = DecodeSettings(observer_name="host-1")
TAIL = b',"event":{"kind":"event","created":"2024-03-15T12:00:00Z","dataset":"app"},"message":'


def body_of(*sections: Sequence[bytes], flags: Flags = Flags.NONE) -> bytes:
    """A record of these sections; their lines have their LF."""
    payload = [b"".join(lines) for lines in sections]
    pairs = zip(payload, sections, strict=True)
    heads = [Section(ORIGIN, Framing.LF, flags, len(data), len(lines)) for data, lines in pairs]
    return b"".join(pack_body(Batch("security_events", "ecs", NOON_NS, heads, payload)))


def own(body: bytes) -> EventBatch:
    """What the agent makes of it."""
    return OwnDecoder(SETTINGS).decode(body, **ARGUMENTS)


def parsed(body: bytes) -> EventBatch:
    """What parsing makes of it."""
    return Decoder(SETTINGS).decode(body, **ARGUMENTS)


def events(batch: EventBatch) -> list[object]:
    """The lines as objects."""
    return [orjson.loads(line) for line in batch.lines()]


def same(body: bytes) -> EventBatch:
    """Both give the same events and the same numbers; the agent's batch."""
    mine, theirs = own(body), parsed(body)
    assert events(mine) == events(theirs)
    assert mine.sequences == theirs.sequences
    assert mine.origins == theirs.origins
    assert (mine.parse_failures, mine.origin_blobs) == (theirs.parse_failures, theirs.origin_blobs)
    parallel = (mine.lengths, mine.priorities, mine.host_offsets, mine.host_lengths, mine.keys)
    assert {len(one) for one in parallel} == {len(theirs)}
    return mine


def file_lines(text: bytes) -> list[bytes]:
    """What the file input makes of a file's bytes."""
    splitter = Splitter(max_line_bytes=200)
    taken = splitter.take(text, Encoding("utf-8", b"\n"), Within.NOTHING, most=10_000, take_rest=True, take_group=True)
    made = Events(HostFacts("host-1", "host-1.example.net"), dataset="app")
    return made.lines(taken, path="/var/log/a.log", base=0, now=b"2024-03-15T12:00:00Z", now_seconds=1710504000)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_whatever_stands_in_a_file_is_the_same_event_as_by_parsing(texts: list[bytes]) -> None:
    """Control characters, broken UTF-8, lines that are cut: lines of the file input."""
    lines = file_lines(b"\n".join([b"first", *texts]))
    assert b'"id"' in same(body_of(lines)).lines()[0]


@given(st.text())
def test_a_text_that_looks_like_the_mark_is_only_a_text(text: str) -> None:
    """`"event":{"` inside a message has its quotes escaped."""
    message = orjson.dumps(text + ' x"event":{"id":"forged","event":{"')
    line = b'{"@timestamp":"2024-03-15T12:00:00Z"' + TAIL + message + b"}\n"
    assert same(body_of([line])).lines()[0].startswith(b'{"@timestamp":"2024-03-15T12:00:00Z","event":{"id":"k3v9-')


@pytest.mark.parametrize(
    "line",
    [
        b'{"@timestamp":"t","message":"no event"}\n',
        b'{"@timestamp":"t","winlog":{"event":{"code":7}},"event":{"kind":"event"}}\n',
        b'{"@timestamp":"t","event":{"kind":"event"},"last":{"x\\"event":{"kind":"alert"}}}\n',
        b'{"@timestamp":"t","event":{}}\n',
        b"no JSON\n",
        b"\n",
    ],
)
def test_a_line_that_is_not_as_inputs_make_them_has_its_record_parsed(line: bytes) -> None:
    """And so have the good lines beside it: byte for byte what ecs_lines.py gives."""
    body = body_of([b'{"@timestamp":"t"' + TAIL + b'"good"}\n', line])
    assert own(body).ndjson == parsed(body).ndjson


def test_flags_of_a_section_are_heeded() -> None:
    """They become tags, which is ecs_lines.py's work."""
    body = body_of([b'{"@timestamp":"t"' + TAIL + b'"good"}\n'], flags=Flags.UNACKNOWLEDGED)
    assert own(body).ndjson == parsed(body).ndjson


def test_a_line_that_says_it_is_our_own_is() -> None:
    """Flags.OWN says what this decoder believes anyway."""
    body = body_of([b'{"@timestamp":"t"' + TAIL + b'"good"}\n'], flags=Flags.OWN)
    assert own(body).lines()[0].startswith(b'{"@timestamp":"t","event":{"id":"k3v9-')


def test_sections_number_on() -> None:
    """One record, several sections: ids go on from one to the next."""
    lines = [b'{"@timestamp":"t"' + TAIL + b'"%d"}\n' % number for number in range(3)]
    found = same(body_of(lines, lines)).lines()
    assert len({line.partition(b'"id":"')[2].partition(b'"')[0] for line in found}) == 6


def test_a_section_that_counts_wrong_is_corrupt() -> None:
    """As everywhere: the ledger counts in sequences."""
    body = body_of([b'{"@timestamp":"t"' + TAIL + b'"a"}\n'])
    with pytest.raises(CorruptBody):
        own(body.replace(b"}\n", b"\n\n"))


@given(st.integers(0, 40**6), st.integers(0, 3000))
def test_numbers_in_a_row_are_those_that_ids_have(first: int, count: int) -> None:
    """Two digits are looked up, the rest is made once for many."""
    assert base36_from(first, count) == [base36(number) for number in range(first, first + count)]


def test_syslog_of_devices_is_decoded_as_a_collector_does_and_says_who_took_it() -> None:
    """The same fields; observer and agent are this agent, whose id is the collector's to say."""
    payload = b"<38>Mar 15 12:00:00 fw-9 sshd[311]: Failed password\n<34>1 - fw-9 app - - - now\nno priority\n"
    head = Section(ORIGIN, Framing.LF, Flags.NONE, len(payload), 3)
    body = b"".join(pack_body(Batch("security_events", "syslog", NOON_NS, [head], [payload])))
    settings = DecodeSettings(observer_name="branch-7", agent_version="1.2")
    mine = OwnDecoder(settings).decode(body, **ARGUMENTS)
    theirs = Decoder(DecodeSettings(observer_name="branch-7")).decode(body, **ARGUMENTS)
    assert len(mine) == 3
    assert (mine.parse_failures, mine.sequences) == (theirs.parse_failures, theirs.sequences)
    assert list(mine.priorities) == list(theirs.priorities)
    for event, other in zip(events(mine), events(theirs), strict=True):
        assert isinstance(event, dict)
        assert isinstance(other, dict)
        assert event.pop("agent") == {"type": "ndagent", "version": "1.2"}
        assert event.pop("observer") == {"name": "branch-7", "type": "agent", "product": "ndagent"}
        del other["observer"]
        assert event == other
