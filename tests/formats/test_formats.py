"""Events in other forms: what each looks like, and that any event, whoever wrote it, becomes exactly one line."""

from dataclasses import fields, replace
from typing import Any, Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section, pack_body
from ndcollector.formats import FormatConfig, formatter
from tests.formats.readers import read_cef, read_leef

RECEIVED_NS = 1_700_000_000 * 10**9
ORIGIN = Origin("syslog_tls", "192.0.2.7", 40000, "CN=fw-1", "AB")
MESSAGE = (
    b"<165>1 2025-11-23T14:39:07.123456789+01:00 fw-1.example.net sshd 812 ID47 "
    b'[x@1 k="a" k="b"][y@1 q="1\\"\\]\\\\2"] '
    b"Gr\xc3\xbc\xc3\x9fe: a=b|c\\d"
)


def decoded(*messages: bytes, keep: str = "always", settings: DecodeSettings | None = None) -> EventBatch:
    """As the collector hands events to an output."""
    payload = b"".join(b"%d %b" % (len(one), one) for one in messages)
    section = Section(ORIGIN, Framing.OCTET_COUNTED, Flags.NONE, len(payload), len(messages))
    body = b"".join(pack_body(Batch("security_events", "syslog", RECEIVED_NS, [section], [payload])))
    decoder = make_decoder(settings or DecodeSettings("c1", keep_original=keep))
    return decoder.decode(
        body, stream="security_events", spool_id="s", sequence=35, received_at_ns=RECEIVED_NS, replay=False
    )


def with_events(*events: Any) -> EventBatch:
    """A batch of these, as an agent may have written them."""
    return replace_lines(decoded(*[b"x"] * len(events)), [orjson.dumps(one) + b"\n" for one in events])


def replace_lines(batch: EventBatch, lines: list[bytes]) -> EventBatch:
    lengths = type(batch.lengths)("I", map(len, lines))
    return replace(batch, ndjson=b"".join(lines), lengths=lengths)


def shown(batch: EventBatch, **config: Any) -> list[bytes]:
    """The lines without their LFs; each has one, at its end."""
    made = formatter(FormatConfig(**config))
    assert made is not None
    result = made(batch)
    assert sum(result.lengths) == len(result.ndjson)
    assert [line.count(b"\n") for line in result.lines()] == [1] * len(batch)
    assert all(line.endswith(b"\n") for line in result.lines())
    return [line[:-1] for line in result.lines()]


def one(event: Any, **config: Any) -> str:
    (line,) = shown(with_events(event), **config)
    return line.decode()


# ---- what each looks like ----


def test_ecs_is_left_alone() -> None:
    """The default costs nothing: there is no formatter."""
    assert formatter(FormatConfig()) is None


def test_flat_json() -> None:
    """Objects and lists that hold objects are taken apart, plain lists stay, empty objects go."""
    event = {"host": {"name": "a", "os": {}}, "tags": ["x", 1], "file": [{"path": "/b"}, {"path": "/c"}], "n": None}
    flat = orjson.loads(one(event, name="flat"))
    assert flat == {"host.name": "a", "tags": ["x", 1], "file.0.path": "/b", "file.1.path": "/c", "n": None}
    assert orjson.loads(one({"a": {"b": 1}}, name="flat", separator="_")) == {"a_b": 1}


@pytest.mark.parametrize("separator", [".", "_"])
@pytest.mark.parametrize("is_first", [True, False])
def test_no_dotted_key_takes_the_place_of_a_nested_field(separator: str, is_first: bool) -> None:
    """What the collector writes is nested; a sender who spells it with dots writes over nothing, wherever it stands."""
    event = {"event": {"id": "ours"}, "log": {"syslog": {"priority": 13}}}
    forged = {"event.id": "theirs", "log.syslog": {"priority": 0}, "a.b": {"c.d": 1}}
    flat = orjson.loads(one({**forged, **event} if is_first else {**event, **forged}, name="flat", separator=separator))
    names = {"event.id": "ours", "log.syslog.priority": 13, "a.b.c.d": 1}
    assert flat == {name.replace(".", separator): value for name, value in names.items()}


