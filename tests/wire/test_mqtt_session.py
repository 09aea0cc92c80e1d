"""The server's side of a connection: who is let in, what is answered in which order, and why it ends."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqtt_client import PINGREQ, V5, V311, Writer, packet, split, text, u16, u32

from ndagent.wire.mqtt import MAX_CONTROL_PACKETS, Session
from ndagent.wire.mqtt_codes import Reason
from ndagent.wire.mqtt_downlink import DOWNLINKS
from ndagent.wire.mqtt_events import Connected, Ended, Event, Limits, NotAllowed, Published, Rights, Subscribed

EVENTS, STATUS, POLICY = "nd/v1/agents/a/events", "nd/v1/agents/a/status", "nd/v1/agents/a/policy"
FOREIGN = "nd/v1/agents/b/events"
DEFAULT = Limits()
RIGHTS = Rights("a", publish=frozenset({EVENTS, STATUS}), will=STATUS, downlink=POLICY)
W5, W3 = Writer(V5), Writer(V311)
BOTH = pytest.mark.parametrize("write", [W5, W3], ids=["5", "3.1.1"])
PINGRESP = (0xD0, b"")


class Talk:
    """A session, with what it told and sent; lets every client in."""

    def __init__(self, limits: Limits = DEFAULT, *, admit: bool = True) -> None:
        self.session = Session(RIGHTS, limits, assigned_id="a.1")
        self.events: list[Event] = []
        self._admit = admit

    def __call__(self, *packets: bytes) -> list[tuple[int, bytes]]:
        """Send these as one piece; the answer's packets."""
        for event in self.session.receive(b"".join(packets)):
            self.events.append(event)
            if isinstance(event, Connected):
                if self._admit:
                    self.session.welcome()
                else:
                    self.session.refuse(Reason.NOT_AUTHORIZED, "not yours")
        return self.sent()

    def sent(self) -> list[tuple[int, bytes]]:
        return split(self.session.output())

    def take(self) -> list[Event]:
        """The events since the last take."""
        events, self.events = self.events, []
        return events

    def acknowledge(self, *packet_ids: int) -> list[tuple[int, bytes]]:
        for packet_id in packet_ids:
            self.session.acknowledge(packet_id)
        return self.sent()

    @property
    def reason(self) -> Reason | None:
        """Why it ended."""
        ended = self.events[-1]
        assert isinstance(ended, Ended)
        assert self.session.closed
        return ended.error.reason if ended.error else None


def opened(write: Writer, limits: Limits = DEFAULT, **connect: object) -> Talk:
    """A client that was let in."""
    talk = Talk(limits)
    talk(write.connect("a", **connect))  # type: ignore[arg-type]
    assert talk.session.open
    talk.take()
    return talk


def acks(*packet_ids: int) -> list[tuple[int, bytes]]:
    return [(0x40, u16(packet_id)) for packet_id in packet_ids]


def refused(packet_id: int, reason: int, said: str) -> tuple[int, bytes]:
    """A PUBACK of 5 that says no."""
    return 0x40, u16(packet_id) + bytes((reason,)) + b"%c" % (len(said) + 3) + b"\x1f" + text(said)


