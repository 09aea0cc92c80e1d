"""The events of one stream into one topic exactly once: each batch is a transaction that holds the cursor as well.

    begin ─► records ─► offset of group "<output>-<spool id>" := sequence behind the last ─► commit

Promises:
  * a consumer with isolation.level=read_committed sees every event once, whatever is killed, and in order for a host;
  * the cursor in the spool never passes, on disk, what the one in Kafka has not passed: a commit is answered before it
    is carried out, and a broker killed in between may book it as done without doing it (seen with Kafka 4.3.1: no
    marker on any partition, and the next abort takes the records along). `confirm` looks; what is not there is sent
    again, after what stands open was closed. Killed in the same moment ourselves, we may double those events;
  * the cursor in Kafka and the one in the spool both count, and the later one does: events behind the cursor in Kafka
    are taken to be delivered. If Kafka has forgotten its own (offsets.retention.minutes), the spool's counts;
  * an event that can never be taken is named before its batch is sent, so that the cursor in Kafka never passes it
    before it is a dead letter;
  * an operator's replay is sent, though the cursor is past it, and leaves the cursor where it is.
Refuses: several sends under way (the configuration sees to it): a batch may be committed only after the dead letters
of those before it. Read_uncommitted consumers see records of transactions that ended badly too: that is Kafka's way.

A copy of this machine has the same spool's id, and each would take for delivered what the other one sent. Two
transactional producers of one id fence each other, so it shows: the cursor in Kafka is further than we ever set it. The
output waits then, and says so; a copy that starts later takes the cursor that it finds for its own, as after a crash.

Two things guard against a spool that gave out a sequence twice (a disk that lost what it had synced): the spool's id is
part of the group's name, and what is skipped must not have been received after what the cursor in Kafka stands for.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import orjson
from aiokafka import TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.wire.record import EventBatch
from ndcollector.kafka_bootstrap import hold_connections
from ndcollector.kafka_client import Connection, explain
from ndcollector.outputs.kafka_line import REFUSALS, LineSettings
from ndcollector.outputs.kafka_records import EncodeSettings, Encoding, PartitionBatch, encode, position_of, received_ms
from ndcollector.outputs.kafka_session import Failure, Session, arguments_for

_STALL_REQUESTS = 2
_LOOK_SECONDS = 0.05  # a commit is carried out within milliseconds


class _Cursor(NamedTuple):
    """Where Kafka says we are: sequences below were delivered, and all of them received, before this time."""

    sequence: int
    committed_ms: int


def _received_ms(events: EventBatch, position: int) -> int:
    """When this event came; not before its batch did, whatever the machine that made it says."""
    return max(events.received_at_ns // 1_000_000, received_ms(orjson.loads(events.lines()[position])))


class _TooLargeError(Exception):
    """Reason and positions of what was left out before anything was sent."""


class _SplitError(Exception):
    """A batch of several records was refused: it has to be sent in smaller ones."""


@dataclass(slots=True, eq=False)
class _Owner:
    """Counts the acknowledgements of one transaction."""

    left: int

    def acknowledged(self, _batch: PartitionBatch) -> None:
        """As the session's Owner."""
        self.left -= 1


