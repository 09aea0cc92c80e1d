"""librdkafka's mock cluster: brokers on loopback inside this process, for tests of speed and of the usual path.

Promises: three brokers with real sockets, topics of four partitions (the mock's own number), idempotence checked by
sequence numbers. Refuses: what only the real thing has (TLS, SASL, authorisation, min.insync.replicas, configs).
"""

from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from confluent_kafka import Producer


class MockCluster:
    """Ends with the context."""

    def __init__(self, *topics: str, brokers: int = 3) -> None:
        self._handle = Producer({"test.mock.num.brokers": brokers, "log_level": 0})
        found = self._handle.list_topics(timeout=10).brokers.values()
        self.servers = [f"{broker.host}:{broker.port}" for broker in found]
        for topic in topics:
            self._handle.list_topics(topic, timeout=10)  # asking for it makes it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._handle


async def read_topic(servers: list[str], topic: str, **settings: Any) -> list[ConsumerRecord]:
    """Every record that stands in a topic now, partition after partition."""
    records: list[ConsumerRecord] = []
    async with AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", **settings) as consumer:
        await consumer._client.force_metadata_update()
        partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                found = await consumer.getmany(partition, timeout_ms=1000)
                records += found.get(partition, [])
    return records
