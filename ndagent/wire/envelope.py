"""What an agent ships in one MQTT publish or one HTTPS request: a header and a compressed block of events.

Layout (integers little-endian):

    4 B   magic "NDE1"
    u32   header length
    u16   signature length; 0 where the transport itself proves who speaks (mutual TLS with the collector)
    ...   header: msgpack map with exactly the keys of `Header`, short names below
    ...   signature over SIGNED_PREFIX, header and body (ECDSA P-256 with SHA-256, DER, by the certificate's key)
    ...   body: zstd of NDJSON, one ECS object with an event.id a line, each line ended by LF

Promises: `unpack` of any bytes gives an Envelope or raises BadEnvelope or TooLarge, after work linear in the input and
without decompressing; `Envelope.ndjson` is exactly as many bytes and lines as the header declares, which `unpack` has
held against the limits, or raises BadEnvelope: a bomb costs no more than its limit.
Refuses: believing what it says. `agent_id` is compared with the certificate by whoever took the envelope, `key` names
a batch so that one that was sent twice is stored once, `run_id` tells two hosts with one certificate apart.
"""

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"NDE1"
SIGNED_PREFIX = b"neurodefender envelope 1\n"
"""So that a signature over an envelope is one over nothing else."""
STATUS_STREAM = "status"
"""What an envelope that carries a status report and no events names as its stream (through a foreign broker only)."""
MAX_HEADER_BYTES = 2048
MAX_SIGNATURE_BYTES = 512
LEVEL = 1
"""zstd levels 1 and 3 reach the same ratio on log lines (docs/performance.md); 1 costs the agent less."""
_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 24}
"""A frame may ask for a window of up to gigabytes before its first byte comes out; 16 MiB is more than ours need."""
_HEAD = struct.Struct("<4sIH")
_NAMES = {
    "stream": "st", "spool_id": "sp", "first": "f", "last": "l", "count": "n", "length": "b",
    "sent_at_ns": "t", "agent_id": "a", "run_id": "r",
}  # fmt: skip
_INTEGERS = ("first", "last", "count", "length", "sent_at_ns")
_LONGEST_TEXT = 128


class BadEnvelope(ValueError):
    """Bytes that are no envelope, or one that does not hold what it declares; sending it again will not help."""


class TooLarge(BadEnvelope):
    """An envelope beyond the receiver's limits: a smaller one would be taken."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the events. `first` and `last` are spool sequences, `length` counts uncompressed bytes."""

    stream: str
    spool_id: str
    first: int
    last: int
    count: int
    length: int
    sent_at_ns: int
    agent_id: str
    run_id: str

    @property
    def key(self) -> str:
        """The batch's name: the same for every try to send it, different for every other batch."""
        return f"{self.spool_id}-{self.first}-{self.last}-{self.count}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver takes in one envelope."""

    length_bytes: int
    events: int


@dataclass(frozen=True, slots=True)
class Envelope:
    """A header that was read, and what it belongs to, still compressed."""

    header: Header
    signature: bytes
    packed_header: memoryview
    body: memoryview

    @property
    def signed(self) -> bytes:
        """The bytes that `signature` covers."""
        return b"".join((SIGNED_PREFIX, self.packed_header, self.body))

    def ndjson(self) -> bytes:
        """The events, decompressed; raises BadEnvelope where they are not what the header declares."""
        decompressor = zstd.ZstdDecompressor(options=_OPTIONS)
        try:
            found: bytes = decompressor.decompress(self.body, max_length=self.header.length + 1)
        except zstd.ZstdError as error:
            raise BadEnvelope(f"body: {error}") from error
        if len(found) != self.header.length or not decompressor.eof or decompressor.unused_data:
            raise BadEnvelope(f"body is not the {self.header.length} bytes that the header declares")
        if found.count(b"\n") != self.header.count or not found.endswith(b"\n"):
            raise BadEnvelope(f"body is not the {self.header.count} lines that the header declares")
        return found


def pack(header: Header, ndjson: bytes, *, sign: Callable[[bytes], bytes] | None = None) -> bytes:
    """An envelope; `sign` makes the signature of the bytes it is given (for a way that leads over a foreign broker)."""
    return seal(header, compress(ndjson), sign=sign)


def compress(ndjson: bytes) -> bytes:
    """An envelope's body: the dear part of `pack`, to be done once for all ways that a batch may take."""
    return zstd.compress(ndjson, LEVEL)


def seal(header: Header, body: bytes, *, sign: Callable[[bytes], bytes] | None = None) -> bytes:
    """The envelope of a body that `compress` made; see `pack`."""
    packed = bytes(msgpack.packb({short: getattr(header, name) for name, short in _NAMES.items()}))
    signature = sign(b"".join((SIGNED_PREFIX, packed, body))) if sign else b""
    return b"".join((_HEAD.pack(MAGIC, len(packed), len(signature)), packed, signature, body))


def is_envelope(data: bytes | memoryview) -> bool:
    """Whether these bytes claim to be an envelope; anything else may be plain NDJSON."""
    return bytes(data[: len(MAGIC)]) == MAGIC


def unpack(data: bytes | memoryview, limits: Limits) -> Envelope:
    """Take an envelope apart, the body still compressed. Raises BadEnvelope, and TooLarge beyond the limits."""
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise BadEnvelope(f"{len(view)} bytes are too few for an envelope")
    magic, header_length, signature_length = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise BadEnvelope("does not begin with NDE1")
    signature_at = _HEAD.size + header_length
    body_at = signature_at + signature_length
    if header_length > MAX_HEADER_BYTES or signature_length > MAX_SIGNATURE_BYTES or body_at > len(view):
        raise BadEnvelope("header or signature is longer than it may be, or than what came")
    header = _header(view[_HEAD.size : signature_at])
    if header.length > limits.length_bytes or header.count > limits.events:
        raise TooLarge(
            f"{header.count} events in {header.length} bytes; the limits are {limits.events} and {limits.length_bytes}"
        )
    signature = bytes(view[signature_at:body_at])
    return Envelope(header, signature, view[_HEAD.size : signature_at], view[body_at:])


def _header(packed: memoryview) -> Header:
    try:
        found = msgpack.unpackb(packed, use_list=False, max_map_len=len(_NAMES), max_str_len=_LONGEST_TEXT)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadEnvelope(f"header: {error}") from error
    if not isinstance(found, dict) or found.keys() != set(_NAMES.values()):
        raise BadEnvelope("header has not the keys of an envelope")
    header = Header(**{name: _checked(name, found[short]) for name, short in _NAMES.items()})
    if not (header.first <= header.last and 1 <= header.count <= header.last - header.first + 1):
        raise BadEnvelope(f"header: {header.count} events cannot be {header.first} to {header.last}")
    if header.count * 3 > header.length:  # the shortest line is {} and its LF
        raise BadEnvelope(f"header: {header.count} events cannot be {header.length} bytes")
    return header


def _checked(name: str, value: Any) -> Any:
    if name in _INTEGERS:
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise BadEnvelope(f"header: {name} is not a count")
    elif not isinstance(value, str) or not value or not value.isprintable():
        raise BadEnvelope(f"header: {name} is not a name")
    return value
