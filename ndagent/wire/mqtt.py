"""The server's side of one MQTT 3.1.1 or 5 connection of an agent, without I/O: bytes in, events and bytes out.

    for event in session.receive(data): …        what the agent did, in order; answer `Connected` before going on
    session.acknowledge(packet_id)               its events are durable
    connection.write(session.output())           after anything that was called
    if session.closed: …                         close once the output is written

Promises:
  * PUBACKs leave in the order of the PUBLISHes, each only after `acknowledge` (for 3.1.1 too, which never says no:
    there a refusal is a close, after the PUBACKs before it);
  * an agent can publish to its own topics and subscribe to its own downlink, nothing else;
  * what a peer can make us hold is bounded: one packet, `receive_maximum` acknowledgements that are due (3.1.1 has no
    Receive Maximum: the caller stops reading while `full`), and some messages down (mqtt_downlink.py).
Refuses: QoS 2 (CONNACK says Maximum QoS 1), topic aliases, enhanced authentication, and keeping sessions.

Sessions are not kept: every CONNACK says Session Present 0, and Session Expiry Interval 0 to whom wants more. All that
a session could hold here is the subscription to one retained message, which a new SUBSCRIBE brings anyway. A sender
that gets no PUBACK must send again; ours does so from its spool, and envelopes have a key to find repeats by.
"""

