"""The audit log of Linux (auditd's audit.log), its lines joined into one event per serial.

Promises: every line is in exactly one event, also across kill -9, rotation and restarts; lines that cannot be read are
events tagged _parse_failure; what a rotation lost is told as the file input tells it. Refuses: reading from the kernel
(auditd owns the netlink socket, and a second reader would miss what auditd has), rules (auditctl's business).

It is the file input (files, rotation, positions) with a joiner behind it. The checkpoint has both: how far the files
were read, and the lines of events that are still open there. So a restart opens those again and reads no line twice,
whatever was delivered in between, and also if the file that they stood in is gone by now. The lines are few: an open
event is some records that wait for their last one, `max_open_bytes` at most.

The parts: wire/auditd.py (lines), wire/auditd_join.py (events), wire/auditd_ecs.py and auditd_actions.py (meaning).
"""

import asyncio
import contextlib
import dataclasses
from base64 import b64decode
from collections.abc import AsyncIterator, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import msgpack
import orjson
from pydantic import Field

from ndagent.core.interfaces import Accept
from ndagent.core.progress import Signs
from ndagent.core.settings import ByteSize, ConfigPath, Duration, Settings
from ndagent.inputs import InputContext, Positions, file
from ndagent.inputs.ecs_batch import base_fields, batch_of, timestamp
from ndagent.inputs.file_reader import Round
from ndagent.wire.auditd_ecs import event_line
from ndagent.wire.auditd_join import Joined, Joiner
from ndagent.wire.record import Batch, Checkpoint, Origin

OPEN_PART = b"auditd: open lines"
"""The part of the checkpoint beside those of the files, whose keys are shorter."""
SAVE_SECONDS = 1.0
"""Lines that are only in open events are read again after a crash, unless they are older than this."""
INLINE_LINES = 64
"""So few lines are joined on the loop (1 ms); more of them in a thread."""


class Config(Settings):
    """Settings of an auditd input."""

    type: Literal["auditd"] = Field(default="auditd", description="The audit log of Linux, as auditd writes it.")
    paths: tuple[ConfigPath, ...] = Field(
        default=(Path("/var/log/audit/audit.log"),),
        min_length=1,
        description="Files or globs, as for the file input; rotated files are followed by themselves.",
    )
    start: Literal["beginning", "end"] = Field(
        default="beginning", description="Where files begin that are there at the very first start."
    )
    keep_original: bool = Field(default=False, description="Put the lines as they were into event.original.")
    timeout: Duration = Field(
        default=2.0, gt=0, le=600, description="An event whose end does not come is whole after so long."
    )
    max_open_events: int = Field(
        default=1000, ge=1, le=100_000, description="Events open at a time; beyond that the oldest goes out as it is."
    )
    max_open_bytes: ByteSize = Field(
        default=256 * 2**10, ge=2**14, le=16 * 2**20, description="Lines of open events, all together; likewise."
    )
    max_line_bytes: ByteSize = Field(
        default=65536, ge=8970, le=2**20, description="A longer line is cut. (The kernel writes 8970 bytes at most.)"
    )
    watch: Literal["auto", "poll"] = Field(
        default="auto", description="auto: by inotify, by polling where that is not possible; poll: always."
    )
    poll_interval: Duration = Field(default=1.0, ge=0.05, description="How often to look where inotify does not tell.")
    scan_interval: Duration = Field(default=10.0, ge=0.05, description="How often to look for new files all the same.")

    def files(self) -> file.Config:
        """The settings of the file input within."""
        return file.Config(
            paths=self.paths,
            start=self.start,
            max_line_bytes=self.max_line_bytes,
            watch=self.watch,
            poll_interval=self.poll_interval,
            scan_interval=self.scan_interval,
        )


def build(name: str, config: Config, context: InputContext) -> "Auditd":
    """The input, not reading yet."""
    return Auditd(name, config, context)


class _Files(file.FileInput):
    """Counts everything but events: what it calls events are lines, of which the joiner makes fewer."""

    def _count(self, result: Round) -> None:
        super()._count(dataclasses.replace(result, lines=[]))


class _FilePositions:
    """The checkpoints as the file input is to see them: without the open lines, and never saved without those."""

    def __init__(self, positions: Positions, auditd: "Auditd") -> None:
        self._positions = positions
        self._auditd = auditd

    def last(self, input_name: str) -> bytes | None:
        """See Positions."""
        return self._positions.last(input_name)

    def parts(self, input_name: str) -> Mapping[bytes, bytes]:
        """See Positions."""
        return {key: part for key, part in self._positions.parts(input_name).items() if key != OPEN_PART}

    async def note(self, checkpoint: Checkpoint, *, stream: str) -> None:
        """See Positions."""
        await self._auditd.note(checkpoint, stream=stream)


