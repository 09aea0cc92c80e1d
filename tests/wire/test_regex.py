"""Possessive groups on every Python 3.11."""

import re

import pytest

from ndagent.wire.regex import compile_pattern, with_atomic_groups


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a(?:b)?+c", r"a(?>(?:b)?)c"),
        (r"(?:(?:b)*+c){2}+", r"(?>(?:(?>(?:b)*)c){2})"),
        (r"((x)++)?+", r"(?>((?>(x)+))?)"),
        (r"[()]?+a++(b)?", r"[()]?+a++(b)?"),
        (r"\(a\)?+[^]\])+*]", r"\(a\)?+[^]\])+*]"),
        (r"(?=(a){1,2}+)", r"(?=(?>(a){1,2}))"),
    ],
)
def test_possessive_groups_become_atomic_groups(written: str, meant: str) -> None:
    """And nothing else changes: classes, escapes, possessive single characters, lazy and plain groups."""
    assert with_atomic_groups(written) == meant


def test_a_possessive_group_gives_nothing_back_and_takes_what_it_can() -> None:
    """What Python 3.11.2 gets wrong: an optional group in which something was tried and given up."""
    optional = compile_pattern(rb"(?: [0-9]++ : \ ++ )?+ 12", re.VERBOSE)
    assert optional.match(b"12")
    assert optional.match(b"7: 12")
    assert compile_pattern(r"(?:a|ab)?+c").fullmatch("abc") is None
    assert compile_pattern(r'"(?:[^"\\]|\\.)*+"', re.DOTALL).fullmatch(r'"a\"b"')
