"""Listening sockets that somebody holds for this process: systemd's socket units (sd_listen_fds(3)).

Whoever holds them keeps them while the daemon restarts, so that no connection is refused meanwhile: it waits in the
kernel's queue for the daemon that comes next.

Promises: an address of the configuration that such a socket has is served through it, also when a reload ends an input
and begins another; any other is opened. What nobody wants is closed and said. Children of this process get none of it.
Refuses: sockets that are no TCP listeners, and IPv6 ones that take IPv4 too, whose peers would have other addresses
than `allow.networks` names.
"""

import logging
import os
import socket
from collections.abc import Iterable, MutableMapping

from ndagent.core import messages

log = logging.getLogger(__name__)

FIRST_FD = 3  # SD_LISTEN_FDS_START
_MOST = 1024
Address = tuple[object, ...]


class Inherited:
    """One per process. Each socket stays open as long as the process lives; `find` gives copies of its descriptor."""

    def __init__(self) -> None:
        self._unused: dict[tuple[int, Address], tuple[str, socket.socket]] = {}
        self._used: dict[tuple[int, Address], socket.socket] = {}

    def add(self, sockets: Iterable[tuple[str, socket.socket]]) -> None:
        """Hold these, each with the name that it is known by; what is of no use is closed and said."""
        for name, found in sockets:
            why_not = _why_not(found)
            if why_not:
                log.warning(
                    "the socket %s that was inherited is of no use and closed: %s", name, why_not,
                    extra=messages.SOCKET_UNUSED,
                )
                found.close()
                continue
            found.setblocking(False)
            self._unused[_key(found.family, found.getsockname())] = name, found

    def find(self, family: int, address: Address) -> socket.socket | None:
        """The socket that listens at exactly this address, as a descriptor of the caller's own to close."""
        key = _key(family, address)
        if key in self._unused:
            _, self._used[key] = self._unused.pop(key)
        found = self._used.get(key)
        return found.dup() if found is not None else None

    def close_unused(self) -> None:
        """Close those that nobody asked for so far, and say so; call it once all inputs listen."""
        unused, self._unused = self._unused, {}
        for name, found in unused.values():
            host, port = found.getsockname()[:2]
            log.warning(
                "no input listens on %s:%s, which systemd holds for us (%s): closed here, but systemd goes on taking "
                "connections there that nobody answers. Disable that socket unit (systemctl list-sockets), or list the "
                "address in the configuration and restart", host, port, name, extra=messages.SOCKET_UNUSED,
            )
            found.close()


def take_over(environ: MutableMapping[str, str]) -> list[tuple[str, socket.socket]]:
    """The sockets that this process was started with, by their names; the variables that say so are removed."""
    count, names = environ.pop("LISTEN_FDS", "0"), environ.pop("LISTEN_FDNAMES", "").split(":")
    if environ.pop("LISTEN_PID", "") != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for number in range(min(int(count), _MOST)):
        name = names[number] if number < len(names) and names[number] else "unknown"
        os.set_inheritable(FIRST_FD + number, False)
        found.append((name, socket.socket(fileno=FIRST_FD + number)))
    if found:
        places = [f"{one.getsockname()} ({name})" for name, one in found]
        log.info("taking over sockets that are held for us", extra={**messages.SOCKETS_TAKEN_OVER, "sockets": places})
    return found


def _key(family: int, address: Address) -> tuple[int, Address]:
    return family, tuple(address[:2])


def _why_not(found: socket.socket) -> str | None:
    """What keeps it from being served; None if nothing does."""
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
        return "only TCP sockets (ListenStream=ADDRESS:PORT) can be taken over"
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "it does not listen; a socket unit must have Accept=no"
    if found.family == socket.AF_INET6 and not found.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return "it takes IPv4 too; a socket unit must have BindIPv6Only=ipv6-only, and 0.0.0.0 beside [::]"
    return None


HELD = Inherited()
"""Those of this process, filled at its start (core/daemon.py): descriptors are the process's, as its arguments are."""
