"""RELP's frames and answers without a socket: whole, in pieces, cut, and by a liar."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.relp import (
    MAX_FRAME_BYTES,
    MAX_TRANSACTION,
    Frame,
    FrameReader,
    RelpError,
    Response,
    Window,
    check_offers,
    frame,
)

# What rsyslog 8.2302 with librelp 1.11 sends.
OPENED = b"1 rsp 93 200 OK\nrelp_version=0\nrelp_software=1.11.0,librelp,http://librelp.adiscon.com\ncommands=syslog\n"
SESSION = OPENED + b"2 rsp 6 200 OK\n3 rsp 9 500 error\n4 rsp 0\n0 serverclose 0\n"


def frames(data: bytes, *, pieces: int) -> list[Frame]:
    reader = FrameReader()
    found: list[Frame] = []
    for start in range(0, len(data), pieces):
        found += reader.feed(data[start : start + pieces])
    return found


@pytest.mark.parametrize("pieces", [1, 2, 7, len(SESSION)])
def test_a_session_in_any_pieces(pieces: int) -> None:
    """TCP cuts where it likes."""
    found = frames(SESSION, pieces=pieces)
    assert [(one.transaction, one.command) for one in found] == [
        (1, "rsp"), (2, "rsp"), (3, "rsp"), (4, "rsp"), (0, "serverclose"),
    ]  # fmt: skip
    check_offers(found[0].data)
    assert [Response.of(one.data) for one in found[1:4]] == [(200, "OK"), (500, "error"), (200, "")]


def test_what_we_write() -> None:
    """A length counts octets, not characters; a frame without data has no space behind its length."""
    assert frame(7, b"syslog", "ü".encode()) == b"7 syslog 2 \xc3\xbc\n"
    assert frame(8, b"close") == b"8 close 0\n"


@given(st.integers(0, MAX_TRANSACTION), st.binary(max_size=300), st.integers(1, 50))
def test_what_is_written_is_read(transaction: int, data: bytes, pieces: int) -> None:
    """Line feeds inside the data do not end a frame."""
    assert frames(frame(transaction, b"rsp", data), pieces=pieces) == [Frame(transaction, "rsp", data)]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"1 rsp 6 200 OK_",
        b"1 rsp 6\n",
        b"1 rsp %d x" % (MAX_FRAME_BYTES + 1),
        b"1234567890 rsp 0\n",
        b"\n",
        b"1 " + b"x" * 60,
    ],
)
def test_what_is_no_frame_is_refused_at_once(data: bytes) -> None:
    """Not after the buffer is full."""
    with pytest.raises(RelpError):
        frames(data, pieces=len(data))


@given(st.binary(max_size=200), st.integers(1, 9))
def test_garbage_is_frames_or_our_error(data: bytes, pieces: int) -> None:
    """Nothing else comes out."""
    with suppress(RelpError):
        frames(data, pieces=pieces)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"500 no room", "refused the session: 500 no room"),
        (b"200 OK\nrelp_version=7\ncommands=syslog", "version '7'"),
        (b"200 OK\nrelp_version=0\ncommands=starttls", "does not offer the command syslog"),
        (b"hello", "without a status"),
    ],
)
def test_a_server_that_cannot_be_used_says_why(data: bytes, what: str) -> None:
    """An operator reads this."""
    with pytest.raises(RelpError, match=what):
        check_offers(data)


def test_transaction_numbers_begin_again_at_one() -> None:
    """Nine digits, and 0 is the server's."""
    window = Window(first=MAX_TRANSACTION)
    assert [window.number(0), window.number(1), window.number(2)] == [MAX_TRANSACTION, 1, 2]
    assert (window.answered(1), len(window)) == (1, 2)


def test_an_answer_to_nothing_is_an_error() -> None:
    """Taken twice, it would settle somebody else's message."""
    window = Window()
    window.answered(window.number(5))
    with pytest.raises(RelpError, match="transaction 1"):
        window.answered(1)
