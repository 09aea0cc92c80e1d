"""One life of a consumer in its group: partitions come and go, records are taken, offsets follow.

Promises:
  * an offset is committed only after `take` returned for every record before it (at least once); at most
    COMMIT_SECONDS of records (and the portion at hand) come twice after a crash, none after an orderly stop or
    rebalance;
  * while `take` waits nothing is fetched beyond one portion of each partition; we stay in the group, so that the
    others are not rebalanced for our full disk;
  * before partitions are given away, what was fetched of them is taken and committed, for as long as the group's
    patience allows; what was taken and could not be committed is reported by `repeated`: it will come again;
  * offsets that the brokers no longer have (retention was faster than we) are reported by `expired`, and reading goes
    on at the oldest record there is;
  * a batch that unpacks to more than `unpacked_bytes` stops its partition, is said, and is not in memory;
  * a topic that is missing is said, and does not keep us from the others;
  * transactions that were aborted, and those still open, are not read.
Refuses: retrying (the input opens another session), and losing a record that `take` refused: the session ends.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition, errors
from aiokafka.cluster import ClusterMetadata

from ndcollector.inputs.kafka_unpack import limit_unpacking
from ndcollector.kafka_bootstrap import hold_connections

Records = Mapping[TopicPartition, Sequence[ConsumerRecord]]

COMMIT_SECONDS = 0.2
POLL_SECONDS = 0.5
REFRESH_SECONDS = 60.0
RECORDS_AT_ONCE = 4096
FETCH_MAX_BYTES = 16 * 2**20
_CLOSE_SECONDS = 2.0  # for each of: the last commit, leaving the group, being cut off
_STOP_SECONDS = 3.0  # for the spool to take what it is being handed, before a stop gives up on it
_NEVER_MS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """What a session is opened with; the times are seconds."""

    topics: tuple[str, ...]
    group: str
    start: str  # earliest or latest
    fetch_bytes: int
    unpacked_bytes: int
    session_timeout: float
    silence: float  # with no answer from any broker for so long the session ends


@dataclass(frozen=True, slots=True)
class Observer:
    """Where a session's events go, and what it has to tell."""

    take: Callable[[Records], Awaitable[None]]
    repeated: Callable[[int], None]
    expired: Callable[[TopicPartition, int], None]
    lag: Callable[[int], None]
    refresh: Callable[[], None]
    """Called now and then: certificate files may have been renewed."""


