"""Packets from bytes: the standard's examples, every cut, every limit, and what must be refused with which reason."""

import contextlib
import struct
import time
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqtt_client import PINGREQ, V5, V311, Properties, Writer, packet, properties, text, u16, u32, variable

from ndagent.wire.mqtt_codes import MqttError, PacketType, Reason
from ndagent.wire.mqtt_fields import MAX_VARIABLE, Fields, write_variable
from ndagent.wire.mqtt_packets import (
    MAX_FILTERS,
    Auth,
    Connect,
    Disconnect,
    Filter,
    Packet,
    Ping,
    Puback,
    Publish,
    Subscribe,
    Unsubscribe,
    Will,
)
from ndagent.wire.mqtt_properties import MAX_PROPERTIES, Property
from ndagent.wire.mqtt_reader import MAX_CONNECT_BYTES, Reader

LIMIT = 2**20
W5, W3 = Writer(V5), Writer(V311)
CONNECT = {V5: W5.connect("a"), V311: W3.connect("a")}


def read(*pieces: bytes, version: int = V5, limit: int = LIMIT, connected: bool = True) -> list[Packet]:
    """What a client's bytes, in these pieces, are; its CONNECT is left out if it came before them."""
    reader = Reader(limit)
    if connected:
        assert len(list(reader.feed(CONNECT[version]))) == 1
    return [found for piece in pieces for found in reader.feed(piece)]


def refusal(data: bytes, *, version: int = V5, limit: int = LIMIT, connected: bool = True) -> Reason:
    """Why these bytes end the connection."""
    with pytest.raises(MqttError) as caught:
        read(data, version=version, limit=limit, connected=connected)
    return caught.value.reason


def plain(packets: Iterable[Packet]) -> list[Packet]:
    """Payloads as bytes, whoever owns them."""
    return [one._replace(payload=bytes(one.payload)) if isinstance(one, Publish) else one for one in packets]


WILL = Will("s", b"gone", 1, retain=False, properties={Property.WILL_DELAY_INTERVAL: 5})
# The variable headers are the standard's own examples (figures 3-6, 3-9, 3-21, 3-28 of version 5).
GOLDEN: list[tuple[int, str, Packet]] = [
    (
        V5,
        "10 28 0004 4D515454 05 CE 000A 05 11 0000000A 0001 61 05 18 00000005 0001 73 0004 676F6E65 0001 75 0001 70",
        Connect(V5, "a", True, 10, WILL, {Property.SESSION_EXPIRY_INTERVAL: 10}),
    ),
    (
        V311,
        "10 1C 0004 4D515454 04 CE 000A 0001 61 0001 73 0004 676F6E65 0001 75 0001 70",
        Connect(V311, "a", True, 10, Will("s", b"gone", 1, retain=False, properties={}), {}),
    ),
    (V5, "32 0A 0003 612F62 000A 00 6869", Publish("a/b", b"hi", 1, False, False, 10, {})),
    (V311, "3B 09 0003 612F62 000A 6869", Publish("a/b", b"hi", 1, True, True, 10, {})),
    (V5, "30 06 0003 612F62 00", Publish("a/b", b"", 0, False, False, 0, {})),
    (
        V5,
        "32 17 0003 612F62 000A 0E 01 01 02 0000003C 26 0001 6B 0001 76 78",
        Publish(
            "a/b", b"x", 1, False, False, 10,
            {Property.PAYLOAD_FORMAT_INDICATOR: 1, Property.MESSAGE_EXPIRY_INTERVAL: 60},
        ),
    ),
    (V5, "40 02 000A", Puback(10, 0)),
    (V5, "40 03 000A 10", Puback(10, 16)),
    (V5, "40 08 000A 87 04 1F 0001 6E", Puback(10, 135)),
    (V311, "40 02 000A", Puback(10, 0)),
    (
        V5,
        "82 0F 000A 00 0003 612F62 01 0003 632F64 02",
        Subscribe(10, [Filter("a/b", 1), Filter("c/d", 2)], 0),
    ),
    (V5, "82 0B 000A 02 0B 07 0003 612F62 2D", Subscribe(10, [Filter("a/b", 1, True, True, 2)], 7)),
    (V311, "82 0E 000A 0003 612F62 01 0003 632F64 02", Subscribe(10, [Filter("a/b", 1), Filter("c/d", 2)], 0)),
    (V5, "A2 0D 000A 00 0003 612F62 0003 632F64", Unsubscribe(10, ["a/b", "c/d"])),
    (V311, "A2 0C 000A 0003 612F62 0003 632F64", Unsubscribe(10, ["a/b", "c/d"])),
    (V5, "C0 00", Ping()),
    (V5, "E0 00", Disconnect(0, {})),
    (V5, "E0 01 04", Disconnect(4, {})),
    (V5, "E0 07 00 05 11 00000000", Disconnect(0, {Property.SESSION_EXPIRY_INTERVAL: 0})),
    (V311, "E0 00", Disconnect(0, {})),
    (V5, "F0 00", Auth(0, {})),
    (V5, "F0 06 18 04 15 0001 6D", Auth(0x18, {Property.AUTHENTICATION_METHOD: "m"})),
]  # fmt: skip
IDS = [f"{type(found).__name__} of version {version}: {raw[:5]}" for version, raw, found in GOLDEN]


