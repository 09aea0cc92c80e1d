"""The grammar of `where`, from text to a tree; see docs/where.md for users.

    expression := and ("or" and)*
    and        := not ("and" not)*
    not        := "not" not | "(" expression ")" | comparison
    comparison := FIELD "exists" | FIELD "in" "(" VALUE ("," VALUE)* ")"
                | FIELD ("==" | "!=" | "<" | "<=" | ">" | ">=" | "cidr" | "glob" | "regex") VALUE
    FIELD      := name or "quoted name", joined by dots; or an alias (ALIASES)
    VALUE      := "text" | 'text' | bare word; inside quotes a backslash escapes the quote and itself, nothing else

Promises: any text gives a tree or WhereError with the column; length, depth and the number of patterns are bounded, and
time is linear in the text. Refuses: events (where.py).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ndagent.wire import where_match
from ndagent.wire.ecs import FACILITIES, SEVERITIES
from ndagent.wire.regex import compile_pattern
from ndagent.wire.where_match import Literal, Test, literal

MAX_LENGTH = 4096
"""Characters of an expression."""
MAX_DEPTH = 32
"""Parentheses and `not` inside each other."""
MAX_PARTS = 16
"""Names in a field's path."""
MAX_PATTERNS = 16
"""`glob` and `regex` in one expression: each holds an automaton in memory."""

Path = tuple[str, ...]
SEVERITY: Path = ("log", "syslog", "severity", "code")
FACILITY: Path = ("log", "syslog", "facility", "code")
HOST: Path = ("host", "hostname")
HOST_NAME: Path = ("host", "name")
ORIGIN: Path = ("origin",)
STREAM: Path = ("stream",)
ALIASES: Mapping[str, Path] = {
    "severity": SEVERITY, "facility": FACILITY, "host": HOST, "app": ("process", "name"), "origin": ORIGIN,
    "stream": STREAM,
}  # fmt: skip
"""`origin` and `stream` are no fields of an event: they are who sent it (`Origin.identity`) and which log it is in."""

_SHORT = {"emerg": 0, "panic": 0, "crit": 2, "err": 3, "warn": 4, "info": 6}
_CODES: Mapping[Path, Mapping[str, int]] = {
    SEVERITY: {**{name: code for code, name in enumerate(SEVERITIES)}, **_SHORT},
    FACILITY: {name: code for code, name in enumerate(FACILITIES)},
}
_HINTS = {
    SEVERITY: "severity is 0 to 7 or a name such as warning",
    FACILITY: "facility is 0 to 23 or a name such as auth",
}

_SPACE = compile_pattern(r"\s*+")
_NAME = r'(?:[A-Za-z0-9_@][A-Za-z0-9_@-]*+|"(?:[^"\\]|\\.)*+")'
_FIELD = compile_pattern(rf"{_NAME}(?:\.{_NAME})*+", re.DOTALL)
_PART = compile_pattern(_NAME, re.DOTALL)
_END_OF_WORD = r"(?![A-Za-z0-9_@.-])"
_OPERATOR = compile_pattern(rf"==|!=|<=|>=|<|>|(?:in|cidr|glob|regex|exists){_END_OF_WORD}", re.IGNORECASE)
_QUOTED = compile_pattern(r""" "((?:[^"\\]|\\.)*+)" | '((?:[^'\\]|\\.)*+)' """, re.DOTALL | re.VERBOSE)
_BARE = compile_pattern(r"""[^\s()\[\]{},"'<>=!]++""")
_ESCAPE = compile_pattern(r"""\\([\\"'])""")
_OPERATORS = "==, !=, <, <=, >, >=, in, cidr, glob, regex or exists"


class WhereError(ValueError):
    """An expression that cannot be understood; `column` counts characters from 1."""

    def __init__(self, column: int, message: str) -> None:
        super().__init__(f"where: column {column}: {message}")
        self.column = column


@dataclass(frozen=True, slots=True)
class Comparison:
    """Holds where any value that stands at `path` passes the test."""

    path: Path
    test: Test


@dataclass(frozen=True, slots=True)
class Not:
    """Holds where `part` does not."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class All:
    """Holds where every part does."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Any:
    """Holds where at least one part does."""

    parts: tuple["Node", ...]


Node = Comparison | Not | All | Any


def parse(text: str) -> Node:
    """The expression as a tree; raises WhereError."""
    if len(text) > MAX_LENGTH:
        raise WhereError(MAX_LENGTH + 1, f"is longer than {MAX_LENGTH} characters")
    return _Parser(text).whole()