import enum
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from ndagent.wire import mqtt_replies as replies
from ndagent.wire.mqtt_codes import V5, MqttError, Reason, forbidden
from ndagent.wire.mqtt_downlink import Downlink, TooLargeForClient
from ndagent.wire.mqtt_events import Connected, Ended, Event, Limits, NotAllowed, Published, Rights, Subscribed
from ndagent.wire.mqtt_packets import (
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
from ndagent.wire.mqtt_properties import Property, Value, number
from ndagent.wire.mqtt_reader import Reader

MAX_CONTROL_PACKETS = 1000
"""Other than PUBLISH, in one `receive`: a PINGREQ of two bytes costs us far more than its sender."""
_LARGEST = 0xFFFF_FFFF


class _State(enum.IntEnum):
    WAITING = 0  # for CONNECT
    ANSWERING = 1  # Connected is out
    OPEN = 2
    CLOSING = 3  # 3.1.1: closes when the acknowledgements before a refusal are out
    CLOSED = 4


class _Due:
    """One acknowledgement that is owed, in its place: None until it is known what will be sent."""

    __slots__ = ("answer", "closes", "packet_id")

    def __init__(self, packet_id: int) -> None:
        self.packet_id = packet_id  # 0: a refusal at QoS 0, which closes
        self.answer: bytes | None = None
        self.closes: MqttError | None = None


class Session:
    """See the module. `assigned_id` is the identifier of a client that brings none [MQTT-3.2.2-16].

    Its `reader` knows what is held of a packet whose end has not come, and how many whole ones came.
    """

    __slots__ = (
        "_assigned_id", "_connect", "_downlink", "_due", "_due_by_id", "_limits", "_output", "_rights", "_state",
        "client_id", "keep_alive_seconds", "reader", "will",
    )  # fmt: skip

    def __init__(self, rights: Rights, limits: Limits, *, assigned_id: str) -> None:
        self._rights = rights
        self._limits = limits
        self._assigned_id = assigned_id
        self.reader = Reader(limits.max_packet_bytes)
        self._state = _State.WAITING
        self._output: list[bytes] = []
        self._due: deque[_Due] = deque()
        self._due_by_id: dict[int, _Due] = {}
        self._connect: Connect | None = None
        self._downlink = Downlink(rights.downlink)
        self.keep_alive_seconds = 0
        """What holds for this connection, once it is open; close at one and a half times of it [MQTT-3.1.2-22]."""
        self.client_id = ""
        self.will: Will | None = None
        """To be published if the connection ends now; None once the client took its leave [MQTT-3.14.4-3]."""

    # ---- what the caller may ask

    @property
    def open(self) -> bool:
        """The client was welcomed and has not left."""
        return self._state is _State.OPEN

    @property
    def closed(self) -> bool:
        """The connection is to be closed once `output` is written."""
        return self._state is _State.CLOSED

    @property
    def version(self) -> int:
        """The protocol level, 0 before it is known."""
        return self.reader.version

    @property
    def full(self) -> bool:
        """As many acknowledgements are due as may be: stop reading a client of 3.1.1 [MQTT-3.3.4-7 is for 5]."""
        return len(self._due) >= self._limits.receive_maximum

    def output(self) -> bytes:
        """What is to be sent now; b"" if nothing."""
        written, self._output = self._output, []
        return written[0] if len(written) == 1 else b"".join(written)

    # ---- what came from the client

    def receive(self, data: bytes | memoryview) -> Iterator[Event]:
        """What the client did, in order; iterate to the end. Never raises for what is in the data."""
        if self._state >= _State.CLOSING:
            return
        try:
            for packet in self._limited(self.reader.feed(data)):
                if type(packet) is Publish:
                    event = self._on_publish(packet)
                    if event is not None:
                        yield event
                else:
                    yield from self._HANDLERS[type(packet)](self, packet)
                if self._state is _State.ANSWERING:
                    raise RuntimeError("Connected needs welcome() or refuse() before the next event")
                if self._state >= _State.CLOSING:
                    return
        except MqttError as error:
            self.close(error.reason, error.text)
            yield Ended(error)

    @staticmethod
    def _limited(packets: Iterator[Packet]) -> Iterator[Packet]:
        others = 0
        for packet in packets:
            if type(packet) is not Publish:
                others += 1
                if others > MAX_CONTROL_PACKETS:
                    raise MqttError(Reason.MESSAGE_RATE_TOO_HIGH, f"more than {others - 1} control packets at once")
            yield packet

    def _on_connect(self, packet: Connect) -> Iterator[Event]:
        self._connect = packet
        self.client_id = packet.client_id or self._assigned_id
        self._check_connect(packet)
        self._state = _State.ANSWERING
        yield Connected(packet, not packet.client_id)

    def _check_connect(self, packet: Connect) -> None:
        if Property.AUTHENTICATION_METHOD in packet.properties:  # [MQTT-4.12.0-1]
            raise MqttError(Reason.BAD_AUTHENTICATION_METHOD, "the certificate is the authentication")
        if packet.client_id not in ("", self._rights.agent_id):  # [MQTT-3.1.3-8]
            text = f"the client identifier must be {self._rights.agent_id}"
            raise MqttError(Reason.CLIENT_IDENTIFIER_NOT_VALID, text)
        if packet.version != V5 and not packet.client_id and not packet.clean_start:  # 3.1.1: [MQTT-3.1.3-8]
            raise MqttError(Reason.CLIENT_IDENTIFIER_NOT_VALID, "no client identifier, and not a clean session")
        will = packet.will
        if will is not None and will.qos == 2:  # [MQTT-3.2.2-12]; of the return codes of 3.1.1 only 5 comes near
            reason = Reason.QOS_NOT_SUPPORTED if packet.version == V5 else Reason.NOT_AUTHORIZED
            raise MqttError(reason, "a will of QoS 2, where 1 is the most")
        if will is not None and will.topic != self._rights.will:
            raise MqttError(Reason.NOT_AUTHORIZED, f"the will's topic must be {self._rights.will}")

    def welcome(self) -> None:
        """Let the client in [MQTT-3.1.4-5]."""
        packet = self._asked()
        most = self._limits.max_keep_alive_seconds
        self.keep_alive_seconds = min(packet.keep_alive_seconds or most, most)
        self.will = packet.will
        self._state = _State.OPEN
        self._send(replies.connack(packet.version, Reason.SUCCESS, self._terms(packet)))

    def _terms(self, packet: Connect) -> list[tuple[Property, Value]]:
        terms: list[tuple[Property, Value]] = [
            (Property.RECEIVE_MAXIMUM, self._limits.receive_maximum),
            (Property.MAXIMUM_QOS, 1),  # [MQTT-3.2.2-9]
            (Property.MAXIMUM_PACKET_SIZE, self._limits.max_packet_bytes),
            (Property.TOPIC_ALIAS_MAXIMUM, 0),
        ]
        if number(packet.properties, Property.SESSION_EXPIRY_INTERVAL, 0):
            terms.append((Property.SESSION_EXPIRY_INTERVAL, 0))
        if not packet.client_id:  # [MQTT-3.1.3-7]
            terms.append((Property.ASSIGNED_CLIENT_IDENTIFIER, self.client_id))
        if self.keep_alive_seconds != packet.keep_alive_seconds:  # [MQTT-3.2.2-21]
            terms.append((Property.SERVER_KEEP_ALIVE, self.keep_alive_seconds))
        return terms

    def refuse(self, reason: Reason, text: str) -> None:
        """Do not let the client in."""
        self._asked()
        self.close(reason, text)

    def _asked(self) -> Connect:
        if self._state is not _State.ANSWERING or self._connect is None:
            raise RuntimeError("no Connected waits for an answer")
        return self._connect

    def _on_publish(self, packet: Publish) -> Event | None:
        allowed = packet.topic in self._rights.publish
        if packet.qos:
            if packet.packet_id in self._due_by_id:
                if packet.dup and self.version != V5:
                    return None  # 3.1.1 lets a client repeat on the same connection; its acknowledgement is due
                raise forbidden(f"packet identifier {packet.packet_id} is in use")  # [MQTT-2.2.1-3]
            if self.full and self.version == V5:  # [MQTT-3.3.4-7]
                raise MqttError(Reason.RECEIVE_MAXIMUM_EXCEEDED, f"more than {self._limits.receive_maximum} in flight")
            due = self._due_by_id[packet.packet_id] = _Due(packet.packet_id)
            self._due.append(due)
        if allowed:
            return Published(packet)
        self.reject(packet, Reason.NOT_AUTHORIZED, "this topic is not yours")
        return NotAllowed("publish", packet.topic)

    def _on_puback(self, packet: Puback) -> Iterator[Event]:
        waiting = self._downlink.confirmed(packet.packet_id)
        if waiting is not None:
            self.deliver(waiting[0], retained=waiting[1])
        return iter(())

    def _on_subscribe(self, packet: Subscribe) -> Iterator[Event]:
        codes: list[int] = []
        events: list[Event] = []
        if packet.packet_id in self._due_by_id:  # [MQTT-2.2.1-3]
            codes = [Reason.PACKET_IDENTIFIER_IN_USE] * len(packet.filters)
        else:
            for wanted in packet.filters:
                code, event = self._subscribe(wanted, packet)
                codes.append(code)
                events.append(event)
        self._send(replies.suback(self.version, packet.packet_id, codes))  # [MQTT-3.8.4-1]
        return iter(events)

    def _subscribe(self, wanted: Filter, packet: Subscribe) -> tuple[int, Event]:
        if wanted.topic != self._rights.downlink:
            return Reason.NOT_AUTHORIZED, NotAllowed("subscribe", wanted.topic)
        return min(wanted.qos, 1), Subscribed(self._downlink.subscribe(wanted, packet.identifier))

    def _on_unsubscribe(self, packet: Unsubscribe) -> Iterator[Event]:
        done = map(self._downlink.unsubscribe, packet.topics)
        codes = [Reason.SUCCESS if existed else Reason.NO_SUBSCRIPTION_EXISTED for existed in done]
        self._send(replies.unsuback(self.version, packet.packet_id, codes))  # [MQTT-3.10.4-4]
        return iter(())

    def _on_ping(self, _: Ping) -> Iterator[Event]:
        self._send(replies.PINGRESP)  # [MQTT-3.12.4-1]
        return iter(())

    def _on_disconnect(self, packet: Disconnect) -> Iterator[Event]:
        before = number(self._connect.properties, Property.SESSION_EXPIRY_INTERVAL, 0) if self._connect else 0
        if not before and number(packet.properties, Property.SESSION_EXPIRY_INTERVAL, 0):  # §3.14.2.2.2
            raise forbidden("DISCONNECT: a session expiry interval where CONNECT had none")
        if packet.reason == Reason.SUCCESS:  # [MQTT-3.14.4-3]
            self.will = None
        self._state = _State.CLOSED
        yield Ended(None)

    def _on_auth(self, _: Auth) -> Iterator[Event]:
        raise forbidden("AUTH without an authentication method in CONNECT")  # [MQTT-4.12.0-7]

    # ---- answers

    def acknowledge(self, packet_id: int) -> None:
        """The message of this QoS 1 PUBLISH is durable."""
        due = self._due_by_id.get(packet_id)
        if due is not None:
            due.answer = replies.puback(self.version, packet_id)
            self._settle()

    def reject(self, message: Publish, reason: Reason, text: str) -> None:
        """The message will never be taken: told in MQTT 5, where QoS 1 lets us; 3.1.1 can only close, in its turn."""
        due = self._due_by_id.get(message.packet_id)
        if self.version == V5:
            if due is not None:
                answer = replies.puback(self.version, message.packet_id, reason, self._explained(text))
                due.answer = answer if self._fits(answer) else replies.puback(self.version, message.packet_id, reason)
        elif self._state is not _State.CLOSED:
            if due is None:
                due = _Due(0)
                self._due.append(due)
            due.answer, due.closes = b"", MqttError(reason, text)
            self._state = _State.CLOSING
        self._settle()

    def _settle(self) -> None:
        """Send what is due, as far as there is no gap: in the order of the PUBLISHes [MQTT-4.6.0-2]."""
        while self._due and self._due[0].answer is not None and self._state is not _State.CLOSED:
            due = self._due.popleft()
            self._due_by_id.pop(due.packet_id, None)
            self._send(due.answer)
            if due.closes is not None:
                self.close(due.closes.reason, due.closes.text)

    def deliver(self, payload: bytes, *, retained: bool) -> bool:
        """Send this on the downlink if the client subscribed; False if it is larger than the client takes."""
        if self._connect is None or not self.open:
            return True
        try:
            written = self._downlink.write(payload, retained=retained, connect=self._connect)
        except TooLargeForClient:
            return False
        if written is not None:
            self._output.append(written)
        return True

    # ---- the end

    def close(self, reason: Reason, text: str) -> None:
        """End the connection from our side; the reason goes out where the version has a way to say it."""
        if self._state is _State.CLOSED:
            return
        if self._state < _State.OPEN:  # [MQTT-3.14.0-1]; nothing at all to whom did not say which MQTT it speaks
            answer = replies.refusal(self.version, reason, self._explained(text)) if self.version else None
        else:
            answer = replies.disconnect(self.version, reason, self._explained(text))
        if answer is not None and self._explained(text) and not self._fits(answer):
            shorter = replies.refusal if self._state < _State.OPEN else replies.disconnect
            answer = shorter(self.version, reason, "")
        self._state = _State.CLOSED
        self._send(answer)

    def _explained(self, text: str) -> str:
        """A client may not want reasons in words [MQTT-3.1.2-29]."""
        wanted = self._connect is None or number(self._connect.properties, Property.REQUEST_PROBLEM_INFORMATION, 1)
        return text if wanted else ""

    def _fits(self, written: bytes) -> bool:
        if self._connect is None:
            return True
        return len(written) <= number(self._connect.properties, Property.MAXIMUM_PACKET_SIZE, _LARGEST)

    def _send(self, written: bytes | None) -> None:
        """Nothing larger than the client takes [MQTT-3.1.2-24]; one that cannot take a bare answer is closed."""
        if not written:
            return
        if self._fits(written):
            self._output.append(written)
        else:
            self._state = _State.CLOSED

    _HANDLERS: ClassVar[Mapping[type, Callable[["Session", Any], Iterator[Event]]]] = {
        Connect: _on_connect,
        Puback: _on_puback,
        Subscribe: _on_subscribe,
        Unsubscribe: _on_unsubscribe,
        Ping: _on_ping,
        Disconnect: _on_disconnect,
        Auth: _on_auth,
    }
