"""What the running collector does with dead letters when operators ask: counts, replays that survive it, purges.

Promises:
  * one replay or purge of an output at a time, none of them in the way of its sends but for their turns;
  * a replay goes on after a restart or a reload, from its saved progress, until it ends or somebody stops it; where its
    target is no longer configured it waits, and where somebody moved or changed its letters it ends, and says so;
  * a purge removes what the operator saw, no more: letters that came since stay, and a file that was written anew
    meanwhile is refused;
  * replays and purges stand in the audit trail, with the user id that the kernel gave for who asked.
Refuses: reading for operators (command.py reads the files, in a process of its own).
"""

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ndagent.core import messages
from ndagent.core.dead_letters import DeadLetters, is_name
from ndagent.core.delivery import Delivery
from ndagent.core.metrics import Metrics
from ndagent.core.supervision import StartError, in_words
from ndagent.wire.codec import Decoder
from ndcollector.audit import Audit
from ndcollector.dead_letters.letters import SUFFIX, Letter, Wanted, count_events, parse
from ndcollector.dead_letters.lock import LettersLocked, take
from ndcollector.dead_letters.progress import SUFFIX as PROGRESS_SUFFIX
from ndcollector.dead_letters.progress import Progress, forget, load, progress_path
from ndcollector.dead_letters.replay import IsComing, Replay
from ndcollector.dead_letters.rewrite import UNFINISHED, LettersChanged, rewrite

log = logging.getLogger("dead_letters")

_AGAIN_SECONDS = 10.0
_NO_LIMIT = 1 << 62


class Busy(Exception):
    """Not now: something else is done with these letters, or they are others than the operator saw."""


