"""The documents of enrolment and status: exact inverses, and nothing that does not fit gets in."""

import string
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire import enrolment
from ndagent.wire.enrolment import Answer, BadToken, Endpoints, EnrolRequest, HostFacts, Refusal, RenewRequest, Token
from ndagent.wire.fields import BadDocument, Fields
from ndagent.wire.status import (
    MAX_SHED,
    MAX_STATUS_BYTES,
    AgentStatus,
    InputStatus,
    PolicyStatus,
    Shed,
    SpoolStatus,
)

TOKEN = Token("0011223344", bytes(range(24)), (bytes(32),))
tokens = st.builds(
    Token,
    st.binary(min_size=5, max_size=5).map(bytes.hex),
    st.binary(min_size=24, max_size=24),
    st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4).map(tuple),
)
names = st.text(string.ascii_letters + "äöü ß-.", min_size=1, max_size=60)
counts = st.integers(0, 2**63 - 1)
statuses = st.builds(
    AgentStatus,
    run_id=st.binary(min_size=8, max_size=8).map(bytes.hex),
    sent_at_ns=counts,
    version=names,
    os=names,
    hostname=names,
    spools=st.lists(
        st.builds(SpoolStatus, names, st.text("0189abyz", min_size=16, max_size=16), counts, counts, counts, counts),
        max_size=3,
    ).map(tuple),
    inputs=st.lists(
        st.builds(InputStatus, names, names, st.sampled_from(["running", "waiting", "failed"]), counts, counts, names),
        max_size=3,
    ).map(tuple),
    shed=st.lists(st.builds(Shed, names, counts, st.just(5), st.integers(5, 9)), max_size=3).map(tuple),
    policy=st.none() | st.builds(PolicyStatus, counts, st.sampled_from(["applied", "refused", "rolled_back"]), names),
    trust_bundle=st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex),
    certificate_not_after=counts,
    endpoint=names,
)


@given(tokens)
def test_a_token_survives_its_text(token: Token) -> None:
    """Also with the white space that copying brings."""
    assert Token.parse(f" {token.text}\n") == token
    assert len(token.text) <= enrolment.MAX_TOKEN_CHARACTERS


@given(tokens, st.data())
def test_no_changed_token_passes(token: Token, data: st.DataObject) -> None:
    """One character more, less or other: found before anything is sent."""
    text, at = token.text, data.draw(st.integers(0, len(token.text) - 1))
    other = data.draw(
        st.sampled_from(string.ascii_letters + string.digits + "-_ .").filter(lambda one: one != text[at])
    )
    for wrong in (text[:at] + other + text[at + 1 :], text[:at] + text[at + 1 :], text[:at], text + other.strip("_ ")):
        if wrong.strip() != text:
            with pytest.raises(BadToken):
                Token.parse(wrong)


@given(st.text() | st.text(string.ascii_letters + string.digits + "-_", max_size=250).map("ndt1_".__add__))
def test_garbage_is_no_token_and_nothing_worse(text: str) -> None:
    """Never another exception."""
    with pytest.raises(BadToken):
        Token.parse(text)


def test_the_token_of_this_version_keeps_its_form() -> None:
    """Tokens are stored in people's automation: the form is a contract."""
    text = "ndt1_AQARIjNEAAECAwQFBgcICQoLDA0ODxAREhMUFRYXAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAC49-lw"
    assert TOKEN.text == text
    assert Token.parse(text) == TOKEN


def test_the_secret_is_not_shown() -> None:
    """Neither in a repr nor in the error about a request that has one."""
    request = EnrolRequest(TOKEN.text, "x", HostFacts("h", "linux"))
    assert "x14" not in repr(TOKEN)
    assert TOKEN.text not in repr(request)
    with pytest.raises(BadDocument) as caught:
        EnrolRequest.from_json(orjson.dumps({"token": TOKEN.text * 2, "csr": "x", "host": {}}))
    assert TOKEN.text not in str(caught.value)


FACTS = HostFacts("web-1", "linux", "Debian GNU/Linux 12 (bookworm)", "x86_64", "0.1.0")
ANSWER = Answer(
    "abcdefghij234567", "certificate\n", "ca\n", Endpoints(("a.example:8883", "[::1]:8883"), ("10.0.0.1:8443",)),
    renew_after=7, now=5, policy_key=b"\0\xff", group="web",
)  # fmt: skip


