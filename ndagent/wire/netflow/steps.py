"""What the compiled twin does for one record, where Python goes through columns: a plan for one form of line.

Promises: a plan writes byte for byte what the makers of its parts would (tests/wire/test_netflow_twins.py runs both);
`plan_of` is None where a part or a column is not of those that the twin knows, and then the columns are gone through.
Refuses: records of variable length, and rates that differ from flow to flow.
"""

import re
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from ndagent.wire.netflow.template import Template
from ndagent.wire.netflow.values import IPV4, QUOTED_IPV4

_PLACE = re.compile(rb"%[bd]")


class Op(IntEnum):
    """What stands in a place of the line; `at` are the columns it is made of."""

    HEAD = 0
    OBSERVER = 1
    ABOUT = 2
    RATE = 3
    NUMBER = 4
    PRODUCT = 5  # of the number and the rate
    TEXT = 6  # `how` makes it of the value
    ADDRESS = 7
    QUOTED_ADDRESS = 8
    SPAN = 9  # start and end, Unix milliseconds
    UPTIME_SPAN = 10  # start and end, milliseconds of the exporter's uptime
    IDENTITY = 11  # Community ID; `how` makes those of protocols without ports
    CONSTANT = 12  # `how`


class Step(NamedTuple):
    """One place."""

    op: Op
    at: tuple[int, ...] = ()
    how: Any = None


class Shape(NamedTuple):
    """Where a column's value is in its record: `code` U, I or S: unsigned, signed, octets."""

    code: str
    offset: int
    length: int


class Plan(NamedTuple):
    """A whole line: pieces of text, between them steps."""

    pieces: list[bytes]
    steps: list[Step]
    columns: list[Shape]
    record_bytes: int


def plan_of(template: Template, text: bytes, steps: Sequence[Step | None]) -> Plan | None:
    """`text` has a place for each step, the head first."""
    columns = _columns(template)
    known = [_settled(step) for step in steps if step is not None]
    if not template.is_fixed or len(known) < len(steps) or not all(_can(step, columns) for step in known):
        return None
    return Plan(_PLACE.split(text), [Step(Op.HEAD), *known], columns, template.record_bytes)


def _settled(step: Step) -> Step:
    """Addresses need no table to be written from."""
    if step.op is Op.TEXT and step.how == IPV4.__getitem__:
        return Step(Op.ADDRESS, step.at)
    if step.op is Op.TEXT and step.how is QUOTED_IPV4:
        return Step(Op.QUOTED_ADDRESS, step.at)
    return step


def _can(step: Step, columns: Sequence[Shape]) -> bool:
    codes = [(columns[at].code, columns[at].length) for at in step.at]
    if step.op is Op.UPTIME_SPAN:
        return codes == [("U", 4)] * 2
    if step.op is Op.IDENTITY:
        return codes[:2] in ([("U", 4)] * 2, [("S", 16)] * 2) and all(code == "U" for code, _ in codes[2:])
    if step.op in (Op.PRODUCT, Op.SPAN):
        return all(code == "U" for code, _ in codes)
    return all(code in ("U", "I") or (code == "S" and step.op is Op.TEXT) for code, _ in codes)


def _columns(template: Template) -> list[Shape]:
    found, offset = [], 0
    for field, read in zip(template.fields, template.all_readings, strict=True):
        if not read.code.endswith("x"):
            found.append(Shape(_code(read.code, read.load), offset, field.length))
        offset += field.length
    return found


def _code(code: str, load: Callable[[bytes], int] | None) -> str:
    """Of struct's code; F: none that the twin reads."""
    if code.endswith("s"):
        if load is None:
            return "S"
        return "I" if load(b"\xff" * 2) < 0 else "U"
    if code in "fd":
        return "F"
    return "U" if code.isupper() else "I"
