"""Agents over MQTT 3.1.1 and 5 with mutual TLS: a listener of our own, not a broker. PUBACK means on disk.

Promises:
  * an agent is who its certificate says; its client identifier, topics and envelopes must agree or are refused, counted
    and told to the fleet's audit;
  * a PUBLISH of QoS 1 is acknowledged after its events are in the spool, in the order it came; QoS 0 is taken, counted
    (nd_input_unacknowledged_events) and its events carry the tag _unacknowledged;
  * an envelope that is durable already, or about to be, is acknowledged with that and not stored again: a slow spool is
    when senders lose patience and send again;
  * one connection per client identifier: a newer one takes over (DISCONNECT 142). A client without an identifier gets
    one of its own and takes over nothing;
  * an agent that sends faster than `limits` allow to one origin is not read meanwhile; it keeps what it has not sent;
  * memory is bounded: `buffer_bytes` wait for the spool, then nobody is read; `partial_bytes` for packets whose end has
    not come, of all peers together; a peer that is not heard for 1.5 times its keep-alive is closed.
Refuses: being a broker (an agent can subscribe to its own policy only), keeping sessions (see ndagent/wire/mqtt.py).

The will is the agent's way to have its connection's end told (`Gate.lost`); it is not told of one that was taken over.
(Past 400 lines: settings and listener; what a peer does stands in mqtt_peer.py.)
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

from pydantic import Field

from ndagent.core.allow_list import AllowConfig, AllowList
from ndagent.core.interfaces import Accept
from ndagent.core.log import Throttle
from ndagent.core.origin_limits import OriginLimits, OriginLimitsConfig
from ndagent.core.progress import Signs
from ndagent.core.settings import ByteSize, Duration, Listen, ListenAddress, Settings
from ndagent.core.slowing import Slowing, slowing
from ndagent.core.tcp_connection import Handler
from ndagent.core.tls import Peers
from ndagent.core.tls_identity import PeerCertificate
from ndagent.core.tls_listener import LimitsConfig, TlsListener
from ndagent.core.tls_protocol import TlsConnection
from ndagent.core.tls_refusal import Refused
from ndagent.wire.envelope import Limits as EnvelopeLimits
from ndagent.wire.mqtt import Session
from ndagent.wire.mqtt_codes import Reason
from ndagent.wire.mqtt_events import Limits, Rights
from ndagent.wire.mqtt_fields import MAX_VARIABLE
from ndagent.wire.record import Origin
from ndagent.wire.routes import STREAMS, Channel, is_agent_id, topic
from ndcollector.inputs import InputContext
from ndcollector.inputs.agent_batches import Name, Repeats
from ndcollector.inputs.agent_gate import Gate
from ndcollector.inputs.mqtt_commit import Commits, Publication
from ndcollector.inputs.mqtt_peer import Peer

CERTIFICATE_KIND = "agent"
UP = (Channel.EVENTS, Channel.METRICS, Channel.STATUS)
LOOK_SECONDS = 1.0  # how often silent peers are looked for
LOG_SECONDS = 60.0


class MqttLimits(LimitsConfig, OriginLimitsConfig):
    """The listener's limits, and how much may wait."""

    buffer_bytes: ByteSize = Field(
        default=64 * 2**20, ge=2**16, description="Events waiting for the spool; beyond this, reading stops."
    )
    partial_bytes: ByteSize = Field(
        default=256 * 2**20,
        ge=2**16,
        description="Packets whose end has not come yet, of all peers together; beyond this, peers that hold back the "
        "end of one longer than 64 KiB are closed.",
    )


