"""The load generator: syslog over TLS 1.3 with a client certificate, from one process of its own.

Promises: messages are made and encrypted before the clock starts, so that sending costs this process what the kernel
takes and nothing more; a bulk chunk is 256 KiB, a single event is one TLS record and one send(). What it measured
stands in one JSON object on stdout: when the first byte left, when the last did, and what that cost this process.
Refuses: looking at what arrives; that is verify.py's part.

    python bench/load.py bulk --port 6514 --pki DIR --payload FILE [FILE ...]
    python bench/load.py single --port 6514 --pki DIR --connections 500 --count 400
    python bench/load.py idle --port 6514 --pki DIR --connections 10000     (then commands on stdin, see crowd.py)
"""

import argparse
import contextlib
import json
import resource
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import payload
from crowd import Crowd

_CHUNK_BYTES = 256 * 1024


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


class Prepared:
    """A TLS connection whose records are encrypted before the clock starts: sending them costs the kernel's part only.

    It never reads application data, like any syslog sender.
    """

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # every send is a packet, as asked
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._handshake()

    def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.socket.sendall(self._outgoing.read())
                self._incoming.write(self.socket.recv(65536))
            else:
                return self.socket.sendall(self._outgoing.read())

    def encrypt(self, data: bytes) -> bytes:
        """The records for `data`, to be sent in the order of these calls."""
        self._tls.write(data)
        return self._outgoing.read()

    def close(self) -> None:
        """Say close_notify and that no more comes; wait until the peer has read it all and closed too.

        Closing at once while a peer's session tickets lie unread sends a RST, which destroys data on its way.
        """
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self.socket.sendall(self._outgoing.read())
        self.socket.shutdown(socket.SHUT_WR)
        self.socket.settimeout(300)  # a disk may stall that long under others' load
        while self.socket.recv(65536):
            pass
        self.socket.close()


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


def _await_go() -> None:
    """Say that all is connected and encrypted, and wait for a line: the server's books are opened in between."""
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()


def bulk(arguments: argparse.Namespace) -> dict[str, float]:
    """Each payload on a connection of its own, all at once, as fast as the peer reads."""
    context = client_context(arguments.pki)
    senders = [Prepared(context, arguments.port) for _ in arguments.payload]
    streams = [
        [sender.encrypt(chunk) for chunk in _chunks(path)]
        for sender, path in zip(senders, arguments.payload, strict=True)
    ]
    _await_go()
    clock = Clock()
    threads = [
        threading.Thread(target=_send_all, args=(sender, stream))
        for sender, stream in zip(senders, streams, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clock.result()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _send_all(sender: Prepared, stream: list[bytes]) -> None:
    for chunk in stream:
        sender.socket.sendall(chunk)
    sender.close()


def single(arguments: argparse.Namespace) -> dict[str, float]:
    """Many connections in turn, each time one event in a TLS record and a packet of its own."""
    context = client_context(arguments.pki)
    senders = [Prepared(context, arguments.port) for _ in range(arguments.connections)]
    rounds = _rounds(senders, arguments.count)
    sends: list[Callable[[bytes], object]] = [sender.socket.sendall for sender in senders]
    _await_go()
    clock = Clock()
    for records in rounds:
        for send, record in zip(sends, records, strict=True):
            send(record)
    result = clock.result()
    for sender in senders:
        sender.close()
    return result


def _rounds(senders: list[Prepared], count: int) -> list[list[bytes]]:
    streams = [payload.messages(connection, count) for connection in range(len(senders))]
    return [
        [sender.encrypt(payload.octet_counted(next(stream))) for sender, stream in zip(senders, streams, strict=True)]
        for _ in range(count)
    ]


def stream(arguments: argparse.Namespace) -> dict[str, float]:
    """One connection at a steady rate, until stdin closes; what was sent stands in the result."""
    sender = Prepared(client_context(arguments.pki), arguments.port)
    stopped = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stopped,), daemon=True).start()
    clock, number, worst = Clock(), 0, 0.0
    messages = payload.messages(arguments.connection, arguments.rate * 3600)
    while not stopped.wait(0.01):
        due = int((time.time() - clock.started) * arguments.rate) - number
        began = time.time()
        if due:
            text = b"".join(payload.octet_counted(next(messages)) for _ in range(due))
            sender.socket.sendall(sender.encrypt(text))
        worst = max(worst, time.time() - began)
        number += due
    sender.close()
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
        return Crowd(arguments, client_context(arguments.pki)).serve()
    result = {"bulk": bulk, "single": single, "stream": stream}[arguments.mode](arguments)
    print(json.dumps(result))
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
