"""Logs for people at three in the morning: entries of the journal, readable lines on a terminal, JSON anywhere else.

Where stderr is the journal, lines go to its own socket with all their fields (journal.py). Where that cannot be had
they are JSON on stderr with their priority, so that `journalctl -p warning` finds what matters there too.

Promises: levels by consequence (ERROR = data lost or a person needed, WARNING = recovered, INFO = state change), fields
given as `extra={...}` appear in both forms, control characters never reach the terminal, and `Throttle` keeps a hostile
peer from filling the journal. Refuses: logging per event.
"""

import json
import logging
import math
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Level → syslog's severity."""
_CONTROLS = {code: f"\\x{code:02x}" for code in [*range(32), 127, *range(0x80, 0xA0)]}
_JOURNAL = "/run/systemd/journal/socket"
_REORDERING = [0x061C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""Line separators and bidirectional controls (Unicode UAX #9 §2): they make a line read other than it is."""
_CONTROLS |= {code: f"\\u{code:04x}" for code in _REORDERING}


def printable(text: str) -> str:
    """Text with control characters escaped, safe to write to a terminal."""
    return text.translate(_CONTROLS)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What the line was given besides its text."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def sentence(record: logging.LogRecord) -> str:
    """Who speaks, the text and what was given, on one line that no terminal obeys; a message's identity is no text."""
    given = fields_of(record)
    given.pop("message_id", None)
    extra = "".join(f"  {key}={printable(str(value))}" for key, value in given.items())
    return f"{record.name.rpartition('.')[2]}: {printable(record.getMessage())}{extra}"


def as_json(value: object) -> str:
    """JSON of anything; what it cannot say, as half a surrogate pair (in file names that are no UTF-8), is escaped.

    A line must not be lost for what it speaks of.
    """
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:
        text = json.dumps(value, default=str, ensure_ascii=False)
        return "".join(f"\\\\u{ord(one):04x}" if "\ud800" <= one <= "\udfff" else one for one in text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; an exception becomes the field `exception`."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return as_json(line)


class JournalFormatter(JsonFormatter):
    """JSON behind a priority that journald takes off again (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """`<3>{"time": …}`."""
        return f"<{PRIORITIES.get(record.levelno, 6)}>{super().format(record)}"


class ReadableFormatter(logging.Formatter):
    """`12:03:04 WARNING syslog_tls: message  key=value …` for terminals."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line (plus a traceback where there is one)."""
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{clock} {record.levelname:<7} {sentence(record)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(level: str = "INFO", *, program: str = "") -> None:
    """Send everything where whoever started this process reads it; `program` is its name in the journal."""
    handler = handler_for(os.environ, program)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it reports every change it looks at


def name_plugs(*, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Say which loggers are inputs' and outputs', as it is from now on; only the journal asks."""
    for handler in logging.getLogger().handlers:
        if hasattr(handler, "inputs"):
            handler.inputs, handler.outputs = frozenset(inputs), frozenset(outputs)  # type: ignore[attr-defined]


def handler_for(environ: Mapping[str, str], program: str, *, journal: str = _JOURNAL) -> logging.Handler:
    """What suits whoever is at the other end of stderr; `environ` is where systemd says that it is journald."""
    if sys.platform != "win32" and _is_journal(environ) and Path(journal).exists():
        from ndagent.core.journal import JournalHandler  # late: no other place has one

        return JournalHandler(program, path=journal)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter_for(environ))
    return handler


def formatter_for(environ: Mapping[str, str]) -> logging.Formatter:
    """The form of lines on stderr."""
    if sys.stderr.isatty():
        return ReadableFormatter()
    return JournalFormatter() if _is_journal(environ) else JsonFormatter()


def _is_journal(environ: Mapping[str, str]) -> bool:
    """Whether systemd connected stderr to journald, and nobody redirected it since (systemd.exec(5))."""
    if "JOURNAL_STREAM" not in environ:
        return False
    status = os.fstat(sys.stderr.fileno())
    return environ["JOURNAL_STREAM"] == f"{status.st_dev}:{status.st_ino}"


class Throttle:
    """Lets each key through once per `seconds`, and at most `max_keys` + 1 lines in that time whoever asks.

    `allow` returns None for "stay silent", else how many times the key was silenced since it was last let through.
    Keys that come while `max_keys` others were let through within `seconds` share one turn: ten thousand addresses must
    not fill the journal either, and what they are silenced for is told with that one's next line.
    """

    def __init__(self, seconds: float, *, max_keys: int = 256, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._max_keys = max_keys
        self._clock = clock
        self._seen: OrderedDict[object, tuple[float, int]] = OrderedDict()  # the longest ago first
        self._others = (-math.inf, 0)

    def allow(self, key: object) -> int | None:
        """Whether to speak about this key now, and what was left unsaid."""
        now = self._clock()
        if key not in self._seen and len(self._seen) >= self._max_keys:
            oldest = next(iter(self._seen))
            if now - self._seen[oldest][0] < self._seconds:
                silenced, self._others = self._turn(self._others, now)
                return silenced
            del self._seen[oldest]
        silenced, self._seen[key] = self._turn(self._seen.get(key, (-math.inf, 0)), now)
        if silenced is not None:
            self._seen.move_to_end(key)
        return silenced

    def _turn(self, entry: tuple[float, int], now: float) -> tuple[int | None, tuple[float, int]]:
        last, silenced = entry
        return (silenced, (now, 0)) if now - last >= self._seconds else (None, (last, silenced + 1))