class TestConnect:
    """§3.1, §3.2."""

    def test_the_terms_of_5(self) -> None:
        """Receive maximum, maximum QoS, maximum packet size, no topic aliases; nothing that was not asked."""
        talk = Talk(Limits(receive_maximum=9, max_packet_bytes=5000))
        (answer,) = talk(W5.connect("a", keep_alive=60))
        terms = b"\x21" + u16(9) + b"\x24\1" + b"\x27" + u32(5000) + b"\x22\0\0"
        assert answer == (0x20, b"\0\0" + bytes((len(terms),)) + terms)
        assert talk.session.keep_alive_seconds == 60
        assert talk.session.client_id == "a"

    def test_the_answer_of_3_1_1(self) -> None:
        """Two bytes: no session, accepted."""
        assert Talk()(W3.connect("a")) == [(0x20, b"\0\0")]

    @BOTH
    def test_a_session_that_should_be_kept_is_not(self, write: Writer) -> None:
        """Session Present 0, and in 5 Session Expiry Interval 0: said, not only done."""
        values = [(0x11, u32(3600))] if write is W5 else []
        ((_, body),) = Talk()(write.connect("a", clean=False, values=values))
        assert body[:2] == b"\0\0"
        assert (b"\x11" + u32(0) in body) == (write is W5)

    @pytest.mark.parametrize(("wanted", "given"), [(0, 100), (99, 99), (100, 100), (101, 100), (65535, 100)])
    def test_keep_alive(self, wanted: int, given: int) -> None:
        """Who wants a longer one or none gets ours; in 5 it is told [MQTT-3.2.2-21]."""
        for write in (W5, W3):
            talk = Talk(Limits(max_keep_alive_seconds=100))
            ((_, body),) = talk(write.connect("a", keep_alive=wanted))
            assert talk.session.keep_alive_seconds == given
            assert (b"\x13" + u16(100) in body) == (write is W5 and wanted != given)

    def test_no_identifier_gets_one(self) -> None:
        """[MQTT-3.1.3-6], [MQTT-3.1.3-7]; 3.1.1 has no way to tell it."""
        talk = Talk()
        ((_, body),) = talk(W5.connect(""))
        assert b"\x12" + text("a.1") in body
        assert talk.events == [Connected(talk.events[0].connect, assigned=True)]  # type: ignore[union-attr]
        assert talk.session.client_id == "a.1"
        assert Talk()(W3.connect("")) == [(0x20, b"\0\0")]
        assert Talk()(W3.connect("", clean=False)) == [(0x20, b"\0\2")]

    @pytest.mark.parametrize(
        ("write", "connect", "code"),
        [
            (W5, {"client_id": "b"}, 133),
            (W3, {"client_id": "b"}, 2),
            (W5, {"client_id": "a", "will": (FOREIGN, b"")}, 135),
            (W3, {"client_id": "a", "will": (FOREIGN, b"")}, 5),
            (W5, {"client_id": "a", "will": (STATUS, b""), "will_qos": 2}, 155),
            (W3, {"client_id": "a", "will": (STATUS, b""), "will_qos": 2}, 5),
            (W5, {"client_id": "a", "values": [(0x15, text("GS2-KRB5"))]}, 140),
            (Writer(6), {"client_id": "a"}, 132),
            (Writer(3), {"client_id": "a"}, 1),
        ],
    )
    def test_refused(self, write: Writer, connect: dict[str, object], code: int) -> None:
        """CONNACK says why, then the connection ends [MQTT-3.2.2-7]; what follows is not looked at."""
        talk = Talk()
        ((first, body),) = talk(write.connect(**connect), PINGREQ)  # type: ignore[arg-type]
        assert (first, body[:2]) == (0x20, bytes((0, code)))
        assert talk.session.closed
        assert talk(PINGREQ) == []

    @BOTH
    def test_refused_by_the_owner(self, write: Writer) -> None:
        """An agent that the fleet does not know: 135, in 3.1.1 5."""
        talk = Talk(admit=False)
        ((_, body),) = talk(write.connect("a"), PINGREQ)
        assert body[1] == (135 if write is W5 else 5)
        assert talk.session.closed

    @pytest.mark.parametrize("data", [b"\x10\x02\0\x05", b"\xc0\0", W5.publish(EVENTS, b"")])
    def test_who_does_not_say_which_mqtt_it_speaks_gets_no_answer(self, data: bytes) -> None:
        """[MQTT-3.1.4-1]: just closed."""
        talk = Talk()
        assert talk(data) == []
        assert talk.reason in (Reason.MALFORMED_PACKET, Reason.PROTOCOL_ERROR)

    @BOTH
    def test_packets_behind_connect_do_not_wait_for_connack(self, write: Writer) -> None:
        """§3.1.4: a client may send on at once."""
        talk = Talk()
        (connack, ping) = talk(write.connect("a"), write.publish(EVENTS, b"x", 1), PINGREQ)
        assert (connack[0], ping) == (0x20, PINGRESP)
        assert [type(event) for event in talk.events] == [Connected, Published]

    def test_a_caller_that_does_not_answer_is_told(self) -> None:
        """A fault of the program, not of the peer."""
        session = Session(RIGHTS, Limits(), assigned_id="x")
        with pytest.raises(RuntimeError, match="Connected"):
            list(session.receive(W5.connect("a")))


