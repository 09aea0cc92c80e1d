"""One agent's MQTT connection: what its packets mean for spool and fleet, and when it is read, answered and closed.

Promises:
  * publishes become parcels in the order they came, also when a large one is decompressed in a thread: the connection
    is held meanwhile, and what was read with it waits behind it;
  * PUBACK means on disk; what can never be taken is refused (PUBACK 153, or 135 for a topic or envelope that is not the
    agent's), counted and logged; at QoS 0 there is nobody to tell, and in 3.1.1 the connection is closed;
  * the peer stops being read while it does not read our answers, while 3.1.1 has `receive_maximum` publishes under way,
    and while one of its envelopes is in a thread.
Refuses: the protocol itself (ndagent/wire/mqtt.py), TLS (ndagent/core/tls_protocol.py).
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ndagent.core.tls_protocol import TlsConnection
from ndagent.core.tls_refusal import Refused
from ndagent.wire.envelope import BadEnvelope, Envelope, TooLarge, is_envelope, unpack
from ndagent.wire.mqtt import Session
from ndagent.wire.mqtt_codes import V311, MqttError, Reason
from ndagent.wire.mqtt_events import Connected, Event, NotAllowed, Published, Subscribed
from ndagent.wire.mqtt_packets import Publish
from ndagent.wire.record import Flags, Origin
from ndagent.wire.routes import Channel
from ndcollector.inputs.agent_batches import (
    Name,
    Parcel,
    WrongSender,
    check_header,
    name_of,
    named,
    open_envelope,
    open_ndjson,
)
from ndcollector.inputs.mqtt_commit import Publication

if TYPE_CHECKING:
    from ndcollector.inputs.mqtt import Mqtt

INLINE_BYTES = 256 * 1024
"""Decompressed on the loop up to this size: a quarter of a millisecond; larger ones in a thread."""
ORDINARY_PARTIAL_BYTES = 64 * 1024
MAX_UNREAD_BYTES = 2**20
LINGER_SECONDS = 2.0
# Why a connection is not read; bits of a plain int, because it is looked at for each publish.
_UNREAD = 1  # the peer does not read what we send
_FULL = 2  # 3.1.1: enough publishes are under way
_OPENING = 4  # an envelope is in a thread
_SLOWED = 8  # its origin sends too fast
PLAIN_STREAMS = {Channel.EVENTS: "security_events", Channel.METRICS: "metrics"}


class _Opened(NamedTuple):
    """A message on its way to the spool: an envelope whose header was checked, or lines."""

    message: Publish
    envelope: Envelope | None
    name: Name | None
    origin: Origin


class Peer:
    """A TlsConnection's handler (see tls_protocol.Handler)."""

    __slots__ = (
        "_channels", "_connection", "_finished", "_hold", "_input", "_named", "_origin", "_packets", "_partial_bytes",
        "_queue", "agent_id", "heard_at", "is_gone", "session",
    )  # fmt: skip

    def __init__(
        self,
        mqtt_input: "Mqtt",
        connection: TlsConnection,
        origin: Origin,
        session: Session,
        channels: Mapping[str, Channel],
    ) -> None:
        self.agent_id = origin.agent_id
        self.session = session
        self.heard_at = mqtt_input.time()
        """When a whole packet came last."""
        self.is_gone = False
        self._input = mqtt_input
        self._connection = connection
        self._channels = channels  # by topic
        self._origin = origin
        self._named = origin  # the origin of its last envelope
        self._queue: deque[tuple[Publish, Channel]] = (
            deque()
        )  # behind an envelope that is in a thread; taken in any case
        self._hold = 0
        self._finished = False
        self._packets = 0
        self._partial_bytes = 0
        connection.max_unread_bytes = MAX_UNREAD_BYTES
        connection.writing_paused = self._writing_paused

    @property
    def held(self) -> bool:
        """It is not being read, so its silence says nothing."""
        return self._hold != 0

    # ---- called by the connection

    def received(self, data: memoryview) -> None:
        """See tls_protocol.Handler."""
        session = self.session
        self._input.unreported_bytes += len(data)
        for event in session.receive(data):
            self._on(event)
        if session.reader.packets != self._packets:
            self._packets = session.reader.packets
            self.heard_at = self._input.time()
        if session.reader.pending_bytes != self._partial_bytes:
            self._note_partial(session.reader.pending_bytes)
        self.flush()

    def ended(self) -> None:
        """See tls_protocol.Handler."""
        self._input.partial_bytes -= self._partial_bytes
        self._partial_bytes = 0
        self.is_gone = True
        self._input.leave(self)

    def set_slowed(self, slowed: bool) -> None:
        """See slowing.Slowed."""
        self._set_hold(_SLOWED, on=slowed)

    def _writing_paused(self, paused: bool) -> None:
        self._set_hold(_UNREAD, on=paused)

    def _note_partial(self, size: int) -> None:
        self._input.partial_bytes += size - self._partial_bytes
        self._partial_bytes = size
        if size > ORDINARY_PARTIAL_BYTES and self._input.partial_bytes > self._input.limits.partial_bytes:
            self.close(
                Reason.SERVER_BUSY, "too much is held for packets whose end has not come", "too_many_part_messages"
            )

    # ---- called by the input

    def settled(self, packet_id: int) -> None:
        """A message's events are durable; `flush` follows. 0 stands for one of QoS 0."""
        if packet_id:
            self.session.acknowledge(packet_id)

    def leave_if_refused(self) -> None:
        """Close where the fleet does not want the agent any more."""
        refusal = self._input.gate.admit(self.agent_id, spool_id="", run_id="", address=self._origin.address)
        if refusal is not None:
            self.close(Reason.NOT_AUTHORIZED, refusal, "not_admitted")

    def tell_seen(self) -> None:
        """It sent something; the fleet wants to know who is alive, not about each packet."""
        if self.session.open:
            skew = self._named.clock_skew_seconds if self._named is not self._origin else None
            self._input.gate.seen(self.agent_id, address=self._origin.address, transport="mqtt", clock_skew=skew)

    def deliver(self, payload: bytes, *, retained: bool) -> None:
        """Hand the downlink on if the agent subscribed to it; `flush` follows."""
        if not self.session.deliver(payload, retained=retained):
            self._input.warn(self, "its policy of %d bytes is larger than it takes; raise the client's maximum packet "
                             "size", len(payload))  # fmt: skip

    def close(self, reason: Reason, text: str, refusal: str | None) -> None:
        """End the connection from our side; `refusal` is what it is counted as, if it is."""
        if not self.session.closed:
            self.session.close(reason, text)
            if refusal is not None:
                self._input.refuse(self._connection, Refused(refusal, f"agent {self.agent_id}: {text}"))
        self.flush()

    def flush(self) -> None:
        """Send what there is to say, close if that was the last, and read or do not read."""
        session = self.session
        output = session.output()
        if output:
            self._connection.write(output)
        if session.closed:
            if self._finished:
                return
            self._finished = True
            self._connection.finish()  # what comes is not looked at, but unread it would make a reset of our last word
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self._connection.close)
        elif session.version == V311:
            self._set_hold(_FULL, on=session.full)

    def _set_hold(self, reason: int, *, on: bool) -> None:
        before = self._hold
        self._hold = before | reason if on else before & ~reason
        if self._hold and not before:
            self._connection.hold()
        elif before and not self._hold:
            self.heard_at = self._input.time()
            self._connection.release()

    # ---- what the agent did

    def _on(self, event: Event) -> None:
        if isinstance(event, Published):
            self._on_published(event.message)
        elif isinstance(event, Connected):
            self._on_connected(event)
        elif isinstance(event, Subscribed):
            if event.retained and (policy := self._input.gate.downlink(self.agent_id)) is not None:
                self.deliver(policy, retained=True)
        elif isinstance(event, NotAllowed):
            self._input.not_allowed(self, event.action, event.detail)
        elif event.error is not None:
            self._on_error(event.error)

    def _on_connected(self, event: Connected) -> None:
        refusal = self._input.gate.admit(self.agent_id, spool_id="", run_id="", address=self._origin.address)
        if refusal is not None:
            self.session.refuse(Reason.NOT_AUTHORIZED, refusal)
            self._input.refuse(self._connection, Refused("not_admitted", f"agent {self.agent_id}: {refusal}"))
            return
        self._input.enter(self, takes_over=not event.assigned)
        self.session.welcome()
        self.tell_seen()

    def _on_error(self, error: MqttError) -> None:
        self._input.refuse(self._connection, Refused("protocol_error", f"agent {self.agent_id}: {error}"))
        if error.reason in (Reason.CLIENT_IDENTIFIER_NOT_VALID, Reason.NOT_AUTHORIZED):
            self._input.not_allowed(self, "connect", error.text)

    def _on_published(self, message: Publish) -> None:
        channel = self._channels[message.topic]
        if channel is Channel.STATUS:
            self._input.gate.status(self.agent_id, bytes(message.payload))
            self._acknowledge(message)
        elif self._hold & _OPENING:
            self._queue.append((message, channel))
        else:
            self._take(message, channel)

    def _take(self, message: Publish, channel: Channel) -> None:
        try:
            opened = self._check(message, channel)
            if opened is None:
                return
            if opened.envelope is None:
                stream = PLAIN_STREAMS[channel]
                self._hand_on(
                    opened, open_ndjson(message.payload, self._origin, stream=stream, limits=self._input.sizes)
                )
            elif opened.envelope.header.length <= INLINE_BYTES:
                self._hand_on(opened, open_envelope(opened.envelope, opened.origin))
            else:
                self._set_hold(_OPENING, on=True)
                self._input.begin(self._open_in_thread(opened, opened.envelope))
        except BadEnvelope as error:
            self._reject(message, error)

    def _check(self, message: Publish, channel: Channel) -> _Opened | None:
        """Who says so, and was it here before? None if the message is done with. Raises BadEnvelope."""
        data = memoryview(message.payload)
        if not is_envelope(data):
            is_admitted = self._is_admitted(message, max(1, message.payload.count(b"\n")))
            return _Opened(message, None, None, self._origin) if is_admitted else None
        now_ns = self._input.now_ns()
        envelope = unpack(data, self._input.sizes)
        header = envelope.header
        check_header(header, agent_id=self.agent_id, channel=channel)
        if not self._is_admitted(message, header.count, spool_id=header.spool_id, run_id=header.run_id):
            return None
        name = name_of(envelope)
        if name in self._input.repeats or name in self._input.under_way:
            self._on_repeat(message, name, header.count)
            return None
        self._named = named(self._named, header, now_ns, vouched=self._input.vouches)
        return _Opened(message, envelope, name, self._named)

    def _is_admitted(self, message: Publish, events: int, *, spool_id: str = "", run_id: str = "") -> bool:
        """Ask the fleet, for each message: who was revoked may be connected still."""
        address = self._origin.address
        refusal = self._input.gate.admit(self.agent_id, spool_id=spool_id, run_id=run_id, address=address)
        if refusal is not None:
            self._input.warn(self, "what it published is not taken: %s", refusal)
            self._not_now(message, events, refusal)
        return refusal is None

    async def _open_in_thread(self, opened: _Opened, envelope: Envelope) -> None:
        size = len(opened.message.payload)
        self._input.commits.reserve(size)
        try:
            parcel = await asyncio.to_thread(open_envelope, envelope, opened.origin)
        except BadEnvelope as error:
            self._reject(opened.message, error)
        except Exception:  # noqa: BLE001 - report_bug logs it
            self._input.report_bug(self)  # what is never acknowledged would keep back all that follows
            self.session.close(Reason.UNSPECIFIED_ERROR, "a fault of the collector")
        else:
            self._hand_on(opened, parcel)
        finally:
            self._input.commits.reserve(-size)
            self._set_hold(_OPENING, on=False)
        while self._queue and not self._hold & _OPENING:
            self._take(*self._queue.popleft())
        self.flush()

    def _hand_on(self, opened: _Opened, parcel: Parcel) -> None:
        message = opened.message
        if self._input.slowing is not None:
            count, length = parcel.section.count, parcel.section.length
            self._input.slowing.charge(self, self._origin.identity, events=count, size_bytes=length)
        if not message.qos:
            parcel = parcel._replace(section=parcel.section._replace(flags=Flags.UNACKNOWLEDGED))
        if opened.name is not None:
            self._input.under_way.setdefault(opened.name, [])
        self._input.commits.add(Publication(self, message.packet_id, opened.name, parcel))

    # ---- what it is told

    def _acknowledge(self, message: Publish) -> None:
        if message.qos:
            self.session.acknowledge(message.packet_id)

    def _on_repeat(self, message: Publish, name: Name, events: int) -> None:
        """An envelope that is stored, or will be in a moment: it is acknowledged with the first."""
        self._input.count_repeat(events)
        waiting = self._input.under_way.get(name)
        if waiting is None:
            self._acknowledge(message)
        elif message.qos:  # beside those who are still there: of a spool without room there may be many tries
            waiting[:] = [*(one for one in waiting if not one[0].is_gone), (self, message.packet_id)]

    def _reject(self, message: Publish, error: BadEnvelope) -> None:
        """It will never be taken: whoever sent it must not send it again."""
        foreign = isinstance(error, WrongSender)
        kind = "wrong_sender" if foreign else "too_large" if isinstance(error, TooLarge) else "bad_envelope"
        self._input.dropped(self, kind, str(error))
        if foreign:
            self._input.gate.audit(
                "wrong_sender", agent_id=self.agent_id, address=self._origin.address, detail=str(error)
            )
        self.session.reject(message, Reason.NOT_AUTHORIZED if foreign else Reason.PAYLOAD_FORMAT_INVALID, str(error))

    def _not_now(self, message: Publish, events: int, refusal: str) -> None:
        """The fleet says no: at QoS 1 the agent keeps its events, at QoS 0 they are gone."""
        if not message.qos:
            self._input.dropped(self, "not_admitted", refusal, events=events)
        self.session.reject(message, Reason.NOT_AUTHORIZED, refusal)
