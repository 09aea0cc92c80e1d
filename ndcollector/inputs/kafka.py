"""Records of Kafka topics as events, read in a consumer group: collectors chain over the bus, Kafka Connect feeds it.

Promises:
  * an offset is committed only after the spool has its record on disk: at least once. A crash of ours repeats what
    came in the last fraction of a second; a stop, a reload and a rebalance repeat nothing, unless spool or brokers do
    not answer (nd_input_repeated_events_total counts those);
  * while the spool cannot take more, nothing is fetched: the brokers keep the records, memory stays bounded by
    `fetch_bytes` for each partition;
  * records that retention deleted before we read them are counted as dropped (reason `expired`) and said once;
  * troubles of brokers and group never end the input: it says what is wrong, once, and goes on once that is cured.

`format: ecs` takes values that are ECS events, as another collector's kafka output writes them: they pass unchanged and
keep their event.id. `format: syslog` takes values that are one raw syslog message each. Keys, headers and timestamps of
records are not read. Who may write to the topic is the brokers' to say (ACLs): a value is believed like a device's.
A compressed batch is held whole, up to `unpacked_bytes`. One that holds more stops its partition and stays there.
Refuses: committing before the spool has it, transactions that were aborted, schema registries.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Annotated, Literal

from aiokafka import TopicPartition, errors
from pydantic import Field, StringConstraints

from ndagent.core.backoff import full_jitter
from ndagent.core.interfaces import Accept
from ndagent.core.settings import ByteSize, Duration
from ndagent.wire.framing import MAX_FRAME_BYTES
from ndagent.wire.record import Batch, Flags, Origin
from ndcollector.inputs import InputContext
from ndcollector.inputs.kafka_group import GroupSession, GroupSettings, Observer, Records
from ndcollector.inputs.kafka_values import ValueSettings, batches_of
from ndcollector.kafka_client import Connection, ConnectionConfig, explain

_RETRY_SECONDS = (0.5, 30.0)  # first bound of the wait, and the last
_PAUSED_SECONDS = 1.0  # an accept that takes longer is the spool's back-pressure, not its pace

TopicName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,249}$")]


class Config(ConnectionConfig):
    """Records of Kafka topics."""

    type: Literal["kafka"] = Field(default="kafka", description="Records of Kafka topics, read in a consumer group.")
    topics: tuple[TopicName, ...] = Field(min_length=1, description="Topics to read.", examples=[["security_events"]])
    group: str = Field(
        default="ndcollector",
        min_length=1,
        max_length=249,
        description="Consumer group: collectors that name the same one share the partitions.",
    )
    format: Literal["ecs", "syslog"] = Field(
        default="ecs", description="What a value is: an ECS event (as kafka outputs write them) or a syslog message."
    )
    stream: Literal["security_events", "alerts", "metrics"] = Field(
        default="security_events", description="The stream that the events belong to."
    )
    start: Literal["earliest", "latest"] = Field(
        default="earliest", description="Where to begin in a partition of which the group has read nothing yet."
    )
    max_message_bytes: ByteSize = Field(
        default=512 * 1024, ge=480, le=MAX_FRAME_BYTES, description="A longer value is cut and tagged _truncated."
    )
    fetch_bytes: ByteSize = Field(
        default=2**20, ge=1024, description="Fetched ahead of each partition, as compressed by the producer."
    )
    unpacked_bytes: ByteSize = Field(
        default=32 * 2**20,
        ge=2**20,
        description="Most that a compressed batch may hold; in front of one that holds more, its partition is read no "
        "further until a person has looked.",
    )
    session_timeout: Duration = Field(
        default=10.0,
        ge=1,
        le=300,
        description="A collector that the brokers do not hear for so long loses its partitions to the others.",
    )


def build(name: str, config: Config, context: InputContext) -> "KafkaInput":
    """The input, not connected yet."""
    return KafkaInput(name, config, context)


class KafkaInput:
    """See the module. `random` draws evenly from [0, 1) for the waits between tries."""

    def __init__(
        self, name: str, config: Config, context: InputContext, *, random: Callable[[], float] = random.random
    ) -> None:
        self._name = name
        self._config = config
        self._clock = context.clock
        self._random = random
        self._metrics = context.metrics
        self._log = logging.getLogger(name)
        self._values = ValueSettings(config.stream, config.format, config.max_message_bytes)
        server = config.bootstrap_servers[0]
        self._origins = {topic: Origin(name, f"{server}/{topic}", 0) for topic in config.topics}
        self._connection: Connection | None = None
        self._attempt = 0

    async def start(self) -> None:
        """Read the certificate files (OSError); brokers that are away are no reason not to start."""
        self._connection = Connection(self._config)
        self._connection.arguments()

    async def run(self, accept: Accept) -> None:
        """Read until cancelled; what the spool was being handed then is taken and committed first."""
        connection = self._connection or Connection(self._config)
        said = ""
        while True:
            try:
                await self._session(connection, accept)
                continue  # a topic that was missing is there
            except (errors.KafkaError, OSError) as error:
                reason = await self._reason(connection, error)
            if self._attempt == 0 or reason != said:
                self._log.warning("not reading: %s; trying again until it works", reason)
            said = reason
            initial, maximum = _RETRY_SECONDS
            wait = full_jitter(self._attempt, initial_seconds=initial, maximum_seconds=maximum, random=self._random)
            self._attempt += 1
            await asyncio.sleep(wait)

    async def _session(self, connection: Connection, accept: Accept) -> None:
        async def take(records: Records) -> None:
            await self._take(records, accept)
            self._attempt = 0

        config = self._config
        settings = GroupSettings(
            topics=config.topics,
            group=config.group,
            start=config.start,
            fetch_bytes=config.fetch_bytes,
            unpacked_bytes=config.unpacked_bytes,
            session_timeout=config.session_timeout,
            silence=2 * config.request_timeout,
        )
        repeated = self._metrics.repeated.labels(self._name).inc
        lag = self._metrics.lag.labels(self._name).set
        observer = Observer(take=take, repeated=repeated, expired=self._expired, lag=lag, refresh=connection.refresh)
        await GroupSession(connection.arguments(), settings, observer, name=self._name).run()

    async def _reason(self, connection: Connection, error: Exception) -> str:
        if isinstance(error, errors.KafkaConnectionError | TimeoutError):
            return await connection.why_unreachable()
        topics = f"topic {' or '.join(self._config.topics)}"
        if isinstance(error, errors.TopicAuthorizationFailedError):
            return f"the brokers do not let us read {topics}; grant Read on it"
        return explain(error, topics)

    async def _take(self, records: Records, accept: Accept) -> None:
        """Make them durable; returns when all are."""
        runs, empty, size = [], 0, 0
        for partition, found in records.items():
            values = [record.value for record in found if record.value is not None]
            empty += len(found) - len(values)
            size += sum(map(len, values))
            runs.append((self._origins[partition.topic], values))
        batches = batches_of(runs, received_at_ns=int(self._clock() * 1e9), settings=self._values)
        await self._accept_all(batches, accept)
        self._metrics.received_bytes.labels(self._name).inc(size)
        self._metrics.received.labels(self._name).inc(sum(batch.count for batch in batches) + empty)
        if empty:
            self._metrics.count_drop(input=self._name, reason="no_value", events=empty)
        cut = sum(one.count for batch in batches for one in batch.sections if one.flags & Flags.TRUNCATED)
        if cut:
            self._metrics.truncated.labels(self._name).inc(cut)

    async def _accept_all(self, batches: list[Batch], accept: Accept) -> None:
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

    def _expired(self, partition: TopicPartition, events: int) -> None:
        self._metrics.received.labels(self._name).inc(events)
        self._metrics.count_drop(input=self._name, reason="expired", events=events)
        self._log.error(
            "%d records of %s/%d were deleted before they were read; keep them longer (retention) or read faster",
            events,
            partition.topic,
            partition.partition,
        )
