"""To a collector over MQTT 5: a publish of QoS 1 for each envelope; PUBACK means that it is on the collector's disk.

With `broker` the other end is the customer's own broker, and PUBACK means what that broker means by it: see
docs/mqtt-broker.md. What goes there is signed, envelopes and reports alike, and there is no will: nobody could sign it.

Promises: the reason code in each PUBACK counts (aiomqtt drops it; an agent that believed in a mere PUBACK would delete
what a broker refused); a lost connection fails every publish under way at once, and one that leaves a publish without
answer is given up; the collector's Receive Maximum and Maximum Packet Size are kept (paho reads neither); the policy
topic is subscribed to and what comes there is handed on; the will tells the collector that we are gone.
Refuses: QoS 0 and 2, keeping a session (the spool is our memory), choosing between collectors (collector.py).

aiomqtt runs on paho-mqtt, whose client it keeps private: `_Wire` is the only place that looks inside.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.settings import Duration, SettingError
from ndagent.core.waiting import heed_cancel
from ndagent.footprint import pretending, stand_in
from ndagent.https_client import Proxy, check_proxy, through_proxy
from ndagent.outputs import Target, TransportConfig, TransportContext
from ndagent.outputs.broker import BrokerConfig, broker_context
from ndagent.wire import routes
from ndagent.wire.envelope import Header
from ndagent.wire.routes import Channel

if TYPE_CHECKING:
    from ndagent.outputs.signing import Sign

# 7 MB that paho and aiomqtt load for nothing that is used here: SRV records (discovery.py finds them) and
# proxies of its own (`_dial` makes the connection).
_UNUSED = {
    "dns": None,
    "socks": None,
    "urllib.request": stand_in("urllib.request"),
}
with pretending(_UNUSED):
    import aiomqtt
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

_log = logging.getLogger("mqtt")
_SILENT = logging.getLogger("mqtt.aiomqtt")
_SILENT.setLevel(logging.CRITICAL)  # it warns of each publish beyond the tenth, and we tell why one failed

IN_FLIGHT = 64
"""More publishes under way than any window of sends; the collector's Receive Maximum may ask for less."""
_NEVER = {0x99, 0x95}  # payload format invalid, packet too large (MQTT 5 §2.4)
_NO_SUBSCRIBER = 0x10
_ACK_SECONDS = 30.0
_PACKET_OVERHEAD_BYTES = 256  # fixed header, topic, packet identifier, properties
_MOST_DOWN_BYTES, _MOST_DOWN = 1 << 20, 16
"""What may come down at a time: the newest policy is all that counts."""
_ABOUT_A_PACKET = 16
"""Bytes that a PUBLISH has besides topic and payload (MQTT 5 §3.3), at most."""


class Config(TransportConfig):
    """Settings of the way over MQTT."""

    type: Literal["mqtt"] = Field(default="mqtt", description="Envelopes over MQTT 5, TLS 1.3 with our certificate.")
    keepalive: Duration = Field(
        default=60.0, ge=5, le=3600, description="How often to ask a silent collector whether it is there."
    )
    proxy: Annotated[str, AfterValidator(check_proxy)] | None = Field(
        default=None, description="HTTP proxy that does CONNECT.", examples=["http://proxy.example.net:3128"]
    )
    broker: BrokerConfig | None = Field(
        default=None,
        description="`broker: {}` or more: the endpoints are the customer's own brokers and not collectors; everything "
        "is signed. See docs/mqtt-broker.md.",
    )

    @model_validator(mode="after")
    def _has_brokers(self) -> Self:
        if self.broker is not None and not self.endpoints:
            raise SettingError(("endpoints",), "is missing: enrolment tells where collectors are, not brokers")
        return self


def build(config: Config, context: TransportContext, target: Target) -> "Mqtt":
    """The transport, not connected yet."""
    return Mqtt(config, context, target)