class TransactionalLine:
    """One per stream, in place of a Line. Make it on the loop."""

    def __init__(self, connection: Connection, settings: LineSettings, *, name: str) -> None:
        self._connection = connection
        self._settings = settings
        self._name = name
        self._session: Session | None = None
        self._spool_id = ""
        self._cursor = _Cursor(0, 0)
        self._promised = 0  # send() has returned for the sequences below, unconfirmed; 0: for none
        self._attempted = 0  # a commit was asked for, for the sequences below
        self._furthest: int | None = None  # where the cursor in Kafka can be by our doing; None: not looked yet
        self._is_doubtful = False  # whether the cursor in Kafka is where we believe
        self._busy = asyncio.Lock()
        self._moved = asyncio.Event()

    async def send(self, events: EventBatch) -> None:
        """Return once the transaction is committed; raises Unavailable or Rejected. A cancel may leave either."""
        async with self._busy:
            batch_records: int | None = None
            while True:
                try:
                    await self._send(events, batch_records)
                except _SplitError as split:
                    await self._drop_session()
                    batch_records = int(split.args[0])
                except _TooLargeError as refusal:  # nothing was sent: the session is as good as before
                    raise Rejected(*refusal.args) from None
                except BaseException:  # also a cancel: whether a commit came through is asked at the next start
                    await self._drop_session()
                    raise
                else:
                    return

    async def confirm(self) -> None:
        """Return once the cursor in Kafka has passed all that send() returned for.

        Raises Unavailable where it does not: then it is asked anew, and what is sent again from further back is
        skipped only as far as it really stands.
        """
        promised = self._promised
        if not promised:
            return
        try:
            async with asyncio.timeout(_STALL_REQUESTS * self._settings.session.request_timeout):
                while (await self._read_cursor()).sequence < promised:  # noqa: ASYNC110 - only Kafka can tell
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError as error:
            self._doubt()
            raise Unavailable(self._broken_promise) from error
        except Unavailable:
            self._doubt()
            raise
        if self._promised == promised:
            self._promised = 0

    async def aclose(self) -> None:
        """Give up what is under way; the brokers undo it."""
        await self._drop_session()

    async def _send(self, events: EventBatch, batch_records: int | None) -> None:
        session = await self._session_for(events.spool_id)
        passed = 0 if events.replay else self._passed(events)
        if passed == len(events):
            return
        indexes = range(passed, len(events)) if passed else None
        encoding = await self._encode(session, events, indexes, batch_records)
        if encoding.too_large:
            raise _TooLargeError("the record is larger than allowed", encoding.too_large)
        try:
            await session.begin()
            failure = await self._push(session, encoding.batches)
            if failure is None:
                await self._commit(session, events)
                return
        except errors.KafkaError as error:
            raise Unavailable(explain(error, f"topic {self._settings.session.topic}")) from error
        raise self._refusal(failure, encoding.batches, partial(position_of, events, indexes, session.partitions))

    def _passed(self, events: EventBatch) -> int:
        """How many events at the front the cursor in Kafka has passed."""
        passed = sum(sequence < self._cursor.sequence for sequence in events.sequences)
        return 0 if passed and _received_ms(events, passed - 1) > self._cursor.committed_ms else passed

    async def _encode(
        self, session: Session, events: EventBatch, indexes: Sequence[int] | None, batch_records: int | None
    ) -> Encoding:
        if not session.partitions:
            raise Unavailable(session.who_is_silent())
        largest = self._settings.max_message_bytes
        if self._settings.session.compression is None and session.largest_record is not None:
            largest = min(largest, session.largest_record)
        settings = EncodeSettings(
            session.form,
            session.partitions,
            largest,
            self._settings.headers,
            now_ms=self._now_ms(),
            batch_records=batch_records,
        )
        return await encode(events, indexes, settings)

    async def _push(self, session: Session, batches: Sequence[PartitionBatch]) -> Failure | None:
        """Return when the brokers have all batches, or have refused one."""
        owner = _Owner(len(batches))
        for batch in batches:
            session.push(batch, owner)
        while owner.left and session.failure is None:
            self._moved.clear()
            try:
                async with asyncio.timeout(_STALL_REQUESTS * self._settings.session.request_timeout):
                    await self._moved.wait()
            except TimeoutError as error:
                raise Unavailable(session.who_is_silent()) from error
        return session.failure

    async def _commit(self, session: Session, events: EventBatch) -> None:
        """The cursor never goes back: Kafka's stays where it is during a replay."""
        committed_ms = max(self._now_ms(), _received_ms(events, -1))
        cursor = max(self._cursor, _Cursor(events.sequences[-1] + 1, committed_ms))
        self._attempted = cursor.sequence
        self._furthest = max(self._furthest or 0, cursor.sequence)
        await session.commit(self._group, cursor.sequence, str(cursor.committed_ms))
        self._cursor = cursor
        self._promised = cursor.sequence

    def _now_ms(self) -> int:
        return int(self._settings.clock() * 1000)

    def _doubt(self) -> None:
        self._is_doubtful = True
        self._promised = 0

    def _refusal(self, failure: Failure, batches: Sequence[PartitionBatch], position: partial[int]) -> Exception:
        error, refused = failure.error, failure.batch
        if not isinstance(error, REFUSALS):
            if not isinstance(error, errors.KafkaError):
                return error
            where = f"topic {self._settings.session.topic}, partition {refused.partition}"
            return Unavailable(explain(error, where))
        if refused.records > 1:
            return _SplitError(refused.records // 2)
        before = batches[: batches.index(refused)]
        place = sum(batch.records for batch in before if batch.partition == refused.partition)
        return Rejected(explain(error), [position(partition=refused.partition, place=place)])

    # ---- the session and the cursor in it

    @property
    def _group(self) -> str:
        return f"{self._name}-{self._spool_id}"

    @property
    def _broken_promise(self) -> str:
        return f"the brokers have not carried out a transaction of {self._group} that they took"

    async def _session_for(self, spool_id: str) -> Session:
        if self._spool_id != spool_id:
            self._promised = self._attempted = 0
            self._furthest = None
        if self._session is not None and (self._spool_id != spool_id or self._is_doubtful):
            await self._drop_session()
        if self._session is None:
            self._spool_id = spool_id
            self._is_doubtful = False
            if self._furthest is not None:
                self._refuse_foreign(await self._read_cursor())  # before a session of ours ends that of the other one
            settings = replace(self._settings.session, transactional_id=self._group)
            session = await Session.open(self._connection, settings, on_move=self._moved.set)
            try:
                await self._resume(session)
            except BaseException:
                await session.close()
                raise
            self._session = session
        return self._session

    async def _resume(self, session: Session) -> None:
        """Begin where Kafka says; nothing may follow a broken promise until that was sent again: see confirm.

        Records of a commit that was not carried out may still stand open: the next one would let them out beside those
        that are sent in their place.
        """
        self._cursor = await self._read_cursor()
        self._refuse_foreign(self._cursor)
        self._furthest = max(self._furthest or 0, self._cursor.sequence)
        if self._cursor.sequence < self._attempted:
            try:
                await session.close_leftovers()
            except errors.KafkaError as error:
                raise Unavailable(explain(error, f"transactional id {self._group}")) from error
            self._attempted = 0
        if self._cursor.sequence < self._promised:
            raise Unavailable(self._broken_promise)

    def _refuse_foreign(self, cursor: _Cursor) -> None:
        """What another collector delivered under our spool's id is not what we have, whatever its number says."""
        if self._furthest is not None and cursor.sequence > self._furthest:
            raise Unavailable(
                f"consumer group {self._group} was moved on by another collector, from {self._furthest} to "
                f"{cursor.sequence}; is this machine a copy? Stop one of them, restart the other and let it send again "
                f"from there (ndcollector spool replay --from {self._furthest})"
            )

    async def _read_cursor(self) -> _Cursor:
        """What the last committed transaction left; opening the session has ended the ones before it."""
        place = TopicPartition(self._settings.session.topic, 0)
        arguments = arguments_for(self._connection)
        client = AIOKafkaAdminClient(**arguments)
        hold_connections(client._client, arguments)  # noqa: SLF001 - it has no public way
        try:
            async with asyncio.timeout(_STALL_REQUESTS * self._settings.session.request_timeout):
                await client.start()
                found = (await client.list_consumer_group_offsets(self._group, partitions=[place])).get(place)
        except (OSError, TimeoutError, errors.KafkaConnectionError) as error:
            raise Unavailable(await self._connection.why_unreachable()) from error
        except errors.KafkaError as error:
            raise Unavailable(explain(error, f"consumer group {self._group}")) from error
        finally:
            await client.close()
        if found is None or found.offset < 0:
            return _Cursor(0, 0)
        return _Cursor(found.offset, int(found.metadata or 0))

    async def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
