"""The `file` output: events as JSON lines in files, rotated, compressed, and whole after any crash.

Promises:
  * when send() returns the lines stand in their file, for every reader to see; nothing waits in this process;
  * when sync() returns they survive a loss of power (fdatasync, and fsync of directories with new names);
  * no event twice in a file after a restart, clean or not, and no half line: see file_writer.py. With a `format` other
    than ecs a line does not say which event it is: after a crash the last second's events may stand there twice;
  * any trouble with the disk is Unavailable, with the path and what to do; the data waits in the spool.
Refuses: rejecting an event. Retention of dated paths ({day} and the like) is left to the one who chose them: `keep`
counts the rotated files of one live file.

Writing, syncing and compressing have a thread each, so that neither a sync nor a large file to compress holds up
a write; sends are written in the order of their calls, however many are under way.
"""

import asyncio
import errno
import logging
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from ndagent.core.interfaces import Unavailable
from ndagent.core.settings import ByteSize, ConfigPath, Duration, SettingError, Settings
from ndagent.wire.record import EventBatch
from ndcollector.formats import FormatConfig
from ndcollector.outputs import OutputContext
from ndcollector.outputs.file_log import Disk
from ndcollector.outputs.file_path import PathTemplate, check_template
from ndcollector.outputs.file_recovery import ECS_LINES, ForeignFileError, LineShape
from ndcollector.outputs.file_rotation import Compression, tidy
from ndcollector.outputs.file_writer import FileWriter, WriterSettings
from ndcollector.private_tmp import emptied_at_stop
from ndcollector.routing.config import RoutedConfig

_REMEDIES = {
    errno.ENOSPC: "free some space; writing goes on by itself",
    errno.EDQUOT: "raise the quota; writing goes on by itself",
    errno.EACCES: "give the daemon's user write access to it (below /home and /root a unit with ProtectHome= has none)",
    errno.EPERM: "give the daemon's user write access to it",
    errno.EROFS: "systemd's unit keeps all but its own directories read-only: `systemctl edit` it, write [Service] and "
    "ReadWritePaths=DIRECTORY (which must be there), restart; or remount the file system for writing",
    errno.EIO: "check the disk (dmesg, smartctl)",
    errno.EMFILE: "lower max_open_files or raise the daemon's limit of open files",
}

_BEGINS = {"flat": b"{", "cef": b"C", "leef": b"L", "raw": b"<", "rfc5424": b"<"}
"""First bytes of the formats' lines."""

_Result = TypeVar("_Result")


def _check_path(path: Path) -> Path:
    check_template(str(path))
    return path


def _parse_mode(value: str) -> str:
    """Permission bits as people write them, "0640"; raises ValueError."""
    if not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError(f'{value!r} is not a mode; write permission bits in quotes, such as "0640"')
    return value


Mode = Annotated[str, AfterValidator(_parse_mode)]


class RotateConfig(Settings):
    """When a file is put aside as `<name>-<UTC time><suffix>` and a new one begun."""

    max_bytes: ByteSize | None = Field(
        default=None,
        gt=0,
        description="Largest size of a file; null means no limit. A longer event gets a file of its own.",
    )
    every: Duration | None = Field(
        default=None,
        gt=0,
        description="A new file for each such period (1d turns at midnight UTC), begun by its first event.",
    )
    keep: int = Field(
        default=10, ge=0, description="Rotated files kept beside each live file, the oldest are deleted; 0 keeps all."
    )
    compress: Compression | None = Field(default=None, description="Compress rotated files: gzip, zstd, or null.")


class Config(RoutedConfig):
    """Events as JSON lines in files."""

    type: Literal["file"] = "file"
    path: Annotated[ConfigPath, AfterValidator(_check_path)] = Field(
        description="May hold {stream}, {host} (made safe), {year} {month} {day} {hour} (when received, UTC)."
    )
    rotate: RotateConfig = RotateConfig()
    fsync: Literal["cursor", "send"] = Field(
        default="cursor",
        description="Force data to disk before a cursor is saved (a power cut's loss is sent again), or at each send.",
    )
    in_flight: int = Field(
        default=1,
        ge=1,
        le=1,
        description="Always 1: a file holds its events in order and skips those behind its end, so no later send may "
        "overtake one that failed.",
    )
    max_open_files: int = Field(
        default=64, ge=1, description="Files open at a time; with {host} the one unused longest is closed."
    )
    file_mode: Mode = Field(default="0640", description="Permissions of new files, in quotes.")
    dir_mode: Mode = Field(default="0750", description="Permissions of new directories, in quotes.")

    @model_validator(mode="after")
    def _finds_its_path(self) -> "Config":
        """What a path is made of has to stand in the line that goes there."""
        template = PathTemplate(str(self.path))
        is_text = self.format.name not in ("ecs", "flat") or self.format.syslog_header != "none"
        if template.by_date and (is_text or self.format.name == "flat"):
            wrong = "may hold {year} {month} {day} {hour} with format: ecs only; rotate.every begins new files by time"
            raise SettingError(("path",), wrong)
        if template.by_host and is_text:
            raise SettingError(("path",), "may hold {host} with format: ecs and flat only")
        return self


