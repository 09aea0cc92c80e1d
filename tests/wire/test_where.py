"""The expression grammar: what matches, what is refused and where, and that nothing makes it hang."""

import re
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section, pack_body
from ndagent.wire.where import Where, WhereError, compile_where
from ndagent.wire.where_parse import MAX_DEPTH, MAX_LENGTH, MAX_PATTERNS

EVENT = {
    "@timestamp": "2026-11-23T22:14:15.003Z",
    "message": "Failed password for root\nfrom 10.0.0.9",
    "host": {"hostname": "fw-berlin-1"},
    "process": {"name": "sshd", "pid": 812},
    "log": {
        "syslog": {
            "priority": 38,
            "facility": {"code": 4, "name": "auth"},
            "severity": {"code": 6, "name": "informational"},
            "procid": "812",
            "structured_data": {"origin@32473": {"ip": ["10.1.1.1", "192.168.7.7"], "my.param": "x"}},
        }
    },
    "source": {"ip": "10.2.3.4", "port": 5514},
    "observer": {"ip": "::ffff:192.0.2.7"},
    "tags": ["_truncated", "vip"],
    "event": {"duration": 1.5, "flag": True, "nothing": None},
    "threat": [{"name": "a"}, {"name": "b"}],
    "flat.name": "yes",
}

MATCHING = [
    "severity == 6", "severity == info", "severity <= informational", "severity in (debug, info)", "facility == auth",
    "facility == '4'", "host == fw-berlin-1", 'host == "fw-berlin-1"', "host.hostname == fw-berlin-1", "app == sshd",
    "stream == security_events", "origin glob nd:device:*", "process.pid == 812", 'process.pid == "812"',
    "log.syslog.procid == 812", "log.syslog.procid > 99", "process.pid > 99", "process.pid >= 812",
    "event.duration < 2", "event.duration == 1.5", "event.flag == true", "source.port != 514", "message != x",
    "tags == vip", "tags == _truncated and tags == vip", "not tags == other", "tags exists", "threat.name == b",
    "not event.nothing exists", "not nowhere exists", "nowhere != 1", "not nowhere == 1", "flat.name == yes",
    "@timestamp >= 2026-11-23T22:00", "@timestamp < 2027", "source.ip cidr 10.0.0.0/8", "observer.ip cidr 192.0.2.0/24",
    "log.syslog.structured_data.origin@32473.ip cidr 192.168.0.0/16",
    'log.syslog.structured_data.origin@32473."my.param" == x', "host glob fw-*", "host glob 'fw-????[a-i]?-[!2]'",
    "message glob 'Failed*10.0.0.?'", "message regex 'password for \\w+'", "message regex ^Failed",
    r"message regex '\d+\.\d+$'",
    "(severity == 0 or severity == 6) and not host glob test-*", "severity==6 AND NOT(app==cron)OR severity==0",
    "not not severity == 6", "  severity\n==\t6  ", "source.ip in (10.2.3.4, 10.9.9.9)",
]  # fmt: skip
OTHER = [
    "severity == 5", "severity < info", "host == FW-BERLIN-1", "host glob fw", "message glob Failed", "nowhere == 1",
    "nowhere < 1", "nowhere regex .", "event.nothing exists", "process == sshd", "process.name.x == 1", "message < 5",
    "event.flag == 1", "event.flag > 0", "tags == none", "not (tags == vip)", "source.ip cidr 10.3.0.0/16",
    "message cidr 10.0.0.0/8", "observer.ip cidr 2001:db8::/32", "stream == alerts", "severity == 6 and app == cron",
    "severity != 6", "threat.name == c", "process.pid regex 8", "host glob '[!f]*'", "message glob 'Failed.*'",
]  # fmt: skip


@pytest.mark.parametrize("text", MATCHING)
def test_these_match(text: str) -> None:
    """The grammar by example; docs/where.md promises each."""
    assert compile_where(text).matches(EVENT, stream="security_events", origin="nd:device:fw-1")


@pytest.mark.parametrize("text", OTHER)
def test_these_do_not(text: str) -> None:
    """What is near is not the same."""
    assert not compile_where(text).matches(EVENT, stream="security_events", origin="nd:device:fw-1")


