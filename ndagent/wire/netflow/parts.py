"""What the parts of a line are made of: a format's text, and what goes through columns to fill its places.

Promises: nothing here knows a field. Refuses: reading, numbering, naming.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

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


class Part(NamedTuple):
    """A piece of the line's format and what fills its places."""

    text: bytes
    makers: tuple[Maker, ...]


def taken(at: int) -> Maker:
    """A column as it is."""
    return lambda columns, _: columns[at]


def mapped(at: int, how: Callable[[Any], Any]) -> Maker:
    """A column through a function."""
    return lambda columns, _: map(how, columns[at])


def observer(_columns: Sequence[Any], context: Context) -> Values:
    """What the context says of the exporter, for every record."""
    return repeat(context.observer)


def about(_columns: Sequence[Any], context: Context) -> Values:
    """What the context says of the export, for every record."""
    return repeat(context.about)
