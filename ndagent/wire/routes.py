"""Where agents and collectors meet: MQTT topics, HTTPS paths, content types. Both ends take them from here.

Promises: a topic or path that these functions build is parsed back by them, and only an exact one is; an agent's id is
checked, so no wildcard, level or control character comes in through it. Refuses: deciding who may use which.
"""

import re
from enum import StrEnum
from typing import NamedTuple

ENROLL = "/agents/v1/enroll"
RENEW = "/agents/v1/renew"
BATCHES = "/agents/v1/batches"
POLICY = "/agents/v1/policy"
STATUS = "/agents/v1/status"
CA = "/agents/v1/ca"
"""The collector's CA certificates: not secret, and of no use without the fingerprint that a token carries."""

ENVELOPE_TYPE = "application/vnd.neurodefender.envelope"
NDJSON_TYPE = "application/x-ndjson"
IDEMPOTENCY_KEY = "Idempotency-Key"

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_TOPIC = re.compile(rf"nd/v1/agents/({_ID.pattern})/([a-z]+)")


class Channel(StrEnum):
    """The last level of an agent's topics: three up, one (retained) down."""

    EVENTS = "events"
    METRICS = "metrics"
    STATUS = "status"
    POLICY = "policy"


_CHANNELS = {str(channel): channel for channel in Channel}
STREAMS = {Channel.EVENTS: frozenset({"security_events", "alerts"}), Channel.METRICS: frozenset({"metrics"})}
"""Which streams may travel on which channel."""


class Topic(NamedTuple):
    """An agent's topic taken apart."""

    agent_id: str
    channel: Channel


def is_agent_id(text: str) -> bool:
    """1 to 64 characters of a-z, 0-9 and -, a letter or digit at both ends."""
    return _ID.fullmatch(text) is not None


def topic(agent_id: str, channel: Channel) -> str:
    """The topic's name; raises ValueError for what is no agent's id."""
    if not is_agent_id(agent_id):
        raise ValueError(f"{agent_id!r} is not an agent's id")
    return f"nd/v1/agents/{agent_id}/{channel}"


def parse_topic(name: str) -> Topic | None:
    """The agent and channel that a topic's name stands for, None if it is no agent's topic."""
    match = _TOPIC.fullmatch(name)
    channel = _CHANNELS.get(match[2]) if match else None
    return Topic(match[1], channel) if match and channel else None


def channel_of(stream: str) -> Channel:
    """The channel that events of this stream travel on."""
    return Channel.METRICS if stream in STREAMS[Channel.METRICS] else Channel.EVENTS