REFUSED = [
    ("", 1, "expected a field"),
    ("severity = 4", 10, "write =="),
    ("severity <= 9", 13, "severity is 0 to 7"),
    ("severity == warnung", 13, "severity is 0 to 7"),
    ("facility in (auth, 24)", 20, "facility is 0 to 23"),
    ("severity regex 4", 10, "a number takes"),
    ("a == 1 b == 2", 8, "expected 'and', 'or'"),
    ("a == 1)", 7, "unexpected ')'"),
    ("(a == 1", 1, "the ')' of this '('"),
    ("(a == 1 b", 9, "the ')' of this '('"),
    ("a ==", 5, "expected a value"),
    ("a == 'x", 6, "not closed"),
    ("a in 1", 6, "expected '('"),
    ("a in (1", 8, "expected ',' or ')'"),
    ("a is 1", 3, "expected ==, !="),
    ("a", 2, "expected ==, !="),
    ("not", 4, "expected a field"),
    ("a == 1 and", 11, "expected a field"),
    ("source.ip cidr 10.0.0.1/8", 16, "host bits"),
    ("source.ip cidr here", 16, "does not appear"),
    ("message regex '(a'", 15, "missing )"),
    (r"message regex '(a)\1'", 15, "invalid escape"),
    ("message regex '(?<=a)b'", 15, "invalid perl operator"),
    (r"message regex '((\pL{900}){900}){900}'", 15, ""),
    ("host glob '[z-a]'", 11, "range"),
    ("a" + ".b" * 16 + " == 1", 1, "at most 16"),
    ("a == 1 or " * 500, MAX_LENGTH + 1, "longer than"),
    ("(" * 40 + "a == 1", MAX_DEPTH + 1, "nested"),
    ("not " * 40 + "a == 1", 4 * MAX_DEPTH + 1, "nested"),
    (" or ".join(["a glob x"] * (MAX_PATTERNS + 1)), 16 * 12 + 8, "more than 16"),
]


@pytest.mark.parametrize(("text", "column", "words"), REFUSED)
def test_a_mistake_is_named_with_its_column(text: str, column: int, words: str) -> None:
    """`where: column N: …`, so that an editor or an API client can point at it."""
    with pytest.raises(WhereError) as caught:
        compile_where(text)
    assert str(caught.value).startswith(f"where: column {column}: ")
    assert caught.value.column == column
    assert words in str(caught.value)


WORDS = st.sampled_from(
    [
        "severity", "facility", "host", "app", "origin", "stream", "message", "a.b.c", '"q.x"', "==", "!=", "<", "<=",
        ">", ">=", "=", "in", "cidr", "glob", "regex", "exists", "and", "or", "not", "(", ")", ",", "4", "warning",
        "10.0.0.0/8", "fw-*", "'x y'", "'(a|b)+'", '"', "'", "[", "\\", "é", "\0", "1e99", "-5",
    ]
)  # fmt: skip


@given(st.one_of(st.text(max_size=80), st.lists(WORDS, max_size=40).map(" ".join), st.binary().map(repr)))
@settings(max_examples=1500, deadline=None)
def test_any_text_compiles_or_is_refused_with_a_place_in_it(text: str) -> None:
    """Nothing else ever escapes, and what compiles answers for any event."""
    try:
        compiled = compile_where(text)
    except WhereError as error:
        place = error.column
    else:
        place = 1
        assert compiled.matches(EVENT) in (True, False)
        assert str(compiled) == text
    assert 1 <= place <= len(text) + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


FIELDS = st.sampled_from(["a", "a.b", "a.b.c", "severity"])


@given(st.dictionaries(st.sampled_from(["a", "b", "a.b", "log"]), JSON), FIELDS)
@settings(max_examples=300, deadline=None)
def test_any_event_gets_an_answer_and_not_is_its_opposite(event: dict[str, object], field: str) -> None:
    """An agent's event may have anything anywhere."""
    for tail in ("== 4", "< 4", "in (1, 2)", "exists"):
        answer = compile_where(f"{field} {tail}").matches(event)
        assert compile_where(f"not {field} {tail}").matches(event) is not answer


