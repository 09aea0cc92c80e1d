"""`compile_pattern`: re.compile for patterns with possessive quantifiers, right on every Python 3.11.

Promises: the same matches on all versions. Debian 12 has Python 3.11.2, whose `re` matches a possessive quantifier of a
group wrongly if something in the group backtracks (python/cpython issue 106052, mended in 3.11.5); an atomic group
around the plain quantifier means the same and is right there. Those of one character or class were never wrong.
Refuses: comments in verbose patterns (a parenthesis in one would be taken for a group).
"""

import re
from typing import AnyStr

_PIECE = re.compile(
    r"""(?P<skip> \\. | \[ \^? \]? (?: \\. | [^\]\\] )* \] )
    | (?P<open> \( ) | (?P<close> \) ) (?P<quantifier> (?: [?*+] | \{ [0-9,]+ \} ) (?= \+ ) )? """,
    re.DOTALL | re.VERBOSE,
)


def compile_pattern(pattern: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """As re.compile; raises re.error."""
    if isinstance(pattern, bytes):
        return re.compile(with_atomic_groups(pattern.decode("latin-1")).encode("latin-1"), flags)
    return re.compile(with_atomic_groups(pattern), flags)


def with_atomic_groups(pattern: str) -> str:
    """The pattern with `(?>(…)*)` for each `(…)*+`, and so for the other quantifiers."""
    pieces: list[str] = []
    opened: list[int] = []
    end = 0
    for found in _PIECE.finditer(pattern):
        pieces.append(pattern[end : found.start()])
        end = found.end()
        if found["open"]:
            opened.append(len(pieces))
        begin = opened.pop() if found["close"] and opened else None
        pieces.append(found[0])
        if begin is not None and found["quantifier"]:
            pieces[begin] = "(?>" + pieces[begin]
            pieces.append(")")
            end += 1  # the plus that made it possessive
    return "".join(pieces) + pattern[end:]
