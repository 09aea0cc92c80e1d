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
from ndagent.wire.netflow.templates import Domain, Templates

MAX_STATE_BYTES = 16 * 2**20
"""Of a file that is read; the default limits fill a quarter of it."""
LIFETIME_SECONDS = 86400
"""Older templates are not believed: the exporter may have been configured anew while nobody listened."""
_MAGIC = b"NDflow1\n"
_CRC = struct.Struct("<I")
_SPECIFIER = struct.Struct(">qHH")


def pack(templates: Templates, *, now: float) -> bytes:
    """All templates, rates and boot times of v9 and IPFIX."""
    exporters: dict[str, list[Any]] = {}
    for address, domain in templates.all():
        exporters.setdefault(address, []).append(_domain(domain))
    body = bytes(msgpack.packb([int(now), list(exporters.items())]))
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


def _domain(domain: Domain) -> list[Any]:
    shapes = [
        [template_id, shape.template.scopes, b"".join(_SPECIFIER.pack(*field) for field in shape.template.fields)]
        for template_id, shape in domain.templates.items()
    ]
    return [domain.version, domain.number, list(domain.rates.items()), domain.boot_us, shapes]


def _restore_domain(
    templates: Templates, address: str, version: int, number: int, rates: Any, boot_us: int | None, shapes: Any
) -> None:
    domain = templates.domain(address, version, number)
    domain.learn_rates({sampler: int(rate) for sampler, rate in rates})
    domain.boot_us = boot_us
    for template_id, scopes, packed in shapes:
        fields = [Field(*one) for one in _SPECIFIER.iter_unpack(packed)]
        template = Template(fields, scopes=scopes)
        templates.define(address, domain, Definition(template_id, template, is_options=scopes > 0))
