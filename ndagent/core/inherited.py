"""Listening sockets that somebody holds for this process: systemd's socket units (sd_listen_fds(3)).

Whoever holds them keeps them while the daemon restarts, so that no connection is refused meanwhile: it waits in the
kernel's queue for the daemon that comes next.

Promises: an address of the configuration that such a socket has is served through it, also when a reload ends an input
and begins another, or adds one that nobody wanted before; any other is opened. What no input listens on is said, at the
start and when a reload leaves it alone: the kernel goes on taking connections there, and whoever made one waits for an
answer. Children of this process get none of it.
Refuses: what is no TCP listener, IPv6 ones that take IPv4 too, whose peers would have other addresses than
`allow.networks` names, and a second socket for one address. They are closed and said, and keep no daemon from starting.
"""

import logging
import os
import socket
import stat
import weakref
from collections.abc import Iterable, MutableMapping

from ndagent.core import messages

log = logging.getLogger(__name__)

FIRST_FD = 3  # SD_LISTEN_FDS_START
_MOST = 1024
Address = tuple[object, ...]
_Key = tuple[int, Address]


class Inherited:
    """One per process. Each socket stays open as long as the process lives; `find` gives copies of its descriptor."""

    def __init__(self) -> None:
        self._held: dict[_Key, tuple[str, socket.socket]] = {}
        self._served: dict[_Key, weakref.WeakSet[socket.socket]] = {}  # the copies that callers have
        self._said: set[_Key] = set()

    def add(self, sockets: Iterable[tuple[str, socket.socket]]) -> None:
        """Hold these, each with the name that it is known by; what is of no use is closed and said."""
        for name, found in sockets:
            why_not = _why_not(found)
            if why_not is None and _key_of(found) in self._held:
                why_not = f"another one for {_place(found)} came with it; have one socket unit for each address"
            if why_not is not None:
                _say_useless(name, why_not)
                found.close()
                continue
            found.setblocking(False)
            self._held[_key_of(found)] = name, found

    def find(self, family: int, address: Address) -> socket.socket | None:
        """The socket that listens at exactly this address, as a descriptor of the caller's own to close."""
        key = _key(family, address)
        if key not in self._held:
            return None
        _, found = self._held[key]
        copy = found.dup()
        self._served.setdefault(key, weakref.WeakSet()).add(copy)
        return copy

    def beside(self, port: int) -> str | None:
        """The address that is held at this port, for whoever could not have it."""
        return next((_place(found) for _, found in self._held.values() if found.getsockname()[1] == port), None)

    def tell_unused(self) -> None:
        """Say which ones nobody listens on now, each once until somebody does; call it when inputs have changed."""
        unused = {key for key in self._held if not self._is_served(key)}
        for key in unused - self._said:
            name, found = self._held[key]
            log.warning(
                "no input listens on %s, which systemd holds for us (%s): connections there are taken and nobody "
                "answers them. Stop and disable that socket unit (systemctl list-sockets), or list the address in the "
                "configuration", _place(found), name, extra=messages.SOCKET_UNUSED,
            )  # fmt: skip
        self._said = unused

    def close(self) -> None:
        """Let go of all of them; copies stay their owners'."""
        for _, found in self._held.values():
            found.close()
        self._held.clear()

    def _is_served(self, key: _Key) -> bool:
        return any(copy.fileno() >= 0 for copy in self._served.get(key, ()))


def take_over(environ: MutableMapping[str, str]) -> list[tuple[str, socket.socket]]:
    """The sockets that this process was started with, by their names; the variables that say so are removed."""
    count, names = environ.pop("LISTEN_FDS", "0"), environ.pop("LISTEN_FDNAMES", "").split(":")
    if environ.pop("LISTEN_PID", "") != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for number in range(min(int(count), _MOST)):
        name = names[number] if number < len(names) and names[number] else "unknown"
        taken = _take(FIRST_FD + number, name)
        if taken is not None:
            found.append((name, taken))
    if found:
        places = [f"{one.getsockname()} ({name})" for name, one in found]
        log.info("taking over sockets that are held for us", extra={**messages.SOCKETS_TAKEN_OVER, "sockets": places})
    return found


def _take(fd: int, name: str) -> socket.socket | None:
    """That descriptor's socket; None for what is no socket (ListenFIFO=, FileDescriptorStoreMax=) or is not there."""
    try:
        os.set_inheritable(fd, False)
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            return socket.socket(fileno=fd)
        os.close(fd)
        why_not = "it is no socket"
    except OSError as error:
        why_not = f"descriptor {fd}: {error.strerror}"
    _say_useless(name, why_not)
    return None


def _say_useless(name: str, why_not: str) -> None:
    log.warning("%s, which was inherited, is of no use and closed: %s", name, why_not, extra=messages.SOCKET_UNUSED)


def _key(family: int, address: Address) -> _Key:
    return family, tuple(address[:2])


def _key_of(found: socket.socket) -> _Key:
    return _key(found.family, found.getsockname())


def _place(found: socket.socket) -> str:
    host, port = found.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
