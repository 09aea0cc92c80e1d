"""Whatever stands behind a signature: the event keeps all that it has, both twins agree, time and size are bounded."""

import ast
import json
import subprocess
import sys
import time
from typing import Any

import orjson
import pytest
from decode_twins import PURE_ONLY, Decode, messages_body, twin_decode
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device_vectors import AUTO, ELASTIC, PLAIN, VECTORS, one

from ndagent.wire.devices import FAMILIES, load_family
from ndagent.wire.devices.enrich import relate
from ndagent.wire.devices.fields import MAX_NAME_CHARACTERS, MAX_PAIRS, Message, nested
from ndagent.wire.devices.signatures import MAX_MESSAGE_BYTES, Signature
from ndagent.wire.ecs import DecodeSettings

TWINS = ["pure"] if PURE_ONLY else ["pure", "compiled"]
PIECES = [
    " ", "  ", ":", ": ", ";", "; ", ",", '"', "\\", '\\"', "=", "|", "^", "\t", "\n", "\r", "(", ")", "[", "]", "/",
    "->", "%", "0", "1", "65535", "65536", "99999999999999999999", "10.0.0.1", "192.0.2.1/443", "2001:db8::1", "::",
    "0.0.0.0", "x", "outside:", "SRC=", "DST=", "IN=", " port ", " from ", " for ", "invalid user ", "COMMAND=",
    "USER=", "PWD=", "src=", "dst=", "act=", 'action="', "a.b=", "..=", "é", "\ufffd", "\x00", "TRAFFIC", "THREAT",
    "SYSTEM", "CONFIG", "end", "tcp", "6", "N/A",
]  # fmt: skip


def head(signature: Signature) -> bytes:
    """The front of a message that this signature tells."""
    app = (signature.app or signature.app_starts or b"app").decode()
    data = f'[{signature.data.decode()}x a="b" source-address="10.0.0.1"]' if signature.data else "-"
    text = (
        f"{signature.starts.decode()} {signature.contains.decode()}"
        if signature.contains
        else signature.starts.decode()
    )
    return f"<13>1 2024-03-15T11:59:00Z h {app} 1 TAG {data} {text}".encode()


SIGNATURES = [signature for name in FAMILIES for signature in load_family(name).signatures]
behind_signatures = st.builds(
    lambda signature, pieces: head(signature) + b"".join(pieces),
    st.sampled_from(SIGNATURES),
    st.lists(st.sampled_from(PIECES).map(str.encode) | st.binary(max_size=6), max_size=14),
)


@st.composite
def mutated_vectors(draw: st.DrawFn) -> bytes:
    """A vector with a few bytes cut out, put in or changed, or its end cut off."""
    raw = bytearray(draw(st.sampled_from([vector["text"].encode() for vector in VECTORS])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 4))] = draw(st.sampled_from(PIECES).map(str.encode) | st.binary(max_size=2))
    return bytes(raw[: draw(st.integers(0, len(raw)) | st.just(len(raw)))])


messages = st.lists(behind_signatures | mutated_vectors(), min_size=1, max_size=6)


def keeps_all(plain: Any, enriched: Any) -> bool:
    """Whether everything of the plain event stands in the enriched one."""
    if isinstance(plain, dict):
        return isinstance(enriched, dict) and all(keeps_all(value, enriched.get(name)) for name, value in plain.items())
    return bool(plain == enriched)


@settings(max_examples=150, deadline=None)
@given(raw=messages)
def test_an_event_keeps_all_that_it_has(raw: list[bytes]) -> None:
    """Both twins, and for each event: the same fields with the same values, perhaps more of them."""
    body = messages_body(raw)
    plain, found = twin_decode("pure")(PLAIN, body), [twin_decode(twin)(AUTO, body) for twin in TWINS]
    assert all(batch == found[0] for batch in found)
    for before, after in zip(plain.lines(), found[0].lines(), strict=True):
        assert keeps_all(json.loads(before), json.loads(after))
        assert before == after or after == orjson.dumps(orjson.loads(after)) + b"\n"


