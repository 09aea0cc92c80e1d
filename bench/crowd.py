"""Thousands of TLS connections held by one process, dropped and opened again on command.

Commands on stdin, one a line: `open` (connect all, a few hundred at a time), `storm` (drop all, then all at once:
connect, handshake, one event each), `stop`. The first two are answered by one JSON line once all are connected.

Promises: a connection that is refused or closed comes back after a second and sends its event again, as devices do: in
TLS 1.3 a client takes its handshake for done before the server has judged it, so only the close tells.
"""

import argparse
import json
import selectors
import socket
import ssl
import sys
import time
from collections import deque

import payload

_GENTLE = 256  # handshakes under way while warming up; a storm has no such limit
_BACK_AFTER_SECONDS = 1.0


class Crowd:
    """See the module; `context` is the clients'."""

    def __init__(self, arguments: argparse.Namespace, context: ssl.SSLContext) -> None:
        self._context = context
        self._address = ("127.0.0.1", arguments.port)
        self._size: int = arguments.connections
        self._selector = selectors.EpollSelector()
        self._to_begin: deque[int] = deque()
        self._to_repeat: deque[tuple[float, int]] = deque()  # when, who; the delay is constant, so they are in order
        self._under_way_limit = 0
        self._held: dict[int, ssl.SSLSocket] = {}
        self._began: float | None = None  # of the command that waits for its answer
        self._sends = False
        self._refused = 0

    def serve(self) -> None:
        """Obey until told to stop."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            self._begin_some()
            for key, _ in self._selector.select(timeout=0.05 if self._to_repeat else None):
                if isinstance(key.fileobj, socket.socket):
                    self._step(key.fileobj, key.data)
                elif not self._obey(sys.stdin.readline().strip()):
                    return
            if self._began is not None and len(self._held) == self._size:
                answer = {"started": self._began, "ended": time.time(), "refused": self._refused}
                print(json.dumps(answer), flush=True)
                self._began = None

    def _obey(self, command: str) -> bool:
        if command == "storm":
            self._drop()
        self._sends = command == "storm"
        self._under_way_limit = self._size if self._sends else _GENTLE
        self._to_begin.extend(range(self._size))
        self._refused = 0
        self._began = time.time()
        return command in ("open", "storm")

    def _drop(self) -> None:
        for connection in self._held.values():
            self._selector.unregister(connection)
            connection.close()
        self._held.clear()

    def _begin_some(self) -> None:
        while self._to_repeat and self._to_repeat[0][0] <= time.monotonic():
            self._to_begin.append(self._to_repeat.popleft()[1])
        under_way = len(self._selector.get_map()) - 1 - len(self._held)
        for _ in range(min(self._under_way_limit - under_way, len(self._to_begin))):
            raw = socket.socket()
            raw.setblocking(False)
            raw.connect_ex(self._address)
            self._selector.register(raw, selectors.EVENT_WRITE, self._to_begin.popleft())

    def _step(self, connection: socket.socket, number: int) -> None:
        """One more step of a handshake, or something to read where only a close can come."""
        self._selector.unregister(connection)
        wait_for = selectors.EVENT_READ
        try:
            if not isinstance(connection, ssl.SSLSocket):
                connection = self._context.wrap_socket(
                    connection, server_hostname="localhost", do_handshake_on_connect=False
                )
            if number in self._held:
                self._see_close(connection)
            else:
                connection.do_handshake()
                self._greet(connection, number)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            wait_for = selectors.EVENT_WRITE
        except OSError:
            self._lose(connection, number)
            return
        self._selector.register(connection, wait_for, number)

    def _greet(self, connection: ssl.SSLSocket, number: int) -> None:
        if self._sends:
            connection.send(payload.octet_counted(next(payload.messages(number, 1))))
        self._held[number] = connection

    def _see_close(self, connection: ssl.SSLSocket) -> None:
        if not connection.recv(4096):
            raise ConnectionResetError("closed by the server")

    def _lose(self, connection: socket.socket, number: int) -> None:
        self._held.pop(number, None)
        self._refused += 1
        connection.close()
        self._to_repeat.append((time.monotonic() + _BACK_AFTER_SECONDS, number))
