"""What `redact` takes out and what it leaves: by example, in every place of an event, and in linear time."""

import base64
import random
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing.routed import ecs, only, route, syslog

from ndcollector.routing.finder import GROWTH_BYTES, MAX_GROWTH, Finder
from ndcollector.routing.secret_patterns import GROUPS, NAMED, luhn

ALL = Finder(["card_number", "secret", "email"])

FOUND = [  # (text, what is left of it)
    # Card numbers: the schemes' published test numbers, alone and in company.
    ("pan 4111111111111111.", "pan #."),
    ("pan=4111 1111 1111 1111;", "pan=#;"),
    ("5555-5555-5555-4444", "#"),
    ("2223003122003222", "#"),
    ("amex 3782 822463 10005 ok", "amex # ok"),
    ("30569309025904", "#"),
    ("6011111111111117", "#"),
    ("3530111333300000", "#"),
    ("4222222222222", "#"),
    ("6304000000000000", "#"),
    ("id 12345 4111111111111111 12", "id 12345 # 12"),
    ("4111111111111111 5555555555554444", "# #"),
    ("4111-1111-1111-1111-4111-1111-1111-1111", "#-#"),
    ("card:4111111111111111x", "card:#x"),
    ("7,4111111111111111,ok", "7,#,ok"),
    # Passwords and their kin.
    ("login password=hunter2 user=bob", "login password=# user=bob"),
    ("PASSWORD: hunter2", "PASSWORD: #"),
    ("user=bob,password=hun,ter2,action=x", "user=bob,password=#,action=x"),
    ("passwd=a;token=b;user=c", "passwd=#;token=#;user=c"),
    ("password=a, user=b", "password=#, user=b"),
    ("/login?user=b&password=x%26y&z=1", "/login?user=b&password=#&z=1"),
    ('{"password":"a \\" b","user":"x"}', '{"password":"#","user":"x"}'),
    ("{'api_key': 'k1'}", "{'api_key': '#'}"),
    ('{\\"client_secret\\":\\"abc\\",\\"u\\":1}', '{\\"client_secret\\":\\"#\\",\\"u\\":1}'),
    ('password="never closed', 'password="#'),
    ("'password=abc' and", "'password=#' and"),
    ("x-api-key: k9 accept: all", "x-api-key: # accept: all"),
    ("db_pass=p mypass=q psk := r", "db_pass=# mypass=# psk := #"),
    ("<user>bob</user><password>hunter] 2</password>", "<user>bob</user><password>#</password>"),
    ('<wsse:Password Type="#Text">\n hunter2</wsse:Password>', '<wsse:Password Type="#Text">\n #</wsse:Password>'),
    ("<api_key><![CDATA[k<]1]]></api_key>", "<api_key><![CDATA[#]]></api_key>"),
    ("grant%5Fpassword%3Dhunter2 HTTP/1.1", "grant%5Fpassword%3D# HTTP/1.1"),
    ("mysql --password hunter2 -h db", "mysql --password # -h db"),
    ("run --api-key=abc", "run --api-key=#"),
    ("pwd=hunter2", "pwd=#"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "aws_secret_access_key = #"),
    ("password => 'a b' next", "password => '#' next"),
    ("SECRET_KEY=abc DJANGO_SIGNING-KEY: d", "SECRET_KEY=# DJANGO_SIGNING-KEY: #"),
    ("u[password]=x&u%5Bpassword_confirmation%5D=x&a=1", "u[password]=#&u%5Bpassword_confirmation%5D=#&a=1"),
    ("username bob password 7 0822455D0A16 level 1", "username bob password 7 # level 1"),
    # Tokens.
    ("Authorization: Bearer abcdef.0123", "Authorization: Bearer #"),
    ("proxy-authorization: Basic dXNlcjpwYXNz", "proxy-authorization: Basic #"),
    ("sent bearer 0123456789abcdef to", "sent bearer # to"),
    ("key AKIAIOSFODNN7EXAMPLE used", "key # used"),
    ("A3TXIOSFODNN7EXAMPLE", "#"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "#"),
    ("ghp_0123456789abcdefghijABCDEFGHIJ012345 pushed", "# pushed"),
    ("xoxb-123456789012-abcdef", "#"),
    ("postgres://app:p@ss@db:5432/x", "postgres://app:#@db:5432/x"),
    ("root:$6$saltsalt$0123456789abcdef/.:19000", "root:#:19000"),
    ("a -----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- b", "a # b"),
    ("-----BEGIN PRIVATE KEY-----\ncut off", "#"),
    # Addresses.
    ("mail from bob.o'neil+x@mail.example.co.uk now", "mail from # now"),
    ("jürgen@bücher.example", "#"),
]
LEFT = [
    "Failed password for root from 10.0.0.1 port 5022 ssh2",
    "sudo: bob : TTY=pts/0 ; PWD=/home/bob ; USER=root ; COMMAND=/bin/ls",
    "<password></password><passwordAge>90</passwordAge><secretary>Ann</secretary>",
    "compass=north bypass=1 passenger=5 tokens are 5",
    "4111111111111112",  # the check digit is wrong
    "1234567812345670",  # nobody issues numbers that begin with 1
    "20261125225500123456 1764111600000000000",
    "12345678901234567890123456789012",
    "4111 11 11 1111 1111",  # nobody groups by two
    "0.4111111111111111",
    "550e8400-e29b-41d4-a716-446655440000",
    "user@host and origin@32473",
    "bearer of bad news",
    "https://example.com:8443/a@b",
    "",
]


