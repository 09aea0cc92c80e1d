"""From the spools to every output: one lane per output, one feed per stream in it, all independent.

Promises:
  * a lane never waits for another one: each has its own cursors, window, breakers and dead letters, and a failure in it
    (its output's, or a bug in ours) restarts that lane alone, after a pause with jitter, from its last saved place;
  * the order on the way out is settle → `output.sync()` → `cursor.advance` → `journal.commit()` → `cursor.save()`, at
    most every second and at stop; what was settled is noted before the sync, so that sends need not stop for it;
  * a failed sync is never tried again on top of itself: what was settled since the last good one is sent anew;
  * `drain` lets the sends under way end, for at most FINISH_SECONDS, so that outputs that answer get nothing twice;
    then, and on a cancel at once, they are cancelled, and what is settled is synced and saved. That takes seconds, not
    a send's timeout, also when an output is dead.
Refuses: closing outputs and spools (who opened them closes them), counting (see ledger.py).
A reload that changes outputs stops this Dispatcher and runs a new one: cursors are on disk, nothing is lost between.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType

from ndagent.core import messages
from ndagent.core.decoding import Decoding
from ndagent.core.delivery import Delivery, Sleep
from ndagent.core.feed import Feed, Lag
from ndagent.core.interfaces import Journal, Unavailable
from ndagent.core.log import Throttle
from ndagent.core.spool import Spool
from ndagent.core.waiting import first

SAVE_EVERY_SECONDS = 1.0
"""What a crash may send twice, and what an fsync per save costs an output: one second is a fair price for both."""

FINISH_SECONDS = 3.0
"""An output that has not answered a send within this while we stop will get its events again."""

SAVE_AT_STOP_SECONDS = 5.0
"""An output that cannot sync within this while we stop will get the last second of events again."""

_DRAIN_LOOK_SECONDS = 0.05
_SAY_EVERY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Replay:
    """An operator's wish; `answer` gets how many events it sends again."""

    feed: Feed
    start: int
    until: int | None
    answer: "asyncio.Future[int]"


class Lane:
    """One output with its feeds."""

    def __init__(self, delivery: Delivery, feeds: Sequence[Feed], journal: Journal | None = None) -> None:
        self.feeds = feeds
        self._journal = journal
        self.name = delivery.name
        self._delivery = delivery
        self._saving: asyncio.Future[None] | None = None
        self._failed_syncs = delivery.failed_syncs  # when what is settled now began to be sent
        self._replays: list[_Replay] = []
        self._wished = asyncio.Event()
        self._log = logging.getLogger(delivery.name)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=asyncio.get_running_loop().time)

    async def run(self) -> None:
        """Until cancelled: serve, and after a failure serve again from the last saved place."""
        failures = 0
        while True:
            try:
                await first(self._serve(), self._wished.wait())
            except ExceptionGroup as errors:
                self._report(errors)
            failures = 0 if await self._has_saved() else failures
            if self._wished.is_set():
                await self._settle_before_replays()
            for feed in self.feeds:
                feed.forget()
            self._saving = None
            self._failed_syncs = self._delivery.failed_syncs
            if not self._wished.is_set():
                await first(self._delivery.pause(failures), self._wished.wait())
                failures += 1
            await self._begin_replays()

    async def replay(self, feed: Feed, *, start: int, until: int | None) -> int:
        """Send the events from `start` on again; the sends under way are given up first, so none overtakes it."""
        wish = _Replay(feed, start, until, asyncio.get_running_loop().create_future())
        self._replays.append(wish)
        self._wished.set()
        return await wish.answer

    async def stop(self) -> None:
        """After `run` was cancelled: sync and save what is settled. Never raises; what is not saved is sent again."""
        self._refuse_replays("the output stops or is being changed; ask again")
        try:
            async with asyncio.timeout(SAVE_AT_STOP_SECONDS):
                if self._saving is not None:
                    await self._saving  # the cancel may have come amid a sync; had it failed, another one could lie
                await self._save()
        except Exception as error:  # noqa: BLE001 - whatever an output raises, the others must still be saved
            self._log.warning("not saved at stop (%r): the last events will be sent again at the next start", error)

    async def _settle_before_replays(self) -> None:
        """Let the cursor pass what was sent: a replay of events that it still stands before would be no replay."""
        try:
            if self._saving is not None:
                await self._saving  # raises if it failed: what was settled since is sent again, and not saved here
            async with asyncio.timeout(SAVE_AT_STOP_SECONDS):
                await self._save()
        except Exception as error:  # noqa: BLE001 - whatever an output raises, the operator hears of it
            self._refuse_replays(f"what was sent last could not be made durable ({error}); ask again once it is")

    def _refuse_replays(self, reason: str) -> None:
        self._wished.clear()
        replays, self._replays = self._replays, []
        for wish in replays:
            if not wish.answer.done():
                wish.answer.set_exception(Unavailable(reason))

    async def _begin_replays(self) -> None:
        self._wished.clear()
        replays, self._replays = self._replays, []
        for wish in replays:
            try:
                events = wish.feed.cursor.replay(wish.start, wish.until)
                wish.feed.forget()
                await wish.feed.cursor.save()
            except Exception as error:  # noqa: BLE001 - the operator hears of it, the output goes on
                if not wish.answer.done():
                    wish.answer.set_exception(error)
                continue
            if not wish.answer.done():
                wish.answer.set_result(events)

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for feed in self.feeds:
                group.create_task(feed.run())
            group.create_task(self._save_regularly())

    async def _save_regularly(self) -> None:
        while True:
            await first(*(feed.until_progress() for feed in self.feeds))
            await self._delivery.sleep(SAVE_EVERY_SECONDS)
            self._saving = asyncio.ensure_future(self._save())
            await asyncio.shield(self._saving)  # a sync once begun must be seen to end: see stop()

    async def _save(self) -> None:
        marks = [(feed, feed.mark()) for feed in self.feeds if feed.is_unconfirmed]
        if not marks:
            return
        await self._delivery.sync()
        if self._delivery.failed_syncs != self._failed_syncs:  # somebody else's: it left our events in doubt as well
            raise Unavailable("an earlier sync of this output failed")
        for feed, mark in marks:
            feed.confirm(mark)
        if self._journal is not None:
            await self._journal.commit()
        for feed, _ in marks:
            await feed.save()

    async def _has_saved(self) -> bool:
        """Whether the last save went well; one that is still under way is waited for."""
        if self._saving is None:
            return False
        await asyncio.wait({self._saving})
        return self._saving.exception() is None

    def _report(self, errors: ExceptionGroup[Exception]) -> None:
        expected, bugs = errors.split(Unavailable)
        if expected is not None and self._throttle.allow("sync") is not None:
            reason = "; ".join(str(error) for error in expected.exceptions)
            self._log.warning("what was sent could not be made durable (%s); it is sent again", reason)
        if bugs is not None and self._throttle.allow("bug") is not None:
            self._log.error(
                "output restarts from its last saved place after an unexpected error; nothing is lost. Please report "
                "this traceback", exc_info=bugs, extra=messages.OUTPUT_BUG,
            )


