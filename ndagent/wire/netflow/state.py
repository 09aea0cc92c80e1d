"""Templates on disk, so that a restart need not wait for exporters to announce them again (half an hour, by default).

Promises: what `pack` wrote `restore` reads, through the same checks and limits as a template from the wire; anything
else is a ValueError, and then nothing is known, as on the first start. Refuses: files.

Layout: 8 B magic (the version is its last digit), u32le CRC-32 of the rest, msgpack [Unix second, [[exporter,
[[version, domain, sampler rates as pairs, boot in Unix µs or nil, [[template id, scope fields, field specifiers],
...]], ...]], ...]], the longest unused first; a specifier is i64 enterprise, u16 element, u16 length, big-endian.
"""

import struct
from binascii import crc32
from typing import Any

import msgpack

from ndagent.wire.netflow.packets import Definition
from ndagent.wire.netflow.template import Field, Template
from ndagent.wire.netflow.templates import Domain, Shape, Templates

MAX_STATE_BYTES = 16 * 2**20
"""Of a file that is read; the default limits fill a quarter of it."""
LIFETIME_SECONDS = 86400
"""Older templates are not believed: the exporter may have been configured anew while nobody listened."""
_HEAD_BYTES = 64
_MAGIC = b"NDflow1\n"
_CRC = struct.Struct("<I")
_SPECIFIER = struct.Struct(">qHH")


def pack(templates: Templates, *, now: float) -> bytes:
    """Templates, rates and boot times of v9 and IPFIX: all, or as many of the last used as a file may have."""
    exporters: dict[str, list[Any]] = {}
    room = MAX_STATE_BYTES - _HEAD_BYTES
    packed: dict[Shape, bytes] = {}  # thousands of exporters share a few shapes
    for address, domain in reversed(list(templates.all())):
        told = _domain(domain, packed)
        room -= _most_bytes(address, told)
        if room < 0:
            break
        exporters.setdefault(address, []).append(told)
    oldest_first = [(address, domains[::-1]) for address, domains in reversed(exporters.items())]
    body = bytes(msgpack.packb([int(now), oldest_first]))
    return _MAGIC + _CRC.pack(crc32(body)) + body


def restore(templates: Templates, data: bytes, *, now: float) -> int:
    """Take up what `pack` wrote; how many templates that were. Raises ValueError."""
    start = len(_MAGIC) + _CRC.size
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("not a file of templates, or of another version")
    if data[len(_MAGIC) : start] != _CRC.pack(crc32(data[start:])):
        raise ValueError("its checksum is wrong")
    try:
        saved_at, exporters = msgpack.unpackb(data[start:], strict_map_key=False)
        if now - saved_at > LIFETIME_SECONDS:
            return 0
        for address, domains in exporters:
            for domain in domains:
                _restore_domain(templates, str(address), *domain)
    except (ValueError, TypeError, struct.error, msgpack.UnpackException) as error:
        raise ValueError(f"its contents are not templates: {error}") from error
    return templates.count


def _domain(domain: Domain, packed: dict[Shape, bytes]) -> list[Any]:
    shapes = []
    for template_id, shape in domain.templates.items():
        fields = packed.get(shape)
        if fields is None:
            fields = packed[shape] = b"".join(_SPECIFIER.pack(*field) for field in shape.template.fields)
        shapes.append([template_id, shape.template.scopes, fields])
    return [domain.version, domain.number, list(domain.rates.items()), domain.boot_us, shapes]


def _most_bytes(address: str, told: list[Any]) -> int:
    """What msgpack may need for a domain: at most 9 bytes a number, 5 for the head of anything else."""
    rates, shapes = told[2], told[4]
    return 64 + len(address) + 20 * len(rates) + sum(24 + len(fields) for *_, fields in shapes)


def _restore_domain(
    templates: Templates, address: str, version: int, number: int, rates: Any, boot_us: int | None, shapes: Any
) -> None:
    domain = templates.domain(address, version, number)
    templates.learn_rates(address, domain, {sampler: int(rate) for sampler, rate in rates})
    templates.learn_boot(domain, boot_us)
    for template_id, scopes, packed in shapes:
        fields = [Field(*one) for one in _SPECIFIER.iter_unpack(packed)]
        template = Template(fields, scopes=scopes)
        templates.define(address, domain, Definition(template_id, template, is_options=scopes > 0))