def build(name: str, config: Config, context: OutputContext) -> "FileOutput":
    """The output; touches no file before its first send."""
    emptied = emptied_at_stop(config.path)
    if emptied is not None:
        logging.getLogger(name).error(
            "%s: %s is private to this service and emptied each time it stops, and what was delivered there is lost "
            "then; choose another path, or `systemctl edit` the unit: [Service] PrivateTmp=no", config.path, emptied,
            extra={"output": name},  # a reload builds it before the journal knows its name
        )  # fmt: skip
    return FileOutput(name, config, clock=context.clock)


def _shape(form: FormatConfig) -> LineShape:
    """How lines of this format begin."""
    if form.name == "ecs" and form.syslog_header == "none":
        return ECS_LINES
    begins = b"<" if form.syslog_header != "none" else _BEGINS[form.name]
    return LineShape(begins, is_numbered=False, may_be_anything=form.name == "raw")


class FileOutput:
    """See the module. `disk` is where tests make system calls fail."""

    def __init__(self, name: str, config: Config, *, clock: Callable[[], float], disk: Disk | None = None) -> None:
        self._rotate = config.rotate
        self._path = str(config.path.absolute())
        self._stop = Event()
        settings = WriterSettings(
            template=PathTemplate(self._path),
            max_bytes=config.rotate.max_bytes,
            every_seconds=config.rotate.every,
            max_open_files=config.max_open_files,
            file_mode=int(config.file_mode, 8),
            dir_mode=int(config.dir_mode, 8),
            sync_each_send=config.fsync == "send",
            shape=_shape(config.format),
        )
        self._writer = FileWriter(settings, clock=clock, tidy=self._tidy_later, disk=disk)
        self._writing = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-write")
        self._syncing = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-sync")
        self._tidying = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-tidy")

    async def send(self, events: EventBatch) -> None:
        """Append the events; raises Unavailable. A cancelled send may still be written, and is not written twice."""
        await self._run(self._writing, lambda: self._writer.write(events))

    async def sync(self) -> None:
        """Make durable all that send() returned for; raises Unavailable."""
        await self._run(self._syncing, self._sync)

    async def aclose(self) -> None:
        """Finish the write under way, give up compressing (the next rotation takes it up), close the files."""
        self._stop.set()
        closing = ThreadPoolExecutor(1)  # not the loop's threads: with a dead file system this one may never end
        try:
            await asyncio.get_running_loop().run_in_executor(closing, self._close)
        finally:
            closing.shutdown(wait=False)

    def _close(self) -> None:
        for executor in (self._syncing, self._tidying, self._writing):
            executor.shutdown(cancel_futures=True)
        self._writer.close()

    def _sync(self) -> None:
        # All steps here and not in the coroutine: a sync that is cancelled half-way must not leak descriptors.
        pending = self._writing.submit(self._writer.begin_sync).result()
        pending.flush()
        self._writing.submit(self._writer.end_sync, pending).result()

    def _tidy_later(self, path: str) -> None:
        rotate = self._rotate
        if (rotate.max_bytes or rotate.every) and not self._stop.is_set():
            self._tidying.submit(tidy, path, compress=rotate.compress, keep=rotate.keep, stop=self._stop)

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
        try:
            future: Future[_Result] = executor.submit(work)
        except RuntimeError as error:  # shut down
            raise Unavailable(f"{self._path}: the output is closed") from error
        try:
            return await asyncio.wrap_future(future)
        except OSError as error:
            raise Unavailable(self._explain(error)) from error

    def _explain(self, error: OSError) -> str:
        path = error.filename or self._path
        if isinstance(error, ForeignFileError):
            return f"{path}: {error.strerror}"
        remedy = _REMEDIES.get(error.errno or 0, "writing is tried again by itself")
        return f"{path}: {error.strerror}; {remedy}"
