"""The position an input stores in the same record as its lines: there, absent, or damaged."""

import struct

import msgpack
import pytest
from decode_twins import twin_decode
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import (
    Batch,
    Checkpoint,
    CorruptBody,
    Flags,
    Framing,
    Origin,
    Section,
    pack_body,
    unpack_body,
)

ORIGIN = Origin("file", "", 0)
POSITIONS = st.binary(max_size=64) | st.dictionaries(st.binary(max_size=8), st.binary(max_size=64), max_size=4)


def batch(checkpoint: Checkpoint | None) -> Batch:
    line = b'{"message":"hello"}\n'
    return Batch("s", "ecs", 1, [Section(ORIGIN, Framing.LF, Flags.NONE, len(line), 1)], [line], checkpoint)


def with_head(head: object) -> bytes:
    packed = msgpack.packb(head)
    return struct.pack("<I", len(packed)) + packed + struct.pack("<I", 0)


@given(name=st.text(max_size=20), position=POSITIONS)
def test_a_checkpoint_comes_back_as_it_was(name, position):
    """Exact inverses, for a whole position and for parts of one."""
    body = unpack_body(b"".join(pack_body(batch(Checkpoint(name, position)))))
    assert body.checkpoint == Checkpoint(name, position)
    assert bytes(body.payload) == b'{"message":"hello"}\n'


def test_a_record_without_a_checkpoint_is_what_it_was_before_there_were_any():
    """Spools written by either version are read by the other."""
    body = b"".join(pack_body(batch(None)))
    assert msgpack.unpackb(body[4 : 4 + struct.unpack("<I", body[:4])[0]]) == [1, "ecs", [ORIGIN.packed]]
    assert unpack_body(body).checkpoint is None


@pytest.mark.parametrize("twin", ["pure", "compiled"])
@pytest.mark.parametrize("batch_format", ["ecs", "syslog"])
def test_a_decoder_passes_over_the_checkpoint(twin, batch_format):
    """Events do not depend on where their input stood."""
    found = []
    for checkpoint in (None, Checkpoint("file", {b"key": b"position"})):
        one = batch(checkpoint)
        body = b"".join(pack_body(Batch(one.stream, batch_format, 1, one.sections, one.payload, checkpoint)))
        found.append(twin_decode(twin)(DecodeSettings("c1"), body))
    assert found[0].ndjson == found[1].ndjson


@pytest.mark.parametrize(
    "rest",
    [[None], [["file"]], [["file", "text"]], [[b"file", b"x"]], [["file", {b"k": 1}]], [["file", {"k": b"v"}]],
     [["file", b"x"], 1], [[]], [{}]],
)  # fmt: skip
def test_what_is_no_checkpoint_is_a_corrupt_body(rest):
    """Its CRC may have been right: another program's record must not pass for one of ours."""
    with pytest.raises(CorruptBody):
        unpack_body(with_head([1, "ecs", [], *rest]))