@pytest.mark.parametrize(("version", "raw", "expected"), GOLDEN, ids=IDS)
class TestGolden:
    """Known bytes are read as the standard says, however they come."""

    def test_whole_and_with_a_packet_behind_it(self, version: int, raw: str, expected: Packet) -> None:
        """What follows a packet is the next one's."""
        data, connected = bytes.fromhex(raw), not isinstance(expected, Connect)
        assert read(data, version=version, connected=connected) == [expected]
        assert read(data + PINGREQ, version=version, connected=connected) == [expected, Ping()]

    def test_every_proper_prefix_needs_more(self, version: int, raw: str, expected: Packet) -> None:
        """And the rest completes it, at any cut."""
        data, connected = bytes.fromhex(raw), not isinstance(expected, Connect)
        for cut in range(1, len(data)):
            assert read(data[:cut], version=version, connected=connected) == []
            assert plain(read(data[:cut], data[cut:], version=version, connected=connected)) == [expected]

    def test_byte_by_byte(self, version: int, raw: str, expected: Packet) -> None:
        """Three of them in a row (a CONNECT once), a byte at a time."""
        data, connected = bytes.fromhex(raw), not isinstance(expected, Connect)
        times = 3 if connected else 1
        pieces = [bytes((byte,)) for byte in data * times]
        assert plain(read(*pieces, version=version, connected=connected)) == [expected] * times

    def test_a_packet_that_is_shorter_than_its_fields_is_malformed(
        self, version: int, raw: str, expected: Packet
    ) -> None:
        """A body cut anywhere never reads into what follows; where it still makes sense it is another packet."""
        data, connected = bytes.fromhex(raw), not isinstance(expected, Connect)
        for size in range(len(data) - 2):
            cut = packet(data[0], data[2 : 2 + size])
            with contextlib.suppress(MqttError):
                first, second = read(cut + PINGREQ, version=version, connected=connected)
                assert type(first) is type(expected)
                assert second == Ping()


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        (0, "00"), (127, "7F"), (128, "8001"), (16383, "FF7F"), (16384, "808001"), (2097151, "FFFF7F"),
        (2097152, "80808001"), (268435455, "FFFFFF7F"),
    ],
)  # fmt: skip
def test_variable_byte_integers_of_the_standard(value: int, raw: str) -> None:
    """Table 1-1: the first and last value of each length."""
    assert write_variable(value).hex().upper() == raw
    fields = Fields(memoryview(bytes.fromhex(raw)))
    assert fields.variable() == value
    assert fields.left == 0


@pytest.mark.parametrize("raw", ["8000", "FF00", "FFFF8000", "8080808001", "FFFFFFFF7F"])
def test_a_variable_byte_integer_of_more_bytes_than_needed_or_than_four_is_malformed(raw: str) -> None:
    """[MQTT-1.5.5-1]."""
    with pytest.raises(MqttError, match="more"):
        Fields(memoryview(bytes.fromhex(raw))).variable()


