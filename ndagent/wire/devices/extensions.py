"""CEF's list of name=value pairs, whose values have spaces and no quotes: a value ends where a further name= begins.

Promises: linear time, at most MAX_PAIRS pairs; backslashes as CEF has them: before = and itself they vanish, n and r
are line breaks.
Refuses: telling a `name=` that a sender forgot to escape inside a value from a further pair: nobody can.
"""

import re
from collections.abc import Iterator
from itertools import islice

from ndagent.wire.devices.fields import MAX_PAIRS

_NAME = re.compile(r"(?:\A| )([A-Za-z0-9_.-]{1,64}(?:\[\d{1,4}\])?)=")
_ESCAPE = re.compile(r"\\([\\=nr|])")
_BREAKS = {"n": "\n", "r": "\r"}


def extension(text: str) -> Iterator[tuple[str, str]]:
    """`src=10.0.0.1 msg=two words act=blocked`."""
    found = list(islice(_NAME.finditer(text), MAX_PAIRS + 1))  # one more, to know where the last one's value ends
    ends = [match.start() for match in found[1:]] + [len(text)]
    for match, end in islice(zip(found, ends, strict=False), MAX_PAIRS):
        yield match[1], unescaped(text[match.end() : end].strip())


def unescaped(text: str) -> str:
    """Without CEF's backslashes."""
    return _ESCAPE.sub(lambda match: _BREAKS.get(match[1], match[1]), text) if "\\" in text else text