class _Parser:
    """Recursive descent without a scanner: what a word means depends on where it stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._patterns = 0

    def whole(self) -> Node:
        node = self._any()
        self._skip()
        if self._at < len(self._text):
            raise self._error("expected 'and', 'or' or the end" if self._text[self._at] != ")" else "unexpected ')'")
        return node

    def _any(self) -> Node:
        parts = [self._all()]
        while self._word("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def _all(self) -> Node:
        parts = [self._not()]
        while self._word("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _not(self) -> Node:
        self._skip()
        opened = self._at
        if self._word("not"):
            return self._deeper(opened, lambda: Not(self._not()))
        if self._symbol("("):
            return self._deeper(opened, lambda: self._closed(opened))
        return self._comparison()

    def _deeper(self, opened: int, read: Callable[[], Node]) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} deep", opened)
        node = read()
        self._depth -= 1
        return node

    def _closed(self, opened: int) -> Node:
        node = self._any()
        if not self._symbol(")"):
            raise self._error("expected 'and', 'or' or the ')' of this '('", opened if self._is_at_end() else None)
        return node

    def _comparison(self) -> Node:
        path = self._field()
        self._skip()
        at = self._at
        found = _OPERATOR.match(self._text, at)
        if found is None:
            wrong = "write == to compare" if self._text[at : at + 1] == "=" else f"expected {_OPERATORS}"
            raise self._error(wrong)
        self._at = found.end()
        symbol = found[0].lower()
        if symbol == "exists":
            return Comparison(path, _is_there)
        if symbol == "in":
            return Comparison(path, where_match.one_of(self._list(path)))
        if symbol in ("cidr", "glob", "regex"):
            return Comparison(path, self._pattern(symbol, path, at))
        value = self._literal(path)
        if symbol in ("==", "!="):
            equal = Comparison(path, where_match.one_of([value]))
            return equal if symbol == "==" else Not(equal)
        return Comparison(path, where_match.ordered(symbol, value))

    def _field(self) -> Path:
        self._skip()
        found = _FIELD.match(self._text, self._at)
        if found is None:
            raise self._error("expected a field such as severity or source.ip, 'not' or '('")
        path = ALIASES.get(found[0]) or tuple(_unquoted(part) for part in _PART.findall(found[0]))
        if len(path) > MAX_PARTS:
            raise self._error(f"a field has at most {MAX_PARTS} names")
        self._at = found.end()
        return path

    def _list(self, path: Path) -> list[Literal]:
        if not self._symbol("("):
            raise self._error("expected '(' and the values, such as (1, 2)")
        values = [self._literal(path)]
        while self._symbol(","):
            values.append(self._literal(path))
        if not self._symbol(")"):
            raise self._error("expected ',' or ')'")
        return values

    def _literal(self, path: Path) -> Literal:
        text, at = self._value()
        codes = _CODES.get(path)
        if codes is None:
            return literal(text)
        number = codes.get(text.lower(), where_match.number_in(text))
        if number not in codes.values():
            raise self._error(f"{text[:40]!r}: {_HINTS[path]}", at)
        return Literal(str(number), number)

    def _pattern(self, symbol: str, path: Path, at: int) -> Test:
        if path in _CODES:
            raise self._error(f"a number takes ==, !=, <, <=, >, >=, in or exists, not {symbol}", at)
        text, at = self._value()
        make = {"cidr": where_match.in_network, "glob": where_match.like_glob, "regex": where_match.like_regex}[symbol]
        self._patterns += symbol != "cidr"
        if self._patterns > MAX_PATTERNS:
            raise self._error(f"more than {MAX_PATTERNS} glob and regex in one expression", at)
        try:
            return make(text)
        except ValueError as error:
            raise self._error(str(error), at) from None

    def _value(self) -> tuple[str, int]:
        """The text of a value, and where it stands."""
        self._skip()
        at = self._at
        found = _QUOTED.match(self._text, at)
        if found is not None:
            self._at = found.end()
            return _ESCAPE.sub(r"\1", found[1] if found[1] is not None else found[2]), at
        if self._text[at : at + 1] in ('"', "'"):
            raise self._error("this quote is not closed")
        found = _BARE.match(self._text, at)
        if found is None:
            raise self._error("expected a value; put it in quotes if it has spaces or any of ()[]{},<>=!")
        self._at = found.end()
        return found[0], at

    def _word(self, word: str) -> bool:
        self._skip()
        end = self._at + len(word)
        if self._text[self._at : end].lower() != word or re.match(_END_OF_WORD, self._text[end : end + 1]) is None:
            return False
        self._at = end
        return True

    def _symbol(self, symbol: str) -> bool:
        self._skip()
        if not self._text.startswith(symbol, self._at):
            return False
        self._at += 1
        return True

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _is_at_end(self) -> bool:
        return self._at >= len(self._text)

    def _error(self, message: str, at: int | None = None) -> WhereError:
        return WhereError((self._at if at is None else at) + 1, message)


def _is_there(_value: object) -> bool:
    return True


def _unquoted(part: str) -> str:
    return _ESCAPE.sub(r"\1", part[1:-1]) if part.startswith('"') else part
