"""SNMPv3's keys against the RFCs' own examples and pysnmp; whose time is believed; what survives a restart."""

import logging
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.type.univ import OctetString
from pysnmp.proto.secmod.rfc3414 import localkey
from pysnmp.proto.secmod.rfc3826.priv import aes

from ndagent.core.snmp_engine import MOST_BOOTS, Engine
from ndagent.core.snmp_security import Gate, Refusal
from ndagent.core.snmp_usm import AuthName, PrivacyName, User
from ndagent.core.spool.files import OsFiles
from ndagent.wire.snmp import ber
from ndagent.wire.snmp.ber import Malformed
from ndagent.wire.snmp.messages import (
    MIN_MAX_SIZE,
    OUR_MAX_SIZE,
    Flag,
    Kind,
    Security,
    make_pdu,
    make_scoped,
    make_secured,
)

THEIRS = bytes.fromhex("8000000001020304")
RFC_ENGINE = bytes.fromhex("000000000000000000000002")
HEAD = [("1.3.6.1.6.3.1.1.4.1.0", ber.from_oid("1.3.6.1.6.3.1.1.5.3"))]


def user(auth: AuthName = "SHA-256", privacy: PrivacyName = "AES", name: str = "traps") -> User:
    return User(name, auth=auth, auth_password="correct horse", privacy=privacy, privacy_password="battery staple")


class Site:
    """An engine with a clock that a test turns."""

    def __init__(self, directory: Path, *, engines: int = 3) -> None:
        self.now = 1000.0
        self.path = directory / "snmp_trap" / "x.json"
        self.engine = Engine(
            self.path, files=OsFiles(), monotonic=lambda: self.now, random_bytes=lambda count: b"\x07" * count,
            engines=engines, log=logging.getLogger("x"),
        )  # fmt: skip

    async def opened(self) -> Engine:
        await self.engine.open()
        return self.engine


def test_the_example_of_rfc_3414() -> None:
    """§A.3.2: password, engine and key; the digest is another test's."""
    maple = User("x", auth="SHA", auth_password="maplesyrup", privacy="none", privacy_password="")
    assert maple.keys(RFC_ENGINE).auth.hex() == "6695febc9288e36282235fc7151f128497b38f3f"


@settings(max_examples=15)  # a megabyte of hashing each, twice
@given(st.text("abcdefgh ü", min_size=8, max_size=70), st.binary(min_size=5, max_size=32))
def test_keys_are_pysnmp_s(password: str, engine_id: bytes) -> None:
    """Whatever the password's length is to the megabyte."""
    ours = User("x", auth="SHA", auth_password=password, privacy="none", privacy_password="").keys(engine_id).auth
    assert ours == bytes(localkey.password_to_key_sha(OctetString(password.encode()), OctetString(engine_id)))


@given(st.binary(min_size=1, max_size=100), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_privacy_is_pysnmp_s(data: bytes, boots: int, seconds: int) -> None:
    """They encrypt and we decrypt, and the other way round."""
    keys = KEYS
    service = aes.Aes()
    encrypted, salt = service.encrypt_data(OctetString(keys.privacy), (boots, seconds, None), data)
    assert keys.decrypt(bytes(encrypted), boots=boots, time=seconds, salt=bytes(salt)) == data
    ours = keys.encrypt(data, boots=boots, time=seconds, salt=b"saltsalt")
    theirs = (boots, seconds, OctetString(b"saltsalt"))
    again = service.decrypt_data(OctetString(keys.privacy), theirs, OctetString(ours))
    assert bytes(again) == data


KEYS = user("SHA").keys(THEIRS)


async def test_boots_count_up_and_the_id_stays(tmp_path: Path) -> None:
    """Over restarts."""
    first = await Site(tmp_path).opened()
    second = await Site(tmp_path).opened()
    assert first.engine_id == second.engine_id
    assert 5 <= len(first.engine_id) <= 32
    assert first.engine_id[0] & 0x80  # RFC 3411 §5, SnmpEngineID (1)
    assert (first.boots, second.boots) == (1, 2)


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b'{"version":2}', b"\xff" * 100, b'{"version":1,"engine_id":"00","boots":1,"clocks":{}}'],
)
async def test_a_damaged_file_costs_a_new_engine(tmp_path: Path, data: bytes) -> None:
    """It starts, and the next start finds a good file."""
    site = Site(tmp_path)
    site.path.parent.mkdir()
    site.path.write_bytes(data)
    engine = await site.opened()
    assert engine.boots == 1
    assert (await Site(tmp_path).opened()).boots == 2


