"""Framing keeps every message whatever is sent and however it is split, in the pure and in the compiled framer alike.

Vectors are JSON lines; their text stands for bytes as Latin-1, so that any byte can be written down.
"""

import itertools
import json
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from decode_twins import PURE_ONLY
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ndagent.wire import framing
from ndagent.wire.framing import MAX_FRAME_BYTES, Chunk
from ndagent.wire.record import Flags, Framing

TWINS: dict[str, Any] = {"pure": framing.Framer}
if not PURE_ONLY:  # else it must have been built: a twin that is not there is not a twin that passed
    TWINS["compiled"] = import_module("ndagent.wire._codec").Framer
VECTORS = [
    json.loads(line) for line in (Path(__file__).parent / "vectors/framing.jsonl").read_text().splitlines()
]
LINE = b"<165>1 2026-02-03T04:05:06.789Z host app 123 ID47 - hello"

both_framers = pytest.mark.parametrize("framer_class", TWINS.values(), ids=TWINS)


def joined(chunks: list[Chunk]) -> list[Chunk]:
    """Where one chunk ends and the next begins is the only thing that may depend on the split."""
    result: list[Chunk] = []
    for chunk in chunks:
        last = result[-1] if result else None
        if last and chunk.framing != Framing.WHOLE and last[:2] == chunk[:2]:
            result[-1] = Chunk(chunk.framing, chunk.flags, last.count + chunk.count, last.payload + chunk.payload)
        else:
            result.append(chunk)
    return result


def fed(framer: Any, pieces: list[bytes]) -> list[Chunk]:
    """All chunks of a stream that came in these pieces and then ended."""
    chunks = [chunk for piece in pieces for chunk in framer.feed(piece)]
    return chunks + framer.close()


def expected(vector: dict[str, Any]) -> list[Chunk]:
    """The vector's chunks."""
    return [
        Chunk(Framing[name], Flags[flag], count, payload.encode("latin-1"))
        for name, flag, count, payload in vector["chunks"]
    ]


@both_framers
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
class TestVectors:
    """Each vector whole, byte by byte, and cut in two at every place."""

    def test_whole(self, framer_class: Any, vector: dict[str, Any]) -> None:
        """One feed, then the end of input."""
        framer = framer_class(vector["max_message_bytes"])
        assert joined(fed(framer, [vector["input"].encode("latin-1")])) == expected(vector)
        assert framer.framing_errors == vector["framing_errors"]
        assert framer.pending_bytes == 0

    def test_byte_by_byte(self, framer_class: Any, vector: dict[str, Any]) -> None:
        """Every state must survive between feeds."""
        framer = framer_class(vector["max_message_bytes"])
        data = vector["input"].encode("latin-1")
        assert joined(fed(framer, [data[i : i + 1] for i in range(len(data))])) == expected(vector)
        assert framer.framing_errors == vector["framing_errors"]

    def test_cut_in_two(self, framer_class: Any, vector: dict[str, Any]) -> None:
        """What completes a message stands at the front of a feed that holds more."""
        data = vector["input"].encode("latin-1")
        for at in range(len(data)):
            framer = framer_class(vector["max_message_bytes"])
            assert joined(fed(framer, [data[:at], data[at:]])) == expected(vector), at


@both_framers
def test_trailing_bytes_wait_for_the_next_feed(framer_class: Any) -> None:
    """A feed gives what is whole and keeps the rest, which is then completed without copying its neighbours apart."""
    framer = framer_class(100)
    assert [chunk.count for chunk in framer.feed(b"5 <1>ab5 <2>c")] == [1]
    assert framer.pending_bytes == len(b"5 <2>c")
    assert framer.feed(memoryview(b"d5 <3>ef")) == [
        Chunk(Framing.OCTET_COUNTED, Flags.NONE, 2, b"5 <2>cd5 <3>ef")
    ]
    assert framer.framing is Framing.OCTET_COUNTED
    assert framer.pending_bytes == 0


@both_framers
@pytest.mark.parametrize("frame", [LINE + b"\n", b"%d %s" % (len(LINE), LINE)], ids=["lines", "octets"])
def test_one_feed_of_good_frames_is_one_chunk(framer_class: Any, frame: bytes) -> None:
    """The batch law: Python sees a chunk, not its messages."""
    data = frame * 1000
    assert framer_class(65536).feed(memoryview(data)) == [
        Chunk(Framing.LF if frame[-1:] == b"\n" else Framing.OCTET_COUNTED, Flags.NONE, 1000, data)
    ]


@both_framers
@pytest.mark.parametrize(
    "endless",
    [b"x", b"0", b"\0", b"\n", b"5 <1>ab0", b"5 <1>ab~", b"5 <1>ab~7 ", b"5 <1>ab<", b"16777216 <", b"\xff<"],
)
@pytest.mark.parametrize("piece_bytes", [1, 7, 4096])
def test_what_is_kept_is_bounded(framer_class: Any, endless: bytes, piece_bytes: int) -> None:
    """Limit: max_message_bytes, plus a count, a space and a sync mark."""
    limit = 1000
    framer = framer_class(limit)
    stream = endless[:-1] + endless[-1:] * 20_000
    for start in range(0, len(stream), piece_bytes):
        framer.feed(stream[start : start + piece_bytes])
        assert framer.pending_bytes <= limit + 23


