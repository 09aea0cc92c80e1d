"""Whatever bytes come, each message becomes one line of valid JSON, the same from both twins, in linear time."""

import json
import random
import time
from collections.abc import Sequence

import orjson
import pytest
from decode_twins import PURE_ONLY, Decode, body_of_sections, messages_body, octet_counted, section, twin_decode
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_decode_vectors import VECTORS, _raw

from ndagent.wire.ecs import MAX_HOST_BYTES, DecodeSettings
from ndagent.wire.record import EventBatch, Flags, Framing

needs_both = pytest.mark.skipif(PURE_ONLY, reason="ND_PURE_CODEC=1: there is nothing to compare with")
SETTINGS = [
    DecodeSettings("c", keep_original="always", timezone="America/New_York"),
    DecodeSettings("c", keep_original="on_error", timezone="Australia/Lord_Howe"),
    DecodeSettings("c", keep_original="never", timezone="Asia/Kolkata"),
]
PIECES = [
    b" ", b"  ", b":", b": ", b"Oct", b"oct 11", b"Mar  1", b"11", b"2018", b"0000", b"9999", b"22:14:15",
    b"02:30:00", b"23:59:60", b".123", b",9", b".1234567891234", b"Z", b"z", b"+02:00", b"-0500", b"+5", b" UTC",
    b" EST5EDT", b" CET", b" TZ-6", b" IST", b"*", b".", b"123: ", b"host", b"host:", b"%ASA-6-302013: ", b"%",
    b"tag[12]:", b"tag: ", b"[", b"]", b'[a b="c"]', b'[x y="\\"\\]\\n" y="2"]', b'"', b"\\", b"=", b"-", b"- ",
    b"1 ", b"2024-02-29T12:00:00", b"2023-02-29 12:00:00", b"2018/10/11 ", b"Feb 29 ", b"Thu, ", b"Sun ", b"\xff",
    b"\xe2\x82", b"\xc3\xa9", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xef\xbb\xbf", b"\x00", b"\x1f", b"\x7f", b"\t",
    b"\n", b"\r", b"fe80::1", b"::", b"last message repeated 3 times", b"Message forwarded from ",
    b"date=2018-10-11 time=22:14:15", b' devname="x"', b" devname=", b' tz="+0530"', b" tz=-02:30", b"1380664994.337",
    b"<13>", b"x", b"{", b"_", b"/", b"A", b"RP/0/RSP0/CPU0:", b"a/b/c:", b"*task_0: ", b"5d23h: ", b"1w2d3h: ",
    b"00:00:46: ", b"*0:00:46.5: ", b" AM", b"PM", b" PM ", b"12:00:00", b" MEZ:", b" Own_Zone1:", b"notice ", b"err  ",
    b"logver=7 ", b" date=2018-10-11 time=22:14:15.5", b"1380664994 ", b"Mar ", b"2024-03-15T11:59:00Z: ", b": ",
]  # fmt: skip
STARTS = [
    b"", b"<13>", b"<191>", b"<192>", b"<>", b"<1", b"<34>1 ", b"<34>1 2024-01-01T00:00:00", b"<34>1 - h a p m ",
    b'<34>1 - h a p m [i k="v"', b"<34>Oct 11 22:14:15 ", b"<13>Oct 11 22:14:15", b"<34>2024-01-01T00:00:00",
    b"<3>12: h: Oct 11 22:14:15", b"<34>1 1380664994 ", b"<3>12: h: ", b"<3>", b"<3>Oct 11 22:14:15 h ",
    b"<3>date=2018-10-11 time=22:14:15",
]  # fmt: skip

syslog_like = st.builds(
    lambda start, pieces: start + b"".join(pieces),
    st.sampled_from(STARTS),
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=5), max_size=10),
)


@st.composite
def mutated_vectors(draw: st.DrawFn) -> bytes:
    """A golden vector with a few bytes cut out, put in or changed."""
    raw = bytearray(draw(st.sampled_from([_raw(vector) for vector in VECTORS])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 4))] = draw(st.sampled_from([b"", *PIECES]) | st.binary(max_size=2))
    return bytes(raw)


messages = st.lists(
    st.tuples(
        st.binary(max_size=64) | syslog_like | mutated_vectors(),
        st.sampled_from(list(Framing)),
        st.sampled_from([Flags.NONE, Flags.NONE, Flags.TRUNCATED, Flags.TRUNCATED | Flags.FRAMING_ERROR]),
    ),
    max_size=12,
)
received = st.integers(0, 4 * 10**18) | st.sampled_from([1_711_846_800 * 10**9, 1_735_689_540 * 10**9])


def body(framed: Sequence[tuple[bytes, Framing, Flags]]) -> bytes:
    """Each message as a section of its own, in its framing."""
    sections = []
    for message, framing, flags in framed:
        if framing == Framing.OCTET_COUNTED:
            payload = octet_counted(message)
        elif framing == Framing.LF:
            payload = message.replace(b"\n", b"?") + b"\n"
        else:
            payload = message
        sections.append(section(payload, framing=framing, flags=flags))
    return body_of_sections(sections)


def check(batch: EventBatch, count: int) -> None:
    """One valid line each, and arrays that fit."""
    lines = batch.lines()
    assert len(lines) == count == batch.ndjson.count(b"\n")
    for line, start, length in zip(lines, batch.host_offsets, batch.host_lengths, strict=True):
        event = json.loads(line)
        host = event.get("host", {}).get("hostname")
        if start:
            assert json.loads(b'"' + line[start : start + length] + b'"') == host
        else:
            assert host is None or len(orjson.dumps(host)) - 2 > MAX_HOST_BYTES
        assert ("error" in event) == ("_parse_failure" in event.get("tags", []))


