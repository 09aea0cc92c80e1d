"""The events of one stream on their way to one topic: in a line, in order, whatever fails.

    send ──► [ batch | batch | batch | batch ]   the line: at most `in_flight`, in the order of the first sends
                 │ encoded in this order
                 ▼
             Session (one producer)              broken? a new one, and all that is unanswered again, in this order

A batch stays in the line until all its records are answered, whether or not someone waits for it: a send that timed
out and is tried again finds its batch where it was. So tries in any order leave the order of the events alone.

Promises:
  * events of a partition arrive in the order of the sends, through any failure; a record acknowledged once is not sent
    again while this process lives, unless its batch was in doubt when a session ended (counted);
  * an event that can never be taken is named to the caller after all others of its batch have been delivered;
  * a session is given up for a refusal, for a fault of the producer, and for a cluster that is found under other
    addresses, not for brokers that are slow, frozen or gone: those are waited for with the same producer.
Refuses: waiting between tries (core/delivery.py does). A machine that began anew (a restart of its lane) sends from
further back: what is left of the old line is forgotten then, as it will come again. Replays are always from further
back, and say nothing about the others.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from aiokafka import errors

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.wire.record import EventBatch
from ndcollector.kafka_client import Connection, InvalidRecordError, explain
from ndcollector.outputs.kafka_records import EncodeSettings, PartitionBatch, encode, partition_of_each
from ndcollector.outputs.kafka_session import Failure, Session, SessionSettings

_REMEMBERED = 64
"""Rests of rejected batches that were delivered before the caller heard; a caller has at most `in_flight` of them."""

_TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
REFUSALS = (*_TOO_LARGE, errors.InvalidTimestampError, InvalidRecordError)
"""What a broker says of a batch when one of its records is to blame."""

_STALL_REQUESTS = 2
"""After so many request times without an acknowledgement the brokers are looked into and the callers told."""


@dataclass(frozen=True, slots=True)
class LineSettings:
    """What the output's configuration says to a line."""

    session: SessionSettings
    max_message_bytes: int
    headers: bool
    clock: Callable[[], float]  # Unix seconds


class _Identity(NamedTuple):
    """What a batch is known by when it is sent again."""

    spool_id: str
    first: int
    last: int
    events: int
    replay: bool

    @classmethod
    def of(cls, events: EventBatch, indexes: Sequence[int] | None = None) -> "_Identity":
        sequences = events.sequences
        first, last = (indexes[0], indexes[-1]) if indexes is not None else (0, -1)
        count = len(events) if indexes is None else len(indexes)
        return cls(events.spool_id, sequences[first], sequences[last], count, events.replay)


@dataclass(slots=True, eq=False)
class _Entry:
    """A batch in the line."""

    events: EventBatch
    attempt: "asyncio.Future[None] | None" = None  # the caller that waits now
    indexes: Sequence[int] | None = None  # still to be sent; None: all
    partitions: int = 0  # of the topic when it was encoded; 0: it has to be
    unanswered: int = 0  # batches
    acked: Counter[int] = field(default_factory=Counter)  # partition → records
    guilty: dict[int, str] = field(default_factory=dict)  # position → why it can never be taken
    batch_records: int | None = None
    is_answered: bool = False

    @property
    def is_awaited(self) -> bool:
        """Whether a caller waits."""
        return self.attempt is not None and not self.attempt.done()

    def acknowledged(self, batch: PartitionBatch) -> None:
        """As the session's Owner."""
        self.acked[batch.partition] += batch.records
        self.unanswered -= 1
        if not self.unanswered:
            self.answer()  # at once: the worker may be waiting for the next one's encoding

    def fail(self, error: Exception) -> None:
        """Tell the caller, if one waits."""
        if self.attempt is not None and not self.attempt.done():
            self.attempt.set_exception(error)

    def answer(self) -> None:
        """All its records are delivered or guilty."""
        self.is_answered = True
        if self.attempt is not None and not self.attempt.done():
            self.attempt.set_result(None)

    def restart(self) -> None:
        """To be encoded again, without what was acknowledged: a partition's records are answered in their order."""
        if not self.partitions:
            return
        left, acked = [], self.acked.copy()
        for index, partition in partition_of_each(self.events, self.indexes, self.partitions):
            if index in self.guilty:
                continue
            if acked[partition]:
                acked[partition] -= 1
            else:
                left.append(index)
        self.indexes = left
        self.partitions = self.unanswered = 0
        self.acked.clear()

    def first_unanswered(self, partition: int) -> int:
        """Position of the record behind the acknowledged ones of a partition."""
        placed = partition_of_each(self.events, self.indexes, self.partitions)
        mine = [index for index, its in placed if its == partition and index not in self.guilty]
        return mine[self.acked[partition]]


