"""Lines of our own inputs get their `event.id`, without being parsed.

Promises: a line costs a look for `"event":{"` and a joining of bytes; one in which that does not stand exactly once is
not named here. Refuses: lines of others: that ours are JSON, with an `event` that has no id, is what the contract of
`ndagent.inputs` says, and what Flags.OWN claims.

`"event":{"` cannot stand inside a JSON string, since its quotes would be escaped there. So one occurrence is the
`event` that every input gives, and a second one, in a member of the same name further down, is seen.
"""

from collections.abc import Sequence

from ndagent.wire.ecs import base36

_EVENT = b'"event":{"'
_HUNDREDS = 36 * 36
_LAST_DIGITS = [base36(number).rjust(2, b"0") for number in range(_HUNDREDS)]


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
