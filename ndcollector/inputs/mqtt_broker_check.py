"""Whether a message that came over a broker is what it says: topic, envelope and signature must agree on the agent.

    topic nd/v1/agents/<id>/…  ──  envelope of <id>  ──  signed by a key that the inventory has for <id>

Promises:
  * nothing of a message is believed, decompressed or registered before its signature was verified;
  * an agent's names (`Origin.names`, `spool_id`) are given for verified messages only;
  * what is refused raises NotTaken with a reason of a closed set; work is bounded by the message and MAX_KEYS.
Refuses: I/O, counting, acknowledging (mqtt_broker.py). What the broker said about the publisher: nothing can be.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ndagent.wire.envelope import STATUS_STREAM, BadEnvelope, Envelope, Limits, TooLarge, is_envelope, unpack
from ndagent.wire.record import AGENT_URI, Origin
from ndagent.wire.routes import STREAMS, Channel, Topic, parse_topic
from ndagent.wire.status import MAX_STATUS_BYTES
from ndcollector.inputs.agent_batches import Name, name_of
from ndcollector.inputs.agent_gate import Gate

MAX_KEYS = 4
"""Of one agent, the newest first: more than a renewal in between needs, and a bound on what a forgery costs."""
_KEYS_KEPT = 4096
_ORIGINS_KEPT = 1024
_STATUS_LIMITS = Limits(length_bytes=MAX_STATUS_BYTES + 1, events=1)
_ALGORITHM = ECDSA(SHA256())

Reason = Literal[
    "foreign_topic", "qos0", "unsigned", "bad_envelope", "too_large", "wrong_sender", "bad_signature", "not_admitted",
    "fault",
]  # fmt: skip
"""Why a message is not taken; the label of nd_input_dropped_events_total."""


class NotTaken(Exception):
    """The message will never be taken. `events` is 1 for one that nobody vouches for: its count proves nothing."""

    def __init__(self, reason: Reason, detail: str, *, agent_id: str = "", events: int = 1) -> None:
        super().__init__(detail)
        self.reason = reason
        self.agent_id = agent_id
        self.events = events

    @property
    def is_hostile(self) -> bool:
        """A person may have to answer for it; what the fleet refuses it has put on the trail itself."""
        return self.reason not in ("too_large", "not_admitted", "qos0", "fault")


class Checked(NamedTuple):
    """An envelope that is the agent's own. A status report has neither name nor origin."""

    agent_id: str
    envelope: Envelope
    name: Name | None
    origin: Origin | None


class Checker:
    """For one input; `address` and `port` are the broker's."""

    def __init__(self, gate: Gate, *, limits: Limits, input_name: str, address: str, port: int) -> None:
        self._gate = gate
        self._limits = limits

        def origin(agent_id: str, spool_id: str, skew_seconds: int) -> Origin:
            names = (f"{AGENT_URI}{agent_id}",)
            return Origin(input_name, address, port, names=names, spool_id=spool_id, clock_skew_seconds=skew_seconds)

        self._origin: Callable[[str, str, int], Origin] = lru_cache(_ORIGINS_KEPT)(origin)

    def check(self, topic_name: str, payload: bytes, *, now_ns: int) -> Checked:
        """Who says so? Raises NotTaken."""
        topic = parse_topic(topic_name)
        if topic is None or topic.channel is Channel.POLICY:
            raise NotTaken("foreign_topic", f"a message on {topic_name[:200]!r}")
        try:
            return self._check(topic, payload, now_ns)
        except TooLarge as error:
            raise NotTaken("too_large", str(error), agent_id=topic.agent_id) from error
        except BadEnvelope as error:
            raise NotTaken("bad_envelope", str(error), agent_id=topic.agent_id) from error

    def _check(self, topic: Topic, payload: bytes, now_ns: int) -> Checked:
        agent_id, is_status = topic.agent_id, topic.channel is Channel.STATUS
        if not is_envelope(payload):
            raise NotTaken("unsigned", "no envelope, so nobody vouches for it", agent_id=agent_id)
        envelope = unpack(payload, _STATUS_LIMITS if is_status else self._limits)
        self._check_sender(topic, envelope)
        self._verify(agent_id, envelope)
        if is_status:
            return Checked(agent_id, envelope, None, None)
        header = envelope.header
        # no run id: a broker stores and forwards, so an agent's earlier process may be heard after its later one
        refusal = self._gate.admit(agent_id, spool_id=header.spool_id, run_id="", address="")
        if refusal is not None:
            raise NotTaken("not_admitted", refusal, agent_id=agent_id, events=header.count)
        ahead_seconds = max(0, round((header.sent_at_ns - now_ns) / 1e9))  # behind may be the broker's delay
        return Checked(agent_id, envelope, name_of(envelope), self._origin(agent_id, header.spool_id, ahead_seconds))

    def _check_sender(self, topic: Topic, envelope: Envelope) -> None:
        header, agent_id = envelope.header, topic.agent_id
        if header.agent_id != agent_id:
            detail = f"the envelope is agent {header.agent_id}'s, the topic {agent_id}'s"
            raise NotTaken("wrong_sender", detail, agent_id=agent_id)
        streams = {STATUS_STREAM} if topic.channel is Channel.STATUS else STREAMS[topic.channel]
        if header.stream not in streams:
            detail = f"no stream {header.stream!r} on the channel {topic.channel}"
            raise NotTaken("wrong_sender", detail, agent_id=agent_id)
        if not envelope.signature:
            raise NotTaken(
                "unsigned", "the envelope is not signed; outputs.mqtt.broker at the agent", agent_id=agent_id
            )

    def _verify(self, agent_id: str, envelope: Envelope) -> None:
        refusal = self._gate.admit(agent_id, spool_id="", run_id="", address="")
        if refusal is not None:
            raise NotTaken("not_admitted", refusal, agent_id=agent_id)
        signed = envelope.signed
        for der in self._gate.public_keys(agent_id)[:MAX_KEYS]:
            key = _key(der)
            if key is not None and _is_signed_by(key, envelope.signature, signed):
                return
        raise NotTaken("bad_signature", "no certificate of this agent made that signature", agent_id=agent_id)


@lru_cache(_KEYS_KEPT)
def _key(der: bytes) -> EllipticCurvePublicKey | None:
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, EllipticCurvePublicKey) else None


def _is_signed_by(key: EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    try:
        key.verify(signature, data, _ALGORITHM)
    except InvalidSignature:
        return False
    return True
