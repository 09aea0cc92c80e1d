"""What the parts of a line are made of: a format's text, and what goes through columns to fill its places.

Promises: nothing here knows a field; a maker may say by which step the compiled twin does the same for one record.
Refuses: reading, numbering, naming.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

from ndagent.wire.netflow.steps import Op, Step

Values = Iterable[Any]
Maker = Callable[[Sequence[Any], "Context"], Values]
"""Columns and context to the values of one place in the line, one for each record."""


class Context(NamedTuple):
    """What the records of one data set share."""

    head: bytes
    """The line up to the inside of `event`."""
    observer: bytes
    """Members of `observer`."""
    about: bytes
    """Members of `netflow` that are not of the record."""
    export_us: int
    uptime_ms: int | None = None
    """The exporter's, at `export_us`; IPFIX headers do not say it."""
    boot_us: int | None = None
    """When the exporter's uptime began, where an IPFIX exporter said it (systemInitTimeMilliseconds)."""
    rates: Mapping[int | None, int] = {}
    """Packets for each that was looked at, by sampler; None: where a flow names no sampler."""
    rate: int = 1
    """That of the header (NetFlow v5)."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """A maker that the compiled twin has a step for."""

    make: Maker
    step: Step

    def __call__(self, columns: Sequence[Any], context: Context) -> Values:
        return self.make(columns, context)


class Part(NamedTuple):
    """A piece of the line's format and what fills its places."""

    text: bytes
    makers: tuple[Maker, ...]


def taken(at: int) -> Maker:
    """A column as it is."""
    return Stepped(lambda columns, _: columns[at], Step(Op.NUMBER, (at,)))


def mapped(at: int, how: Callable[[Any], Any]) -> Maker:
    """A column through a function."""
    return Stepped(lambda columns, _: map(how, columns[at]), Step(Op.TEXT, (at,), how))


def constant(text: bytes) -> Maker:
    """The same for every record."""
    return Stepped(lambda _columns, _context: repeat(text), Step(Op.CONSTANT, how=text))


observer = Stepped(lambda _, context: repeat(context.observer), Step(Op.OBSERVER))
"""What the context says of the exporter, for every record."""
about = Stepped(lambda _, context: repeat(context.about), Step(Op.ABOUT))
"""What the context says of the export, for every record."""
