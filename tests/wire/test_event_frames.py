"""Events in frames: the id and time of the event itself, whatever stands inside it, and both twins the same bytes."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from importlib import import_module
from typing import Any

import orjson
import pytest
from decode_twins import NOON_NS, ORIGIN, PURE_ONLY, messages_body, twin_decode
from hypothesis import example, given
from hypothesis import strategies as st

from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.event_frames import Part, TimeSlice
from ndagent.wire.record import NO_PRIORITY, EventBatch

TWINS = ["pure"] if PURE_ONLY else ["pure", "compiled"]
FRAME = (b"<", Part.ID, b"|", TimeSlice(0, 10), b"|", TimeSlice(11, 13), b"|", Part.EPOCH, b"|", Part.HOST, b">")
WHOLE = (b'{"create":{"_id":"', Part.ID, b'"}}\n', Part.LINE, b"\n")
HOSTS = (b"192.0.2.50", b"fw")
RECEIVED = b"2024-03-15|12|1710504000.123456"


def frames(twin: str) -> Any:
    """The function of one twin."""
    return import_module("ndagent.wire.event_frames" if twin == "pure" else "ndagent.wire._codec").frame_events


@pytest.fixture(params=TWINS)
def frame_events(request: pytest.FixtureRequest) -> Any:
    """One twin after the other."""
    return frames(request.param)


def events_of(lines: Sequence[bytes]) -> EventBatch:
    """These lines, from two origins in turn; hosts are not looked at."""
    count = len(lines)
    return EventBatch(
        stream="security_events",
        spool_id="spool",
        sequences=range(1000, 1000 + count),
        received_at_ns=NOON_NS,
        ndjson=b"".join(line + b"\n" for line in lines),
        lengths=array("I", [len(line) + 1 for line in lines]),
        priorities=bytes([NO_PRIORITY]) * count,
        host_offsets=array("I", [0]) * count,
        host_lengths=array("H", [0]) * count,
        keys=array("I", [0]) * count,
        origins=array("I", [index % 2 for index in range(count)]),
        origin_blobs=(b"one", b"two"),
    )


def framed(frame_events: Any, line: bytes) -> bytes:
    """One line in FRAME, without its host."""
    found: bytes = frame_events(events_of([line]), FRAME, hosts=HOSTS)
    return found.removeprefix(b"<").removesuffix(b"|192.0.2.50>")


CASES = {
    "as the decoder writes it": (
        b'{"@timestamp":"2026-11-25T10:00:00.25Z","message":"x","event":{"id":"a-1","kind":"event"}}',
        b"a-1|2026-11-25|10|1795600800.25",
    ),
    "without a fraction": (
        b'{"@timestamp":"2024-02-29T23:59:59Z","event":{"kind":"event","id":"a-1"}}',
        b"a-1|2024-02-29|23|1709251199",
    ),
    "an id inside structured data is not the event's": (
        b'{"@timestamp":"2026-11-25T10:00:00Z","structured_data":{"event":{"id":"forged"}},"event":{"id":"a-1"}}',
        b"a-1|2026-11-25|10|1795600800",
    ),
    "nor one in a list or a string": (
        b'{"x":[{"event":{"id":"f"}},"\\",\\"event\\":{\\"id\\":\\"f\\""],"@timestamp":"2026-11-25T10:00:00Z",%b'
        % b'"event":{"a":{"id":"f"},"id":"a-1"}}',
        b"a-1|2026-11-25|10|1795600800",
    ),
    "flat keys": (
        b'{"@timestamp":"2026-11-25T10:00:00Z","event.kind":"event","event.id":"a-1"}',
        b"a-1|2026-11-25|10|1795600800",
    ),
    "white space": (
        b'{ "@timestamp" : "2026-11-25T10:00:00Z", "event": {"id" : "a-1"} }',
        b"a-1|2026-11-25|10|1795600800",
    ),
    "escapes in names and values": (
        b'{"@timestam\\u0070":"2026-11-25T10:00:00Z","event":{"\\u0069d":"a\\u002d1\\n\\u00e9"}}',
        b"a-1\\n\xc3\xa9|2026-11-25|10|1795600800",
    ),
    "an offset": (
        b'{"@timestamp":"2026-11-25T12:00:00+02:00","event":{"id":"a-1"}}',
        b"a-1|2026-11-25|10|1795600800.000000",
    ),
    "before 1970 the receive time is the epoch's": (
        b'{"@timestamp":"1969-12-31T23:59:59Z","event":{"id":"a-1"}}',
        b"a-1|1969-12-31|23|1710504000.123456",
    ),
    "twice: as orjson, the last": (
        b'{"@timestamp":"2026-11-25T10:00:00Z","event":{"id":"a-0"},"event":{"id":"a-1"}}',
        b"a-1|2026-11-25|10|1795600800",
    ),
    "nested before flat": (
        b'{"event.id":"a-0","@timestamp":"2026-11-25T10:00:00Z","event":{"id":"a-1"}}',
        b"a-1|2026-11-25|10|1795600800",
    ),
    "no id: its place in the spool": (b'{"@timestamp":"2026-11-25T10:00:00Z"}', b"spool-rs|2026-11-25|10|1795600800"),
    "an id that is none": (
        b'{"@timestamp":"2026-11-25T10:00:00Z","event":{"id":7}}',
        b"spool-rs|2026-11-25|10|1795600800",
    ),
    "no time: when it was received": (b'{"event":{"id":"a-1"}}', b"a-1|" + RECEIVED),
    "no instant": (b'{"@timestamp":"2026-11-25T10:00:00","event":{"id":"a-1"}}', b"a-1|" + RECEIVED),
    "no such day": (b'{"@timestamp":"2026-02-29T10:00:00Z","event":{"id":"a-1"}}', b"a-1|" + RECEIVED),
    "nothing": (b"{}", b"spool-rs|" + RECEIVED),
    "no object": (b"[1]", b"spool-rs|" + RECEIVED),
    "no JSON": (b"CEF:0|x", b"spool-rs|" + RECEIVED),
}


@pytest.mark.parametrize("name", CASES)
def test_the_fields_of_a_line(frame_events: Any, name: str) -> None:
    """Golden vectors, each through both twins."""
    line, wanted = CASES[name]
    assert framed(frame_events, line) == wanted


def test_the_event_is_copied_as_it_is_and_every_frame_is_whole(frame_events: Any) -> None:
    """A bulk body, with an odd line between two that are as ours."""
    usual = b'{"@timestamp":"2026-11-25T10:00:00Z","event":{"id":"a-%d"},"m":"\\u00e9"}'
    lines = [usual % 1, b'{"event":{"id":"b"}, "@timestamp":"2026-11-25T10:00:00Z"}', usual % 2]
    body = frame_events(events_of(lines), WHOLE, hosts=HOSTS)
    rows = body.split(b"\n")
    assert rows[1::2] == lines
    assert [orjson.loads(row)["create"]["_id"] for row in rows[:-1:2]] == ["a-1", "b", "a-2"]


def test_hosts_stand_as_they_are_in_the_line_or_are_the_origins(frame_events: Any) -> None:
    """By the arrays, which the decoder made."""
    events = events_of([b'{"h":"web-\\"1"}', b'{"h":"web-2"}', b"{}", b"{}"])
    events = replace(events, host_offsets=array("I", [6, 6, 0, 0]), host_lengths=array("H", [7, 5, 0, 0]))
    assert frame_events(events, (Part.HOST, b","), hosts=HOSTS) == b'web-\\"1,web-2,192.0.2.50,fw,'


def test_no_events(frame_events: Any) -> None:
    """An empty body, and no host is asked for."""
    assert frame_events(events_of([]), FRAME, hosts=()) == b""


def test_arrays_that_do_not_fit_are_refused(frame_events: Any) -> None:
    """Nothing outside the bytes is read."""
    events = events_of([b"{}", b"{}"])
    for wrong in (
        {"lengths": array("I", [3, 4])},
        {"lengths": array("I", [3, 2])},
        {"lengths": array("I", [6, 0])},
        {"host_offsets": array("I", [0, 2]), "host_lengths": array("H", [0, 2])},
        {"origins": array("I", [0, 2])},
        {"origins": array("I", [0])},
        {"sequences": range(3)},
    ):
        with pytest.raises(ValueError, match=r"arrays|hosts"):
            frame_events(replace(events, **wrong), FRAME, hosts=HOSTS)
    with pytest.raises(ValueError, match="every time"):
        frame_events(events, (TimeSlice(0, 20),), hosts=HOSTS)


def test_what_the_decoder_makes_is_read_without_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default path has no Python per event: the careful reading is never asked."""
    if PURE_ONLY:
        pytest.skip("ND_PURE_CODEC=1: the compiled twin may not have been built")
    messages = [
        b'<165>1 2003-10-11T22:14:15.003Z host app 1 ID47 [event id="forged"][x y="\\"z\\]"] An "odd" \\ message',
        b"<34>Oct 11 22:14:15 mymachine su: 'su root' failed",
        b"<13>1 - - - - - - no time",
        b"nothing that can be parsed \xff",
    ]
    events = twin_decode("compiled")(DecodeSettings(observer_name="collector"), messages_body(messages))
    monkeypatch.setattr("ndagent.wire.event_frames.read_fields", None)
    body = frames("compiled")(events, (Part.ID, b" "), hosts=(ORIGIN.address.encode(),))
    assert body.split() == [orjson.loads(line)["event"]["id"].encode() for line in events.lines()]


