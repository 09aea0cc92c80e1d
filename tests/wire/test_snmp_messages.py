"""SNMP's wire format, with pysnmp as the other side, and what is neither: garbage, lies, and too much of everything."""

import time
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.ber import decoder, encoder
from pysnmp.proto import api
from pysnmp.proto.api import v1, v2c

from ndagent.wire.event_names import named
from ndagent.wire.snmp import ber, names, values
from ndagent.wire.snmp.ber import Malformed
from ndagent.wire.snmp.messages import (
    CommunityMessage,
    Kind,
    Pdu,
    Varbind,
    make_community_message,
    make_pdu,
    make_response,
    open_message,
    open_pdu,
)
from ndagent.wire.snmp.notification import Limits, Sender, is_notification, line

UP_TIME, TRAP_OID = "1.3.6.1.2.1.1.3.0", "1.3.6.1.6.3.1.1.4.1.0"
HEAD = [(UP_TIME, ber.from_integer(4711, values.TIME_TICKS)), (TRAP_OID, ber.from_oid("1.3.6.1.6.3.1.1.5.3"))]
SENDER = Sender("192.0.2.1", 40_000, {"version": "2c"})


def trap(*varbinds: tuple[str, bytes], kind: Kind = Kind.TRAP) -> bytes:
    return make_community_message(1, b"public", make_pdu(kind, 99, [*HEAD, *varbinds]))


def read(data: bytes, *, most: int = 256) -> Pdu:
    message = open_message(data)
    assert isinstance(message, CommunityMessage)
    return open_pdu(message.pdu, most=most)


def event(data: bytes, *, most: int = 256, value_bytes: int = 8192) -> dict[str, Any]:
    made, is_cut = line(read(data, most=most), SENDER, moment="2026-09-21T14:13:20Z", limits=Limits(value_bytes))
    found: dict[str, Any] = orjson.loads(made)
    assert is_cut is ("tags" in found)
    return found


def bind(data: bytes) -> dict[str, Any]:
    """The last varbind of its event, but for its oid."""
    found = event(data)["snmp"]["varbinds"][-1]
    return {key: value for key, value in found.items() if key not in ("oid", "name")}


# ---- pysnmp on the other side

octets = st.binary(max_size=40)
oids = st.lists(st.integers(0, 2**32 - 1), max_size=12).map(lambda arcs: (1, 3, 6, *arcs))
theirs = st.one_of(
    st.integers(-(2**31), 2**31 - 1).map(v2c.Integer32),
    octets.map(v2c.OctetString),
    oids.map(v2c.ObjectIdentifier),
    st.binary(min_size=4, max_size=4).map(v2c.IpAddress),
    st.integers(0, 2**32 - 1).map(v2c.Counter32),
    st.integers(0, 2**32 - 1).map(v2c.Gauge32),
    st.integers(0, 2**32 - 1).map(v2c.TimeTicks),
    st.integers(0, 2**64 - 1).map(v2c.Counter64),
    octets.map(v2c.Opaque),
)


@given(st.lists(st.tuples(oids, theirs), max_size=8), octets, st.integers(-(2**31), 2**31 - 1))
def test_what_pysnmp_writes_is_read(
    binds: list[tuple[tuple[int, ...], Any]], community: bytes, request_id: int
) -> None:
    """Every type, every value, any name."""
    module = api.PROTOCOL_MODULES[api.SNMP_VERSION_2C]
    pdu = module.InformRequestPDU()
    module.apiPDU.set_defaults(pdu)
    module.apiPDU.set_request_id(pdu, request_id)
    module.apiPDU.set_varbinds(pdu, binds)
    message = module.Message()
    module.apiMessage.set_defaults(message)
    module.apiMessage.set_community(message, community)
    module.apiMessage.set_pdu(message, pdu)
    whole = encoder.encode(message)
    opened = open_message(whole)
    assert isinstance(opened, CommunityMessage)
    assert (opened.version, opened.community) == (1, community)
    found = open_pdu(opened.pdu, most=100)
    assert (found.kind, found.request_id) == (Kind.INFORM, request_id)
    for (name, value), ours in zip(binds, found.varbinds, strict=True):
        assert ours.oid == ".".join(map(str, name))
        number = values.number(ours)
        if number is not None:
            assert number == int(value)
        elif ours.tag == ber.OID:
            assert ber.oid(ours.contents) == str(value)
        else:
            assert ours.contents == bytes(value)
    answer = make_community_message(1, community, make_response(opened.pdu))
    theirs_again, rest = decoder.decode(answer, asn1Spec=module.Message())
    assert rest == b""
    response = module.apiMessage.get_pdu(theirs_again)
    assert response.isSameTypeWith(module.GetResponsePDU())
    assert module.apiPDU.get_request_id(response) == request_id
    assert len(module.apiPDU.get_varbinds(response)) == len(binds)