class Config(Settings):
    """Settings of an mqtt input."""

    type: Literal["mqtt"] = Field(default="mqtt", description="Agents over MQTT 3.1.1 and 5 with mutual TLS.")
    listen: tuple[ListenAddress, ...] = Field(
        default=(Listen("0.0.0.0", 8883),), min_length=1, description="Addresses to listen on."
    )
    receive_maximum: int = Field(
        default=64, ge=1, le=65535, description="Publishes of one agent that wait for their acknowledgement at a time."
    )
    max_packet_bytes: ByteSize = Field(
        default=2**20, ge=1024, le=MAX_VARIABLE, description="A larger packet ends its connection (reason 149)."
    )
    max_batch_bytes: ByteSize = Field(
        default=8 * 2**20, ge=1024, description="Uncompressed events in one publish; more of them are refused."
    )
    max_batch_events: int = Field(
        default=10_000, ge=1, le=100_000, description="Events in one publish; more of them are refused."
    )
    max_keep_alive: Duration = Field(
        default=600.0,
        ge=1,
        le=65535,
        description="An agent that wants a longer keep-alive, or none, gets this one; closed at one and a half times.",
    )
    connect_timeout: Duration = Field(
        default=10.0, gt=0, description="A peer that sends no whole CONNECT for this long is closed."
    )
    limits: MqttLimits = Field(default=MqttLimits(), description="What peers may take of this machine.")

    @property
    def streams(self) -> tuple[str, ...]:
        """What this input feeds."""
        return tuple(sorted(frozenset().union(*STREAMS.values())))


def build(name: str, config: Config, context: InputContext) -> "Mqtt":
    """The input, not listening yet."""
    return Mqtt(name, config, context)