class Dispatcher:
    """Runs every output over every stream it wants, until cancelled or drained.

    `spools` by stream. `decoding` is shared by all outputs that have none of their own in `own_decodings` (by name);
    all are closed at the end. Must be made on the running loop: cursors are opened here.
    """

    def __init__(
        self,
        *,
        spools: Mapping[str, Spool],
        outputs: Sequence[Delivery],
        decoding: Decoding,
        own_decodings: Mapping[str, Decoding] = MappingProxyType({}),
        journal: Journal | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._decodings = [decoding, *own_decodings.values()]
        self._sleep = sleep
        self.lanes = [
            Lane(
                delivery,
                [
                    Feed(
                        stream=stream,
                        spool=spool,
                        delivery=delivery,
                        decoding=own_decodings.get(delivery.name, decoding),
                        journal=journal,
                    )
                    for stream, spool in spools.items()
                    if delivery.config.wants(stream)
                ],
                journal,
            )
            for delivery in outputs
        ]
        self._is_serving = False
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    async def run(self) -> None:
        """Deliver until cancelled or drained; cursors are saved when it returns or raises."""
        self._ended.clear()
        self._is_serving = True
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(lane.run(), name=f"output {lane.name}") for lane in self.lanes if lane.feeds]
                await self._stop.wait()
                finishing = [feed.finish() for lane in self.lanes for feed in lane.feeds]
                await first(asyncio.gather(*finishing), self._sleep(FINISH_SECONDS))
                for task in tasks:
                    task.cancel()
        finally:
            self._is_serving = False
            await asyncio.gather(*(lane.stop() for lane in self.lanes))
            for decoding in self._decodings:
                decoding.close()
            self._ended.set()

    async def replay(self, *, output: str, stream: str | None, start: int, until: int | None = None) -> dict[str, int]:
        """Send an output the events of a stream (all its streams if None) from sequence `start` on again.

        Returns how many events that is per stream; raises ValueError for an output or stream that is not there, and
        Unavailable where the output cannot begin it now.
        """
        lanes = [lane for lane in self.lanes if lane.name == output and self._is_serving]
        chosen = [(lane, feed) for lane in lanes for feed in lane.feeds if stream in (None, feed.stream)]
        if not chosen:
            raise ValueError(f"output {output!r} with stream {stream!r} is not running")
        answers = [lane.replay(feed, start=start, until=until) for lane, feed in chosen]
        counts = await asyncio.gather(*answers)
        return {feed.stream: count for (_, feed), count in zip(chosen, counts, strict=True)}

    def is_coming(self, output: str, stream: str, spool_id: str, sequence: int) -> bool:
        """Whether an output has still to get this event by its own cursor, or has just got it and not saved that."""
        feeds = [feed for lane in self.lanes if lane.name == output for feed in lane.feeds if feed.stream == stream]
        return any(feed.is_coming(spool_id, sequence) for feed in feeds)

    def lags(self) -> dict[tuple[str, str], Lag]:
        """How far each output is behind on each of its streams."""
        return {(lane.name, feed.stream): feed.lag for lane in self.lanes for feed in lane.feeds}

    async def drain(self, timeout_seconds: float) -> None:
        """Let every output reach its spools' end, for at most so long; then end `run` and return when it has saved.

        Call it while `run` runs, once inputs have stopped.
        """
        feeds = [feed for lane in self.lanes for feed in lane.feeds]
        for feed in feeds:
            feed.hurry()
        for _ in range(ceil(timeout_seconds / _DRAIN_LOOK_SECONDS)):
            if all(feed.is_caught_up for feed in feeds):
                break
            await self._sleep(_DRAIN_LOOK_SECONDS)
        self._stop.set()
        await self._ended.wait()
