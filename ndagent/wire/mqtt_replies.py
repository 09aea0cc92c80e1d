"""The packets that an MQTT server sends, as bytes; the same fact in the form of 3.1.1 and of 5.

Promises: what is asked for is written, or None where the version has no such packet. Refuses: limits of the receiver
(mqtt.py looks at those).
"""

from collections.abc import Iterable, Sequence

from ndagent.wire.mqtt_codes import V5, PacketType, Reason
from ndagent.wire.mqtt_fields import write_text, write_two_bytes, write_variable
from ndagent.wire.mqtt_properties import Property, Value, write_properties

PINGRESP = bytes((PacketType.PINGRESP << 4, 0))
_FAILURE_311 = 0x80  # SUBACK, 3.1.1 §3.9.3
_RETURN_CODES_311 = {  # CONNACK, 3.1.1 §3.2.2.3; where none fits, the connection is closed without one
    Reason.SUCCESS: 0,
    Reason.UNSUPPORTED_PROTOCOL_VERSION: 1,
    Reason.CLIENT_IDENTIFIER_NOT_VALID: 2,
    Reason.SERVER_BUSY: 3,
    Reason.SERVER_SHUTTING_DOWN: 3,
    Reason.NOT_AUTHORIZED: 5,
}
Written = Iterable[tuple[Property, Value]]


def _packet(kind: PacketType, body: bytes, flags: int = 0) -> bytes:
    return bytes((kind << 4 | flags,)) + write_variable(len(body)) + body


def _because(text: str) -> Written:
    return ((Property.REASON_STRING, text),) if text else ()


def connack(version: int, reason: Reason, properties: Written = ()) -> bytes | None:
    """§3.2, never with Session Present: see mqtt.py."""
    if version == V5:
        return _packet(PacketType.CONNACK, bytes((0, reason)) + write_properties(properties))
    code = _RETURN_CODES_311.get(reason)
    return None if code is None else _packet(PacketType.CONNACK, bytes((0, code)))


def refusal(version: int, reason: Reason, text: str) -> bytes | None:
    """A CONNACK that says no."""
    return connack(version, reason, _because(text))


def puback(version: int, packet_id: int, reason: Reason = Reason.SUCCESS, text: str = "") -> bytes:
    """§3.4; 3.1.1 can only say yes."""
    body = write_two_bytes(packet_id)
    if version != V5 or reason == Reason.SUCCESS:  # §3.4.2.1: left out when it is success
        return bytes((PacketType.PUBACK << 4, 2)) + body
    return _packet(PacketType.PUBACK, body + bytes((reason,)) + write_properties(_because(text)))


def suback(version: int, packet_id: int, codes: Sequence[int]) -> bytes:
    """§3.9: one code per filter, in their order [MQTT-3.8.4-6]."""
    if version == V5:
        return _packet(PacketType.SUBACK, write_two_bytes(packet_id) + write_properties(()) + bytes(codes))
    return _packet(PacketType.SUBACK, write_two_bytes(packet_id) + bytes(min(code, _FAILURE_311) for code in codes))


def unsuback(version: int, packet_id: int, codes: Sequence[int]) -> bytes:
    """§3.11; 3.1.1 has no codes."""
    body = write_two_bytes(packet_id)
    return _packet(PacketType.UNSUBACK, body + write_properties(()) + bytes(codes) if version == V5 else body)


def disconnect(version: int, reason: Reason, text: str = "") -> bytes | None:
    """§3.14; a server of 3.1.1 just closes."""
    if version != V5:
        return None
    return _packet(PacketType.DISCONNECT, bytes((reason,)) + write_properties(_because(text)))


def publish(
    version: int, topic: str, payload: bytes, *, qos: int, packet_id: int, retain: bool, properties: Written = ()
) -> bytes:
    """§3.3; `packet_id` is left out at QoS 0 [MQTT-2.2.1-2]."""
    body = write_text(topic)
    if qos:
        body += write_two_bytes(packet_id)
    if version == V5:
        body += write_properties(properties)
    return _packet(PacketType.PUBLISH, body + payload, qos << 1 | retain)
