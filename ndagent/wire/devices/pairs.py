"""Lists of name=value and name:"value" pairs, as FortiGate, SonicWall, Sophos, F5 and Check Point write them.

Promises: time linear in the text (each byte is taken by one match, words that are no pair are passed over), at most
MAX_PAIRS pairs. In a quoted value a backslash takes away the meaning of a quote or a backslash, before anything else
it is text, as Windows paths are.
Refuses: a quoted value without its end and all behind it (it was cut: half a value is another value), and values with
spaces that no quotes hold (CEF has those, extensions.py).
"""

import re

from ndagent.wire.devices.fields import MAX_PAIRS
from ndagent.wire.regex import compile_pattern

Pairs = list[tuple[str, str]]

_QUOTED = r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_CUT = r'".*+'
"""What follows a quote without its end is somebody's value, whatever it looks like: no pair is read of it."""
_SPACED = compile_pattern(
    r"([A-Za-z_][A-Za-z0-9_.-]*+)=(?:" + _QUOTED + r"|(?!\")(\S*+)|" + _CUT + r")|\S++", re.DOTALL
)
_COMMAS = compile_pattern(
    r"([A-Za-z_][A-Za-z0-9_.-]*+)=(?:" + _QUOTED + r"|(?!\")([^,]*+)|" + _CUT + r")|[^,]++", re.DOTALL
)
_COLONS = compile_pattern(
    r"([A-Za-z_][A-Za-z0-9_. -]*+):(?:" + _QUOTED + r'|(?!")([^;"\\]*+)|' + _CUT + r")|[A-Za-z_][A-Za-z0-9_. -]*+|.",
    re.DOTALL,
)
_PIPES = compile_pattern(r"([A-Za-z_][A-Za-z0-9_. -]*+)=(?:" + _QUOTED + r"|((?:[^|\\]++|\\.)*+))|[^|]++|\|", re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')


def spaced(text: str) -> Pairs:
    """`a=1 b="two words"`."""
    return _pairs(_SPACED, text)


def by_commas(text: str) -> Pairs:
    """`a="1",b="two, words"`."""
    return _pairs(_COMMAS, text)


def by_colons(text: str) -> Pairs:
    """`a:"1"; b:"2"]`."""
    return _pairs(_COLONS, text)


def by_pipes(text: str) -> Pairs:
    """`a=1|b=2|`."""
    return _pairs(_PIPES, text)


def _pairs(pattern: re.Pattern[str], text: str) -> Pairs:
    found = [match for match in pattern.findall(text) if match[0]][:MAX_PAIRS]
    if "\\" not in text:
        return [(name, quoted or bare) for name, quoted, bare in found]
    return [(name, _ESCAPED.sub(r"\1", quoted) if "\\" in quoted else quoted or bare) for name, quoted, bare in found]
