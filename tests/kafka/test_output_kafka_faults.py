"""The kafka output while brokers die, freeze, move and come back: all arrives, in order, no more than said."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from kafka_output import deliver, numbered, numbers, opened, order_faults, resent
from kafka_topic import read_topic
from services import fetch
from services.kafka import Cluster
from services.need import need, need_namespace
from services.process import free_port

from ndagent.core.interfaces import Unavailable

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]
BATCH = 200


async def _deliver_while(output: object, upset: Callable[[], Awaitable[None]], *, batches: int) -> list[str]:
    """Four sends at a time, as a feed does, while something happens after the first few; the reasons given."""
    reasons: list[str] = []
    window = asyncio.Semaphore(4)
    delivered = 0

    async def one(at: int) -> None:
        nonlocal delivered
        async with window:
            reasons.extend(await deliver(output, numbered(range(at, at + BATCH)), seconds=90))  # type: ignore[arg-type]
            delivered += 1

    async with asyncio.TaskGroup() as group:
        for number in range(batches):
            group.create_task(one(number * BATCH))
        while delivered < 5:
            await asyncio.sleep(0.01)
        await upset()
    return reasons


async def _in_thread(*steps: Callable[[], object]) -> None:
    for step in steps:
        await asyncio.to_thread(step)


async def test_a_broker_killed_and_started_again_costs_no_event_and_no_duplicate(
    kafka_alone: Cluster, topic: str
) -> None:
    """The same producer goes on when the broker is back: its sequence numbers tell what had arrived."""
    kafka_alone.create_topic(topic, partitions=4)
    [node] = kafka_alone.nodes
    async with opened(kafka_alone.bootstrap(), topic) as output:
        await _deliver_while(output, lambda: _in_thread(node.kill, node.start), batches=150)
        assert resent(output) == 0
    records = await read_topic(kafka_alone.bootstrap(), topic)
    assert sorted(numbers(records)) == list(range(150 * BATCH))
    assert order_faults(records) == []


async def test_a_frozen_broker_holds_a_bounded_line_and_then_gets_all_of_it_once(
    kafka_alone: Cluster, topic: str
) -> None:
    """Callers hear why nothing moves; their events wait in the line and are not piled up by trying again."""
    kafka_alone.create_topic(topic, partitions=4)
    [node] = kafka_alone.nodes
    async with opened(kafka_alone.bootstrap(), topic, request_timeout="1s") as output:
        await output.send(numbered(range(BATCH)))
        line = output._lines["security_events"]
        node.freeze()
        sending = [
            asyncio.ensure_future(deliver(output, numbered(range(at, at + BATCH))))
            for at in range(BATCH, 5 * BATCH, BATCH)
        ]
        for _ in range(100):
            await asyncio.sleep(0.1)
            assert len(line._entries) <= 4
        node.thaw()
        reasons = [reason for result in await asyncio.gather(*sending) for reason in result]
    assert reasons
    assert all(node.address() in reason for reason in reasons)
    records = await read_topic(kafka_alone.bootstrap(), topic)
    assert sorted(numbers(records)) == list(range(5 * BATCH))
    assert order_faults(records) == []


async def test_a_replay_while_brokers_are_silent_leaves_the_line_as_it_is(kafka_alone: Cluster, topic: str) -> None:
    """Dead letters sent again come from further back; what waits in the line must neither double nor change places."""
    kafka_alone.create_topic(topic)
    [node] = kafka_alone.nodes
    first, second = numbered(range(BATCH, 2 * BATCH)), numbered(range(2 * BATCH, 3 * BATCH))
    async with opened(kafka_alone.bootstrap(), topic, request_timeout="1s") as output:
        await output.send(numbered(range(BATCH)))
        node.freeze()
        told = await asyncio.gather(output.send(first), output.send(second), return_exceptions=True)
        assert [type(error) for error in told] == [Unavailable, Unavailable]  # both callers wait before they try again
        replaying = asyncio.ensure_future(deliver(output, replace(numbered(range(5)), replay=True)))
        await asyncio.sleep(0)
        sending = [asyncio.ensure_future(deliver(output, events)) for events in (second, first)]
        await asyncio.sleep(0)
        node.thaw()
        await asyncio.gather(replaying, *sending)
        assert resent(output) == 0
    assert numbers(await read_topic(kafka_alone.bootstrap(), topic)) == [*range(3 * BATCH), *range(5)]


async def test_a_leader_that_is_killed_or_frozen_is_replaced(three_nodes: Cluster, topic: str) -> None:
    """Leaders move to other nodes; a host's events stay in order through it."""
    three_nodes.create_topic(topic, partitions=6, replication=3, min_insync_replicas="2")
    first, second, _ = three_nodes.nodes

    async def upset() -> None:
        await _in_thread(first.kill)
        await asyncio.sleep(4)
        await _in_thread(first.start, second.freeze)
        await asyncio.sleep(6)
        second.thaw()

    async with opened(three_nodes.bootstrap(), topic) as output:
        await _deliver_while(output, upset, batches=300)
        in_doubt = resent(output)
    records = await read_topic(three_nodes.bootstrap(), topic)
    found = numbers(records)
    assert sorted(set(found)) == list(range(300 * BATCH))
    assert len(found) - len(set(found)) <= in_doubt
    assert order_faults(records) == []


