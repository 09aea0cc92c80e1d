"""Values of information elements as JSON text (RFC 7011 §6.1): addresses, times, strings, octets.

Promises: every function takes whatever bytes or number a field of its kind can hold, and gives valid JSON; texts that
repeat are remembered in tables that are bounded (they start over when full). Refuses: clocks.
"""

import math
import struct
from binascii import hexlify
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv6Address
from typing import Any, NamedTuple

import orjson

from ndagent.wire.netflow.elements import Kind

TEXTS_CACHED = 32768
"""Addresses remembered: those of one busy network."""
SECONDS_CACHED = 4096
_NTP_EPOCH_SECONDS = 2208988800  # 1900 to 1970, RFC 5905 §6
LAST_SECOND = 253402300799  # 9999-12-31T23:59:59Z, the last that RFC 3339 can say


class Texts(dict[Any, bytes]):
    """Texts by value, made when first asked for; at most `most` are kept."""

    def __init__(self, make: Callable[[Any], bytes], *, most: int) -> None:
        super().__init__()
        self._make = make
        self._most = most

    def __missing__(self, key: Any) -> bytes:
        if len(self) >= self._most:
            self.clear()
        text = self[key] = self._make(key)
        return text


def _ipv4(number: int) -> bytes:
    return b"%d.%d.%d.%d" % (number >> 24, number >> 16 & 255, number >> 8 & 255, number & 255)


def _ipv6(octets: bytes) -> bytes:
    return IPv6Address(octets).compressed.encode()


def _mac(octets: bytes) -> bytes:
    """As ECS wants it: upper case, hyphens (RFC 7042 §2.1)."""
    return hexlify(octets, b"-").upper()


def _second(number: int) -> bytes:
    return datetime.fromtimestamp(number, UTC).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0").encode()


IPV4 = Texts(_ipv4, most=TEXTS_CACHED)
"""Dotted quad by 32-bit number."""
IPV6 = Texts(_ipv6, most=TEXTS_CACHED)
"""RFC 5952 text by 16 octets."""
MAC = Texts(_mac, most=TEXTS_CACHED)
"""By 6 octets."""
SECONDS = Texts(_second, most=SECONDS_CACHED)
"""`2024-03-15T12:00:00`, by Unix second."""


