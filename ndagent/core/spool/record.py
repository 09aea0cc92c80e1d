"""A record on its way in (Entry) and on its way out (Record)."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from ndagent.core.spool.scan import Segment
from ndagent.core.spool.segment import RECORD_HEADER_BYTES, RecordHeader, crc32, pack_record_header
from ndagent.wire.record import Section

JOIN_BYTES = 64 * 1024
"""Below this one copy costs less than more pieces in the writev and more calls for the CRC."""


class Record(NamedTuple):
    """A whole record: `count` events from `sequence` on, their bytes as `wire.record.unpack_body` takes them.

    `spool_id` belongs to the events' ids; it differs from the spool's own only for records older than its last change.
    """

    sequence: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    received_at_ns: int
    body: bytes | memoryview
    spool_id: str

    @property
    def end(self) -> int:
        """The sequence after the last event."""
        return self.sequence + self.count


class Entry:
    """A batch that waits for its commit, then stays for readers at the tip."""

    __slots__ = (
        "_record", "count", "done", "end_offset", "length", "pieces", "received_at_ns", "sections", "segment",
        "sequence",
    )  # fmt: skip

    def __init__(self, pieces: Sequence[bytes], *, count: int, received_at_ns: int) -> None:
        self.pieces = pieces
        self.length = RECORD_HEADER_BYTES + sum(map(len, pieces))
        self.count = count
        self.received_at_ns = received_at_ns
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sequence = -1
        self.segment: Segment | None = None
        self.end_offset = 0
        self.sections: Sequence[Section] = ()  # for a witness (Spool.witness), who lets go of them
        self._record: Record | None = None

    def seal(self, salt: int) -> Sequence[bytes]:
        """The record's bytes, header first; `sequence` must be set. Runs in the commit thread."""
        length = self.length - RECORD_HEADER_BYTES
        if length <= JOIN_BYTES:
            self.pieces = (b"".join(self.pieces),)
        crc = 0
        for piece in self.pieces:
            crc = crc32(piece, crc)
        header = RecordHeader(length, crc, self.sequence, self.count, self.received_at_ns)
        return (pack_record_header(header, salt), *self.pieces)

    def record(self, spool_id: str) -> Record:
        """The record for readers, its pieces joined once for all of them."""
        if self._record is None:
            body = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
            self.pieces = (body,)
            self._record = Record(self.sequence, self.count, self.received_at_ns, body, spool_id)
        return self._record
