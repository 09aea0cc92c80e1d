"""Configuration files: YAML with a place for every value, interpolation, and `conf.d` merged in.

Promises:
  * every fault of every file is found in one go and reads `file:line:column: key.path: what is wrong (remedy)`;
  * a value means what it looks like: only true and false are booleans, `no`, `22:22`, `0640`, `1_000` and `2026-01-01`
    are text, a key given twice is an error, tags other than !!str are refused;
  * hostile files cost bounded time and memory: MAX_FILE_BYTES, MAX_FILES, MAX_DEPTH, MAX_VALUES (counted after
    aliases and `<<` merges are expanded, before they are);
  * text from outside (`${…}`) stays text here; validation.py gives it the type its key wants.

`conf.d/*.yaml` beside the main file is merged in name order: mappings key by key and deep, anything else (lists too) is
replaced by the later file; a key with nothing behind it adds nothing. Every value keeps the place where it stands, and
relative paths belong to the file they stand in. Names that start with a dot or do not end in .yaml are not read.

Refuses: models and types (validation.py), writing files.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ndagent.core.interpolation import InterpolationError, interpolate, without_values
from ndagent.core.settings import Text

MAX_FILE_BYTES = 1024 * 1024
MAX_FILES = 256
MAX_DEPTH = 32
MAX_VALUES = 50_000

Loc = tuple[str | int, ...]
"""Where a value stands inside the configuration: ("inputs", "syslog_tls", "listen", 0)."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML was built with it: ten times faster
_STRING_TAGS = (None, "!", "tag:yaml.org,2002:str")
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # YAML 1.1 §4.1
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})?(?:\.[0-9]{1,18})?(?:[eE][-+]?[0-9]{1,3})?")
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_WORDS_NULL = ("", "~", "null", "Null", "NULL")


class Place(NamedTuple):
    """A position in a file, counted from 1 as editors do."""

    file: Path
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


def dotted(loc: Loc) -> str:
    """The loc as people write it: `inputs.syslog_tls.listen[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with the configuration."""

    place: Place
    loc: Loc
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {dotted(self.loc)}: {self.what}" if self.loc else f"{self.place}: {self.what}"