TEXT = st.text(max_size=12) | st.sampled_from(["a-1", 'q"', "\\", "\x7f", "é", "event", '"event":{"id":"x"}'])
MOMENTS = st.datetimes(datetime(1965, 1, 1), datetime(2100, 1, 1))  # noqa: DTZ001 - their text gets its Z below
TIMES = MOMENTS.map(lambda moment: moment.isoformat() + "Z") | st.sampled_from(
    ["2000-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2024-12-31T23:59:59.123456789Z", "2024-01-01T24:00:00Z", "now"]
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.just("id"), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["@timestamp", "event", "event.id", "message", "log", ""]) | TEXT
DOCUMENTS = st.dictionaries(NAMES, JUNK, max_size=6).flatmap(
    lambda junk: st.fixed_dictionaries(
        {},
        optional={
            "@timestamp": TIMES,
            "event": st.fixed_dictionaries({}, optional={"kind": JUNK, "id": TEXT, "x": JUNK}),
            "event.id": TEXT,
        },
    ).map(lambda known: {**junk, **known})
)


@pytest.mark.skipif(PURE_ONLY, reason="ND_PURE_CODEC=1: the compiled twin may not have been built")
@given(st.lists(st.tuples(DOCUMENTS, st.randoms(use_true_random=False), st.booleans()), max_size=4))
@example([])
def test_the_twins_agree(drawn: list[tuple[dict[str, Any], Any, bool]]) -> None:
    """Whatever JSON the lines are, in whatever order and with or without white space."""
    lines = []
    for document, order, pretty in drawn:
        items = list(document.items())
        order.shuffle(items)
        line = orjson.dumps(dict(items))
        lines.append(line.replace(b'":', b'" : ') if pretty and b"\\" not in line else line)
    events = events_of(lines)
    for frame in (FRAME, WHOLE):
        assert frames("compiled")(events, frame, hosts=HOSTS) == frames("pure")(events, frame, hosts=HOSTS)