def test_flat_json_of_great_depth_is_bounded() -> None:
    """A key repeats its path: without a limit a small event would become a very large one."""
    deep: Any = "leaf"
    for _ in range(200):
        deep = {"a" * 50: deep}
    line = one(deep, name="flat")
    assert len(line) < 4 * len(orjson.dumps(deep))
    assert "leaf" in line


def test_flat_json_knows_where_its_host_is() -> None:
    """Kafka takes its record's key from there."""
    made = formatter(FormatConfig(name="flat"))
    assert made is not None
    hosts = ["fw-1", 'a"b\\', "\\\\", ""]
    batch = made(with_events(*[{"message": '"host.hostname":"no', "host": {"hostname": host}} for host in hosts]))
    found = zip(batch.lines(), batch.host_offsets, batch.host_lengths, strict=True)
    assert [orjson.loads(b'"' + line[at : at + length] + b'"') for line, at, length in found] == hosts
    assert list(made(with_events({"message": '"host.hostname":"no'})).host_offsets) == [0]


def test_cef() -> None:
    """A syslog message, every part of it."""
    (line,) = shown(decoded(MESSAGE), name="cef", version="1.0")
    assert line.decode() == (
        "CEF:0|Neurodefender|ndcollector|1.0|ID47|sshd|3|rt=1763905147123 externalId=s-z dvchost=fw-1.example.net "
        "deviceProcessName=sshd deviceFacility=local4 dvcpid=812 dvc=192.0.2.7 cs1=ID47 cs1Label=log.syslog.msgid "
        'cs2={"x@1":{"k":["a","b"]},"y@1":{"q":"1\\\\"]\\\\\\\\2"}} cs2Label=log.syslog.structured_data '
        "cs4=CN\\=fw-1 cs4Label=tls.client.subject cn1=35 cn1Label=event.sequence msg=Grüße: a\\=b|c\\\\d"
    )


def test_cef_of_an_agents_event() -> None:
    """Traffic's addresses, users and files have keys of their own; IPv6 has its own fields."""
    event = {
        "@timestamp": "2026-01-02T03:04:05Z",
        "message": "two\nlines",
        "event": {
            "code": "46|25\\",
            "action": "log=on",
            "category": ["authentication", "session"],
            "outcome": "failure",
        },
        "log": {"level": "WARN"},
        "source": {"ip": "2001:db8::1", "port": 4444},
        "destination": {"ip": "192.0.2.9", "port": 22},
        "user": {"name": "root", "id": "0"},
        "network": {"transport": "tcp"},
        "host": {"ip": ["192.0.2.1", "192.0.2.2"]},
    }
    header, extension = read_cef(one(event, name="cef", vendor="V", product="P", version="1"))
    assert header == ["0", "V", "P", "1", "46|25\\", "log=on", "5"]
    assert extension == {
        "rt": "1767323045000", "cat": "authentication,session", "act": "log=on", "outcome": "failure",
        "duser": "root", "duid": "0", "proto": "tcp", "dpt": "22", "dvc": "192.0.2.1", "c6a2": "2001:db8::1",
        "c6a2Label": "Source IPv6 Address", "spt": "4444", "dst": "192.0.2.9", "msg": "two\nlines",
    }  # fmt: skip


ASA = (
    b"<164>fw-1 %ASA-4-106023: Deny tcp src outside:192.0.2.66/4444 dst inside:10.0.0.1/22 by access-group "
    b'"acl" [0x0, 0x0]'
)


@pytest.mark.parametrize("device_fields", ["added", "elastic"])
def test_traffic_that_a_device_tells_of(device_fields: Literal["added", "elastic"]) -> None:
    """CEF and LEEF have one place for each end: there the traffic's stand, the device has its own."""
    batch = decoded(ASA, settings=DecodeSettings("c1", devices=("cisco_asa",), device_fields=device_fields))
    (line,) = shown(batch, name="cef")
    header, extension = read_cef(line.decode())
    assert header[4:6] == ["106023", "firewall-rule"]
    expected = {"dvc": "192.0.2.7", "src": "192.0.2.66", "spt": "4444", "dst": "10.0.0.1", "dpt": "22", "proto": "tcp"}
    assert expected.items() <= extension.items()
    (line,) = shown(batch, name="leef", delimiter="^")
    _, attributes = read_leef(line.decode())
    assert {"src": "192.0.2.66", "srcPort": "4444", "dst": "10.0.0.1", "dstPort": "22"}.items() <= attributes.items()