class ConfigError(Exception):
    """The configuration cannot be used; `faults` are all reasons, in the order of the files. One line each as text."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, faults)))


@dataclass(frozen=True, slots=True)
class Document:
    """What the files say, and where. `data` may hold secrets, so it is not in the repr.

    places: loc → (place of the key, place of the value); interpolated: loc → the text as written, defaults hidden;
    faults: what was wrong so far; unknown: locs whose value could not be had, about which validation stays silent.
    """

    file: Path
    data: dict[str, Any] = field(repr=False)
    places: dict[Loc, tuple[Place, Place]] = field(repr=False)
    interpolated: dict[Loc, str] = field(repr=False)
    faults: list[Fault]
    unknown: set[Loc]


def load_yaml(path: Path, env: Mapping[str, str]) -> Document:
    """Read the file and its conf.d; raises ConfigError if one of them cannot be read or is not YAML.

    Other faults (duplicate keys, unset variables) are in the result, so that they and the model's are told together:
    pass it to `validation.validate`.
    """
    faults: list[Fault] = []
    fatal = False
    merged = _Node(Place(path, 1, 1), {})
    for file in [path, *_fragments(path, faults)]:
        try:
            merged = _merge(merged, _Composer(file, faults).compose())
        except _UnusableError as error:
            faults.append(error.fault)
            fatal = True
    if fatal:
        raise ConfigError(faults)
    document = Document(path, {}, {}, {}, faults, set())
    document.data.update(_Builder(document, env).value(merged, (), Place(path, 1, 1)))
    return document


def load_single_yaml(path: Path) -> Document:
    """This file alone: no conf.d beside it, and text is taken as it stands. Raises ConfigError as `load_yaml` does.

    For files whose content travels to other machines: `${` is a fault, so that no variable and no file of this machine
    can leave with it.
    """
    faults: list[Fault] = []
    try:
        root = _Composer(path, faults).compose()
    except _UnusableError as error:
        raise ConfigError([*faults, error.fault]) from None
    document = Document(path, {}, {}, {}, faults, set())
    document.data.update(_Builder(document, None).value(root, (), Place(path, 1, 1)))
    return document


def plain_value(text: str) -> bool | int | float | str | None:
    """What an unquoted scalar means: the YAML 1.2 core schema without octal, hexadecimal, infinity and NaN.

    A leading zero (0640, 007) makes it text: nobody agrees on what number it is.
    """
    if text in _WORDS_NULL:
        return None
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if any(digit in text for digit in "0123456789") and _FLOAT.fullmatch(text):
        try:
            number = float(text)
        except ValueError:  # such as "e5", which the pattern lets through
            return text
        return number if math.isfinite(number) else text
    return text


def _fragments(path: Path, faults: list[Fault]) -> list[Path]:
    directory = path.parent / "conf.d"
    try:
        found = sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        faults.append(Fault(Place(directory, 1, 1), (), f"cannot be read: {error.strerror}"))
        return []
    faults += [
        Fault(Place(entry, 1, 1), (), "is not read; rename it to end in .yaml")
        for entry in found
        if entry.suffix == ".yml"
    ]
    fragments = [entry for entry in found if entry.suffix == ".yaml"]
    if len(fragments) > MAX_FILES:
        faults.append(Fault(Place(directory, 1, 1), (), f"holds more than {MAX_FILES} .yaml files"))
    return fragments[:MAX_FILES]


class _UnusableError(Exception):
    """A file that cannot be read on."""

    def __init__(self, place: Place, what: str, loc: Loc = ()) -> None:
        super().__init__(what)
        self.fault = Fault(place, loc, what)


@dataclass(slots=True)
class _Node:
    """A scalar (text), sequence or mapping; `size` and `height` are those of the tree with every alias expanded."""

    place: Place
    content: "str | list[_Node] | dict[str, tuple[Place, _Node]]"
    plain: bool = False
    size: int = 1
    height: int = 1


class _Composer:
    """One file's events as a tree of nodes; aliases share nodes, whose expanded size is counted and bounded."""

    def __init__(self, file: Path, faults: list[Fault]) -> None:
        self._file = file
        self._faults = faults
        self._anchors: dict[str, _Node] = {}

    def compose(self) -> _Node:
        """The file's top mapping; raises _UnusableError."""
        text = _read(self._file)
        try:
            self._events = yaml.parse(text, Loader=_Loader)
            return self._document()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place(mark) if mark else Place(self._file, 1, 1)
            context = f"{error.context}, " if error.context else ""
            raise _UnusableError(place, f"is not YAML: {context}{error.problem}{_remedy(text, place.line)}") from None
        except yaml.YAMLError as error:
            raise _UnusableError(Place(self._file, 1, 1), f"is not YAML: {error}") from None

    def _place(self, mark: Any) -> Place:
        return Place(self._file, mark.line + 1, mark.column + 1)

    def _document(self) -> _Node:
        root = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise _UnusableError(self._place(event.start_mark), "a second document; one file holds one")
                root = self._node(next(self._events), ())
        if root is None or root.content == "":
            return _Node(Place(self._file, 1, 1), {})
        if not isinstance(root.content, dict):
            raise _UnusableError(root.place, "should hold `key: value` lines at the top")
        return root

    def _node(self, event: Any, loc: Loc) -> _Node:
        place = self._place(event.start_mark)
        if len(loc) > MAX_DEPTH:
            raise _UnusableError(place, f"is nested deeper than {MAX_DEPTH} levels", loc)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _UnusableError(place, f"*{event.anchor} stands for nothing that was complete before it", loc)
            return self._anchors[event.anchor]
        if event.tag not in (_STRING_TAGS if isinstance(event, yaml.ScalarEvent) else (None,)):
            self._faults.append(Fault(place, loc, f"the tag {event.tag} is not supported; remove it"))
        if isinstance(event, yaml.ScalarEvent):
            node = _Node(place, event.value, plain=event.implicit[0])
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(place, loc)
        else:
            node = self._mapping(place, loc)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _sequence(self, place: Place, loc: Loc) -> _Node:
        items: list[_Node] = []
        node = _Node(place, items)
        for event in self._until(yaml.SequenceEndEvent):
            item = self._node(event, (*loc, len(items)))
            items.append(item)
            self._grow(node, item, loc)
        return node

    def _mapping(self, place: Place, loc: Loc) -> _Node:
        entries: dict[str, tuple[Place, _Node]] = {}
        node, merges = _Node(place, entries), []
        for event in self._until(yaml.MappingEndEvent):
            key_place = self._place(event.start_mark)
            if not isinstance(event, yaml.ScalarEvent):
                raise _UnusableError(key_place, "a key must be plain text", loc)
            key = event.value
            value = self._node(next(self._events), (*loc, key))
            if key == "<<" and event.implicit[0]:
                merges.append((key_place, value))
                continue
            if key in entries:
                first = entries[key][0].line
                self._faults.append(Fault(key_place, (*loc, key), f"is here twice; the first is on line {first}"))
                continue
            entries[key] = (key_place, value)
            self._grow(node, value, loc)
        for key_place, value in merges:
            self._inherit(node, key_place, value, loc)
        return node

    def _inherit(self, node: _Node, key_place: Place, source: _Node, loc: Loc) -> None:
        """`<<: *a` or `<<: [*a, *b]`: keys that the mapping does not have; of two sources the earlier wins."""
        assert isinstance(node.content, dict)  # noqa: S101 - narrows the type for mypy
        for part in source.content if isinstance(source.content, list) else [source]:
            if not isinstance(part.content, dict):
                self._faults.append(Fault(key_place, (*loc, "<<"), "should name a mapping, or a list of mappings"))
                continue
            for key, entry in part.content.items():
                if key not in node.content:
                    node.content[key] = entry
                    self._grow(node, entry[1], loc)

    def _grow(self, node: _Node, child: _Node, loc: Loc) -> None:
        node.size += child.size
        node.height = max(node.height, child.height + 1)
        if node.size > MAX_VALUES:
            raise _UnusableError(node.place, f"holds more than {MAX_VALUES} values once aliases are expanded", loc)
        if len(loc) + node.height > MAX_DEPTH + 1:
            raise _UnusableError(node.place, f"is nested deeper than {MAX_DEPTH} levels once aliases are expanded", loc)

    def _until(self, end: type[Any]) -> Iterator[Any]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield event