class Desk:
    """One per collector; `deliveries` and `decoder` give what is configured now."""

    def __init__(
        self,
        directory: Path,
        *,
        deliveries: Callable[[], Mapping[str, Delivery]],
        decoder: Callable[[], Decoder],
        is_coming: IsComing,
        metrics: Metrics,
        audit: Audit,
    ) -> None:
        self._directory = directory
        self._deliveries = deliveries
        self._decoder = decoder
        self._is_coming = is_coming
        self._metrics = metrics
        self._audit = audit
        self._lock: int | None = None
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._replays: dict[str, Replay] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._ended: dict[str, dict[str, object]] = {}  # how the last replay of an output ended
        self._orphans: dict[str, DeadLetters] = {}
        self._is_running = False

    # ---- life

    def open(self) -> None:
        """Take the directory; raises StartError."""
        try:
            self._lock = take(self._directory)
        except LettersLocked as error:
            raise StartError(f"dead letters {error}: wait for the ndcollector dlq command that is at work") from error
        except OSError as error:
            raise StartError(f"dead letters {self._directory}: {in_words(error)}") from error
        for left in self._directory.glob(f"*{UNFINISHED}"):
            left.unlink()

    def begin(self) -> None:
        """Go on with replays, and count; call it whenever outputs were (re)built and run."""
        self._is_running = True
        for name in sorted({*self._deliveries(), *self._names(PROGRESS_SUFFIX)}):
            self._tasks[name] = asyncio.create_task(self._take_up(name), name=f"dead letters {name}")

    async def suspend(self) -> None:
        """Stop where things are; `begin` goes on."""
        self._is_running = False
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._closing.values(), return_exceptions=True)
        self._orphans.clear()

    async def aclose(self) -> None:
        """As `suspend`, and let the directory go."""
        await self.suspend()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---- what operators ask

    def plain(self) -> list[dict[str, object]]:
        """Every output's letters in figures, as plain data; `events` is null until they are counted."""
        return [self._figures(name) for name in sorted({*self._deliveries(), *self._names(SUFFIX)})]

    async def replay(self, output: str, *, wanted: Wanted, to: str | None, uid: int | None) -> dict[str, object]:
        """Begin one; raises LookupError for an output that is not there, Busy."""
        target = to or output
        if target not in self._deliveries():
            raise LookupError(f"no output {target!r} is configured; there are: {', '.join(sorted(self._deliveries()))}")
        store = self._store(output)
        self._check_free(output)
        async with self._turns[output]:
            self._check_free(output)  # another wish may have been before this one
            self._ended.pop(output, None)
            progress = await asyncio.to_thread(_begin, store, target, wanted)
            if not progress.end:
                self._ended[output] = {**_said(progress), "ended": "done"}
        await self._record("dead_letters_replay", output=output, to=target, uid=uid, **wanted.plain())
        await self._end(self._tasks.pop(output, None))
        if self._is_running:  # else `begin` takes it up
            self._tasks[output] = asyncio.create_task(self._take_up(output), name=f"dead letters {output}")
        return {"output": output, "to": target}

    async def stop(self, output: str, *, uid: int | None) -> dict[str, object]:
        """End a replay where it is: what was sent leaves, the rest stays. Raises LookupError where none runs."""
        store = self._store(output)
        await self._end(self._tasks.pop(output, None))
        if output in self._closing:
            await asyncio.wait({self._closing[output]})
        async with self._turns[output]:
            progress = await asyncio.to_thread(load, store.path)
            if progress is None:
                raise LookupError(f"no replay of {output!r} is under way")
            await self._record("dead_letters_replay_stopped", output=output, uid=uid)
            await self._close(output, store, progress, how="stopped")
        return self._ended[output]

    async def purge(
        self, output: str, *, wanted: Wanted, end: int, inode: int, uid: int | None
    ) -> dict[str, object]:
        """Remove letters before `end` of the file with this inode; raises LookupError, Busy, OSError."""
        store = self._store(output)
        self._check_free(output)
        async with self._turns[output]:
            self._check_free(output)
            try:
                events = await asyncio.to_thread(purge_file, store, wanted, end=end, inode=inode)
            except LettersChanged as error:
                raise Busy(f"the dead letters of {output} changed meanwhile; look again") from error
            store.left_events += events
            store.made_room()
            self._metrics.dead_letters_purged.labels(output).inc(events)
            await self._record("dead_letters_purged", output=output, events=events, uid=uid, **wanted.plain())
        log.warning("%d dead letters of %s purged by an operator", events, output, extra={"uid": uid})
        return {"output": output, "purged": events}

    # ---- inside

    def _names(self, suffix: str) -> set[str]:
        """Outputs that have such a file; what else a person put there is nobody's."""
        return {path.stem for path in self._directory.glob(f"*{suffix}") if is_name(path.stem)}

    def _store(self, output: str) -> DeadLetters:
        """The letters of an output, also of one that is no longer configured; raises LookupError."""
        delivery = self._deliveries().get(output)
        if delivery is not None:
            return delivery.dead_letters
        if output not in self._orphans:
            if output not in self._names(SUFFIX):
                raise LookupError(f"there are no dead letters of {output!r}; ndcollector dlq ls shows what there is")
            self._orphans[output] = orphan(self._directory, output)
        return self._orphans[output]

    def _check_free(self, output: str) -> None:
        if output in self._replays or output in self._closing or load(self._store(output).path) is not None:
            raise Busy(f"a replay of {output} is under way; wait for it, or: ndcollector dlq replay {output} --stop")

    def _figures(self, name: str) -> dict[str, object]:
        store, replay = self._store(name), self._replays.get(name)
        progress = replay.progress if replay is not None else None
        return {
            "output": name,
            "configured": name in self._deliveries(),
            "events": store.events,
            "bytes": store.size_bytes,
            "max_bytes": store.max_bytes if name in self._deliveries() else None,
            "fill": store.fill,
            "replay": None if progress is None else _said(progress),
            "last_replay": self._ended.get(name),
        }

    async def _take_up(self, output: str) -> None:
        """Count what there is, and go on with a replay if there is one."""
        while True:
            try:
                async with self._turns[output]:
                    await self._go_on(output)
            except OSError as error:
                log.error("dead letters of %s: %s; tried again until it works", output, in_words(error))
            except Exception:
                log.exception("dead letters of %s: nothing is lost, tried again; please report this traceback", output)
            else:
                return
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _go_on(self, output: str) -> None:
        try:
            store = self._store(output)
        except LookupError:  # no letters
            return
        progress = await asyncio.to_thread(load, store.path)
        store.gone_bytes = 0 if progress is None else progress.gone_bytes
        if store.events is None:
            await asyncio.to_thread(_count, store, 0 if progress is None else progress.gone_events)
        store.note()
        if progress is None:
            if await asyncio.to_thread(progress_path(store.path).exists):
                await self._give_up(output, store, None)
            return
        delivery = self._deliveries().get(progress.to)
        if delivery is None:
            log.warning("the replay of %s waits: its target %s is not configured", output, progress.to)
            return
        replay = self._replays[output] = Replay(
            store,
            progress,
            delivery=delivery,
            decoder=self._decoder(),
            is_coming=self._is_coming,
            metrics=self._metrics,
        )
        try:
            await replay.run()
            await self._close(output, store, progress, how="done")
        except LettersChanged:
            await self._give_up(output, store, progress)
        finally:
            self._replays.pop(output, None)

    async def _give_up(self, output: str, store: DeadLetters, progress: Progress | None) -> None:
        """Its letters are elsewhere, if they are: those that are here were not sent, as far as anybody knows."""
        await asyncio.to_thread(forget, store.path)
        store.gone_bytes = 0
        if progress is not None:
            self._ended[output] = {**_said(progress), "ended": "given up: its letters were moved or changed"}
        log.warning(
            "the replay of dead letters of %s is given up: they were moved or changed, or this is another version; "
            "those in %s stay, ask again for a replay if it is still wanted", output, store.path,
        )  # fmt: skip

    async def _close(self, output: str, store: DeadLetters, progress: Progress, *, how: str) -> None:
        """Write the file without what has left; once begun it ends, whoever is cancelled."""
        closing = self._closing[output] = asyncio.create_task(self._write_anew(output, store, progress, how=how))
        closing.add_done_callback(lambda _: self._closing.pop(output, None))
        await asyncio.shield(closing)

    async def _write_anew(self, output: str, store: DeadLetters, progress: Progress, *, how: str) -> None:
        try:
            await asyncio.to_thread(close_replay, store, progress)
        except LettersChanged:
            await self._give_up(output, store, progress)
            return
        store.made_room()
        self._ended[output] = {**_said(progress), "ended": how}
        log.info(
            "replay of dead letters of %s to %s %s: %d events taken, %d refused again", output, progress.to, how,
            progress.replayed, progress.refused,
        )  # fmt: skip

    async def _end(self, task: "asyncio.Task[None] | None") -> None:
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _record(self, kind: str, **fields: object) -> None:
        try:
            await asyncio.to_thread(lambda: self._audit.record(kind, **fields))
        except OSError as error:
            log.error("the audit trail cannot be written: %s", in_words(error), extra=messages.AUDIT_UNWRITTEN)


