"""What stands on a Kafka topic, for tests that look."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition


@asynccontextmanager
async def closing(consumer: AIOKafkaConsumer) -> AsyncIterator[None]:
    """Close its connections also where its start fails, which aiokafka's own `async with` does not."""
    try:
        yield
    finally:
        await consumer.stop()


async def read_topic(bootstrap: str, topic: str, **settings: Any) -> list[ConsumerRecord]:
    """Every record that stands in a topic now, partition after partition."""
    records: list[ConsumerRecord] = []
    servers = bootstrap.split(",")
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", **settings)
    async with closing(consumer):
        await consumer.start()
        await consumer._client.force_metadata_update()
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                found = await consumer.getmany(partition, timeout_ms=1000)
                records += found.get(partition, [])
    return records
