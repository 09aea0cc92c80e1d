"""A client's first words with a cluster, so that none of its connections is ever forgotten.

Promises: a connection that was opened stands where `close()` of the client finds it, or has been closed when a call
ends, whether it ended well, by an error or by a cancel; and no topic is ever made by asking for it. aiokafka's own
`bootstrap` leaves the one that waits for an answer to the garbage collector when it is cancelled, and does not wait for
those that it closes.
Refuses: choosing servers, and keeping the metadata fresh, which are aiokafka's.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import aiokafka.client
from aiokafka import errors
from aiokafka.client import ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest

_CLOSE_SECONDS = 1.0
"""A TLS connection says goodbye and waits for an answer, which a frozen broker does not give."""

_OF_THE_CLIENT = {"bootstrap_servers", "metadata_max_age_ms"}
_FIRST = "bootstrap", ConnectionGroup.DEFAULT


def hold_connections(client: Any, arguments: Mapping[str, Any]) -> None:
    """Let an AIOKafkaClient that was made with these arguments (Connection.arguments) bootstrap as promised."""
    ours = {name: value for name, value in arguments.items() if name not in _OF_THE_CLIENT}
    client.bootstrap = partial(_bootstrap, client, ours)


async def connect(host: str, port: int, arguments: Mapping[str, Any]) -> Any:
    """A connection over which both sides know each other; raises OSError, TimeoutError or KafkaError."""
    connection = AIOKafkaConnection(host, port, **arguments)
    try:
        await connection.connect()
    except BaseException:
        await let_go(connection)
        raise
    return connection


async def let_go(connection: Any) -> None:
    """Close it and wait until it is gone, for a second at most."""
    gone = connection.close()
    if connection._protocol is not None:  # noqa: SLF001 - else it was never open, and nobody will say that it is gone
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.shield(gone)


async def _bootstrap(client: Any, arguments: Mapping[str, Any]) -> None:
    """In place of AIOKafkaClient.bootstrap; nothing the second time."""
    if client._sync_task is not None:  # noqa: SLF001 - aiokafka has no public way
        return
    connections = client._conns  # noqa: SLF001
    for host, port, _ in client.hosts:
        try:
            connections[_FIRST] = await connect(host, port, arguments)
            client.cluster.update_metadata(await connections[_FIRST].send(MetadataRequest([])))
        except (OSError, TimeoutError, errors.KafkaError):
            if _FIRST in connections:
                await let_go(connections.pop(_FIRST))
            continue
        break
    else:
        raise errors.KafkaConnectionError(f"Unable to bootstrap from {client.hosts}")
    if client.cluster.brokers():  # else it is still needed: a cluster without topics may name none yet
        await let_go(connections.pop(_FIRST))
    client._sync_task = asyncio.create_task(client._md_synchronizer())  # noqa: SLF001


async def _create_conn(host: str, port: int, **arguments: Any) -> Any:
    return await connect(host, port, arguments)


# What aiokafka's clients do later by themselves: connections that fail are waited for, and topics that they ask for by
# name are not made. Most clusters would, with one partition and one copy.
aiokafka.client.create_conn = _create_conn
aiokafka.client.MetadataRequest = partial(MetadataRequest, allow_auto_topic_creation=False)
