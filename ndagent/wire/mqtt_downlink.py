"""The one topic that a client of ours can subscribe to: its subscription, and the messages it has not confirmed.

Promises: not more than DOWNLINKS messages are unconfirmed, or fewer if the client says so [MQTT-3.3.4-9]; one waits for
them, the newest, because each replaces the one before; nothing larger than the client takes is written [MQTT-3.1.2-25].
"""

from ndagent.wire import mqtt_replies as replies
from ndagent.wire.mqtt_packets import Connect, Filter
from ndagent.wire.mqtt_properties import Property, number

DOWNLINKS = 8
_LARGEST = 0xFFFF_FFFF


class TooLargeForClient(ValueError):
    """The message is larger than the client's Maximum Packet Size."""


class Downlink:
    """One per connection."""

    __slots__ = ("_identifier", "_next_id", "_subscription", "_unconfirmed", "_waiting", "topic")

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._subscription: Filter | None = None
        self._identifier = 0
        self._unconfirmed: set[int] = set()
        self._next_id = 1
        self._waiting: tuple[bytes, bool] | None = None

    def subscribe(self, wanted: Filter, identifier: int) -> bool:
        """Whether what is retained is to be sent now (§3.8.3.1)."""
        is_new = self._subscription is None
        self._subscription, self._identifier = wanted, identifier
        return wanted.retain_handling == 0 or (wanted.retain_handling == 1 and is_new)

    def unsubscribe(self, topic: str) -> bool:
        """Whether there was such a subscription; it is gone, with what waited [MQTT-3.10.4-1]."""
        if self._subscription is None or topic != self.topic:
            return False
        self._subscription = self._waiting = None
        return True

    def confirmed(self, packet_id: int) -> tuple[bytes, bool] | None:
        """A PUBACK came: what waited for it (payload, retained), to be written again."""
        self._unconfirmed.discard(packet_id)
        waiting, self._waiting = self._waiting, None
        return waiting

    def write(self, payload: bytes, *, retained: bool, connect: Connect) -> bytes | None:
        """A PUBLISH, or None if nobody subscribed or it has to wait; raises TooLargeForClient."""
        wanted = self._subscription
        if wanted is None:
            return None
        qos = min(wanted.qos, 1)
        most = min(DOWNLINKS, number(connect.properties, Property.RECEIVE_MAXIMUM, DOWNLINKS))
        if qos and len(self._unconfirmed) >= most:
            self._waiting = payload, retained
            return None
        written = replies.publish(
            connect.version,
            self.topic,
            payload,
            qos=qos,
            packet_id=self._free_id() if qos else 0,
            retain=retained or wanted.retain_as_published,  # [MQTT-3.3.1-8], [MQTT-3.3.1-12], [MQTT-3.3.1-13]
            properties=[(Property.SUBSCRIPTION_IDENTIFIER, self._identifier)] if self._identifier else (),
        )
        if len(written) > number(connect.properties, Property.MAXIMUM_PACKET_SIZE, _LARGEST):
            raise TooLargeForClient(f"{len(written)} bytes")
        if qos:
            self._unconfirmed.add(self._next_id)
        return written

    def _free_id(self) -> int:
        """A packet identifier that is not in use [MQTT-2.2.1-4]; the two directions have their own."""
        while True:
            self._next_id = self._next_id % 0xFFFF + 1
            if self._next_id not in self._unconfirmed:
                return self._next_id
