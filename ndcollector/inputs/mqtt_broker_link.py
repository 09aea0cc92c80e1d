"""One connection to a broker as its subscriber: MQTT 5, a session that outlives it, acknowledgements by hand.

Promises:
  * what comes is handed to `received` and is ours only once `acknowledge` was called: until then the broker keeps it,
    and is to send at most `receive_maximum` of QoS 1 ahead. One that sends more (mosquitto 2.0.11 answers a PUBACK with
    two messages where more wait, so that each round doubles) is not read beyond twice of that, so acknowledge from the
    start: the answer to `subscribe` may stand behind;
  * `session_present` says whether the broker still had our session; the connection's end, however it comes, is told
    once by `ended`, and its reason is `error`;
  * errors are BrokerError, in one line with a remedy; nothing that was opened stays open after one.
Refuses: trying again (mqtt_broker.py), judging messages (mqtt_broker_check.py).

aiomqtt acknowledges when a message enters its queue, whoever then dies, and has no other way in public. It runs on
paho-mqtt, whose client it keeps private: this class is the only place of the collector that looks inside.
"""

import asyncio
import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from ndagent.core.waiting import heed_cancel

_SILENT = logging.getLogger("mqtt_broker.aiomqtt")
_SILENT.setLevel(logging.CRITICAL)  # what it has to say is in the errors
_GOODBYE_SECONDS = 2.0
_PUBLISH_SECONDS = 10.0
_NO_TOPIC = "nd/v1/nothing"  # that nobody is subscribed to
_REFUSED = 0x80  # and above (MQTT 5 §2.4)
_TAKEN_OVER = 0x8E


class Message(NamedTuple):
    """One publish as it came; `packet_id` names it to the broker, 0 at QoS 0."""

    topic: str
    payload: bytes
    packet_id: int