def test_cef_lengths_are_the_dictionarys() -> None:
    """Cut in characters, before they are escaped: an escape is never cut in two."""
    event = {"message": "=" * 5000, "event": {"id": "i" * 99, "action": "\\" * 99}, "host": {"hostname": "ü" * 999}}
    _, extension = read_cef(one(event, name="cef"))
    lengths = {"msg": 1023, "externalId": 40, "act": 63, "dvchost": 100}
    assert {key: len(extension[key]) for key in lengths} == lengths
    assert len(read_cef(one(event, name="cef", message_length=4000))[1]["msg"]) == 4000


@pytest.mark.parametrize(("code", "expected"), enumerate(["10", "9", "8", "7", "5", "3", "2", "1"]))
def test_severities_of_cef_and_leef(code: int, expected: str) -> None:
    """Emergency is the highest, debug the lowest."""
    event = {"log": {"syslog": {"severity": {"code": code}}}}
    assert read_cef(one(event, name="cef"))[0][6] == expected
    assert read_leef(one(event, name="leef"))[1]["sev"] == expected


def test_a_severity_nobody_named_is_not_invented() -> None:
    """CEF has a word for it, LEEF leaves it out."""
    assert read_cef(one({"message": "x"}, name="cef"))[0][6] == "Unknown"
    assert "sev" not in read_leef(one({"message": "x"}, name="leef"))[1]


def test_leef() -> None:
    """A syslog message, every part of it."""
    (line,) = shown(decoded(MESSAGE), name="leef", version="1.0")
    header, attributes = read_leef(line.decode())
    assert header == ["2.0", "Neurodefender", "ndcollector", "1.0", "ID47"]
    assert line.startswith(b"LEEF:2.0|Neurodefender|ndcollector|1.0|ID47|x09|devTime=")
    assert attributes == {
        "devTime": "Nov 23 2025 13:39:07.123 UTC", "devTimeFormat": "MMM dd yyyy HH:mm:ss.SSS zzz", "sev": "3",
        "src": "192.0.2.7", "identHostName": "fw-1.example.net", "process": "sshd", "pid": "812", "facility": "local4",
        "msgid": "ID47", "structuredData": '{"x@1":{"k":["a","b"]},"y@1":{"q":"1\\"]\\\\2"}}',
        "tlsSubject": "CN=fw-1", "eventId": "s-z", "msg": "Grüße: a=b|c\\d",
    }  # fmt: skip


@pytest.mark.parametrize(("delimiter", "character"), [("tab", "\t"), ("^", "^")])
def test_leef_keeps_its_delimiter_out_of_values(delimiter: str, character: str) -> None:
    """LEEF has no escapes: a space stands for it, and for line breaks."""
    event = {"message": f"a{character}b\nc\rd", "event": {"code": "1|2"}}
    header, attributes = read_leef(one(event, name="leef", delimiter=delimiter))
    assert (header[-1], attributes["msg"]) == ("1 2", "a b c d")


def test_rfc5424() -> None:
    """Rebuilt: UTC, six digits, the event's id first, repeated parameters, escapes."""
    (line,) = shown(decoded(MESSAGE), name="rfc5424")
    assert line.decode() == (
        '<165>1 2025-11-23T13:39:07.123456Z fw-1.example.net sshd 812 ID47 [nd@32473 id="s-z"]'
        '[x@1 k="a" k="b"][y@1 q="1\\"\\]\\\\2"] Grüße: a=b|c\\d'
    )
    (line,) = shown(decoded(b"<13>1 - - - - - - hi"), name="rfc5424", event_id=False)
    assert line == b"<13>1 2023-11-14T22:13:20.000000Z - - - - - hi"


