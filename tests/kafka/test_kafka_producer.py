"""aiokafka's clients where we look inside them: numbers that begin again, connections that nobody waits for."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition
from kafka_output import deliver, numbered, numbers, opened
from kafka_reader import Reader
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


@asynccontextmanager
async def falling_silent(broker: str) -> AsyncIterator[tuple[str, asyncio.Semaphore]]:
    """An address where a broker tells which versions it speaks, and nothing more; released once it was asked more."""
    host, _, port = broker.rpartition(":")
    asked = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        far_writer.write(await _frame(reader))
        writer.write(await _frame(far_reader))
        far_writer.close()
        await reader.read(1)
        asked.release()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


async def _frame(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length))


@pytest.mark.parametrize("transactional", [False, True])
async def test_a_send_given_up_while_it_connects_leaves_nothing_open(
    kafka: Cluster, topic: str, transactional: bool
) -> None:
    """A forgotten connection is closed whenever the garbage collector comes by, with a warning that fails this test."""
    async with falling_silent(kafka.bootstrap()) as (address, asked):
        async with opened(address, topic, transactional=transactional) as output:
            sending = asyncio.ensure_future(output.send(numbered(range(10))))
            await asked.acquire()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        gc.collect()


async def test_an_input_stopped_while_it_connects_leaves_nothing_open(kafka: Cluster, topic: str) -> None:
    """As above."""
    async with falling_silent(kafka.bootstrap()) as (address, asked):
        async with Reader(address, topic):
            await asked.acquire()
        gc.collect()