async def test_an_engine_that_cannot_be_saved_is_another_each_time(tmp_path: Path) -> None:
    """So that no boot is counted twice."""
    (tmp_path / "snmp_trap").write_text("in the way")
    site = Site(tmp_path)
    ids = iter((b"a" * 12, b"b" * 12))
    site.engine._random_bytes = lambda _: next(ids)
    engine = await site.opened()
    assert engine.engine_id.endswith(b"b" * 12)
    assert engine.boots == 1


async def test_a_clock_goes_forward_only(tmp_path: Path) -> None:
    """RFC 3414 §3.2 7 b: 150 seconds late, fewer boots, the last boot."""
    site = Site(tmp_path)
    engine = await site.opened()
    assert engine.is_theirs_now(THEIRS, 5, 1000)
    assert engine.is_theirs_now(THEIRS, 5, 850)
    assert not engine.is_theirs_now(THEIRS, 5, 849)
    assert not engine.is_theirs_now(THEIRS, 4, 2000)
    assert engine.is_theirs_now(THEIRS, 6, 0)
    assert not engine.is_theirs_now(THEIRS, 5, 1000)
    site.now += 500
    assert not engine.is_theirs_now(THEIRS, 6, 0)
    assert engine.is_theirs_now(THEIRS, 6, 1)  # newer than all that came: a slow clock is no replay
    assert not engine.is_theirs_now(THEIRS, MOST_BOOTS, 0)


async def test_a_replay_is_known_after_a_restart(tmp_path: Path) -> None:
    """What was heard last is the earliest that is believed, less the window."""
    engine = await Site(tmp_path).opened()
    engine.is_theirs_now(THEIRS, 5, 1000)
    await engine.save()
    again = await Site(tmp_path).opened()
    assert not again.is_theirs_now(THEIRS, 5, 849)
    assert not again.is_theirs_now(THEIRS, 4, 1000)
    assert again.is_theirs_now(THEIRS, 5, 850)


async def test_clocks_are_bounded_and_the_longest_silent_goes_first(tmp_path: Path) -> None:
    """Here three."""
    engine = await Site(tmp_path, engines=3).opened()
    for number in (1, 2, 3, 1, 4):
        engine.is_theirs_now(bytes((0x80, 0, 0, 0, number)), 5, 1000)
    assert (len(engine), engine.evicted) == (3, 1)
    assert not engine.is_theirs_now(bytes((0x80, 0, 0, 0, 1)), 4, 0)
    assert engine.is_theirs_now(bytes((0x80, 0, 0, 0, 2)), 4, 0)  # forgotten


def message(
    who: User, *, engine_id: bytes = THEIRS, boots: int = 5, seconds: int = 1000, kind: Kind = Kind.TRAP,
    flags: int = 0, salt: bytes = b"saltsalt",
) -> bytes:  # fmt: skip
    keys = who.keys(engine_id)
    scoped = make_scoped(engine_id, b"", make_pdu(kind, 7, HEAD))
    if who.level & Flag.PRIV:
        scoped = keys.encrypt(scoped, boots=boots, time=seconds, salt=salt)
    security = Security(engine_id, boots, seconds, who.name, keys.digest_bytes, salt if who.level & Flag.PRIV else b"")
    whole, at = make_secured(7, Flag(who.level | flags), security, scoped)
    return keys.signed(whole, at) if who.level & Flag.AUTH else whole