@pytest.mark.parametrize(
    "document",
    [EnrolRequest(TOKEN.text, "csr\n", FACTS), RenewRequest("csr"), ANSWER, Refusal("used_token", "it was used")],
)
def test_documents_are_exact_inverses(document: Any) -> None:
    """What one side writes the other reads."""
    assert type(document).from_json(document.to_json()) == document


@given(statuses)
def test_a_status_is_an_exact_inverse(status: AgentStatus) -> None:
    """Every field, at the ends of its range too."""
    assert AgentStatus.from_json(status.to_json()) == status


leaves = st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9)
keys = st.sampled_from(["token", "csr", "host", "run_id", "spools", "shed", "policy", "agent_id", "endpoints"])
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5))


@given(st.binary(max_size=200) | values.map(orjson.dumps))
def test_garbage_is_a_bad_document_and_nothing_worse(data: bytes) -> None:
    """For every document."""
    for kind in (EnrolRequest, RenewRequest, Answer, Refusal, AgentStatus):
        try:
            kind.from_json(data)
        except BadDocument:
            continue


def changed(path: str, value: object) -> bytes:
    """A good status with one field changed."""
    policy = PolicyStatus(1, "applied")
    status = AgentStatus("0" * 16, 1, "1", "linux", "h", shed=(Shed("file", 1, 2, 3),), policy=policy)
    document = orjson.loads(status.to_json())
    place = document
    *parents, name = path.split(".")
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    place[name] = value
    return orjson.dumps(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run_id", "0" * 15), ("run_id", "G" * 16), ("run_id", None), ("sent_at_ns", -1), ("sent_at_ns", True),
        ("sent_at_ns", "5"), ("sent_at_ns", 2**63), ("hostname", "a\x1b[2J"), ("hostname", "x" * 256), ("hostname", 5),
        ("spools", {}), ("spools", [5]), ("shed.0.until_ns", 1), ("shed.0.input", "x" * 65), ("policy", []),
        ("policy.result", "maybe"), ("trust_bundle", "ab"), ("trust_bundle", "Z" * 64), ("certificate_not_after", 1.5),
        ("shed", [{"input": "a", "events": 1, "since_ns": 1, "until_ns": 2}] * (MAX_SHED + 1)),
    ],
)  # fmt: skip
def test_a_status_with_one_wrong_field_is_refused(path: str, value: object) -> None:
    """And the message names the field."""
    with pytest.raises(BadDocument, match=path.partition(".")[0]):
        AgentStatus.from_json(changed(path, value))


def test_limits_hold_to_the_byte() -> None:
    """The largest is taken, one more is not."""
    status = changed("version", "1")
    padded = status[:-1] + b" " * (MAX_STATUS_BYTES - len(status)) + b"}"
    assert AgentStatus.from_json(padded).hostname == "h"
    with pytest.raises(BadDocument, match=f"{MAX_STATUS_BYTES} are allowed"):
        AgentStatus.from_json(padded + b" ")
    shed = {"input": "a", "events": 1, "since_ns": 2, "until_ns": 3}
    assert len(AgentStatus.from_json(changed("shed", [shed] * MAX_SHED)).shed) == MAX_SHED


def test_what_a_newer_peer_adds_is_passed_over() -> None:
    """Agents and collectors are not updated on the same day."""
    assert AgentStatus.from_json(changed("something_new", {"a": 1})).hostname == "h"


@pytest.mark.parametrize(
    "text", ["a", "a:0", "a:65536", "a:b", ":1", "a b:1", "[::1:1", "::1:8883", "https://a:1", "a:1/x"]
)
def test_what_is_not_an_endpoint_is_refused(text: str) -> None:
    """An agent must not be sent to a place that cannot be."""
    assert not enrolment.is_endpoint(text)
    with pytest.raises(BadDocument, match="host:port"):
        Endpoints.read(Fields({"mqtt": [text], "https": []}))


def test_a_bundle_has_one_name_whatever_its_order() -> None:
    """PEM in, DER out, text between the blocks ignored."""
    pem = "\n".join(
        f"subject: x\n-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----" for body in ("QUJD", "REVG\nR0g=")
    )
    assert enrolment.certificates_of(pem) == (b"ABC", b"DEFGH")
    one, other = enrolment.certificates_of(pem)
    assert enrolment.bundle_fingerprint((one, other)) == enrolment.bundle_fingerprint((other, one))
    assert enrolment.bundle_fingerprint((one,)) != enrolment.bundle_fingerprint((one, other))
