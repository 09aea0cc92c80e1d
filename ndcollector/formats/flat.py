"""Flat JSON: one level, dotted keys, for receivers that know no nesting.

    {"host": {"name": "a"}, "tags": ["x"], "file": [{"path": "/b"}]}
    {"host.name": "a", "tags": ["x"], "file.0.path": "/b"}

Promises: objects are taken apart, as are lists that hold objects or lists (the position becomes a part of the key); a
list of plain values stays a list, an empty object is left out. What is nested deeper than MOST_LEVELS is JSON text: a
key repeats the path to it, so that depth would be paid for by each value below it.
A dot in a name is a step of a path, too. Where two paths make the same key, the one that is nested counts: what the
collector vouches for (event.id, agent.id) is nested, and no sender can write over it with `{"event.id": …}`.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from ndcollector.formats import FormatConfig
from ndcollector.formats.lines import Event, Render, as_json

MOST_LEVELS = 16


def make(config: FormatConfig) -> Render:
    """See the module."""
    separator = config.separator

    def render(event: Event, _line: bytes) -> bytes:
        flat: dict[str, Any] = {}
        _flatten(event, "", flat, separator, MOST_LEVELS)
        return orjson.dumps(flat)

    return render


def _flatten(value: Event | list[Any], path: str, flat: dict[str, Any], separator: str, levels: int) -> None:
    """Put what is inside under keys that begin with `path`."""
    for name, inside in _entries(value, separator) if type(value) is dict else enumerate(value):
        key = f"{path}{name}"
        kind = type(inside)
        if kind is not dict and (kind is not list or not _has_structure(inside)):
            flat[key] = inside
        elif levels > 1:
            _flatten(inside, key + separator, flat, separator, levels - 1)
        else:
            flat[key] = as_json(inside)


def _entries(value: Event, separator: str) -> Iterable[tuple[str, Any]]:
    """Those whose name is a path come first, so that nested ones write over them."""
    names = "".join(value)
    if "." not in names and separator not in names:
        return value.items()
    entries = [(name.replace(".", separator), inside) for name, inside in value.items()]
    return sorted(entries, key=lambda entry: -entry[0].count(separator))


def _has_structure(values: list[Any]) -> bool:
    return any(type(one) is dict or type(one) is list for one in values)
