"""The only code that writes to segments, and the one line where a byte becomes durable. Runs in the commit thread.

Promises: `commit` returns only after everything it was given is written and, unless the spool runs with
`durability: os` or `interval`, synced, with the name of a new file synced too. If it raises, nothing of it counts: the
same records can be given again.
After a failed write or sync the descriptor is never used again (the kernel may have marked lost pages clean, so that a
second fdatasync would succeed without having written them): the segment is cut at its last durable byte, and the next
commit begins a new one. Where even the cut fails, the new segment's base tells readers where the old one ends. A disk
that is merely full loses nothing: the part that was written is cut off and the descriptor stays.
Refuses: asyncio, retrying, deciding how much to write.
"""

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ndagent.core.spool.files import Files, write_all
from ndagent.core.spool.record import Entry
from ndagent.core.spool.scan import Segment
from ndagent.core.spool.segment import (
    FORMAT_VERSION,
    UNSYNCED,
    SegmentHeader,
    pack_segment_header,
    salt_of,
    segment_name,
)

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Writer:
    """Owns the descriptor of the segment that grows. One call at a time."""

    def __init__(
        self, files: Files, directory: Path, *, spool_id: bytes, durability: str, clock: Callable[[], float]
    ) -> None:
        self._files = files
        self._directory = directory
        self._spool_id = spool_id
        self._salt = salt_of(spool_id)
        self._durability = durability
        self._clock = clock
        self._fd = -1
        self._segment: Segment | None = None
        self._offset = 0
        self._fresh = False
        self._ended = False  # kept open only for what is acknowledged and not synced yet (`interval`)

    @property
    def closed(self) -> bool:
        """Whether the next commit begins a new segment whatever it is told."""
        return self._segment is None or self._ended

    def commit(self, entries: Sequence[Entry], rotate: bool, garbage: Sequence[Path]) -> tuple[Segment, int]:
        """Write the entries, whose sequences are set, as records; the segment and its new size. Raises OSError."""
        self.remove(garbage)
        if rotate or self._ended:
            self.close()
        pieces = [piece for entry in entries for piece in entry.seal(self._salt)]
        segment = self._segment or self._open(entries[0].sequence)
        if self._fresh:
            pieces.insert(0, self._header(segment))
        try:
            end = write_all(self._files, self._fd, pieces, self._offset)
        except OSError as error:
            self._take_back(segment, keep=error.errno in NO_SPACE)
            raise
        self._make_durable(segment)
        self._offset = end
        return segment, end

    def sync(self) -> None:
        """Make all that was written durable (`durability: interval`); after an OSError the next commit begins anew."""
        if self._segment is None:
            return
        try:
            self._files.fdatasync(self._fd)
        except OSError:
            self.close()
            raise

    def remove(self, paths: Sequence[Path], durably: bool = False) -> None:
        """Delete segments that nobody needs; one that stays is found and deleted at the next start."""
        for path in paths:
            with suppress(OSError):
                self._files.unlink(path)
        if durably:
            with suppress(OSError):
                self._files.fsync_dir(self._directory)

    def close(self) -> None:
        """Let go of the growing segment."""
        self._ended = False
        if self._segment is not None:
            self._files.close(self._fd)
            self._segment = None

    def _make_durable(self, segment: Segment) -> None:
        try:
            if self._durability == "fsync":
                self._files.fdatasync(self._fd)  # here the bytes become durable; nothing above is acknowledged
            if self._fresh:
                self._files.fsync_dir(self._directory)
        except OSError:
            self._take_back(segment, keep=False)
            raise
        self._fresh = False

    def _open(self, base: int) -> Segment:
        attempt = 0
        while True:
            path = self._directory / segment_name(base, attempt)
            try:
                self._fd = self._files.create(path)
            except FileExistsError:
                attempt += 1
                continue
            self._fresh, self._offset = True, 0
            self._segment = Segment(path, base, None, self._spool_id, 0, self._clock())
            return self._segment

    def _header(self, segment: Segment) -> bytes:
        flags = UNSYNCED if self._durability == "os" else 0
        created_at_ns = int(self._clock() * 1e9)
        header = SegmentHeader(FORMAT_VERSION, flags, self._spool_id, segment.base, created_at_ns)
        segment.header = header
        return pack_segment_header(header)

    def _take_back(self, segment: Segment, *, keep: bool) -> None:
        """Undo a commit that failed: the file ends at its last durable byte, or the next segment says that it does."""
        if self._fresh:
            with suppress(OSError):  # should its name stay, a later start must not take its records for events
                self._files.truncate(self._fd, 0)
            self.close()
            self.remove([segment.path])
            return
        try:
            self._files.truncate(self._fd, self._offset)
        except OSError:
            keep = False
        if not keep and self._durability == "interval":
            self._ended = True  # no sync of this descriptor has failed: what was written before still needs one
        elif not keep:
            self.close()
