"""Export datagrams: their headers and sets, of NetFlow v5, v9 (RFC 3954) and IPFIX (RFC 7011).

Promises: reads only inside the datagram, whatever its lengths say, and ends: every set takes at least its own header.
What a datagram holds up to a fault is given, and the fault is told; a set of templates that is wrong costs no other
set, as its length is known. Refuses: other versions; meaning (template.py).
"""

import struct
from typing import NamedTuple

from ndagent.wire.netflow.elements import IANA, SCOPE
from ndagent.wire.netflow.template import VARIABLE, Field, Template

V5, V9, IPFIX = 5, 9, 10

_VERSION = struct.Struct(">H")
_V5_HEAD = struct.Struct(">HHIIIIBBH")  # version, count, uptime, seconds, nanoseconds, sequence, engine, sampling
_V9_HEAD = struct.Struct(">HHIIII")  # version, count, uptime, seconds, sequence, source id
_IPFIX_HEAD = struct.Struct(">HHIII")  # version, length, seconds, sequence, observation domain
_SET_HEAD = struct.Struct(">HH")
_PAIR = struct.Struct(">HH")
_V9_OPTIONS_HEAD = struct.Struct(">HHH")
_U32 = struct.Struct(">I")
_ENTERPRISE_BIT = 0x8000
_V5_RECORD_BYTES = 48
FIRST_DATA_SET = 256
"""Set ids from here on are template ids; those below are the formats' own."""

V5_TEMPLATE = Template(
    [
        Field(IANA, number, length)
        for number, length in (
            (8, 4), (12, 4), (15, 4), (10, 2), (14, 2), (2, 4), (1, 4), (22, 4), (21, 4), (7, 2), (11, 2), (210, 1),
            (6, 1), (4, 1), (5, 1), (16, 2), (17, 2), (9, 1), (13, 1), (210, 2),
        )
    ]
)  # fmt: skip
"""A v5 flow record in the terms of its successors (Cisco, "NetFlow Export Datagram Format", table B-4)."""


class Header(NamedTuple):
    """What the three headers have in common."""

    version: int
    domain: int
    """Observation domain, source id, or engine type and id (v5)."""
    sequence: int
    export_us: int
    uptime_ms: int | None = None
    rate: int = 1
    flows: int = 0
    """Of v5: flows in the datagram, as the exporter says."""


class DataSet(NamedTuple):
    """Records of the template with this id."""

    template_id: int
    content: memoryview


class Definition(NamedTuple):
    """A template, or the end of one (None); an id below FIRST_DATA_SET ends all of its kind (RFC 7011 §8.1)."""

    template_id: int
    template: Template | None
    is_options: bool


class Datagram(NamedTuple):
    """One datagram taken apart; `fault` is what is wrong with the rest of it."""

    header: Header
    parts: list[DataSet | Definition]
    fault: str | None = None


class Malformed(ValueError):
    """Nothing of this datagram can be used."""


def parse(data: bytes) -> Datagram:
    """Raises Malformed."""
    if len(data) < 2:
        raise Malformed("no version")
    (version,) = _VERSION.unpack_from(data)
    read = {V5: _v5, V9: _v9, IPFIX: _ipfix}.get(version)
    if read is None:
        raise Malformed(f"version {version}; 5, 9 and 10 are read")
    try:
        return read(memoryview(data))
    except struct.error as error:
        raise Malformed(f"a header of version {version} that is cut") from error


