"""journalctl as a child process: its arguments, its output as entries, its end.

Promises: it is read in pieces of at most READ_BYTES, and while nobody reads, journalctl waits (the pipe is full); its
complaints are kept (`complaint`); leaving the context ends it and waits for it.
Refuses: positions, restarts (journald.py).
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ndagent.inputs.journald_cursor import Cursor
from ndagent.inputs.journald_export import Entry, ExportParser

READ_BYTES = 128 * 1024
"""Entries handed on together are what journalctl wrote meanwhile, at most so much."""
_END_SECONDS = 5.0
_COMPLAINT_BYTES = 1000


@dataclass(frozen=True)
class Query:
    """Which journal is read; None: this host's own."""

    program: str
    directory: Path | None

    def showing(self, *options: str) -> list[str]:
        """The command that shows entries in full."""
        place = [f"--directory={self.directory}"] if self.directory else []
        return [self.program, "--output=export", "--all", "--no-pager", *place, *options]

    def following(self, *options: str) -> list[str]:
        """The command that shows entries and waits for more.

        Without --no-tail it shows ten, also after a cursor; with --output-fields it needs three times the CPU.
        """
        return self.showing("--follow", "--no-tail", *options)

    def newest(self) -> list[str]:
        """The command that shows the newest entry, though not all of it."""
        return self.showing("--lines=1", "--output-fields=PRIORITY")

    def at(self, cursor: Cursor) -> list[str]:
        """The command that shows the entry at the cursor or what comes next, though not all of it."""
        return self.showing(f"--cursor={cursor.text}", "--output-fields=PRIORITY")


class Journalctl:
    """One run of journalctl; `async with` it."""

    def __init__(self, command: Sequence[str], *, max_message_bytes: int) -> None:
        self._command = command
        self._parser = ExportParser(max_value_bytes=max_message_bytes)
        self._complaint = b""

    @property
    def complaint(self) -> str:
        """The end of what it said on stderr, on one line."""
        return " ".join(self._complaint.decode("utf-8", "replace").split())

    async def __aenter__(self) -> Self:
        """Start it; raises OSError."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=READ_BYTES,
            env={**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
        )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # Not terminate(): that polls, and whoever polls first takes the status from asyncio's watcher.
                os.kill(self._process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        finally:
            self._listening.cancel()
            await asyncio.wait({self._listening})
            self._process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - no public way (bpo-114177)

    async def read(self) -> tuple[list[Entry], int] | None:
        """Entries that came, maybe none yet, and how many bytes; None once it has ended. Raises BadExport."""
        stdout = self._process.stdout
        data = await stdout.read(READ_BYTES) if stdout else b""
        if data:
            return self._parser.feed(data), len(data)
        await self._process.wait()
        await asyncio.wait({self._listening}, timeout=1)
        return None

    @property
    def status(self) -> int | None:
        """Its exit status once it has ended."""
        return self._process.returncode

    async def _listen(self) -> None:
        stderr = self._process.stderr
        while stderr and (data := await stderr.read(4096)):
            self._complaint = (self._complaint + data)[-_COMPLAINT_BYTES:]


async def first_entry(command: Sequence[str]) -> Cursor | None:
    """Where the first entry that the command shows stands; None if it shows none. Raises OSError if it fails."""
    async with Journalctl(command, max_message_bytes=4096) as journal:
        while (found := await journal.read()) is not None:
            for entry in found[0]:
                return Cursor.parse(entry.text(b"__CURSOR"))
        if journal.status:
            raise OSError(f"{command[0]} ended with status {journal.status}: {journal.complaint}")
    return None
