"""Bytes of one MQTT connection, cut anyhow, to the packets that the client sent.

Promises:
  * linear time and bounded memory however the bytes are cut: at most one packet of `max_packet_bytes` is held, and only
    as many of its bytes as came; nothing is searched twice;
  * what can be refused by the first byte or by the length is refused then, not when the packet is whole;
  * garbage gives packets or an MqttError, nothing else; after an MqttError the connection is over.
Refuses: I/O, clocks, answering (mqtt.py).
"""

from collections.abc import Iterator

from ndagent.wire.mqtt_codes import V5, V311, MqttError, PacketType, Reason, forbidden, malformed
from ndagent.wire.mqtt_fields import Fields
from ndagent.wire.mqtt_packets import READERS, Packet, read_connect, read_protocol, read_publish

_PUBLISH = PacketType.PUBLISH
_FLAGS = dict.fromkeys(READERS, 0) | {  # [MQTT-2.1.3-1], [MQTT-3.8.1-1], [MQTT-3.10.1-1], [MQTT-3.14.1-1]
    PacketType.SUBSCRIBE: 2,
    PacketType.UNSUBSCRIBE: 2,
}
_LENGTH_BYTES = 4
MAX_CONNECT_BYTES = 32 * 1024
"""Its will is kept while the connection lasts, and nobody has said yet how large a packet may be."""


def _check_first_byte(byte: int) -> None:
    """Refuse by type and flags what follows a CONNECT."""
    kind, flags = byte >> 4, byte & 0x0F
    if kind == _PUBLISH:
        qos = flags >> 1 & 3
        if qos == 3:  # [MQTT-3.3.1-4]
            raise malformed("PUBLISH: QoS 3")
        if qos == 2:  # [MQTT-3.2.2-11]
            raise MqttError(Reason.QOS_NOT_SUPPORTED, "PUBLISH: QoS 2, where the CONNACK allows 1")
        if flags & 0x08 and not qos:  # [MQTT-3.3.1-2]
            raise forbidden("PUBLISH: DUP at QoS 0")
        return
    if kind == PacketType.CONNECT:  # [MQTT-3.1.0-2]
        raise forbidden("a second CONNECT")
    if kind == 0:  # §2.1.2
        raise malformed("packet type 0")
    name = PacketType(kind)
    if name not in READERS:
        raise forbidden(f"{name.name} from a client")
    if flags != _FLAGS[name]:
        raise malformed(f"{name.name}: reserved flags {flags}")


def _is_good(byte: int) -> bool:
    try:
        _check_first_byte(byte)
    except MqttError:
        return False
    return True


_GOOD_FIRST_BYTES = frozenset(filter(_is_good, range(256)))


class Reader:
    """`feed` it what was read from the connection."""

    __slots__ = ("_max_packet_bytes", "_packet_bytes", "_partial", "connected", "packets", "version")

    def __init__(self, max_packet_bytes: int) -> None:
        self._max_packet_bytes = max_packet_bytes
        self._partial = bytearray()  # the packet whose end has not come
        self._packet_bytes = 0  # its size, 0 while that is not known
        self.packets = 0
        """Whole ones that came so far."""
        self.connected = False
        """A CONNECT was read."""
        self.version = 0
        """The protocol level that the client speaks, 0 before it said so: the form in which an error is told."""

    @property
    def pending_bytes(self) -> int:
        """Held for a packet whose end has not come."""
        return len(self._partial)

    def feed(self, data: bytes | memoryview) -> Iterator[Packet]:
        """The packets that end in these bytes, in order; iterate to the end before feeding more. Raises MqttError."""
        view = memoryview(data)
        at, end = 0, len(view)
        if self._partial:
            at = self._continue(view)
            if not self._packet_bytes or len(self._partial) < self._packet_bytes:
                return
            packet, self._partial, self._packet_bytes = self._partial, bytearray(), 0
            yield self._read(memoryview(packet), 0, len(packet), owner=packet)
        while at < end:
            size = self._size(view, at, end)
            if not size or size > end - at:
                self._packet_bytes = size
                self._partial += view[at:]
                return
            yield self._read(view, at, at + size)
            at += size

    def _continue(self, view: memoryview) -> int:
        """Add to the packet that began before; how far into the bytes it reaches."""
        at, partial = 0, self._partial
        while not self._packet_bytes and at < len(view):  # at most four times: the length is not whole yet
            partial.append(view[at])
            at += 1
            self._packet_bytes = self._size(memoryview(partial), 0, len(partial))
        taken = min(len(view) - at, max(0, self._packet_bytes - len(partial)))
        partial += view[at : at + taken]
        return at + taken

    def _size(self, view: memoryview, at: int, end: int) -> int:
        """The size of the packet that begins here, fixed header included; 0 if that cannot be seen yet."""
        self._check_first(view[at])
        length = 0
        for index in range(_LENGTH_BYTES):
            here = at + 1 + index
            if here >= end:
                return 0
            byte = view[here]
            length |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if byte == 0 and index:  # [MQTT-1.5.5-1]
                    raise malformed("a packet's length is written in more bytes than it needs")
                size = 2 + index + length
                most = self._max_packet_bytes if self.connected else min(self._max_packet_bytes, MAX_CONNECT_BYTES)
                if size > most:  # [MQTT-3.2.2-15]
                    raise MqttError(Reason.PACKET_TOO_LARGE, f"{size} bytes, {most} are allowed")
                return size
        raise malformed("a packet's length has more than four bytes")

    def _check_first(self, byte: int) -> None:
        if not self.connected:
            if byte != PacketType.CONNECT << 4:  # [MQTT-3.1.0-1], [MQTT-2.1.3-1]
                raise forbidden("no CONNECT at the beginning")
        elif byte not in _GOOD_FIRST_BYTES:
            _check_first_byte(byte)

    def _read(self, view: memoryview, at: int, end: int, owner: bytearray | None = None) -> Packet:
        first = view[at]
        at += 1
        while view[at] >= 0x80:  # the length, looked at before
            at += 1
        fields = Fields(view, at + 1, end)
        self.packets += 1
        if first >> 4 == _PUBLISH:
            return read_publish(fields, flags=first & 0x0F, version=self.version, owner=owner)
        if not self.connected:
            return self._read_connect(fields)
        return READERS[PacketType(first >> 4)](fields, self.version)

    def _read_connect(self, fields: Fields) -> Packet:
        level = read_protocol(fields)
        self.version = V5 if level >= V5 else V311
        if level not in (V311, V5):  # [MQTT-3.1.2-2]
            raise MqttError(Reason.UNSUPPORTED_PROTOCOL_VERSION, f"protocol level {level}")
        packet = read_connect(fields, self.version)
        self.connected = True
        return packet
