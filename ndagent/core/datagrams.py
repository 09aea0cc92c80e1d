"""Datagrams in hundreds: recvmmsg(2) where the kernel has it, and how many it threw away before we came.

Promises: one system call takes up to `MOST` datagrams into memory that is there already; each comes whole or marked as
cut, with its sender's address as the kernel wrote it (bytes that may be a dict's key; `address_of` makes text of them);
`lost` is the kernel's own count of datagrams that found the socket's queue full (SO_MEMINFO's drops).
Refuses: waiting (sockets are non-blocking), and meaning anything by what it receives.

Through ctypes, which leaves the GIL and needs no compiler. Elsewhere than on Linux: a loop over recvfrom, no `lost`.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
from ctypes import byref, c_int, c_size_t, c_uint, c_void_p
from functools import cache
from typing import NamedTuple

from ndagent.core.settings import Listen

MOST = 256
"""Datagrams a call: 5 ms of 50 000 a second, and 16 MiB where all are as long as they can be."""

MAX_DATAGRAM_BYTES = 65535
_ADDRESS_BYTES = 28  # struct sockaddr_in6, the longer of the two
_SO_MEMINFO, _SK_MEMINFO_DROPS = 55, 8  # asm-generic/socket.h, linux/sock_diag.h
_MEMINFO = struct.Struct("9I")
_FAMILY = struct.Struct("=H")
_PORT = struct.Struct("!H")
_SCOPE = struct.Struct("@I")
_WRAP = 2**32
_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)  # Windows has none, and no recvmmsg
_IS_LINUX = sys.platform == "linux"


class Datagram(NamedTuple):
    """One datagram; `sender` is its struct sockaddr."""

    sender: bytes
    data: bytes
    is_cut: bool


class FromOne(NamedTuple):
    """What one sender's datagrams of one call are, in the order in which they came; all cut or none."""

    sender: bytes
    is_cut: bool
    datagrams: list[bytes]


