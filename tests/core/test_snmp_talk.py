"""Whose answers are believed when we ask a device: none that anybody else could have written."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.core.snmp_talk import CommunityTalk, Denied, UserTalk, Verdict
from ndagent.core.snmp_usm import User
from ndagent.wire.snmp import ber
from ndagent.wire.snmp.messages import (
    Flag,
    Kind,
    Pdu,
    SecuredMessage,
    Security,
    make_community_message,
    make_pdu,
    make_scoped,
    make_secured,
    open_message,
)

ENGINE = bytes.fromhex("8000000001020304")
STATS = "1.3.6.1.6.3.15.1.1"
BINDS = [("1.3.6.1.2.1.1.3.0", ber.from_integer(1, 0x43))]
USER = User("m", auth="SHA-256", auth_password="correct horse", privacy="AES", privacy_password="battery staple")
OTHER = User("m", auth="SHA-256", auth_password="incorrect horse", privacy="AES", privacy_password="battery staple")
AUTH_ONLY = User("m", auth="SHA-256", auth_password="correct horse", privacy="none", privacy_password="")


def message(
    pdu: bytes, *, who: User | None = USER, engine_id: bytes = ENGINE, boots: int = 5, seconds: int = 1000,
    number: int = 7,
) -> bytes:  # fmt: skip
    """A device's; without a user one that anybody could write."""
    scoped = make_scoped(engine_id, b"", pdu)
    if who is None:
        return make_secured(number, Flag(0), Security(engine_id, boots, seconds, b"m", 0, b""), scoped)[0]
    keys, salt = who.keys(engine_id), b""
    if who.level & Flag.PRIV:
        salt = b"saltsalt"
        scoped = keys.encrypt(scoped, boots=boots, time=seconds, salt=salt)
    return keys.signed(
        *make_secured(number, who.level, Security(engine_id, boots, seconds, who.name, keys.digest_bytes, salt), scoped)
    )


def report(number: int) -> bytes:
    return make_pdu(Kind.REPORT, 0, [(f"{STATS}.{number}.0", ber.from_integer(1, 0x41))])


def response(number: int = 7) -> bytes:
    return make_pdu(Kind.RESPONSE, number, BINDS)


class Site:
    """A conversation with a clock that a test turns; it knows the engine unless told otherwise."""

    def __init__(self, *, knows: bool = True) -> None:
        self.now = 50.0
        self.talk = UserTalk(USER, monotonic=lambda: self.now, random_bytes=lambda count: b"r" * count)
        if knows:
            assert self.talk.hear(7, message(report(4), who=None)) is Verdict.AGAIN

    def asked(self) -> SecuredMessage:
        made = open_message(self.talk.ask(7, make_pdu(Kind.GET, 7, BINDS)))
        assert isinstance(made, SecuredMessage)
        return made


def test_the_first_question_is_for_the_engine() -> None:
    """It says nothing of the user; the next one is asked as the engine must be."""
    site = Site(knows=False)
    first = site.asked()
    assert (first.engine_id, first.user, first.flags) == (b"", b"", Flag.REPORTABLE)
    assert site.talk.hear(7, message(report(4), who=None)) is Verdict.AGAIN
    site.now += 30
    second = site.asked()
    assert (second.engine_id, second.boots, second.time, second.user) == (ENGINE, 5, 1030, b"m")
    assert second.flags == Flag.AUTH | Flag.PRIV | Flag.REPORTABLE
    found = site.talk.hear(7, message(response()))
    assert isinstance(found, Pdu)
    assert found.varbinds[0].oid == BINDS[0][0]


@pytest.mark.parametrize(
    "data",
    [
        message(response(), who=None), message(response(), who=OTHER), message(response(), who=AUTH_ONLY),
        message(response(), number=8), message(response(8)), message(response(), engine_id=ENGINE + b"x"),
        message(make_pdu(Kind.GET, 7, BINDS)), message(report(4), who=None), message(report(2), who=OTHER),
        make_community_message(1, b"public", response()),
    ],
    ids=[
        "unauthenticated", "wrong-digest", "readable", "other-message", "other-request", "other-engine", "no-response",
        "same-engine", "forged-report", "v2c",
    ],
)  # fmt: skip
def test_what_is_no_answer_is_ignored(data: bytes) -> None:
    """And the right one is still taken."""
    site = Site()
    assert site.talk.hear(7, data) is Verdict.NOTHING
    assert isinstance(site.talk.hear(7, message(response())), Pdu)


def test_an_answer_from_the_engine_s_past_is_ignored() -> None:
    """150 seconds behind, or from before its last boot; what nobody signed sets no clock that is believed."""
    site = Site()
    assert isinstance(site.talk.hear(7, message(response(), boots=6, seconds=1000)), Pdu)
    assert site.talk.hear(7, message(response(), boots=6, seconds=849)) is Verdict.NOTHING
    assert site.talk.hear(7, message(response(), boots=5, seconds=5000)) is Verdict.NOTHING
    assert isinstance(site.talk.hear(7, message(response(), boots=6, seconds=850)), Pdu)


def test_a_device_corrects_our_clock() -> None:
    """Its Report about time is signed, and then we ask with that time."""
    site = Site()
    assert site.talk.hear(7, message(report(2), who=AUTH_ONLY, boots=9, seconds=77)) is Verdict.AGAIN
    assert (site.asked().boots, site.asked().time) == (9, 77)


def test_a_device_that_was_exchanged_is_asked_as_what_it_is() -> None:
    """Another engine at the same address, with fewer boots."""
    site = Site()
    assert isinstance(site.talk.hear(7, message(response())), Pdu)
    other = bytes.fromhex("80000000ff")
    assert site.talk.hear(7, message(report(4), who=None, engine_id=other, boots=1, seconds=3)) is Verdict.AGAIN
    assert (site.asked().engine_id, site.asked().boots) == (other, 1)
    assert isinstance(site.talk.hear(7, message(response(), engine_id=other, boots=1, seconds=4)), Pdu)


@pytest.mark.parametrize(
    ("number", "word"), [(1, "level of security"), (3, "this user"), (5, "authentication"), (6, "privacy")]
)
def test_a_report_says_why_we_are_denied(number: int, word: str) -> None:
    """Nobody signs these: a device that does not know the user cannot."""
    with pytest.raises(Denied, match=word):
        Site().talk.hear(7, message(report(number), who=None))


def test_a_community_s_answer_is_to_our_request() -> None:
    """Of our community and version."""
    talk = CommunityTalk(b"public")
    assert isinstance(talk.hear(7, make_community_message(1, b"public", response())), Pdu)
    for version, community, number in ((0, b"public", 7), (1, b"other", 7), (1, b"public", 8)):
        assert talk.hear(7, make_community_message(version, community, response(number))) is Verdict.NOTHING


@given(st.data())
def test_a_damaged_answer_is_an_answer_or_nothing(data: st.DataObject) -> None:
    """No other error, whoever is asked."""
    who = data.draw(st.sampled_from([None, USER, AUTH_ONLY]))
    good = bytearray(message(data.draw(st.sampled_from([report(2), report(4), response()])), who=who))
    at = data.draw(st.integers(0, len(good)))
    good[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    for talk in (Site().talk, CommunityTalk(b"public")):
        with suppress(Denied):
            assert isinstance(talk.hear(7, bytes(good)), Pdu | Verdict)
