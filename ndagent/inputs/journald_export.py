"""The Journal Export Format (`journalctl -o export`), incrementally: bytes in, whole entries out.

    NAME=text LF, or NAME LF u64le-length bytes LF where the value has line breaks, controls or is not UTF-8;
    an empty line ends an entry.  (systemd: JOURNAL_EXPORT_FORMATS)

Promises: fed in any pieces it gives the same entries, in linear time; a value is kept up to `max_value_bytes`, an entry
up to MAX_ENTRY_BYTES, and what is beyond is passed over without being held; such an entry is marked. Bytes that are no
export format raise BadExport. Refuses: I/O, meaning (journald_event.py).
"""

from typing import NamedTuple

MAX_ENTRY_BYTES = 4 * 2**20
"""Values kept of one entry; journald takes entries of gigabytes."""
MAX_FIELDS = 1024
"""journald's own limit (ENTRY_FIELD_COUNT_MAX)."""
_MAX_NAME_BYTES = 255
"""Names are 64 bytes at most (systemd.journal-fields(7)); addresses as __CURSOR are no longer."""


class BadExport(ValueError):
    """The bytes are no Journal Export Format: the program that writes them failed or is another one."""


class Entry(NamedTuple):
    """One journal entry; a field that occurs several times has its values in order."""

    fields: dict[bytes, bytes]
    repeated: dict[bytes, list[bytes]]  # all values of the fields that occur more than once
    is_cut: bool

    def text(self, name: bytes) -> str:
        """A field as text, "" where it is absent."""
        return self.fields.get(name, b"").decode("utf-8", "replace")


class ExportParser:
    """See the module."""

    def __init__(self, *, max_value_bytes: int) -> None:
        self._limit = max_value_bytes
        self._buffer = bytearray()
        self._at = 0  # what is before has been used
        self._searched = 0  # no line break between _at and here
        self._searched_end = 0  # nor an entry's end
        self._skip = 0  # bytes of a value to pass over
        self._in_long_line = False  # pass over everything up to the line break
        self._begin()

    def _begin(self) -> None:
        self._fields: dict[bytes, bytes] = {}
        self._repeated: dict[bytes, list[bytes]] = {}
        self._size = 0
        self._is_cut = False

    def feed(self, data: bytes) -> list[Entry]:
        """Entries that are whole now; raises BadExport."""
        self._buffer += data
        found: list[Entry] = []
        while self._whole_entry(found) or self._step(found):
            pass
        del self._buffer[: self._at]
        self._searched -= self._at
        self._searched_end -= self._at
        self._at = 0
        return found

    def _whole_entry(self, found: list[Entry]) -> bool:
        """The usual case, quickly: an entry of text fields only, all of it in the buffer."""
        if self._fields or self._skip or self._in_long_line:
            return False
        until = min(len(self._buffer), self._at + self._limit)
        end = self._buffer.find(b"\n\n", max(self._at, self._searched_end), until)
        if end < 0:
            self._searched_end = until - 1
            return False
        pairs = [line.partition(b"=") for line in bytes(self._buffer[self._at : end]).split(b"\n")]
        fields = {name: value for name, separator, value in pairs if separator}
        if len(fields) != len(pairs):  # something binary or repeated
            return False
        found.append(Entry(fields, {}, False))
        self._at = self._searched = end + 2
        return True

    def _step(self, found: list[Entry]) -> bool:
        """One field, or the end of an entry; whether there was enough for it."""
        buffer, at = self._buffer, self._at
        if self._skip:
            return self._pass_over()
        end = buffer.find(b"\n", max(at, self._searched))
        if self._in_long_line:
            self._at = self._searched = len(buffer) if end < 0 else end + 1
            self._in_long_line = end < 0
            return end >= 0
        if end < 0:
            return self._unfinished_line()
        line = bytes(buffer[at:end])
        if not line:
            if self._fields:
                found.append(Entry(self._fields, self._repeated, self._is_cut))
            self._begin()
            self._at = self._searched = end + 1
            return True
        name, separator, value = line.partition(b"=")
        if separator:
            self._keep(name, value)
            self._at = self._searched = end + 1
            return True
        return self._binary(name, end + 1)

    def _unfinished_line(self) -> bool:
        """Wait for the line's end, but hold no more of it than is kept."""
        self._searched = len(self._buffer)
        if len(self._buffer) - self._at <= self._limit + _MAX_NAME_BYTES + 1:
            return False
        name, separator, value = bytes(self._buffer[self._at :]).partition(b"=")
        if not separator:
            raise BadExport(f"a field's name of more than {_MAX_NAME_BYTES} bytes: {name[:40]!r}")
        self._keep(name, value)
        self._is_cut = True
        self._in_long_line = True
        self._at = len(self._buffer)
        return False

    def _binary(self, name: bytes, start: int) -> bool:
        """The name stood alone on its line: length, bytes, LF."""
        buffer = self._buffer
        if len(buffer) < start + 8:
            return False
        length = int.from_bytes(buffer[start : start + 8], "little")
        kept = min(length, self._limit)
        if len(buffer) < start + 8 + kept + 1:
            return False
        self._keep(name, bytes(buffer[start + 8 : start + 8 + kept]))
        self._at = self._searched = start + 8 + kept
        if length > kept:
            self._is_cut = True
        self._skip = length - kept + 1
        return self._pass_over()

    def _pass_over(self) -> bool:
        """The rest of a value, and its LF."""
        passed = min(self._skip, len(self._buffer) - self._at)
        self._skip -= passed
        self._at += passed
        self._searched = self._at
        if self._skip:
            return False
        if passed and self._buffer[self._at - 1] != 0x0A:
            raise BadExport("a value is longer than it said")
        return True

    def _keep(self, name: bytes, value: bytes) -> None:
        if not name or len(name) > _MAX_NAME_BYTES:
            raise BadExport(f"no name of a field: {name[:40]!r}")
        if len(value) > self._limit:
            value, self._is_cut = value[: self._limit], True
        self._size += len(name) + len(value)
        if self._size > MAX_ENTRY_BYTES or len(self._fields) >= MAX_FIELDS:
            self._is_cut = True
        elif name in self._fields:
            self._repeated.setdefault(name, [self._fields[name]]).append(value)
        else:
            self._fields[name] = value