class Line:
    """One per stream. `on_resend` hears how many records were in doubt when a session ended. Make it on the loop."""

    def __init__(
        self, connection: Connection, settings: LineSettings, *, name: str, on_resend: Callable[[int], None]
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._on_resend = on_resend
        self._log = logging.getLogger(name)
        self._entries: dict[_Identity, _Entry] = {}  # in order
        self._delivered: dict[_Identity, None] = {}  # rests of rejected batches
        self._newest: dict[bool, tuple[int, str]] = {}  # of replays and of all else: last sequence, and its spool
        self._batch_bytes = settings.session.batch_bytes  # less once a broker was found to take less
        self._session: Session | None = None
        self._moved = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def send(self, events: EventBatch) -> None:
        """Return once the brokers have the events; raises Unavailable or Rejected. A cancel leaves them in the line."""
        identity = _Identity.of(events)
        if identity in self._delivered:
            del self._delivered[identity]
            return
        entry = self._entries.get(identity) or self._enter(identity, events)
        if not entry.is_answered:
            entry.attempt = asyncio.get_running_loop().create_future()
            if self._worker is None:
                self._worker = asyncio.create_task(self._work())
            self._moved.set()
            await entry.attempt
        del self._entries[identity]
        if entry.guilty:
            self._remember_rest(entry)
            raise Rejected(next(iter(entry.guilty.values())), sorted(entry.guilty))

    async def aclose(self) -> None:
        """Give up what is in the line, and its session."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        for entry in self._entries.values():
            entry.fail(Unavailable("the output is closed"))
        await self._drop_session()

    def _enter(self, identity: _Identity, events: EventBatch) -> _Entry:
        newest, spool_id = self._newest.get(identity.replay, (-1, ""))
        if spool_id == identity.spool_id and identity.first <= newest:  # the machine began anew
            old = self._entries.items()
            self._entries = {key: entry for key, entry in old if entry.is_awaited or key.replay != identity.replay}
        self._newest[identity.replay] = identity.last, identity.spool_id
        entry = self._entries[identity] = _Entry(events)
        return entry

    def _remember_rest(self, entry: _Entry) -> None:
        rest = [index for index in range(len(entry.events)) if index not in entry.guilty]
        if rest:
            self._delivered[_Identity.of(entry.events, rest)] = None
        if len(self._delivered) > _REMEMBERED:
            del self._delivered[next(iter(self._delivered))]

    # ---- the worker

    async def _work(self) -> None:
        while True:
            try:
                await self._until(lambda: any(entry.is_awaited for entry in self._entries.values()))
                if self._session is None:
                    self._session = await self._open()
                await self._serve(self._session)
            except Unavailable as error:
                self._fail_all(error)
            except Exception as bug:  # noqa: BLE001 - the callers raise it, and the machine begins anew
                await self._drop_session()
                self._fail_all(bug)

    async def _open(self) -> Session:
        settings = replace(self._settings.session, batch_bytes=self._batch_bytes)
        session = await Session.open(self._connection, settings, on_move=self._moved.set)
        if session.largest_record is not None and session.largest_record < self._batch_bytes:
            self._log.warning(
                "topic %s takes messages of at most %d bytes, less than max_message_bytes: batches are made to fit",
                settings.topic,
                session.largest_record,
            )
            self._batch_bytes = session.largest_record
            await session.close()
            return await self._open()
        return session

    async def _serve(self, session: Session) -> None:
        """Until the session breaks; raises Unavailable where the callers must hear of it."""
        patience = _STALL_REQUESTS * self._settings.session.request_timeout
        while session is self._session:
            self._moved.clear()
            for entry in list(self._entries.values()):
                if not entry.partitions and not entry.is_answered and session.failure is None:
                    await self._encode(entry, session)
                    if not entry.unanswered:
                        entry.answer()  # nothing in it could be sent
            if session.failure is not None:
                await self._recover(session, session.failure)
                return
            try:
                async with asyncio.timeout(patience if session.is_waiting else None):
                    await self._moved.wait()
            except TimeoutError:
                await self._examine(session)

    async def _encode(self, entry: _Entry, session: Session) -> None:
        partitions = session.partitions
        if not partitions:
            raise Unavailable(session.who_is_silent())
        record_bytes = self._settings.max_message_bytes
        if self._settings.session.compression is None:
            record_bytes = min(record_bytes, self._batch_bytes)
        settings = EncodeSettings(
            session.form,
            partitions,
            record_bytes,
            self._settings.headers,
            now_ms=int(self._settings.clock() * 1000),
            batch_records=entry.batch_records,
        )
        encoding = await encode(entry.events, entry.indexes, settings)
        entry.guilty |= dict.fromkeys(encoding.too_large, f"the record is larger than {record_bytes} bytes")
        entry.partitions = partitions
        entry.unanswered = len(encoding.batches)
        for batch in encoding.batches:
            session.push(batch, entry)

    async def _recover(self, session: Session, failure: Failure) -> None:
        """End a broken session; a refused batch is split, or its only record named, and the work goes on at once."""
        await session.wind_down()
        entry, error, records = failure.owner, failure.error, failure.batch.records
        assert isinstance(entry, _Entry)  # noqa: S101 - the only owners that this line pushes for
        is_refused = isinstance(error, REFUSALS)
        if is_refused:
            if records == 1:
                entry.guilty[entry.first_unanswered(failure.batch.partition)] = explain(error)
            else:
                entry.batch_records = records // 2
                if isinstance(error, _TOO_LARGE):
                    self._batch_bytes = max(failure.batch.size() // 2, 1024)
        await self._drop_session()
        if is_refused:
            return
        if not isinstance(error, errors.KafkaError):
            raise error
        raise Unavailable(explain(error, f"topic {self._settings.session.topic}, partition {failure.batch.partition}"))

    async def _examine(self, session: Session) -> None:
        """No acknowledgement for long: tell the callers why, and look for a cluster that has moved."""
        self._fail_all(Unavailable(session.who_is_silent()))
        self._connection.refresh()
        if await session.refresh_metadata():
            return
        moved = await self._open()  # Unavailable, with the reason, is the usual outcome
        if await session.refresh_metadata():  # it is back where it was: the same producer can go on, without doubles
            await moved.close()
            return
        self._log.warning("the cluster is found under other addresses; what has no answer is sent again")
        await self._drop_session()
        self._session = moved

    async def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            doubtful = session.in_doubt
            await session.close()
            if doubtful:
                self._on_resend(doubtful)
        for entry in self._entries.values():
            entry.restart()

    def _fail_all(self, error: Exception) -> None:
        for entry in self._entries.values():
            entry.fail(error)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._moved.clear()
            await self._moved.wait()