def test_deeply_nested_arrays_do_not_end_the_stack() -> None:
    """A thousand brackets are legal JSON."""
    event = orjson.loads(b'{"a":' + b"[" * 900 + b"1" + b"]" * 900 + b"}")
    assert not compile_where("a == 1").matches(event)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r".*.*.*.*=x", r"(\w+\s*)+\d{3}$", r"[ab]*a[ab]{300}x", r"(a?){300}b"])
def test_no_pattern_makes_a_long_message_hang(pattern: str) -> None:
    """Python's re needs minutes to years for each of these."""
    subject = {"message": "ab" * 32768}
    compiled = compile_where(f"message regex '{pattern}'")
    began = time.perf_counter()
    compiled.matches(subject)
    assert time.perf_counter() - began < 5


def test_a_glob_of_many_stars_does_not_hang_either() -> None:
    """Globs run on the same engine."""
    compiled = compile_where(f"message glob '{'*a' * 200}*b'")
    began = time.perf_counter()
    assert not compiled.matches({"message": "a" * 65536})
    assert time.perf_counter() - began < 5


# ---- a batch's arrays answer what the events themselves would


ORIGINS = (
    Origin("syslog_tls", "10.0.0.1", 1, "CN=a", "01", ("URI:nd:device:fw-1",)),
    Origin("other", "2001:db8::1", 2),
    Origin("other", "", 0),
)
MESSAGES = st.one_of(
    st.builds(
        lambda pri, host, app, text: f"<{pri}>1 2026-11-23T22:14:15Z {host} {app} 7 - - {text}".encode(),
        st.integers(0, 200), st.sampled_from(["-", "fw-1", "fw-2", 'q"uote\\', "é", "h" * 70000]),
        st.sampled_from(["-", "sshd", "su"]), st.text(max_size=5).map(lambda text: text.replace("\n", "")),
    ),
    st.builds(lambda pri, host: f"<{pri}>Nov 23 22:14:15 {host} su: x".encode(), st.integers(0, 191), st.just("fw-1")),
    st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"")),
)  # fmt: skip
ATOMS = st.sampled_from(
    [
        "severity <= 4", "severity == 2", "severity exists", "facility == auth", "log.syslog.priority > 100",
        "host == fw-1", "host glob 'fw-*'", "host exists", "host != fw-2", "host regex é", "host glob 'hhh*'",
        "host == 'q\"uote\\\\'", "origin == nd:device:fw-1", "origin exists", "stream == security_events",
        "stream == alerts", "app == su", "tags exists", "source.ip cidr 10.0.0.0/8",
    ]
)  # fmt: skip
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        inner.map(lambda one: f"not ({one})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: "({}) {} ({})".format(*parts)),
    ),
    max_leaves=6,
)


def decoded(messages: list[bytes], origins: list[int]) -> EventBatch:
    """As the collector decodes them, each message a section of its own."""
    sections = [
        Section(ORIGINS[origin], Framing.WHOLE, Flags.NONE, len(message), 1)
        for message, origin in zip(messages, origins, strict=True)
    ]
    body = b"".join(pack_body(Batch("security_events", "syslog", 10**18, sections, messages)))
    decoder = make_decoder(DecodeSettings(observer_name="c"))
    return decoder.decode(body, stream="security_events", spool_id="s", sequence=5, received_at_ns=10**18)


def passed_on(events: list[bytes]) -> EventBatch:
    """As the collector decodes what agents and other collectors send: ECS already, by whatever wrote it."""
    sections = [Section(ORIGINS[0], Framing.WHOLE, Flags.NONE, len(line), 1) for line in events]
    body = b"".join(pack_body(Batch("security_events", "ecs", 10**18, sections, events)))
    decoder = make_decoder(DecodeSettings(observer_name="c"))
    return decoder.decode(body, stream="security_events", spool_id="s", sequence=5, received_at_ns=10**18)


def one_by_one(where: Where, events: EventBatch) -> list[int]:
    """The reference: every line parsed, no array looked at."""
    identities = [Origin.unpack(blob).identity for blob in events.origin_blobs]
    lines = zip(events.lines(), events.origins, strict=True)
    return [
        position for position, (line, origin) in enumerate(lines)
        if where.matches(orjson.loads(line), stream=events.stream, origin=identities[origin])
    ]