@needs_both
@settings(max_examples=600, deadline=None)
@given(framed=messages, received_at_ns=received, setting=st.sampled_from(SETTINGS))
@example(framed=[(b"", Framing.WHOLE, Flags.NONE)], received_at_ns=0, setting=SETTINGS[0])
def test_both_twins_give_the_same_bytes(
    framed: list[tuple[bytes, Framing, Flags]], received_at_ns: int, setting: DecodeSettings
) -> None:
    """Which twin runs depends on a compiler's presence; that must never show in the data."""
    pure, compiled = (
        twin_decode(twin)(setting, body(framed), received_at_ns=received_at_ns) for twin in ("pure", "compiled")
    )
    check(pure, len(framed))
    assert compiled == pure


@settings(max_examples=100, deadline=None)
@given(framed=messages)
def test_every_message_becomes_one_valid_line(framed: list[tuple[bytes, Framing, Flags]]) -> None:
    """The promise that holds without a compiler too: no byte loses an event."""
    check(twin_decode("pure")(SETTINGS[0], body(framed)), len(framed))


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_text_comes_back_unchanged(text: str) -> None:
    """Escaping must be exact: what a receiver's JSON parser reads is what the device wrote."""
    for twin in ["pure"] if PURE_ONLY else ["pure", "compiled"]:
        batch = twin_decode(twin)(SETTINGS[1], messages_body([b"<13>1 - - - - - - " + text.encode() + b"\n"]))
        assert json.loads(batch.ndjson)["message"] == text.removeprefix("\ufeff")


@settings(max_examples=200, deadline=None)
@given(value=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_parameter_values_come_back_unchanged(value: str) -> None:
    """RFC 5424 §6.3.3: whatever is escaped as the RFC says is read as it was meant."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")
    for twin in ["pure"] if PURE_ONLY else ["pure", "compiled"]:
        batch = twin_decode(twin)(SETTINGS[1], messages_body([f'<13>1 - h a 1 m [x@1 p="{escaped}"] t'.encode()]))
        assert json.loads(batch.ndjson)["log"]["syslog"]["structured_data"] == {"x@1": {"p": value}}


_FILL = 65_000
HOSTILE = {
    "control characters": b"<13>" + b"\x01" * _FILL,
    "not UTF-8": b"<13>" + b"\xff" * _FILL,
    "a host of controls": b"<13>1 - " + b"\x01" * _FILL + b" a p m - x",
    "spaces": b"<13>" + b" " * _FILL,
    "digits": b"<13>" + b"1" * _FILL,
    "sequence numbers": b"<13>" + b"1: " * (_FILL // 3),
    "colons": b"<13>" + b":" * _FILL,
    "open brackets": b"<13>1 - h a p m " + b"[" * _FILL,
    "elements": b"<13>1 - h a p m " + b"[a]" * (_FILL // 3),
    "distinct elements": b"<13>1 - h a p m " + b"".join(b"[%x]" % i for i in range(_FILL // 6)),
    "distinct parameters": b"<13>1 - h a p m [x" + b"".join(b' %x=""' % i for i in range(_FILL // 9)) + b"]",
    "one parameter repeated": b"<13>1 - h a p m [x" + b' a=""' * (_FILL // 5) + b"]",
    "an endless value": b'<13>1 - h a p m [x a="' + b"\\\\" * (_FILL // 2),
    "parameters without an end": b"<13>1 - h a p m [x" + b' a=""' * (_FILL // 5),
    "names of devices": b"<13>date=2024-01-01 time=00:00:00" + b" devname=" * (_FILL // 9),
    "a host of colons": b"<13>Mar  5 01:02:03 " + b":" * _FILL + b" x",
    "a tag": b"<13>Mar  5 01:02:03 h " + b"t" * _FILL,
    "a fraction": b"<13>Mar  5 01:02:03." + b"9" * _FILL,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_messages_cost_linear_time(decode: Decode, kind: str) -> None:
    """64 KiB that keep a quadratic parser busy for seconds each; ten of them take 0.2 s of CPU time even in Python."""
    body = messages_body([HOSTILE[kind]] * 10)
    started = time.process_time()
    batch = decode(SETTINGS[0], body)
    assert time.process_time() - started < 1.5
    check(batch, 10)


@needs_both
@pytest.mark.parametrize("kind", HOSTILE)
def test_both_twins_agree_on_hostile_messages(kind: str) -> None:
    """The tables of the compiled twin overflow here, its buffer grows, and its line has the longest form."""
    raw = [HOSTILE[kind], HOSTILE[kind][:1000], HOSTILE[kind] + b" x", b"<13>after"]
    assert twin_decode("compiled")(SETTINGS[0], messages_body(raw)) == twin_decode("pure")(
        SETTINGS[0], messages_body(raw)
    )


@needs_both
def test_both_twins_agree_on_many_messages_in_one_body() -> None:
    """Output buffers grow many times and memos meet every neighbour: 20 000 vectors in an order that is no order."""
    order = random.Random(6587)  # any number does, this one is the framing's RFC
    raw = order.choices([_raw(vector) for vector in VECTORS], k=20_000)
    assert twin_decode("compiled")(SETTINGS[0], messages_body(raw)) == twin_decode("pure")(
        SETTINGS[0], messages_body(raw)
    )
