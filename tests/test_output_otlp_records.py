"""Events as log records, read back with OpenTelemetry's own protobuf code."""

from array import array
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from otlp_receiver import attributes, records

from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section, pack_body
from ndcollector.outputs.otlp_records import Encoder, flatten, nanoseconds
from tests.events import event_batch

RECEIVED_NS = 1_764_000_000_123_456_789
ORIGIN = Origin("syslog_tls", "192.0.2.7", 4711, "CN=fw-1", "0A", ("DNS:fw-1",))


def decoded(*messages: bytes) -> EventBatch:
    """Syslog messages as the codec makes events of them."""
    data = b"".join(message + b"\n" for message in messages)
    section = Section(ORIGIN, Framing.LF, Flags.NONE, len(data), len(messages))
    body = b"".join(pack_body(Batch("security_events", "syslog", RECEIVED_NS, [section], [data])))
    decoder = make_decoder(DecodeSettings(observer_name="collector-1"))
    return decoder.decode(
        body, stream="security_events", spool_id="s0", sequence=40, received_at_ns=RECEIVED_NS, replay=False
    )


def of_lines(*lines: bytes, form: str = "ecs") -> EventBatch:
    """These very lines as a batch."""
    batch = event_batch(range(len(lines)))
    return replace(batch, ndjson=b"".join(lines), lengths=array("I", map(len, lines)), format=form)


def encoded(events: EventBatch) -> ExportLogsServiceRequest:
    return ExportLogsServiceRequest.FromString(Encoder().encode(events))


def record_of(event: dict[str, Any], form: str = "ecs") -> LogRecord:
    (found,) = records(encoded(of_lines(orjson.dumps(event) + b"\n", form=form)))
    return found


def test_a_syslog_message_as_a_log_record() -> None:
    """The mapping of the Logs Data Model, Appendix A (RFC5424 Syslog), field by field."""
    message = b'<34>1 2026-11-23T22:14:15.003Z fw-1 su 77 ID47 [x@32473 a="1"] su root failed'
    request = encoded(decoded(message))
    (resource,) = request.resource_logs
    names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert names == {
        "host.name": "fw-1", "service.name": "su",
        "observer.name": "collector-1", "observer.type": "collector", "observer.product": "ndcollector",
    }  # fmt: skip
    (scope,) = resource.scope_logs
    assert (scope.scope.name, scope.scope.attributes[0].value.string_value) == ("ndcollector", "security_events")
    (record,) = scope.log_records
    assert record.time_unix_nano == 1795472055_003_000_000
    assert record.observed_time_unix_nano == RECEIVED_NS // 1000 * 1000  # event.created has microseconds
    assert (record.severity_number, record.severity_text) == (18, "critical")
    assert record.body.string_value == "su root failed"
    assert not record.trace_id
    assert not record.span_id
    found = attributes(record)
    assert found["log.record.uid"] == "s0-14"
    assert found["event.sequence"] == 40
    assert found["log.syslog.facility.name"] == "auth"
    assert found["process.pid"] == 77
    assert found["source.ip"] == "192.0.2.7"
    assert {"@timestamp", "message", "event.id", "event.created", "host.name"}.isdisjoint(found)


@pytest.mark.parametrize(
    ("severity", "number", "text"),
    [(0, 21, "emergency"), (1, 19, "alert"), (2, 18, "critical"), (3, 17, "error"), (4, 13, "warning"),
     (5, 10, "notice"), (6, 9, "informational"), (7, 5, "debug")],
)  # fmt: skip
def test_severities_are_those_of_appendix_b(severity: int, number: int, text: str) -> None:
    """Written out: a table in the test that is computed from the table in the code proves nothing."""
    (record,) = records(encoded(decoded(b"<%d>1 - - - - - - x" % (8 + severity))))
    assert (record.severity_number, record.severity_text) == (number, text)


