"""To a collector over MQTT 5: a publish of QoS 1 for each envelope; PUBACK means that it is on the collector's disk.

With `broker` the other end is the customer's own broker, and PUBACK means what that broker means by it: see
docs/mqtt-broker.md. What goes there is signed, envelopes and reports alike, and there is no will: nobody could sign it.

Promises: the reason code in each PUBACK counts (aiomqtt drops it; an agent that believed in a mere PUBACK would delete
what a broker refused); a lost connection fails every publish under way at once; the policy topic is subscribed to and
what comes there is handed on; the will tells the collector that we are gone.
Refuses: QoS 0 and 2, keeping a session (the spool is our memory), choosing between collectors (collector.py).

aiomqtt runs on paho-mqtt, whose client it keeps private: `_Wire` is the only place that looks inside.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import AfterValidator, Field, model_validator

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.settings import Duration, SettingError
from ndagent.core.waiting import heed_cancel
from ndagent.https_client import Proxy, check_proxy, through_proxy
from ndagent.outputs import Target, TransportConfig, TransportContext
from ndagent.outputs.broker import BrokerConfig, broker_context
from ndagent.wire import routes
from ndagent.wire.envelope import Header
from ndagent.wire.routes import Channel

if TYPE_CHECKING:
    from ndagent.outputs.signing import Sign

_log = logging.getLogger("mqtt")
_SILENT = logging.getLogger("mqtt.aiomqtt")
_SILENT.setLevel(logging.CRITICAL)  # it warns of each publish beyond the tenth, and we tell why one failed

IN_FLIGHT = 64
"""More publishes under way than any window of sends; the collector's Receive Maximum may ask for less."""
_NEVER = {0x99, 0x95}  # payload format invalid, packet too large (MQTT 5 §2.4)
_NO_SUBSCRIBER = 0x10
_ACK_SECONDS = 30.0
_PACKET_OVERHEAD_BYTES = 256  # fixed header, topic, packet identifier, properties


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
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.aclose()

    async def _publish(self, topic: str, payload: bytes) -> None:
        wire = await self._connected()
        code = await wire.publish(topic, payload)
        if code in _NEVER:
            raise Rejected(f"{self._target} refused the batch with reason code {code:#04x}")
        if code == _NO_SUBSCRIBER:
            raise Unavailable(f"{self._target}: no collector is subscribed to {topic} at that broker")
        if code >= 0x80:
            raise Unavailable(f"{self._target} refused {topic} with reason code {code:#04x}: is this agent revoked?")

    async def _connected(self) -> "_Wire":
        async with self._opening:
            if self._wire is not None and not self._wire.is_lost:
                return self._wire
            await self.aclose()
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
        self._downlink: asyncio.Task[None] | None = None
        self._paho.on_publish = self._acknowledged
        self._told_of_the_end = self._paho.on_disconnect
        self._paho.on_disconnect = self._disconnected

    @classmethod
    async def open(cls, config: Config, context: TransportContext, target: Target) -> "_Wire":
        """Connect and subscribe; raises Unavailable."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho ships no types for it
        properties.SessionExpiryInterval = 0
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
            will=None if broker else gone,
            logger=_SILENT,
        )
        wire = cls(client, context, target)
        wire._dial(config, broker_context(broker.tls, context) if broker else context.tls())
        try:
            await client.__aenter__()
            heed_cancel()
        except (aiomqtt.MqttError, OSError) as error:
            wire._cut()
            raise Unavailable(f"{target}: {error}{_hint(error)}") from error
        except asyncio.CancelledError:
            wire._cut()
            raise
        client._disconnected.add_done_callback(wire._lost)  # noqa: SLF001 - see the module
        wire._downlink = asyncio.create_task(wire._listen(), name=f"{target}: policy")
        return wire

    @property
    def is_lost(self) -> bool:
        """Whether the connection is down."""
        return self._client._disconnected.done()  # noqa: SLF001 - see the module

    async def publish(self, topic: str, payload: bytes) -> int:
        """The reason code of the PUBACK; raises Unavailable when the connection goes down before it comes."""
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
            raise Unavailable(f"{self._target}: no PUBACK within {_ACK_SECONDS:g} s") from None
        finally:
            self._waiting.pop(sent.mid, None)

    async def aclose(self) -> None:
        """Say goodbye if somebody is there to hear it."""
        if self._downlink is not None:
            self._downlink.cancel()
            await asyncio.wait({self._downlink})
        with contextlib.suppress(aiomqtt.MqttError, OSError):
            await self._client.__aexit__(None, None, None)

    def _cut(self) -> None:
        """Close the socket: aiomqtt leaves it open when a connection does not come about."""
        self._paho._sock_close()  # noqa: SLF001 - see the module

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
            waiting.set_result(getattr(reason, "value", 0))

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
