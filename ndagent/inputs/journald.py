"""The systemd journal, from where it was last read, entry by entry.

Promises: an entry's place in the journal (its cursor) is in the spool record that has its event, so that a kill neither
loses nor repeats an entry; rotation, vacuuming and the move from /run to /var lose nothing that was still there; what
was not there any more is told (an event of kind pipeline_error), counted, and if its number is known, by how many.
What journald itself lost (rate limit, kernel messages) is counted too. Refuses: reading itself (loop protection:
`exclude_units`), other hosts' journals unless `directory` names them.

Read through journalctl (`--output=export --follow`), a child process, and not through a library in this one. Measured,
50 000 entries of 19 fields: journalctl 6 µs of CPU an entry and 0.9 MB of its own memory (8 MB with what it shares, and
what it has mapped of the journal on top); cysystemd 2.0.5 13 µs, ctypes on libsystemd 22 µs, both with 30 MB of mapped
journal in the agent's RSS. None lost an entry. In all an event costs 25 µs here. Three things decided: cysystemd gives
text, so bytes that are not UTF-8 are gone; a journal file that a failing disk cuts short is SIGBUS for whoever has it
mapped; and the host's journalctl always knows the host's journal format. The price is a second process, and that
journalctl must be there (it comes with journald).

Holes: the numbers in the cursors have none, so a hole is seen at once; therefore filters are applied here and not by
journalctl. Some versions of libsystemd pass over files that are rotated or vacuumed while they look (systemd issues 474
and 40053, pull request 43649), so a hole is read again first, and when it gets quiet the newest entry is compared with
what came. Only what is still missing then is told.
"""

import asyncio
import logging
import random
import shutil
import time
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from ndagent.core import messages
from ndagent.core.backoff import full_jitter
from ndagent.core.interfaces import Accept
from ndagent.core.log import Throttle
from ndagent.core.settings import ByteSize, ConfigPath, Kind, Settings, format_duration, parse_duration
from ndagent.inputs import InputContext
from ndagent.inputs.ecs_batch import base_fields, batch_of, timestamp
from ndagent.inputs.journald_choice import Choice
from ndagent.inputs.journald_cursor import Cursor
from ndagent.inputs.journald_event import event_line, gap_line, lost_at_source
from ndagent.inputs.journald_export import Entry
from ndagent.inputs.journald_reader import Journalctl, Query, first_entry
from ndagent.wire.ecs import SEVERITIES
from ndagent.wire.record import Checkpoint, Origin

_RETRY_SECONDS = (0.5, 30.0)  # first bound of the wait after journalctl ended, and the last
_FUTILE_SECONDS = 10.0
"""After a hole that stayed, none is read again for so long: who may not see all files sees holes everywhere."""
_QUIET_SECONDS = 2.0
"""After so long without an entry it is checked whether there is really none."""
_IDLE_SECONDS = 30.0
"""The same, once that was so: some 10 ms of CPU each time."""
_SUSPECT_SECONDS = 0.5
"""An entry that is there and does not come for so long is not coming."""
_NOTE_SECONDS = 10.0
"""How often the position is saved at most where only entries came that are not wanted, so that no event carries it."""


def _start(value: object) -> object:
    return value if value in ("beginning", "end") else parse_duration(value)


def _start_as_written(value: str | float) -> str:
    return value if isinstance(value, str) else format_duration(value)


Start = Annotated[
    Literal["beginning", "end"] | float,
    BeforeValidator(_start),
    PlainSerializer(_start_as_written, when_used="json"),
    Kind("beginning, end, or a duration (24h)"),
]


class Config(Settings):
    """Settings of a journald input."""

    type: Literal["journald"] = Field(default="journald", description="The systemd journal.")
    stream: Literal["security_events", "alerts", "metrics"] = Field(
        default="security_events", description="The stream that the events belong to."
    )
    start: Start = Field(
        default=86400.0,
        description="Where to begin when nothing was read yet: at the oldest entry, after the newest, or so far back.",
    )
    directory: ConfigPath | None = Field(
        default=None, description="Read the journal files below this directory; null means this host's own journal."
    )
    units: tuple[str, ...] = Field(
        default=(), description="Only entries of and about these units, as shell patterns; empty means all."
    )
    identifiers: tuple[str, ...] = Field(
        default=(), description="Only entries with one of these syslog identifiers; empty means all."
    )
    priority: Literal[SEVERITIES] | None = Field(  # type: ignore[valid-type]  # the tuple is the list of names
        default=None, description="Only entries at least so severe; null means all."
    )
    exclude_units: tuple[str, ...] = Field(
        default=("ndagent.service",),
        description="Entries of these units are left out. Keep the agent's own: what it says about an event would "
        "become an event.",
    )
    fields: Literal["ecs", "all"] = Field(
        default="ecs", description="Only fields that have an ECS name, or all, the others below `journald.`."
    )
    max_message_bytes: ByteSize = Field(
        default=65536, ge=480, le=16 * 2**20, description="A longer message or field is cut and tagged _truncated."
    )


