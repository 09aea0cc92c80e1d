"""Fields by name: `user.name`, `log.syslog.structured_data."my.id@1".*`, `**.password`; finding, taking and putting.

    path   := part ("." part)*     part := name | "quoted name" | glob: `*` any characters of one name, `?`, `[a-z]`
    `**` as a part: any number of names, also none

Promises: a path means the field however it is written in the event: nested, under a dotted key (`{"user.name": …}`), or
in between, and inside lists of objects; so what is to be dropped or hashed has no second spelling to hide behind. Time
is linear in the event for each path, whatever the event's shape and depth.
Refuses: knowing what the fields mean.

A pattern is matched by walking the event once with the set of positions in the pattern that have been reached; the
names in a dotted key are walked one after the other.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ndagent.wire.where_match import Test, like_glob

MAX_PATH = 256
"""Characters of a path."""
MAX_PARTS = 16
_PART = re.compile(r'"((?:[^"\\]|\\.)+)"|([^\s".]+)', re.DOTALL)
_ESCAPE = re.compile(r'\\([\\"])')
_GLOB = re.compile(r"[*?\[]")
_KEYS_CACHED = 4096
_MAX_CACHED_KEY = 64

Event = dict[str, Any]
Change = Callable[[Any], Any]
DROP = object()
"""From a Change: take the field away."""


class Path(NamedTuple):
    """A path without globs: the names to make when it is written to."""

    parts: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.parts)


def parse_parts(text: str) -> list[tuple[str, bool]]:
    """The parts, and whether each was quoted; raises ValueError with the column."""
    if len(text) > MAX_PATH:
        raise ValueError(f"is longer than {MAX_PATH} characters")
    parts: list[tuple[str, bool]] = []
    at = 0
    while True:
        found = _PART.match(text, at)
        if found is None:
            raise ValueError(f"{text!r}: column {at + 1}: expected a name; a field is written like user.name")
        quoted = found[1] is not None
        parts.append((_ESCAPE.sub(r"\1", found[1]) if quoted else found[2], quoted))
        at = found.end()
        if at == len(text):
            break
        if text[at] != ".":
            raise ValueError(f"{text!r}: column {at + 1}: expected a dot; names with spaces stand in double quotes")
        at += 1
    if len(parts) > MAX_PARTS:
        raise ValueError(f"{text!r}: a field has at most {MAX_PARTS} names")
    return parts


def parse_path(text: str) -> Path:
    """A path without globs; raises ValueError."""
    parts = parse_parts(text)
    if any(_GLOB.search(part) and not quoted for part, quoted in parts):
        raise ValueError(f"{text!r}: one field has to be named here, without *, ? or [")
    return Path(tuple(part for part, _ in parts))


class Pattern:
    """A path that may have globs. Immutable; `str()` gives its text back."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._steps: list[Test | str | None] = []  # None: any number of names
        for part, quoted in parse_parts(text):
            if part == "**" and not quoted:
                self._steps.append(None)
            elif _GLOB.search(part) and not quoted:
                self._steps.append(like_glob(part))
            else:
                self._steps.extend(part.split("."))
        if self._steps[-1] is None:
            self._steps.append(like_glob("*"))
        self._start = self._closed({0})
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def __str__(self) -> str:
        return self._text

    def matches(self, path: Path) -> bool:
        """Whether this very field is meant."""
        reached = self._start
        for part in path.parts:
            reached = self._after(reached, part)
        return len(self._steps) in reached

    def reaches(self, path: Path) -> bool:
        """Whether the field, or something around it, is meant: what is done to that is done to this field too."""
        return any(self.matches(Path(path.parts[:end])) for end in range(1, len(path.parts) + 1))

    def change(self, event: Event, change: Change) -> bool:
        """Put in place of each field that is meant what `change` makes of its value; whether any became another."""
        end = len(self._steps)
        changed = False
        waiting: list[tuple[Any, frozenset[int]]] = [(event, self._start)]
        while waiting:
            node, reached = waiting.pop()
            if isinstance(node, list):
                waiting += [(item, reached) for item in node if isinstance(item, dict | list)]
                continue
            for key in list(node):
                after = self._behind(reached, key)
                if end in after:
                    value = change(node[key])
                    changed = changed or value is not node[key]
                    if value is DROP:
                        del node[key]
                    else:
                        node[key] = value
                elif after and isinstance(node[key], dict | list):
                    waiting.append((node[key], after))
        return changed

    def _behind(self, reached: frozenset[int], key: str) -> frozenset[int]:
        """`_after`, remembered: events have the same few keys over and over."""
        if len(key) > _MAX_CACHED_KEY:
            return self._after(reached, key)
        found = self._known.get((reached, key))
        if found is None:
            found = self._after(reached, key)
            if len(self._known) < _KEYS_CACHED:
                self._known[reached, key] = found
        return found

    def _after(self, reached: frozenset[int], key: str) -> frozenset[int]:
        """The positions reached behind a key, whose names are taken one after the other; the end is kept once seen."""
        end = len(self._steps)
        for name in key.split("."):
            moved: set[int] = {end} & reached
            for position in reached - {end}:
                step = self._steps[position]
                if step is None:
                    moved.add(position)
                elif step == name if isinstance(step, str) else step(name):
                    moved.add(position + 1)
            reached = self._closed(moved)
            if not reached:
                break
        return reached

    def _closed(self, reached: set[int]) -> frozenset[int]:
        """With what `**` reaches by standing for no name at all."""
        for start in sorted(reached):
            behind = start
            while behind < len(self._steps) and self._steps[behind] is None:
                behind += 1
                reached.add(behind)
        return frozenset(reached)


def change_each(patterns: Sequence[Pattern], event: Event, change: Change) -> bool:
    """`change` for all of the patterns, one after the other; whether any value became another."""
    changed = False
    for pattern in patterns:
        changed |= pattern.change(event, change)
    return changed


def take(event: Event, path: Path) -> Any:
    """The value there, removed from the event, or DROP where there is none. Not from inside lists.

    An object that becomes empty by it is removed, too.
    """
    return _take(event, ".".join(path.parts).split("."))


def _take(node: Event, names: list[str]) -> Any:
    for width in range(1, len(names) + 1):
        key = ".".join(names[:width])
        if key not in node:
            continue
        if width == len(names):
            return node.pop(key)
        inside = node[key]
        found = _take(inside, names[width:]) if isinstance(inside, dict) else DROP
        if found is not DROP:
            if not inside:
                del node[key]
            return found
    return DROP


def put(event: Event, path: Path, value: Any) -> bool:
    """Write the value there, in place of what is there; False where a value that is no object stands in the way."""
    node, missing = event, list(path.parts[:-1])
    while missing and (inside := node.get(missing[0])) is not None:
        if not isinstance(inside, dict):
            return False
        node = inside
        del missing[0]
    for part in missing:
        node[part] = node = {}  # assigned from left to right: into the old node first
    node[path.parts[-1]] = value
    return True


def find(event: Event, path: Path) -> list[Any]:
    """Every value at the path, however it is written; for tests of configurations."""
    found: list[Any] = []

    def note(value: Any) -> Any:
        found.append(value)
        return value

    Pattern(".".join('"' + re.sub(r'([\\"])', r"\\\1", part) + '"' for part in path.parts)).change(event, note)
    return found