def _v5(data: memoryview) -> Datagram:
    _, count, uptime, seconds, nanoseconds, sequence, kind, engine, sampling = _V5_HEAD.unpack_from(data)
    there = min(count, (len(data) - _V5_HEAD.size) // _V5_RECORD_BYTES)
    header = Header(
        V5, kind << 8 | engine, sequence, seconds * 1_000_000 + min(nanoseconds // 1000, 999_999), uptime,
        max(sampling & 0x3FFF, 1), count,
    )  # fmt: skip  # the two bits above are the sampling mode
    content = data[_V5_HEAD.size : _V5_HEAD.size + there * _V5_RECORD_BYTES]
    fault = None if there == count else f"{count} flows told, {there} there"
    return Datagram(header, [DataSet(FIRST_DATA_SET, content)], fault)


def _v9(data: memoryview) -> Datagram:
    _, _, uptime, seconds, sequence, source = _V9_HEAD.unpack_from(data)
    parts, fault = _sets(data[_V9_HEAD.size :], template_id=0, options_id=1)
    return Datagram(Header(V9, source, sequence, seconds * 1_000_000, uptime), parts, fault)


def _ipfix(data: memoryview) -> Datagram:
    _, length, seconds, sequence, domain = _IPFIX_HEAD.unpack_from(data)
    parts, fault = _sets(data[_IPFIX_HEAD.size : length], template_id=2, options_id=3)
    if length != len(data):
        fault = fault or f"a length of {length} in {len(data)} bytes"
    return Datagram(Header(IPFIX, domain, sequence, seconds * 1_000_000), parts, fault)


def _sets(data: memoryview, *, template_id: int, options_id: int) -> tuple[list[DataSet | Definition], str | None]:
    parts: list[DataSet | Definition] = []
    at, fault = 0, None
    while len(data) - at >= _SET_HEAD.size:
        set_id, length = _SET_HEAD.unpack_from(data, at)
        if length < _SET_HEAD.size or at + length > len(data):
            return parts, f"a set of {length} bytes where {len(data) - at} are left"
        content = data[at + _SET_HEAD.size : at + length]
        at += length
        try:
            if set_id >= FIRST_DATA_SET:
                parts.append(DataSet(set_id, content))
            elif set_id == template_id:
                _templates(content, parts, is_ipfix=template_id == 2)
            elif set_id == options_id:
                (_options if template_id == 2 else _v9_options)(content, parts)
            else:
                fault = fault or f"a set with the reserved id {set_id}"
        except (struct.error, ValueError) as error:
            fault = fault or f"template set: {error}"
    return parts, fault


def _templates(content: memoryview, parts: list[DataSet | Definition], *, is_ipfix: bool) -> None:
    """Templates up to the padding, which is shorter than any."""
    at = 0
    while len(content) - at >= 4:
        template_id, count = _PAIR.unpack_from(content, at)
        at += 4
        if not template_id and not count:
            return  # four bytes of padding
        if is_ipfix and not count:
            parts.append(Definition(template_id, None, is_options=False))
            continue
        fields, at = _fields(content, at, count, is_ipfix=is_ipfix)
        _define(parts, template_id, Template(fields), is_options=False)


def _options(content: memoryview, parts: list[DataSet | Definition]) -> None:
    """RFC 7011 §3.4.2.2."""
    at = 0
    while len(content) - at >= 4:
        template_id, count = _PAIR.unpack_from(content, at)
        at += 4
        if not template_id and not count:
            return
        if not count:
            parts.append(Definition(template_id, None, is_options=True))
            continue
        (scopes,) = _VERSION.unpack_from(content, at)
        if not 0 < scopes <= count:
            raise ValueError(f"{scopes} scope fields of {count}")
        named, at = _fields(content, at + 2, scopes, is_ipfix=True)
        fields, at = _fields(content, at, count - scopes, is_ipfix=True)
        _define(parts, template_id, Template([*named, *fields], scopes=max(len(named), 1)), is_options=True)


def _v9_options(content: memoryview, parts: list[DataSet | Definition]) -> None:
    """RFC 3954 §6.1: lengths in bytes, and scopes that have numbers of their own."""
    at = 0
    while len(content) - at >= _V9_OPTIONS_HEAD.size:
        template_id, scope_bytes, option_bytes = _V9_OPTIONS_HEAD.unpack_from(content, at)
        if not template_id:
            return  # padding
        if scope_bytes % 4 or option_bytes % 4:
            raise ValueError("lengths that are no multiple of a field's")
        at += _V9_OPTIONS_HEAD.size
        scopes, at = _fields(content, at, scope_bytes // 4, is_ipfix=False)
        fields, at = _fields(content, at, option_bytes // 4, is_ipfix=False)
        named = [Field(SCOPE, scope.number, scope.length) for scope in scopes]
        # One without scope tells of the exporter as one with it: what makes it options is its set.
        template = Template([*named, *fields], scopes=max(len(named), 1))
        _define(parts, template_id, template, is_options=True)


def _fields(content: memoryview, at: int, count: int, *, is_ipfix: bool) -> tuple[list[Field], int]:
    """One of no length has no value and is left out: Juniper's SRX give their options the scope System so."""
    if at + count * 4 > len(content):
        raise ValueError(f"{count} fields in {len(content) - at} bytes")
    found = []
    for _ in range(count):
        number, length = _PAIR.unpack_from(content, at)
        at += 4
        enterprise = IANA
        if is_ipfix and number & _ENTERPRISE_BIT:  # RFC 7011 §3.2
            (enterprise,) = _U32.unpack_from(content, at)
            number ^= _ENTERPRISE_BIT
            at += 4
        elif not is_ipfix and length == VARIABLE:  # RFC 3954 has no such thing
            raise ValueError("a field longer than any datagram")
        if length:
            found.append(Field(enterprise, number, length))
    return found, at


def _define(parts: list[DataSet | Definition], template_id: int, template: Template, *, is_options: bool) -> None:
    if template_id < FIRST_DATA_SET:
        raise ValueError(f"a template with the id {template_id}; they begin at {FIRST_DATA_SET}")
    parts.append(Definition(template_id, template, is_options))
