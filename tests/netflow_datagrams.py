"""Export datagrams as exporters write them, from fields and values: for tests and for bench/netflow.py."""

import struct
from collections.abc import Sequence

from ndagent.wire.netflow.decoder import FlowDecoder

NOON = 1_710_504_000
"""2024-03-15T12:00:00Z"""

Field = tuple[int, int] | tuple[int, int, int]
"""Number and length, or enterprise, number and length."""


def v5(*flows: bytes, sequence: int = 0, uptime: int = 60_000, sampling: int = 0, seconds: int = NOON, engine: int = 0) -> bytes:  # fmt: skip  # noqa: E501
    """Header and flow records."""
    return struct.pack(">HHIIIIHH", 5, len(flows), uptime, seconds, 0, sequence, engine, sampling) + b"".join(flows)


def v5_flow(source: int = 0x0A000001, destination: int = 0x0A000002, **given: int) -> bytes:
    """A record; what is not given is a TCP flow of 10 packets and 1000 bytes that ended a second ago."""
    values = {
        "hop": 0, "input": 1, "output": 2, "packets": 10, "bytes": 1000, "first": 50_000, "last": 59_000,
        "sport": 50_000, "dport": 443, "flags": 0x1B, "protocol": 6, "tos": 0, "source_as": 0, "destination_as": 0,
        "source_mask": 24, "destination_mask": 16,
    }  # fmt: skip
    values |= given
    return struct.pack(">IIIHHIIIIHHxBBBHHBBxx", source, destination, *values.values())


def pack_set(set_id: int, content: bytes, *, padding: int = 0) -> bytes:
    """A set with its header."""
    return struct.pack(">HH", set_id, 4 + len(content) + padding) + content + bytes(padding)


def specifiers(fields: Sequence[Field]) -> bytes:
    """Field specifiers, with enterprise numbers where there are some."""
    found = b""
    for field in fields:
        if len(field) == 3:
            found += struct.pack(">HHI", field[1] | 0x8000, field[2], field[0])
        else:
            found += struct.pack(">HH", *field)
    return found


def template(template_id: int, fields: Sequence[Field]) -> bytes:
    """A template record, of v9 and IPFIX alike."""
    return struct.pack(">HH", template_id, len(fields)) + specifiers(fields)


def options_template(template_id: int, scopes: Sequence[Field], fields: Sequence[Field]) -> bytes:
    """IPFIX's."""
    return struct.pack(">HHH", template_id, len(scopes) + len(fields), len(scopes)) + specifiers([*scopes, *fields])


def v9_options_template(template_id: int, scopes: Sequence[Field], fields: Sequence[Field]) -> bytes:
    """Cisco's: lengths in bytes."""
    head = struct.pack(">HHH", template_id, 4 * len(scopes), 4 * len(fields))
    return head + specifiers([*scopes, *fields])


def v9(*sets: bytes, sequence: int = 0, source: int = 7, uptime: int = 60_000, seconds: int = NOON, count: int = 1) -> bytes:  # fmt: skip  # noqa: E501
    """Header and sets."""
    return struct.pack(">HHIIII", 9, count, uptime, seconds, sequence, source) + b"".join(sets)


def ipfix(*sets: bytes, sequence: int = 0, domain: int = 7, seconds: int = NOON) -> bytes:
    """Header and sets."""
    content = b"".join(sets)
    return struct.pack(">HHIII", 10, 16 + len(content), seconds, sequence, domain) + content


def lines_of(decoder: FlowDecoder, exporter: str, data: bytes, *, now: float = NOON) -> list[bytes]:
    """All that a datagram brings about."""
    found = list(decoder.feed(exporter, data, now=now))
    lines = b"".join(written.text for written in found).splitlines(keepends=True)
    assert len(lines) == sum(written.lines for written in found)
    return lines
