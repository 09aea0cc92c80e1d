"""The kafka input on another implementation of the protocol."""

from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from kafka_reader import Reader, number, numbered
from services import fetch
from services.tansu import Tansu

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]


async def test_reads_and_commits_on_tansu(tmp_path: Path, topic: str) -> None:
    """Groups, offsets and fetches as the protocol has them: two lives, each value once."""
    try:
        tansu = Tansu(tmp_path / "tansu")
    except fetch.ServiceMissingError as error:
        (pytest.fail if fetch.required() else pytest.skip)(str(error))
    with tansu.process:
        admin = AIOKafkaAdminClient(bootstrap_servers=tansu.address)
        await admin.start()
        await admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1)])
        await admin.close()
        for life in range(2):
            async with AIOKafkaProducer(bootstrap_servers=tansu.address) as producer:
                for value in numbered(300, first=life * 300):
                    await producer.send(topic, value, key=value.split(b" ")[2])
            async with Reader(tansu.address, topic) as reader:
                await reader.until_values(300)
            assert sorted(map(number, reader.values)) == list(range(life * 300, life * 300 + 300))
