"""What becomes of bytes in a segment that are not a whole record: kept for a person, counted, said once.

Promises: each damaged place is copied to `quarantine/` once, whoever meets it (recovery or any cursor), within
`max_bytes` for all copies; a copy is whole and durable or not there, for the segment goes once every cursor has passed
it; the first one of a segment is an ERROR with path and remedy. Safe from any thread.
Refuses: moving cursors. They count what they skip when they pass it.
"""

import logging
import threading
from contextlib import suppress
from pathlib import Path

from ndagent.core import messages
from ndagent.core.metrics import Metrics
from ndagent.core.spool.files import Files, write_all
from ndagent.core.spool.scan import WINDOW_BYTES, Damage, Segment, Window

log = logging.getLogger(__name__)

_REMEMBERED = 10_000
"""Places remembered to stay silent about; past that a place may be counted twice, never skipped twice."""


class Quarantine:
    """One per spool."""

    def __init__(self, files: Files, directory: Path, *, stream: str, max_bytes: int, metrics: Metrics) -> None:
        self._files = files
        self._directory = directory
        self._stream = stream
        self._max_bytes = max_bytes
        self._counter = metrics.spool_damaged.labels(stream)
        self._lock = threading.Lock()
        self._seen: set[tuple[str, int]] = set()

    def report(self, segment: Segment, damage: Damage) -> None:
        """Keep a copy, count and log; does nothing for a place that was reported before."""
        with self._lock:
            key = (segment.path.name, damage.offset)
            if key in self._seen:
                return
            first = all(name != segment.path.name for name, _ in self._seen)
            if len(self._seen) < _REMEMBERED:
                self._seen.add(key)
            self._counter.inc()
            kept = self._keep(segment, damage)
        log.log(
            logging.ERROR if first else logging.DEBUG,
            "spool %s: damage at byte %d of %s, events from %d%s are skipped: %s; %s. "
            "Check the disk (dmesg, smartctl); `spool verify` lists everything that is damaged",
            self._stream,
            damage.offset,
            segment.path,
            damage.sequence,
            "" if damage.end is None else f" to {damage.end - 1}",
            damage.reason,
            kept,
            extra=messages.SPOOL_DAMAGED,
        )

    def _keep(self, segment: Segment, damage: Damage) -> str:
        if not damage.length:
            return "there is nothing to keep"
        target = self._directory / f"{segment.path.name}.{damage.offset}"
        try:
            self._files.make_directory(self._directory)
            names = self._files.listdir(self._directory)
            sizes = {name: self._files.size(self._directory / name) for name in names}
            if sizes.get(target.name, -1) >= damage.length:
                return f"the bytes are kept in {target}"
            if target.name in sizes:  # a kill came amid the copy
                self._files.unlink(target)
                del sizes[target.name]
            used = sum(sizes.values())
            if used + damage.length > self._max_bytes:
                return f"the bytes are not kept: {self._directory} is full (spool.quarantine_bytes)"
            self._copy(segment.path, damage, target)
        except OSError as error:
            return f"the bytes could not be kept: {error}"
        return f"the bytes are kept in {target}"

    def _copy(self, source: Path, damage: Damage, target: Path) -> None:
        read_fd = self._files.open_read(source)
        try:
            write_fd = self._files.create(target)
            try:
                self._fill(write_fd, Window(self._files, read_fd, damage.offset + damage.length, WINDOW_BYTES), damage)
            except OSError:
                with suppress(OSError):
                    self._files.unlink(target)
                raise
            finally:
                self._files.close(write_fd)
            self._files.fsync_dir(self._directory)
        finally:
            self._files.close(read_fd)

    def _fill(self, write_fd: int, window: Window, damage: Damage) -> None:
        for done in range(0, damage.length, WINDOW_BYTES):
            piece = bytes(window.at(damage.offset + done, min(WINDOW_BYTES, damage.length - done)))
            write_all(self._files, write_fd, [piece], done)
        self._files.fdatasync(write_fd)
