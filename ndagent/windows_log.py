"""Where a service's words go on Windows: a file of its own, and the Application log of Event Viewer.

    LogFile           stands in for stderr, which a service has none of: the JSON lines of core/log.py, and tracebacks
    EventLogHandler   INFO and above, one event a line, source `ndagent`; its texts are ndagent_messages.dll's

Promises: the file and the ones before it stay below KEEP times MAX_BYTES; a disk or an event log that takes nothing
never stops the agent. Refuses: what stdio has besides writing.
"""

import io
import logging
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import pywintypes
import win32evtlog
import win32evtlogutil

from ndagent.core.log import printable

assert sys.platform == "win32"  # noqa: S101 - for mypy, which reads what follows with --platform win32 only

SOURCE = "ndagent"
MAX_BYTES, KEEP = 4 << 20, 4
_LONGEST_TEXT = 31_000
"""ReportEvent takes 31,839 characters."""
_INSERT = re.compile(r"%(?=\d)")
_KINDS = (
    (logging.ERROR, win32evtlog.EVENTLOG_ERROR_TYPE, 0xC0000003),
    (logging.WARNING, win32evtlog.EVENTLOG_WARNING_TYPE, 0x80000002),
    (logging.NOTSET, win32evtlog.EVENTLOG_INFORMATION_TYPE, 0x40000001),
)
"""From which level on, the event's type, its id (packaging/msi/messages.mc)."""


class LogFile(io.TextIOBase):
    """Text that is appended to a file, which makes way for a new one when it is large."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = self._open()
        self._leads_nowhere = False

    def write(self, text: str) -> int:
        """Append."""
        with suppress(OSError):
            data = text.encode("utf-8", "backslashreplace")
            if self._leads_nowhere:
                self._go_on()
            elif os.fstat(self._descriptor).st_size + len(data) > MAX_BYTES:
                self._turn()
            os.write(self._descriptor, data)
        return len(text)

    def fileno(self) -> int:
        """For faulthandler: the number stays when the file changes."""
        return self._descriptor

    def isatty(self) -> bool:
        """Never."""
        return False

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_BINARY | os.O_NOINHERIT
        return os.open(self._path, flags, 0o600)

    def _turn(self) -> None:
        """name.log → name.log.1 → … ; Windows renames no file that is open, so ours is closed first."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._descriptor, inheritable=False)
        os.close(null)
        self._leads_nowhere = True
        try:
            for number in range(KEEP - 1, 0, -1):
                older = self._path if number == 1 else self._path.with_suffix(f".log.{number - 1}")
                if older.exists():
                    older.replace(self._path.with_suffix(f".log.{number}"))
        except OSError:  # a reader that shares it with nobody: what it has of the file is cut off, in the end
            if self._path.stat().st_size > 2 * MAX_BYTES:
                os.truncate(self._path, 0)
        self._go_on()

    def _go_on(self) -> None:
        """Raises OSError: then the next line tries it again."""
        new = self._open()
        os.dup2(new, self._descriptor, inheritable=False)
        os.close(new)
        self._leads_nowhere = False


class EventLogHandler(logging.Handler):
    """See the module."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(_Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        """One event."""
        kind, number = next((kind, number) for level, kind, number in _KINDS if record.levelno >= level)
        try:
            win32evtlogutil.ReportEvent(SOURCE, number, eventType=kind, strings=[event_text(self.format(record))])
        except pywintypes.error:
            pass  # a full or disabled event log: the file has it too
        except Exception:  # noqa: BLE001 - as in logging: what is wrong with a message is no reason to end the agent
            self.handleError(record)


class _Formatter(logging.Formatter):
    """An event has its time and its level already; the other fields stand in the file."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.name.rpartition('.')[2]}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def event_text(text: str) -> str:
    """As an event can hold it: Event Viewer would take `%1` (the end of fe80::1%1) for a place to insert something."""
    return _INSERT.sub("%\u200b", "\n".join(map(printable, text.splitlines())))[:_LONGEST_TEXT]


def register_source(message_file: Path) -> None:
    """Make Event Viewer find our texts; needs Administrator. Raises pywintypes.error."""
    win32evtlogutil.AddSourceToRegistry(SOURCE, str(message_file), "Application")


def remove_source() -> None:
    """Undo `register_source`; fine if there is none."""
    with suppress(pywintypes.error):
        win32evtlogutil.RemoveSourceFromRegistry(SOURCE, "Application")