class Mqtt:
    """See the module."""

    def __init__(self, config: Config, context: TransportContext, target: Target) -> None:
        self._config = config
        self._context = context
        self._target = target
        self._opening = asyncio.Lock()
        self._closed = False
        self._wire: _Wire | None = None
        self._sign: Sign | None = None

    @property
    def sign(self) -> "Sign | None":
        """See Transport. A renewed key comes with a new transport."""
        if self._config.broker is not None and self._sign is None:
            from ndagent.outputs.signing import signer  # late: cryptography costs 8 MB

            self._sign = signer(self._context.pair())
        return self._sign

    async def send(self, packed: bytes, header: Header) -> None:
        """See Transport."""
        broker = self._config.broker
        if broker is not None and len(packed) > broker.max_packet_bytes - _PACKET_OVERHEAD_BYTES:
            raise Rejected(f"{self._target}: {len(packed)} bytes are more than broker.max_packet_bytes")
        topic = routes.topic(self._context.agent_id, routes.channel_of(header.stream))
        await self._publish(topic, packed)

    async def report(self, document: bytes) -> None:
        """See Transport. A newer policy comes by itself."""
        context = self._context
        if (sign := self.sign) is not None:
            from ndagent.outputs.signing import signed_status  # see `sign`

            document = signed_status(document, agent_id=context.agent_id, run_id=context.run_id, sign=sign)
        await self._publish(routes.topic(context.agent_id, Channel.STATUS), document)

    async def probe(self) -> None:
        """See Transport."""
        await self._connected()

    async def aclose(self) -> None:
        """See Transport."""
        self._closed = True
        async with self._opening:
            await self._hang_up()

    async def _hang_up(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.aclose()

    async def _publish(self, topic: str, payload: bytes) -> None:
        wire = await self._connected()
        code = await wire.publish(topic, payload)
        if code in _NEVER:
            raise Rejected(f"{self._target} refused what was published to {topic} with reason code {code:#04x}")
        if code == _NO_SUBSCRIBER:
            raise Unavailable(f"{self._target}: no collector is subscribed to {topic} at that broker")
        if code >= 0x80:
            raise Unavailable(f"{self._target} refused {topic} with reason code {code:#04x}: is this agent revoked?")

    async def _connected(self) -> "_Wire":
        async with self._opening:
            if self._wire is not None and not self._wire.is_lost:
                return self._wire
            await self._hang_up()
            if self._closed:  # a connection now would take over from the one that came after this
                raise Unavailable(f"{self._target}: this way is closed")
            self._wire = await _Wire.open(self._config, self._context, self._target)
            return self._wire


class _Wire:
    """One connection that is up, or was."""

    def __init__(self, client: aiomqtt.Client, context: TransportContext, target: Target) -> None:
        self._client = client
        self._paho = client._client  # noqa: SLF001 - see the module
        self._context = context
        self._target = target
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._window = asyncio.Semaphore(IN_FLIGHT)
        self._most_bytes: int | None = None
        self._downlink: asyncio.Task[None] | None = None
        self._paho.on_publish = self._acknowledged
        self._told_of_the_end = self._paho.on_disconnect
        self._paho.on_disconnect = self._disconnected
        self._told_of_the_start = self._paho.on_connect
        self._paho.on_connect = self._welcomed

    @classmethod
    async def open(cls, config: Config, context: TransportContext, target: Target) -> "_Wire":
        """Connect and subscribe; raises Unavailable."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho ships no types for it
        properties.SessionExpiryInterval = 0
        properties.MaximumPacketSize = _MOST_DOWN_BYTES
        broker, password = config.broker, config.broker.password if config.broker else None
        gone = aiomqtt.Will(routes.topic(context.agent_id, Channel.STATUS), b"", qos=1)  # "gone without a word"
        client = aiomqtt.Client(
            target.place.host,
            target.place.port,
            username=broker.username if broker else None,
            password=password.get_secret_value() if password else None,
            identifier=context.agent_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            properties=properties,
            keepalive=round(config.keepalive),
            timeout=config.connect_timeout,
            max_inflight_messages=IN_FLIGHT,
            max_queued_incoming_messages=_MOST_DOWN,
            will=None if broker else gone,
            logger=_SILENT,
        )
        wire = cls(client, context, target)
        wire._dial(config, broker_context(broker.tls, context) if broker else context.tls())
        entering = asyncio.ensure_future(client.__aenter__())
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            entering.add_done_callback(wire._not_wanted)  # its thread cannot be stopped, only what it opens be closed
            raise
        except (aiomqtt.MqttError, OSError, ValueError) as error:  # ValueError: a name that DNS cannot have
            wire._cut()
            raise Unavailable(f"{target}: {error}{_hint(error)}") from error
        client._disconnected.add_done_callback(wire._lost)  # noqa: SLF001 - see the module
        wire._downlink = asyncio.create_task(wire._listen(), name=f"{target}: policy")
        return wire

    @property
    def is_lost(self) -> bool:
        """Whether the connection is down."""
        return self._client._disconnected.done()  # noqa: SLF001 - see the module

    async def publish(self, topic: str, payload: bytes) -> int:
        """The reason code of the PUBACK; raises Unavailable when the connection goes down before it comes.

        Raises Rejected for more than the collector takes in one packet: it would close the connection, again and again.
        """
        size = len(topic) + len(payload) + _ABOUT_A_PACKET
        if self._most_bytes is not None and size > self._most_bytes:
            raise Rejected(f"{self._target} takes packets of {self._most_bytes} bytes, this one has about {size}")
        async with self._window:
            return await self._publish(topic, payload)

    async def _publish(self, topic: str, payload: bytes) -> int:
        if self.is_lost:
            raise Unavailable(f"{self._target}: the connection was lost")
        try:
            sent = self._paho.publish(topic, payload, qos=1)
        except (ValueError, OSError) as error:
            raise Unavailable(f"{self._target}: {error}") from error
        if sent.rc != 0:
            raise Unavailable(f"{self._target}: {aiomqtt.MqttCodeError(sent.rc)}")
        waiting = self._waiting[sent.mid] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_ACK_SECONDS):
                code: int = await waiting
                return code
        except TimeoutError:
            self._cut()  # paho would keep what it sent, and each try would add to it
            raise Unavailable(f"{self._target}: no PUBACK within {_ACK_SECONDS:g} s") from None
        except asyncio.CancelledError:
            self._cut()  # likewise: `delivery.timeout` is over first, unless it was made longer
            raise
        finally:
            self._waiting.pop(sent.mid, None)

    async def aclose(self) -> None:
        """Say goodbye if somebody is there to hear it."""
        try:
            with contextlib.suppress(aiomqtt.MqttError, OSError):
                await self._client.__aexit__(None, None, None)
        finally:
            self._cut()
        if self._downlink is not None:  # after the end, which ends it: in Python 3.11 its wait_for may swallow a cancel
            self._downlink.cancel()
            await asyncio.wait({self._downlink})

    def _cut(self) -> None:
        """Close the socket, whatever state the connection is in, and fail what waits on it."""
        self._paho._sock_close()  # noqa: SLF001 - see the module
        disconnected = self._client._disconnected  # noqa: SLF001 - see the module
        if not disconnected.done():
            disconnected.set_result(None)
        self._lost(disconnected)

    def _not_wanted(self, entering: "asyncio.Future[aiomqtt.Client]") -> None:
        """Nobody waited for the connection until it was there, or failed."""
        if not entering.cancelled():
            entering.exception()
        self._cut()

    def _dial(self, config: Config, tls: ssl.SSLContext) -> None:
        """Connect to the address that was chosen (or through the proxy) while the certificate must name the host.

        TLS is begun here, because paho leaves a socket open whose handshake failed.
        """
        place, proxy = self._target.place, Proxy.parse(config.proxy) if config.proxy else None

        def connect() -> socket.socket:  # in a thread of aiomqtt's
            if proxy is not None:
                raw = through_proxy(proxy, place, timeout_seconds=config.connect_timeout)
            else:
                raw = socket.create_connection((place.address or place.host, place.port), config.connect_timeout)
            raw.settimeout(config.connect_timeout)
            with contextlib.ExitStack() as on_error:
                on_error.callback(raw.close)
                made = tls.wrap_socket(raw, server_hostname=place.host)
                on_error.pop_all()
            return made

        self._paho._create_socket_connection = connect  # type: ignore[method-assign]  # noqa: SLF001 - see the module
        self._paho.connect_timeout = config.connect_timeout

    def _welcomed(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any = None) -> None:
        """What CONNACK says of limits (MQTT 5 §3.2.2.3)."""
        self._most_bytes = getattr(properties, "MaximumPacketSize", None)
        self._window = asyncio.Semaphore(min(IN_FLIGHT, getattr(properties, "ReceiveMaximum", IN_FLIGHT)))
        told: Any = self._told_of_the_start
        told(client, userdata, flags, reason, properties)

    def _disconnected(self, *arguments: Any) -> None:
        """Before CONNACK aiomqtt would go on waiting for it: a refused certificate looks like silence."""
        connected = self._client._connected  # noqa: SLF001 - see the module
        if not connected.done():
            connected.set_exception(aiomqtt.MqttError("it closed the connection"))
        elif self._told_of_the_end is not None:
            self._told_of_the_end(*arguments)

    def _acknowledged(self, _client: Any, _userdata: Any, mid: int, reason: Any, _properties: Any) -> None:
        waiting = self._waiting.get(mid)
        if waiting is not None and not waiting.done():
            waiting.set_result(reason.value)

    def _lost(self, disconnected: "asyncio.Future[None]") -> None:
        error = None if disconnected.cancelled() else disconnected.exception()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Unavailable(f"{self._target}: the connection was lost ({error or 'closed'})"))

    async def _listen(self) -> None:
        """Hand on the policies that come down, the retained one first."""
        try:
            await self._client.subscribe(routes.topic(self._context.agent_id, Channel.POLICY), qos=1)
            heed_cancel()
            async for message in self._client.messages:
                if isinstance(message.payload, bytes) and message.payload:
                    await self._context.offer(message.payload)
        except aiomqtt.MqttError as error:
            _log.debug("%s: no more policies: %s", self._target, error)  # the next send finds the connection down


def _hint(error: Exception) -> str:
    """Under TLS 1.3 a refused certificate shows only behind the handshake."""
    if "timed out" in str(error) or "closed the connection" in str(error):
        return "; it may have refused our certificate: `ndagent status`"
    return ""
