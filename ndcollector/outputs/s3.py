"""The `s3` output: each batch an object of zstd NDJSON, made by conditional create: no retry makes a second one.

    PUT key, If-None-Match: *
     ├─ 200: it is there now, all of it, durably: delivered
     └─ 412: an object begins at this sequence already. Whose?
         ├─ it holds the batch's first events, byte for byte (its metadata tells, HEAD): these are delivered, the rest
         │  is a batch that begins behind them
         ├─ it holds the whole batch and more (a look into it tells, GET): delivered, and so is of the next batches
         │  what stands behind it there
         └─ it holds something else: the batch goes to a key of its own, `…-<first digits of its SHA-256>`

Promises:
  * when send() returns, the store owns the events: an object is there whole or not at all;
  * a lost answer, a timeout, a kill -9 at any instruction: the same events are created again, found there and counted
    as delivered. No duplicate object, no missing event, without any state of ours on disk;
  * *a cut need not be the same after a restart*: more events have come meanwhile, so batches end elsewhere. The key has
    only where a batch begins, and the saved cursor stands where an object ends or begins: see s3_objects.py. Where a
    batch ends amid an object that was found, sync() refuses until the rest was sent: a crash then begins where the
    object does, and not amid it, where no key would tell of it;
  * events stand in two objects (with the same event.id, which a reader de-duplicates by) only
      - after an operator's replay that begins amid an object;
      - where we may not read what we wrote (no s3:GetObject), after a lost answer or a kill: who cannot look must not
        take an object that is there for his own;
      - after a kill between a store and the next save of the cursor (a second), if `in_flight` is above 1, or if what
        the output gets was changed before the start: `where`, `sample`, `transform`, `format`, or a new version that
        decodes differently;
  * a store that ignores If-None-Match would overwrite. It is found out by the first object, which is created twice:
    the second must be refused, or the output stops with a remedy;
  * batches are cut at `batch_bytes`, at `batch_age`, and at each full hour of reception (an event's hour never depends
    on what it is sent with, so neither does its key). A batch that waits for its age waits in the spool, not in memory.
Refuses: multipart uploads, appending, deleting.
"""

import asyncio
import logging
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from ndagent.core.interfaces import Unavailable
from ndagent.core.log import Throttle
from ndagent.core.settings import ByteSize, Duration, Kind
from ndagent.wire.record import EventBatch
from ndcollector.outputs import OutputContext
from ndcollector.outputs.s3_objects import Larger, Packed, Stored, begins_with, check_prefix, key_of, pack
from ndcollector.outputs.s3_store import Bucket, StoreConfig
from ndcollector.routing.config import RoutedConfig

_SAY_EVERY_SECONDS = 3600.0
_SYNCS_REFUSED = 10
"""In a row, at most: the rest of an object may be filtered out now, or lost to a power cut, and then never comes."""

Prefix = Annotated[
    str, AfterValidator(check_prefix), Kind("text; may name {stream}, {node}, {year}, {month}, {day}, {hour}")
]


class Config(StoreConfig, RoutedConfig):
    """Batches of events as compressed objects in an S3 bucket."""

    fills_batches: ClassVar[bool] = True

    type: Literal["s3"] = "s3"
    prefix: Prefix = Field(
        default="{stream}/{year}/{month}/{day}",
        description="What keys begin with; the times are those of reception, UTC.",
    )
    in_flight: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Objects under way at a time per stream. With more than one, a crash may leave events in two "
        "objects.",
    )
    batch_bytes: ByteSize = Field(
        default=16 * 2**20,
        ge=1024,
        le=64 * 2**20,
        description="An object holds at most about this much, uncompressed. Memory: some three times this for each "
        "object under way.",
    )
    batch_age: Duration = Field(
        default=60.0, ge=0, le=3600, description="How long an object that is not full waits for more events."
    )
    timeout: Duration = Field(default=120.0, gt=0, description="An upload that takes longer counts as unavailable.")


def build(name: str, config: Config, context: OutputContext) -> "S3Output":
    """The output; connects at its first send."""
    return S3Output(name, config, context)