class GroupSession(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Made, run once, ended by an error or by cancelling `run`."""

    def __init__(self, arguments: Mapping[str, Any], settings: GroupSettings, observer: Observer, *, name: str) -> None:
        self._settings = settings
        self._observer = observer
        self._log = logging.getLogger(name)
        self._consumer = AIOKafkaConsumer(
            **arguments,
            group_id=settings.group,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a reset would skip records without a word: see _begin and _skip_expired
            isolation_level="read_committed",
            max_partition_fetch_bytes=settings.fetch_bytes,
            fetch_max_bytes=FETCH_MAX_BYTES,
            session_timeout_ms=int(settings.session_timeout * 1000),
            heartbeat_interval_ms=int(settings.session_timeout * 1000 / 3),
            max_poll_interval_ms=_NEVER_MS,  # a spool that takes nothing for long is no reason to leave the group
        )
        hold_connections(self._consumer._client, arguments)  # noqa: SLF001 - it has no public way
        self._missing: list[str] = []  # topics
        self._is_made = False  # one of them is there now
        self._taking = asyncio.Lock()
        self._taken: dict[TopicPartition, int] = {}  # where the next record stands
        self._committed: dict[TopicPartition, int] = {}
        self._rebalances = 0
        self._commit: asyncio.Task[None] | None = None
        self._committed_at = time.monotonic()
        self._heard_at = self._refreshed_at = time.monotonic()

    async def run(self) -> None:
        """Serve until cancelled, or until aiokafka or `take` raises; returns when a missing topic has been made."""
        settings = self._settings
        try:
            limit_unpacking(settings.unpacked_bytes, self._refuse)
            async with asyncio.timeout(settings.session_timeout + settings.silence):
                there, self._missing = await self._look_for_topics()
                self._consumer.subscribe(there, listener=self)
                await self._consumer.start()
            self._log.info("reading %s in group %s", ", ".join(there), settings.group)
            if self._missing:
                self._log.warning(
                    "not reading %s: no such topic, or none that we may see; looking again until there is",
                    ", ".join(self._missing),
                )
            while not self._is_made:
                await self._turn()
        finally:
            await self._close()

    async def _look_for_topics(self) -> tuple[list[str], list[str]]:
        """Those that exist and those that do not, or not for us; raises KafkaError where none does."""
        client, topics = self._consumer._client, self._settings.topics  # noqa: SLF001 - it has no public way
        await client.bootstrap()
        found = ClusterMetadata()
        if not await client._metadata_update(found, topics):  # noqa: SLF001
            raise errors.KafkaConnectionError("no broker tells which topics there are")
        there = [topic for topic in topics if topic in found.topics(exclude_internal_topics=False)]
        if not there:
            refused = found.unauthorized_topics
            raise errors.TopicAuthorizationFailedError if refused else errors.UnknownTopicOrPartitionError
        return there, [topic for topic in topics if topic not in there]

    async def _turn(self) -> None:
        try:
            records = await self._consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000), max_records=RECORDS_AT_ONCE)
        except errors.NoOffsetForPartitionError as error:
            await self._begin(error.args[0])
        except errors.OffsetOutOfRangeError as error:
            await self._skip_expired(error.args[0])
        else:
            if records:
                await self._take(records)
        self._listen()
        self._commit_now_and_then()
        self._observer.lag(self._lag())
        if time.monotonic() - self._refreshed_at > REFRESH_SECONDS:
            self._refreshed_at = time.monotonic()
            self._observer.refresh()
            if self._missing:
                self._is_made = len((await self._look_for_topics())[1]) < len(self._missing)

    def _refuse(self, partition: TopicPartition, offset: int) -> None:
        self._consumer.pause(partition)
        self._log.error(
            "not reading %s/%d any further: the batch at offset %d unpacks to more than unpacked_bytes (%d). See who "
            "wrote it; then raise unpacked_bytes, or stop the collector and move group %s on behind the batch",
            partition.topic, partition.partition, offset, self._settings.unpacked_bytes, self._settings.group,
        )

    async def _take(self, records: Records) -> None:
        async with self._taking:
            rebalances = self._rebalances
            handing_on = asyncio.ensure_future(self._observer.take(records))
            try:
                await asyncio.shield(handing_on)
            except asyncio.CancelledError:
                await asyncio.wait({handing_on}, timeout=_STOP_SECONDS)
                if not handing_on.done() or handing_on.cancelled() or handing_on.exception():
                    handing_on.cancel()
                    raise
                self._note(records, rebalances)
                raise
            self._note(records, rebalances)

    def _note(self, records: Records, rebalances: int) -> None:
        if rebalances != self._rebalances:  # the partitions were given away while the spool kept us waiting
            self._observer.repeated(sum(map(len, records.values())))
            return
        for partition, found in records.items():
            self._committed.setdefault(partition, found[0].offset)
            self._taken[partition] = found[-1].offset + 1

    # ---- offsets

    def _commit_now_and_then(self) -> None:
        waiting = self._commit is not None and not self._commit.done()
        if waiting or time.monotonic() - self._committed_at < COMMIT_SECONDS or self._taken == self._committed:
            return
        self._commit = asyncio.create_task(self._commit_taken())

    async def _commit_taken(self) -> None:
        """Tell the group how far we are; a failure is not the end: the next commit covers it."""
        self._committed_at = time.monotonic()
        offsets = {at: offset for at, offset in self._taken.items() if self._committed.get(at) != offset}
        offsets = {at: offset for at, offset in offsets.items() if at in self._consumer.assignment()}
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except (errors.KafkaError, errors.IllegalStateError) as error:
            self._log.debug("offsets not committed: %s", error)
            return
        self._committed.update(offsets)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Called before a rebalance: finish and commit, but do not make the group wait longer than it would."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.session_timeout / 2), self._taking:
                if self._commit is not None:
                    await asyncio.wait({self._commit})
                await self._commit_taken()
        self._rebalances += 1
        self._give_up(revoked)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Called after a rebalance; positions are those that the group has."""
        self._heard_at = time.monotonic()
        if assigned:
            names = ", ".join(sorted(f"{topic}/{number}" for topic, number in assigned))
            self._log.info("%d partitions: %s", len(assigned), names)

    def _give_up(self, partitions: Collection[TopicPartition]) -> None:
        again = sum(
            self._taken[partition] - self._committed[partition] for partition in partitions if partition in self._taken
        )
        if again:
            self._observer.repeated(again)
        for partition in partitions:
            self._taken.pop(partition, None)
            self._committed.pop(partition, None)

    async def _begin(self, partition: TopicPartition) -> None:
        """The group has no offset there yet: give it one, or `latest` would mean another place after each start."""
        consumer = self._consumer
        look = consumer.beginning_offsets if self._settings.start == "earliest" else consumer.end_offsets
        offset = (await look([partition]))[partition]
        await consumer.commit({partition: offset})
        consumer.seek(partition, offset)
        self._log.info("beginning with %s/%d at offset %d", partition.topic, partition.partition, offset)

    async def _skip_expired(self, places: Mapping[TopicPartition, int]) -> None:
        for partition, wanted in places.items():
            oldest = (await self._consumer.beginning_offsets([partition]))[partition]
            self._observer.expired(partition, max(0, oldest - wanted))
            self._consumer.seek(partition, oldest)

    # ---- the brokers

    def _listen(self) -> None:
        """aiokafka tries for ever and says nothing; a cluster under other addresses is found by a new session only."""
        now, consumer = time.monotonic(), self._consumer
        read = consumer.assignment() - consumer.paused()
        stamps = [consumer.last_poll_timestamp(partition) or 0 for partition in read]
        if not stamps or time.time() - max(stamps) / 1000 < self._settings.silence:
            self._heard_at = now
        elif now - self._heard_at > self._settings.silence:
            raise errors.KafkaConnectionError(f"no broker has answered for {self._settings.silence:.0f}s")

    def _lag(self) -> int:
        """Records that stand behind what was taken, as far as the last fetch could see."""
        ahead = 0
        for partition in self._consumer.assignment():
            end, position = self._consumer.highwater(partition), self._taken.get(partition)
            if end is not None and position is not None:
                ahead += max(0, end - position)
        return ahead

    async def _close(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                if self._commit is not None:
                    await asyncio.wait({self._commit})
                await self._commit_taken()
        if self._commit is not None:
            self._commit.cancel()
            await asyncio.wait({self._commit})
        self._give_up(list(self._taken))
        await _stop(self._consumer)


async def _stop(consumer: Any) -> None:
    """Leave the group and close the connections, within seconds; those of brokers that do not answer are cut.

    aiokafka has no public way to cut them, and its stop() waits for every answer.
    """
    connections = consumer._client._conns  # noqa: SLF001 - see above
    stopping = asyncio.ensure_future(consumer.stop())
    for _ in range(2):
        await asyncio.wait({stopping}, timeout=_CLOSE_SECONDS)
        if stopping.done():
            break
        for connection in list(connections.values()):
            if connection._writer is not None:  # noqa: SLF001
                connection._writer.transport.abort()  # noqa: SLF001
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