@pytest.mark.parametrize(("text", "left"), FOUND)
def test_these_are_taken_out(text: str, left: str) -> None:
    """docs/routing.md promises each kind."""
    assert ALL.redact(text, "#") == left


@pytest.mark.parametrize("text", LEFT)
def test_these_stay(text: str) -> None:
    """Evidence that was taken out for nothing is lost to who reads it downstream."""
    assert ALL.redact(text, "#") is text


def test_every_name_has_an_example() -> None:
    """A pattern that nothing above needs could be broken and nobody would know."""
    alone = {name: Finder([name]) for name in NAMED}
    unused = [name for name, finder in alone.items() if not any(finder.spans(text.encode()) for text, _ in FOUND)]
    assert unused == []
    assert set(GROUPS["secret"]) == set(NAMED) - {"card_number", "email"}


@pytest.mark.parametrize(("text", "left"), FOUND)
def test_the_hint_is_in_every_line_with_a_find(text: str, left: str) -> None:
    """Lines without it are never decoded: were it too narrow, a secret would leave."""
    line = orjson.dumps({"message": text})
    assert text == left or ALL.hint.search(line) is not None
    escaped = b'{"message":"' + "".join(f"\\u{ord(one):04x}" for one in text).encode() + b'"}'
    assert not text or ALL.hint.search(escaped) is not None


CARD = "4111 1111 1111 1111"


def test_it_is_taken_from_everywhere() -> None:
    """Message, raw original, structured data with its names, keys, lists, numbers, dotted spellings."""
    event = {
        "@timestamp": "2026-01-01T00:00:00Z",
        "event": {"id": "x-1", "original": f"<13>{CARD}", "created": "2026-01-01T00:00:00Z"},
        "message": f"pan {CARD}",
        "a": [{"b": [f"x{CARD}"]}, 4111111111111111, 17],
        CARD: {"c": CARD, "d": True},
        "event.original": CARD,
        "password": ["x", 5, {"deep": "y", "flag": True}],
    }
    found = only(ecs(event), {"redact": None})
    assert CARD not in orjson.dumps(found).decode()
    assert found["a"] == [{"b": ["x[redacted]"]}, "[redacted]", 17]
    assert found["[redacted]"] == {"c": "[redacted]", "d": True}
    assert found["password"] == ["[redacted]", "[redacted]", {"deep": "[redacted]", "flag": True}]
    assert found["event"] == {"id": "x-1", "original": "<13>[redacted]", "created": "2026-01-01T00:00:00Z"}


def test_two_keys_that_become_one_keep_both_values() -> None:
    """Nothing but the find may go."""
    found = only(ecs({"@timestamp": "t", "event": {"id": "x-1"}, "x": {"a@b.de": 1, "c@d.de": 2}}),
                 {"redact": {"patterns": ["email"]}})  # fmt: skip
    assert found["x"] == {"[redacted]": 1, "[redacted]_2": 2}


@pytest.mark.parametrize("fields", [(), ("message",), ("user.name",)])
def test_the_raw_message_never_keeps_it(fields: tuple[str, ...]) -> None:
    """Bytes that are not UTF-8 stand in event.original_base64 as they came; the rest of them stays exact."""
    raw = b"<13>1 2026-01-01T00:00:00Z h a - - - caf\xe9 4111 1111 1111 1111 \xff\xef\xbf\xbd na\xc3\xafve"
    found = only(syslog(raw), {"redact": {"fields": fields}})
    exact = base64.b64decode(found["event"]["original_base64"])
    assert exact == raw.replace(CARD.encode(), b"[redacted]")
    assert CARD not in found["event"]["original"]


def test_text_where_base64_should_be_is_text() -> None:
    """A sender of ECS may write anything there."""
    found = only(ecs({"@timestamp": "t", "event": {"id": "x-1", "original_base64": f"!{CARD}"}}), {"redact": None})
    assert found["event"]["original_base64"] == "![redacted]"