def test_a_v1_trap_of_pysnmp_is_read() -> None:
    """With its five fields."""
    pdu = v1.TrapPDU()
    v1.apiTrapPDU.set_defaults(pdu)
    v1.apiTrapPDU.set_enterprise(pdu, (1, 3, 6, 1, 4, 1, 318))
    v1.apiTrapPDU.set_generic_trap(pdu, "enterpriseSpecific")
    v1.apiTrapPDU.set_specific_trap(pdu, 5)
    v1.apiTrapPDU.set_agent_address(pdu, "10.1.2.3")
    v1.apiTrapPDU.set_timestamp(pdu, 2**32 - 1)
    message = v1.Message()
    v1.apiMessage.set_defaults(message)
    v1.apiMessage.set_pdu(message, pdu)
    found = event(encoder.encode(message))
    assert found["event"]["action"] == "upsOnBattery"
    assert found["snmp"]["trap"] == {"oid": "1.3.6.1.4.1.318.0.5", "name": "upsOnBattery", "mib": "PowerNet-MIB"}
    assert found["snmp"]["uptime"]["ticks"] == 2**32 - 1
    assert found["observer"] == {"ip": "10.1.2.3", "vendor": "APC"}


# ---- values


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (ber.from_octets(b"up"), {"type": "octet_string", "value": "up"}),
        (ber.from_octets("größer\n".encode()), {"type": "octet_string", "value": "größer\n"}),
        (ber.from_octets(b"\xff\xfe"), {"type": "octet_string", "hex": "fffe"}),
        (ber.from_octets(b"a\x1b[2J"), {"type": "octet_string", "hex": "611b5b324a"}),
        (ber.from_octets(b"name\0\0"), {"type": "octet_string", "value": "name", "hex": "6e616d650000"}),
        (ber.from_octets(b""), {"type": "octet_string", "value": ""}),
        (ber.from_integer(-5), {"type": "integer", "value": "-5", "number": -5}),
        (
            ber.value(values.COUNTER32, b"\xff\xff\xff\xff"),
            {"type": "counter32", "value": "4294967295", "number": 2**32 - 1},
        ),
        (ber.from_integer(2**64 - 1, values.COUNTER64), {"type": "counter64", "value": str(2**64 - 1)}),
        (ber.value(values.IP_ADDRESS, bytes((192, 0, 2, 7))), {"type": "ip_address", "value": "192.0.2.7"}),
        (ber.from_oid("1.3.6.1.6.3.1.1.5.4"), {"type": "oid", "value": "IF-MIB::linkUp"}),
        (ber.from_oid("2.999.3"), {"type": "oid", "value": "2.999.3"}),
        (bytes((ber.NULL, 0)), {"type": "null"}),
        (b"\x81\x00", {"type": "no_such_instance"}),
        (
            ber.value(values.OPAQUE, bytes.fromhex("9f78043fc00000")),
            {"type": "opaque", "value": "1.5", "hex": "9f78043fc00000"},
        ),
        (ber.value(0x47, b"?"), {"type": "0x47", "hex": "3f"}),
    ],
)  # fmt: skip
def test_a_value_is_told_by_its_type(value: bytes, told: dict[str, Any]) -> None:
    """Numbers that a receiver can keep are numbers; what is no text is hexadecimal."""
    assert bind(trap(("1.3.6.1.4.1.32473.1", value))) == told


def test_a_community_in_a_varbind_is_not_shown() -> None:
    """A proxy adds it (RFC 3584 §4.2)."""
    data = trap(("1.3.6.1.6.3.18.1.4.0", ber.from_octets(b"s3cret")))
    assert "s3cret" not in str(event(data))
    assert bind(data)["value"] == "(not shown)"


def test_a_proxy_s_word_for_the_device_is_the_observer() -> None:
    """snmpTrapAddress (RFC 3584 §4.2)."""
    found = event(trap(("1.3.6.1.6.3.18.1.3.0", ber.value(values.IP_ADDRESS, bytes((10, 9, 8, 7))))))
    assert found["observer"]["ip"] == found["snmp"]["agent_address"] == "10.9.8.7"
    assert found["source"]["ip"] == "192.0.2.1"


def test_a_hardware_address_is_written_as_ecs_writes_one() -> None:
    """ifPhysAddress."""
    address = ber.from_octets(bytes.fromhex("00005e005323"))
    assert bind(trap(("1.3.6.1.2.1.2.2.1.6.3", address)))["value"] == "00-00-5E-00-53-23"


