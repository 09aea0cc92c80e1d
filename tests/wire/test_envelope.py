"""The envelope that agents ship: exact both ways, and nothing but its own errors on any bytes."""

from dataclasses import replace

import msgpack
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.envelope import (
    MAX_HEADER_BYTES,
    SIGNED_PREFIX,
    BadEnvelope,
    Header,
    Limits,
    TooLarge,
    is_envelope,
    pack,
    unpack,
)

LINES = b'{"message":"one"}\n{"message":"two"}\n'
HEADER = Header(
    stream="security_events", spool_id="k3v9", first=7, last=8, count=2, length=len(LINES),
    sent_at_ns=1_700_000_000_000_000_000, agent_id="abc2", run_id="00ff",
)  # fmt: skip
LIMITS = Limits(length_bytes=1 << 20, events=1000)

texts = st.text("abcdefghijklmnop0123456789-_", min_size=1, max_size=40)


@given(texts, texts, st.integers(0, 1 << 40), st.lists(st.binary(min_size=0, max_size=30), min_size=1, max_size=20))
def test_what_is_packed_comes_out_again(stream: str, agent_id: str, first: int, messages: list[bytes]) -> None:
    """Header, lines and key survive the way."""
    lines = b"".join(b'{"":"%b"}\n' % message.hex().encode() for message in messages)
    header = replace(
        HEADER, stream=stream, agent_id=agent_id, first=first, last=first + len(messages) - 1, count=len(messages),
        length=len(lines),
    )  # fmt: skip
    found = unpack(pack(header, lines), LIMITS)
    assert found.header == header
    assert found.ndjson() == lines
    assert found.signature == b""
    assert is_envelope(pack(header, lines))


@given(st.binary(max_size=400))
def test_any_bytes_are_an_envelope_or_our_error(data: bytes) -> None:
    """Behind the magic, too, where the parsing begins."""
    for claim in (data, b"NDE1" + data, pack(HEADER, LINES)[:10] + data):
        try:
            unpack(claim, LIMITS).ndjson()
        except BadEnvelope:
            continue


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_never_gives_other_events(position: int, bit: int) -> None:
    """zstd's frame has a checksum only if asked for; lengths and lines are held against the header in any case."""
    packed = bytearray(pack(HEADER, LINES))
    packed[position % len(packed)] ^= 1 << bit
    try:
        found = unpack(packed, LIMITS)
        lines = found.ndjson()
    except BadEnvelope:
        return
    assert lines.count(b"\n") == found.header.count
    assert len(lines) == found.header.length


def test_every_cut_is_refused() -> None:
    """A part of an envelope is none."""
    packed = pack(HEADER, LINES)
    for end in range(len(packed)):
        with pytest.raises(BadEnvelope):
            unpack(packed[:end], LIMITS).ndjson()


def test_the_signature_covers_header_and_body() -> None:
    """And a prefix of its own, so that it cannot be one over something else."""
    signed: list[bytes] = []

    def sign(data: bytes) -> bytes:
        signed.append(data)
        return b"sig"

    found = unpack(pack(HEADER, LINES, sign=sign), LIMITS)
    assert found.signature == b"sig"
    assert found.signed == signed[0]
    assert signed[0].startswith(SIGNED_PREFIX)
    assert signed[0].endswith(bytes(found.body))
    assert bytes(found.packed_header) in signed[0]


def test_limits_hold_exactly() -> None:
    """At the limit it is taken, one beyond it is too large: before anything is decompressed."""
    packed = pack(HEADER, LINES)
    assert unpack(packed, Limits(len(LINES), 2)).ndjson() == LINES
    for limits in (Limits(len(LINES) - 1, 2), Limits(len(LINES), 1)):
        with pytest.raises(TooLarge):
            unpack(packed, limits)


def test_a_bomb_costs_no_more_than_it_declares() -> None:
    """A body that grows to a gigabyte is given up one byte behind the declared length."""
    bomb = zstd.compress(b"\n" * (1 << 28), 19)
    packed = pack(HEADER, LINES)
    envelope = unpack(packed[: len(packed) - len(zstd.compress(LINES, 1))] + bomb, LIMITS)
    with pytest.raises(BadEnvelope, match="bytes that the header declares"):
        envelope.ndjson()


@pytest.mark.parametrize(
    "change",
    [
        {"n": 3}, {"n": 0}, {"f": 9}, {"f": -1}, {"f": True}, {"b": 1 << 63}, {"n": 2.0}, {"st": ""}, {"st": "a\nb"},
        {"a": b"abc"}, {"a": "a" * 200}, {"zz": 1}, {"b": 5},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_lies_is_refused(change: dict[str, object]) -> None:
    """Counts that cannot be, names that are none, keys that nobody knows."""
    packed = pack(HEADER, LINES)
    header = msgpack.unpackb(unpack(packed, LIMITS).packed_header) | change
    again = msgpack.packb(header)
    rest = packed[10 + len(unpack(packed, LIMITS).packed_header) :]
    data = b"NDE1" + len(again).to_bytes(4, "little") + b"\0\0" + again + rest
    with pytest.raises(BadEnvelope):
        unpack(data, LIMITS).ndjson()


def test_lengths_beyond_the_bytes_are_refused() -> None:
    """The two lengths in front may say anything."""
    for lengths in ((MAX_HEADER_BYTES + 1, 0), (1 << 31, 0), (10, 60_000)):
        head = b"NDE1" + lengths[0].to_bytes(4, "little") + lengths[1].to_bytes(2, "little")
        with pytest.raises(BadEnvelope):
            unpack(head + b"x" * 4096, LIMITS)


def test_the_key_names_the_batch_however_often_it_is_sent() -> None:
    """Time of sending is no part of it, what is sent is."""
    assert replace(HEADER, sent_at_ns=5, run_id="other").key == HEADER.key
    assert replace(HEADER, last=9).key != HEADER.key