def test_a_number_beyond_four_bytes_cannot_be_written() -> None:
    """268 435 455 is the last."""
    with pytest.raises(ValueError, match="beyond"):
        write_variable(MAX_VARIABLE + 1)


def test_text_of_the_standard() -> None:
    """Figure 1-4: A and U+2A6D4; a zero width no-break space in front is a character like others."""
    assert Fields(memoryview(bytes.fromhex("000541F0AA9B94"))).text() == "A\N{CJK UNIFIED IDEOGRAPH-2A6D4}"
    assert Fields(memoryview(bytes.fromhex("0003EFBBBF"))).text() == "\ufeff"


@pytest.mark.parametrize("raw", [b"\xed\xa0\x80", b"\xc0\x80", b"a\x00b", b"\xff", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_text_that_is_not_well_formed_is_malformed(raw: bytes) -> None:
    """Surrogates, overlong forms, U+0000, beyond Unicode, cut: [MQTT-1.5.4-1], [MQTT-1.5.4-2]."""
    assert refusal(packet(0x32, text(raw) + u16(1) + b"\0")) == Reason.MALFORMED_PACKET


class TestOrder:
    """What may stand where."""

    @pytest.mark.parametrize("first", [byte for byte in range(256) if byte != 0x10])
    def test_nothing_comes_before_connect(self, first: int) -> None:
        """[MQTT-3.1.0-1], seen by the first byte alone."""
        assert refusal(bytes((first,)), connected=False) == Reason.PROTOCOL_ERROR

    def test_connect_comes_once(self) -> None:
        """[MQTT-3.1.0-2]."""
        assert refusal(CONNECT[V5]) == Reason.PROTOCOL_ERROR

    @pytest.mark.parametrize("kind", [PacketType.CONNACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP,
                                      PacketType.SUBACK, PacketType.UNSUBACK, PacketType.PINGRESP])  # fmt: skip
    def test_what_only_servers_or_qos_2_send_is_refused(self, kind: PacketType) -> None:
        """By the first byte alone."""
        assert refusal(bytes((kind << 4 | (2 if kind is PacketType.PUBREL else 0),))) == Reason.PROTOCOL_ERROR

    def test_type_0_and_auth_of_3_1_1_are_malformed(self) -> None:
        """§2.1.2."""
        assert refusal(b"\0") == Reason.MALFORMED_PACKET
        assert refusal(b"\xf0\0", version=V311) == Reason.MALFORMED_PACKET

    @pytest.mark.parametrize("kind", [PacketType.PUBACK, PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE,
                                      PacketType.PINGREQ, PacketType.DISCONNECT, PacketType.AUTH])  # fmt: skip
    def test_reserved_flags(self, kind: PacketType) -> None:
        """[MQTT-2.1.3-1]: one value is right, fifteen are not."""
        right = 2 if kind in (PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE) else 0
        for flags in set(range(16)) - {right}:
            assert refusal(bytes((kind << 4 | flags,))) == Reason.MALFORMED_PACKET
        assert read(bytes((kind << 4 | right,))) == []

    @pytest.mark.parametrize(
        ("flags", "reason"),
        [
            (0b0100, Reason.QOS_NOT_SUPPORTED), (0b1100, Reason.QOS_NOT_SUPPORTED), (0b0110, Reason.MALFORMED_PACKET),
            (0b1000, Reason.PROTOCOL_ERROR),
        ],
    )  # fmt: skip
    def test_flags_of_publish(self, flags: int, reason: Reason) -> None:
        """QoS 2 is 155, QoS 3 malformed [MQTT-3.3.1-4], DUP needs QoS 1 [MQTT-3.3.1-2]; by the first byte alone."""
        assert refusal(bytes((0x30 | flags,))) == reason


def _connect(flags: int, *, level: int = V5, name: str = "MQTT", rest: bytes = b"\0\0\x01a") -> bytes:
    return packet(0x10, text(name) + bytes((level, flags)) + u16(0) + rest)


class TestConnect:
    """§3.1."""

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (_connect(0x03), Reason.MALFORMED_PACKET),  # the reserved flag [MQTT-3.1.2-3]
            (_connect(0x0A), Reason.MALFORMED_PACKET),  # will QoS without a will [MQTT-3.1.2-11]
            (_connect(0x22), Reason.MALFORMED_PACKET),  # will retain without a will [MQTT-3.1.2-13]
            (_connect(0x1E, rest=b"\0\0\x01a\0\0\x01s\0\0"), Reason.MALFORMED_PACKET),  # will QoS 3
            (_connect(0x02, rest=b"\0\0\x01a?"), Reason.MALFORMED_PACKET),  # a byte too many
            (_connect(0x42, level=V311, rest=b"\0\x01a\0\x01p"), Reason.MALFORMED_PACKET),  # password, no name
            (_connect(0x02, level=6), Reason.UNSUPPORTED_PROTOCOL_VERSION),
            (_connect(0x02, level=3), Reason.UNSUPPORTED_PROTOCOL_VERSION),
            (_connect(0x02, level=3, name="MQIsdp"), Reason.UNSUPPORTED_PROTOCOL_VERSION),
            (_connect(0x02, level=4, name="MQIsdp"), Reason.UNSUPPORTED_PROTOCOL_VERSION),
            (_connect(0x02, name="mqtt"), Reason.UNSUPPORTED_PROTOCOL_VERSION),
            (_connect(0x02, rest=b"\x04\x16\0\x01d\0\x01a"), Reason.PROTOCOL_ERROR),  # data without a method
            (W5.connect("a", will=("a/#", b"")), Reason.TOPIC_NAME_INVALID),
            (W5.connect("a", will=("", b"")), Reason.PROTOCOL_ERROR),
        ],
    )
    def test_refused(self, data: bytes, reason: Reason) -> None:
        """Each with its reason."""
        assert refusal(data, connected=False) == reason

    def test_a_password_without_a_name_is_allowed_in_5(self) -> None:
        """§3.1.2.9 dropped that rule of 3.1.1."""
        (found,) = read(W5.connect("a", password=b"p"), connected=False)
        assert isinstance(found, Connect)

    def test_the_version_is_known_where_it_was_said(self) -> None:
        """So that the refusal can be told in its form."""
        told = [
            (_connect(3), V5),
            (_connect(3, level=V311, rest=b"\0\x01a"), V311),
            (_connect(2, level=9), V5),
            (_connect(2, level=3, name="MQIsdp"), V311),
            (_connect(2, name="x"), 0),
        ]
        for data, version in told:
            reader = Reader(LIMIT)
            with pytest.raises(MqttError):
                list(reader.feed(data))
            assert reader.version == version
            assert not reader.connected


