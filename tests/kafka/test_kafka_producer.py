"""aiokafka's clients where we look inside them: numbers that begin again, connections that nobody waits for."""

import pytest
from aiokafka import TopicPartition
from kafka_output import deliver, numbered, numbers, opened
from kafka_topic import read_topic
from services.kafka import Cluster

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]
BATCH = 200


async def test_behind_the_last_sequence_number_comes_zero(kafka: Cluster, topic: str) -> None:
    """As in Java: 2^31 records of a partition are hours of a busy collector, and no reason to refuse an event."""
    kafka.create_topic(topic)
    async with opened(kafka.bootstrap(), topic) as output:
        await output.send(numbered(range(1)))
        kafka.topics("--delete", "--topic", topic)  # where a broker has heard nothing of a producer, any number will do
        kafka.create_topic(topic)
        session = output._lines["security_events"]._session
        session._producer._txn_manager._sequence_numbers[TopicPartition(topic, 0)] = 2**31 - BATCH // 2
        await deliver(output, numbered(range(BATCH)))
        for one in range(BATCH, BATCH + 3):
            await output.send(numbered([one]))
        assert output._lines["security_events"]._session is session
    assert numbers(await read_topic(kafka.bootstrap(), topic)) == list(range(BATCH + 3))
