"""Where each input had read to, as durable as the lines it read: after a kill -9 none is read again and none skipped.

An input puts its position into the batch (`Batch.checkpoint`), so that both stand in one spool record or in none. This
keeps the newest position of every input in memory and, at most every second, in a small file; after a crash the records
behind the file's mark say the rest.

Promises
    1. What `last` and `parts` give is the position in the newest durable record of that input, no more and no less.
    2. The file is replaced whole (written aside, synced, renamed) and never says more than the spool has durable.
    3. No record behind the file's mark is deleted: the spool holds its segments (`Spool.hold`) until a save passed
       them. Only a full disk overrides that, as it overrides the replay window; then a crash may bring lines twice.
    4. Start-up costs the records of about one second.
Refuses: understanding positions; an input that spreads its checkpoints over several streams: its newest one's counts,
and what an earlier stream knows of it is forgotten (`stream:` was changed).

The mark is a sequence below every record whose checkpoint is not in the file. Records at or above it may be in the file
already: applying a checkpoint again changes nothing, because all that follow it are applied again too.

File `<state_dir>/checkpoints/<stream>.checkpoint`: 8 B magic, u32le CRC-32 of the rest, msgpack [spool id, mark,
{input: position}]; a position is bytes or a map of parts. The magic ends in the format's number and a line feed.
"""

import asyncio
import logging
import re
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgpack

from ndagent.core import messages
from ndagent.core.interfaces import Accept
from ndagent.core.log import Throttle
from ndagent.core.spool import SpoolClosed, UnknownFormat
from ndagent.core.spool.files import Files, OsFiles, replace_whole
from ndagent.core.spool.offline import records
from ndagent.core.spool.record import Record
from ndagent.core.spool.scan import NO_LIMIT, list_segments
from ndagent.core.spool.segment import crc32, spool_id_text
from ndagent.core.spool.spool import Spool
from ndagent.core.waiting import to_its_end
from ndagent.wire.record import Batch, Checkpoint, CorruptBody, unpack_body

log = logging.getLogger(__name__)

SAVE_EVERY_SECONDS = 1.0
MAX_INPUTS = 1024
"""Inputs remembered per stream, removed ones included; beyond that the one heard of longest ago is forgotten."""
_FORMAT = 1
_MAGIC = b"NDckpt%d\n" % _FORMAT
_ANY_MAGIC = re.compile(rb"NDckpt(\d)\n")
_CRC = struct.Struct("<I")

Position = bytes | dict[bytes, bytes]


class _Saved(NamedTuple):
    spool_id: str
    mark: int
    table: dict[str, Position]


class _Log:
    """The positions that travel through one stream's spool."""

    def __init__(self, stream: str, path: Path, table: dict[str, Position]) -> None:
        self.stream = stream
        self.path = path
        self.table = table
        self.spool: Spool | None = None
        self.in_flight: list[int] = []
        self.dirty = False
        self.saving = asyncio.Lock()

    def apply(self, checkpoint: Checkpoint) -> None:
        """Take up a position; the input's place in the table says when it was heard of."""
        name, position = checkpoint
        known = self.table.pop(name, None)
        if isinstance(position, Mapping):
            merged = {**known, **position} if isinstance(known, dict) else dict(position)
            self.table[name] = {key: part for key, part in merged.items() if part}
        else:
            self.table[name] = position
        if len(self.table) > MAX_INPUTS:
            del self.table[next(iter(self.table))]
        self.dirty = True

    def snapshot(self) -> _Saved:
        """What a save writes: the table, and the sequence below which all records are in it."""
        assert self.spool is not None  # noqa: S101 - nothing is saved before `attach`
        mark = min([self.spool.next_sequence, *self.in_flight])
        return _Saved(spool_id_text(self.spool.identity), mark, self.table)


