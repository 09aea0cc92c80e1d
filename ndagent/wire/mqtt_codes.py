"""The numbers of MQTT 3.1.1 and 5 that both ends agree on, and the error that carries one.

Section and rule numbers ([MQTT-…]) in the mqtt modules are those of the OASIS standard "MQTT Version 5.0"; where 3.1.1
differs, the comment says so.
"""

from enum import IntEnum

V311, V5 = 4, 5
"""Protocol levels (§3.1.2.2)."""


class PacketType(IntEnum):
    """The upper half of a packet's first byte (§2.1.2)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


class Reason(IntEnum):
    """Reason codes (§2.4); the names are the standard's."""

    SUCCESS = 0x00
    GRANTED_QOS_1 = 0x01
    DISCONNECT_WITH_WILL = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    NOT_AUTHORIZED = 0x87
    SERVER_BUSY = 0x89
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    QOS_NOT_SUPPORTED = 0x9B


class MqttError(Exception):
    """The peer broke a rule and the connection must end: the reason code that MQTT 5 has for it, and which rule."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(f"{text} ({reason.name.lower()}, {reason.value})")
        self.reason = reason
        self.text = text


def malformed(text: str) -> MqttError:
    """For bytes that cannot be parsed (§4.13.1)."""
    return MqttError(Reason.MALFORMED_PACKET, text)


def forbidden(text: str) -> MqttError:
    """For bytes that can be parsed and that the protocol does not allow here (§4.13.1)."""
    return MqttError(Reason.PROTOCOL_ERROR, text)
