"""Bytes to lines: however a file is cut into pieces and however often it is looked at, the lines are the same."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.inputs.file_identity import Within
from ndagent.inputs.file_lines import CONTINUED, TRUNCATED, Multiline, Splitter, check_encoding, encoding_of

UTF8 = encoding_of("utf-8", b"")
PLAIN = Splitter(max_line_bytes=64)
STACKS = Multiline(lambda line: not line.startswith((" ", "\t")), max_lines=4, max_bytes=200)


def read(data, *, splitter=PLAIN, encoding=UTF8, pieces=(1 << 20,), most=8192, flush=True, within=Within.NOTHING):
    """Follow `data` as it grows by these pieces (the last one repeats): (texts, tags, offsets, nul bytes, rest)."""
    position, there, turn = 0, 0, 0
    texts, tags, offsets, nuls = [], [], [], 0
    while True:
        there = min(there + pieces[min(turn, len(pieces) - 1)], len(data))
        turn += 1
        while True:
            piece = data[position : min(there, position + splitter.piece_bytes)]
            is_last = there == len(data) and position + len(piece) == there
            due = flush and is_last
            taken = splitter.take(piece, encoding, within, most=most, take_rest=due, take_group=due)
            texts += taken.texts
            tags += [taken.tags.get(index, 0) for index in range(len(taken.texts))]
            offsets += [position + offset for offset in taken.offsets]
            nuls += taken.nul_bytes
            position += taken.used
            within = taken.within
            if not taken.has_more and len(piece) < splitter.piece_bytes:
                break
        if there == len(data):
            return texts, tags, offsets, nuls, data[position:]


LINES = st.lists(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), max_size=12))
PIECES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(LINES, PIECES, st.integers(1, 5), st.sampled_from(["\n", "\r\n"]))
def test_any_pieces_give_the_same_lines_once_each(lines, pieces, most, end):
    """Byte by byte, mid-character, a few lines at a time: the texts and where they stand."""
    data = "".join(line + end for line in lines).encode()
    texts, tags, offsets, _, rest = read(data, pieces=pieces, most=most, flush=False)
    assert texts == [line for line in lines if line]
    assert set(tags) <= {0}
    assert rest == b""
    for text, offset in zip(texts, offsets, strict=True):
        assert data[offset:].startswith(text.encode())


@given(st.binary(max_size=300), PIECES, PIECES, st.integers(1, 5))
def test_any_bytes_give_the_same_whatever_the_pieces(data, some, others, most):
    """Hostile bytes too: nothing depends on when we looked, except what waits for its end."""
    one = read(data, pieces=some, most=most, flush=False)
    assert one == read(data, pieces=others, flush=False)
    assert all(len(text.encode()) <= 3 * 64 for text in one[0])


@given(LINES, PIECES, st.integers(1, 7))
def test_wide_encodings_are_cut_at_their_own_line_ends(lines, pieces, most):
    """UTF-16 has bytes 10 that end nothing (U+0A0A)."""
    lines = [line + "\u0a0a" for line in lines]
    for name in ("utf-16-le", "utf-16-be", "utf-32-le"):
        encoding = encoding_of(name, b"")
        data = "".join(line + "\n" for line in lines).encode(name)
        texts, _, offsets, _, rest = read(data, encoding=encoding, pieces=pieces, most=most, flush=False)
        assert (texts, rest) == (lines, b"")
        assert all(data[at:].startswith(text.encode(name)) for text, at in zip(texts, offsets, strict=True))


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_longest_line_that_is_whole(extra):
    """On the limit, whole; one byte above, cut, tagged, and the next line is there."""
    line = "x" * (64 + extra)
    for end in (b"\n", b"\r\n"):
        texts, tags, _, _, rest = read(line.encode() + end + b"next\n", flush=False)
        assert texts == [line[:64], "next"]
        assert tags == [TRUNCATED if extra > 0 else 0, 0]
        assert rest == b""


@given(PIECES)
def test_the_rest_of_a_long_line_is_passed_over_in_any_pieces(pieces):
    """A line of kilobytes is one event, and what follows is whole."""
    texts, tags, _, _, rest = read(b"y" * 5000 + b"\nnext\n", pieces=pieces, flush=False)
    assert (texts, tags, rest) == (["y" * 64, "next"], [TRUNCATED, 0], b"")


def test_a_long_line_is_cut_between_characters():
    """A cut character would be a replacement character that nobody sent."""
    texts, tags, *_ = read(("a" + "ü" * 40 + "\n").encode(), flush=False)
    assert (texts, tags) == (["a" + "ü" * 31], [TRUNCATED])


def test_a_due_rest_is_delivered_and_its_end_later_an_event_of_its_own():
    """Never lost, never doubled."""
    first = PLAIN.take(b"whole\nhalf a l", UTF8, Within.NOTHING, most=9, take_rest=True, take_group=True)
    assert (first.texts, first.tags, first.within) == (["whole", "half a l"], {1: TRUNCATED}, Within.DELIVERED)
    second = PLAIN.take(b"ine\nnext\n", UTF8, first.within, most=9, take_rest=False, take_group=False)
    assert (second.texts, second.tags, second.within) == (["ine", "next"], {0: CONTINUED}, Within.NOTHING)
    ended = PLAIN.take(b"\nnext\n", UTF8, first.within, most=9, take_rest=False, take_group=False)
    assert (ended.texts, ended.tags, ended.used) == (["next"], {}, 6)


def test_a_due_rest_keeps_half_a_character_for_its_other_half():
    """Unless there is nothing else."""
    half = "aü".encode()[:-1]
    taken = PLAIN.take(half, UTF8, Within.NOTHING, most=9, take_rest=True, take_group=True)
    assert (taken.texts, taken.used, taken.has_rest) == (["a"], 1, True)


def test_bytes_that_are_no_text_are_kept_beside_it():
    """Only where a character had to be replaced."""
    taken = PLAIN.take(b"fine\nb\xffd\r\n", UTF8, Within.NOTHING, most=9, take_rest=False, take_group=False)
    assert (taken.texts, taken.exact) == (["fine", "b\ufffdd"], {1: b"b\xffd"})


def test_nul_bytes_before_a_line_are_counted_and_skipped():
    """What copytruncate leaves under a writer that does not append; inside a line they stay."""
    texts, _, offsets, nuls, rest = read(b"\0\0\0one\nt\0wo\n\0\n\0\0three\n", flush=False)
    assert (texts, offsets, nuls, rest) == (["one", "t\0wo", "three"], [3, 7, 16], 6, b"")


@pytest.mark.parametrize("flush", [False, True])
def test_nul_bytes_with_nothing_behind_them_are_not_passed(flush):
    """A preallocated file: what is written there later must not be missed."""
    texts, _, _, _, rest = read(b"one\n" + b"\0" * 50, flush=flush)
    assert (texts, rest) == (["one"], b"\0" * 50)


STACK_LINES = st.lists(st.sampled_from(["a", "b", " x", "\ty", " " + "z" * 90, ""]), max_size=14)


@given(STACK_LINES, PIECES)
def test_multi_line_events_are_the_same_whatever_the_pieces(lines, pieces):
    """And every line is in one of them."""
    splitter = Splitter(max_line_bytes=64, multiline=STACKS)
    data = "".join(line + "\n" for line in lines).encode()
    one = read(data, splitter=splitter, pieces=pieces, flush=True)
    assert one == read(data, splitter=splitter, flush=True)
    assert "\n".join(one[0]).split() == [line.strip()[:63] for line in lines if line]
    for text in one[0]:
        assert text.count("\n") < STACKS.max_lines


def test_a_multi_line_event_waits_for_the_line_that_ends_it():
    """Its bytes are not passed before, so that a crash reads them again."""
    splitter = Splitter(max_line_bytes=64, multiline=STACKS)
    arguments = {"most": 99, "take_rest": False}
    taken = splitter.take(b"a\n x\nb\n y\n", UTF8, Within.NOTHING, **arguments, take_group=False)
    assert (taken.texts, taken.used, taken.has_rest) == (["a\n x"], 5, True)
    taken = splitter.take(b"b\n y\n", UTF8, Within.NOTHING, **arguments, take_group=True)
    assert (taken.texts, taken.used, taken.has_rest) == (["b\n y"], 5, False)


def test_a_multi_line_event_beyond_its_limits_is_cut_and_goes_on():
    """The lines beyond are another event, not nothing."""
    splitter = Splitter(max_line_bytes=64, multiline=STACKS)
    texts, tags, *_ = read(b"a\n 1\n 2\n 3\n 4\n 5\nb\n", splitter=splitter)
    assert texts == ["a\n 1\n 2\n 3", " 4\n 5", "b"]
    assert tags == [TRUNCATED, CONTINUED, 0]


@pytest.mark.parametrize(
    ("name", "text"),
    [("latin-1", "caf\xe9"), ("cp1252", "€5"), ("utf-16-le", "日本"), ("shift_jis", "日本"), ("gb18030", "中文"),
     ("cp500", "mainframe"), ("iso2022_jp", "日本語")],
)  # fmt: skip
def test_other_encodings_are_read_as_they_are(name, text):
    """By the codecs of the standard library."""
    encoding = encoding_of(check_encoding(name), b"")
    texts, *_, rest = read(f"{text}\nnext\n".encode(name), encoding=encoding, flush=False)
    assert (texts, rest) == ([text, "next"], b"")


@pytest.mark.parametrize(
    ("setting", "head", "name", "mark_bytes"),
    [("utf-8", b"\xef\xbb\xbfa", "utf-8", 3), ("utf-8", b"\xff\xfea\0", "utf-16-le", 2),
     ("utf-16", b"\xfe\xff\0a", "utf-16-be", 2), ("utf-16", b"a\0", "utf-16-le", 0), ("utf-8", b"ab", "utf-8", 0),
     ("utf-32", b"\xff\xfe\0\0", "utf-32-le", 4), ("utf-16", b"\xff\xfe\0\0", "utf-16-le", 2),
     ("latin-1", b"\xef\xbb\xbf", "latin-1", 0)],
)  # fmt: skip
def test_a_byte_order_mark_says_more_than_the_setting(setting, head, name, mark_bytes):
    """Windows writes them."""
    found = encoding_of(setting, head)
    assert (found.name, found.mark_bytes) == (name, mark_bytes)


def test_splitting_is_linear_in_hostile_input():
    """A megabyte without a line end, or of nothing else, is done at once."""
    for data in (b"x" * 2**20, b"\n" * 2**20, b"\0" * 2**20, b"\xff" * 2**20, b" \n" * 2**19):
        for splitter in (PLAIN, Splitter(max_line_bytes=64, multiline=STACKS)):
            taken = splitter.take(data, UTF8, Within.NOTHING, most=8192, take_rest=False, take_group=False)
            assert taken.used or re.fullmatch(rb"\0+", data)
