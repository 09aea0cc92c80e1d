"""Datagrams in hundreds, their senders and their losses: what the kernel says is what we say."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndagent.core import datagrams
from ndagent.core.datagrams import MOST, Receiver, address_of, answer_address, bind_datagrams, queue_bytes
from ndagent.core.settings import Listen


@pytest.fixture(params=["127.0.0.1", "::1"])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A socket of each family, with a queue of 256 KiB."""
    with bind_datagrams(Listen(request.param, 0), receive_buffer_bytes=2**18) as sock:
        yield sock


def connected(listening: socket.socket) -> socket.socket:
    sender = socket.socket(listening.family, socket.SOCK_DGRAM)
    sender.connect(listening.getsockname())
    return sender


def test_datagrams_come_whole_in_order_and_with_their_sender(listening: socket.socket) -> None:
    """Whatever their length, none and the longest included."""
    sent = [b"", b"x", b"\0\n" * 700, b"z" * 60_000, b"last"]
    with connected(listening) as sender:
        for data in sent:
            sender.send(data)
        found = Receiver(listening).receive()
        assert [one.data for one in found] == sent
        assert {address_of(one.sender) for one in found} == {sender.getsockname()[:2]}
    assert not any(one.is_cut for one in found)


def test_what_is_longer_is_cut_and_says_so(listening: socket.socket) -> None:
    """The rest of a datagram is gone for good, so it must not look whole."""
    with connected(listening) as sender:
        for size in (499, 500, 501):
            sender.send(b"a" * size)
        found = Receiver(listening, datagram_bytes=500).receive()
    assert [(len(one.data), one.is_cut) for one in found] == [(499, False), (500, False), (500, True)]


def test_a_call_takes_a_bounded_number(listening: socket.socket) -> None:
    """And leaves the rest for the next one."""
    receiver = Receiver(listening)
    with connected(listening) as sender:
        for number in range(MOST + 7):
            sender.send(b"%d" % number)
    first, second = receiver.receive(), receiver.receive()
    assert (len(first), len(second)) == (MOST, 7)
    assert [int(one.data) for one in (*first, *second)] == list(range(MOST + 7))
    assert receiver.receive() == []


def test_what_found_the_queue_full_is_lost_by_the_kernels_count(listening: socket.socket) -> None:
    """Sent is received plus lost, to the datagram."""
    receiver = Receiver(listening)
    with connected(listening) as sender:
        for _ in range(5000):
            sender.send(b"m" * 250)
    received = 0
    while found := receiver.receive():
        received += len(found)
    assert 0 < received < 5000
    assert received + receiver.lost == 5000
    assert receiver.lost == 5000 - received  # asked again, it does not count twice


def test_the_kernels_counter_may_wrap(listening: socket.socket) -> None:
    """It has 32 bits."""
    receiver = Receiver(listening)
    receiver._seen_drops = 2**32 - 3  # as if it had dropped so many before
    assert receiver.lost == 3


def test_a_closed_socket_is_an_error_and_no_silence(listening: socket.socket) -> None:
    """An input that reads nothing for ever must say so."""
    receiver = Receiver(listening)
    listening.close()
    with pytest.raises(OSError, match="file descriptor"):
        receiver.receive()


def test_without_recvmmsg_it_is_the_same_but_slower(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems than Linux."""
    monkeypatch.setattr(datagrams, "_IS_LINUX", False)
    receiver = Receiver(listening, datagram_bytes=500)
    with connected(listening) as sender:
        for size in (0, 500, 501):
            sender.send(b"a" * size)
        found = receiver.receive()
        assert [(len(one.data), one.is_cut) for one in found] == [(0, False), (500, False), (500, True)]
        assert {address_of(one.sender) for one in found} == {sender.getsockname()[:2]}
    assert receiver.lost == 0


def test_an_ipv4_sender_to_an_ipv6_socket_is_told_as_ipv4() -> None:
    """Origins, networks and ledgers know it by the address that its owner knows."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as both:
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.setblocking(False)
        both.bind(("::", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(("127.0.0.1", both.getsockname()[1]))
            sender.send(b"hello")
            (found,) = Receiver(both).receive()
            assert address_of(found.sender) == sender.getsockname()


def test_all_sockets_read_into_one_memory() -> None:
    """A flood of the longest datagrams fills it once; what one socket read stays as it is when another one reads."""
    here = Listen("127.0.0.1", 0)
    with (
        bind_datagrams(here, receive_buffer_bytes=2**18) as one,
        bind_datagrams(here, receive_buffer_bytes=2**18) as two,
        connected(one) as to_one,
        connected(two) as to_two,
    ):
        to_one.send(b"1" * 60_000)
        to_two.send(b"2" * 60_000)
        readers = Receiver(one), Receiver(two)
        assert readers[0]._data is readers[1]._data
        assert len(readers[0]._data) <= 16 * 2**20
        assert [reader.receive()[0].data for reader in readers] == [b"1" * 60_000, b"2" * 60_000]


def test_the_queue_is_what_the_kernel_gives(listening: socket.socket) -> None:
    """Half of what SO_RCVBUF says, which counts the kernel's own bookkeeping."""
    assert 2**15 <= queue_bytes(listening) <= 2**18


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory as Linux counts it")
def test_room_for_long_datagrams_costs_nothing_while_they_are_short() -> None:
    """256 of 64 KiB are 16 MiB of address space and, as long as a page each is enough, 1 MiB of memory."""

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident_bytes()
    with bind_datagrams(Listen("127.0.0.1", 0), receive_buffer_bytes=2**20) as listening:
        receiver = Receiver(listening)
        with connected(listening) as sender:
            for _ in range(MOST):
                sender.send(b"short")
        assert len(receiver.receive()) == MOST
        assert resident_bytes() - before < 8e6


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_goes_back_to_where_its_question_came_from(host: str) -> None:
    """With the interface where the address has one."""
    receiving = bind_datagrams(Listen(host, 0), receive_buffer_bytes=2**16)
    with receiving, socket.socket(receiving.family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(30)
        sender.sendto(b"question", receiving.getsockname())
        (found,) = Receiver(receiving).receive()
        receiving.sendto(b"answer", answer_address(found.sender))
        assert sender.recv(100) == b"answer"


def test_the_interface_of_a_link_local_sender_is_kept() -> None:
    """The last word of struct sockaddr_in6."""
    scope = (7).to_bytes(4, sys.byteorder)
    address = socket.inet_pton(socket.AF_INET6, "fe80::1")
    sender = int(socket.AF_INET6).to_bytes(2, sys.byteorder) + (162).to_bytes(2) + bytes(4) + address + scope
    assert address_of(sender) == ("fe80::1", 162)
    assert answer_address(sender) == ("fe80::1", 162, 0, 7)
    assert datagrams._pack_address(socket.AF_INET6, ("fe80::1%eth0", 162, 0, 7)) == sender