def test_rfc5424_of_an_agents_event() -> None:
    """Facility user, the severity that its level names, fields within their grammar."""
    event = {
        "@timestamp": "2026-01-02T03:04:05.5+02:00", "message": "two\nlines", "log": {"level": "Error"},
        "host": {"name": "my host ü"}, "process": {"name": "a" * 99, "pid": 7}, "event": {"id": "x-1", "code": 4625},
    }  # fmt: skip
    assert one(event, name="rfc5424") == (
        f'<11>1 2026-01-02T03:04:05.5+02:00 my_host__ {"a" * 48} 7 4625 [nd@32473 id="x-1"] two#012lines'
    )
    assert one({}, name="rfc5424") == "<14>1 - - - - - -"


def test_rfc5424_lets_no_sender_choose_the_id() -> None:
    """A receiver drops repeats by it: a forged one would make it drop somebody else's event."""
    (line,) = shown(decoded(b'<13>1 - h a - - [nd@32473 id="forged" x="1"] hi'), name="rfc5424")
    assert b'[nd@32473 id="s-z" relayed_id="forged" x="1"] hi' in line


def test_rfc5424_comes_back_as_it_was() -> None:
    """Our own decoder reads from the new message what it read from the first."""
    first = orjson.loads(decoded(MESSAGE).ndjson)
    (line,) = shown(decoded(MESSAGE), name="rfc5424")
    again = orjson.loads(decoded(line).ndjson)
    assert again["log"]["syslog"]["structured_data"].pop("nd@32473") == {"id": "s-z"}
    assert again["log"] == first["log"]
    for key in ("message", "host", "process"):
        assert again[key] == first[key]


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE,
        b"<13>Jan  1 00:00:00 host app: \xff\xfe not UTF-8",
        b"no syslog at all",
        b"<999>1 broken",
        b"<13>1 - - - - - - \xef\xbb\xbfwith a BOM",
        b"<13>1 - - - - - - a NUL\0 and a tab\t",
    ],
)
def test_raw_is_what_came(message: bytes) -> None:
    """Byte for byte, whatever it is."""
    assert shown(decoded(message), name="raw") == [message]


def test_raw_shows_a_line_feed_as_rsyslog_does() -> None:
    """One inside a message must not end the line here; one at the end is a sloppy sender's."""
    assert shown(decoded(b"<13>1 - - - - - - a\nb\n"), name="raw") == [b"<13>1 - - - - - - a#012b"]


def test_raw_rebuilds_what_was_not_kept_and_what_never_was_syslog() -> None:
    """An agent's event has the line of a file or a journal for its original, which no receiver of syslog can read."""
    assert shown(decoded(MESSAGE, keep="never"), name="raw") == shown(decoded(MESSAGE), name="rfc5424")
    agents = {"agent": {"id": "a"}, "message": "m", "event": {"original": "<xml/>"}}
    assert one(agents, name="raw") == "<14>1 - - - - - - m"
    relayed = {"agent": {"id": "a"}, "event": {"original": "<13>x"}, "log": {"syslog": {}}}
    assert one(relayed, name="raw") == "<13>x"
    broken = {"event": {"original": "<13>text", "original_base64": "%%%"}}
    assert one(broken, name="raw") == "<13>text"


def test_a_syslog_header_in_front() -> None:
    """For receivers of syslog; the batch then says what its lines are."""
    event = {"@timestamp": "2026-01-02T03:04:05Z", "message": "m", "host": {"hostname": "h"}}
    assert one(event, name="cef", syslog_header="rfc3164").startswith("<14>Jan  2 03:04:05 h CEF:0|")
    line = one(event, name="ecs", syslog_header="rfc5424")
    assert line == "<14>1 2026-01-02T03:04:05Z h - - - - " + orjson.dumps(event).decode()
    made = formatter(FormatConfig(name="ecs", syslog_header="rfc5424"))
    assert made is not None
    assert made(with_events(event)).format == "rfc5424"


@pytest.mark.parametrize("name", ["raw", "rfc5424"])
def test_a_second_header_is_refused(name: str) -> None:
    """They have one."""
    with pytest.raises(ValidationError, match="leave it out"):
        FormatConfig(name=name, syslog_header="rfc5424")


# ---- any event ----