def orphan(directory: Path, output: str) -> DeadLetters:
    """Letters that no output adds to."""
    return DeadLetters(directory, output=output, max_bytes=_NO_LIMIT, clock=lambda: 0.0)


def purge_file(store: DeadLetters, wanted: Wanted, *, end: int, inode: int) -> int:
    """Remove the wanted letters before `end` of the file with this inode; how many events.

    Blocks; raises OSError, LettersChanged.
    """

    def fits(file: BinaryIO) -> bool:
        status = os.fstat(file.fileno())
        return status.st_ino == inode and status.st_size >= end

    def leaves(offset: int, line: bytes) -> Letter | None:
        letter = parse(offset, line)
        return letter if wanted(letter) else None

    return rewrite(store, leaves, end=end, fits=fits)


def close_replay(store: DeadLetters, progress: Progress) -> None:
    """Remove what a replay has sent, and its progress. Blocks; raises OSError, LettersChanged."""
    if progress.gone_bytes:
        rewrite(store, progress.leaves(), end=progress.at, fits=progress.fits)
    forget(store.path)
    store.gone_bytes = 0


def _said(progress: Progress) -> dict[str, Any]:
    return {
        "to": progress.to,
        "wanted": progress.wanted,
        "replayed": progress.replayed,
        "refused": progress.refused,
        "done_bytes": progress.at,
        "of_bytes": progress.end,
    }


def _count(store: DeadLetters, gone_events: int) -> None:
    with store.still() as path:
        end = path.stat().st_size if path.exists() else 0
        since = store.appended_events - store.left_events
    store.first_events = count_events(store.path, end) - gone_events - since


def _begin(store: DeadLetters, target: str, wanted: Wanted) -> Progress:
    """A replay of what there is now, saved unless there is nothing. Blocks; raises OSError."""
    try:
        with store.path.open("rb") as file:
            progress = Progress.begun(file, to=target, wanted=wanted.plain())
    except FileNotFoundError:
        return Progress(target, wanted.plain(), end=0, mark="")
    if progress.end:
        progress.save(store.path)
    return progress
