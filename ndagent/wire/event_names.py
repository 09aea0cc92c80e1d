"""Lines of our own inputs get their `event.id`, without being parsed.

Promises: a line costs a look for `"event":{"` and a joining of bytes; one in which that does not stand exactly once is
not named here. Refuses: lines of others: that ours are JSON, with an `event` that has no id, is what the contract of
`ndagent.inputs` says, and what Flags.OWN claims.

`"event":{"` cannot stand inside a JSON string, since its quotes would be escaped there. So one occurrence is the
`event` that every input gives, and a second one, in a member of the same name further down, is seen.
"""

import re
from array import array
from collections.abc import Callable, Sequence

from ndagent.wire.ecs import base36, partition_key

NO_KEY = 0xFFFFFFFF
"""The line has no source.ip to make a key of; real ones have 31 bits."""
NameLines = Callable[[bytes, int, bytes, int], "tuple[list[bytes], array[int]] | None"]
"""`name_lines` or its compiled twin."""

_PARSED_FOR = (b'"host":{', b'"syslog":{')
_SOURCE = re.compile(rb'"source":\{"ip":"([^"]*)"')
_EVENT = b'"event":{"'
_HUNDREDS = 36 * 36
_LAST_DIGITS = [base36(number).rjust(2, b"0") for number in range(_HUNDREDS)]


def name_lines(payload: bytes, count: int, spool_id: bytes, first: int) -> "tuple[list[bytes], array[int]] | None":
    """A section of `count` lines, each with its LF: named, and their partition keys, which are those of source.ip.

    None where a line is not as we make them, or has members that EventBatch has arrays for (host, syslog priority).
    """
    messages = payload.split(b"\n")
    if messages.pop() or len(messages) != count or any(one.endswith((b"\r", b"\0")) for one in messages):
        return None
    if any(mark in payload for mark in _PARSED_FOR):
        return None
    lines = named(messages, spool_id=spool_id, first=first)
    if lines is None:
        return None
    sources = map(_SOURCE.search, messages)
    return lines, array("I", (NO_KEY if found is None else partition_key(found[1]) for found in sources))


def named(messages: Sequence[bytes], *, spool_id: bytes, first: int) -> list[bytes] | None:
    """The lines, each with its LF and its id, the first of them `first`; None where one is not as we make them."""
    lines: list[bytes] = []
    for raw, number in zip(messages, base36_from(first, len(messages)), strict=True):
        head, event, rest = raw.partition(_EVENT)
        if not event or _EVENT in rest:
            return None
        lines.append(b'%b"event":{"id":"%b-%b","%b\n' % (head, spool_id, number, rest))
    return lines


def base36_from(first: int, count: int) -> list[bytes]:
    """`base36` of so many numbers in a row."""
    found: list[bytes] = []
    while len(found) < count:
        high, low = divmod(first + len(found), _HUNDREDS)
        tails = _LAST_DIGITS[low : low + count - len(found)]
        if high:
            head = base36(high)
            found += [head + tail for tail in tails]
        else:
            found += [tail.lstrip(b"0") or b"0" for tail in tails]
    return found