def build(name: str, config: Config, context: InputContext) -> "Journald":
    """The input, not reading yet."""
    return Journald(name, config, context)


class _ReadAgainError(Exception):
    """A hole that may be one of this run of journalctl only."""


class Journald:
    """See the module."""

    def __init__(self, name: str, config: Config, context: InputContext) -> None:
        self._name = name
        self._config = config
        self._clock = context.clock
        self._checkpoints = context.checkpoints
        self._metrics = context.metrics
        self._log = logging.getLogger(name)
        self._throttle = Throttle(60.0, clock=time.monotonic)
        self._base = base_fields(context.host)
        self._origin = Origin(name, context.host.hostname, 0)
        self._choice = Choice(
            units=config.units,
            identifiers=config.identifiers,
            priority=None if config.priority is None else SEVERITIES.index(config.priority),
            exclude_units=config.exclude_units,
        )
        self._query = Query(shutil.which("journalctl") or "journalctl", config.directory)
        self._all_fields = config.fields == "all"
        self._last: Cursor | None = None  # the newest entry that was looked at in this run
        self._read_again: Cursor | None = None  # what is behind this one was read a second time
        self._futile_at = -_FUTILE_SECONDS
        self._saved: Cursor | None = None  # the position as it is kept
        self._noted_at = -_NOTE_SECONDS
        self._attempt = 0

    async def start(self) -> None:
        """Raise OSError where there is no journalctl, or not the directory."""
        if shutil.which(self._query.program) is None:
            raise FileNotFoundError(f"{self._query.program} is not installed; it comes with systemd-journald")
        directory = self._config.directory
        if directory is not None and not await asyncio.to_thread(directory.is_dir):
            raise NotADirectoryError(f"{directory} is no directory; `directory` names the one with the journal files")

    async def run(self, accept: Accept) -> None:
        """Read until cancelled; what the spool was being handed then is read again next time."""
        self._last = None
        options = await self._find_place(accept)
        while True:
            try:
                await self._catch_up(options, accept)
                if self._last is not None:
                    options = [f"--cursor={self._last.text}"]
                await self._follow(options, accept)
            except _ReadAgainError:
                pass
            except (OSError, ValueError) as error:  # no journalctl, or no words of one
                await self._wait_after(str(error))
            if self._last is not None:
                options = [f"--cursor={self._last.text}"]

    async def _wait_after(self, reason: str) -> None:
        silenced = self._throttle.allow(reason)
        if silenced is not None:
            self._log.warning("the journal is not being read: %s; trying again until it works", reason)
        initial, maximum = _RETRY_SECONDS
        wait = full_jitter(self._attempt, initial_seconds=initial, maximum_seconds=maximum, random=random.random)
        self._attempt += 1
        await asyncio.sleep(wait)

    async def _find_place(self, accept: Accept) -> list[str]:
        """Where to begin, as options of journalctl; tells of a hole between the last position and that."""
        while True:
            try:
                if self._last is None:
                    position = self._checkpoints.last(self._name)
                    if position is None:
                        return await self._first_place()
                    self._last = Cursor.parse(position.decode("utf-8", "replace"))
                return await self._place_after(self._last, accept)
            except OSError as error:
                await self._wait_after(str(error))
            except ValueError as error:
                self._log.warning("position of no use: %s; reading the journal from its beginning", error)
                return []

    async def _first_place(self) -> list[str]:
        start = self._config.start
        if isinstance(start, float):
            return [f"--since=@{self._clock() - start:.0f}"]
        if start == "beginning":
            return []
        newest = await first_entry(self._query.newest())
        if newest is None:
            return []
        self._last = newest
        position = Checkpoint(self._name, newest.text.encode())
        await self._checkpoints.note(position, stream=self._config.stream)  # or a restart would begin at another end
        return [f"--cursor={newest.text}"]

    async def _place_after(self, last: Cursor, accept: Accept) -> list[str]:
        first = await first_entry(self._query.at(last))
        if first is not None and (first.is_same_entry(last) or last.missing_before(first) is not None):
            return [f"--cursor={last.text}"]  # if there is a hole before it, that is seen when it is read
        await self._tell_gap(last, accept)
        self._last = None
        return [f"--cursor={first.text}"] if first is not None else []  # nothing as new as that: another journal

    async def _tell_gap(self, after: Cursor, accept: Accept) -> None:
        """The entry of the position is gone, and numbers do not tell how many with it."""
        now = self._clock()
        await self._hand_over([self._gap_line(after, None, now)], now, accept)

    def _gap_line(self, after: Cursor, missing: int | None, now: float) -> bytes:
        if self._throttle.allow("gap") is not None:
            self._log.error(
                "%s entries of the journal were gone before they were read; keep them longer (SystemMaxUse= in "
                "journald.conf), or see that this user may read all of the journal (group systemd-journal)",
                "some" if missing is None else missing, extra=messages.LINES_LOST,
            )
        self._count_lost("removed_from_journal", 1 if missing is None else missing)
        return gap_line(base=self._base, created=timestamp(now), after=after, missing=missing)

    def _count_lost(self, reason: str, events: int) -> None:
        self._metrics.received.labels(self._name).inc(events)
        self._metrics.count_drop(input=self._name, reason=reason, events=events)

    async def _catch_up(self, options: Sequence[str], accept: Accept) -> None:
        """All that is there: with --follow journalctl shows the newest boot's entries only, whatever the cursor says.

        Raises OSError where journalctl fails, _ReadAgainError at a hole.
        """
        command = self._query.showing(*options)
        async with Journalctl(command, max_message_bytes=self._config.max_message_bytes) as journal:
            while (found := await journal.read()) is not None:
                await self._take(*found, accept)
            if journal.status:
                raise OSError(f"journalctl ended with status {journal.status}: {journal.complaint}")

    async def _follow(self, options: Sequence[str], accept: Accept) -> None:
        """One run of journalctl; returns never: raises OSError when it ended, _ReadAgainError at a hole."""
        command = self._query.following(*options)
        async with Journalctl(command, max_message_bytes=self._config.max_message_bytes) as journal:
            quiet = _QUIET_SECONDS
            while True:
                try:
                    async with asyncio.timeout(quiet):
                        found = await journal.read()
                except TimeoutError:
                    quiet = await self._quiet(quiet)
                    continue
                if found is None:
                    complaint = journal.complaint or "it gave no reason"
                    raise OSError(f"journalctl ended with status {journal.status}: {complaint}")
                await self._take(*found, accept)
                quiet = _QUIET_SECONDS

    async def _quiet(self, waited: float) -> float:
        """Nothing came for so long: how long to wait on. Raises _ReadAgainError where something should have come."""
        await self._note_place()
        newest, last = await first_entry(self._query.newest()), self._last
        if newest is None or last is None or newest.is_same_entry(last):
            return _IDLE_SECONDS
        if waited != _SUSPECT_SECONDS:
            return _SUSPECT_SECONDS
        if self._may_read_again(last):
            raise _ReadAgainError
        return _IDLE_SECONDS

    async def _take(self, entries: Sequence[Entry], size: int, accept: Accept) -> None:
        self._metrics.received_bytes.labels(self._name).inc(size)
        now = self._clock()
        lines, again = self._lines(entries, now)
        if lines:
            await self._hand_over(lines, now, accept)
            self._attempt = 0
        else:
            await self._note_place()
        if again:
            raise _ReadAgainError

    async def _note_place(self) -> None:
        """Save the position that no event carries: what was not wanted would be searched again, and missed once it is
        vacuumed.
        """
        last, now = self._last, time.monotonic()
        if last is None or last == self._saved or now - self._noted_at < _NOTE_SECONDS:
            return
        self._noted_at = now
        await self._checkpoints.note(Checkpoint(self._name, last.text.encode()), stream=self._config.stream)
        self._saved = last

    def _lines(self, entries: Sequence[Entry], now: float) -> tuple[list[bytes], bool]:
        """Events of the entries, up to a hole that is to be read again (True)."""
        lines: list[bytes] = []
        created = timestamp(now)
        for entry in entries:
            cursor = Cursor.parse(entry.text(b"__CURSOR"))
            last = self._last
            if last is not None:
                if cursor.is_same_entry(last):
                    continue
                missing = last.missing_before(cursor)
                if missing and self._may_read_again(last):
                    return lines, True
                if missing:
                    lines.append(self._gap_line(last, missing, now))
            self._last = cursor
            self._note(entry)
            if not self._choice.takes(entry):
                continue
            lines.append(event_line(entry, base=self._base, created=created, all_fields=self._all_fields))
        return lines, False

    def _may_read_again(self, last: Cursor) -> bool:
        """Whether to look a second time for what is missing after this entry; it helps, or it does not for a while."""
        now = time.monotonic()
        if self._read_again == last:
            self._futile_at = now
            return False
        if now - self._futile_at < _FUTILE_SECONDS:
            return False
        self._read_again = last
        return True

    def _note(self, entry: Entry) -> None:
        if entry.is_cut:
            self._metrics.truncated.labels(self._name).inc()
        lost = lost_at_source(entry)
        if lost is not None:
            self._count_lost(*lost)

    async def _hand_over(self, lines: Sequence[bytes], now: float, accept: Accept) -> None:
        last = self._last
        position = last.text.encode() if last is not None else None
        await accept(
            batch_of(
                lines,
                origin=self._origin,
                received_at_ns=int(now * 1e9),
                stream=self._config.stream,
                position=position,
            )
        )
        self._saved = last
        self._metrics.received.labels(self._name).inc(len(lines))