def _remedy(text: str, line: int) -> str:
    """What most often lies behind a syntax error, judged by the line it was noticed on."""
    found = text.splitlines()[line - 1 : line]
    if any("${" in part for part in found):
        return '; inside { } and [ ] write "${…}" with quotes'
    if any("\t" in part[: len(part) - len(part.lstrip())] for part in found):
        return "; indent with spaces, not with tabs"
    return ""


def _read(file: Path) -> str:
    """The file's text; refuses what is too large, not UTF-8, or holds characters that YAML does not allow."""
    start = Place(file, 1, 1)
    try:
        if file.exists() and not file.is_file():
            raise _UnusableError(start, "is not a file")
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _UnusableError(start, f"cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise _UnusableError(start, f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _UnusableError(_offset(file, content[: error.start].decode()), "is not UTF-8 from here on") from None
    if odd := _NOT_YAML.search(text):
        raise _UnusableError(_offset(file, text[: odd.start()]), f"holds the control character {odd[0]!r}")
    return text


def _offset(file: Path, before: str) -> Place:
    return Place(file, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _merge(older: _Node, newer: _Node) -> _Node:
    """Both as one, `newer` winning; new nodes, because anchors may share the old ones."""
    if not isinstance(older.content, dict):
        return newer
    if not isinstance(newer.content, dict):
        return older if newer.plain and newer.content == "" else newer
    entries = dict(older.content)
    for key, (place, node) in newer.content.items():
        entries[key] = (place, _merge(entries[key][1], node) if key in entries else node)
    return _Node(newer.place, entries)


class _Builder:
    """Nodes as plain data, with places, and text interpolated; without an environment `${` is a fault."""

    def __init__(self, document: Document, env: Mapping[str, str] | None) -> None:
        self._document = document
        self._env = env

    def value(self, node: _Node, loc: Loc, key_place: Place) -> Any:
        self._document.places[loc] = (key_place, node.place)
        if isinstance(node.content, dict):
            return {key: self.value(child, (*loc, key), place) for key, (place, child) in node.content.items()}
        if isinstance(node.content, list):
            return [self.value(child, (*loc, index), child.place) for index, child in enumerate(node.content)]
        return self._scalar(node, node.content, loc)

    def _scalar(self, node: _Node, text: str, loc: Loc) -> Any:
        directory = node.place.file.parent.absolute()
        if self._env is None and "${" in text:
            self._document.faults.append(Fault(node.place, loc, "'${' is not replaced in this file; write the value"))
            self._document.unknown.add(loc)
            return Text.of("", directory)
        if "$" not in text or self._env is None:
            value = plain_value(text) if node.plain else text
            return Text.of(value, directory) if isinstance(value, str) else value
        try:
            result, foreign = interpolate(text, directory=directory, env=self._env)
        except InterpolationError as error:
            self._document.faults.append(Fault(node.place, loc, str(error)))
            self._document.unknown.add(loc)
            return Text.of("", directory)
        if foreign:
            self._document.interpolated[loc] = without_values(text)
        return Text.of(result, directory)