def gate(engine: Engine, *users: User) -> Gate:
    return Gate(
        communities=[b"public"], users={one.name: one for one in users}, engine=engine, random_bytes=lambda n: b"s" * n
    )


async def test_a_replayed_trap_is_refused(tmp_path: Path) -> None:
    """The very bytes that were good before the device's next boot."""
    site = Site(tmp_path)
    opens = gate(await site.opened(), user()).open
    old = message(user())
    assert opens(old).facts["engine_id"] == THEIRS.hex()
    opens(old)  # UDP may bring it twice
    opens(message(user(), boots=6, seconds=1))
    with pytest.raises(Refusal) as refused:
        opens(old)
    assert refused.value.reason == "not_in_time_window"


async def test_an_inform_from_our_past_is_refused_with_our_time(tmp_path: Path) -> None:
    """And before our boot; a sender that knows no time yet is only told."""
    site = Site(tmp_path)
    engine = await site.opened()
    opens = gate(engine, user()).open

    def ours(boots: int, seconds: int) -> bytes:
        return message(
            user(), engine_id=engine.engine_id, boots=boots, seconds=seconds, kind=Kind.INFORM, flags=Flag.REPORTABLE
        )

    assert opens(ours(1, 150)).pdu[0] == Kind.INFORM
    for boots, seconds, is_handshake in ((1, 151, False), (2, 0, False), (0, 0, True)):
        with pytest.raises(Refusal) as refused:
            opens(ours(boots, seconds))
        assert refused.value.reason == "not_in_time_window"
        assert refused.value.report is not None
        assert refused.value.is_handshake is is_handshake


async def test_an_inform_for_another_engine_is_not_ours_to_acknowledge(tmp_path: Path) -> None:
    """Without the reportable flag it reads like a trap."""
    opens = gate(await Site(tmp_path).opened(), user()).open
    with pytest.raises(Refusal) as refused:
        opens(message(user(), kind=Kind.INFORM))
    assert refused.value.reason == "unknown_engine"
    assert refused.value.report is None


@pytest.mark.parametrize("privacy", ["AES", "none"])
async def test_a_trap_that_claims_to_be_reportable_is_a_trap(tmp_path: Path, privacy: PrivacyName) -> None:
    """RFC 3412 §6.4 forbids it, and gosnmp did so for years; one that is not right is refused, and its class counts."""
    opens = gate(await Site(tmp_path).opened(), user(privacy=privacy)).open
    opened = opens(message(user(privacy=privacy), flags=Flag.REPORTABLE))
    assert (opened.pdu[0], opened.facts["engine_id"]) == (Kind.TRAP, THEIRS.hex())
    bad = User("traps", auth="SHA-256", auth_password="incorrect horse", privacy=privacy, privacy_password="staple bat")
    for kind, is_told in ((Kind.TRAP, privacy == "AES"), (Kind.INFORM, True)):
        with pytest.raises(Refusal) as refused:
            opens(message(bad, flags=Flag.REPORTABLE, kind=kind))
        assert refused.value.reason == "unknown_engine"
        assert (refused.value.report is not None) is is_told


@pytest.mark.parametrize("kind", [Kind.REPORT, Kind.RESPONSE, Kind.TRAP])
async def test_what_is_an_answer_is_never_answered(tmp_path: Path, kind: Kind) -> None:
    """Whatever its flag says: two engines would go on for ever."""
    engine = await Site(tmp_path).opened()
    nobody = user("none", "none", "nobody")
    for engine_id in (engine.engine_id, THEIRS, b""):
        with pytest.raises(Refusal) as refused:
            gate(engine, user()).open(message(nobody, engine_id=engine_id, kind=kind, flags=Flag.REPORTABLE))
        assert (refused.value.report, refused.value.is_handshake) == (None, False)