@both_framers
@pytest.mark.parametrize("start", [b"<13>", b"65536 <13>", b"5 <1>ab~"], ids=["line", "frame", "garbage"])
def test_a_message_that_comes_byte_by_byte_costs_linear_time(framer_class: Any, start: bytes) -> None:
    """A peer must not buy seconds of our time with 64 KiB: eight times the bytes may cost about eight times.

    A quadratic framer takes 64 times as long; the bound lies between, far from both. CPU time of this thread counts, so
    that a busy machine changes nothing.
    """

    def seconds(size: int) -> float:
        best = float("inf")
        for _ in range(3):
            framer = framer_class(65536)
            framer.feed(start)
            began = time.thread_time()
            for _ in range(size):
                framer.feed(b"<")
            best = min(best, time.thread_time() - began)
        return best

    assert seconds(64_000) < 24 * seconds(8_000)


@both_framers
def test_an_over_long_frame_is_skipped_without_being_kept(framer_class: Any) -> None:
    """The largest count that is believed: 16 MiB go by in pieces, one cut message comes out, the next is whole."""
    framer = framer_class(1000)
    chunks = framer.feed(b"%d <13>" % MAX_FRAME_BYTES)
    left = MAX_FRAME_BYTES - 4
    while left:
        piece = min(left, 65536)
        chunks += framer.feed(b"x" * piece)
        left -= piece
        assert framer.pending_bytes <= 1012
    assert chunks == [Chunk(Framing.WHOLE, Flags.TRUNCATED, 1, b"<13>" + b"x" * 996)]
    assert framer.feed(b"5 <1>ab") == [Chunk(Framing.OCTET_COUNTED, Flags.NONE, 1, b"5 <1>ab")]


@both_framers
@pytest.mark.parametrize("limit", [0, MAX_FRAME_BYTES + 1])
def test_an_impossible_limit_is_refused(framer_class: Any, limit: int) -> None:
    """A framer that can hold nothing, or more than any count allows, is a mistake of the caller's."""
    with pytest.raises(ValueError, match="max_message_bytes"):
        framer_class(limit)


FRAGMENTS = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"\n", b"\r\n", b"\0", b"5 <1>ab", b"12 <13>1 - - x", b"0 ", b"3 abc", b"<1>line\n", b"99999999999 <", b"7 <",
         b"40 <1>", b"20260101 <1>x", b" <", b"~~~~", b"1", b" ", b"<", b"9 <1>a\nb\r\n"]
    ),
)  # fmt: skip
STREAMS = st.lists(FRAGMENTS, max_size=30).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=8)


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The stream in pieces, some of them empty."""
    places = [0, *sorted(min(at, len(stream)) for at in cuts), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(places)]


@pytest.mark.skipif(PURE_ONLY, reason="ND_PURE_CODEC=1: there is nothing to compare with")
@settings(max_examples=1500, deadline=None)
@given(stream=STREAMS, cuts=CUTS, limit=st.integers(1, 40))
@example(stream=b"5 <1>ab" + b"1" * 60 + b" <", cuts=[20, 21], limit=1)
def test_the_two_framers_give_the_same_chunks(stream: bytes, cuts: list[int], limit: int) -> None:
    """Not only the same messages: the same chunks from the same feed, and the same counters after it."""
    pure, fast = framing.Framer(limit), TWINS["compiled"](limit)
    for piece in cut(stream, cuts):
        assert fast.feed(piece) == pure.feed(piece)
        assert (fast.framing, fast.framing_errors) == (pure.framing, pure.framing_errors)
        assert fast.pending_bytes == pure.pending_bytes
    assert fast.close() == pure.close()


@both_framers
@settings(max_examples=600, deadline=None)
@given(stream=STREAMS, cuts=CUTS, limit=st.integers(1, 40))
def test_the_split_does_not_matter(framer_class: Any, stream: bytes, cuts: list[int], limit: int) -> None:
    """TCP promises bytes, not pieces."""
    whole, pieces = framer_class(limit), framer_class(limit)
    assert joined(fed(pieces, cut(stream, cuts))) == joined(fed(whole, [stream]))
    assert pieces.framing_errors == whole.framing_errors


@both_framers
@settings(max_examples=400, deadline=None)
@given(stream=STREAMS, limit=st.integers(1, 40))
def test_counts_match_what_a_decoder_will_find(framer_class: Any, stream: bytes, limit: int) -> None:
    """The spool numbers events by these counts, so each LF ends one message and each count starts one, none empty."""
    for chunk in fed(framer_class(limit), [stream]):
        messages = split(chunk)
        assert len(messages) == chunk.count
        assert all(message.strip(b"\r\n\0") or Flags.TRUNCATED in chunk.flags for message in messages)
        assert all(len(message) <= limit + 12 for message in messages)


def split(chunk: Chunk) -> list[bytes]:
    """The chunk's messages, found in the most naive way."""
    if chunk.framing is Framing.WHOLE:
        return [chunk.payload]
    if chunk.framing is Framing.LF:
        assert chunk.payload.endswith(b"\n")
        return chunk.payload.split(b"\n")[:-1]
    messages, rest = [], chunk.payload
    while rest:
        count, _, rest = rest.partition(b" ")
        messages.append(rest[: int(count)])
        rest = rest[int(count) :]
    return messages
