"""Log lines as entries of systemd's journal, with fields, in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

MESSAGE is the sentence that a terminal would show, not JSON: `journalctl -u ndcollector` is read by people at three in
the morning. What machines need stands beside it in fields of its own (`journalctl -o json`): PRIORITY, MESSAGE_ID with
its explanation (`journalctl -x`), CODE_FILE, CODE_LINE, CODE_FUNC, LOGGER, and as ND_… everything that the line was
given: ND_INPUT, ND_OUTPUT and ND_ORIGIN say whose line it is, so that `journalctl ND_OUTPUT=siem` finds all about that
output.

Promises: `emit` never waits. What journald does not take at once (its queue is full, or it restarts) is kept, up to
MAX_WAITING entries, and sent soon after; what finds no room is counted, and the count is told. Entries are bounded; one
that is too large for a datagram goes through a sealed memory file. Refuses: being used where stderr is not the journal.
"""

import errno
import fcntl
import logging
import os
import socket
import struct
import sys
import termios
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ndagent.core.log import PRIORITIES, as_json, fields_of, sentence

assert sys.platform != "win32"  # noqa: S101 - log.py imports it only where stderr is the journal

MAX_MESSAGE_BYTES = 64 * 1024
MAX_FIELD_BYTES = 8 * 1024
MAX_FIELDS = 64
MAX_WAITING = 256
AGAIN_SECONDS = 0.2
LAST_SECONDS = 1.0
"""At the end of the process: how long journald has to take what still waits."""
LINGER_SECONDS = 0.05
"""From receiving an entry to having looked up its sender; a thousandth of it does, on a machine that has time."""

_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_ORIGINS = ("origin", "peer", "agent_id", "address")
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_INPUT_MODULES = frozenset(
    {
        "tls_listener", "tcp_listener", "batcher", "datagram_intake", "flow_intake", "poll_intake", "trap_intake",
        "slowing",
    }
)  # fmt: skip
"""Parts of the core that log under an input's name; the others there do under an output's."""

Entry = bytes