@pytest.mark.parametrize("kind", [Kind.TRAP, Kind.INFORM])
def test_a_line_can_be_named(kind: Kind) -> None:
    """Flags.OWN claims that `"event":{"` stands in it once, whatever the device writes."""
    evil = b'"event":{"id":"x"},"host":{"event":{"'
    data = trap(("1.3.6.1.4.1.32473.1", ber.from_octets(evil)), kind=kind)
    made, _ = line(read(data), SENDER, moment="x", limits=Limits(8192), constants=b'"agent":{"type":"ndagent"},')
    (whole,) = named([made[:-1]], spool_id=b"s", first=1) or []
    assert orjson.loads(whole)["event"]["id"] == "s-1"
    assert b'"host":{' not in whole
    assert b'"syslog":{' not in whole


def test_every_name_of_the_tables_is_found() -> None:
    """And none of an instance hides another."""
    assert names.object_name("1.3.6.1.2.1.31.1.1.1.18.7")[0] == "IF-MIB::ifAlias.7"
    assert names.object_name("1.3.6.1.2.1.2.2.1.1")[0] == "1.3.6.1.2.1.2.2.1.1"  # a column is no instance
    assert names.object_name("1.3.6.1.2.1.2.2.1.10.1.2.3")[0] == "IF-MIB::ifInOctets.1.2.3"
    assert names.notification("1.3.6.1.4.1.9.9.43.2.0.1")[:2] == ("CISCO-CONFIG-MAN-MIB", "ciscoConfigManEvent")
    assert names.vendor("1.3.6.1.4.1.2636.4.1.1") == "Juniper"
    assert names.vendor("1.3.6.1.4.1.26361.4") == ""