def test_structured_data_stays_a_map() -> None:
    """Its names are the device's, may hold dots, and are no attribute names."""
    (record,) = records(encoded(decoded(b'<34>1 - h a - - [x.y@1 a="1" a="2"] m')))
    (found,) = (pair.value for pair in record.attributes if pair.key == "log.syslog.structured_data")
    (element,) = found.kvlist_value.values
    assert element.key == "x.y@1"
    (parameter,) = element.value.kvlist_value.values
    assert [item.string_value for item in parameter.value.array_value.values] == ["1", "2"]


def test_events_are_grouped_by_where_they_come_from_and_keep_their_order() -> None:
    """Host, program and observer stand once; an event without host has a resource without."""
    request = encoded(decoded(*[b"<34>1 - %b app - - - %d" % (b"-ab"[n % 3 : n % 3 + 1], n) for n in range(9)]))
    hosts = [
        {pair.key: pair.value.string_value for pair in one.resource.attributes}.get("host.name")
        for one in request.resource_logs
    ]
    assert hosts == [None, "a", "b"]
    bodies = [[r.body.string_value for r in one.scope_logs[0].log_records] for one in request.resource_logs]
    assert bodies == [["0", "3", "6"], ["1", "4", "7"], ["2", "5", "8"]]


def test_nothing_of_an_event_is_left_out() -> None:
    """Every leaf is somewhere, in the type it had."""
    event = {
        "a": {"text": "x", "yes": True, "no": False, "one": 1, "half": 0.5, "none": None, "empty": {}, "list": [1, ""]},
        "tags": ["_parse_failure"], "error": {"message": "bad"}, "event": {"id": "i", "original": "raw"},
    }  # fmt: skip
    record = record_of(event)
    found = {pair.key: pair.value for pair in record.attributes}
    assert found["a.yes"].bool_value is True
    assert found["a.no"].WhichOneof("value") == "bool_value"
    assert found["a.one"].int_value == 1
    assert found["a.half"].double_value == 0.5
    assert found["a.none"].WhichOneof("value") is None
    assert found["a.empty"].WhichOneof("value") == "kvlist_value"
    assert [item.WhichOneof("value") for item in found["a.list"].array_value.values] == ["int_value", "string_value"]
    assert found["log.record.original"].string_value == "raw"
    assert found["error.message"].string_value == "bad"


def test_true_and_one_are_not_remembered_as_the_same() -> None:
    """They are equal in Python, and so are 1 and 1.0."""
    lines = [orjson.dumps({"v": value}) + b"\n" for value in (1, True, 1.0, "1", 1, True, 1.0, "1")]
    kinds = [r.attributes[0].value.WhichOneof("value") for r in records(encoded(of_lines(*lines)))]
    assert kinds == ["int_value", "bool_value", "double_value", "string_value"] * 2


def test_names_are_unique_whatever_an_agent_sends() -> None:
    """The specification demands it, and backends keep one of two at will."""
    assert flatten({"a.b": 1, "a": {"b": 2}}) == {"a.b": [1, 2]}
    record = record_of({"a.b": 1, "a": {"b": 2, "c": 3}})
    assert sorted(pair.key for pair in record.attributes) == ["a.b", "a.c"]


def test_a_flat_event_is_the_same_record_as_a_nested_one() -> None:
    """`format: flat` has the dotted names already."""
    nested = {"@timestamp": "2026-01-01T00:00:00Z", "message": "m", "event": {"id": "i"}, "host": {"name": "h"}}
    flat = {"@timestamp": "2026-01-01T00:00:00Z", "message": "m", "event.id": "i", "host.name": "h"}
    assert record_of(nested) == record_of(flat, "flat")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-23T22:14:15Z", 1795472055_000_000_000),
        ("2026-11-23T22:14:15.000000001Z", 1795472055_000_000_001),
        ("2026-11-23T23:14:15.5+01:00", 1795472055_500_000_000),
        ("1969-12-31T23:59:59Z", None),
        ("2026-11-23T22:14:15", None),
        ("2026-11-23T22:14:15.0000000001Z", None),
        ("2026-11-23T22:14:15.Z", None),
        ("2026-02-30T00:00:00Z", None),
        ("2026-11-23T22:14:15.٣Z", None),
        ("", None),
        (7, None),
    ],
)
def test_times(text: object, expected: int | None) -> None:
    """Nanoseconds as sent; what has no such number is none."""
    assert nanoseconds(text) == expected


