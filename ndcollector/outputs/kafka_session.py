"""One idempotent producer at work on one topic, from its connection to its end.

Promises:
  * a partition has one batch on its way at a time and gets the next one after the acknowledgement: none overtakes;
  * aiokafka repeats a batch under the same producer id and sequence number for as long as the session lives: timeouts,
    dead and moved leaders cost time, no duplicate;
  * the first batch that a broker refuses for good stops all partitions before their next batch: see `failure`;
  * closing severs the connections of what has no answer yet: what we gave up on must not reach a broker later;
  * no topic is ever made by asking for it: metadata is asked for all topics that we may see, which creates none.
Refuses: order between callers, retries with another producer, splitting (kafka_line.py).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from aiokafka import TopicPartition, errors
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest

from ndagent.core.interfaces import Unavailable
from ndcollector.kafka_bootstrap import hold_connections
from ndcollector.kafka_client import Connection, InvalidRecordError, explain
from ndcollector.outputs.kafka_producer import Producer
from ndcollector.outputs.kafka_records import BatchForm, PartitionBatch

_TOPIC_RESOURCE = 2  # ConfigResourceType.TOPIC
_OPENING_REQUESTS = 3  # a connection, a producer id, the metadata: each may take a request's time

NOT_WRITTEN = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTimestampError,
    errors.TopicAuthorizationFailedError,
    errors.OutOfOrderSequenceNumber,
    errors.InvalidProducerEpoch,
    errors.ProducerFenced,
    InvalidRecordError,
)
"""What a broker says of a batch that it did not take."""


class Owner(Protocol):
    """Whose events a batch holds; hears of its acknowledgement."""

    def acknowledged(self, batch: PartitionBatch) -> None:
        """The brokers have the batch."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The first batch that was refused for good, and why."""

    batch: PartitionBatch
    owner: Owner
    error: Exception


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a session is opened with; the times are seconds."""

    topic: str
    compression: str | None
    batch_bytes: int
    request_timeout: float
    transactional_id: str | None = None
    transaction_timeout: float = 60.0


def arguments_for(connection: Connection) -> dict[str, Any]:
    """Those of a client; raises Unavailable where certificate files cannot be read, as while they are renewed."""
    try:
        return connection.arguments()
    except OSError as error:
        raise Unavailable(f"tls: {error.filename or 'certificate files'}: {explain(error)}") from error


class Session:
    """Made by `open`; ended by `close`. `on_move` is called at every acknowledgement and at the failure."""

    def __init__(self, producer: Producer, settings: SessionSettings, *, on_move: Callable[[], None]) -> None:
        self.failure: Failure | None = None
        self.largest_record: int | None = None  # the topic's own limit, where we may know it
        self.form = BatchForm(settings.batch_bytes, settings.compression, settings.transactional_id is not None)
        self._producer = producer
        self._settings = settings
        self._on_move = on_move
        self._queues: dict[int, deque[tuple[PartitionBatch, Owner]]] = {}
        self._pushing: dict[int, asyncio.Task[None]] = {}

    @classmethod
    async def open(cls, connection: Connection, settings: SessionSettings, *, on_move: Callable[[], None]) -> "Session":
        """Connect, get a producer id and see the topic; raises Unavailable with the reason and the remedy."""
        arguments = arguments_for(connection)
        producer = Producer(
            acks="all",
            enable_idempotence=True,
            transactional_id=settings.transactional_id,
            transaction_timeout_ms=int(settings.transaction_timeout * 1000),
            **arguments,
        )
        hold_connections(producer.client, arguments)
        session = cls(producer, settings, on_move=on_move)
        try:
            async with asyncio.timeout(_OPENING_REQUESTS * settings.request_timeout):
                await producer.start()
                await producer.client.force_metadata_update()
                await session._see_topic()
        except (OSError, TimeoutError, errors.KafkaError) as error:
            await session.close()
            is_unreachable = isinstance(error, OSError | TimeoutError | errors.KafkaConnectionError)
            reason = await connection.why_unreachable() if is_unreachable else explain(error, f"topic {settings.topic}")
            raise Unavailable(reason) from error
        except BaseException:
            await session.close()
            raise
        return session

    @property
    def partitions(self) -> int:
        """How many the topic has by the newest metadata; 0 if it is gone."""
        return len(self._producer.client.cluster.partitions_for_topic(self._settings.topic) or ())

    @property
    def is_waiting(self) -> bool:
        """Whether a broker owes an acknowledgement."""
        return bool(self._pushing)

    @property
    def in_doubt(self) -> int:
        """Records that the brokers may have or not: those on their way, and a batch that failed without their word."""
        failed = self.failure.batch.records if self.failure and not isinstance(self.failure.error, NOT_WRITTEN) else 0
        return failed + sum(self._queues[partition][0][0].records for partition in self._pushing)

    def push(self, batch: PartitionBatch, owner: Owner) -> None:
        """Send the batch behind the others of its partition."""
        self._queues.setdefault(batch.partition, deque()).append((batch, owner))
        if batch.partition not in self._pushing and self.failure is None:
            self._pushing[batch.partition] = asyncio.create_task(self._push(batch.partition))

    async def begin(self) -> None:
        """Begin a transaction; raises KafkaError."""
        await self._producer.begin_transaction()

    async def commit(self, group: str, offset: int, metadata: str) -> None:
        """End it, with a consumer group's offset in it; raises KafkaError, also where nobody knows how it ended."""
        place = TopicPartition(self._settings.topic, 0)
        await self._producer.send_offsets_to_transaction({place: (offset, metadata)}, group)
        await self._producer.commit_transaction()

    async def close_leftovers(self) -> None:
        """Abort, on every partition, what a transaction of an earlier session left open there; raises KafkaError."""
        await self._producer.begin_transaction()
        for number in range(self.partitions):  # without any the abort would be for nothing, and not be sent
            place = TopicPartition(self._settings.topic, number)
            self._producer._txn_manager.maybe_add_partition_to_txn(place)  # noqa: SLF001 - adds and sends nothing
        await self._producer.abort_transaction()

    async def refresh_metadata(self) -> bool:
        """Whether one of the brokers we know still tells who leads."""
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * self._settings.request_timeout):
                return bool(await self._producer.client.force_metadata_update())
        return False

    def who_is_silent(self) -> str:
        """What is waited for, in words."""
        cluster, topic = self._producer.client.cluster, self._settings.topic
        if not self.partitions:
            return explain(errors.UnknownTopicOrPartitionError(), f"topic {topic}")
        waiting = sorted(self._pushing)
        brokers = {cluster.broker_metadata(cluster.leader_for_partition(TopicPartition(topic, p))) for p in waiting}
        names = sorted(f"{broker.host}:{broker.port}" for broker in brokers if broker is not None)
        some = ", ".join(map(str, waiting[:5])) + (" …" if len(waiting) > 5 else "")
        return f"no acknowledgement for topic {topic}, partitions {some}; their leader: {', '.join(names) or 'none'}"

    async def wind_down(self) -> None:
        """After a failure: let what is on its way end, for at most a request's time."""
        if self._pushing:
            await asyncio.wait(self._pushing.values(), timeout=self._settings.request_timeout)

    async def close(self) -> None:
        """Let go of everything, within seconds; safe twice."""
        tasks = list(self._pushing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._producer.end(sever=bool(tasks))

    async def _push(self, partition: int) -> None:
        queue = self._queues[partition]
        while queue and self.failure is None:
            batch, owner = queue[0]
            try:
                await self._send(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, nothing may follow on this partition
                self.failure = self.failure or Failure(batch, owner, error)
                break
            queue.popleft()
            owner.acknowledged(batch)
            if queue:
                self._on_move()
        del self._pushing[partition]  # a cancelled one stays: its batch is in doubt
        self._on_move()

    async def _send(self, batch: PartitionBatch) -> None:
        if batch.partition >= self.partitions:
            raise errors.UnknownTopicOrPartitionError  # else aiokafka would ask for it by name, which may create it
        topic = self._settings.topic
        await (await self._producer.send_batch(batch, topic, partition=batch.partition))

    async def _see_topic(self) -> None:
        client, topic = self._producer.client, self._settings.topic
        node = client.get_random_node()
        if not self.partitions:
            answer = await client.send(node, MetadataRequest([topic], allow_auto_topic_creation=False))
            raise errors.for_code(answer.topics[0][0] or errors.UnknownTopicOrPartitionError.errno)
        with suppress(errors.KafkaError):  # a broker that cannot say: a refused batch tells as well
            request = DescribeConfigsRequest([(_TOPIC_RESOURCE, topic, ["max.message.bytes"])])
            answer = await client.send(node, request)
            error_code, entries = answer.resources[0][0], answer.resources[0][4]
            if not error_code and entries:  # else we are not allowed to know
                self.largest_record = int(entries[0][1])