async def test_too_few_replicas_in_sync_are_waited_for(three_nodes: Cluster, topic: str) -> None:
    """acks=all with min.insync.replicas=2: one node alone takes nothing."""
    three_nodes.create_topic(topic, partitions=2, replication=2, min_insync_replicas="2")
    async with opened(three_nodes.bootstrap(), topic, request_timeout="1s") as output:
        await output.send(numbered(range(BATCH)))
        three_nodes.nodes[2].kill()
        sending = asyncio.ensure_future(deliver(output, numbered(range(BATCH, 2 * BATCH))))
        await asyncio.to_thread(three_nodes.nodes[2].start)
        await sending
    records = await read_topic(three_nodes.bootstrap(), topic)
    assert sorted(set(numbers(records))) == list(range(2 * BATCH))
    assert order_faults(records) == []


@asynccontextmanager
async def steady_address(target: Callable[[], str]) -> AsyncIterator[str]:
    """A TCP address that leads to whatever `target` is now, as a DNS name does."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = target().rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))

    async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
        except OSError:
            pass
        finally:
            sink.close()

    server = await asyncio.start_server(carry, "127.0.0.1", free_port())
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_cluster_replaced_under_another_address_is_found_again(kafka_alone: Cluster, topic: str) -> None:
    """The brokers we know are gone for good; the bootstrap address leads to new ones."""
    kafka_alone.create_topic(topic, partitions=2)
    [node] = kafka_alone.nodes
    async with steady_address(node.address) as bootstrap, opened(bootstrap, topic, request_timeout="1s") as output:
        await output.send(numbered(range(BATCH)))
        await asyncio.to_thread(node.move)
        sends = (deliver(output, numbered(range(at, at + BATCH))) for at in range(BATCH, 5 * BATCH, BATCH))
        await asyncio.gather(*sends)
        in_doubt = resent(output)
    records = await read_topic(kafka_alone.bootstrap(), topic)
    found = numbers(records)
    assert sorted(set(found)) == list(range(5 * BATCH))
    assert len(found) - len(set(found)) <= in_doubt
    assert order_faults(records) == []


async def test_nobody_listens_and_the_reason_names_every_server() -> None:
    """What an operator reads when the address is wrong."""
    servers = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    async with opened(servers, "topic") as output:
        with pytest.raises(Unavailable) as refusal:
            await output.send(numbered(range(3)))
    assert all(server in refusal.value.reason for server in servers.split(","))


async def test_closing_takes_seconds_however_dead_the_brokers_are(kafka_alone: Cluster, topic: str) -> None:
    """A stop must not wait for a frozen broker; and what it gives up must not arrive after it."""
    kafka_alone.create_topic(topic)
    [node] = kafka_alone.nodes
    async with opened(kafka_alone.bootstrap(), topic) as output:
        await output.send(numbered(range(BATCH)))
        node.freeze()
        sending = asyncio.ensure_future(output.send(numbered(range(BATCH, 2 * BATCH))))
        await asyncio.sleep(0.5)
        async with asyncio.timeout(8):
            await output.aclose()
        with pytest.raises(Unavailable):
            await sending
        node.thaw()


async def test_a_producer_that_the_broker_no_longer_accepts_is_replaced(kafka_alone: Cluster, topic: str) -> None:
    """Its state may expire or be fenced: sequence numbers that do not follow are refused for good, so begin anew."""
    kafka_alone.create_topic(topic, partitions=2)
    async with opened(kafka_alone.bootstrap(), topic) as output:
        await output.send(numbered(range(BATCH)))
        session = output._lines["security_events"]._session
        numbers_of = session._producer._txn_manager._sequence_numbers
        for partition in list(numbers_of):
            numbers_of[partition] += 1000
        reasons = await deliver(output, numbered(range(BATCH, 2 * BATCH)))
        assert len(reasons) == 1
        assert output._lines["security_events"]._session is not session
    records = await read_topic(kafka_alone.bootstrap(), topic)
    assert sorted(numbers(records)) == list(range(2 * BATCH))
    assert order_faults(records) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system for the broker needs root")
async def test_a_broker_whose_disk_is_full_gets_everything_once_it_has_room(tmp_path: Path, topic: str) -> None:
    """A full disk halts the broker; when it is back the same producer goes on."""
    need(fetch.KAFKA)
    need_namespace()
    with Cluster(tmp_path / "kafka", disk_bytes=96 * 2**20) as cluster:
        cluster.create_topic(topic)
        [node] = cluster.nodes
        async with opened(cluster.bootstrap(), topic, compression="none") as output:
            await output.send(numbered(range(BATCH)))
            node.fill_disk()
            events = [numbered(range(at, at + 40), text=" x" * 12_000) for at in range(BATCH, BATCH + 1600, 40)]
            sending = asyncio.gather(*(deliver(output, one, seconds=120) for one in events))
            await asyncio.to_thread(node.process.wait_until, lambda: node.process.returncode is not None, "end", 60)
            node.free_disk()
            await asyncio.to_thread(node.start)
            await sending
        records = await read_topic(cluster.bootstrap(), topic)
    assert sorted(set(numbers(records))) == list(range(BATCH + 1600))
    assert order_faults(records) == []