class _IoVec(ctypes.Structure):
    _fields_ = (("base", c_void_p), ("length", c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (
        ("name", c_void_p), ("name_length", c_uint), ("vectors", c_void_p), ("vector_count", c_size_t),
        ("control", c_void_p), ("control_length", c_size_t), ("flags", c_int),
    )  # fmt: skip


class _Message(ctypes.Structure):
    _fields_ = (("header", _Header), ("length", c_uint))


class Receiver:
    """Reads one non-blocking UDP socket, which stays the caller's. On one thread: all receivers read into one memory.

    `datagram_bytes`: what is longer is cut; `most` datagrams come at a time.
    """

    def __init__(
        self, sock: socket.socket, *, datagram_bytes: int = MAX_DATAGRAM_BYTES, most: int = MOST
    ) -> None:
        self._sock = sock
        self._datagram_bytes = datagram_bytes
        self._most = most
        self._seen_drops = 0
        self._lost = 0
        if _IS_LINUX:
            self._prepare()

    def receive(self) -> list[Datagram]:
        """What is there, up to `most`; empty where nothing is. Raises OSError."""
        if not _IS_LINUX:
            return self._receive_singly()
        pieces = zip(*self._receive_many(), strict=True)
        return [Datagram(sender, data, bool(flags & socket.MSG_TRUNC)) for sender, data, flags in pieces]

    def receive_by_sender(self) -> list[FromOne]:
        """The same, sender by sender: order among different senders is lost, at half the cost."""
        whole: dict[bytes, list[bytes]] = {}
        cut: dict[bytes, list[bytes]] = {}
        if _IS_LINUX:
            truncated = socket.MSG_TRUNC
            for sender, data, flags in zip(*self._receive_many(), strict=True):
                of = cut if flags & truncated else whole
                if sender in of:
                    of[sender].append(data)
                else:
                    of[sender] = [data]
        else:
            for sender, data, is_cut in self._receive_singly():
                (cut if is_cut else whole).setdefault(sender, []).append(data)
        found = [FromOne(sender, False, datagrams) for sender, datagrams in whole.items()]
        return found + [FromOne(sender, True, datagrams) for sender, datagrams in cut.items()]

    @property
    def lost(self) -> int:
        """Datagrams that the kernel dropped at this socket so far; call it at least each 2**32 of them."""
        if _IS_LINUX:
            found = self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
            drops = _MEMINFO.unpack(found)[_SK_MEMINFO_DROPS]
            self._lost += (drops - self._seen_drops) % _WRAP
            self._seen_drops = drops
        return self._lost

    def _prepare(self) -> None:
        """Headers point to one block of addresses and one of data, and stay so."""
        self._addresses = bytearray(self._most * _ADDRESS_BYTES)
        self._data = _untouched(self._most * self._datagram_bytes)
        addresses = ctypes.addressof(ctypes.c_char.from_buffer(self._addresses))
        data = ctypes.addressof(ctypes.c_char.from_buffer(self._data))
        self._vectors = (_IoVec * self._most)()
        self._messages = (_Message * self._most)()
        for index in range(self._most):
            self._vectors[index] = _IoVec(data + index * self._datagram_bytes, self._datagram_bytes)
            header = self._messages[index].header
            header.name, header.name_length = addresses + index * _ADDRESS_BYTES, _ADDRESS_BYTES
            header.vectors, header.vector_count = ctypes.addressof(self._vectors[index]), 1
        self._call = ctypes.CDLL(None, use_errno=True).recvmmsg
        # The kernel writes lengths and flags among the headers: views over them, one word for each message.
        words = memoryview(self._messages).cast("B").cast("I")
        step = ctypes.sizeof(_Message) // 4
        self._lengths = words[_Message.length.offset // 4 :: step]
        self._flags = words[(_Message.header.offset + _Header.flags.offset) // 4 :: step]

    def _receive_many(self) -> tuple[list[bytes], list[bytes], list[int]]:
        """Senders, data and flags, parallel. Lists, not an object each: this is done for every message."""
        count = self._call(self._sock.fileno(), byref(self._messages), self._most, _DONT_WAIT, None)
        if count < 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EINTR):
                return [], [], []
            raise OSError(number, os.strerror(number))
        addresses, data = bytes(self._addresses[: count * _ADDRESS_BYTES]), self._data
        senders = [addresses[at : at + _ADDRESS_BYTES] for at in range(0, len(addresses), _ADDRESS_BYTES)]
        starts = range(0, count * self._datagram_bytes, self._datagram_bytes)
        lengths = self._lengths[:count].tolist()
        found = [data[at : at + length] for at, length in zip(starts, lengths, strict=True)]
        return senders, found, self._flags[:count].tolist()

    def _receive_singly(self) -> list[Datagram]:
        found: list[Datagram] = []
        while len(found) < self._most:
            try:
                data, address = self._sock.recvfrom(MAX_DATAGRAM_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            sender = _pack_address(self._sock.family, address)
            found.append(Datagram(sender, data[: self._datagram_bytes], len(data) > self._datagram_bytes))
        return found


@cache
def _untouched(size_bytes: int) -> mmap.mmap:
    """Memory that is there once it is written to, page by page. A bytearray is written to at once: 16 MiB where 64 KiB
    may come, of which datagrams of a page each need 1. Shared by all that want this much, as what they read is copied
    before another one reads: a flood of the longest datagrams then costs it once, not for each socket.
    """
    if sys.platform == "win32":  # committed, and taken when it is touched
        return mmap.mmap(-1, size_bytes)
    found = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            found.madvise(mmap.MADV_NOHUGEPAGE)
    return found


def _pack_address(family: int, address: tuple[object, ...]) -> bytes:
    host, port = str(address[0]).partition("%")[0], int(str(address[1]))
    head = _FAMILY.pack(family) + _PORT.pack(port)
    if family == socket.AF_INET:
        return (head + socket.inet_pton(family, host)).ljust(_ADDRESS_BYTES, b"\0")
    whole = head + bytes(4) + socket.inet_pton(family, host) + _SCOPE.pack(int(str(address[3])))
    return whole.ljust(_ADDRESS_BYTES, b"\0")


def address_of(sender: bytes) -> tuple[str, int]:
    """Host and port in a Datagram's `sender`; an IPv4 sender to an IPv6 socket is told as IPv4."""
    (family,) = _FAMILY.unpack_from(sender)
    (port,) = _PORT.unpack_from(sender, 2)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, sender[4:8]), port
    host = socket.inet_ntop(socket.AF_INET6, sender[8:24])
    return host.removeprefix("::ffff:") if "." in host else host, port


def answer_address(sender: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
    """The same for sendto: a link-local address means something on its own interface only (sin6_scope_id); without, the
    kernel takes whichever it finds first.
    """
    host, port = address_of(sender)
    if _FAMILY.unpack_from(sender) == (socket.AF_INET,):
        return host, port
    return host, port, 0, *_SCOPE.unpack_from(sender, 24)


def bind_datagrams(listen: Listen, *, receive_buffer_bytes: int) -> socket.socket:
    """A non-blocking UDP socket that shares its address with others of this process.

    Its queue is as long as the kernel lets us have it (`queue_bytes` says how long). Raises OSError with the address
    and where to look.
    """
    try:
        return _bind(listen, receive_buffer_bytes)
    except OSError as error:
        remedy = "is another program there (ss -lunp), is the address ours?"
        raise OSError(error.errno, f"cannot receive at {listen}: {error.strerror}; {remedy}") from error


def _bind(listen: Listen, receive_buffer_bytes: int) -> socket.socket:
    flags = socket.AI_PASSIVE | socket.AI_NUMERICHOST
    family, kind, protocol, _, address = socket.getaddrinfo(*listen, type=socket.SOCK_DGRAM, flags=flags)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        if hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _lengthen_queue(sock, receive_buffer_bytes)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def queue_bytes(sock: socket.socket) -> int:
    """How many bytes of queue the socket has; the kernel counts its own bookkeeping, so half of it holds data."""
    size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    return size // 2 if _IS_LINUX else size


_SO_RCVBUFFORCE = 33  # needs CAP_NET_ADMIN, and passes net.core.rmem_max


def _lengthen_queue(sock: socket.socket, size: int) -> None:
    if _IS_LINUX:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except PermissionError:
            pass
        else:
            return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
