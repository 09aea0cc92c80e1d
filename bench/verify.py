"""Looks at what arrived: every message once, in the order in which its connection sent it.

Promises: reads the output once, counts whole lines, and names what is missing, doubled, or out of order by the numbers
that payload.py put into the messages. A line may be JSON of any shape; the number stands in it as it was sent.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_NUMBER = re.compile(rb'"n(\d{5})-(\d{9})')
_CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Arrived:
    """What an output file holds, against what was sent."""

    lines: int
    size_bytes: int
    missing: int
    duplicates: int
    out_of_order: int
    finished: float  # Unix time of the last write

    @property
    def complete(self) -> bool:
        """Nothing lost; doubles and order are judged apart."""
        return self.missing == 0


class Follower:
    """Reads a growing file of lines; keeps per connection what came so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        self.lines = 0
        self.out_of_order = 0
        self.seen: dict[int, bytearray] = {}
        self._last: dict[int, int] = {}

    def read(self) -> None:
        """Take in what was appended since."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while data := file.read(_CHUNK_BYTES):
                self._offset += len(data)
                whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
                self.lines += whole.count(b"\n") + len(newline)
                self._take(whole)

    def _take(self, lines: bytes) -> None:
        last = self._last
        for connection_text, number_text in _NUMBER.findall(lines):
            connection, number = int(connection_text), int(number_text)
            if number <= last.get(connection, -1):
                self.out_of_order += 1
            last[connection] = number
            seen = self.seen.get(connection)
            if seen is None:
                seen = self.seen[connection] = bytearray()
            if number >= len(seen):
                seen.extend(bytes(number + 1 - len(seen)))
            seen[number] = min(seen[number] + 1, 255)

    def arrived(self, sent: Mapping[int, int]) -> Arrived:
        """The verdict; `sent` is how many messages each connection sent."""
        missing = duplicates = 0
        for connection, count in sent.items():
            seen = self.seen.get(connection, bytearray())
            missing += count - (len(seen) - seen.count(0))
            duplicates += sum(seen) - (len(seen) - seen.count(0))
        status = self._path.stat()
        return Arrived(self.lines, status.st_size, missing, duplicates, self.out_of_order, status.st_mtime)


def wait_until_quiet(path: Path, *, quiet_seconds: float = 1.5, timeout_seconds: float = 120) -> None:
    """Wait until the file has stopped growing; its modification time then says when the last line was written."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if path.exists() and path.stat().st_size and time.time() - path.stat().st_mtime > quiet_seconds:
            return
        time.sleep(0.1)