def test_a_key_that_stands_twice_hides_nothing() -> None:
    """JSON parsers disagree about which one counts; only one of the two is seen by a step."""
    line = b'{"@timestamp":"t","event":{"id":"x-1"},"user":{"name":"bob"},"user":{"id":7},"message":"a@b.de"}'
    for step in ({"redact": {"patterns": ["b[o]b"]}}, {"hash": ["user.name"]}, {"drop_fields": ["user.name"]}):
        assert b"bob" not in route(ecs(line), transform=[step]).events.ndjson


@pytest.mark.parametrize("key", ["password", "dbPassword", "x.api_key", "secretKey", "clientSecret", "pwd", "token2"])
def test_a_field_that_is_named_as_a_secret_loses_its_value(key: str) -> None:
    """Structured data names what it holds."""
    event = {"@timestamp": "t", "event": {"id": "x-1"}, "d": {key: "a b", "TokenType": "%%1936"}}
    assert only(ecs(event), {"redact": None})["d"] == {key: "[redacted]", "TokenType": "%%1936"}


def test_fields_limit_what_is_looked_at() -> None:
    """What was not named stays; a field that was named is searched to its bottom."""
    event = {"@timestamp": "t", "event": {"id": "x-1"}, "message": CARD, "a": {"b": [CARD]}, "c": CARD}
    found = only(ecs(event), {"redact": {"fields": ["a", "mess*"]}})
    assert (found["message"], found["a"], found["c"]) == ("[redacted]", {"b": ["[redacted]"]}, CARD)


def test_a_regular_expression_of_ones_own() -> None:
    """With a group named secret only that goes; other groups mean nothing."""
    event = {"@timestamp": "t", "event": {"id": "x-1"}, "message": "badge 1234, (Bob) was Alice"}
    step = {"redact": {"patterns": ["badge (?P<secret>[0-9]+)", "(Bob|Alice)"], "replacement": "X"}}
    assert only(ecs(event), step)["message"] == "badge X, (X) was X"


def test_an_event_without_a_find_leaves_byte_for_byte() -> None:
    """Also one that had to be looked into."""
    events = syslog(b"<13>1 2026-01-01T00:00:00Z h a 7 - - password for user@host")
    found = route(events, transform=[{"redact": {"patterns": ["secret", "email", "nothing [0-9]+ like it"]}}])
    assert found.events is events


def test_growth_is_bounded() -> None:
    """A long replacement for a short find must not make a giant of an event."""
    finder = Finder(["[x]"])
    text = "x" * 60_000
    assert finder.redact(text, "R" * 64) == "R" * 64
    short = finder.redact("x" * 15, "R" * 64)
    assert short == "R" * 64 or len(short) <= MAX_GROWTH * 15 + GROWTH_BYTES


HOSTILE = [
    "4" * 65536, "411 " * 16384, "4111-" * 13000, "password=" * 7000, "password=a,token=b," * 3400, 'token="' * 9000,
    "a@" * 32768, "a@b." * 16384, "http://a:b@" * 6000, "-----BEGIN PRIVATE KEY-----" * 2400, "eyJ" * 21000,
    "$6$" * 21000, "bearer " * 9000, "password='\"" * 6000, "token=" + "," * 65000, "token=" + ",a" * 32000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_hostile_text_costs_linear_time(text: str) -> None:
    """Eight times the text takes about eight times as long; a quadratic pattern would take sixty-four.

    Slack for a busy machine: only what is beyond three times linear fails, and only where it takes long at all.
    """
    text = text[:32768]

    def cost(sample: str) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            ALL.redact(sample, "#")
            best = min(best, time.process_time() - began)
        return best

    assert cost(text) <= 24 * cost(text[: len(text) // 8]) + 0.02


@given(st.lists(st.sampled_from([one for text, _ in FOUND for one in text.split()]) | st.text(max_size=9), max_size=12))
def test_what_was_redacted_has_nothing_left_to_redact(words: list[str]) -> None:
    """Also where finds touch and overlap: nothing of one survives the other."""
    once = ALL.redact(" ".join(words), " ")
    assert not any(number in once for number in ("4111111111111111", "5555-5555-5555-4444"))
    assert ALL.redact_exact(" ".join(words).encode(), " ").decode() == once


def test_the_check_digit_is_luhns() -> None:
    """Against the arithmetic of ISO/IEC 7812-1 annex B, written the other way round."""
    draw = random.Random(7)
    for _ in range(300):
        digits = [draw.randrange(10) for _ in range(draw.randrange(12, 20))]
        doubled = [sum(divmod(2 * one, 10)) if place % 2 else one for place, one in enumerate(reversed(digits))]
        assert luhn(digits) == (sum(doubled) % 10 == 0)