class TestRules:
    """Of the other packets."""

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (W5.publish("a", b"", 0), Reason.MALFORMED_PACKET),  # packet identifier 0 [MQTT-2.2.1-3]
            (W5.publish("", b"", 1), Reason.PROTOCOL_ERROR),
            (W5.publish("a/+", b"", 1), Reason.TOPIC_NAME_INVALID),  # [MQTT-3.3.2-2]
            (W5.publish("a", b"", 1, values=[(0x23, u16(1))]), Reason.TOPIC_ALIAS_INVALID),
            (W5.publish("", b"", 1, values=[(0x23, u16(1))]), Reason.TOPIC_ALIAS_INVALID),
            (W5.publish("a", b"", 1, values=[(0x08, text("b/#"))]), Reason.PROTOCOL_ERROR),  # [MQTT-3.3.2-14]
            (packet(0x40, u16(0)), Reason.MALFORMED_PACKET),
            (packet(0x40, u16(1) + b"\x01"), Reason.MALFORMED_PACKET),
            (packet(0x40, u16(1) + b"\0\0\0"), Reason.MALFORMED_PACKET),
            (W5.subscribe(0, ("a", 1)), Reason.MALFORMED_PACKET),
            (W5.subscribe(1), Reason.PROTOCOL_ERROR),  # [MQTT-3.8.3-2]
            (W5.subscribe(1, ("", 1)), Reason.PROTOCOL_ERROR),
            (W5.subscribe(1, ("a", 3)), Reason.MALFORMED_PACKET),  # QoS 3
            (W5.subscribe(1, ("a", 0x41)), Reason.MALFORMED_PACKET),  # [MQTT-3.8.3-5]
            (W5.subscribe(1, ("a", 0x31)), Reason.PROTOCOL_ERROR),  # retain handling 3
            (W5.subscribe(1, ("$share/g/a", 0x05)), Reason.PROTOCOL_ERROR),  # [MQTT-3.8.3-4]
            (W5.unsubscribe(1), Reason.PROTOCOL_ERROR),  # [MQTT-3.10.3-2]
            (packet(0xC0, b"x"), Reason.MALFORMED_PACKET),
            (packet(0xE0, b"\x87"), Reason.MALFORMED_PACKET),  # a server's reason
            (packet(0xF0, b"\x01"), Reason.MALFORMED_PACKET),
        ],
    )
    def test_refused(self, data: bytes, reason: Reason) -> None:
        """Each with its reason."""
        assert refusal(data) == reason

    @pytest.mark.parametrize("data", [packet(0xE0, b"\0"), packet(0x40, u16(1) + b"\0"), W3.subscribe(1, ("a", 4))])
    def test_what_5_added_is_malformed_in_3_1_1(self, data: bytes) -> None:
        """Reason codes and subscription options."""
        assert refusal(data, version=V311) == Reason.MALFORMED_PACKET

    def test_filters_in_one_packet(self) -> None:
        """MAX_FILTERS are answered, one more is refused."""
        most = [(f"t/{number}", 0) for number in range(MAX_FILTERS)]
        (found,) = read(W5.subscribe(1, *most))
        assert isinstance(found, Subscribe)
        assert len(found.filters) == MAX_FILTERS
        assert refusal(W5.subscribe(1, *most, ("t", 0))) == Reason.QUOTA_EXCEEDED
        assert refusal(W5.unsubscribe(1, *[name for name, _ in most], "t")) == Reason.QUOTA_EXCEEDED


