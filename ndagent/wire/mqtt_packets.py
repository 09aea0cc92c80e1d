"""The packets that an MQTT client sends: their fields, and how they are read from the bytes behind the fixed header.

Promises: a packet is read whole and exactly, or an MqttError says which rule it breaks; a payload is copied at most
once. Refuses: deciding whether a client may do what it asks for (mqtt.py), framing (mqtt_reader.py).

User name and password are parsed and forgotten: who a client is, its certificate says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ndagent.wire.mqtt_codes import V5, V311, MqttError, PacketType, Reason, forbidden, malformed
from ndagent.wire.mqtt_fields import Fields, decode_text
from ndagent.wire.mqtt_properties import Place, Properties, Property, read_properties

MAX_FILTERS = 256
"""Topic filters in one SUBSCRIBE or UNSUBSCRIBE: each is answered, and an agent has one."""

_PUBACK_REASONS = frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99})  # §3.4.2.1
_DISCONNECT_REASONS = frozenset(  # §3.14.2.1, what a client may send
    {0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99}
)


@dataclass(frozen=True, slots=True)
class Will:
    """What a client wants said about it when its connection ends without a word (§3.1.2.5)."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties


@dataclass(frozen=True, slots=True)
class Connect:
    """§3.1."""

    version: int
    client_id: str
    clean_start: bool
    keep_alive_seconds: int
    will: Will | None
    properties: Properties


class Publish(NamedTuple):
    """§3.3. `packet_id` is 0 at QoS 0."""

    topic: str
    payload: bytes | bytearray
    qos: int
    retain: bool
    dup: bool
    packet_id: int
    properties: Properties


class Puback(NamedTuple):
    """§3.4: the client has what we published."""

    packet_id: int
    reason: int


class Filter(NamedTuple):
    """One topic filter of a SUBSCRIBE with its options (§3.8.3.1)."""

    topic: str
    qos: int
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0


class Subscribe(NamedTuple):
    """§3.8. `identifier` is 0 where there is none."""

    packet_id: int
    filters: list[Filter]
    identifier: int


class Unsubscribe(NamedTuple):
    """§3.10."""

    packet_id: int
    topics: list[str]


class Ping(NamedTuple):
    """§3.12: PINGREQ, which has no fields."""


class Disconnect(NamedTuple):
    """§3.14."""

    reason: int
    properties: Properties


class Auth(NamedTuple):
    """§3.15."""

    reason: int
    properties: Properties


Packet = Connect | Publish | Puback | Subscribe | Unsubscribe | Ping | Disconnect | Auth


def read_protocol(fields: Fields) -> int:
    """The protocol level of a CONNECT (§3.1.2.1, §3.1.2.2); raises MqttError if its name is not MQTT's."""
    name = fields.binary()
    level = fields.byte()
    if name == b"MQIsdp":  # MQTT 3.1, of 2010
        return min(level, 3)
    if name != b"MQTT":  # [MQTT-3.1.2-1]
        raise MqttError(Reason.UNSUPPORTED_PROTOCOL_VERSION, "the protocol name is not MQTT")
    return level


def read_connect(fields: Fields, version: int) -> Connect:
    """§3.1 from behind the protocol level."""
    flags = fields.byte()
    if flags & 0x01:  # [MQTT-3.1.2-3]
        raise malformed("CONNECT: the reserved flag is set")
    with_will, qos, retain = bool(flags & 0x04), flags >> 3 & 3, bool(flags & 0x20)
    if qos == 3:  # [MQTT-3.1.2-12]
        raise malformed("CONNECT: will QoS 3")
    if not with_will and (qos or retain):  # [MQTT-3.1.2-11], [MQTT-3.1.2-13]
        raise malformed("CONNECT: will flags without a will")
    with_name, with_password = bool(flags & 0x80), bool(flags & 0x40)
    if version == V311 and with_password and not with_name:  # 3.1.1: [MQTT-3.1.2-22]
        raise malformed("CONNECT: a password without a user name")
    keep_alive_seconds = fields.two_bytes()
    properties = read_properties(fields, Place.CONNECT) if version == V5 else {}
    if Property.AUTHENTICATION_DATA in properties and Property.AUTHENTICATION_METHOD not in properties:  # §3.1.2.11.10
        raise forbidden("CONNECT: authentication data without a method")
    client_id = fields.text()  # [MQTT-3.1.3-3], [MQTT-3.1.3-4]
    will = _read_will(fields, version=version, qos=qos, retain=retain) if with_will else None
    if with_name:
        fields.text()  # [MQTT-3.1.3-12]
    if with_password:
        fields.binary()
    fields.finish()
    return Connect(version, client_id, bool(flags & 0x02), keep_alive_seconds, will, properties)


def _read_will(fields: Fields, *, version: int, qos: int, retain: bool) -> Will:
    properties = read_properties(fields, Place.WILL) if version == V5 else {}
    topic = fields.text()  # [MQTT-3.1.3-11]
    _check_topic_name(topic)
    return Will(topic, fields.binary(), qos, retain, properties)


def _check_topic_name(topic: str) -> None:
    if not topic:  # [MQTT-4.7.3-1]
        raise forbidden("an empty topic name")
    if "+" in topic or "#" in topic:  # [MQTT-3.3.2-2]
        raise MqttError(Reason.TOPIC_NAME_INVALID, "a topic name with a wildcard")