class Checkpoints:
    """One per process: `recover`, open the spools, `attach`, wrap `accept`, keep `run` running, `aclose`."""

    def __init__(self, directory: Path, logs: dict[str, _Log], files: Files, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._logs = logs
        self._files = files
        self._changed = asyncio.Event()
        self._throttle = Throttle(60.0, clock=clock)

    @classmethod
    async def recover(
        cls, state_dir: Path, *, files: Files | None = None, clock: Callable[[], float] = time.monotonic
    ) -> "Checkpoints":
        """Read the files and the records behind their marks. Call it before the spools are opened: that may trim them.

        Raises OSError where the state directory cannot be read or written, UnknownFormat for a later version's file.
        """
        files = files or OsFiles()
        found = await asyncio.to_thread(_recover, files, state_dir)
        logs = {stream: _Log(stream, _path(state_dir, stream), table) for stream, table in found.items()}
        return cls(state_dir / "checkpoints", logs, files, clock)

    async def attach(self, spools: Mapping[str, Spool]) -> None:
        """The spools that batches go to, freshly opened: from here on their records are held until a save."""
        for stream, spool in spools.items():
            log_of = self._logs.setdefault(stream, _Log(stream, self._directory / f"{stream}.checkpoint", {}))
            log_of.spool = spool
            spool.hold(spool.next_sequence)
            if log_of.table:
                await self._save(log_of)  # sequences may go on elsewhere than the old mark thinks

    def last(self, input_name: str) -> bytes | None:
        """The newest durable position of an input whose position is one; None if there is none."""
        found = [one.table[input_name] for one in self._logs.values() if input_name in one.table]
        return next((position for position in found if isinstance(position, bytes)), None)

    def parts(self, input_name: str) -> dict[bytes, bytes]:
        """The newest durable parts of an input's position; empty if there are none."""
        found: dict[bytes, bytes] = {}
        for one in self._logs.values():
            position = one.table.get(input_name)
            found |= position if isinstance(position, dict) else {}
        return found

    async def note(self, checkpoint: Checkpoint, *, stream: str) -> None:
        """Take up a position that no batch carries (nothing was read, or nothing worth an event), durable on return.

        A disk that refuses is said in the log, once a minute, and tried again with the next save.
        """
        self._apply(self._logs[stream], checkpoint)
        await self._save(self._logs[stream])

    def accept(self, accept: Accept) -> Accept:
        """`accept`, taking up each batch's checkpoint once the batch is durable.

        A cancel waits for the batch under way, so that nobody starts again at a position that is already passed; a
        second cancel cuts that wait.
        """

        async def accept_and_remember(batch: Batch) -> None:
            log_of = self._logs[batch.stream]
            if batch.checkpoint is None:
                await accept(batch)
                return self._take_up(log_of, None)  # the mark moves on, else its records would be held for ever
            mark = log_of.spool.next_sequence if log_of.spool else 0
            log_of.in_flight.append(mark)
            try:
                await _see_through(accept, batch, lambda: self._take_up(log_of, batch.checkpoint))
            finally:
                log_of.in_flight.remove(mark)

        return accept_and_remember

    async def run(self) -> None:
        """Save what changed, at most every second, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for one in [one for one in self._logs.values() if one.dirty]:
                await self._save(one)
            await asyncio.sleep(SAVE_EVERY_SECONDS)

    async def aclose(self) -> None:
        """Save the rest; call it when inputs have stopped and the spools are still open."""
        for one in [one for one in self._logs.values() if one.dirty]:
            await self._save(one)

    def _take_up(self, log_of: _Log, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self._apply(log_of, checkpoint)
        log_of.dirty = True
        self._changed.set()

    def _apply(self, log_of: _Log, checkpoint: Checkpoint) -> None:
        log_of.apply(checkpoint)
        for other in self._logs.values():
            if other is not log_of and other.table.pop(checkpoint.input, None) is not None:
                other.dirty = True
                self._changed.set()

    async def _save(self, log_of: _Log) -> None:
        async with log_of.saving:
            if (spool := log_of.spool) is None:
                return
            saved, until = log_of.snapshot(), spool.next_sequence
            data = _pack(saved)
            log_of.dirty = False
            try:
                if until > spool.readable:  # `durability: interval`: never say more than the spool would after a cut
                    await spool.wait_readable(until - 1)
                await to_its_end(asyncio.to_thread(replace_whole, self._files, log_of.path, data))
            except (OSError, SpoolClosed) as error:
                log_of.dirty = True
                self._changed.set()
                if self._throttle.allow(log_of.path) is not None:
                    log.error(
                        "%s cannot be saved: %s; it is tried again, and nothing is lost. After a crash the start reads "
                        "more of the spool instead. Check the disk", log_of.path, error, extra=messages.DISK_FAILED,
                    )
                return
            spool.hold(saved.mark)


async def _see_through(accept: Accept, batch: Batch, then: Callable[[], None]) -> None:
    """Accept, and do `then` if it succeeded, also where we are cancelled in between."""
    task = asyncio.ensure_future(accept(batch))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.cancelled():
            await task  # a second cancel goes through to it
            then()
        raise
    then()


def _path(state_dir: Path, stream: str) -> Path:
    return state_dir / "checkpoints" / f"{stream}.checkpoint"


def _recover(files: Files, state_dir: Path) -> dict[str, dict[str, Position]]:
    streams = {path.name for path in _directories(state_dir / "spool")}
    streams |= {Path(name).stem for name in files.listdir(state_dir / "checkpoints") if name.endswith(".checkpoint")}
    files.make_directory(state_dir / "checkpoints")
    return {stream: _recover_stream(files, state_dir, stream) for stream in sorted(streams)}


def _directories(root: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return [path for path in root.iterdir() if path.is_dir() and path.name != "lost+found"]
    return []


def _recover_stream(files: Files, state_dir: Path, stream: str) -> dict[str, Position]:
    """The table of one stream, saved anew if records said more than the file."""
    path, directory = _path(state_dir, stream), state_dir / "spool" / stream
    saved = _load(files, path)
    ids = {spool_id_text(segment.spool_id) for segment in list_segments(files, directory) if segment.spool_id}
    mark = saved.mark if saved.spool_id in ids else 0  # another spool's sequences: everything in this one counts
    collected = _Log(stream, path, saved.table)
    for item in records(directory, mark, NO_LIMIT, files):
        if not isinstance(item, Record):  # damaged: its input reads those lines again
            continue
        with suppress(CorruptBody):
            if (checkpoint := unpack_body(item.body).checkpoint) is not None:
                collected.apply(checkpoint)
                saved = saved._replace(spool_id=item.spool_id, mark=item.end)
    if collected.dirty:
        replace_whole(files, path, _pack(saved._replace(table=collected.table)))
    return collected.table


def _pack(saved: _Saved) -> bytes:
    body = msgpack.packb(list(saved))
    return _MAGIC + _CRC.pack(crc32(body)) + bytes(body)


def _load(files: Files, path: Path) -> _Saved:
    """What the file says; one that is not there, or not whole, says nothing and the spool alone counts."""
    nothing = _Saved("", 0, {})
    try:
        fd = files.open_read(path)
    except FileNotFoundError:
        return nothing
    try:
        data = files.pread(fd, files.size(path), 0)
    finally:
        files.close(fd)
    known = _ANY_MAGIC.match(data)
    if known is not None and int(known[1]) > _FORMAT:
        raise UnknownFormat(path, what="checkpoint", found=int(known[1]), known=_FORMAT)
    body = data[len(_MAGIC) + _CRC.size :]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : -len(body) or None] != _CRC.pack(crc32(body)):
        log.error(
            "%s is damaged; inputs go on where the spool's records say, and those that have none there begin as if new "
            "(lines may come twice). Check the disk (dmesg, smartctl)", path,
        )
        return nothing
    spool_id, mark, table = msgpack.unpackb(body)
    return _Saved(spool_id, mark, table)
