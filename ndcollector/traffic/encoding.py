"""A batch as the body of a request: NDJSON, a JSON array or msgpack, compressed or not.

Promises: NDJSON goes out as it is and a JSON array is made of it by one `replace`: nothing here looks at single events
but msgpack and text formats in an array. gzip is ISA-L's where it is installed (`fast`), level 1 either way: smaller
than zlib's level 1 on log lines, at an eighth of the time (docs/traffic.md has the figures).
Refuses: threads (call it in one where the batch is large: the compressors let go of the GIL).
"""

import sys
import zlib
from contextlib import suppress
from typing import Any, Literal

import msgpack
import orjson

from ndagent.wire.record import EventBatch

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

gzip_library: Any = zlib  # gives the same, at eight times the price
with suppress(ImportError):
    from isal import isal_zlib as gzip_library

Encoding = Literal["ndjson", "json_array", "msgpack"]
Compression = Literal["none", "gzip", "zstd"]

JSON_FORMATS = frozenset({"ecs", "flat"})
"""Of EventBatch.format: a line is a JSON object; of any other it is text."""

_GZIP_WINDOW = 31  # zlib.h: 15 bits of window, and 16 for gzip's header and trailer
_ZSTD_LEVEL = 1  # reaches on log lines what level 3 does (see ndagent/wire/envelope.py)


def content_type(encoding: Encoding, format: str) -> str:  # noqa: A002 - EventBatch's name for it
    """What the body is."""
    if encoding == "msgpack":
        return "application/msgpack"
    if encoding == "json_array":
        return "application/json"
    return "application/x-ndjson" if format in JSON_FORMATS else "text/plain; charset=utf-8"


def encode(events: EventBatch, encoding: Encoding) -> bytes:
    """The body, not compressed."""
    if encoding == "ndjson":
        return events.ndjson
    if events.format in JSON_FORMATS:
        # A line feed inside JSON text is always escaped (RFC 8259 §7): each one here ends an event.
        with_commas = memoryview(events.ndjson.replace(b"\n", b","))
        array = b"".join((b"[", with_commas[:-1], b"]"))
        return array if encoding == "json_array" else _msgpack(orjson.loads(array))
    texts = [line[:-1].decode("utf-8", "replace") for line in events.lines()]
    return orjson.dumps(texts) if encoding == "json_array" else _msgpack(texts)


def compress(body: bytes, compression: Compression) -> bytes:
    """The body as its Content-Encoding says."""
    if compression == "gzip":
        compressor = gzip_library.compressobj(1, gzip_library.DEFLATED, _GZIP_WINDOW)
        return bytes(compressor.compress(body) + compressor.flush())
    return zstd.compress(body, _ZSTD_LEVEL) if compression == "zstd" else body


def _msgpack(found: object) -> bytes:
    packed: bytes = msgpack.packb(found)
    return packed