@settings(max_examples=60, deadline=None)
@given(raw=messages)
def test_both_twins_agree_on_elastics_names(raw: list[bytes]) -> None:
    """Moving fields is the same code, so the same bytes; what identifies the event never moves."""
    found = [twin_decode(twin)(ELASTIC, messages_body(raw)) for twin in TWINS]
    assert all(batch == found[0] for batch in found)
    plain = twin_decode("pure")(PLAIN, messages_body(raw))
    for before, after in zip(map(json.loads, plain.lines()), map(json.loads, found[0].lines()), strict=True):
        for name in ("@timestamp", "message", "host", "process", "tags", "error"):
            assert keeps_all(before.get(name, {}), after.get(name, {}))
        assert {**after["event"], **before["event"]} == after["event"]


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=20
    )
)
def test_no_family_raises(pieces: list[str]) -> None:
    """The decoder would pass over it, so that no event is lost; that is a net, not a way to write families."""
    text = "".join(pieces)
    for name in FAMILIES:
        family = load_family(name)
        for signature in family.signatures:
            app = (signature.app or signature.app_starts).decode()
            start = f"{signature.starts.decode()}{signature.contains.decode()}"
            for data in ({}, {"junos@2636": {"a": ["b", "c"], "source-address": text}}):
                found = family.read(Message(start + text, app, text, data))
                if found is not None:
                    fields = nested(found)
                    relate(fields)
                    orjson.dumps(fields)


