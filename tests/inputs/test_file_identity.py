"""What is remembered of a file, and what makes two files one."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.inputs.file_identity import (
    HEAD_BYTES,
    NOTHING,
    Key,
    Place,
    Remembered,
    Within,
    print_head,
    print_mark,
)
from ndagent.inputs.file_tail import START, Replaced, Tail, find_by_inode, open_as

NUMBERS = st.integers(0, 2**63)


@given(NUMBERS, NUMBERS, st.booleans(), NUMBERS, st.sampled_from(list(Within)), st.binary(), st.binary(max_size=40))
def test_a_part_of_the_checkpoint_comes_back_as_it_was(device, inode, is_gzip, position, within, content, path):
    """Names that are no UTF-8 too."""
    key = Key(device, inode, is_gzip)
    known = Remembered(Place(position, print_mark(content), within), print_head(content), os.fsdecode(path), position)
    assert Key.unpack(key.pack()) == key
    assert Remembered.unpack(known.pack()) == known


@given(st.binary(max_size=60))
def test_damaged_parts_are_our_error_and_nothing_else(data):
    """The file they were for then begins as a new one."""
    for unpack in (Key.unpack, Remembered.unpack):
        try:
            unpack(data)
        except ValueError:
            continue


@given(st.binary(max_size=2 * HEAD_BYTES), st.binary(max_size=HEAD_BYTES))
def test_a_head_fits_what_begins_with_it(content, more):
    """However much the file has grown, and nothing else."""
    head = print_head(content)
    assert head.fits(content + more)
    if content:
        assert not head.fits(bytes([content[0] ^ 1]) + content[1:] + more)
        assert not head.fits(content[: head.length - 1])


@pytest.fixture
def tail(tmp_path):
    """A file of three lines, the first of which was read."""
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\nthree\n")
    status = path.stat()
    tail = Tail(Key(status.st_dev, status.st_ino), str(path), str(path))
    tail.fd = open_as(tail.path, tail.key)
    tail.place = tail.place_at(4)
    tail.head = print_head(path.read_bytes())
    yield tail, path
    tail.close()


def test_a_read_gives_what_stands_behind_the_position(tail):
    """And says whether there is more."""
    tail, _ = tail
    assert tail.read(100)[:3] == (b"two\nthree\n", b"one\n", True)
    assert tail.read(4)[:3] == (b"two\n", b"one\n", False)


@pytest.mark.parametrize("content", [b"", b"one", b"xne\ntwo\nthree\n", b"new\n" * 100])
def test_a_file_that_was_cut_or_written_anew_is_not_read_on(tail, content):
    """Smaller, as large, or larger than it was."""
    tail, path = tail
    path.write_bytes(content)
    with pytest.raises(Replaced):
        tail.read(100)


def test_a_file_with_the_same_long_beginning_is_told_by_what_stands_before_the_position(tmp_path):
    """Two files that begin with two kilobytes of the same explanations."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"#" * 2000 + b"\nold 1\nold 2\n")
    status = path.stat()
    tail = Tail(Key(status.st_dev, status.st_ino), str(path), str(path))
    tail.fd = open_as(tail.path, tail.key)
    tail.head = print_head(tail.first_bytes(tail.read(2000)))
    assert tail.head.length == HEAD_BYTES
    tail.place = tail.place_at(status.st_size)
    path.write_bytes(b"#" * 2000 + b"\nnew 1\nnew 2\nnew 3\n")
    assert tail.head.fits(path.read_bytes())
    with pytest.raises(Replaced):
        tail.read(100)
    tail.close()


def test_what_a_file_begins_with_grows_with_it_and_notices_a_change(tmp_path):
    """Up to its limit, also where the position is past what is read again with each piece."""
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n" * 100)
    status = path.stat()
    tail = Tail(Key(status.st_dev, status.st_ino), str(path), str(path))
    tail.fd = open_as(tail.path, tail.key)
    assert tail.first_bytes(tail.read(8)) == b"one\n" * 2
    tail.place = tail.place_at(400)
    tail.head = print_head(tail.first_bytes(tail.read(100)))
    assert tail.head.length == 400
    path.write_bytes(path.read_bytes() + b"x" * 5000)
    assert tail.first_bytes(tail.read(100)) == path.read_bytes()[:HEAD_BYTES]
    path.write_bytes(b"xne" + path.read_bytes()[3:])
    with pytest.raises(Replaced):
        tail.first_bytes(tail.read(100))
    tail.close()


def test_a_file_that_is_cut_between_two_looks_of_one_read_keeps_its_beginning(tmp_path):
    """What was delivered and what is remembered of it are of one look."""
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\n")
    status = path.stat()
    tail = Tail(Key(status.st_dev, status.st_ino), str(path), str(path))
    tail.fd = open_as(tail.path, tail.key)
    piece = tail.read(100)
    path.write_bytes(b"")
    assert tail.first_bytes(piece) == b"one\ntwo\n"
    tail.close()


def test_a_path_that_leads_to_another_file_is_not_taken_for_this_one(tail, tmp_path):
    """It is found by its inode under the name that it has now."""
    tail, path = tail
    path.rename(tmp_path / "b.log")
    path.write_bytes(b"another\n")
    with pytest.raises(OSError, match="Stale"):
        open_as(tail.path, tail.key)
    assert find_by_inode(tail.path, tail.key) == str(tmp_path / "b.log")
    (tmp_path / "b.log").unlink()
    assert find_by_inode(tail.path, tail.key) is None


def test_opening_never_waits_for_a_writer(tmp_path):
    """A FIFO that took a file's place is refused at once."""
    os.mkfifo(tmp_path / "pipe")
    status = (tmp_path / "pipe").stat()
    with pytest.raises(OSError, match="Stale"):
        open_as(str(tmp_path / "pipe"), Key(status.st_dev, status.st_ino))


def test_nothing_fits_everything():
    """A file of which nothing is known yet."""
    assert NOTHING.fits(b"")
    assert NOTHING.fits(b"x")
    assert Place() == START
