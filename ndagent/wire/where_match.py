"""What one comparison of a `where` expression asks of one value: equality, order, networks, globs, regular expressions.

Promises: a test takes any JSON scalar and answers in time linear in it, whatever the pattern (see `_re2`).
Refuses: finding the value in an event, and knowing any field (where.py does both).

Numbers and text: a literal means the same with and without quotes. `==` and `in` compare text with text and numbers
with numbers; `<` and its kin compare as numbers where both sides read as numbers, else as text, so that RFC 3339 times
compare as times.

Regular expressions and globs run on RE2. Python's `re` backtracks: `(a+)+$` takes for ever on 40 bytes, `.*.*.*x` hours
on 64 KiB, and no check of the pattern tells all such from harmless ones; cutting the subject would let an attacker hide
behind padding. RE2 has no such patterns, for the price of look-around and back-references, which it refuses.
"""

import ipaddress
import operator
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import re2

Test = Callable[[object], bool]

MAX_PATTERN = 1024
"""Characters of one glob or regular expression."""
MAX_PATTERN_BYTES = 512 * 1024
"""Memory of one compiled pattern with its automaton: what does not fit is refused, not slow."""
ADDRESSES_CACHED = 4096
MAX_ADDRESS = 64
"""Longer text is no IP address, and not worth a place in the cache."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,2})?")
_MAX_NUMBER = 48
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class Literal(NamedTuple):
    """A value as written, and the number it reads as."""

    text: str
    number: float | None


def number_in(text: str) -> float | None:
    """The number that a text reads as, or None; whole numbers stay exact."""
    if len(text) > _MAX_NUMBER or _NUMBER.fullmatch(text) is None:
        return None
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def literal(text: str) -> Literal:
    """What the text means in a comparison."""
    return Literal(text, number_in(text))


def one_of(literals: Iterable[Literal]) -> Test:
    """Equal to any of these."""
    found = list(literals)
    texts = frozenset(one.text for one in found)
    numbers = frozenset(one.number for one in found if one.number is not None)

    def test(value: object) -> bool:
        if isinstance(value, str):
            return value in texts
        if isinstance(value, bool):
            return ("true" if value else "false") in texts
        return isinstance(value, int | float) and value in numbers

    return test


def ordered(symbol: str, bound: Literal) -> Test:
    """On this side (`<`, `<=`, `>`, `>=`) of a bound."""
    holds = _ORDERS[symbol]
    text, number = bound

    def test(value: object) -> bool:
        if isinstance(value, str):
            found = None if number is None else number_in(value)
            return holds(value, text) if found is None else holds(found, number)
        if number is None or isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return holds(value, number)

    return test


def in_network(text: str) -> Test:
    """An address inside this network, IPv4 in IPv6 clothes included; raises ValueError for what is no network."""
    network = ipaddress.ip_network(text)

    def test(value: object) -> bool:
        found = _address(value) if isinstance(value, str) and len(value) <= MAX_ADDRESS else None
        return found is not None and found in network

    return test


@lru_cache(ADDRESSES_CACHED)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def like_regex(pattern: str) -> Test:
    """Text in which the pattern (RE2 syntax) occurs anywhere; raises ValueError that says what RE2 refuses."""
    return _re2(pattern)


def like_glob(pattern: str) -> Test:
    """The whole text: `*` any characters, `?` one, `[a-z]` one of these, `[!a-z]` none of these; raises ValueError."""
    return _re2(rf"(?s)\A{_from_glob(pattern)}\z")


_GLOB = re.compile(r"(\*++)|(\?)|\[(!?)(\]?[^\]]*+)\]|(.)", re.DOTALL)


def _from_glob(pattern: str) -> str:
    def part(found: re.Match[str]) -> str:
        stars, one, negated, members, plain = found.groups()
        if stars:
            return ".*"
        if one:
            return "."
        if members:
            escaped = re.sub(r"([\\^\[\]&~|])", r"\\\1", members)
            return f"[{'^' if negated else ''}{escaped}]"
        return _quoted(plain if plain is not None else found[0])

    return _GLOB.sub(part, pattern)


def _quoted(text: str) -> str:
    return "".join(rf"\x{{{ord(one):x}}}" if not one.isalnum() else one for one in text)


def _re2(pattern: str) -> Test:
    """Linear in the subject and bounded in memory, whatever the pattern."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"the pattern is longer than {MAX_PATTERN} characters")
    options = re2.Options()
    options.max_mem = MAX_PATTERN_BYTES
    options.log_errors = False  # they would go to the daemon's stderr
    options.never_capture = True
    try:
        search = re2.compile(pattern.encode("utf-8", "replace"), options).search
    except re2.error as error:
        (reason,) = error.args
        raise ValueError(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from None

    def test(value: object) -> bool:
        return isinstance(value, str) and search(value.encode("utf-8", "replace")) is not None

    return test
