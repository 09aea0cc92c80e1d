"""Agents' events from the customer's own MQTT broker (mosquitto, EMQX …), read as a subscriber with a lasting session.

Promises:
  * a message is acknowledged to the broker only after its events are on our disk, in the order it came; what was read
    and not acknowledged, the broker sends again: same event.id, and within one process it is not stored twice;
  * only what an agent of the inventory signed is taken, on its own topic (mqtt_broker_check.py). Everything else is
    counted as dropped with its reason, put on the audit trail where somebody may have to answer for it, and
    acknowledged: one bad message must not keep back all that follow;
  * while the spool cannot take more, at most `receive_maximum` messages wait here and the others at the broker;
  * a broker that is dead, frozen or refuses us is tried again with full jitter for ever, its trouble said once;
  * a broker that had our session and has it no more is a WARNING and counted (nd_input_lost_sessions_total): what
    waited there is lost, and no agent has it any longer. docs/mqtt-broker.md says which settings keep it.
Refuses: QoS 0 (nobody waits for an answer: counted), MQTT 3.1.1, making anything of what the broker says about senders.

Signatures are verified on the event loop: 0.08 ms for each envelope, and two threads do but 1.35 times what one does.
"""

import asyncio
import itertools
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from ndagent.core.backoff import full_jitter
from ndagent.core.batcher import MAX_BATCH_EVENTS
from ndagent.core.interfaces import Accept
from ndagent.core.log import Throttle
from ndagent.wire.envelope import BadEnvelope, Limits
from ndagent.wire.record import Batch
from ndagent.wire.routes import Channel
from ndcollector.inputs import InputContext
from ndcollector.inputs.agent_batches import FORMAT, Name, Parcel, Repeats, open_envelope
from ndcollector.inputs.mqtt_broker_check import Checked, Checker, NotTaken
from ndcollector.inputs.mqtt_broker_config import Config
from ndcollector.inputs.mqtt_broker_link import BrokerError, Link, LinkSettings, Message
from ndcollector.inputs.mqtt_broker_policies import Policies
from ndcollector.inputs.mqtt_commit import MAX_BATCH_BYTES
from ndcollector.inputs.mqtt_peer import INLINE_BYTES

__all__ = ["Config", "MqttBroker", "build"]

TRANSPORT = "mqtt_broker"
_RETRY_SECONDS = (0.5, 30.0)  # first bound of the wait, and the last
_PAUSED_SECONDS = 1.0  # an accept that takes longer is the spool's back-pressure, not its pace
_LOG_SECONDS = 60.0
_SOON_SECONDS = 5.0
_BREATH_MESSAGES = 16  # looked at in a row before others on the loop have their turn


def build(name: str, config: Config, context: InputContext) -> "MqttBroker":
    """The input, not connected yet."""
    return MqttBroker(name, config, context)


class _Entry(NamedTuple):
    """A message that was looked at: what to acknowledge, and what has to be durable before."""

    packet_id: int
    name: Name | None = None
    parcel: Parcel | None = None


