"""Whatever arrives at the port: lines or a count, in linear time, and never an exception."""

import json
import struct

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netflow_datagrams import (
    NOON,
    ipfix,
    lines_of,
    options_template,
    pack_set,
    template,
    v5,
    v5_flow,
    v9,
    v9_options_template,
)

from ndagent.wire.netflow.decoder import FlowDecoder
from ndagent.wire.netflow.elements import ELEMENTS, REVERSE, Kind
from ndagent.wire.netflow.template import MAX_FIELDS

SHAPE = pack_set(2, template(256, [(8, 4), (82, 0xFFFF), (1, 4)]))
GOOD = (
    v5(v5_flow(), v5_flow()),
    v9(pack_set(0, template(256, [(8, 4), (22, 4), (21, 4)])), pack_set(256, bytes(24))),
    v9(pack_set(1, v9_options_template(300, [(1, 4)], [(48, 1), (50, 4)])), pack_set(300, bytes(18))),
    ipfix(SHAPE, pack_set(256, bytes.fromhex("0a000001 03 616263 00000001 0a000002 ff0002 6162 00000002"))),
    ipfix(pack_set(3, options_template(300, [(149, 4)], [(160, 8)])), pack_set(300, bytes(24))),
)


def fed(decoder: FlowDecoder, data: bytes) -> list[bytes]:
    """The lines, each proved to be an event as the contract of inputs says."""
    lines = lines_of(decoder, "192.0.2.9", data, now=NOON)
    for line in lines:
        event = orjson.loads(line)
        assert event["event"]["kind"] == "event"
        assert "id" not in event["event"]
        assert line.count(b'"event":{"') == 1
    for line in lines[:3]:
        json.loads(line, object_pairs_hook=unique)
    return lines


def unique(pairs: list[tuple[str, object]]) -> None:
    """No key stands twice: stores refuse that."""
    assert len(dict(pairs)) == len(pairs), pairs


@pytest.mark.parametrize("data", GOOD)
def test_every_beginning_of_a_datagram(data: bytes) -> None:
    """Cut anywhere: what is whole comes out, what is not is counted."""
    whole = len(fed(FlowDecoder(), data))
    for end in range(len(data)):
        decoder = FlowDecoder()
        assert len(fed(decoder, data[:end])) <= whole
        assert decoder.take_counts().malformed == 1 or data[1] == 9  # whose header does not say how long it is


@given(st.sampled_from(GOOD), st.data())
def test_bytes_changed_anywhere(data: bytes, draw: st.DataObject) -> None:
    """A good datagram, forged in some places, and then a good one: that still works."""
    forged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 6))):
        forged[draw.draw(st.integers(0, len(forged) - 1))] = draw.draw(st.integers(0, 255))
    decoder = FlowDecoder()
    fed(decoder, bytes(forged))
    assert len(fed(decoder, data)) >= len(fed(FlowDecoder(), data))


@given(st.sampled_from((5, 9, 10)), st.binary(max_size=300))
def test_gibberish_behind_a_version(version: int, rest: bytes) -> None:
    """Lines or counts, nothing else."""
    fed(FlowDecoder(), struct.pack(">H", version) + rest)


ELEMENT = st.one_of(
    st.tuples(st.sampled_from(sorted(ELEMENTS)), st.integers(1, 17)),
    st.tuples(st.sampled_from([REVERSE, 9]), st.integers(1, 600), st.integers(1, 17)),
    st.tuples(st.sampled_from(sorted(ELEMENTS)), st.just(0xFFFF)),
)


@given(st.lists(ELEMENT, min_size=1, max_size=30), st.binary(max_size=400), st.booleans())
def test_any_template_over_any_bytes(fields: list[tuple[int, int]], content: bytes, is_options: bool) -> None:
    """Every element in every length, right or wrong: JSON comes out."""
    shape = (
        pack_set(3, options_template(256, fields[:1], fields[1:])) if is_options else pack_set(2, template(256, fields))
    )
    fed(FlowDecoder(), ipfix(shape, pack_set(256, content)))