_VALUES = {
    0x01: b"\1", 0x02: u32(9), 0x03: text("c"), 0x08: text("r"), 0x09: text(b"\xff"), 0x0B: b"\x05", 0x11: u32(0),
    0x12: text("i"), 0x13: u16(5), 0x15: text("m"), 0x16: text(b"d"), 0x17: b"\1", 0x18: u32(0), 0x19: b"\0",
    0x1A: text("i"), 0x1C: text("s"), 0x1F: text("r"), 0x21: u16(5), 0x22: u16(0), 0x23: u16(1), 0x24: b"\1",
    0x25: b"\1", 0x26: text("k") + text("v"), 0x27: u32(99), 0x28: b"\1", 0x29: b"\1", 0x2A: b"\1",
}  # fmt: skip
# Table 2-4, by the packets a client sends; 0x23 is refused for another reason, 0x16 needs 0x15 beside it.
_ALLOWED = {
    "connect": {0x11, 0x15, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27},
    "will": {0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26},
    "publish": {0x01, 0x02, 0x03, 0x08, 0x09, 0x26},
    "puback": {0x1F, 0x26},
    "subscribe": {0x0B, 0x26},
    "unsubscribe": {0x26},
    "disconnect": {0x11, 0x1F, 0x26},
    "auth": {0x15, 0x16, 0x1F, 0x26},
}


def _with(place: str, values: Properties) -> bytes:
    """A packet with these properties in that place."""
    written = properties(values)
    match place:
        case "connect":
            return W5.connect("a", values=values)
        case "will":
            return W5.connect("a", will=("s", b""), will_values=values)
        case "publish":
            return W5.publish("a", b"", 1, values=values)
        case "subscribe":
            return W5.subscribe(1, ("a", 0), values=values)
        case "unsubscribe":
            return packet(0xA2, u16(1) + written + text("a"))
        case "puback":
            return packet(0x40, u16(1) + b"\0" + written)
    return packet(0xE0 if place == "disconnect" else 0xF0, b"\0" + written)


