"""Compressed batches of records, unpacked within a limit: aiokafka knows none, and a megabyte of zstd holds gigabytes.

Promises: a batch that unpacks to more than `most_bytes` is given up as soon as that shows, with no more than about so
much in memory; what its partition held before it is read, and `refuse` is called with the place.
Refuses: going on behind it: it stays on the topic, and a person decides.

aiokafka's modules that read batches hold the codecs' functions by name; they are replaced there, for the whole process,
as is the generator that walks through batches. Limit and `refuse` belong to the task that reads.
"""

import gzip
import importlib
import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar

import cramjam
from aiokafka import ConsumerRecord, TopicPartition, codec, errors
from aiokafka.consumer.fetcher import PartitionRecords

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_WINDOW_LOG = 26  # 64 MiB; a frame may ask for 2 GiB
_READERS = [f"aiokafka.record.{place}{kind}_records" for place in ("", "_crecords.") for kind in ("default", "legacy")]
_most: ContextVar[int] = ContextVar("most_bytes", default=2**31 - 1)  # a batch's own limit
_refuse: ContextVar[Callable[[TopicPartition, int], None]] = ContextVar("refuse")


class _BatchTooLargeError(Exception):
    """It holds more than the limit."""


def limit_unpacking(most_bytes: int, refuse: Callable[[TopicPartition, int], None]) -> None:
    """Hold what this task reads to the limit, from now on; `refuse` gets partition and offset of what is beyond it."""
    _most.set(most_bytes)
    _refuse.set(refuse)
    PartitionRecords._unpack_records = _records  # noqa: SLF001 - see the module
    for name in _READERS:
        with suppress(ImportError):  # the compiled ones may be missing
            module = importlib.import_module(name)
            for kind, unpack in _CODECS.items():
                if hasattr(module, f"{kind}_decode"):
                    setattr(module, f"{kind}_decode", unpack)


def _records(of: PartitionRecords) -> Iterator[ConsumerRecord]:
    """In place of PartitionRecords._unpack_records, whose errors would take along what stands before the batch."""
    try:
        yield from _all_records(of)
    except _BatchTooLargeError:
        _refuse.get()(of._tp, of.next_fetch_offset)  # noqa: SLF001


def _within(size: int) -> None:
    if size > _most.get():
        raise _BatchTooLargeError


def _gzip(payload: bytes) -> bytes:
    try:
        found = gzip.GzipFile(fileobj=io.BytesIO(payload)).read(_most.get() + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise errors.CorruptRecordException(f"gzip: {error}") from error
    _within(len(found))
    return found


def _zstd(payload: bytes) -> bytes:
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        found: bytes = decompressor.decompress(payload, max_length=_most.get() + 1)
    except zstd.ZstdError as error:
        raise errors.CorruptRecordException(f"zstd: {error}") from error
    _within(len(found))
    if not decompressor.eof or decompressor.unused_data:
        raise errors.CorruptRecordException("zstd: not one whole frame")
    return found


def _lz4(payload: bytes) -> bytes:
    """In a buffer that grows: the frame seldom says how much it holds."""
    room = 1024 + 8 * len(payload)
    while True:
        room = min(room, _most.get())
        buffer = bytearray(room)
        try:
            return bytes(memoryview(buffer)[: cramjam.lz4.decompress_into(payload, buffer)])
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error):
                raise errors.CorruptRecordException(f"lz4: {error}") from error
        _within(room + 1)
        room *= 4


def _snappy(payload: bytes) -> bytes:
    try:
        _within(sum(map(cramjam.snappy.decompress_raw_len, _snappy_blocks(memoryview(payload)))))
        found: bytes = codec.snappy_decode(payload)
    except (cramjam.DecompressionError, struct.error) as error:
        raise errors.CorruptRecordException(f"snappy: {error}") from error
    return found


def _snappy_blocks(payload: memoryview) -> Iterator[memoryview]:
    """As aiokafka tells them apart: Java's frames them after a header of 16 bytes, others write one block."""
    if not codec._detect_xerial_stream(payload):  # noqa: SLF001 - it has no public name
        yield payload
        return
    at = 16
    while at < len(payload):
        (size,) = struct.unpack_from("!i", payload, at)
        if size <= 0:
            raise errors.CorruptRecordException("snappy: a block without a size")
        yield payload[at + 4 : at + 4 + size]
        at += 4 + size


_all_records = PartitionRecords._unpack_records  # noqa: SLF001
_CODECS: dict[str, Callable[[bytes], bytes]] = {"gzip": _gzip, "zstd": _zstd, "lz4": _lz4, "snappy": _snappy}