def test_a_time_that_cannot_be_told_stays_as_it_is() -> None:
    """Zero is "unknown" to a receiver; the text is evidence."""
    record = record_of({"@timestamp": "yesterday", "event": {"created": "1900-01-01T00:00:00Z"}})
    assert record.time_unix_nano == record.observed_time_unix_nano == 0
    assert attributes(record) == {"@timestamp": "yesterday", "event.created": "1900-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    "line",
    [b'{"message":"\\ud800"}\n', b'{"a":' * 60 + b"1" + b"}" * 60 + b"\n", b'{"a":' + b"[" * 60 + b"]" * 60 + b"}\n"],
    ids=["half a surrogate pair", "deep maps", "deep lists"],
)
def test_a_line_that_has_no_form_goes_as_it_is(line: bytes) -> None:
    """It is somebody's event, and it must not hold up the others."""
    first, second = records(encoded(of_lines(line, b'{"message":"next"}\n')))
    assert first.body.string_value == line.decode()[:-1]
    assert second.body.string_value == "next"


def test_text_formats_are_the_body_with_what_is_known_beside() -> None:
    """CEF, LEEF, the message as it came: the line, whatever its bytes, its severity, its sequence."""
    events = decoded(b"<34>1 - h a - - - one", b"two")
    lines = [b"CEF:0|a|b|c|1|n|1|\n", b"\xff raw\n"]
    text = replace(events, ndjson=b"".join(lines), lengths=array("I", map(len, lines)), format="cef")
    first, second = records(encoded(text))
    assert first.body.string_value == "CEF:0|a|b|c|1|n|1|"
    assert second.body.bytes_value == b"\xff raw"
    assert (first.severity_number, second.severity_number) == (18, 0)
    assert first.observed_time_unix_nano == RECEIVED_NS
    assert attributes(first) == {"event.sequence": 40, "source.address": "192.0.2.7"}


def test_what_is_remembered_is_bounded() -> None:
    """Values that never come again must not fill the memory, nor must names."""
    encoder = Encoder()
    for start in range(0, 60_000, 5000):
        lines = [b'{"k%d":"%d","n":%d}\n' % (number, number, number) for number in range(start, start + 5000)]
        encoder.encode(of_lines(*lines))
    assert encoder._held <= 16384
    assert _remembered(encoder._names.values()) <= 16384


def _remembered(names: Iterable[Any]) -> int:
    return sum(1 + len(name.values) + _remembered(name.below.values()) for name in names)


_TEXTS = st.text(max_size=3) | st.just("2026-01-01T00:00:00Z")
_LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(0, 1) | _TEXTS
_NAMES = st.sampled_from(
    ["event", "id", "original", "created", "host", "name", "service", "observer", "type", "log", "record", "uid",
     "syslog", "appname", "severity", "code", "structured_data", "message", "@timestamp", "x"]
)  # fmt: skip
_EVENTS = st.dictionaries(
    _NAMES,
    st.recursive(_LEAVES, lambda inner: st.dictionaries(_NAMES, inner, max_size=3) | st.lists(inner, max_size=2)),
    max_size=5,
)


@given(_EVENTS)
def test_the_short_way_and_the_long_way_make_the_same_record(event: dict[str, Any]) -> None:
    """By shape, or by dotted names: a name with a dot, which nobody else has, forces the second."""
    line, forced = orjson.dumps(event), orjson.dumps({**event, "for.ced": 1})
    short, long = (encoded(of_lines(text + b"\n")).resource_logs[0] for text in (line, forced))
    assert short.resource == long.resource
    first, second = (one.scope_logs[0].log_records[0] for one in (short, long))
    bodies = []
    for record in (first, second):
        found = sorted(pair.SerializeToString() for pair in record.attributes if pair.key != "for.ced")
        del record.attributes[:]
        bodies.append((record, found))
    assert bodies[0] == bodies[1]