def _fill(piece: str, size: int = MAX_MESSAGE_BYTES - 600) -> str:
    return (piece * (size // len(piece) + 1))[:size]


FRONTS = {
    "cisco_asa": [
        "%ASA-6-302013: Built outbound TCP connection 1 for ",
        "%FTD-1-430001: ",
        '%ASA-4-106023: Deny tcp src "',
        "%ASA-4-113019: Group = ",
    ],
    "cisco_ios": [
        "%SEC-6-IPACCESSLOGP: list 1 denied tcp ",
        "%SSH-5-SSH2_USERAUTH: User 'a' authentication for SSH2 Session from b ",
    ],
    "panos": ["1,2024/03/15 11:59:00,1,TRAFFIC,end,1,2,", '1,2024/03/15 11:59:00,1,THREAT,url,1,2,"'],
    "fortigate": ['date=2024-03-15 devid=1 a="', "date=2024-03-15 devid=1 "],
    "junos": [
        "RT_FLOW: RT_FLOW_SESSION_CREATE: session created 1/2->3/4 a 1/2->3/4 ",
        "RT_FLOW: RT_FLOW_SESSION_CLOSE: session closed ",
    ],
    "checkpoint": ["CheckPoint: [action:", 'time=1|loguid=2|action="'],
    "f5": ["ASM:a=", 'ASM:a="', "apmd[1]: 01490500:5: /a:b:00000000: New session from client IP "],
    "netfilter": ["kernel: IN= SRC=1 DST=2 ", "kernel: "],
    "sshd": [
        "sshd: Failed password for ",
        "sshd: Connection closed by ",
        "sshd: pam_unix(sshd:auth): authentication failure; ",
    ],
    "sudo": ["sudo: a : PWD=COMMAND= ; USER=", "sudo: COMMAND= "],
    "cef": ["CEF:0|", "CEF:0|V|P|1|2|n|3|"],
    "leef": ["LEEF:2.0|V|P|1|2|^|", "LEEF:1.0|"],
    "key_value": ["id=firewall ", 'id=firewall a="'],
}
FILLS = [
    "a",
    "1",
    " ",
    "a=",
    'a="',
    '\\"',
    "a=b ",
    "a: b, ",
    "A: ",
    " from a port 1 ssh2",
    ",",
    "|",
    " 1 2 3 4",
    "a:1->",
    " ; USER=a ; ENV= ",
    "a:",
    '";',
    "(",
    "\t",
    " rhost= user=",
    ":::::",
    "<a>",
    "1.2.3.4/5 (",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_messages_cost_linear_time(decode: Decode, family: str) -> None:
    """32 KB each that keep a pattern busy for seconds if it tries all ways to fit; linear, all take some 0.2 s."""
    raw = [f"<13>Mar 15 11:59:00 h {front}{_fill(fill)}".encode() for front in FRONTS[family] for fill in FILLS]
    started = time.process_time()
    batch = decode(AUTO, messages_body(raw))
    assert time.process_time() - started < 0.06 * len(raw)
    assert len(batch) == len(raw)


@pytest.mark.parametrize("family", ["fortigate", "key_value", "cef", "leef", "f5", "checkpoint"])
def test_the_number_of_names_is_bounded(decode: Decode, family: str) -> None:
    """A field for every name that a message invents would be a mapping for each, downstream, forever."""
    separator, quote = {"leef": ("^", ""), "f5": (",", '"'), "checkpoint": ("; ", '"')}.get(family, (" ", ""))
    mark = ":" if family == "checkpoint" else "="
    pairs = separator.join(f"n{number}{mark}{quote}v{quote}" for number in range(2000))
    front = {
        "fortigate": "date=2024-03-15 devid=1 ",
        "key_value": "id=firewall ",
        "cef": "CEF:0|V|P|1|2|n|3|",
        "leef": "LEEF:2.0|V|P|1|2|^|",
        "f5": "ASM:",
        "checkpoint": 'CheckPoint: [action:"Drop"; ',
    }[family]
    plain, event = (
        one(decode(s, messages_body([f"<13>Mar 15 11:59:00 h {front}{pairs}".encode()]))) for s in (PLAIN, AUTO)
    )
    names = sum(len(json.dumps(value).split('": ')) for name, value in event.items() if name not in plain)
    assert 200 < names < MAX_PAIRS + 40


def test_a_name_is_bounded(decode: Decode) -> None:
    """Neither dots, which would nest, nor hundreds of characters make a field's name."""
    event = one(decode(AUTO, messages_body([b"<13>id=firewall a.b.c=1 " + b"n" * 500 + b"=2 src=10.0.0.1"])))
    assert {"a_b_c": "1", "n" * MAX_NAME_CHARACTERS: "2"}.items() <= event["key_value"].items()


@pytest.mark.parametrize("extra", [0, 1])
def test_a_message_longer_than_any_device_writes_is_left_alone(decode: Decode, extra: int) -> None:
    """Its fields would double a line that may be near an output's limit as it is."""
    front = b"<13>Mar 15 11:59:00 h "
    text = b"CEF:0|V|P|1|2|n|3|src=10.0.0.1 msg="
    raw = front + text + b"x" * (MAX_MESSAGE_BYTES - len(text) + extra)
    assert (decode(AUTO, messages_body([raw])) == decode(PLAIN, messages_body([raw]))) == bool(extra)
    forced = DecodeSettings("collector-1", origin_devices=(("0.0.0.0/0", "cef"),))
    assert (decode(forced, messages_body([raw])) == decode(PLAIN, messages_body([raw]))) == bool(extra)


def test_megabytes_and_ten_thousand_names_are_left_alone(decode: Decode) -> None:
    """What a sender without limits can do: the event is the one that it would be anyway."""
    raw = [
        b"<13>Mar 15 11:59:00 h CEF:0|V|P|1|2|n|3|msg=" + b"x" * 1_000_000,
        b"<13>id=firewall " + b" ".join(b"n%d=v" % number for number in range(10_000)),
    ]
    assert decode(AUTO, messages_body(raw)) == decode(PLAIN, messages_body(raw))


def test_a_family_that_fails_leaves_the_event(monkeypatch: pytest.MonkeyPatch, decode: Decode) -> None:
    """A mistake in one family must not stop a spool from being read."""

    def fail(_: Message) -> None:
        raise IndexError

    family = load_family("sshd")
    monkeypatch.setattr("ndagent.wire.devices.sshd.FAMILY", family._replace(read=fail))
    body = messages_body([vector["text"].encode() for vector in VECTORS if vector["family"] == "sshd"])
    assert decode(AUTO, body) == decode(PLAIN, body)


def test_a_program_without_families_does_not_load_them() -> None:
    """`decode.devices: none` costs nothing."""
    script = (
        "import sys; from ndagent.wire.ecs import DecodeSettings; from ndagent.wire.codec import make_decoder; "
        "make_decoder(DecodeSettings('c')); print([name for name in sys.modules if 'wire.devices.' in name])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.rpartition(".")[2] for name in ast.literal_eval(found.stdout)}
    assert loaded & {*FAMILIES, "enrich", "pairs", "extensions"} == set()
