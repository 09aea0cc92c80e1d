"""Connections that aiohttp's client makes on uvloop, without descriptors that are closed twice.

Promises: a socket made here is closed once, by whoever has it (aiohttp while it connects, uvloop's transport from then
on), and never by the garbage collector.
Why: aiohttp connects a Python socket and hands it to `loop.create_connection(sock=...)`. Where that fails in its TLS
handshake or is cancelled, uvloop (seen with 0.23.0) closes the descriptor while the Python object may still take it for
its own and close the number again when it is collected. By then it is another thread's: we have seen a spool's segment
closed so, and the close_notify of a stranger's connection written over its header. It does not happen on asyncio's own
loop. See MagicStack/uvloop, issues 653 and 738.
Refuses: everything else about connectors. Every aiohttp.ClientSession of this package is made with one of these; a
library that makes its own (aiobotocore) is given `loop_owned` as its socket factory.
"""

import socket
from typing import Any

import aiohttp


class LoopOwnedSocket(socket.socket):
    """A socket that its finalizer leaves alone."""

    def __del__(self) -> None:
        """Nothing: this takes the place of the finalizer that would close the descriptor."""


def connector(**options: Any) -> aiohttp.TCPConnector:
    """A TCPConnector with these options; see the module."""
    return aiohttp.TCPConnector(socket_factory=loop_owned, **options)


def loop_owned(address: tuple[Any, ...]) -> socket.socket:
    """aiohttp's SocketFactory: a socket for one line of getaddrinfo."""
    family, kind, protocol, *_ = address
    return LoopOwnedSocket(family=family, type=kind, proto=protocol)
