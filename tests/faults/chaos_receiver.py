"""A receiver of events by HTTPS that answers only for what it has on disk; a process of its own, to be killed.

    chaos_receiver.py PORT CERTIFICATE KEY FILE        POST /events, NDJSON, gzip or plain

Promises: 200 is said after the body's lines are in FILE and synced; a body that does not come whole is not kept and not
answered. Killed between the two, it has events whose sender was never told: they come again, as duplicates.
"""

import gzip
import os
import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_SILENCE_SECONDS = 20
_lock = threading.Lock()


class Store:
    """The file; one writer at a time, or two bodies could share a line."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":  # killed within a write: nobody was told of it
            whole = os.pread(self._fd, size, 0).rfind(b"\n") + 1
            os.ftruncate(self._fd, whole)

    def keep(self, lines: bytes) -> None:
        """Return once they would survive anything."""
        with _lock:
            while lines:
                lines = lines[os.write(self._fd, lines) :]
            os.fsync(self._fd)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = _SILENCE_SECONDS
    store: Store

    def do_POST(self) -> None:
        """Keep, sync, answer."""
        size = int(self.headers["Content-Length"])
        body = self.rfile.read(size)
        if len(body) < size:
            self.close_connection = True
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.store.keep(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing per request."""


class Server(ThreadingHTTPServer):
    """TLS begins in the connection's own thread: a client that is silent in its handshake holds up nobody."""

    daemon_threads = True

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self._context = context

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """See the class."""
        try:
            request.settimeout(_SILENCE_SECONDS)
            with self._context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)
        except OSError:  # the link is faulty on purpose
            pass

    def handle_error(self, request: object, client_address: object) -> None:  # type: ignore[override]
        """The link is faulty on purpose."""


def main() -> None:
    """See the module."""
    port, certificate, key, path = sys.argv[1:]
    Handler.store = Store(path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with Server(int(port), context) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
