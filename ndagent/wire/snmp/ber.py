"""The part of BER that SNMP uses (RFC 3417 §8): definite lengths, tags of one byte, no constructed strings.

Promises: every function looks at bytes once and never recurses, so hostile lengths cost linear time; what is not like
that raises Malformed and nothing else. Lengths that are longer than they need be are read (devices send them); integers
and object identifiers are held to what SMIv2 allows (RFC 2578 §7.1).
Refuses: meaning (messages.py, notification.py).
"""

from functools import lru_cache

INTEGER, OCTET_STRING, NULL, OID, SEQUENCE = 0x02, 0x04, 0x05, 0x06, 0x30
_LONG = 0x80
_MAX_LENGTH_BYTES = 4
_MAX_INTEGER_BYTES = 9  # Counter64 above 2**63 has a leading zero
_LEAST, _MOST = -(2**63), 2**64 - 1  # SMIv2 knows none beyond, and neither does JSON as others read it
_MAX_ARCS = 128  # RFC 2578 §7.1.3
_MAX_ARC = 2**32 - 1
_MAX_OID_BYTES = _MAX_ARCS * 5
_REMEMBERED = 4096
"""Object identifiers whose text is remembered: a device sends the same ones again and again."""


class Malformed(ValueError):
    """Bytes that are not what they should be; says what is wrong."""


def read(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """The value that begins at `at`: its tag, where its contents start, and where they stop (at most `end`)."""
    if at + 2 > end:
        raise Malformed("a value ends before its length")
    tag, length, start = data[at], data[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise Malformed("a tag of several bytes")
    if length & _LONG:
        count = length & 0x7F
        if not 1 <= count <= _MAX_LENGTH_BYTES or start + count > end:
            raise Malformed("an indefinite length, or one of too many bytes")
        length = int.from_bytes(data[start : start + count])
        start += count
    stop = start + length
    if stop > end:
        raise Malformed(f"a length of {length} where {max(0, end - start)} bytes are left")
    return tag, start, stop


def expect(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Where the contents of the value at `at` start and stop; it must have this tag."""
    found, start, stop = read(data, at, end)
    if found != tag:
        raise Malformed(f"tag {found:#04x} where {tag:#04x} belongs")
    return start, stop


def read_integer(data: bytes, at: int, end: int) -> tuple[int, int]:
    """An INTEGER, and where the next value begins."""
    start, stop = expect(data, at, end, INTEGER)
    return integer(data[start:stop]), stop


def read_octets(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    """An OCTET STRING, and where the next value begins."""
    start, stop = expect(data, at, end, OCTET_STRING)
    return data[start:stop], stop


def integer(contents: bytes) -> int:
    """The value of an INTEGER's contents."""
    return _held(contents, signed=True)


def unsigned(contents: bytes) -> int:
    """The same for a type without a sign: some devices leave out the zero that keeps a high bit from meaning one."""
    return _held(contents, signed=False)


def _held(contents: bytes, *, signed: bool) -> int:
    if not 1 <= len(contents) <= _MAX_INTEGER_BYTES:
        raise Malformed(f"an integer of {len(contents)} bytes")
    found = int.from_bytes(contents, signed=signed)
    if not _LEAST <= found <= _MOST:
        raise Malformed("an integer of more than 64 bits")
    return found


def oid(contents: bytes) -> str:
    """Dotted text of an OBJECT IDENTIFIER's contents."""
    if not 1 <= len(contents) <= _MAX_OID_BYTES:
        raise Malformed(f"an object identifier of {len(contents)} bytes")
    return _oid(contents)


@lru_cache(_REMEMBERED)
def _oid(contents: bytes) -> str:
    arcs: list[int] = []
    arc = 0
    for byte in contents:
        if byte == _LONG and not arc:
            raise Malformed("an object identifier with a number that begins with nothing")  # X.690 §8.19.2
        arc = arc << 7 | byte & 0x7F
        if arc > _MAX_ARC:
            raise Malformed("an object identifier with a number above 2**32 - 1")
        if byte < _LONG:
            arcs.append(arc)
            arc = 0
    if contents[-1] & _LONG:
        raise Malformed("an object identifier that ends inside a number")
    first = min(arcs[0] // 40, 2)  # X.690 §8.19.4: two numbers in one
    arcs[:1] = [first, arcs[0] - 40 * first]
    if len(arcs) > _MAX_ARCS:
        raise Malformed(f"an object identifier of {len(arcs)} numbers")
    return ".".join(map(str, arcs))


# ---- writing


def value(tag: int, *contents: bytes) -> bytes:
    """A tag, the length, and the contents joined."""
    body = b"".join(contents)
    length = len(body)
    if length < _LONG:
        return bytes((tag, length)) + body
    size = (length.bit_length() + 7) // 8
    return bytes((tag, _LONG | size)) + length.to_bytes(size) + body


def from_integer(number: int, tag: int = INTEGER) -> bytes:
    """A whole INTEGER (or another type of its kind), in as few bytes as it needs."""
    bits = (number if number >= 0 else ~number).bit_length()
    return value(tag, number.to_bytes(bits // 8 + 1, signed=True))


def from_octets(octets: bytes) -> bytes:
    """A whole OCTET STRING."""
    return value(OCTET_STRING, octets)


def from_oid(text: str) -> bytes:
    """A whole OBJECT IDENTIFIER; the text is ours, dotted numbers with two at least."""
    first, second, *rest = map(int, text.split("."))
    return value(OID, *map(_arc, (40 * first + second, *rest)))


def _arc(arc: int) -> bytes:
    found = [arc & 0x7F]
    while arc := arc >> 7:
        found.append(arc & 0x7F | _LONG)
    return bytes(reversed(found))