def time_text(microseconds: int) -> bytes:
    """RFC 3339 in UTC, with milliseconds, or microseconds where there are any; empty for what no calendar has."""
    second, rest = divmod(microseconds, 1_000_000)
    if not 0 <= second <= LAST_SECOND:
        return b""
    if rest % 1000:
        return b"%b.%06dZ" % (SECONDS[second], rest)
    return b"%b.%03dZ" % (SECONDS[second], rest // 1000)


def ntp_microseconds(stamp: int) -> int:
    """Unix time in microseconds of a 64-bit NTP timestamp (RFC 7011 §6.1.9: era 0 and no other)."""
    seconds, fraction = stamp >> 32, stamp & 0xFFFFFFFF
    return (seconds - _NTP_EPOCH_SECONDS) * 1_000_000 + (fraction * 1_000_000 >> 32)


_MICROSECONDS_OF: dict[Kind, Callable[[int], int]] = {
    Kind.SECONDS: lambda value: value * 1_000_000,
    Kind.MILLISECONDS: lambda value: value * 1000,
    Kind.MICROSECONDS: ntp_microseconds,  # RFC 7011 §6.1.9: the low 11 bits of the fraction say nothing
    Kind.NANOSECONDS: ntp_microseconds,
}
"""What a number of this kind is in Unix microseconds."""


def _hex(octets: bytes) -> bytes:
    return b'"%b"' % hexlify(octets)


def _string(octets: bytes) -> bytes:
    """RFC 7011 §6.1.6: UTF-8; exporters pad with NUL."""
    return orjson.dumps(octets.rstrip(b"\0").decode(errors="replace"))


def _boolean(value: int) -> bytes:
    """RFC 7011 §6.1.5: 1 is true, 2 is false; the rest is undefined."""
    return {1: b"true", 2: b"false"}.get(value, b"null")


def _float(value: float) -> bytes:
    return orjson.dumps(value) if math.isfinite(value) else b"null"


def _time(kind: Kind) -> Callable[[int], bytes]:
    microseconds = _MICROSECONDS_OF[kind]

    def text(value: int) -> bytes:
        found = time_text(microseconds(value))
        return b'"%b"' % found if found else b"%d" % value

    return text


def _wide(*, signed: bool) -> Callable[[bytes], int]:
    return lambda octets: int.from_bytes(octets, signed=signed)


class Reading(NamedTuple):
    """How a field of some kind and length is taken out of its record and written."""

    code: str
    """What struct calls it."""
    text: Callable[..., bytes] | None = None
    """JSON text of the value; None: it is an integer, and `%d` writes it."""
    load: Callable[[bytes], int] | None = None
    """Makes an integer of the octets that struct gives, where it has no code for that length."""
    fits: bool = True
    """The value is of its kind; else it is octets, whatever the element is."""


_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_TIME_LENGTHS = {Kind.SECONDS: 4, Kind.MILLISECONDS: 8, Kind.MICROSECONDS: 8, Kind.NANOSECONDS: 8}
_FLOATS = {4: "f", 8: "d"}


def _quoted(texts: Texts) -> Callable[[Any], bytes]:
    return lambda value: b'"%b"' % texts[value]


QUOTED_IPV4 = _quoted(IPV4)
"""A JSON string."""


def reading(kind: Kind, length: int) -> Reading:
    """For any kind and length: one that does not fit the kind is octets, in hexadecimal."""
    code = f"{length}s"
    if kind is Kind.PADDING:
        return Reading(f"{length}x")
    if kind is Kind.STRING:
        return Reading(code, _string)
    found = _of_number(kind, length) or _of_address(kind, length)
    return found or Reading(code, _hex, fits=kind is Kind.OCTETS)


def _of_number(kind: Kind, length: int) -> Reading | None:
    if kind is Kind.UNSIGNED and length in _CODES:
        return Reading(_CODES[length])
    if kind is Kind.SIGNED and length in _CODES:
        return Reading(_CODES[length].lower())
    if kind in (Kind.UNSIGNED, Kind.SIGNED) and length < 8:  # RFC 7011 §6.2: reduced-size encoding
        return Reading(f"{length}s", load=_wide(signed=kind is Kind.SIGNED))
    if kind is Kind.FLOAT and length in _FLOATS:
        return Reading(_FLOATS[length], _float)
    if kind is Kind.BOOLEAN and length == 1:
        return Reading("B", _boolean)
    if _TIME_LENGTHS.get(kind) == length:
        return Reading(_CODES[length], _time(kind))
    return None


def _of_address(kind: Kind, length: int) -> Reading | None:
    if kind is Kind.IPV4 and length == 4:
        return Reading("I", QUOTED_IPV4)
    if kind is Kind.IPV6 and length == 16:
        return Reading("16s", _quoted(IPV6))
    if kind is Kind.MAC and length == 6:
        return Reading("6s", _quoted(MAC))
    return None


def variable_text(kind: Kind) -> Callable[[bytes], bytes]:
    """Writes fields without fixed length (RFC 7011 §7): each may have another."""

    def text(octets: bytes) -> bytes:
        if kind is Kind.STRING:
            return _string(octets)
        found = reading(kind, len(octets))
        if not octets or not found.fits or kind in (Kind.OCTETS, Kind.PADDING):
            return _hex(octets)
        (value,) = struct.unpack(f">{found.code}", octets)
        if found.load is not None:
            value = found.load(value)
        return b"%d" % value if found.text is None else found.text(value)

    return text