class S3Output:
    """See the module."""

    def __init__(self, name: str, config: Config, context: OutputContext) -> None:
        self._config = config
        self._node = context.node_name
        self._bucket = Bucket(config, timeout_seconds=config.timeout)
        self._creates_only = False  # proved: the store refused to create an object that was there
        self._larger: dict[tuple[str, str], Larger] = {}  # stream, spool → an object that held more than its batch
        self._amid: set[str] = set()  # streams whose last batch ended within such an object
        self._refused = 0
        self._log = logging.getLogger(name)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=context.clock)

    async def send(self, events: EventBatch) -> None:
        """Return once the store has every event in an object; raises Unavailable, and Rejected for 413."""
        rest: EventBatch | None = await self._unstored(events)
        while rest:
            rest = await self._store(rest)
        self._note_end(events)

    async def sync(self) -> None:
        """An object that was created is durable. Raises Unavailable while a batch ends amid one (see the module)."""
        if self._amid and self._refused < _SYNCS_REFUSED:
            self._refused += 1
            raise Unavailable(f"s3://{self._config.bucket} holds an object of which only the beginning was sent again")
        self._refused = 0

    async def aclose(self) -> None:
        """Close the connections."""
        await self._bucket.aclose()

    async def _store(self, events: EventBatch) -> EventBatch | None:
        """Store the events, or find some of them stored; the rest of them, where there is one."""
        key = key_of(events, prefix=self._config.prefix, node=self._node)
        packed = await asyncio.to_thread(pack, events, node=self._node)
        held = len(events) if await self._create(key, packed) else await self._held(events, key)
        if not held:
            await self._store_apart(events, packed, beside=key)
        return events.select(range(held, len(events))) if 0 < held < len(events) else None

    async def _create(self, key: str, packed: Packed) -> bool:
        made = await self._bucket.create(key, packed)
        if made and not self._creates_only and await self._bucket.create(key, packed):
            raise Unavailable(
                f"s3://{self._config.bucket}: the store ignores If-None-Match, so a repeated upload would overwrite an "
                f"object; use a store that knows conditional create"
            )
        self._creates_only = True
        return made

    async def _held(self, events: EventBatch, key: str) -> int:
        """How many of the events, from the first on, the object at this key holds, as far as we may look."""
        metadata = await self._bucket.metadata(key)
        stored = None if metadata is None else Stored.read(metadata)
        if stored is None:
            return 0
        if stored.count <= len(events):
            return await asyncio.to_thread(stored.held, events)
        body = await self._bucket.read(key)
        if not await asyncio.to_thread(begins_with, body, events):
            return 0
        if not events.replay and self._config.in_flight == 1:  # beside each other, two could find the same lines
            self._larger[events.stream, events.spool_id] = Larger(stored, body, events)
        return len(events)

    async def _unstored(self, events: EventBatch) -> EventBatch:
        """Without those that a larger object is seen to hold: their keys say nothing, they stand amid it."""
        larger = self._larger_around(events, 0)
        if larger is None:
            return events
        found = await asyncio.to_thread(larger.find, events)
        larger.note(found)
        return events.select(range(found.held, len(events)))

    def _larger_around(self, events: EventBatch, place: int) -> Larger | None:
        """The larger object, if this event of a batch lies within its sequences."""
        source = (events.stream, events.spool_id)
        larger = self._larger.get(source)
        if larger is None or events.replay or not events:
            return None
        if events.sequences[0] > larger.stored.last:
            del self._larger[source]
        return larger if larger.stored.first <= events.sequences[place] <= larger.stored.last else None

    def _note_end(self, events: EventBatch) -> None:
        if events.replay:
            return  # says nothing of where the cursor is to stand
        larger = self._larger_around(events, -1)
        if larger is not None and events.sequences[-1] < larger.stored.last:
            self._amid.add(events.stream)
        else:
            self._amid.discard(events.stream)

    async def _store_apart(self, events: EventBatch, packed: Packed, *, beside: str) -> None:
        """To a key that only these lines have."""
        key = key_of(events, prefix=self._config.prefix, node=self._node, variant=packed.digest[:16])
        if self._throttle.allow("apart") is not None:
            self._log.warning(
                "s3://%s/%s is there and holds other events than these, or cannot be read: they go to %s; a reader "
                "de-duplicates by event.id", self._config.bucket, beside, key,
            )
        if await self._bucket.create(key, packed):
            return
        metadata = await self._bucket.metadata(key)
        if metadata is not None and metadata.get("nd-sha256") != packed.digest:
            raise Unavailable(f"s3://{self._config.bucket}/{key} is not what its name says; a person must look at it")