class JournalHandler(logging.Handler):
    """Sends to the socket at `path`; `program` is SYSLOG_IDENTIFIER.

    `inputs` and `outputs` are the names of those that are configured, which are their loggers' names too.
    """

    def __init__(self, program: str, *, path: str) -> None:
        super().__init__()
        self.inputs: frozenset[str] = frozenset()
        self.outputs: frozenset[str] = frozenset()
        self._program = program
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._waiting: deque[Entry] = deque()
        self._lost = 0
        self._timer: threading.Timer | None = None
        self._closed = False

    def emit(self, record: logging.LogRecord) -> None:
        """See the module."""
        try:
            self._put(pack(self._fields(record)))
        except Exception:  # noqa: BLE001 - as logging does it: a line that cannot be formatted ends nobody's work
            self.handleError(record)

    def close(self) -> None:
        """Give journald a last chance to take what waits."""
        self.acquire()
        try:
            if not self._closed:
                self._closed = True
                if self._timer is not None:
                    self._timer.cancel()
                self._socket.settimeout(LAST_SECONDS)
                self._send_waiting()
                self._linger()
                self._socket.close()
        finally:
            self.release()
        super().close()

    # ---- sending; the handler's lock is held

    def _put(self, entry: Entry) -> None:
        self._send_waiting()
        if self._waiting or not self._send(entry):
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(entry)
            else:
                self._lost += 1
            self._later()

    def _send_waiting(self) -> None:
        while self._waiting:
            if not self._send(self._waiting[0]):
                return
            self._waiting.popleft()
        if self._lost:
            text = f"log: {self._lost} lines are lost: journald did not take them in time"
            fields = {"MESSAGE": text, "PRIORITY": "4", "SYSLOG_IDENTIFIER": self._program}
            if self._send(pack(fields.items())):
                self._lost = 0

    def _send(self, entry: Entry) -> bool:
        """Whether journald has it."""
        try:
            self._socket.sendto(entry, self._path)
        except OSError as error:
            return error.errno in _TOO_LARGE and self._send_file(entry)
        return True

    def _send_file(self, entry: Entry) -> bool:
        fd = os.memfd_create("log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(fd, entry)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)  # journald reads no file that may change under it
            self._socket.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))], 0, self._path)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def _linger(self) -> None:
        """Wait until journald has looked at what was sent: whose it is stands in /proc for as long as we live only.

        Without this the reason why a start failed would be in no unit's journal.
        """
        deadline = time.monotonic() + LAST_SECONDS
        unread = array("i", [0])
        while time.monotonic() < deadline:
            fcntl.ioctl(self._socket, termios.TIOCOUTQ, unread)  # bytes that the other side has not received
            if not unread[0]:
                break
            time.sleep(LINGER_SECONDS / 10)
        time.sleep(LINGER_SECONDS)

    def _later(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = threading.Timer(AGAIN_SECONDS, self._again)
            self._timer.daemon = True
            self._timer.start()

    def _again(self) -> None:
        self.acquire()
        try:
            self._timer = None
            if not self._closed:
                self._send_waiting()
                if self._waiting or self._lost:
                    self._later()
        finally:
            self.release()

    # ---- what stands in an entry

    def _fields(self, record: logging.LogRecord) -> Iterator[tuple[str, str]]:
        text = sentence(record)
        if record.exc_info:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        yield "MESSAGE", _cut(text, MAX_MESSAGE_BYTES)
        yield "PRIORITY", str(PRIORITIES.get(record.levelno, 6))
        yield "SYSLOG_IDENTIFIER", self._program
        yield "LOGGER", record.name
        yield "CODE_FILE", record.pathname
        yield "CODE_LINE", str(record.lineno)
        yield "CODE_FUNC", record.funcName or ""
        given = fields_of(record)
        if "message_id" in given:
            yield "MESSAGE_ID", str(given.pop("message_id"))
        yield from self._whose(record, given)
        for key, value in list(given.items())[:MAX_FIELDS]:
            name = f"ND_{key.upper()}"
            if len(name) <= 64 and _NAME_CHARACTERS.issuperset(name):
                yield name, _cut(_text(value), MAX_FIELD_BYTES)

    def _whose(self, record: logging.LogRecord, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """ND_INPUT, ND_OUTPUT and ND_ORIGIN, where the line has none of its own."""
        known = dict.fromkeys(_text(given[key]) for key in _ORIGINS if given.get(key))
        if "origin" in given:
            known.pop(_text(given["origin"]), None)
        for origin in known:  # a field may be there more than once, and is found by each
            yield "ND_ORIGIN", _cut(origin, MAX_FIELD_BYTES)
        if "input" in given or "output" in given:
            return
        name = record.name
        is_input, is_output = name in self.inputs, name in self.outputs
        if is_input and is_output:  # one name for both: who speaks?
            is_input = Path(record.pathname).parent.name == "inputs" or record.module in _INPUT_MODULES
            is_output = not is_input
        if is_input or is_output:
            yield "ND_INPUT" if is_input else "ND_OUTPUT", name


def pack(fields: Iterable[tuple[str, str]]) -> Entry:
    """Pairs of name and text as an entry; a value that holds a newline is written with its length."""
    parts: list[bytes] = []
    for name, value in fields:
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts += [name.encode(), b"\n", struct.pack("<Q", len(data)), data, b"\n"]
        else:
            parts += [name.encode(), b"=", data, b"\n"]
    return b"".join(parts)


def _text(value: object) -> str:
    return value if isinstance(value, str) else as_json(value)


def _cut(text: str, limit_bytes: int) -> str:
    if len(text) <= limit_bytes // 4:  # no character has more than four bytes
        return text
    return text.encode("utf-8", "backslashreplace")[:limit_bytes].decode("utf-8", "ignore")