class Auditd:
    """See the module."""

    def __init__(self, name: str, config: Config, context: InputContext) -> None:
        self._name = name
        self._config = config
        self._clock = context.clock
        self._checkpoints = context.checkpoints
        self._received = context.metrics.received.labels(name)
        self._origin = Origin(name, context.host.hostname, 0)
        self._base = base_fields(context.host)
        inner = dataclasses.replace(context, checkpoints=_FilePositions(context.checkpoints, self))
        self._files = _Files(name, config.files(), inner)
        self._turn = asyncio.Lock()  # one batch after the other, whoever makes it
        self._begin()

    def _begin(self) -> None:
        config = self._config
        self._joiner = Joiner(
            timeout_seconds=config.timeout,
            max_open_events=config.max_open_events,
            max_open_bytes=config.max_open_bytes,
        )
        self._path = str(config.paths[0])
        self._read: dict[bytes, bytes] = {}  # positions of lines that are only in open events so far
        self._is_broken = False  # joined events were not taken: from here on positions would pass them

    def signs(self) -> Signs:
        """See core/progress.py."""
        return self._files.signs()

    def trouble(self) -> str:
        """See the file input."""
        return self._files.trouble()

    async def start(self) -> None:
        """Nothing to open: a file that is not there yet is no fault."""
        await self._files.start()

    async def run(self, accept: Accept) -> None:
        """Follow and join until cancelled; begins where the last durable batch ended."""
        self._begin()
        kept = self._checkpoints.parts(self._name).get(OPEN_PART)
        early = self._joiner.add(_unpack(kept), self._now()) if kept else []

        async def take(batch: Batch) -> None:
            await self._take(batch, accept)

        if early:  # the limits are lower than they were
            await self._hand_over([self._line(one, timestamp(self._clock())) for one in early], accept)
        reading = asyncio.create_task(self._files.run(take), name=f"{self._name}: files")
        expiring = asyncio.create_task(self._expire(accept), name=f"{self._name}: open events")
        try:
            done, _ = await asyncio.wait({reading, expiring}, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:  # neither ends by itself but by an error
                ended.result()
        finally:
            reading.cancel()
            expiring.cancel()
            await asyncio.wait({reading, expiring})

    async def note(self, checkpoint: Checkpoint, *, stream: str) -> None:
        """Save positions that no batch carries, together with the lines that are open at them."""
        async with self._alone():
            await self._save({**self._read, **_parts(checkpoint)}, stream)

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One at a time, and none after one that failed: `run` has to begin anew."""
        async with self._turn:
            if self._is_broken:
                raise RuntimeError("the batch before was not taken")
            try:
                yield
            except BaseException:
                self._is_broken = True
                raise

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _take(self, batch: Batch, accept: Accept) -> None:
        """Lines of files to events; returns when what became whole is durable."""
        created = timestamp(batch.received_at_ns / 1e9)
        async with self._alone():
            if batch.count > INLINE_LINES:
                lines = await asyncio.to_thread(self._join, batch, created, self._joiner, self._now())
            else:
                lines = self._join(batch, created, self._joiner, self._now())
            self._read |= _parts(batch.checkpoint)
            await self._hand_over(lines, accept)

    async def _expire(self, accept: Accept) -> None:
        """Now and then: events whose end does not come, and the positions of lines that wait for theirs."""
        while True:
            await asyncio.sleep(min(self._config.timeout / 2, SAVE_SECONDS))
            async with self._alone():
                created = timestamp(self._clock())
                lines = [self._line(one, created) for one in self._joiner.expire(self._now())]
                await self._hand_over(lines, accept)
                if self._read:
                    await self._save(self._read, file.STREAM)

    async def _save(self, parts: Mapping[bytes, bytes], stream: str) -> None:
        position = {**parts, OPEN_PART: _pack(self._joiner.open_lines)}
        await self._checkpoints.note(Checkpoint(self._name, position), stream=stream)
        self._read = {}

    async def _hand_over(self, lines: list[bytes], accept: Accept) -> None:
        """Without lines nothing is durable yet: a crash reads again what is only in open events."""
        if not lines:
            return
        position = {**self._read, OPEN_PART: _pack(self._joiner.open_lines)}
        received_at_ns = int(self._clock() * 1e9)
        await accept(batch_of(lines, origin=self._origin, received_at_ns=received_at_ns, position=position))
        self._read = {}
        self._received.inc(len(lines))

    def _join(self, batch: Batch, created: str, joiner: Joiner, now: float) -> list[bytes]:
        """What became whole by these lines, and what the file input itself has to tell, as it is.

        The joiner comes in: a thread may outlive the run that began it, and must not touch the next one's.
        """
        found: list[bytes] = []
        events = ((orjson.loads(line), line) for line in b"".join(batch.payload).splitlines(keepends=True))
        for (path, is_line), group in groupby(events, key=_kind):
            if is_line:
                self._path = path
                done = joiner.add((_raw(event) for event, _ in group), now)
                found += [self._line(one, created) for one in done]
            else:
                found += [line for _, line in group]
        return found

    def _line(self, joined: Joined, created: str) -> bytes:
        base = {**self._base, "log": {"file": {"path": self._path}}}
        return event_line(joined, base=base, created=created, keep_original=self._config.keep_original)


def _kind(pair: tuple[dict[str, Any], bytes]) -> tuple[str, bool]:
    """The file of a file input's event, and whether the event is a line of it."""
    event = pair[0]
    return event["log"]["file"]["path"], event["event"]["kind"] == "event"


def _raw(event: dict[str, Any]) -> bytes:
    """The line as it was."""
    exact = event["event"].get("original_base64")
    message: str = event["message"]
    return b64decode(exact) if exact is not None else message.encode()


def _parts(checkpoint: Checkpoint | None) -> Mapping[bytes, bytes]:
    """The parts of a file input's position; it has no other."""
    return checkpoint.position if checkpoint is not None and isinstance(checkpoint.position, Mapping) else {}


def _pack(lines: Iterable[bytes]) -> bytes:
    """b"" for none: an empty part is a forgotten one."""
    kept = list(lines)
    return bytes(msgpack.packb(kept)) if kept else b""


def _unpack(part: bytes) -> list[bytes]:
    lines: list[bytes] = msgpack.unpackb(part)
    return lines
