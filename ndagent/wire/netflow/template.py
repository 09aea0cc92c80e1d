"""Templates: the shape of records, and records of that shape as columns (RFC 3954 §5.2, RFC 7011 §3.4).

Promises: `columns` reads only what it is given, for any bytes; a record takes at least one byte, so their number is
bounded by the bytes. Refuses: templates that say otherwise (ValueError), elements without a byte (packets.py
leaves them out: NetFlow v9 could name thousands that cost nothing).
"""

import struct
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from ndagent.wire.netflow.elements import Element, element
from ndagent.wire.netflow.values import Reading, reading, variable_text

VARIABLE = 0xFFFF
"""RFC 7011 §7: the length of a field that has its length in the record."""
MAX_FIELDS = 512
"""Fields of one template; the longest of real exporters have about 100."""

Columns = Sequence[Sequence[object]]
"""The values of each field that is not padding, all records'."""


class Field(NamedTuple):
    """One field specifier."""

    enterprise: int  # IANA, SCOPE, or the vendor's number
    number: int
    length: int


class Records(NamedTuple):
    """What a data set held."""

    columns: Columns
    total: int
    is_whole: bool
    """False: a record's lengths lead out of the set; those before it are here."""


class Template:
    """The shape of the records of one set id; `scopes` of its fields are scope fields: 0 for flows."""

    def __init__(self, fields: Sequence[Field], *, scopes: int = 0) -> None:
        """Raises ValueError for a shape that no record can have."""
        if not 0 < len(fields) <= MAX_FIELDS:
            raise ValueError(f"a template of {len(fields)} fields; 1 to {MAX_FIELDS} are taken")
        if any(field.length == 0 for field in fields):
            raise ValueError("a field of no length")
        self.fields = tuple(fields)
        self.scopes = scopes
        self.record_bytes = sum(1 if field.length == VARIABLE else field.length for field in fields)
        """Of the shortest record."""

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Template) and (self.fields, self.scopes) == (other.fields, other.scopes)

    __hash__ = None  # type: ignore[assignment]  # compared, never looked up

    @cached_property
    def elements(self) -> list[Element]:
        """Of each column."""
        found = [element(field.enterprise, field.number) for field in self.fields]
        return [one for one, read in zip(found, self.all_readings, strict=True) if not read.code.endswith("x")]

    @cached_property
    def readings(self) -> list[Reading]:
        """Of each column."""
        return [read for read in self.all_readings if not read.code.endswith("x")]

    @cached_property
    def places(self) -> dict[tuple[int, int], int]:
        """Which column an element is in, where its value is one of its kind; the first, if it is there twice."""
        kept = [
            (field, read)
            for field, read in zip(self.fields, self.all_readings, strict=True)
            if not read.code.endswith("x")
        ]
        found: dict[tuple[int, int], int] = {}
        for at, (field, read) in enumerate(kept):
            if read.fits and field.length != VARIABLE:
                found.setdefault((field.enterprise, field.number), at)
        return found

    @cached_property
    def all_readings(self) -> list[Reading]:
        """Of each field, padding too."""
        found = []
        for enterprise, number, length in self.fields:
            kind = element(enterprise, number).kind
            found.append(Reading("s", variable_text(kind), fits=False) if length == VARIABLE else reading(kind, length))
        return found

    @cached_property
    def _struct(self) -> struct.Struct:
        return struct.Struct(">" + "".join(read.code for read in self.all_readings))

    @cached_property
    def _pieces(self) -> list[tuple[struct.Struct, bool]]:
        """Of records with variable fields: runs of fixed fields; True: a variable one follows."""
        pieces, codes = [], ""
        for field, read in zip(self.fields, self.all_readings, strict=True):
            if field.length == VARIABLE:
                pieces.append((struct.Struct(f">{codes}"), True))
                codes = ""
            else:
                codes += read.code
        return [*pieces, (struct.Struct(f">{codes}"), False)]

    @cached_property
    def is_fixed(self) -> bool:
        """All records have the same length."""
        return all(field.length != VARIABLE for field in self.fields)

    def columns(self, data: memoryview) -> Records:
        """All records in a set's content; what follows them is padding, shorter than any record (RFC 7011 §3.3.1)."""
        if self.is_fixed:
            count, is_whole = len(data) // self.record_bytes, True
            rows: Sequence[tuple[object, ...]] = list(self._struct.iter_unpack(data[: count * self.record_bytes]))
        else:
            rows, is_whole = self._walk(data)
            count = len(rows)
        columns: list[Sequence[object]] = list(zip(*rows, strict=True)) if rows else []
        for at, read in enumerate(self.readings if columns else ()):
            if read.load is not None:
                columns[at] = [read.load(value) for value in columns[at]]  # type: ignore[arg-type]  # its code gives bytes
        return Records(columns, count, is_whole)

    def _walk(self, data: memoryview) -> tuple[list[tuple[object, ...]], bool]:
        rows: list[tuple[object, ...]] = []
        at = 0
        while len(data) - at >= self.record_bytes:
            found: list[object] = []
            end = self._record(data, at, found)
            if end is None:
                return rows, False
            rows.append(tuple(found))
            at = end
        return rows, True

    def _record(self, data: memoryview, at: int, found: list[object]) -> int | None:
        """Where the record ends; None where its lengths lead outside."""
        for fixed, is_followed in self._pieces:
            if at + fixed.size > len(data):
                return None
            found += fixed.unpack_from(data, at)
            at += fixed.size
            if not is_followed:
                break
            span = _span(data, at)
            if span is None:
                return None
            start, at = span
            found.append(bytes(data[start:at]))
        return at


def _span(data: memoryview, at: int) -> tuple[int, int] | None:
    """Start and end of a variable field (RFC 7011 §7: one octet of length, or 255 and two more)."""
    if at >= len(data):
        return None
    length, start = data[at], at + 1
    if length == 255:
        if at + 3 > len(data):
            return None
        length, start = int.from_bytes(data[at + 1 : at + 3]), at + 3
    return (start, start + length) if start + length <= len(data) else None


def names(template: Template) -> list[bytes]:
    """JSON keys of the columns: the elements' names, a repeated one numbered.

    The header's domain stands beside them: an element of that name (149, a usual scope) is its second.
    """
    seen = {"observationDomainId": 1}
    found = []
    for name, _ in template.elements:
        seen[name] = seen.get(name, 0) + 1
        found.append((name if seen[name] == 1 else f"{name}_{seen[name]}").encode())
    return found
