"""One replay: dead letters of an output, sent again through a delivery chain, from where the last run stopped.

    file [ at ──────────────► end )  letters appended meanwhile, and those refused again, stand behind `end`
           chunk by chunk: rebuild → deliver → sync → progress saved

Promises:
  * a letter leaves only when the far side has it (sent and synced) or when it is a dead letter again, with the new
    reason, behind `end`; a crash or a cancel at any point sends the chunk at hand again and loses nothing;
  * one chunk of at most MOST_CHUNK_BYTES (or a single letter) is in memory, whatever the size of the file;
  * sends take turns with the live ones of that stream (delivery.Retry), so those wait for one batch at most;
  * an event that never passed a route, or goes to another output than it was made for, passes the target's first: what
    that redacts must not leave by this door;
  * nothing overtakes the output's own cursor: an event that it has still to get by itself is waited for first. Outputs
    that find their place by sequences would take the events between the two for delivered.
Refuses: judging what is worth sending again (`wanted` says it).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO, NamedTuple

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.decoding import Undecodable
from ndagent.core.delivery import Bury, Delivery, rate_of
from ndagent.core.interfaces import Rejected, Routed, Unavailable
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.waiting import to_its_end
from ndagent.wire.codec import Decoder
from ndagent.wire.record import EventBatch
from ndcollector.dead_letters.letters import Letter, Wanted, lines, parse
from ndcollector.dead_letters.progress import Progress
from ndcollector.dead_letters.rebuild import Rebuilt, rebuild
from ndcollector.dead_letters.rewrite import LettersChanged

LOOK_SECONDS = 0.25
_SAY_EVERY_SECONDS = 60.0

MOST_CHUNK_BYTES = 1 << 20
"""Parsed for the filter, letters take several times their size."""

MOST_SCAN_BYTES = 16 << 20
"""Looked through at a time for letters that are wanted: a stop waits for the thread that does it."""

IsComing = Callable[[str, str, str, int], bool]
"""See Dispatcher.is_coming."""


class _Chunk(NamedTuple):
    letters: Sequence[Letter]  # those that are wanted
    end: int  # where the next one begins


class Replay:
    """Runs until all is sent, or until cancelled; `progress` says how far it is."""

    def __init__(
        self,
        store: DeadLetters,
        progress: Progress,
        *,
        delivery: Delivery,
        decoder: Decoder,
        is_coming: IsComing,
        metrics: Metrics,
    ) -> None:
        self.progress = progress
        self._store = store
        self._delivery = delivery
        self._decoder = decoder
        self._is_coming = is_coming
        self._wanted = Wanted.read(progress.wanted)
        self._replayed = metrics.dead_letters_replayed.labels(store.output)
        self._log = logging.getLogger(store.output)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=asyncio.get_running_loop().time)
        self._chunk_bytes = min(MOST_CHUNK_BYTES, delivery.config.batch_bytes)
        per_second = rate_of(delivery.config).events_per_second
        self._chunk_letters = MOST_CHUNK_BYTES if per_second is None else max(1, int(per_second))
        """A second's worth: with a slow rate a crash must not send minutes of it again."""
        self._kept: set[tuple[str, int]] = set()
        """Of the chunk at hand, by spool and sequence: dead letters again. A sync that fails sends the others anew."""

    async def run(self) -> None:
        """Return when everything up to `end` has left or stays. Raises OSError where the letters cannot be read, and
        LettersChanged where they are others than when it began.
        """
        progress, store = self.progress, self._store
        while progress.at < progress.end:
            chunk = await asyncio.to_thread(self._read)
            self._kept.clear()
            attempt = 0
            while not await self._send(chunk.letters):
                await self._delivery.pause(attempt)
                attempt += 1
            await self._advance(chunk)
        store.note()

    def _read(self) -> _Chunk:
        """From `at` on; what is not wanted is passed without being kept."""
        try:
            with self._store.path.open("rb") as file:
                if not self.progress.fits(file):
                    raise LettersChanged
                return self._chunk(file)
        except FileNotFoundError as error:
            raise LettersChanged from error

    def _chunk(self, file: BinaryIO) -> _Chunk:
        found: list[Letter] = []
        size, start, end = 0, self.progress.at, self.progress.end
        for offset, line in lines(file, start, end):
            letter = parse(offset, line)
            length = len(letter.line) if letter is not None and self._wanted(letter) else 0
            if offset - start >= MOST_SCAN_BYTES:
                return _Chunk(found, offset)
            if found and (size + length > self._chunk_bytes or len(found) >= self._chunk_letters):
                return _Chunk(found, offset)
            if letter is not None and length:
                found.append(letter)
                size += length
        return _Chunk(found, end)

    async def _send(self, found: Sequence[Letter]) -> bool:
        """Whether all of it is where it belongs, durably; False: send it again."""
        delivery = self._delivery
        failed_syncs = delivery.failed_syncs
        for part in await asyncio.to_thread(rebuild, found, self._decoder):
            await self._send_part(part)
        try:
            await delivery.sync()
        except Unavailable as error:
            self._log.warning("replayed dead letters could not be made durable (%s); they are sent again", error)
        return delivery.failed_syncs == failed_syncs

    async def _send_part(self, part: Rebuilt) -> None:
        if isinstance(part.decoded, Undecodable):
            await self._keep_body(part.decoded, part.letters[0].head["stream"])
            return
        events = part.decoded
        keys = [(events.spool_id, sequence) for sequence in events.sequences]
        left = [index for index, key in enumerate(keys) if key not in self._kept]
        events = events if len(left) == len(events) else events.select(left)
        if not len(events):
            return
        is_routed = part.letters[0].is_routed
        await self._until_passed(events.stream, events.spool_id, events.sequences[-1])
        keep = partial(self._keep, events, is_routed)
        if not is_routed or self._delivery.name != self._store.output:
            events = await self._route(events, keep)
        for piece in self._delivery.pieces(events) if len(events) else ():
            await self._delivery.deliver(piece, bury=keep)

    async def _until_passed(self, stream: str, spool_id: str, sequence: int) -> None:
        """Return when the output's own cursor is behind this event; a full dead-letter file must not keep it there."""
        output = self._delivery.name
        if not self._is_coming(output, stream, spool_id, sequence):
            return
        with self._delivery.dead_letters.awaited():
            while self._is_coming(output, stream, spool_id, sequence):
                await self._delivery.sleep(LOOK_SECONDS)
                if self._throttle.allow("coming") is not None:
                    self._log.info(
                        "replay of dead letters waits until output %s has got event %d of stream %s by itself",
                        output, sequence, stream,
                    )

    async def _route(self, events: EventBatch, keep: Bury) -> EventBatch:
        """The events as the target may have them; what it must not or does not want to get stays a letter."""
        route = self._delivery.route
        if not self._delivery.config.wants(events.stream):
            routed = Routed(events.select([]))
        elif route is None:
            return events
        else:
            routed = await route(events)
        for failed, reason in routed.failed:
            await keep(failed, Rejected(reason), [reason] * len(failed))
        known = {*routed.events.sequences, *(sequence for failed, _ in routed.failed for sequence in failed.sequences)}
        filtered = [index for index, sequence in enumerate(events.sequences) if sequence not in known]
        if filtered:
            reason = f"output {self._delivery.name} is configured not to get it"
            await keep(events.select(filtered), Rejected(reason), [reason] * len(filtered))
        return routed.events

    async def _keep(
        self, before: EventBatch, is_routed: bool, refused: EventBatch, refusal: Rejected, reasons: Sequence[str]
    ) -> None:
        """What is refused stays as the letter had it, whatever a route made of it now."""
        wanted = set(refused.sequences)
        events = before.select([index for index, sequence in enumerate(before.sequences) if sequence in wanted])
        append = partial(self._store.append, events, reason=refusal.reason, reasons=reasons, response=refusal.response)
        await self._delivery.until_written(partial(append, is_moved=True, is_routed=is_routed))
        self._kept.update((events.spool_id, sequence) for sequence in events.sequences)

    async def _keep_body(self, part: Undecodable, stream: str) -> None:
        record = part.record
        key = (record.spool_id, record.sequence)
        if key in self._kept:
            return
        append = partial(self._store.append_body, bytes(record.body), spool_id=record.spool_id)
        append = partial(append, sequence=record.sequence, count=record.count, received_at_ns=record.received_at_ns)
        append = partial(append, stream=stream, reason=part.reason)
        await self._delivery.until_written(partial(append, is_moved=True))
        self._kept.update((record.spool_id, sequence) for sequence in range(record.sequence, record.end))

    async def _advance(self, chunk: _Chunk) -> None:
        progress, store = self.progress, self._store
        events = sum(letter.events for letter in chunk.letters)
        size = sum(len(letter.line) for letter in chunk.letters)
        progress.at = chunk.end
        progress.gone_bytes += size
        progress.gone_events += events
        refused = sum(map(self._refused_of, chunk.letters))
        progress.refused += refused
        progress.replayed += events - refused
        await self._save()
        self._replayed.inc(events - refused)
        store.gone_bytes += size
        store.left_events += events
        store.made_room()

    def _refused_of(self, letter: Letter) -> int:
        """How many of its events are dead letters again; two letters of one event became one."""
        first = letter.head["sequence"]
        return sum((letter.head["spool_id"], first + position) in self._kept for position in range(letter.events))

    async def _save(self) -> None:
        """Wait for a full disk here: to raise would mean to send the chunk again and again."""
        attempt = 0
        while True:
            try:
                return await to_its_end(asyncio.to_thread(self.progress.save, self._store.path))
            except OSError as error:
                if self._throttle.allow("save") is not None:
                    self._log.error(
                        "replay of dead letters waits: its progress cannot be written (%s); free or repair the disk",
                        error.strerror,
                    )
            await self._delivery.pause(attempt)
            attempt += 1
