"""OTLP's protobuf as it stands on the wire: values and attributes to bytes, and a server's two answers back.

Promises:
  * what comes out is what the official protobuf code reads back, field by field (tests hold the two together);
  * every JSON value has a form (an integer outside 64 bits becomes text), up to a depth that receivers read;
  * an answer that is not the message it should be is told from one that says nothing.
Refuses: knowing what an event is (ndcollector/outputs/otlp_records.py) and I/O.

Own code because it is faster though it does more (docs/otlp.md has the figures), and because the official package
brings the protobuf runtime, whose versions other programs in the same environment pin. Field numbers are those of
opentelemetry-proto 1.x: common.proto, logs.proto, logs_service.proto, and google/rpc/status.proto. Wire format:
protobuf.dev/programming-guides/encoding.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

MAX_DEPTH = 24
"""Receivers stop at 100 levels of messages (protobuf's own default); a map in a map is three of them."""


class TooDeepError(ValueError):
    """A value that is nested deeper than MAX_DEPTH."""


_DOUBLE = struct.Struct("<Bd")
_FIXED64 = struct.Struct("<BQ")
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5  # wire types
_INT64 = 1 << 63
_SMALL = tuple(bytes([n]) if n < 0x80 else bytes([n & 0x7F | 0x80, n >> 7]) for n in range(1 << 14))
_TRUE, _FALSE = b"\x10\x01", b"\x10\x00"  # AnyValue.bool_value = 2
NOTHING = b""
"""An AnyValue without a value: OTLP's null."""


def varint(number: int) -> bytes:
    """A non-negative integer below 2^64."""
    if number < 1 << 14:
        return _SMALL[number]
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def message(tag: int, body: bytes) -> bytes:
    """A field that holds a message, a text or bytes; `tag` is its number and wire type in one byte."""
    return _SMALL[tag] + varint(len(body)) + body


def fixed64(tag: int, number: int) -> bytes:
    """A field of type fixed64."""
    return _FIXED64.pack(tag, number)


def text_value(text: str) -> bytes:
    """AnyValue.string_value = 1."""
    data = text.encode()
    return b"\x0a" + varint(len(data)) + data


def bytes_value(data: bytes) -> bytes:
    """AnyValue.bytes_value = 7."""
    return b"\x3a" + varint(len(data)) + data


def value(found: Any, depth: int = 0) -> bytes:
    """The body of an AnyValue from a JSON value; raises TooDeepError."""
    if isinstance(found, str):
        return text_value(found)
    if isinstance(found, bool):
        return _TRUE if found else _FALSE
    if isinstance(found, int):
        return _integer(found)
    if isinstance(found, float):
        return _DOUBLE.pack(0x21, found)  # AnyValue.double_value = 4
    if found is None:
        return NOTHING
    if depth >= MAX_DEPTH:
        raise TooDeepError
    if isinstance(found, dict):
        pairs = b"".join([message(0x0A, attribute(key, inner, depth + 1)) for key, inner in found.items()])
        return message(0x32, pairs)  # AnyValue.kvlist_value = 6 of KeyValueList.values = 1
    items = b"".join([message(0x0A, value(inner, depth + 1)) for inner in found])
    return message(0x2A, items)  # AnyValue.array_value = 5 of ArrayValue.values = 1


def _integer(number: int) -> bytes:
    if not -_INT64 <= number < _INT64:
        return text_value(str(number))
    return b"\x18" + varint(number & 0xFFFF_FFFF_FFFF_FFFF)  # AnyValue.int_value = 3, two's complement


def key(name: str) -> bytes:
    """The front of a KeyValue: its key, and the tag of the value that follows."""
    return text_value(name) + b"\x12"


def attribute(name: str, found: Any, depth: int = 0) -> bytes:
    """The body of a KeyValue; raises TooDeepError."""
    body = value(found, depth)
    return key(name) + varint(len(body)) + body


class Outcome(NamedTuple):
    """What ExportLogsServiceResponse.partial_success says; zero and nothing where it is not there."""

    rejected: int = 0
    text: str = ""


def read_response(body: bytes, *, is_json: bool) -> Outcome:
    """The answer to a request that was taken, wholly or in part; raises ValueError where it is no such message."""
    if is_json:
        found = _json(body)
        if found.get("error") or found.get("errors"):
            raise ValueError("an error")
        said = _member(found, "partialSuccess", "partial_success") or {}
        if not isinstance(said, dict):
            raise ValueError("partialSuccess is no object")
        rejected = _number(_member(said, "rejectedLogRecords", "rejected_log_records"))
        return Outcome(rejected, str(_member(said, "errorMessage", "error_message") or ""))
    partial = _fields(_last(_fields(body), 1, b""))
    return Outcome(_signed(_last(partial, 1, 0)), _text(_last(partial, 2, b"")))


def read_status(body: bytes, *, is_json: bool) -> str:
    """The text of a google.rpc.Status, the answer to a request that was refused; empty where there is none."""
    try:
        return str(_json(body).get("message") or "") if is_json else _text(_last(_fields(body), 2, b""))
    except ValueError:
        return ""


def _json(body: bytes) -> dict[str, Any]:
    found = orjson.loads(body)
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004 - what was read is wrong, not what we were called with
    return found


def _member(found: dict[str, Any], name: str, field: str) -> Any:
    """protobuf's JSON is read with a field's name in either spelling."""
    return found.get(name, found.get(field))


def _number(found: Any) -> int:
    """protobuf's JSON writes 64-bit integers as text, and reads both, and 2.0; raises ValueError."""
    try:
        return int(found or 0)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _text(found: bytes) -> str:
    return found.decode("utf-8", "replace")


def _signed(found: int) -> int:
    return found - (1 << 64) if found >= _INT64 else found


def _last(fields: Mapping[int, int | bytes], number: int, otherwise: Any) -> Any:
    """A field's value where it has the type of `otherwise`: a peer may send any type under any number."""
    found = fields.get(number, otherwise)
    return found if type(found) is type(otherwise) else otherwise


def _fields(body: bytes) -> dict[int, int | bytes]:
    """A message's fields by number, the last one of each; raises ValueError where the bytes are no message."""
    try:
        return dict(_walk(body))
    except IndexError:
        raise ValueError("cut off") from None


def _walk(body: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(body):
        head, at = _varint_at(body, at)
        number, kind = head >> 3, head & 7
        if kind == _VARINT:
            found, at = _varint_at(body, at)
            yield number, found
            continue
        size = {_FIXED_64: 8, _FIXED_32: 4}.get(kind)
        if kind == _BYTES:
            size, at = _varint_at(body, at)
        if size is None or at + size > len(body):
            raise ValueError("not a message")
        yield number, body[at : at + size]
        at += size


def _varint_at(body: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while shift < 64:
        byte = body[at]
        at += 1
        found |= (byte & 0x7F) << shift
        if byte < 0x80:
            return found & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise ValueError("a varint of more than ten bytes")
