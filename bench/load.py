"""The load generator: syslog over TLS 1.3 with a client certificate, from one process of its own.

Promises: payloads are made beforehand and mapped, so that sending costs as little as Python's ssl allows (blocking
sockets, chunks of 256 KiB, one event per call where the scenario wants one event per TLS record); what it measured
stands in one JSON object on stdout: when the first byte left, when the last did, and what it cost this process.
Refuses: looking at what arrives; that is verify.py's part.

    python bench/load.py bulk --port 6514 --pki DIR --payload FILE [FILE ...]
    python bench/load.py single --port 6514 --pki DIR --connections 500 --count 400
    python bench/load.py idle --port 6514 --pki DIR --connections 10000     (then commands on stdin, see Idle)
"""

import argparse
import json
import mmap
import resource
import selectors
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import payload

_CHUNK_BYTES = 256 * 1024
_CONNECTS_UNDER_WAY = 256  # while warming up; a storm has no such limit


def client_context(pki: Path) -> ssl.SSLContext:
    """TLS 1.3 only, the peer verified, our certificate shown."""
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(pki / "client.crt", pki / "client.key")
    return context


def raise_descriptor_limit() -> None:
    """Ten thousand sockets need more than the usual soft limit; the hard one is the machine's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connect(context: ssl.SSLContext, port: int) -> ssl.SSLSocket:
    """One blocking connection, handshake done."""
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")


def close(connection: ssl.SSLSocket) -> None:
    """Say close_notify and that no more comes, wait for the peer to have read all, then close.

    Closing at once while the peer's tickets lie unread sends a RST, which destroys data on its way.
    """
    connection.settimeout(60)
    try:
        connection.unwrap().close()
    except OSError:  # a peer that answers with a plain FIN has read everything too
        connection.close()


class Clock:
    """Time and CPU from when the first byte is about to leave."""

    def __init__(self) -> None:
        self.started = time.time()
        self._cpu_began = self._cpu_seconds()

    def result(self) -> dict[str, float]:
        """What to report now that the last byte has left."""
        return {"started": self.started, "sent": time.time(), "cpu_seconds": self._cpu_seconds() - self._cpu_began}

    @staticmethod
    def _cpu_seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime


def bulk(arguments: argparse.Namespace) -> dict[str, float]:
    """Each payload on a connection of its own, all at once, as fast as the peer reads."""
    context = client_context(arguments.pki)
    connections = [connect(context, arguments.port) for _ in arguments.payload]
    clock = Clock()
    threads = [
        threading.Thread(target=_send_file, args=(connection, path))
        for connection, path in zip(connections, arguments.payload, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clock.result()


def _send_file(connection: ssl.SSLSocket, path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        with memoryview(data) as view:
            for at in range(0, len(view), _CHUNK_BYTES):
                connection.sendall(view[at : at + _CHUNK_BYTES])
    close(connection)


def single(arguments: argparse.Namespace) -> dict[str, float]:
    """Many connections in turn, each time one event in a TLS record of its own."""
    context = client_context(arguments.pki)
    rounds = _rounds(arguments.connections, arguments.count)
    senders = [connect(context, arguments.port) for _ in range(arguments.connections)]
    sends: list[Callable[[bytes], object]] = [sender.sendall for sender in senders]
    clock = Clock()
    for messages in rounds:
        for send, message in zip(sends, messages, strict=True):
            send(message)
    result = clock.result()
    for sender in senders:
        close(sender)
    return result


def _rounds(connections: int, count: int) -> list[list[bytes]]:
    streams = [payload.messages(connection, count) for connection in range(connections)]
    return [[payload.octet_counted(next(stream)) for stream in streams] for _ in range(count)]


class Idle:
    """Thousands of connections that are held, dropped and opened again on command.

    Commands on stdin, one a line, each answered by one JSON line: `open` (connect all, gently), `storm` (drop all, then
    all at once: connect, handshake, one event each), `stop`.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._context = client_context(arguments.pki)
        self._address = ("127.0.0.1", arguments.port)
        self._wanted: int = arguments.connections
        self._held: list[ssl.SSLSocket] = []
        self._number = 0  # of the next round of events

    def serve(self) -> None:
        """Obey until told to stop."""
        for line in sys.stdin:
            command = line.strip()
            if command == "stop":
                return
            started = time.time()
            if command == "open":
                self._held = self._open(_CONNECTS_UNDER_WAY)
            elif command == "storm":
                self._drop()
                started = time.time()
                self._held = self._open(self._wanted)
                self._send_one_each()
            print(json.dumps({"started": started, "ended": time.time(), "held": len(self._held)}), flush=True)

    def _drop(self) -> None:
        for connection in self._held:
            connection.close()
        self._held.clear()

    def _open(self, under_way: int) -> list[ssl.SSLSocket]:
        """All connections with their handshakes done, at most `under_way` at a time."""
        done: list[ssl.SSLSocket] = []
        begun = 0
        with selectors.EpollSelector() as selector:
            while len(done) < self._wanted:
                while begun < self._wanted and begun - len(done) < under_way:
                    selector.register(self._begin(), selectors.EVENT_WRITE, None)
                    begun += 1
                for key, _ in selector.select():
                    connection = self._step(selector, key)
                    if connection is not None:
                        done.append(connection)
        return done

    def _begin(self) -> socket.socket:
        raw = socket.socket()
        raw.setblocking(False)
        raw.connect_ex(self._address)
        return raw

    def _step(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> ssl.SSLSocket | None:
        """One more step of a handshake; the connection once it is done. A refused one begins anew."""
        connection = key.fileobj
        selector.unregister(connection)
        try:
            if not isinstance(connection, ssl.SSLSocket):
                assert isinstance(connection, socket.socket)
                connection = self._context.wrap_socket(
                    connection, server_hostname="localhost", do_handshake_on_connect=False
                )
            connection.do_handshake()
        except ssl.SSLWantReadError:
            selector.register(connection, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            selector.register(connection, selectors.EVENT_WRITE)
        except OSError:
            connection.close()
            selector.register(self._begin(), selectors.EVENT_WRITE)
        else:
            return connection
        return None

    def _send_one_each(self) -> None:
        for number, connection in enumerate(self._held):
            connection.setblocking(True)
            message = next(payload.messages(number, 1)).replace(b"-000000000", b"-%09d" % self._number)
            connection.sendall(payload.octet_counted(message))
        self._number += 1


def stream(arguments: argparse.Namespace) -> dict[str, float]:
    """One connection at a steady rate, until stdin closes; what was sent stands in the result."""
    connection = connect(client_context(arguments.pki), arguments.port)
    stopped = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stopped,), daemon=True).start()
    clock, number, worst = Clock(), 0, 0.0
    messages = payload.messages(arguments.connection, arguments.rate * 3600)
    while not stopped.wait(0.01):
        due = int((time.time() - clock.started) * arguments.rate) - number
        began = time.time()
        connection.sendall(b"".join(payload.octet_counted(next(messages)) for _ in range(due)))
        worst = max(worst, time.time() - began)
        number += due
    close(connection)
    return {**clock.result(), "count": number, "longest_send": worst}


def _wait_for_end(stopped: threading.Event) -> None:
    sys.stdin.read()
    stopped.set()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="syslog TLS load")
    parser.add_argument("mode", choices=("bulk", "single", "idle", "stream"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pki", type=Path, required=True)
    parser.add_argument("--payload", type=Path, nargs="+", default=[])
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--connection", type=int, default=99_999, help="number that `stream` puts in its messages")
    parser.add_argument("--count", type=int, default=400, help="events per connection")
    parser.add_argument("--rate", type=int, default=5000, help="events per second of `stream`")
    return parser


def main(argv: Sequence[str]) -> None:
    """Run one mode and print what it measured."""
    arguments = _parser().parse_args(argv)
    raise_descriptor_limit()
    if arguments.mode == "idle":
        return Idle(arguments).serve()
    result = {"bulk": bulk, "single": single, "stream": stream}[arguments.mode](arguments)
    print(json.dumps(result))
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