@given(st.sampled_from([one for one in ELEMENTS if ELEMENTS[one].kind is not Kind.PADDING]), st.binary(max_size=20))
def test_any_element_without_fixed_length(number: int, octets: bytes) -> None:
    """A variable field of that element, of any length."""
    record = bytes([len(octets)]) + octets
    lines = fed(FlowDecoder(), ipfix(pack_set(2, template(256, [(number, 0xFFFF)])), pack_set(256, record)))
    assert len(lines) == 1
    assert ELEMENTS[number].name in orjson.loads(lines[0])["netflow"]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "no version"),
        (b"\0", "no version"),
        (b"\0\1" + bytes(30), "version 1; 5, 9 and 10 are read"),
        (b"\0\x09" + bytes(10), "a header of version 9 that is cut"),
        (v5(v5_flow(), v5_flow())[:-1], "2 flows told, 1 there"),
        (v9(struct.pack(">HH", 256, 3)), "a set of 3 bytes where 4 are left"),
        (v9(struct.pack(">HH", 256, 0)), "a set of 0 bytes where 4 are left"),
        (v9(struct.pack(">HH", 256, 999)), "a set of 999 bytes where 4 are left"),
        (ipfix(SHAPE) + b"more", f"a length of {16 + len(SHAPE)} in {20 + len(SHAPE)} bytes"),
        (ipfix(SHAPE)[:-4], f"a set of {len(SHAPE)} bytes where {len(SHAPE) - 4} are left"),
        (ipfix(pack_set(2, struct.pack(">HHHH", 256, 9, 8, 4))), "template set: 9 fields in 4 bytes"),
        (ipfix(pack_set(2, template(255, [(8, 4)]))), "template set: a template with the id 255; they begin at 256"),
        (v9(pack_set(0, template(256, [(8, 0)]))), "template set: a template of 0 fields"),
        (v9(pack_set(0, template(256, [(8, 0xFFFF)]))), "template set: a field longer than any datagram"),
        (v9(pack_set(0, template(256, []), padding=4)), "template set: a template of 0 fields; 1 to 512 are taken"),
        (
            ipfix(pack_set(2, template(256, [(8, 4)] * (MAX_FIELDS + 1)))),
            "template set: a template of 513 fields; 1 to 512 are taken",
        ),
        (ipfix(pack_set(3, struct.pack(">HHHHH", 300, 1, 2, 8, 4))), "template set: 2 scope fields of 1"),
        (ipfix(pack_set(3, struct.pack(">HHHHH", 300, 1, 0, 8, 4))), "template set: 0 scope fields of 1"),
        (
            v9(pack_set(1, struct.pack(">HHHHHHH", 300, 5, 4, 1, 4, 41, 4))),
            "template set: lengths that are no multiple of a field's",
        ),
        (ipfix(SHAPE, pack_set(256, bytes.fromhex("0a000001 ff"))), "a set without a whole record"),
        (v9(pack_set(0, template(256, [(8, 4)])), pack_set(256, bytes(3))), "a set without a whole record"),
        (ipfix(SHAPE, pack_set(256, b"")), None),
        (ipfix(pack_set(4, bytes(8)), SHAPE), "a set with the reserved id 4"),
        (v9(pack_set(2, bytes(8))), "a set with the reserved id 2"),
        (ipfix(SHAPE, pack_set(256, bytes.fromhex("0a000001 ff ffff 00000000"))), "a record whose lengths lead out"),
        (ipfix(SHAPE, pack_set(256, bytes.fromhex("0a000001 05 00000000"))), "a record whose lengths lead out"),
    ],
)
def test_each_lie_is_told(data: bytes, fault: str | None) -> None:
    """One count a datagram, and the words a person needs."""
    decoder = FlowDecoder()
    fed(decoder, data)
    counts = decoder.take_counts()
    assert counts.malformed == (fault is not None)
    assert fault is None or (counts.fault or "").startswith(f"192.0.2.9: {fault}")


def test_the_longest_template_there_may_be() -> None:
    """MAX_FIELDS fields, and a record of them."""
    shape = pack_set(2, template(256, [(371, 1)] * MAX_FIELDS))
    (line,) = fed(FlowDecoder(), ipfix(shape, pack_set(256, b"u" * MAX_FIELDS)))
    assert len(orjson.loads(line)["netflow"]) == MAX_FIELDS + 2


def test_the_most_records_a_datagram_can_hold() -> None:
    """One byte each: as many lines as bytes, and no more."""
    shape = pack_set(2, template(256, [(4, 1)]))
    assert len(fed(FlowDecoder(), ipfix(shape, pack_set(256, bytes(60_000))))) == 60_000
