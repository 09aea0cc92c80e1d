"""Whose handshake begins next."""

import asyncio
import socket

import pytest

from ndagent.core.tls_waiting import Waiting, WaitingRoom


def visitor(address: str, port: int) -> Waiting:
    """A socket that waits."""
    return Waiting(socket.socket(), address, port)


async def test_addresses_take_turns_and_each_keeps_its_order() -> None:
    """Thousands of one address are one turn in two when somebody else comes."""
    room = WaitingRoom()
    for address, port in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)]:
        room.put(visitor(address, port))
    assert (len(room), room.waiting_from("a"), room.waiting_from("x")) == (6, 3, 0)
    taken = [room.take() for _ in range(6)]
    for one in taken:
        one.accepted.close()
    assert [one.port for one in taken] == [1, 4, 5, 2, 6, 3]
    assert len(room) == 0
    with pytest.raises(IndexError):
        room.take()


async def test_ready_waits_for_somebody() -> None:
    """Also again after everybody has gone."""
    room = WaitingRoom()
    for _ in range(2):
        waiting = asyncio.create_task(room.ready())
        await asyncio.sleep(0)
        assert not waiting.done()
        room.put(visitor("a", 1))
        await waiting
        room.take().accepted.close()


def test_close_closes_everybody_s_socket() -> None:
    """A stop must not leave peers hanging that were accepted and never served."""
    room = WaitingRoom()
    visitors = [visitor(address, 1) for address in "aab"]
    for one in visitors:
        room.put(one)
    room.close()
    assert len(room) == 0
    assert all(one.accepted.fileno() == -1 for one in visitors)
