"""aiokafka's producer, and the things that it has no public way for. Everything that looks inside it stands here.

Promises:
  * batches go from where they were encoded to the socket without being copied: aiokafka joins a request seven times
    over, which is a quarter of what the loop does for an event;
  * behind 2^31 records of a partition, hours of a busy one, their numbers begin again at 0, as every broker expects;
  * `end(sever=True)` cuts what has no answer off at once: what we gave up on must not reach a broker later.
Refuses: everything else; which broker, retries, sequence numbers and transactions are aiokafka's.
"""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition, errors
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.types import Int16, Int32, String

_CLOSE_SECONDS = 3.0
_SEQUENCE_NUMBERS = 2**31  # of a producer's records on a partition, then again from 0 (DefaultRecordBatch.java)
_TEXT = String("utf-8")


class Producer(AIOKafkaProducer):  # type: ignore[misc]  # aiokafka has no types
    """As its parent; made and used on the loop."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._ask = self.client.send
        self.client.send = self._send
        self._txn_manager.increment_sequence_number = self._count

    def _count(self, place: TopicPartition, records: int) -> None:
        """In place of TransactionManager.increment_sequence_number, which goes on below zero: no broker takes that."""
        numbers = self._txn_manager._sequence_numbers  # noqa: SLF001 - see the module
        numbers[place] = (numbers[place] + records) % _SEQUENCE_NUMBERS

    async def end(self, *, sever: bool) -> None:
        """Let go of everything, within seconds. `sever` gives up what has no answer."""
        sender = self._sender.sender_task
        if sever and sender is not None:
            sender.cancel()
            self._abort_connections()
            await asyncio.wait({sender}, timeout=_CLOSE_SECONDS)
            self._closed = True  # the parent's stop() would wait for the acknowledgements
        with suppress(TimeoutError, errors.KafkaError, OSError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await (self.client.close() if sever else self.stop())
        self._abort_connections()  # a frozen broker would hold a closing connection, and its buffers, for minutes

    def _abort_connections(self) -> None:
        for connection in self.client._conns.values():  # noqa: SLF001 - see the module
            if connection._writer is not None:  # noqa: SLF001
                connection._writer.transport.abort()  # noqa: SLF001

    async def _send(self, node_id: int, request: Any, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
        """In place of AIOKafkaClient.send, and with the same errors."""
        if not isinstance(request, ProduceRequest):
            return await self._ask(node_id, request, group=group)
        if not await self.client.ready(node_id, group=group):
            raise errors.NodeNotReadyError(f"node {node_id} is not ready")
        connection = self.client._conns[node_id, group]  # noqa: SLF001
        try:
            return await _produce(connection, request)
        except TimeoutError as error:
            connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise errors.RequestTimedOutError from error


async def _produce(connection: Any, request: ProduceRequest) -> Any:
    """In place of AIOKafkaConnection.send."""
    prepared = request.prepare(connection._versions)  # noqa: SLF001
    number = connection._next_correlation_id()  # noqa: SLF001
    header = prepared.build_request_header(number, connection._client_id)  # noqa: SLF001
    pieces = [header.encode(), *pieces_of(prepared)]
    writer = connection._writer  # noqa: SLF001
    if writer is None:
        raise errors.KafkaConnectionError("the connection has just been closed")
    try:
        writer.writelines([Int32.encode(sum(map(len, pieces))), *pieces])
    except OSError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise errors.KafkaConnectionError(str(error)) from error
    answer = asyncio.get_running_loop().create_future()
    connection._requests.append((number, prepared, answer))  # noqa: SLF001
    async with asyncio.timeout(connection._request_timeout):  # noqa: SLF001
        return await answer


def pieces_of(prepared: Any) -> Iterator[bytes | bytearray]:
    """What `prepared.encode()` gives, uncopied; of a ProduceRequest v3 to v7, the first that takes our batches."""
    yield _TEXT.encode(prepared.transactional_id) + Int16.encode(prepared.required_acks)
    yield Int32.encode(prepared.timeout) + Int32.encode(len(prepared.topics))
    for topic, partitions in prepared.topics:
        yield _TEXT.encode(topic) + Int32.encode(len(partitions))
        for partition, batch in partitions:
            yield Int32.encode(partition) + Int32.encode(len(batch))
            yield batch
