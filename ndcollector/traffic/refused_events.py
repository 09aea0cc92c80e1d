"""Which events of a request a far side refused, where its answer says so: a path into the answer's JSON.

    rejected                  {"rejected": [3, 17]}
    errors[].index            {"errors": [{"index": 3, "why": "…"}, {"index": 17}]}
    result.failed[].at        {"result": {"failed": [{"at": 3}]}}

Promises: an empty answer, or a field that is not there, refuses nothing; what is there but is no list of positions
raises ValueError that says so. Refuses: filters, wildcards over names, positions that count from 1.
"""

import re
from collections.abc import Iterator
from typing import Any

import orjson

_STEP = re.compile(r"([^.\[\]]+)(\[\])?")


def check_path(path: str) -> str:
    """The path if it is one; raises ValueError that shows a good one."""
    if not all(_STEP.fullmatch(step) for step in path.split(".")):
        raise ValueError(f"{path!r} is no path into an answer; write rejected or errors[].index")
    return path


def refused(body: bytes, path: str, *, count: int) -> list[int]:
    """Positions of the refused, ascending, each once; raises ValueError where the answer does not say it so."""
    if not body.strip():
        return []  # 204, or a success of few words
    try:
        found = [orjson.loads(body)]
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from None
    steps = [(match[1], bool(match[2])) for match in map(_STEP.fullmatch, path.split(".")) if match]
    for name, is_list in steps:
        found = list(_inside(found, name, is_list=is_list))
    positions = [one for value in found for one in (value if isinstance(value, list) else [value])]
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < count for one in positions):
        raise ValueError(f"has no positions of its {count} events at {path}")
    return sorted(set(positions))


def _inside(values: list[Any], name: str, *, is_list: bool) -> Iterator[Any]:
    for value in values:
        inner = value.get(name) if isinstance(value, dict) else None
        if inner is None:
            continue
        if is_list and not isinstance(inner, list):
            raise ValueError(f"has no list at {name}")
        yield from inner if is_list else [inner]
