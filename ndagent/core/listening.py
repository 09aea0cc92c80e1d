"""Listening sockets: taken over where somebody holds them for us, else made; with errors that say where to look."""

import asyncio
import contextlib
import errno
import socket
import sys
from typing import Literal

from ndagent.core.datagrams import bind_datagrams
from ndagent.core.inherited import HELD, Inherited
from ndagent.core.settings import Listen

BACKLOG = 4096
KEEPALIVE_SECONDS = 60  # idle time before probes; with 6 probes 20 s apart a dead peer is noticed in 3 minutes


async def bind(listen: Listen, *, held: Inherited = HELD) -> socket.socket:
    """A non-blocking socket that listens there; raises OSError with the address and where to look."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        inherited = held.find(family, address)
        if inherited is not None:
            return inherited
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setblocking(False)
            if sys.platform != "win32":  # there it would let two programs listen on one port
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # 0.0.0.0 may be listed beside [::]
            listening.bind(address)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        beside = held.beside(listen.port) if error.errno == errno.EADDRINUSE else None
        remedy = "is another program there (ss -ltnp), is the address ours?"
        if beside is not None:
            remedy = f"systemd holds {beside}: the socket unit and the configuration must name the same address"
        text = f"cannot listen on {listen}: {error.strerror}; {remedy}"
        raise OSError(error.errno, text) from error
    return listening


async def try_address(listen: Listen, transport: Literal["tcp", "udp"]) -> None:
    """Raise OSError, with the address and where to look, unless this could be bound now."""
    sock = await bind(listen) if transport == "tcp" else bind_datagrams(listen, receive_buffer_bytes=0)
    sock.close()


def keep_alive(accepted: socket.socket) -> None:
    """Have the kernel find out about a peer that is gone without a word."""
    with contextlib.suppress(OSError):
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", KEEPALIVE_SECONDS), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, option):
                accepted.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
