"""What a file is known by, and what is remembered of it: the part of the checkpoint that belongs to one file.

Promises: a file is the same one only if device and inode agree, its first bytes are those that were seen, and the bytes
before the position are those that were read last. So a reused inode, a file cut and written anew, and a copy are told
apart, whatever their sizes are. Pure functions over bytes.

    head    hash of the first bytes, up to HEAD_BYTES, growing with the file until then
    mark    hash of the last bytes before the position, up to MARK_BYTES: read again with every read, so that nothing
            that was written over what is already delivered can be taken for its continuation
"""

import struct
from enum import IntFlag
from hashlib import blake2b
from typing import NamedTuple

import msgpack

HEAD_BYTES = 1024
MARK_BYTES = 128
_VERSION = 1
_OVER = 4
"""Beside Within in a part of the checkpoint; versions before this one keep it there and do not look at it."""
_KEY = struct.Struct("<QQ?")


class Key(NamedTuple):
    """Device and inode, and whether the file is read through gzip."""

    device: int
    inode: int
    is_gzip: bool = False

    def pack(self) -> bytes:
        """The key of the file's part in a checkpoint."""
        return _KEY.pack(self.device, self.inode, self.is_gzip)

    @classmethod
    def unpack(cls, data: bytes) -> "Key":
        """Inverse of `pack`; raises ValueError."""
        try:
            return cls(*_KEY.unpack(data))
        except struct.error as error:
            raise ValueError(str(error)) from error


class Print(NamedTuple):
    """So many bytes, and their hash."""

    length: int
    digest: bytes

    def fits(self, data: bytes) -> bool:
        """Whether the data begins with these bytes."""
        return len(data) >= self.length and (self.length == 0 or _digest(data[: self.length]) == self.digest)


NOTHING = Print(0, b"")


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=12).digest()


def print_head(data: bytes) -> Print:
    """The head of a file that begins with `data`."""
    data = data[:HEAD_BYTES]
    return Print(len(data), _digest(data)) if data else NOTHING


def print_mark(before: bytes) -> Print:
    """The mark of a position that these bytes stand before (all of the file's, or at least MARK_BYTES)."""
    data = before[-MARK_BYTES:]
    return Print(len(data), _digest(data)) if data else NOTHING


class Within(IntFlag):
    """Where in a line the position is."""

    NOTHING = 0
    DELIVERED = 1  # its beginning was delivered because its end did not come: the rest is an event of its own
    SKIPPED = 2  # it is too long, or began before we did: the rest is passed over


class Place(NamedTuple):
    """Up to where a file has been read: `position` is a byte offset, in the decompressed text where it is gzip."""

    position: int = 0
    mark: Print = NOTHING
    within: Within = Within.NOTHING


class Remembered(NamedTuple):
    """A file's part of the checkpoint. `size` is what it had when it was last looked at.

    `is_over`: no wanted name led to it any more, and it was read to its end.
    """

    place: Place
    head: Print
    path: str
    size: int
    is_over: bool = False

    def pack(self) -> bytes:
        """The part's bytes."""
        position, mark, within = self.place
        path = self.path.encode("utf-8", "surrogateescape")
        flags = int(within) | (_OVER if self.is_over else 0)
        return bytes(msgpack.packb([_VERSION, position, list(mark), flags, list(self.head), path, self.size]))

    @classmethod
    def unpack(cls, data: bytes) -> "Remembered":
        """Inverse of `pack`; raises ValueError."""
        try:
            version, position, mark, flags, head, path, size = msgpack.unpackb(data)
            text = path.decode("utf-8", "surrogateescape")
            place = Place(position, Print(*mark), Within(flags & ~_OVER))
            found = cls(place, Print(*head), text, size, bool(flags & _OVER))
        except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
            raise ValueError(f"not a file's checkpoint: {error}") from error
        if version != _VERSION:
            raise ValueError(f"a file's checkpoint of version {version!r}, this program reads {_VERSION}")
        return found