class BrokerError(Exception):
    """The broker cannot be used now; the text says why. `is_taken_over`: somebody has our client identifier."""

    def __init__(self, text: str, *, is_taken_over: bool = False) -> None:
        super().__init__(text)
        self.is_taken_over = is_taken_over


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What a connection is made with; `tls` None is plain TCP, times are seconds."""

    host: str
    port: int
    client_id: str
    tls: ssl.SSLContext | None
    username: str | None
    password: str | None
    keep_alive: int
    timeout: float
    session_expiry: int
    receive_maximum: int
    max_packet_bytes: int


class Link:
    """`open`, then `subscribe`; `aclose` at the end, also of one that is lost."""

    def __init__(
        self, settings: LinkSettings, *, received: Callable[[Message], None], ended: Callable[[], None]
    ) -> None:
        self.session_present = False
        self.session_expiry_seconds = settings.session_expiry
        """How long the broker keeps our session: it may grant less than was asked for."""
        self.error: BrokerError | None = None
        """Why the connection is no more; None while it is."""
        self._received = received
        self._ended = ended
        self._settings = settings
        self._is_cut = False
        self._loop = asyncio.get_running_loop()
        self.is_subscribed = False
        self._received_messages = 0
        self._unacknowledged = 0
        self._has_acknowledged = False
        self._held_socket: Any = None  # the one that is not read now
        self._publishing: dict[int, asyncio.Future[int]] = {}
        self._client = aiomqtt.Client(
            settings.host,
            settings.port,
            identifier=settings.client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=False,
            properties=_connect_properties(settings),
            username=settings.username,
            password=settings.password,
            keepalive=settings.keep_alive,
            timeout=settings.timeout,
            logger=_SILENT,
        )
        self._paho = self._client._client  # noqa: SLF001 - see the module
        self._paho._create_socket_connection = self._dial  # type: ignore[method-assign]  # noqa: SLF001 - see the module
        self._paho.manual_ack_set(True)
        self._tell_connected: Any = self._paho.on_connect  # aiomqtt's own
        self._tell_disconnected: Any = self._paho.on_disconnect
        self._tell_open: Any = self._paho.on_socket_open
        self._paho.on_socket_open = self._on_socket_open
        self._paho.on_connect = self._on_connect
        self._paho.on_disconnect = self._on_disconnect
        self._paho.on_message = self._on_message
        self._paho.on_publish = self._on_publish

    @classmethod
    async def open(
        cls, settings: LinkSettings, *, received: Callable[[Message], None], ended: Callable[[], None]
    ) -> Self:
        """Connect; raises BrokerError. Messages of our session may come before this returns."""
        link = cls(settings, received=received, ended=ended)
        try:
            await link._client.__aenter__()
            heed_cancel()
        except (aiomqtt.MqttError, OSError, ValueError) as error:
            link._cut()
            raise BrokerError(_explain(error)) from error
        except BaseException:
            link._cut()
            raise
        link._client._disconnected.add_done_callback(link._on_end)  # noqa: SLF001 - see the module
        return link

    async def subscribe(self, topics: Mapping[str, int]) -> None:
        """Subscribe with these QoS; raises BrokerError that names what is not granted.

        Acknowledge what comes meanwhile: a broker may send more of our session than we read on from, and answer then.
        """
        asking = asyncio.ensure_future(self._client.subscribe(list(topics.items()), timeout=math.inf))
        try:
            codes = await self._answer(asking)
        except aiomqtt.MqttError as error:
            raise self.error or BrokerError(_explain(error)) from error
        finally:
            asking.cancel()
        heed_cancel()
        for topic, code in zip(topics, codes, strict=True):
            if _value(code) >= _REFUSED:
                raise BrokerError(f"the broker does not let us subscribe to {topic} ({code}); grant read on it (ACL)")
        self.is_subscribed = True

    async def _answer(self, asking: "asyncio.Future[Any]") -> Sequence[Any]:
        """What it gives, for which a broker has `timeout` from when we last read on."""
        while not asking.done():
            received = self._received_messages
            await asyncio.wait({asking}, timeout=self._settings.timeout)
            if self.error is not None:
                raise self.error
            if not asking.done() and self._held_socket is None and self._received_messages == received:
                raise BrokerError(f"no answer to our subscription within {self._settings.timeout:g} s")
        answer: Sequence[Any] = asking.result()
        return answer

    def acknowledge(self, packet_id: int) -> None:
        """The message is ours for ever. Call in the order in which messages came [MQTT-4.6.0-2]."""
        if self.error is None and packet_id:
            self._unacknowledged -= 1
            self._has_acknowledged = True
            self._paho.ack(packet_id, 1)
            if self._held_socket is not None and self._unacknowledged <= self._settings.receive_maximum:
                self._release()

    async def publish_retained(self, topic: str, payload: bytes) -> None:
        """Return when the broker has it; raises BrokerError."""
        sent = self._paho.publish(topic, payload, qos=1, retain=True)
        if sent.rc != 0:
            raise self.error or BrokerError(str(aiomqtt.MqttCodeError(sent.rc)))
        waiting = self._publishing[sent.mid] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_PUBLISH_SECONDS):
                code = await waiting
        except TimeoutError:
            raise BrokerError(f"no PUBACK for {topic} within {_PUBLISH_SECONDS:g} s") from None
        finally:
            del self._publishing[sent.mid]
        if code >= _REFUSED:
            raise BrokerError(f"the broker does not take {topic} (reason {code:#04x}); grant write on it (ACL)")

    async def aclose(self) -> None:
        """Say goodbye if somebody is there to hear it; the session stays.

        First a round trip: mosquitto forgets what it has not read yet of a connection when its client comes again, and
        an acknowledgement that is forgotten is a message that comes twice.
        """
        with contextlib.suppress(aiomqtt.MqttError, OSError, TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                if self.error is None and self._has_acknowledged:
                    await self._client.unsubscribe(_NO_TOPIC)
                await self._client.__aexit__(None, None, None)
        self._cut()

    def _dial(self) -> socket.socket:
        """Connect, in a thread of aiomqtt's. paho would leave a socket open whose TLS handshake failed."""
        settings = self._settings
        raw = socket.create_connection((settings.host, settings.port), settings.timeout)
        try:
            made = settings.tls.wrap_socket(raw, server_hostname=settings.host) if settings.tls is not None else raw
        except BaseException:
            raw.close()
            raise
        if self._is_cut:  # nobody waits for it any more
            made.close()
            raise OSError("stopped while connecting")
        return made

    def _cut(self) -> None:
        """Close the socket, whatever state it is in: aiomqtt leaves it open when a connection does not come about."""
        self._is_cut = True
        with contextlib.suppress(OSError):
            self._paho._sock_close()  # noqa: SLF001 - see the module

    # ---- called by paho, on the event loop

    def _on_socket_open(self, client: Any, userdata: Any, opened: Any) -> None:
        """In aiomqtt's thread: read by `_read` instead of by its own, which cannot be held."""
        self._tell_open(client, userdata, opened)
        self._loop.call_soon_threadsafe(self._loop.add_reader, opened.fileno(), self._read)

    def _read(self) -> None:
        """What has come, a packet at a time; TLS may hold more than the kernel tells of."""
        try:
            while self.error is None:
                self._paho.loop_read()
                current: Any = self._paho.socket()
                if self._held_socket is not None or not getattr(current, "pending", int)():
                    return
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection is of no use any more
            self._end(f"the connection was lost ({error or type(error).__name__})")

    def _hold(self) -> None:
        self._held_socket = self._paho.socket()
        self._loop.remove_reader(self._held_socket.fileno())

    def _release(self) -> None:
        current: Any = self._paho.socket()
        is_same, self._held_socket = current is self._held_socket, None
        if is_same and current.fileno() >= 0:
            self._loop.add_reader(current.fileno(), self._read)
            self._loop.call_soon(self._read)

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any = None) -> None:
        self.session_present = bool(flags.session_present)
        self.session_expiry_seconds = getattr(properties, "SessionExpiryInterval", self.session_expiry_seconds)
        self._tell_connected(client, userdata, flags, reason, properties)
        if self._is_cut:
            self._cut()

    def _on_message(self, _client: Any, _userdata: Any, message: Any) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        self._received_messages += 1
        if message.qos:
            self._unacknowledged += 1
            if self._unacknowledged >= 2 * self._settings.receive_maximum and self._held_socket is None:
                self._hold()
        self._received(Message(topic, message.payload, message.mid if message.qos else 0))

    def _on_publish(self, _client: Any, _userdata: Any, mid: int, reason: Any, _properties: Any) -> None:
        waiting = self._publishing.get(mid)
        if waiting is not None and not waiting.done():
            waiting.set_result(_value(reason))

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any = None) -> None:
        self._tell_disconnected(client, userdata, flags, reason, properties)
        self._end(f"the connection was lost ({reason})", is_taken_over=_value(reason) == _TAKEN_OVER)

    def _on_end(self, disconnected: "asyncio.Future[None]") -> None:
        """Where aiomqtt saw the end and paho did not: an exception while reading or writing."""
        error = None if disconnected.cancelled() else disconnected.exception()
        self._end(f"the connection was lost ({error or 'closed'})")

    def _end(self, text: str, *, is_taken_over: bool = False) -> None:
        self.give_up(BrokerError(text, is_taken_over=is_taken_over))

    def give_up(self, error: BrokerError) -> None:
        """The connection is of no use any more, for the first reason that was given."""
        if self.error is None:
            self.error = error
            for waiting in self._publishing.values():
                if not waiting.done():
                    waiting.set_exception(self.error)
            self._ended()


def _connect_properties(settings: LinkSettings) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho ships no types for it
    properties.SessionExpiryInterval = settings.session_expiry
    properties.ReceiveMaximum = settings.receive_maximum
    properties.MaximumPacketSize = settings.max_packet_bytes
    return properties


def _value(code: Any) -> int:
    """Of a reason code, which paho gives as an object or a number."""
    value: int = getattr(code, "value", code)
    return value


def _explain(error: Exception) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"the broker's certificate is not accepted: {text}; is tls.ca_file right?"
    if "timed out" in text:  # under TLS 1.3 a refused certificate shows only as silence (measured with aiomqtt)
        return f"{text}; the broker is away, or refuses our certificate without a word: look at its log"
    if isinstance(error, aiomqtt.MqttCodeError):
        return f"the broker refuses us: {text}"
    return text or type(error).__name__