class TestPublish:
    """PUBACK: when, in which order, with what."""

    @BOTH
    def test_nothing_is_acknowledged_before_it_is_durable(self, write: Writer) -> None:
        """And QoS 0 never."""
        talk = opened(write)
        assert talk(write.publish(EVENTS, b"x", 1), write.publish(EVENTS, b"y", qos=0)) == []
        messages = [event.message for event in talk.take() if isinstance(event, Published)]
        assert [(one.payload, one.qos, one.packet_id) for one in messages] == [(b"x", 1, 1), (b"y", 0, 0)]
        assert talk.acknowledge(1) == acks(1)
        assert talk.acknowledge(1) == []

    @BOTH
    def test_acknowledgements_keep_the_order_of_the_publishes(self, write: Writer) -> None:
        """[MQTT-4.6.0-2]: whichever is durable first."""
        talk = opened(write)
        talk(*(write.publish(EVENTS, b"", number) for number in (5, 3, 9, 1)))
        assert talk.acknowledge(9) == []
        assert talk.acknowledge(3) == []
        assert talk.acknowledge(5) == acks(5, 3, 9)
        assert talk.acknowledge(1) == acks(1)

    @given(st.permutations(range(1, 13)), st.integers(1, 12))
    def test_any_order_of_commits(self, commits: Sequence[int], split_at: int) -> None:
        """The acknowledgements are always 1, 2, 3 …; what is due is what came and was not acknowledged."""
        talk = opened(W5)
        talk(*(W5.publish(EVENTS, b"", number) for number in range(1, 13)))
        assert talk.acknowledge(*commits[:split_at]) + talk.acknowledge(*commits[split_at:]) == acks(*range(1, 13))
        assert not talk.session.full

    def test_a_foreign_topic_in_5(self) -> None:
        """135 in its turn; the connection goes on."""
        talk = opened(W5)
        assert talk(W5.publish(EVENTS, b"", 1), W5.publish(FOREIGN, b"", 2), W5.publish(FOREIGN, b"", qos=0)) == []
        assert talk.take()[1:] == [NotAllowed("publish", FOREIGN)] * 2
        assert talk.acknowledge(1) == [*acks(1), refused(2, 135, "this topic is not yours")]
        assert talk(PINGREQ) == [PINGRESP]

    @pytest.mark.parametrize("qos", [0, 1])
    def test_a_foreign_topic_in_3_1_1(self, qos: int) -> None:
        """Closed, after what is due before it; nothing behind it is taken."""
        talk = opened(W3)
        talk(W3.publish(EVENTS, b"", 1), W3.publish(FOREIGN, b"", 2, qos=qos), W3.publish(EVENTS, b"", 3), PINGREQ)
        assert [type(event) for event in talk.take()] == [Published, NotAllowed]
        assert not talk.session.closed
        assert talk(PINGREQ) == []
        assert talk.acknowledge(1) == acks(1)
        assert talk.session.closed

    def test_rejections_of_3_1_1_come_in_any_order(self) -> None:
        """An earlier message may turn out bad after a later one did: the close waits for nothing that never comes."""
        talk = opened(W3)
        talk(W3.publish(EVENTS, b"", 1), W3.publish(EVENTS, b"", 2), W3.publish(FOREIGN, b"", 3))
        first, second, _ = talk.take()
        assert isinstance(first, Published)
        assert isinstance(second, Published)
        talk.session.reject(second.message, Reason.PAYLOAD_FORMAT_INVALID, "no")
        assert not talk.session.closed
        assert talk.acknowledge(1) == acks(1)
        assert talk.session.closed

    @pytest.mark.parametrize("topic", [POLICY, "$SYS/x", EVENTS + "/", EVENTS.upper(), "nd/v1/agents/a"])
    def test_only_its_own_topics_up(self, topic: str) -> None:
        """Exactly those: not the downlink, nothing near them."""
        talk = opened(W5)
        assert talk(W5.publish(topic, b"", 1)) == [refused(1, 135, "this topic is not yours")]

    def test_a_rejected_message(self) -> None:
        """5: the reason in its turn. 3.1.1: closed."""
        five, three = opened(W5), opened(W3)
        for talk, write in ((five, W5), (three, W3)):
            talk(write.publish(EVENTS, b"bad", 1))
            (event,) = talk.take()
            assert isinstance(event, Published)
            talk.session.reject(event.message, Reason.PAYLOAD_FORMAT_INVALID, "no")
        assert five.sent() == [refused(1, 153, "no")]
        assert not five.session.closed
        assert three.sent() == []
        assert three.session.closed

    def test_reasons_in_words_only_to_who_wants_them(self) -> None:
        """[MQTT-3.1.2-29]; and not beyond the client's maximum packet size."""
        for values in ([(0x17, b"\0")], [(0x27, u32(30))]):
            talk = Talk(Limits(max_keep_alive_seconds=60))
            talk(W5.connect("a", values=values))
            assert talk(W5.publish(FOREIGN, b"", 1)) == [(0x40, u16(1) + b"\x87\0")]

    def test_receive_maximum_of_5(self) -> None:
        """As many as told may be under way; one more is 147. QoS 0 does not count."""
        talk = opened(W5, Limits(receive_maximum=3))
        assert talk(*(W5.publish(EVENTS, b"", number) for number in (1, 2, 3)), W5.publish(EVENTS, b"", qos=0)) == []
        assert talk.session.full
        talk.acknowledge(1)
        assert talk(W5.publish(EVENTS, b"", 1)) == []
        ((first, body),) = talk(W5.publish(EVENTS, b"", 4))
        assert (first, body[0]) == (0xE0, 147)
        assert talk.reason == Reason.RECEIVE_MAXIMUM_EXCEEDED
        assert talk.acknowledge(2, 3) == []

    def test_receive_maximum_of_3_1_1(self) -> None:
        """There is none: `full` tells the caller to stop reading, what was read is taken."""
        talk = opened(W3, Limits(receive_maximum=2))
        talk(W3.publish(EVENTS, b"", 1))
        assert not talk.session.full
        talk(W3.publish(EVENTS, b"", 2), W3.publish(EVENTS, b"", 3))
        assert talk.session.full
        assert len(talk.take()) == 3
        assert talk.acknowledge(1) == acks(1)
        assert talk.session.full
        talk.acknowledge(2)
        assert not talk.session.full

    def test_an_identifier_that_is_in_use(self) -> None:
        """5: an error [MQTT-2.2.1-3]. 3.1.1: with DUP the client repeats what is under way, one answer is enough."""
        five = opened(W5)
        ((first, body),) = five(W5.publish(EVENTS, b"x", 1), W5.publish(EVENTS, b"x", 1, dup=True))
        assert (first, body[0]) == (0xE0, 130)
        three = opened(W3)
        assert three(W3.publish(EVENTS, b"x", 1), W3.publish(EVENTS, b"x", 1, dup=True)) == []
        assert len(three.take()) == 1
        assert three.acknowledge(1) == acks(1)
        three(W3.publish(EVENTS, b"y", 1), W3.publish(EVENTS, b"y", 1))
        assert three.reason == Reason.PROTOCOL_ERROR

    def test_a_repeat_on_a_new_connection_is_a_message(self) -> None:
        """DUP says nothing by itself: whether it is known, the envelope's key says."""
        talk = opened(W5)
        talk(W5.publish(EVENTS, b"x", 1, dup=True))
        (event,) = talk.take()
        assert isinstance(event, Published)
        assert event.message.dup

    def test_maximum_packet_size(self) -> None:
        """149 for one byte too many."""
        talk = opened(W5, Limits(max_packet_bytes=200))
        fits = b"x" * (200 - len(W5.publish(EVENTS, b"", 1)) - 1)
        assert len(W5.publish(EVENTS, fits, 1)) == 200
        assert talk(W5.publish(EVENTS, fits, 1)) == []
        ((first, body),) = talk(W5.publish(EVENTS, fits + b"x", 2))
        assert (first, body[0]) == (0xE0, 149)

    @pytest.mark.parametrize(("data", "code"), [(b"\x34", 155), (W5.publish(EVENTS, b"", 1, values=[(0x23, u16(1))]), 148),  # noqa: E501
                                                (b"\x36", 129), (b"\x20", 130), (W5.connect("a"), 130),
                                                (packet(0xF0, b""), 130), (packet(0x60, u16(1)), 130)])  # fmt: skip
    def test_what_ends_a_connection_of_5(self, data: bytes, code: int) -> None:
        """DISCONNECT says why; 3.1.1 has none to say it with."""
        talk = opened(W5)
        ((first, body),) = talk(data)
        assert (first, body[0]) == (0xE0, code)
        if data[0] != 0x10 and code != 148:
            three = opened(W3)
            assert three(data) == []
            assert three.session.closed

    def test_a_flood_of_small_packets(self) -> None:
        """MAX_CONTROL_PACKETS at once are answered, one more is 150; PUBLISH has limits of its own."""
        talk = opened(W5)
        assert talk(PINGREQ * MAX_CONTROL_PACKETS) == [PINGRESP] * MAX_CONTROL_PACKETS
        talk(W5.publish(EVENTS, b"", qos=0) * (MAX_CONTROL_PACKETS + 1))
        assert not talk.session.closed
        *_, (first, body) = talk(PINGREQ * (MAX_CONTROL_PACKETS + 1))
        assert (first, body[0]) == (0xE0, 150)


