"""What stands on a Kafka topic, for tests that look."""

from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition


async def read_topic(bootstrap: str, topic: str, **settings: Any) -> list[ConsumerRecord]:
    """Every record that stands in a topic now, partition after partition."""
    records: list[ConsumerRecord] = []
    servers = bootstrap.split(",")
    async with AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", **settings) as consumer:
        await consumer._client.force_metadata_update()
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                found = await consumer.getmany(partition, timeout_ms=1000)
                records += found.get(partition, [])
    return records