@pytest.mark.parametrize("place", _ALLOWED)
class TestProperties:
    """§2.2.2: which may stand where, how often, with which values."""

    def _outcome(self, place: str, values: Properties) -> Reason | None:
        try:
            read(_with(place, values), connected=place not in ("connect", "will"))
        except MqttError as error:
            return error.reason
        return None

    def test_each_has_its_places(self, place: str) -> None:
        """All of Table 2-4, one by one."""
        taken = {name for name, value in _VALUES.items() if self._outcome(place, [(name, value)]) is None}
        assert taken == _ALLOWED[place]

    def test_none_comes_twice_but_user_properties(self, place: str) -> None:
        """Each pair of the same."""
        for name in _ALLOWED[place]:
            expected = None if name == 0x26 else Reason.PROTOCOL_ERROR
            assert self._outcome(place, [(name, _VALUES[name])] * 2) == expected, hex(name)

    def test_one_that_does_not_exist_is_malformed(self, place: str) -> None:
        """Also one whose identifier has several bytes."""
        for raw in (b"\x00\0", b"\x7f\0", b"\xff\x7f\0"):
            assert self._outcome(place, [(raw[0], raw[1:])]) == Reason.MALFORMED_PACKET

    def test_cut_or_too_long(self, place: str) -> None:
        """A value that ends with the properties, not with itself; properties that end behind the packet."""
        assert self._outcome(place, [(0x26, text("k") + b"\0")]) == Reason.MALFORMED_PACKET
        whole = _with(place, [(0x26, text("k") + text("v"))])
        longer = whole.replace(b"\x07\x26", b"\x7f\x26")
        assert refusal(longer, connected=place not in ("connect", "will")) == Reason.MALFORMED_PACKET

    def test_how_many(self, place: str) -> None:
        """MAX_PROPERTIES are read, one more is refused."""
        one = (0x26, text("") + text(""))
        assert self._outcome(place, [one] * MAX_PROPERTIES) is None
        assert self._outcome(place, [one] * (MAX_PROPERTIES + 1)) == Reason.IMPLEMENTATION_SPECIFIC_ERROR


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("publish", 0x01, b"\2"), ("subscribe", 0x0B, b"\0"), ("connect", 0x17, b"\2"), ("connect", 0x19, b"\2"),
        ("connect", 0x21, u16(0)), ("connect", 0x27, u32(0)),
    ],
)  # fmt: skip
def test_values_outside_their_range(place: str, name: int, value: bytes) -> None:
    """Zero where zero has no meaning, and bytes that are booleans."""
    assert refusal(_with(place, [(name, value)]), connected=place != "connect") == Reason.PROTOCOL_ERROR


class TestLimits:
    """What a hostile client can make the reader hold or do."""

    @pytest.mark.parametrize("limit", [100, 200, 1000, 17_000])
    def test_the_largest_packet_is_taken_and_one_byte_more_is_not(self, limit: int) -> None:
        """The limit is of the whole packet (§3.1.2.11.4); what is too large is seen by its length, before it came."""
        head = 1 + len(variable(limit - 4)) + 6
        data = W5.publish("a", b"x" * (limit - head), 1)
        assert len(data) == limit
        (found,) = read(data, limit=limit)
        assert isinstance(found, Publish)
        larger = W5.publish("a", b"x" * (limit - head + 1), 1)
        assert refusal(larger, limit=limit) == Reason.PACKET_TOO_LARGE
        assert refusal(larger[:4], limit=limit) == Reason.PACKET_TOO_LARGE
        pieces = [larger[index : index + 1] for index in range(4)]
        with pytest.raises(MqttError):
            read(*pieces, limit=limit)

    def test_a_connect_has_a_limit_of_its_own(self) -> None:
        """Its will is kept: exactly MAX_CONNECT_BYTES are taken, one more is not, whatever is allowed later."""
        room = MAX_CONNECT_BYTES - len(W5.connect("a", will=("s", b""))) - 2
        fits = W5.connect("a", will=("s", b"x" * room))
        assert len(fits) == MAX_CONNECT_BYTES
        assert len(read(fits, connected=False)) == 1
        assert refusal(W5.connect("a", will=("s", b"x" * (room + 1))), connected=False) == Reason.PACKET_TOO_LARGE

    @pytest.mark.parametrize("raw", ["32 8000", "32 FFFFFFFF", "32 FFFF8000"])
    def test_a_length_in_more_bytes_than_it_needs(self, raw: str) -> None:
        """Or in more than four."""
        assert refusal(bytes.fromhex(raw), limit=MAX_VARIABLE + 5) == Reason.MALFORMED_PACKET

    def test_a_length_alone_costs_nothing(self) -> None:
        """A hundred clients that announce 256 MB and send ten bytes hold those ten."""
        tracemalloc.start()
        readers = [Reader(MAX_VARIABLE + 5) for _ in range(100)]
        for reader in readers:
            list(reader.feed(CONNECT[V5]))
            list(reader.feed(b"\x32\xff\xff\xff\x7f" + b"\0\x01a\0\1"))
            assert reader.pending_bytes == 10
        assert tracemalloc.get_traced_memory()[1] < 200_000
        tracemalloc.stop()

    def test_a_large_packet_byte_by_byte_is_linear(self) -> None:
        """Four times the bytes cost about four times as much, not sixteen."""

        def cost(size: int) -> float:
            data = W5.publish("a", b"x" * size, 1)
            began = time.process_time()
            assert len(read(*[data[index : index + 1] for index in range(len(data))])) == 1
            return time.process_time() - began

        small, large = min(cost(50_000) for _ in range(3)), min(cost(200_000) for _ in range(3))
        assert large < 8 * small

    def test_a_payload_that_came_in_pieces_is_what_was_gathered(self) -> None:
        """Not copied again: it is the buffer itself, its head cut off, and the reader has let go of it."""
        data = W5.publish("a", b"x" * 1000, 1)
        first, second = read(data[:500], data[500:] + data)
        assert isinstance(first, Publish)
        assert isinstance(second, Publish)
        assert type(first.payload) is bytearray
        assert first.payload == second.payload == b"x" * 1000
        first.payload.append(0)  # raises BufferError if somebody still looked at it