class MqttBroker:
    """See the module. `random` draws evenly from [0, 1) for the waits between tries."""

    def __init__(
        self, name: str, config: Config, context: InputContext, *, random: Callable[[], float] = random.random
    ) -> None:
        if context.fleet is None:
            raise ValueError("mqtt_broker needs an inventory: nobody else knows whose signature is whose")
        self._gate = context.fleet
        self._name = name
        self._config = config
        self._clock = context.clock
        self._metrics = context.metrics
        self._random = random
        self._log = logging.getLogger(name)
        host, _, port = config.endpoint.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        suffix = "" if name == config.type else f"-{name}"
        self._client_id = config.client_id or f"nd-{context.node_name}{suffix}"
        self._memory = context.state_dir / "mqtt_broker" / f"{name}.session"
        limits = Limits(length_bytes=config.max_batch_bytes, events=config.max_batch_events)
        self._checker = Checker(self._gate, limits=limits, input_name=name, address=self._host, port=self._port)
        self._policies = Policies(self._gate, log=self._log, clock=context.clock)
        self._throttle = Throttle(_LOG_SECONDS, clock=context.clock)
        self._repeats = Repeats()
        self._attempt = 0
        self._inbox: deque[Message] = deque()
        self._news = asyncio.Event()  # a message, or the connection's end
        self._connections = context.metrics.connections.labels(name)
        self._received = context.metrics.received.labels(name)

    # ---- life

    async def start(self) -> None:
        """Read the certificate files (OSError); a broker that is away is no reason not to start."""
        self._metrics.sessions_lost.labels(self._name)  # there from the start: an alert needs the zero
        self._connections.set(0)
        if self._config.tls is not None:
            self._config.tls.context()

    async def run(self, accept: Accept) -> None:
        """Read until cancelled; what the spool was being handed then is taken and acknowledged first."""
        unsubscribe = self._gate.subscribe(self._policies.changed)
        said = ""
        try:
            while True:
                try:
                    await self._session(accept)
                except (BrokerError, OSError) as error:
                    reason, taken_over = str(error), isinstance(error, BrokerError) and error.is_taken_over
                if reason != said:
                    self._say_why(reason, taken_over=taken_over)
                said = reason
                await asyncio.sleep(self._pause_seconds(taken_over=taken_over))
        finally:
            unsubscribe()

    def _say_why(self, reason: str, *, taken_over: bool) -> None:
        if taken_over:
            self._log.error(
                "another client uses our client identifier %s: give each collector its own", self._client_id
            )
        else:
            self._log.warning("not reading from %s: %s; trying again until it works", self._config.endpoint, reason)

    def _pause_seconds(self, *, taken_over: bool) -> float:
        initial, maximum = _RETRY_SECONDS
        self._attempt += 1
        return full_jitter(
            0 if taken_over else self._attempt - 1,
            initial_seconds=maximum if taken_over else initial,
            maximum_seconds=maximum,
            random=self._random,
        )

    # ---- one connection

    async def _session(self, accept: Accept) -> None:
        """Until it is lost (BrokerError) or this is cancelled."""
        self._inbox.clear()
        self._news.clear()
        link = await Link.open(self._link_settings(), received=self._on_message, ended=self._news.set)
        asking = None
        try:
            await self._look_for_session(link)
            asking = asyncio.create_task(self._ask_for_events(link), name=f"{self._name}: subscription")
            await self._serve_for_long(link, accept)
        finally:
            self._connections.set(0)
            if asking is not None:
                asking.cancel()
                await asyncio.wait({asking})
            await link.aclose()

    async def _ask_for_events(self, link: Link) -> None:
        """Subscribe, and publish policies then. What our session holds comes first, the broker's answer behind it: so
        messages are taken and acknowledged meanwhile, or the answer would never be read.
        """
        group = f"$share/{self._config.group}/nd/v1/agents/+"
        try:
            await asyncio.to_thread(self._remember_session)  # before anything can wait there to be lost
            await link.subscribe({f"{group}/{one}": 1 for one in (Channel.EVENTS, Channel.METRICS, Channel.STATUS)})
        except (BrokerError, OSError) as error:
            link.give_up(error if isinstance(error, BrokerError) else BrokerError(str(error)))
            return
        self._connections.set(1)
        self._log.info(
            "reading from %s as %s in group %s", self._config.endpoint, self._client_id, self._config.group
        )
        self._policies.start_anew()
        await self._policies.run(link)

    def _link_settings(self) -> LinkSettings:
        config = self._config
        return LinkSettings(
            host=self._host,
            port=self._port,
            client_id=self._client_id,
            tls=config.tls.context() if config.tls is not None else None,
            username=config.username,
            password=config.password.get_secret_value() if config.password is not None else None,
            keep_alive=round(config.keep_alive),
            timeout=config.connect_timeout,
            session_expiry=round(config.session_expiry),
            receive_maximum=config.receive_maximum,
            max_packet_bytes=config.max_packet_bytes,
        )

    def _on_message(self, message: Message) -> None:
        if message.packet_id:  # bounded by Receive Maximum
            self._inbox.append(message)
            self._news.set()
        else:
            self._refuse(NotTaken("qos0", "published at QoS 0, which nobody answers; publish at QoS 1"))

    async def _serve_for_long(self, link: Link, accept: Accept) -> None:
        """Brokers that do not tell a client that another one took over (mosquitto 2.0) just close."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._serve(link, accept)
        except BrokerError as error:
            if loop.time() - began > _SOON_SECONDS or error.is_taken_over or not link.is_subscribed:
                raise
            hint = f"; if that goes on: has another client our identifier, {self._client_id}?"
            raise BrokerError(f"{error}{hint}") from error

    async def _serve(self, link: Link, accept: Accept) -> None:
        while True:
            if link.error is not None:
                raise link.error
            if not self._inbox:
                self._news.clear()
                await self._news.wait()
                continue
            entries = await self._next_entries()
            await self._settle(entries, link, accept)
            self._attempt = 0

    async def _next_entries(self) -> list[_Entry]:
        """Those that wait, as far as they make one record or hardly more."""
        entries: list[_Entry] = []
        names: set[Name] = set()
        size_bytes = 0
        while self._inbox and size_bytes < MAX_BATCH_BYTES:
            message = self._inbox.popleft()
            entry = await self._look_at(message, names)
            entries.append(entry)
            size_bytes += entry.parcel.section.length if entry.parcel else 0
            if len(entries) % _BREATH_MESSAGES == 0:
                await asyncio.sleep(0)
        return entries

    async def _look_at(self, message: Message, names: set[Name]) -> _Entry:
        self._metrics.received_bytes.labels(self._name).inc(len(message.payload))
        try:
            checked = self._checker.check(message.topic, message.payload, now_ns=int(self._clock() * 1e9))
            self._gate.seen(checked.agent_id, address="", transport=TRANSPORT)
            self._policies.heard(checked.agent_id)
            if checked.name is not None and (checked.name in self._repeats or checked.name in names):
                self._metrics.known.labels(self._name).inc(checked.envelope.header.count)
                return _Entry(message.packet_id)
            parcel = await self._open(checked)
        except NotTaken as refused:
            self._refuse(refused)
            return _Entry(message.packet_id)
        except Exception:  # noqa: BLE001 - what is never acknowledged would come again and keep back all that follows
            self._log.exception("a message on %s cannot be taken; please report this traceback", message.topic[:200])
            self._refuse(NotTaken("fault", "a fault of the collector; its log has the traceback"))
            return _Entry(message.packet_id)
        if checked.name is not None:
            names.add(checked.name)
        return _Entry(message.packet_id, checked.name, parcel)

    async def _open(self, checked: Checked) -> Parcel | None:
        """The events; of a status report none, the fleet has it. Raises NotTaken: the agent itself sent nonsense."""
        try:
            if checked.origin is None:
                self._gate.relayed_status(checked.agent_id, checked.envelope.ndjson()[:-1])
                return None
            if checked.envelope.header.length <= INLINE_BYTES:
                return open_envelope(checked.envelope, checked.origin)
            return await asyncio.to_thread(open_envelope, checked.envelope, checked.origin)
        except BadEnvelope as error:
            raise NotTaken("bad_envelope", str(error), agent_id=checked.agent_id) from error

    async def _settle(self, entries: Sequence[_Entry], link: Link, accept: Accept) -> None:
        """Make durable, then acknowledge; a cancel waits for it, a second one cuts."""
        parcels = [entry.parcel for entry in entries if entry.parcel is not None]
        handing_on = asyncio.ensure_future(self._hand_on(parcels, accept))
        try:
            await asyncio.shield(handing_on)
        except asyncio.CancelledError:
            await handing_on
            self._acknowledge(entries, link)
            raise
        self._acknowledge(entries, link)

    async def _hand_on(self, parcels: Sequence[Parcel], accept: Accept) -> None:
        batches = list(_batches(parcels, received_at_ns=int(self._clock() * 1e9)))
        tasks = [asyncio.ensure_future(accept(batch)) for batch in batches]
        if not tasks:
            return
        paused = self._metrics.paused.labels(self._name)
        try:
            _, waiting = await asyncio.wait(tasks, timeout=_PAUSED_SECONDS)
            paused.set(bool(waiting))
            await asyncio.gather(*tasks)
        finally:
            paused.set(False)
            for task in tasks:
                task.cancel()

    def _acknowledge(self, entries: Sequence[_Entry], link: Link) -> None:
        self._received.inc(sum(entry.parcel.section.count for entry in entries if entry.parcel))
        for entry in entries:
            if entry.name is not None:
                self._repeats.add(entry.name)
            link.acknowledge(entry.packet_id)

    # ---- what is refused

    def _refuse(self, refused: NotTaken) -> None:
        """Count it, say it once a minute per agent and reason, and put on the trail what a person may answer for."""
        self._received.inc(refused.events)
        self._metrics.count_drop(input=self._name, reason=refused.reason, events=refused.events)
        who = refused.agent_id or "unknown"
        silenced = self._throttle.allow((who, refused.reason))
        if silenced is not None:
            self._log.warning("agent %s: refused what came for it (%s): %s", who, refused.reason, refused,
                              extra={"agent_id": who, "silenced": silenced})  # fmt: skip
        if refused.is_hostile:
            self._gate.audit(refused.reason, agent_id=refused.agent_id, address=self._host, detail=str(refused))

    # ---- the session at the broker

    async def _look_for_session(self, link: Link) -> None:
        expected = await asyncio.to_thread(self._remembered_session)
        if not link.session_present and expected == self._session_name:
            self._metrics.sessions_lost.labels(self._name).inc()
            self._log.warning(
                "the broker %s has lost our session %s: what waited there for us is gone, and agents do not have it "
                "any more. Look at its persistence, and at session_expiry; docs/mqtt-broker.md",
                self._config.endpoint, self._client_id,
            )  # fmt: skip
        granted, wanted = link.session_expiry_seconds, round(self._config.session_expiry)
        if granted < wanted:
            self._log.warning("the broker keeps our session for %d s only, not %d", granted, wanted)

    @property
    def _session_name(self) -> str:
        return f"{self._config.endpoint} {self._client_id}\n"

    def _remembered_session(self) -> str:
        with suppress(OSError):
            return self._memory.read_text()
        return ""

    def _remember_session(self) -> None:
        if self._remembered_session() == self._session_name:
            return
        with suppress(OSError):  # a full disk is the spool's to tell; this costs a warning later
            self._memory.parent.mkdir(mode=0o750, exist_ok=True)
            self._memory.write_text(self._session_name)


def _batches(parcels: Sequence[Parcel], *, received_at_ns: int) -> Iterator[Batch]:
    """One for each stream; more where one would be too large to be decoded at once. The order within a stream stays."""
    by_stream: dict[str, list[Parcel]] = {}
    for parcel in parcels:
        by_stream.setdefault(parcel.stream, []).append(parcel)
    for stream, rest in by_stream.items():
        while rest:
            events = itertools.accumulate(parcel.section.count for parcel in rest)
            fitting = max(1, sum(1 for total in events if total <= MAX_BATCH_EVENTS))
            taken = rest[:fitting]
            del rest[:fitting]
            yield Batch(
                stream,
                FORMAT,
                received_at_ns,
                [parcel.section for parcel in taken],
                [piece for parcel in taken for piece in parcel.payload],
            )
