"""MQTT 5 properties (§2.2.2): which there are, of which type, and in which packet each may stand.

Promises: a property in a packet where it has no place, one that comes twice, and a value outside its range are refused
with the standard's reason; at most MAX_PROPERTIES stand in one packet. Refuses: knowing what they mean.
"""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple

from ndagent.wire.mqtt_codes import MqttError, Reason, forbidden, malformed
from ndagent.wire.mqtt_fields import (
    Fields,
    write_binary,
    write_four_bytes,
    write_text,
    write_two_bytes,
    write_variable,
)

MAX_PROPERTIES = 256
"""In one packet: a MiB of empty user properties would be 200 000 objects; no client needs so many."""


class Property(IntEnum):
    """Table 2-4 of the standard."""

    PAYLOAD_FORMAT_INDICATOR = 0x01
    MESSAGE_EXPIRY_INTERVAL = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY_INTERVAL = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    REQUEST_PROBLEM_INFORMATION = 0x17
    WILL_DELAY_INTERVAL = 0x18
    REQUEST_RESPONSE_INFORMATION = 0x19
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER_PROPERTY = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_SUBSCRIPTION_AVAILABLE = 0x2A


class Place(IntEnum):
    """Where properties that a client sends may stand; a will has some of its own (§3.1.3.2)."""

    CONNECT = 1
    WILL = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 5
    UNSUBSCRIBE = 6
    DISCONNECT = 7
    AUTH = 8


Value = int | str | bytes | tuple[str, str]
Properties = dict[Property, Value]
"""What was in a packet, user properties left out: nothing here acts on them."""


class _Rule(NamedTuple):
    read: Callable[[Fields], Value]
    places: frozenset[Place]
    least: int = 0
    most: int = 0xFFFF_FFFF


def _rule(read: Callable[[Fields], Value], *places: Place, least: int = 0, most: int = 0xFFFF_FFFF) -> _Rule:
    return _Rule(read, frozenset(places), least, most)


_MESSAGE = (Place.WILL, Place.PUBLISH)
_RULES = {
    Property.PAYLOAD_FORMAT_INDICATOR: _rule(Fields.byte, *_MESSAGE, most=1),
    Property.MESSAGE_EXPIRY_INTERVAL: _rule(Fields.four_bytes, *_MESSAGE),
    Property.CONTENT_TYPE: _rule(Fields.text, *_MESSAGE),
    Property.RESPONSE_TOPIC: _rule(Fields.text, *_MESSAGE),
    Property.CORRELATION_DATA: _rule(Fields.binary, *_MESSAGE),
    Property.SUBSCRIPTION_IDENTIFIER: _rule(Fields.variable, Place.SUBSCRIBE, least=1),
    Property.SESSION_EXPIRY_INTERVAL: _rule(Fields.four_bytes, Place.CONNECT, Place.DISCONNECT),
    Property.AUTHENTICATION_METHOD: _rule(Fields.text, Place.CONNECT, Place.AUTH),
    Property.AUTHENTICATION_DATA: _rule(Fields.binary, Place.CONNECT, Place.AUTH),
    Property.REQUEST_PROBLEM_INFORMATION: _rule(Fields.byte, Place.CONNECT, most=1),
    Property.WILL_DELAY_INTERVAL: _rule(Fields.four_bytes, Place.WILL),
    Property.REQUEST_RESPONSE_INFORMATION: _rule(Fields.byte, Place.CONNECT, most=1),
    Property.REASON_STRING: _rule(Fields.text, Place.PUBACK, Place.DISCONNECT, Place.AUTH),
    Property.RECEIVE_MAXIMUM: _rule(Fields.two_bytes, Place.CONNECT, least=1),
    Property.TOPIC_ALIAS_MAXIMUM: _rule(Fields.two_bytes, Place.CONNECT),
    Property.TOPIC_ALIAS: _rule(Fields.two_bytes, Place.PUBLISH),
    Property.USER_PROPERTY: _rule(Fields.pair, *Place),
    Property.MAXIMUM_PACKET_SIZE: _rule(Fields.four_bytes, Place.CONNECT, least=1),
}
"""What a client may send; all others are the server's alone, also a PUBLISH's subscription identifier (§3.3.4)."""


def read_properties(fields: Fields, place: Place) -> Properties:
    """The properties at this point of a packet; raises MqttError."""
    size = fields.variable()
    if not size:
        return {}
    if size > fields.left:
        raise malformed("properties are longer than their packet")
    inside = Fields(fields.view, fields.at, fields.at + size)
    fields.at += size
    found: Properties = {}
    for _ in range(MAX_PROPERTIES):
        if not inside.left:
            return found
        _read_one(inside, place, found)
    if inside.left:
        raise MqttError(Reason.IMPLEMENTATION_SPECIFIC_ERROR, f"more than {MAX_PROPERTIES} properties in one packet")
    return found


def _read_one(inside: Fields, place: Place, found: Properties) -> None:
    number = inside.variable()
    try:
        name = Property(number)
    except ValueError:
        raise malformed(f"no property has the identifier {number}") from None
    rule = _RULES.get(name)
    if rule is None or place not in rule.places:
        raise forbidden(f"property {name.name} has no place in {place.name}")
    value = rule.read(inside)
    if name is Property.USER_PROPERTY:  # the only one that a client may repeat
        return
    if name in found:
        raise forbidden(f"property {name.name} stands twice")
    if isinstance(value, int) and not rule.least <= value <= rule.most:
        raise forbidden(f"property {name.name} has the value {value}")
    found[name] = value


def number(properties: Properties, name: Property, default: int) -> int:
    """The value of a property that is a number, or what its absence means."""
    value = properties.get(name, default)
    return value if isinstance(value, int) else default


_WRITERS: dict[Property, Callable[[int], bytes]] = {
    Property.SUBSCRIPTION_IDENTIFIER: write_variable,
    Property.SESSION_EXPIRY_INTERVAL: write_four_bytes,
    Property.MESSAGE_EXPIRY_INTERVAL: write_four_bytes,
    Property.MAXIMUM_PACKET_SIZE: write_four_bytes,
    Property.SERVER_KEEP_ALIVE: write_two_bytes,
    Property.RECEIVE_MAXIMUM: write_two_bytes,
    Property.TOPIC_ALIAS_MAXIMUM: write_two_bytes,
}


def write_properties(properties: Iterable[tuple[Property, Value]]) -> bytes:
    """The property field of a packet, its length in front; single bytes are the numbers without another writer."""
    written = b"".join(bytes((name,)) + _write(name, value) for name, value in properties)
    return write_variable(len(written)) + written


def _write(name: Property, value: Value) -> bytes:
    if isinstance(value, int):
        return _WRITERS[name](value) if name in _WRITERS else bytes((value,))
    if isinstance(value, str):
        return write_text(value)
    return write_binary(value) if isinstance(value, bytes) else b"".join(map(write_text, value))
