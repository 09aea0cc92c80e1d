"""A batch as one object: its key, its bytes, what its metadata says, and what a stored object says of a batch.

    <prefix>/<node>-<spool id>-<first sequence, 20 digits>.ndjson.zst      (.log.zst for text formats)

Promises:
  * the key does not depend on where a batch ends: a batch that begins where a stored one began finds that one, however
    much longer or shorter it became by a restart. (The last sequence is in the metadata; in the key, the same events
    cut elsewhere would make a second object.)
  * keys sort by time and sequence, and no two spools share one;
  * metadata (`nd-…`) tells first and last sequence, count, node, spool, stream, format and the SHA-256 of the lines,
    so that "the same events" is a matter of bytes and never of trust;
  * the bytes are one zstd frame with a content checksum: `zstd -dc` reads them.
Refuses: I/O. `pack` and `Stored` work on whole batches: call them in threads.
"""

import hashlib
import re
import string
import sys
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from ndagent.wire.record import EventBatch

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FIELDS = ("stream", "node", "year", "month", "day", "hour")
"""What a prefix may name in braces; the times are those of reception, in UTC."""

CONTENT_TYPE = "application/zstd"  # RFC 8878 §8.1: the object is a zstd file, and no client unpacks it by itself
_LEVEL = 3
_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: _LEVEL,
    zstd.CompressionParameter.checksum_flag: 1,
}
MOST_BYTES = 64 * 2**20
"""Of lines in an object: the most that batch_bytes may be; a single event that is larger is alone in its object."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")  # the "safe characters" of S3's naming guide, less those that mislead
_JSON_FORMATS = ("ecs", "flat")


def check_prefix(prefix: str) -> str:
    """A prefix for keys; raises ValueError that shows a good one."""
    good = "write text with /, such as logs/{stream}/{year}/{month}/{day}"
    try:
        named = [name for _, name, spec, conversion in string.Formatter().parse(prefix) if name is not None]
    except ValueError as error:
        raise ValueError(f"{error}; {good}") from error
    if unknown := [name for name in named if name not in FIELDS]:
        raise ValueError(f"knows no {{{unknown[0]}}}; it may name {', '.join(FIELDS)}")
    if prefix.startswith("/") or "//" in prefix or not prefix.isprintable() or len(prefix.encode()) > 512:
        raise ValueError(f"{prefix!r} would give keys that few tools can name; {good}")
    return prefix.rstrip("/")


def key_of(events: EventBatch, *, prefix: str, node: str, variant: str = "") -> str:
    """Where the events go; `variant` for events that differ from those stored at the key without one."""
    at = datetime.fromtimestamp(events.received_at_ns / 1e9, UTC)
    times = {"year": f"{at:%Y}", "month": f"{at:%m}", "day": f"{at:%d}", "hour": f"{at:%H}"}
    folder = prefix.format(stream=_safe(events.stream), node=_safe(node), **times)
    kind = "ndjson" if events.format in _JSON_FORMATS else "log"
    tail = f"-{variant}" if variant else ""
    name = f"{_safe(node)}-{_safe(events.spool_id)}-{events.sequences[0]:020d}{tail}.{kind}.zst"
    return f"{folder}/{name}" if folder else name


def _safe(text: str) -> str:
    return _UNSAFE.sub("_", text)


@dataclass(frozen=True, slots=True)
class Packed:
    """An object to be: its body, the SHA-256 of that body, and its metadata."""

    body: bytes
    checksum: bytes
    metadata: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Of the lines: what tells them from others that begin at the same sequence."""
        return self.metadata["nd-sha256"]


def pack(events: EventBatch, *, node: str) -> Packed:
    """The object of a batch."""
    metadata = {
        "nd-first": str(events.sequences[0]),
        "nd-last": str(events.sequences[-1]),
        "nd-count": str(len(events)),
        "nd-sha256": hashlib.sha256(events.ndjson).hexdigest(),
        "nd-node": _safe(node),
        "nd-spool": _safe(events.spool_id),
        "nd-stream": _safe(events.stream),
        "nd-format": events.format,
    }
    body = zstd.compress(events.ndjson, options=_OPTIONS)
    return Packed(body, hashlib.sha256(body).digest(), metadata)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the metadata of a stored object says; see `read`."""

    first: int
    last: int
    count: int
    sha256: str

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> "Stored | None":
        """None where the object is not one of ours."""
        try:
            first, last, count = (int(metadata[f"nd-{name}"]) for name in ("first", "last", "count"))
            return cls(first, last, count, metadata["nd-sha256"])
        except (KeyError, ValueError):
            return None

    def held(self, events: EventBatch) -> int:
        """How many of the batch's first events are all that the object holds; 0 where it holds others, or more."""
        if not 0 < self.count <= len(events):
            return 0
        front = memoryview(events.ndjson)[: sum(events.lengths[: self.count])]
        return self.count if hashlib.sha256(front).hexdigest() == self.sha256 else 0


class Larger:
    """An object that holds more than the batch that begins like it, and how far batches have found themselves in it.

    Events are found by their bytes, in their order: what a filter left out of the object is nowhere in it. One batch at
    a time: lines without ids can be equal, and two batches side by side would find the same ones.
    """

    def __init__(self, stored: Stored, body: bytes, front: EventBatch) -> None:
        self.stored = stored
        self._body = body
        self._seen_until = front.sequences[-1]
        self._seen_bytes = len(front.ndjson)

    def find(self, events: EventBatch) -> "Found":
        """What it holds of a batch that begins amid it. Works on whole batches: call it in a thread."""
        known = bisect_right(events.sequences, self._seen_until)  # a batch that is sent once more
        at = start = sum(events.lengths[:known])
        held = known
        rest = memoryview(_unpacked(self._body, MOST_BYTES))[self._seen_bytes :]
        lines = memoryview(events.ndjson)
        for length in events.lengths[known:]:
            if rest[at - start : at - start + length] != lines[at : at + length]:
                break
            at, held = at + length, held + 1
        until = events.sequences[held - 1] if held > known else self._seen_until
        return Found(held, until, self._seen_bytes + at - start)

    def note(self, found: "Found") -> None:
        """The next batch begins behind these events."""
        self._seen_until, self._seen_bytes = found.until, found.seen_bytes


class Found(NamedTuple):
    """So many of a batch's first events stand in an object, up to this sequence and this byte of its lines."""

    held: int
    until: int
    seen_bytes: int


def begins_with(body: bytes, events: EventBatch) -> bool:
    """Whether an object's lines begin with these events; at most as much is unpacked."""
    return _unpacked(body, len(events.ndjson)) == events.ndjson


def _unpacked(body: bytes, most_bytes: int) -> bytes:
    """The first bytes of an object's lines; none where it is no zstd frame."""
    try:
        return zstd.ZstdDecompressor().decompress(body, max_length=most_bytes)
    except zstd.ZstdError:
        return b""
