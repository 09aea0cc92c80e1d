"""OTLP's bytes against OpenTelemetry's own protobuf code, in both directions."""

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from ndagent.wire import otlp

_SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


def plain(found: AnyValue) -> Any:
    """What the official code read, as JSON would have it."""
    kind = found.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(item) for item in found.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in found.kvlist_value.values}
    return getattr(found, kind)


@given(_JSON)
def test_every_json_value_reads_back_as_it_was(found: Any) -> None:
    """Types too: true is no 1, and 1.0 is a double."""
    read = plain(AnyValue.FromString(otlp.value(found)))
    assert orjson.dumps(read) == orjson.dumps(found)


@given(st.text(), _JSON)
def test_an_attribute_has_its_name_and_its_value(name: str, found: Any) -> None:
    """Whatever their lengths: both are behind a varint."""
    read = KeyValue.FromString(otlp.attribute(name, found))
    assert read.key == name
    assert orjson.dumps(plain(read.value)) == orjson.dumps(found)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16383, 16384, 2**21 - 1, 2**21])
def test_texts_around_each_length_of_a_varint(length: int) -> None:
    """Where encoders are off by one."""
    assert AnyValue.FromString(otlp.value("x" * length)).string_value == "x" * length


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63) - 1])
def test_an_integer_beyond_64_bits_becomes_text(number: int) -> None:
    """JSON has them; an int_value has not. A digit lost would be evidence lost."""
    assert AnyValue.FromString(otlp.value(number)).string_value == str(number)


def test_what_receivers_could_not_read_is_refused() -> None:
    """Their parsers stop at a hundred levels: the caller sends the text instead."""
    deep: Any = "x"
    for _ in range(otlp.MAX_DEPTH):
        deep = {"a": deep}
    AnyValue.FromString(otlp.value(deep))
    with pytest.raises(otlp.TooDeepError):
        otlp.value([deep])


@given(st.integers(0, 2**63 - 1), st.text())
def test_a_partial_success_is_read(rejected: int, text: str) -> None:
    """As binary protobuf and as its JSON, where 64-bit integers are text."""
    said = ExportLogsServiceResponse()
    said.partial_success.rejected_log_records = rejected
    said.partial_success.error_message = text
    assert otlp.read_response(said.SerializeToString(), is_json=False) == (rejected, text)
    body = orjson.dumps({"partialSuccess": {"rejectedLogRecords": str(rejected), "errorMessage": text}})
    assert otlp.read_response(body, is_json=True) == (rejected, text)


def test_an_answer_that_says_nothing_is_full_success() -> None:
    """No bytes, no partial_success, or fields of a later version."""
    assert otlp.read_response(b"", is_json=False) == (0, "")
    assert otlp.read_response(b"\x12\x02ab\x18\x07\x21" + bytes(8) + b"\x2d" + bytes(4), is_json=False) == (0, "")
    assert otlp.read_response(b'{"partialSuccess":null}', is_json=True) == (0, "")


@given(st.binary(max_size=64), st.booleans())
def test_any_answer_is_read_or_told_to_be_none(body: bytes, is_json: bool) -> None:
    """A peer may send anything: ValueError, and nothing else."""
    otlp.read_status(body, is_json=is_json)
    with suppress(ValueError):
        otlp.read_response(body, is_json=is_json)


@pytest.mark.parametrize("body", [b"<html>", b"\x0a\x7f\x00", b"\xff" * 11, b"\x0b", b"\x0a\x02\x08"])
def test_bytes_that_are_no_message_are_told(body: bytes) -> None:
    """Cut off, an endless varint, a group: whoever sent that has not taken the events."""
    with pytest.raises(ValueError, match=r"."):
        otlp.read_response(body, is_json=False)


def test_the_text_of_a_status() -> None:
    """google.rpc.Status: code 1, message 2, details 3; none in what is no status."""
    assert otlp.read_status(b"\x08\x03\x12\x07bad log\x1a\x00", is_json=False) == "bad log"
    assert otlp.read_status(b'{"code":3,"message":"bad log"}', is_json=True) == "bad log"
    assert otlp.read_status(b"<html>", is_json=False) == ""
    assert otlp.read_status(b"[]", is_json=True) == ""