KEYS = st.text(max_size=5) | st.sampled_from(
    ["@timestamp", "message", "host", "hostname", "name", "ip", "log", "syslog", "priority", "severity", "facility",
     "code", "level", "structured_data", "msgid", "procid", "event", "id", "original", "original_base64", "action",
     "sequence", "source", "port", "agent", "tags", "process", "pid", "user", "x@1", '=]"', "nd@32473"]
)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20) | st.sampled_from(["2026-01-02T03:04:05.123Z", "9999-99-99T99:99:99Z", "192.0.2.1", "::1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
EVENTS = st.lists(st.dictionaries(KEYS, VALUES, max_size=6), min_size=1, max_size=3)
FORMATS = st.sampled_from(
    [
        FormatConfig(name="flat"),
        FormatConfig(name="cef"),
        FormatConfig(name="leef"),
        FormatConfig(name="leef", delimiter="^"),
        FormatConfig(name="raw"),
        FormatConfig(name="rfc5424"),
        FormatConfig(name="cef", syslog_header="rfc3164"),
        FormatConfig(name="ecs", syslog_header="rfc5424"),
    ]
)
SAME = {"ndjson", "lengths", "host_offsets", "host_lengths", "format", "are_origins_own"}


@given(events=EVENTS, config=FORMATS)
def test_any_event_becomes_one_line_and_its_arrays_stay(events: list[dict[str, Any]], config: FormatConfig) -> None:
    """Fields of any type, in any place: never an exception, never a second line."""
    batch = with_events(*events)
    shown(batch, **config.model_dump())
    made = formatter(config)
    assert made is not None
    result = made(batch)
    assert {f.name for f in fields(EventBatch) if getattr(result, f.name) != getattr(batch, f.name)} <= SAME
    assert made(batch) == result, "a pure function"


PLAIN = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(message=PLAIN, action=PLAIN, host=PLAIN, code=PLAIN)
def test_cef_gives_back_every_character(message: str, action: str, host: str, code: str) -> None:
    """Read by the specification, with any text in every place."""
    event = {"message": message, "event": {"action": action, "code": code}, "host": {"hostname": host}}
    header, extension = read_cef(one(event, name="cef"))
    spaces = str.maketrans("\n\r", "  ")
    assert header[4:6] == [code.translate(spaces), action.translate(spaces)]
    assert (extension["msg"], extension["act"], extension["dvchost"]) == (message, action, host)


@given(message=PLAIN, action=PLAIN, delimiter=st.sampled_from([("tab", "\t"), ("^", "^")]))
def test_leef_gives_back_every_character_but_its_delimiter(
    message: str, action: str, delimiter: tuple[str, str]
) -> None:
    """Which is a space, as line breaks are."""
    name, character = delimiter
    event = {"message": message, "event": {"action": action}}
    _, attributes = read_leef(one(event, name="leef", delimiter=name))
    spaces = str.maketrans(f"{character}\n\r", "   ")
    assert (attributes["msg"], attributes["action"]) == (message.translate(spaces), action.translate(spaces))


@given(
    structured=st.dictionaries(
        PLAIN, st.dictionaries(PLAIN, PLAIN | st.lists(PLAIN, max_size=2), max_size=2), max_size=2
    ),
    message=PLAIN, host=PLAIN, app=PLAIN, priority=st.integers(0, 191),
)  # fmt: skip
def test_rfc5424_is_always_one_that_our_own_decoder_reads(
    structured: dict[str, Any], message: str, host: str, app: str, priority: int
) -> None:
    """Names of any characters are made into ones, values come back whole but for line feeds."""
    syslog = {"priority": priority, "hostname": host, "appname": app, "structured_data": structured}
    line = one({"message": message, "log": {"syslog": syslog}, "event": {"id": "i-1"}}, name="rfc5424")
    again = orjson.loads(decoded(line.encode()).ndjson)
    assert "tags" not in again, again
    assert again["log"]["syslog"]["priority"] == priority
    assert again["log"]["syslog"]["structured_data"]["nd@32473"]["id"] == "i-1"
    # A BOM and what senders end messages with are no part of them to our decoder.
    assert again["message"] == message.replace("\n", "#012").removeprefix("\ufeff").rstrip("\r\0")