async def test_without_authentication_only_who_is_configured_so(tmp_path: Path) -> None:
    """noAuthNoPriv has to be written."""
    engine = await Site(tmp_path).opened()
    plain = user("none", "none", "plain")
    assert gate(engine, plain).open(message(plain)).facts["security_level"] == "noAuthNoPriv"
    with pytest.raises(Refusal):
        gate(engine, user(name="plain")).open(message(plain))
    with pytest.raises(Refusal):
        gate(engine, plain).open(message(user(name="plain")))


async def test_a_wrong_privacy_password_is_called_that(tmp_path: Path) -> None:
    """Not malformed: the message is authentic, whoever sends it needs to know."""
    opens = gate(await Site(tmp_path).opened(), user()).open
    other = User("traps", auth="SHA-256", auth_password="correct horse", privacy="AES", privacy_password="battery acid")
    with pytest.raises(Refusal) as refused:
        opens(message(other))
    assert refused.value.reason == "decryption"


@pytest.mark.parametrize("asked", [b"", b"ours"])
async def test_a_report_is_no_use_to_forgers_of_addresses(tmp_path: Path, asked: bytes) -> None:
    """The shortest question that is right is answered, however old our engine is; a shorter one is only counted."""
    site = Site(tmp_path)
    engine = await site.opened()
    engine.boots, site.now = 2**30, 2.0**30
    security = Security(engine.engine_id if asked else b"", 0, 0, b"", 0, b"")
    right, _ = make_secured(1, Flag.REPORTABLE, security, make_scoped(b"", b"", make_pdu(Kind.GET, 1, ())))
    lie, _ = make_secured(1, Flag.REPORTABLE, security._replace(engine_id=b""), b"\x30\x00")
    smallest = right.replace(ber.from_integer(OUR_MAX_SIZE), ber.from_integer(MIN_MAX_SIZE))
    opens = gate(engine, user()).open
    for question in (right, shortened(smallest)):
        with pytest.raises(Refusal) as refused:
            opens(question)
        assert refused.value.report is not None
        assert len(refused.value.report) <= 2 * len(question) + 16
    with pytest.raises(Refusal) as refused:
        opens(lie)
    assert refused.value.report is None
    assert not refused.value.is_handshake
    with pytest.raises(Malformed):
        opens(shortened(right.replace(ber.from_integer(OUR_MAX_SIZE), ber.from_integer(MIN_MAX_SIZE - 1))))


def shortened(whole: bytes) -> bytes:
    """A message whose header has become a byte less: its lengths told again."""
    return b"\x30" + bytes((whole[1] - 1, *whole[2:6], whole[6] - 1)) + whole[7:]


async def test_every_changed_bit_of_a_message_is_noticed(tmp_path: Path) -> None:
    """Refused or malformed, and no other error; a community's message has no such protection."""
    engine = await Site(tmp_path).opened()
    opens = gate(engine, user()).open
    good = message(user())
    for at in range(len(good)):
        for bit in (1, 0x80):
            bad = bytearray(good)
            bad[at] ^= bit
            with pytest.raises((Refusal, Malformed)):
                opens(bytes(bad))
    assert len(engine) == 0


@given(data=st.binary(max_size=200), at=st.integers(0, 200), size=st.integers(0, 30))
def test_garbage_in_a_message_of_v3_is_refused(data: bytes, at: int, size: int) -> None:
    """Refusal or Malformed, nothing else, whatever is put where."""
    engine = Engine(
        Path("/nonexistent/x"), files=OsFiles(), monotonic=lambda: 0.0, random_bytes=bytes, engines=3,
        log=logging.getLogger("x"),
    )  # fmt: skip
    good = message(PLAIN)
    with suppress(Refusal, Malformed):
        gate(engine, PLAIN).open(good[:at] + data + good[at + size :])


PLAIN = user("none", "none", "plain")
