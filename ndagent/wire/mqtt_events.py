"""What a session is told once, and what it tells: see mqtt.py."""

from dataclasses import dataclass
from typing import NamedTuple

from ndagent.wire.mqtt_codes import MqttError
from ndagent.wire.mqtt_packets import Connect, Publish


@dataclass(frozen=True, slots=True)
class Limits:
    """What the CONNACK tells a client."""

    receive_maximum: int = 64
    max_packet_bytes: int = 2**20
    max_keep_alive_seconds: int = 600  # a client that wants longer, or none, gets this


@dataclass(frozen=True, slots=True)
class Rights:
    """What the owner of a certificate may do: publish to these topics, and subscribe to one."""

    agent_id: str
    publish: frozenset[str]
    will: str
    downlink: str


class Connected(NamedTuple):
    """The client asks to come in: call `welcome` or `refuse` before going on. `assigned`: it brought no identifier."""

    connect: Connect
    assigned: bool


class Published(NamedTuple):
    """A message on one of the agent's own topics; at QoS 1 owed an `acknowledge`, or a `reject` at either."""

    message: Publish


class Subscribed(NamedTuple):
    """The client wants the downlink; `retained` says whether what is retained is to be delivered now."""

    retained: bool


class NotAllowed(NamedTuple):
    """The client tried what it has no right to, and was told so; `action` is "publish" or "subscribe"."""

    action: str
    detail: str


class Ended(NamedTuple):
    """The client took its leave (`error` None), or broke a rule. Nothing comes after this."""

    error: MqttError | None


Event = Connected | Published | Subscribed | NotAllowed | Ended
