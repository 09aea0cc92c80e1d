"""The newest records in memory, so that an output that keeps up costs no read and no CRC.

Promises: bounded by `max_bytes`; holds only what readers may see; a sequence that is not here is in a segment file.
"""

from collections import OrderedDict
from collections.abc import Sequence

from ndagent.core.spool.reader import Place
from ndagent.core.spool.record import Entry, Record


class Tip:
    """Belongs to the loop thread."""

    def __init__(self, max_bytes: int, spool_id: str) -> None:
        self._max_bytes = max_bytes
        self._spool_id = spool_id
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._bytes = 0

    def add(self, entries: Sequence[Entry]) -> None:
        """Records that were just committed, in order."""
        for entry in entries:
            self._entries[entry.sequence] = entry
            self._bytes += entry.length
        while self._bytes > self._max_bytes:
            self._bytes -= self._entries.popitem(last=False)[1].length

    def read(self, sequence: int, readable: int, max_bytes: int) -> list[Record]:
        """Records from exactly this sequence on, at least one if it is here and below `readable`."""
        records: list[Record] = []
        while sequence < readable and (entry := self._entries.get(sequence)) is not None:
            max_bytes -= entry.length
            if records and max_bytes < 0:
                break
            records.append(entry.record(self._spool_id))
            sequence += entry.count
        return records

    def place_behind(self, record: Record) -> Place | None:
        """Where the record after this one stands on disk, for a reader that falls behind."""
        entry = self._entries.get(record.sequence)
        return Place(entry.segment, entry.end_offset, record.end) if entry and entry.segment else None