PACKETS = [W5.publish("t/x", b"p" * 40, 7, values=[(0x26, text("k") + text("v"))]), W5.subscribe(3, ("a/b", 1)),
           W5.unsubscribe(4, "a"), PINGREQ, W5.puback(9), W5.publish("t", b"", qos=0), W5.disconnect(4)]  # fmt: skip


@given(st.lists(st.sampled_from(PACKETS), max_size=12), st.data())
def test_any_cut_gives_the_same_packets(packets: list[bytes], data: st.DataObject) -> None:
    """However the stream is cut."""
    stream = b"".join(packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert plain(read(*pieces)) == plain(read(stream))
    assert len(read(stream)) == len(packets)


@given(st.sampled_from([V311, V5]), st.lists(st.binary(max_size=80), max_size=6))
def test_garbage_is_packets_or_an_mqtt_error(version: int, pieces: list[bytes]) -> None:
    """Nothing else comes out, and nothing is held beyond what came."""
    reader = Reader(200)
    list(reader.feed(CONNECT[version]))
    try:
        for piece in pieces:
            list(reader.feed(piece))
            assert reader.pending_bytes <= 200
    except MqttError:
        pass


@given(
    st.sampled_from([V311, V5]),
    st.sampled_from([*PACKETS, W3.connect("a"), _with("will", [(0x18, u32(5))])]),
    st.data(),
)
def test_a_damaged_packet_is_a_packet_or_an_mqtt_error(version: int, raw: bytes, data: st.DataObject) -> None:
    """Any byte replaced by any other, any length."""
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    connected = raw[0] != 0x10
    with contextlib.suppress(MqttError):
        read(bytes(damaged), version=version, connected=connected)


@given(st.integers(0, MAX_VARIABLE))
def test_variable_byte_integers_come_back(value: int) -> None:
    """Written by us, by the tests' own writer, and read."""
    assert write_variable(value) == variable(value)
    assert Fields(memoryview(variable(value))).variable() == value


def test_fields_do_not_read_behind_their_end() -> None:
    """Every type, with a byte too few."""
    for read_one, size in ((Fields.byte, 1), (Fields.two_bytes, 2), (Fields.four_bytes, 4)):
        fields = Fields(memoryview(b"\1" * 8), 0, size - 1)
        with pytest.raises(MqttError):
            read_one(fields)
    with pytest.raises(MqttError):
        Fields(memoryview(struct.pack(">H", 3) + b"ab")).binary()