class Mqtt:
    """See the module. What a Peer needs of it is public."""

    def __init__(self, name: str, config: Config, context: InputContext) -> None:
        self.limits = config.limits
        self.sizes = EnvelopeLimits(length_bytes=config.max_batch_bytes, events=config.max_batch_events)
        self.gate: Gate = _Open() if context.fleet is None else context.fleet  # an empty fleet is false
        self.vouches = context.fleet is not None
        """Somebody knows which spool is whose."""
        self.repeats = Repeats()
        self.under_way: dict[Name, list[tuple[Peer, int]]] = {}
        """Envelopes that are not durable yet, and who sent them again meanwhile: its packet identifiers."""
        self.unreported_bytes = 0  # plaintext since the last batch
        self.partial_bytes = 0
        self.slowing: Slowing | None = None
        self.commits: Commits
        self.time: Callable[[], float]
        """The loop's clock."""
        self._name = name
        self._config = config
        self._context = context
        self._session_limits = Limits(config.receive_maximum, config.max_packet_bytes, int(config.max_keep_alive))
        self._listener = TlsListener(
            config.listen,
            name=name,
            kind=CERTIFICATE_KIND,
            contexts=context.tls,
            allow=AllowList(AllowConfig()),
            limits=config.limits,
            handler=self._new_peer,
            metrics=context.metrics,
            peers=Peers.AGENTS,
        )
        self._log = logging.getLogger(name)
        self._peers: set[Peer] = set()
        self._by_agent: dict[str, set[Peer]] = {}  # those that were welcomed
        self._serials = itertools.count(1)
        self._jobs: set[asyncio.Task[None]] = set()
        self._paused = False
        self._stopping = False
        self._received_bytes = context.metrics.received_bytes.labels(name)
        self._received = context.metrics.received.labels(name)
        self._known = context.metrics.known.labels(name)

    @property
    def started(self) -> asyncio.Event:
        """Set once it listens on `addresses`."""
        return self._listener.started

    @property
    def addresses(self) -> list[Listen]:
        """Where it listens, with the ports that the kernel chose."""
        return self._listener.addresses

    # ---- life

    def signs(self) -> Signs:
        """See core/progress.py."""
        commits: Commits | None = getattr(self, "commits", None)  # there once it runs
        return commits.signs() if commits is not None else Signs(False, 0)

    async def start(self) -> None:
        """Listen on all addresses; raises OSError that names the one that cannot be had."""
        await self._listener.start()

    async def run(self, accept: Accept) -> None:
        """Serve until cancelled; then make durable and acknowledge what was read (a second cancel cuts)."""
        self.time = asyncio.get_running_loop().time
        self._paused = self._stopping = False
        self.under_way.clear()
        self._throttle = Throttle(LOG_SECONDS, clock=self.time)
        self.commits = Commits(
            accept,
            name=self._name,
            streams=self._config.streams,
            settled=self._settled,
            paused=self._pause,
            metrics=self._context.metrics,
            clock=self._context.clock,
            buffer_bytes=self.limits.buffer_bytes,
        )
        rates = OriginLimits.make(self.limits, clock=self.time)
        loop = asyncio.get_running_loop()
        self.slowing = slowing(rates, name=self._name, metrics=self._context.metrics, loop=loop)
        handing_on = asyncio.create_task(self.commits.run(), name=f"{self._name}: batches")
        serving = asyncio.create_task(self._listener.serve(), name=f"{self._name}: connections")
        looking = asyncio.create_task(self._close_silent(), name=f"{self._name}: keep-alive")
        unsubscribe = self.gate.subscribe(self._downlink_changed)
        try:
            done, _ = await asyncio.wait({handing_on, serving, looking}, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:  # none ends by itself but by an error
                ended.result()
        finally:
            unsubscribe()
            await self._shut_down(handing_on, [serving, looking])

    async def _shut_down(self, handing_on: "asyncio.Task[None]", others: "Sequence[asyncio.Task[None]]") -> None:
        """Nothing more is read; what was read is made durable and acknowledged; then everybody is told to go."""
        try:
            for one in others:
                one.cancel()
            await asyncio.wait(others)
            self._stopping = True
            if self.slowing is not None:
                self.slowing.lift()
            self._listener.pause_reading()
            while self._jobs:  # one may begin another
                await asyncio.wait(tuple(self._jobs))
            self.commits.finish()
            if not handing_on.done() or handing_on.exception() is None:
                await handing_on  # a second cancel goes on to it
        finally:
            if not handing_on.done():
                handing_on.cancel()
                await asyncio.wait({handing_on})
            for peer in tuple(self._peers):
                peer.session.will = None  # that we stop says nothing about the agent
                peer.close(Reason.SERVER_SHUTTING_DOWN, "the collector stops", None)
            self._report_bytes()
            self._listener.resume_reading()
            await self._listener.stop()

    async def _close_silent(self) -> None:
        """Close who has not sent a whole packet for too long [MQTT-3.1.2-22]; who is not read is not silent.

        And whom the fleet has refused since it came: there may be no CRL to end its connection.
        """
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = self.time()
            for peer in tuple(self._peers):
                if peer.session.open:
                    peer.leave_if_refused()
                if self._paused or peer.held:
                    peer.heard_at = now
                elif peer.heard_at >= now - LOOK_SECONDS:
                    peer.tell_seen()
                else:
                    self._judge_silence(peer, now - peer.heard_at)

    def _judge_silence(self, peer: Peer, seconds: float) -> None:
        keep_alive_seconds = peer.session.keep_alive_seconds
        if not keep_alive_seconds:
            if seconds > self._config.connect_timeout:
                peer.close(Reason.KEEP_ALIVE_TIMEOUT, "no CONNECT came", "no_connect")
        elif seconds > 1.5 * keep_alive_seconds:
            text = f"nothing came for 1.5 times {keep_alive_seconds} s"
            peer.close(Reason.KEEP_ALIVE_TIMEOUT, text, "keep_alive")

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        if paused:
            self._listener.pause_reading()
        elif not self._stopping:
            self._listener.resume_reading()

    def _settled(self, publications: Sequence[Publication]) -> None:
        """A batch is durable: acknowledge, and write to each peer once."""
        self._report_bytes()
        peers: dict[Peer, None] = {}
        for publication in publications:
            publication.peer.settled(publication.packet_id)
            peers[publication.peer] = None
            if publication.name is not None:
                self.repeats.add(publication.name)
                for peer, packet_id in self.under_way.pop(publication.name, ()):
                    peer.settled(packet_id)
                    peers[peer] = None
        for peer in peers:
            peer.flush()

    def _report_bytes(self) -> None:
        """Once per batch: a metric costs more than a small read."""
        self._received_bytes.inc(self.unreported_bytes)
        self.unreported_bytes = 0

    # ---- peers

    def _new_peer(self, certificate: PeerCertificate | None, connection: TlsConnection) -> Handler:
        assert certificate is not None  # noqa: S101 - Peers.AGENTS all have one
        address, port = connection.address, connection.port
        origin = Origin(self._name, address, port, certificate.subject, certificate.serial, certificate.names)
        agent_id = origin.agent_id
        if not is_agent_id(agent_id):
            raise Refused("wrong_kind", f"nd:agent:{agent_id} is no agent's id")
        channels = {topic(agent_id, channel): channel for channel in UP}
        rights = Rights(
            agent_id,
            publish=frozenset(channels),
            will=topic(agent_id, Channel.STATUS),
            downlink=topic(agent_id, Channel.POLICY),
        )
        session = Session(rights, self._session_limits, assigned_id=f"{agent_id}.{next(self._serials)}")
        peer = Peer(self, connection, origin, session, channels)
        self._peers.add(peer)
        return peer

    def enter(self, peer: Peer, *, takes_over: bool) -> None:
        """A peer is about to be welcomed; who has its client identifier has to go [MQTT-3.1.4-3]."""
        others = self._by_agent.setdefault(peer.agent_id, set())
        if takes_over:
            for other in tuple(others):
                if other.session.client_id == peer.agent_id:
                    other.session.will = None
                    other.close(Reason.SESSION_TAKEN_OVER, "connected again", None)
        others.add(peer)

    def leave(self, peer: Peer) -> None:
        """A peer's connection is gone."""
        self._peers.discard(peer)
        if self.slowing is not None:
            self.slowing.forget(peer)
        others = self._by_agent.get(peer.agent_id, set())
        if peer in others:
            others.discard(peer)
            if not others:
                del self._by_agent[peer.agent_id]
            if (will := peer.session.will) is not None:
                self.gate.lost(peer.agent_id, will.payload)

    def _downlink_changed(self, agent_id: str) -> None:
        payload = self.gate.downlink(agent_id)
        if payload is None:
            return
        for peer in tuple(self._by_agent.get(agent_id, ())):
            peer.deliver(payload, retained=False)
            peer.flush()

    # ---- what a peer asks for

    def now_ns(self) -> int:
        """Unix time."""
        return int(self._context.clock() * 1e9)

    def begin(self, job: Coroutine[Any, Any, None]) -> None:
        """Run something beside the protocol; a stop waits for it."""
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    def refuse(self, connection: TlsConnection, refusal: Refused) -> None:
        """Count and log a connection that ends against its will."""
        self._listener.refuse(connection, refusal)

    def not_allowed(self, peer: Peer, action: str, detail: str) -> None:
        """An agent tried what it has no right to."""
        self.gate.audit("not_allowed", agent_id=peer.agent_id, action=action, detail=detail)
        if action == "publish":
            self.dropped(peer, "foreign_topic", f"a publish to {detail}")
        else:
            self.warn(peer, "may not %s: %s", action, detail)

    def dropped(self, peer: Peer, reason: str, detail: str, *, events: int = 1) -> None:
        """Count what is refused for ever; of a message that cannot be read, as one event."""
        self._received.inc(events)
        self._context.metrics.count_drop(input=self._name, reason=reason, events=events)
        self.warn(peer, "refused what it published (%s): %s", reason, detail)

    def count_repeat(self, events: int) -> None:
        """Events that are durable already came again."""
        self._known.inc(events)

    def report_bug(self, peer: Peer) -> None:
        """Called in an `except`: nobody foresaw this."""
        self._log.exception(
            "agent %s: closed, it will send again; please report this traceback", peer.agent_id,
            extra={"agent_id": peer.agent_id},
        )  # fmt: skip

    def warn(self, peer: Peer, text: str, *values: object) -> None:
        """Log once a minute per agent and kind of trouble."""
        silenced = self._throttle.allow((peer.agent_id, text))
        if silenced is not None:
            fields = {"agent_id": peer.agent_id, "silenced": silenced}
            self._log.warning("agent %s: " + text, peer.agent_id, *values, extra=fields)


class _Open:
    """The gate of a collector without a fleet: every good agent certificate may send, nothing is pushed."""

    def admit(self, agent_id: str, *, spool_id: str, run_id: str, address: str) -> str | None:  # noqa: ARG002
        return None

    def seen(self, agent_id: str, *, address: str, transport: str, clock_skew: float | None = None) -> None:
        pass

    def status(self, agent_id: str, document: bytes) -> None:
        pass

    def relayed_status(self, agent_id: str, document: bytes) -> None:
        pass

    def public_keys(self, agent_id: str) -> tuple[bytes, ...]:  # noqa: ARG002
        return ()

    def lost(self, agent_id: str, document: bytes) -> None:
        pass

    def downlink(self, agent_id: str) -> bytes | None:  # noqa: ARG002
        return None

    def subscribe(self, changed: Callable[[str], None]) -> Callable[[], None]:  # noqa: ARG002
        return lambda: None

    def audit(self, kind: str, **fields: str) -> None:
        pass
