r"""RELP, rsyslog's Reliable Event Logging Protocol, version 0: the client's side without a socket.

    frame     TXNR SP COMMAND SP DATALEN [SP DATA] LF
    client    1 open 85 relp_version=0\nrelp_software=…\ncommands=syslog
    server    1 rsp 92 200 OK\nrelp_version=0\n…
    client    2 syslog 46 <165>1 2003-10-11T22:14:15.003Z host app - - - hi
    server    2 rsp 6 200 OK
    client    3 close 0          server    3 rsp 0, and  0 serverclose 0  before it closes by itself

By https://www.rsyslog.com/doc/relp.html and what librelp 1.11 does.

Promises: `FrameReader` takes bytes in any pieces, holds at most one frame of MAX_FRAME_BYTES, and raises RelpError for
what is none; `Window` gives each message its transaction number and finds it again by it, once.
Refuses: the server's side, sockets, and versions to come.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_FRAME_BYTES = 128 * 1024  # a server's answers are short: the longest is its list of offers
MAX_TRANSACTION = 999_999_999
"""Nine digits; the next number is 1."""

OFFERS = b"relp_version=0\nrelp_software=ndcollector\ncommands=syslog"

_HEADER = re.compile(rb"(\d{1,9}) ([A-Za-z]{1,32}) (\d{1,9})([ \n])")
_LONGEST_HEADER = 9 + 1 + 32 + 1 + 9 + 1
_RESPONSE = re.compile(rb"(\d{3})(?:[ \n]([^\n]{0,500}))?")  # its words are kept for each event: no more than that


class RelpError(ValueError):
    """The far side does not speak RELP, or another version of it."""


class Frame(NamedTuple):
    """One command or response."""

    transaction: int
    command: str
    data: bytes


class Response(NamedTuple):
    """What a `rsp` says: 200 is yes, 500 is no."""

    status: int
    text: str

    @classmethod
    def of(cls, data: bytes) -> "Response":
        """From a frame's data, which is empty for `close`."""
        match = _RESPONSE.match(data)
        if match is None:
            if data:
                raise RelpError(f"a response without a status: {data[:40]!r}")
            return cls(200, "")
        return cls(int(match[1]), (match[2] or b"").decode("utf-8", "replace"))


def frame(transaction: int, command: bytes, data: bytes = b"") -> bytes:
    """The frame's bytes."""
    if data:
        return b"%d %b %d %b\n" % (transaction, command, len(data), data)
    return b"%d %b 0\n" % (transaction, command)


def check_offers(data: bytes) -> None:
    """What the server answered to `open`; raises RelpError that says what is missing."""
    response = Response.of(data)
    if response.status != 200:
        raise RelpError(f"it refused the session: {response.status} {response.text}")
    offers = dict(line.partition(b"=")[::2] for line in data.split(b"\n")[1:])
    if (version := offers.get(b"relp_version", b"0")) not in (b"0", b"1"):
        raise RelpError(f"it speaks RELP version {version[:40].decode('ascii', 'replace')!r}, we speak 0")
    if b"syslog" not in offers.get(b"commands", b"").split(b","):
        raise RelpError("it does not offer the command syslog")


class FrameReader:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. Raises RelpError."""
        held = self._held
        held += data
        start = 0
        try:
            while (found := self._next(start)) is not None:
                one, start = found
                yield one
        finally:
            del held[:start]

    def _next(self, start: int) -> tuple[Frame, int] | None:
        match = _HEADER.match(self._held, start)
        if match is None:
            rest = self._held[start : start + _LONGEST_HEADER + 1]
            if len(rest) > _LONGEST_HEADER or b"\n" in rest:
                raise RelpError(f"not a RELP frame: {bytes(rest[:40])!r}")
            return None
        length = int(match[3])
        if length > MAX_FRAME_BYTES:
            raise RelpError(f"a frame of {length} bytes, the limit is {MAX_FRAME_BYTES}")
        at = match.end()
        if match[4] == b"\n":  # no data; a length that says otherwise is a lie
            if length:
                raise RelpError(f"a frame that says {length} bytes and has none")
            return Frame(int(match[1]), match[2].decode(), b""), at
        end = at + length
        if len(self._held) <= end:
            return None
        if self._held[end : end + 1] != b"\n":
            raise RelpError(f"a frame of {length} bytes that does not end there")
        return Frame(int(match[1]), match[2].decode(), bytes(self._held[at:end])), end + 1


class Window:
    """Which message waits for which answer: at most as many as the caller lets be."""

    def __init__(self, first: int = 1) -> None:
        self._next = first
        self._waiting: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def number(self, index: int = -1) -> int:
        """The next transaction's number; `index` is what the caller knows its message by."""
        number = self._next
        self._next = number + 1 if number < MAX_TRANSACTION else 1
        self._waiting[number] = index
        return number

    def answered(self, transaction: int) -> int:
        """What the caller knows it by; raises RelpError for an answer to nothing."""
        try:
            return self._waiting.pop(transaction)
        except KeyError:
            raise RelpError(f"an answer to transaction {transaction}, which does not wait for one") from None