class TestDownlink:
    """SUBSCRIBE, and what is sent down."""

    @BOTH
    def test_subscribe_and_deliver(self, write: Writer) -> None:
        """At the QoS asked for, but 1 at most; with RETAIN while it is what was there before."""
        for qos, granted in ((0, 0), (1, 1), (2, 1)):
            talk = opened(write)
            assert talk(write.subscribe(7, (POLICY, qos))) == [
                (0x90, u16(7) + (b"\0" if write is W5 else b"") + bytes((granted,)))
            ]
            assert talk.take() == [Subscribed(retained=True)]
            talk.session.deliver(b"p1", retained=True)
            talk.session.deliver(b"p2", retained=False)
            nothing = b"\0" if write is W5 else b""
            ids = [b"", b""] if not granted else [u16(2), u16(3)]
            assert talk.sent() == [
                (0x31 | granted << 1, text(POLICY) + ids[0] + nothing + b"p1"),
                (0x30 | granted << 1, text(POLICY) + ids[1] + nothing + b"p2"),
            ]

    @pytest.mark.parametrize("topic", ["#", "+", POLICY + "/#", "nd/v1/agents/+/policy", EVENTS,
                                       "nd/v1/agents/b/policy", "$share/g/" + POLICY, "$SYS/#"])  # fmt: skip
    def test_nothing_but_its_own_downlink(self, topic: str) -> None:
        """135, in 3.1.1 0x80; the good one beside it is granted, in the order asked."""
        for write, code in ((W5, 135), (W3, 128)):
            talk = opened(write)
            ((_, body),) = talk(write.subscribe(7, (topic, 1), (POLICY, 1), (topic, 0)))
            assert body[-3:] == bytes((code, 1, code))
            assert talk.take() == [NotAllowed("subscribe", topic), Subscribed(True), NotAllowed("subscribe", topic)]

    @pytest.mark.parametrize(("handling", "first", "again"), [(0, True, True), (1, True, False), (2, False, False)])
    def test_retain_handling(self, handling: int, first: bool, again: bool) -> None:
        """§3.8.3.1."""
        talk = opened(W5)
        for expected in (first, again):
            talk(W5.subscribe(7, (POLICY, handling << 4)))
            assert talk.take() == [Subscribed(expected)]

    def test_options_and_identifier(self) -> None:
        """Retain As Published keeps the flag, the subscription identifier comes back [MQTT-3.3.4-3]."""
        talk = opened(W5)
        talk(W5.subscribe(7, (POLICY, 0x08), values=[(0x0B, b"\x05")]))
        talk.session.deliver(b"p", retained=False)
        assert talk.sent() == [(0x31, text(POLICY) + b"\x02\x0b\x05" + b"p")]

    @BOTH
    def test_unsubscribe(self, write: Writer) -> None:
        """Nothing comes any more; 5 says what there was."""
        talk = opened(write)
        talk(write.subscribe(7, (POLICY, 1)))
        ((first, body),) = talk(write.unsubscribe(8, "x", POLICY))
        assert first == 0xB0
        assert body == u16(8) + (b"\0\x11\0" if write is W5 else b"")
        assert talk.session.deliver(b"p", retained=False)
        assert talk.sent() == []

    def test_nobody_who_did_not_subscribe_gets_anything(self) -> None:
        """Nor one that has not been welcomed."""
        talk = opened(W5)
        assert talk.session.deliver(b"p", retained=False)
        assert talk.sent() == []

    @pytest.mark.parametrize(
        ("values", "most"), [([(0x21, u16(2))], 2), ([], DOWNLINKS), ([(0x21, u16(999))], DOWNLINKS)]
    )
    def test_the_clients_receive_maximum(self, values: list[tuple[int, bytes]], most: int) -> None:
        """[MQTT-3.3.4-9]: so many unconfirmed, then only the newest waits."""
        talk = opened(W5, values=values)
        talk(W5.subscribe(7, (POLICY, 1)))
        for number in range(most + 5):
            talk.session.deliver(b"p%d" % number, retained=False)
        sent = talk.sent()
        assert len(sent) == most
        first_id = int.from_bytes(sent[0][1][2 + len(POLICY) :][:2], "big")
        ((_, body),) = talk(W5.puback(first_id))
        assert body.endswith(b"p%d" % (most + 4))
        assert talk(W5.puback(first_id + 1)) == []

    def test_the_clients_maximum_packet_size(self) -> None:
        """[MQTT-3.1.2-25]: not sent, and the caller is told; exactly as large goes."""
        size = len(text(POLICY)) + 2 + 1 + 2
        talk = Talk(Limits(max_keep_alive_seconds=60))
        talk(W5.connect("a", values=[(0x27, u32(size + 50))]), W5.subscribe(7, (POLICY, 1)))
        talk.sent()
        assert talk.session.deliver(b"x" * 50, retained=False)
        assert len(talk.sent()) == 1
        assert not talk.session.deliver(b"x" * 51, retained=False)
        assert talk.sent() == []

    def test_packet_identifiers_go_round(self) -> None:
        """1 to 65535, never one that is unconfirmed."""
        talk = opened(W5)
        talk(W5.subscribe(7, (POLICY, 1)))
        seen = []
        for _ in range(65_540):
            talk.session.deliver(b"", retained=False)
            ((_, body),) = talk.sent()
            seen.append(int.from_bytes(body[-3:-1], "big"))
            if len(seen) > 1:
                talk(W5.puback(seen[-1]))
        assert 0 not in seen
        assert seen[0] not in seen[1:]