# ---- hostile


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_garbage_is_a_message_or_malformed(data: bytes) -> None:
    """Nothing else comes out."""
    try:
        message = open_message(data)
        if isinstance(message, CommunityMessage):
            open_pdu(message.pdu, most=10)
    except Malformed:
        pass


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_trap_is_an_event_or_malformed(data: st.DataObject) -> None:
    """Bytes changed, left out, put in: at any place of a good one, v1 or v2c."""
    extra = [("1.3.6.1.2.1.2.2.1.7.3", ber.from_integer(2)), ("1.3.6.1.4.1.9.2", ber.from_octets(b"x" * 9))]
    old = ber.value(Kind.TRAP_V1, ber.from_oid("1.3.6.1.4.1.9"), ber.value(0x40, bytes(4)), ber.from_integer(6),
                    ber.from_integer(1), ber.from_integer(5, 0x43), ber.value(ber.SEQUENCE))  # fmt: skip
    good = bytearray(data.draw(st.sampled_from([trap(*extra), make_community_message(0, b"public", old)])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not good:
            return
    try:
        pdu = read(bytes(good))
        if is_notification(pdu):
            made, _ = line(pdu, SENDER, moment="x", limits=Limits(64))
            assert named([made[:-1]], spool_id=b"s", first=1)
            orjson.loads(made)
    except Malformed:
        pass
    except AssertionError:
        if not isinstance(open_message(bytes(good)), CommunityMessage):
            return  # it has become v3
        raise


def test_every_prefix_of_a_trap_is_malformed() -> None:
    """Its lengths lie."""
    whole = trap(("1.3.6.1.2.1.2.2.1.2.3", ber.from_octets(b"x" * 200)))
    for end in range(len(whole)):
        with pytest.raises(Malformed):
            read(whole[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\x80\x02\x01\x01\x04\x00\xa7\x00\x00\x00",  # indefinite length
        b"\x30\x85\x00\x00\x00\x00\x03\x02\x01\x01",  # a length of five bytes
        b"\x3f\x1f\x03\x02\x01\x01",  # a tag of several bytes
        ber.value(ber.SEQUENCE, ber.value(ber.INTEGER, bytes(10))),
        ber.value(ber.SEQUENCE, ber.from_integer(2), ber.from_octets(b"public"), b"\xa7\x00"),  # version 2
        trap(("1.3", ber.from_integer(1))).replace(b"\x06\x01\x2b", b"\x06\x01\xab"),  # an arc that does not end
        make_community_message(1, b"", ber.value(0xAF)),
    ],
)  # fmt: skip
def test_what_smi_does_not_know_is_malformed(data: bytes) -> None:
    """Each for a reason of its own."""
    with pytest.raises(Malformed):
        read(data)


def test_an_identifier_is_held_to_its_limits() -> None:
    """RFC 2578 §7.1.3: 128 numbers below 2**32."""
    most = "1.3" + ".4294967295" * 126
    assert ber.oid(ber.from_oid(most)[4:]) == most
    for contents in (b"\x2b" + b"\x01" * 127, b"\x2b\x90\x80\x80\x80\x00", b"", b"\xff" * 700, b"\x80" * 630 + b"\x01"):
        with pytest.raises(Malformed):
            assert ber.oid(contents) != ""


def seconds_for(data: bytes) -> float:
    """To refuse or tell it; the best of three."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        with suppress(Malformed):
            event(data)
        found.append(time.perf_counter() - began)
    return min(found)


def nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = ber.value(ber.SEQUENCE, data)
    return data


@pytest.mark.parametrize(
    "make",
    [
        lambda size: nested(size // 4),
        lambda size: trap(("1.3.6.1.4.1.9", nested(size // 4))),
        lambda size: trap(*[("1.3", bytes((ber.NULL, 0)))] * (size // 8)),
        lambda size: trap(("1.3.6", ber.value(ber.OID, b"\xff" * size + b"\x01"))),
        lambda size: trap(*[("1.3" + ".4294967295" * 100, bytes((ber.NULL, 0)))] * (size // 520)),
        lambda size: trap(("1.3.6", ber.value(ber.INTEGER, b"\x7f" * size))),
    ],
    ids=["nested", "nested-value", "varbinds", "huge-oid", "long-names", "huge-integer"],
)
def test_a_full_datagram_of_anything_costs_little(make: Any) -> None:
    """64 KiB in a time that no machine needs, however busy: what grows with the square takes minutes."""
    assert seconds_for(make(60_000)) < 1.0


def test_of_ten_thousand_varbinds_some_are_told_and_all_are_counted() -> None:
    """In a datagram as long as UDP has them; the event is tagged and bounded."""
    data = trap(*[("1.3", bytes((ber.NULL, 0)))] * 8000)
    assert len(data) < 65507
    found = event(data, most=256)
    assert len(found["snmp"]["varbinds"]) == 256
    assert found["snmp"]["varbinds_omitted"] == 8002 - 256
    assert found["tags"] == ["_truncated"]
    assert len(orjson.dumps(found)) < 64_000
    assert len(found["message"]) <= 1100


def test_a_long_value_is_cut_and_said() -> None:
    """At the limit whole, a byte behind it cut."""
    for size, is_cut in ((64, False), (65, True)):
        found = event(trap(("1.3.6.1.4.1.9.2", ber.from_octets(b"x" * size))), value_bytes=64)
        assert found["snmp"]["varbinds"][-1]["value"] == "x" * 64
        assert found["snmp"]["varbinds"][-1].get("truncated") == (65 if is_cut else None)
        assert ("tags" in found) is is_cut


def test_a_notification_without_its_name_is_malformed() -> None:
    """snmpTrapOID is what it is about."""
    with pytest.raises(Malformed, match="snmpTrapOID"):
        event(make_community_message(1, b"public", make_pdu(Kind.TRAP, 1, HEAD[:1])))


def test_lengths_longer_than_needed_are_read() -> None:
    """Devices send them."""
    inner = trap()[2:]
    assert read(b"\x30\x84" + len(inner).to_bytes(4) + inner).kind is Kind.TRAP
    assert Varbind("1", 2, b"").oid == "1"


@pytest.mark.parametrize("number", [2**64, 2**71 - 1, -(2**63) - 1, -(2**71)])
@pytest.mark.parametrize("make", [
    lambda number: make_community_message(1, b"public", make_pdu(Kind.TRAP, number, HEAD)),
    lambda number: trap(("1.3.6.1.4.1.9", ber.from_integer(number))),
    lambda number: trap(("1.3.6.1.4.1.9", ber.value(values.COUNTER64, (number % 2**72).to_bytes(9)))),
    lambda number: old_trap(generic=number),
    lambda number: old_trap(specific=number),
], ids=["request-id", "integer", "counter64", "generic", "specific"])  # fmt: skip
def test_a_number_that_no_event_can_hold_is_malformed(make: Any, number: int) -> None:
    """Nine bytes may hold more than JSON's readers take."""
    with pytest.raises(Malformed):
        event(make(number))


def test_an_uptime_that_cannot_be_is_left_out() -> None:
    """TimeTicks have 32 bits; the trap is an event all the same, with the varbind as it came."""
    ticks = ber.from_integer(2**64 - 1, values.TIME_TICKS)
    data = make_community_message(1, b"public", make_pdu(Kind.TRAP, 1, [(UP_TIME, ticks), HEAD[1]]))
    found = event(data)["snmp"]
    assert "uptime" not in found
    assert found["varbinds"][0]["value"] == str(2**64 - 1)
    assert "uptime" not in event(old_trap(ticks=2**64 - 1))["snmp"]


def old_trap(*, generic: int = 6, specific: int = 1, ticks: int = 5) -> bytes:
    """Of v1."""
    numbers = (ber.from_integer(generic), ber.from_integer(specific), ber.from_integer(ticks, values.TIME_TICKS))
    head = (ber.from_oid("1.3.6.1.4.1.9"), ber.value(values.IP_ADDRESS, bytes(4)))
    return make_community_message(0, b"public", ber.value(Kind.TRAP_V1, *head, *numbers, ber.value(ber.SEQUENCE)))