@given(st.lists(st.tuples(MESSAGES, st.integers(0, 2)), min_size=1, max_size=12), EXPRESSIONS)
@settings(max_examples=400, deadline=None)
def test_the_arrays_answer_as_the_events_would(messages: list[tuple[bytes, int]], text: str) -> None:
    """The fast path is only fast."""
    events = decoded([raw for raw, _ in messages], [origin for _, origin in messages])
    where = compile_where(text)
    assert where.select(events) == one_by_one(where, events)


NAMES = st.sampled_from([None, "", "fw-1", "fw-2", "é", 5, True, [], ["fw-1", "fw-2"], {}])
CODES = st.sampled_from([None, 1, 2, 4, 6, 13, 34, 191, 192, True, 2.0, "2", [2], {}])
PART = st.one_of(st.fixed_dictionaries({}, optional={"code": CODES}), CODES)
SYSLOG = st.fixed_dictionaries({}, optional={"priority": CODES, "facility": PART, "severity": PART})
FOREIGN = st.fixed_dictionaries(
    {},
    optional={
        "host": st.one_of(st.fixed_dictionaries({}, optional={"hostname": NAMES, "name": NAMES}), NAMES),
        "host.hostname": NAMES, "host.name": NAMES,
        "log": st.one_of(st.fixed_dictionaries({}, optional={"syslog": st.one_of(SYSLOG, st.none())}), NAMES),
        "log.syslog.severity.code": CODES, "log.syslog.facility.code": CODES,
    },
)  # fmt: skip


@given(st.lists(FOREIGN, min_size=1, max_size=12), EXPRESSIONS, st.booleans())
@example([{"log": {"syslog": {"priority": 34}}}], "severity exists", False)
@example([{"log": {"syslog": {"priority": 1, "facility": {"code": 0}, "severity": {"code": 6}}}}], "severity < 5", True)
@example([{"host": {"name": "fw-1"}, "host.hostname": "fw-2"}], "host == fw-1", False)
@settings(max_examples=300, deadline=None)
def test_the_arrays_answer_as_events_of_any_writer_would(events: list[object], text: str, is_escaped: bool) -> None:
    """A PRI beside another severity, or none: no sender may hide from a `where` by what the arrays do not show."""
    lines = [orjson.dumps(event) for event in events]
    batch = passed_on([line.replace(b"fw", b"\\u0066w") for line in lines] if is_escaped else lines)
    where = compile_where(text)
    assert where.select(batch) == one_by_one(where, batch)


@pytest.mark.parametrize(
    "text", ["severity <= 4 and not facility == auth", "host == fw-1 or origin == x", "stream exists"]
)
def test_severity_facility_host_origin_and_stream_need_no_json(text: str) -> None:
    """Lines that are no JSON at all do not matter to them."""
    events = decoded([b"<34>1 - fw-1 su - - - x", b"<13>1 - fw-2 su - - - x", b"<14>1 - - su - - - x"], [0, 0, 1])
    where = compile_where(text)
    _, rest = where.judge(events)
    assert rest == bytes(3)


def test_only_what_is_undecided_is_parsed() -> None:
    """`severity == 2 and app == su`: a wrong severity settles it."""
    events = decoded([b"<34>1 - h su - - - x", b"<35>1 - h su - - - x", b"no priority"], [0, 0, 0])
    yes, rest = compile_where("severity == 2 and app == su").judge(events)
    assert (yes, rest) == (bytes(3), b"\1\0\1")


def test_an_empty_batch_has_no_positions() -> None:
    """Masks of no bytes."""
    events = decoded([b"<34>1 - h su - - - x"], [0]).select([])
    assert compile_where("severity <= 4 or app == su").select(events) == []


def test_what_the_documentation_shows_compiles() -> None:
    """Each indented example, and each row of the table of comparisons."""
    text = (Path(__file__).parents[2] / "docs" / "where.md").read_text(encoding="utf-8")
    indented = re.findall(r"^    (.+)$", text, re.MULTILINE)
    table = text.partition("## Comparisons")[2].partition("## Fields")[0]
    rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", table, re.MULTILINE)
    examples = [*indented, *(example for row in rows for example in re.findall(r"`([^`]+)`", row))]
    assert len(examples) > 8
    for one in examples:
        compile_where(one)