class TestEnd:
    """DISCONNECT, wills, take-over."""

    @BOTH
    def test_who_takes_its_leave_leaves_no_will(self, write: Writer) -> None:
        """[MQTT-3.14.4-3]."""
        talk = opened(write, will=(STATUS, b"gone"))
        assert talk.session.will is not None
        assert talk.session.will.payload == b"gone"
        assert talk(write.disconnect(), PINGREQ) == []
        assert talk.events == [Ended(None)]
        assert talk.session.will is None
        assert talk.session.closed

    def test_it_may_leave_with_its_will(self) -> None:
        """Reason 4; and whoever breaks a rule leaves it too."""
        for data in (W5.disconnect(4), b"\x34"):
            talk = opened(W5, will=(STATUS, b"gone"))
            talk(data)
            assert talk.session.will is not None

    def test_a_client_that_was_not_let_in_has_no_will(self) -> None:
        """§3.1.2.5: only a connection that was accepted."""
        talk = Talk(admit=False)
        talk(W5.connect("a", will=(STATUS, b"gone")))
        assert talk.session.will is None

    def test_session_expiry_at_the_end(self) -> None:
        """§3.14.2.2.2: from 0 to more is an error."""
        talk = opened(W5)
        ((_, body),) = talk(W5.disconnect(0, [(0x11, u32(5))]))
        assert body[0] == 130
        talk = opened(W5, values=[(0x11, u32(9))])
        assert talk(W5.disconnect(0, [(0x11, u32(5))])) == []
        assert talk.events == [Ended(None)]

    @BOTH
    def test_closed_from_our_side(self, write: Writer) -> None:
        """5 gets DISCONNECT with the reason, once; nothing that comes or is acknowledged later matters."""
        talk = opened(write)
        talk(write.publish(EVENTS, b"", 1))
        talk.session.close(Reason.SESSION_TAKEN_OVER, "again")
        talk.session.close(Reason.SERVER_BUSY, "twice")
        expected = [(0xE0, b"\x8e\x08\x1f" + text("again"))] if write is W5 else []
        assert talk.sent() == expected
        assert talk.acknowledge(1) == []
        assert talk(PINGREQ) == []

    def test_a_client_that_cannot_take_the_answer(self) -> None:
        """A maximum packet size smaller than our CONNACK: closed, nothing sent [MQTT-3.1.2-24]."""
        talk = Talk()
        assert talk(W5.connect("a", values=[(0x27, u32(5))])) == []
        assert talk.session.closed


