"""The `kafka` output: events as records on topics, one topic for each stream, in order for each host.

Promises:
  * when send() returns, all replicas in sync have the events (acks=all): with min.insync.replicas=2 the loss of a
    broker loses nothing. `ndcollector topics diff` says what of that a cluster does not give;
  * key = host, partition = murmur2(key) modulo partitions, as the Java client chooses: a host's events stay on one
    partition, in the order in which they were received, through any failure and with `in_flight` batches under way;
  * repeats inside a session are idempotent; a crash of ours, or a session that ends with answers outstanding, may write
    events twice, with the same event.id (nd_output_resent_events_total counts the latter). With `transactional: true`
    consumers with isolation.level=read_committed see every event once: see kafka_transactions.py;
  * a record's timestamp is when we received the event. The device's clock, which may be years off, is never used:
    old ones would expire at once, future ones be refused;
  * what a topic can never take is rejected by name; missing topics, refused credentials, dead and frozen brokers are
    Unavailable: a person acts, the data waits, memory stays bounded by `in_flight` x `batch_bytes`;
  * topics are never made by asking for them: `ndcollector topics apply` makes them as they should be.
Refuses: order per host across a change of the number of partitions (no Kafka client has it), and other keys.
"""

import asyncio
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from ndagent.core.settings import ByteSize, Duration, SettingError, Settings
from ndagent.wire.record import EventBatch
from ndcollector.kafka_client import Connection, ConnectionConfig
from ndcollector.outputs import OutputContext
from ndcollector.outputs.kafka_line import Line, LineSettings
from ndcollector.outputs.kafka_session import SessionSettings
from ndcollector.outputs.kafka_transactions import TransactionalLine
from ndcollector.routing.config import RoutedConfig

_DAY_SECONDS = 86400.0


class TopicConfig(Settings):
    """A stream's topic, and what `ndcollector topics apply` makes of it."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$", description="The topic's name.")
    partitions: int = Field(default=8, ge=1, description="A topic with more keeps them.")
    replication: int = Field(default=3, ge=1, description="Copies of each partition; at most as many as brokers.")
    retention: Duration = Field(default=7 * _DAY_SECONDS, gt=0, description="How long events are kept.")


MISSION_TOPICS = {
    "security_events": TopicConfig(name="security_events", partitions=32, retention=7 * _DAY_SECONDS),
    "alerts": TopicConfig(name="alerts", partitions=16, retention=30 * _DAY_SECONDS),
    "metrics": TopicConfig(name="metrics", partitions=8, replication=2, retention=1 * _DAY_SECONDS),
}
"""Streams that need no entry under `topics`."""


def _name_alone(value: object) -> object:
    """`security_events: logs` for `security_events: {name: logs}`; what is not written is as the stream's default."""
    if not isinstance(value, dict):
        return value
    return {stream: _completed(stream, topic) for stream, topic in value.items()}


def _completed(stream: str, topic: object) -> object:
    written = {"name": topic} if isinstance(topic, str) else topic
    default = MISSION_TOPICS.get(stream, TopicConfig(name=stream))
    return {**default.model_dump(), **written} if isinstance(written, dict) else written


class Config(ConnectionConfig, RoutedConfig):
    """Events as records on Kafka topics."""

    takes_formats: ClassVar[tuple[str, ...]] = ("ecs",)  # registered schemas and times of records are of ECS
    takes_syslog_header: ClassVar[bool] = False

    type: Literal["kafka"] = "kafka"
    topics: Annotated[dict[str, TopicConfig], BeforeValidator(_name_alone)] = Field(
        default={},
        description="Stream: its topic, by name or with what `ndcollector topics apply` makes of it. A stream that is "
        "not named goes to the topic of its own name.",
    )
    compression: Literal["none", "lz4", "zstd"] = Field(
        default="zstd",
        description="Of batches: zstd takes a microsecond of CPU an event and leaves a tenth of it, lz4 half of that "
        "and a fifth.",
    )
    transactional: bool = Field(
        default=False,
        description="Exactly once for consumers with isolation.level=read_committed: each batch is a transaction that "
        "holds the cursor too. Needs Write on transactional ids and Read on groups named <output>-*; in_flight is 1.",
    )
    headers: bool = Field(
        default=False, description="Put event.id into a header of each record too, at the price of parsing each event."
    )
    max_message_bytes: ByteSize = Field(
        default=2**20,
        ge=1024,
        description="Largest batch, and largest event; an event beyond it is a dead letter. At most max.message.bytes "
        "of the topic, whose default is this.",
    )
    batch_bytes: ByteSize = Field(
        default=2 * 2**20,
        ge=1024,
        le=16 * 2**20,
        description="Events decoded and sent together, at most about this many bytes: a request to each broker.",
    )
    timeout: Duration = Field(
        default=60.0, gt=0, description="A send that takes longer counts as unavailable; more than 2 request_timeout."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_transaction_at_a_time(cls, written: object) -> object:
        if not isinstance(written, dict) or written.get("transactional") is not True:
            return written
        if written.get("in_flight", 1) != 1:
            raise SettingError(("in_flight",), "must be 1 with transactional: leave it out")
        return {**written, "in_flight": 1}

    @model_validator(mode="after")
    def _outlasts_its_requests(self) -> "Config":
        if self.timeout <= 2 * self.request_timeout:
            raise SettingError(("timeout",), "must be more than twice request_timeout, which a failover may take")
        return self

    def topic(self, stream: str) -> TopicConfig:
        """Where a stream goes."""
        default = MISSION_TOPICS.get(stream)
        return self.topics.get(stream) or default or TopicConfig(name=stream)


def build(name: str, config: Config, context: OutputContext) -> "KafkaOutput":
    """The output; connects at its first send."""
    return KafkaOutput(name, config, context)


class KafkaOutput:
    """See the module. A line for each stream, so that a missing topic holds up its own stream only."""

    def __init__(self, name: str, config: Config, context: OutputContext) -> None:
        self._name = name
        self._config = config
        self._clock = context.clock
        self._resent = context.metrics.resent.labels(name)
        self._lines: dict[str, Line | TransactionalLine] = {}

    async def send(self, events: EventBatch) -> None:
        """Return once all replicas in sync have the events; raises Unavailable or Rejected."""
        line = self._lines.get(events.stream)
        if line is None:
            line = self._lines[events.stream] = self._line(events.stream)
        await line.send(events)

    async def sync(self) -> None:
        """What send() returned for is on the brokers; whether a transaction was carried out, they are asked."""
        lines = [line for line in self._lines.values() if isinstance(line, TransactionalLine)]
        await asyncio.gather(*(line.confirm() for line in lines))

    async def aclose(self) -> None:
        """Close the connections; what has no acknowledgement stays in the spool."""
        for line in self._lines.values():
            await line.aclose()

    def _line(self, stream: str) -> Line | TransactionalLine:
        config = self._config
        settings = LineSettings(
            SessionSettings(
                topic=config.topic(stream).name,
                compression=None if config.compression == "none" else config.compression,
                batch_bytes=config.max_message_bytes,
                request_timeout=config.request_timeout,
                transaction_timeout=config.timeout,
            ),
            max_message_bytes=config.max_message_bytes,
            headers=config.headers,
            clock=self._clock,
        )
        if config.transactional:
            return TransactionalLine(Connection(config), settings, name=self._name)
        return Line(Connection(config), settings, name=self._name, on_resend=self._resent.inc)