def read_publish(fields: Fields, *, flags: int, version: int, owner: bytearray | None) -> Publish:
    """§3.3; the payload is copied out, or, of a packet that is the whole of an `owner`, is what is left of that."""
    view = fields.view
    topic = decode_text(fields.binary())  # [MQTT-3.3.2-1]
    qos = flags >> 1 & 3
    packet_id = fields.packet_id() if qos else 0  # [MQTT-2.2.1-2]
    properties: Properties = {}
    if version == V5:
        if fields.left and not view[fields.at]:
            fields.at += 1  # no properties: the usual case, worth a short cut
        else:
            properties = read_properties(fields, Place.PUBLISH)
            _check_publish(properties)
    _check_topic_name(topic)
    payload: bytes | bytearray
    if owner is None:
        payload = bytes(view[fields.at : fields.end])
    else:
        view.release()
        del owner[: fields.at]  # moves its beginning, not its bytes
        payload = owner
    return Publish(topic, payload, qos, bool(flags & 0x01), bool(flags & 0x08), packet_id, properties)


def _check_publish(properties: Properties) -> None:
    if Property.TOPIC_ALIAS in properties:  # [MQTT-3.3.2-8], [MQTT-3.3.2-9]: our maximum is 0
        raise MqttError(Reason.TOPIC_ALIAS_INVALID, "a topic alias, of which none is allowed")
    response = properties.get(Property.RESPONSE_TOPIC)
    if isinstance(response, str) and ("+" in response or "#" in response):  # [MQTT-3.3.2-14]
        raise forbidden("a response topic with a wildcard")


def _read_puback(fields: Fields, version: int) -> Puback:
    packet_id = fields.packet_id()
    reason = 0
    if version == V5 and fields.left:  # §3.4.2.1: omitted when it is success
        reason = fields.byte()
        if reason not in _PUBACK_REASONS:
            raise malformed(f"PUBACK: reason code {reason}")
        if fields.left:
            read_properties(fields, Place.PUBACK)
    fields.finish()
    return Puback(packet_id, reason)


def _read_subscribe(fields: Fields, version: int) -> Subscribe:
    packet_id = fields.packet_id()
    properties = read_properties(fields, Place.SUBSCRIBE) if version == V5 else {}
    filters: list[Filter] = []
    while fields.left:
        filters.append(_read_filter(fields, version))
        _check_count(filters)
    if not filters:  # [MQTT-3.8.3-2]
        raise forbidden("SUBSCRIBE without a topic filter")
    identifier = properties.get(Property.SUBSCRIPTION_IDENTIFIER, 0)
    return Subscribe(packet_id, filters, identifier if isinstance(identifier, int) else 0)


def _read_filter(fields: Fields, version: int) -> Filter:
    topic = fields.text()  # [MQTT-3.8.3-1]
    if not topic:  # [MQTT-4.7.3-1]
        raise forbidden("an empty topic filter")
    options = fields.byte()
    reserved = 0xC0 if version == V5 else 0xFC
    qos, handling = options & 3, options >> 4 & 3
    if options & reserved or qos == 3:  # [MQTT-3.8.3-5]
        raise malformed(f"SUBSCRIBE: options {options:#04x}")
    if handling == 3:  # §3.8.3.1
        raise forbidden("SUBSCRIBE: retain handling 3")
    no_local = bool(options & 0x04)
    if no_local and topic.startswith("$share/"):  # [MQTT-3.8.3-4]
        raise forbidden("SUBSCRIBE: No Local on a shared subscription")
    return Filter(topic, qos, no_local, bool(options & 0x08), handling)


def _read_unsubscribe(fields: Fields, version: int) -> Unsubscribe:
    packet_id = fields.packet_id()
    if version == V5:
        read_properties(fields, Place.UNSUBSCRIBE)
    topics: list[str] = []
    while fields.left:
        topics.append(fields.text())  # [MQTT-3.10.3-1]
        _check_count(topics)
    if not topics:  # [MQTT-3.10.3-2]
        raise forbidden("UNSUBSCRIBE without a topic filter")
    return Unsubscribe(packet_id, topics)


def _check_count(found: list[Filter] | list[str]) -> None:
    if len(found) > MAX_FILTERS:
        raise MqttError(Reason.QUOTA_EXCEEDED, f"more than {MAX_FILTERS} topic filters in one packet")


def _read_ping(fields: Fields, _: int) -> Ping:
    fields.finish()
    return Ping()


def _read_disconnect(fields: Fields, version: int) -> Disconnect:
    reason, properties = 0, Properties()
    if version == V5 and fields.left:  # §3.14.2.1: omitted when it is normal
        reason = fields.byte()
        if reason not in _DISCONNECT_REASONS:
            raise malformed(f"DISCONNECT: reason code {reason}")
        if fields.left:
            properties = read_properties(fields, Place.DISCONNECT)
    fields.finish()
    return Disconnect(reason, properties)


def _read_auth(fields: Fields, version: int) -> Auth:
    if version != V5:  # 3.1.1 §2.2.1: type 15 is reserved
        raise malformed("packet type 15")
    reason, properties = 0, Properties()
    if fields.left:
        reason = fields.byte()
        if reason not in (0x00, 0x18, 0x19):  # [MQTT-3.15.2-1]
            raise malformed(f"AUTH: reason code {reason}")
        properties = read_properties(fields, Place.AUTH)
    fields.finish()
    return Auth(reason, properties)


READERS: Mapping[PacketType, Callable[[Fields, int], Packet]] = {
    PacketType.PUBACK: _read_puback,
    PacketType.SUBSCRIBE: _read_subscribe,
    PacketType.UNSUBSCRIBE: _read_unsubscribe,
    PacketType.PINGREQ: _read_ping,
    PacketType.DISCONNECT: _read_disconnect,
    PacketType.AUTH: _read_auth,
}
"""What a client may send after its CONNECT, but for PUBLISH; called with the fields and the protocol level."""