STEPS = [
    W5.publish(EVENTS, b"x", 1), W5.publish(EVENTS, b"y", qos=0), W5.publish(FOREIGN, b"z", 2), PINGREQ,
    W5.subscribe(3, (POLICY, 1)), W5.unsubscribe(4, POLICY), W5.puback(2), W5.disconnect(), b"\x34\0", W5.connect("a"),
    W5.publish(EVENTS, b"", 5),
]  # fmt: skip


@given(st.sampled_from([W5, W3]), st.lists(st.one_of(st.sampled_from(STEPS), st.integers(0, 6), st.binary(max_size=9))))
def test_any_sequence(write: Writer, steps: list[bytes | int]) -> None:
    """Nothing raises; what is sent is whole packets; every PUBACK answers a PUBLISH that came; an end is the end."""
    talk = opened(write, Limits(receive_maximum=4, max_packet_bytes=300))
    came: list[int] = []
    answered: list[int] = []
    for step in steps:
        was_closed = talk.session.closed
        sent = talk.acknowledge(step) if isinstance(step, int) else talk(step)
        assert not (was_closed and sent)
        came += [event.message.packet_id for event in talk.take() if isinstance(event, Published)]
        answered += [int.from_bytes(body[:2], "big") for first, body in sent if first == 0x40 and len(body) == 2]
    assert answered == [one for one in came if one][: len(answered)]
