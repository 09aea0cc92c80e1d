"""Connections that fail on uvloop close their own descriptor and nobody else's."""

import ast
import asyncio
import contextlib
import gc
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
import uvloop
from collector_process import Certificates

from ndcollector.client_sockets import LoopOwnedSocket, connector

SECONDS = 3.0
BODY = b"x" * 50_000 + b"!"
ANSWERED = 0.8  # from here on the server's dice are kind
RESET = struct.pack("ii", 1, 0)


class Bystander(threading.Thread):
    """Opens and closes a file of its own, as the spool does, and notices when somebody else had a hand in it."""

    def __init__(self, path: Path, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._over = over
        self.harmed = 0

    def run(self) -> None:
        while not self._over.wait(random.random() / 200):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT)
            inode = self._path.stat().st_ino
            self._over.wait(random.random() / 100)
            try:
                self.harmed += os.fstat(descriptor).st_ino != inode
                os.close(descriptor)
            except OSError:
                self.harmed += 1


def bad_server(certificates: Certificates) -> tuple[socket.socket, int]:
    """It resets connections before, in and after the handshake, or keeps them waiting."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    listening = socket.create_server(("127.0.0.1", 0), backlog=500)

    def serve(connection: socket.socket, dice: float) -> None:
        if dice < ANSWERED:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        with contextlib.suppress(OSError), connection:
            if dice < 0.2:
                return
            if dice < 0.5:
                connection.recv(10)
                return
            if dice < 0.6:
                time.sleep(0.3)
                return
            with context.wrap_socket(connection, server_side=True) as secured:
                secured.recv(1000)
                if dice >= ANSWERED:
                    while (data := secured.recv(65536)) and not data.endswith(BODY[-1:]):
                        pass
                    secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0], random.random()), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listening, listening.getsockname()[1]


async def storm(url: str, tls: ssl.SSLContext, make: Callable[..., aiohttp.TCPConnector]) -> int:
    """Requests that fail in every phase, and are cancelled in every phase; how many were answered all the same."""
    answered = 0
    end = time.monotonic() + SECONDS

    async def ask(session: aiohttp.ClientSession) -> None:
        nonlocal answered
        while time.monotonic() < end:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, RuntimeError):
                async with asyncio.timeout(random.choice([0.01, 0.05, 0.1, 1])):
                    async with session.post(url, data=BODY, ssl=tls) as reply:
                        await reply.read()
                    answered += 1

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=0.2)
    async with aiohttp.ClientSession(connector=make(limit=9), timeout=timeout) as session:
        await asyncio.gather(*(ask(session) for _ in range(8)))
    return answered


def sockets_open() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(entry.readlink()).startswith("socket:")
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore::ResourceWarning")
def test_connections_that_fail_harm_no_descriptor_of_another_thread(tmp_path: Path) -> None:
    """With aiohttp's own sockets this finds several a second, and TLS records in the bystanders' files."""
    certificates = Certificates.make(tmp_path / "pki")
    tls = ssl.create_default_context(cafile=str(certificates.ca))
    listening, port = bad_server(certificates)
    over = threading.Event()
    bystanders = [Bystander(tmp_path / f"file-{number}", over) for number in range(4)]
    before = sockets_open()
    for bystander in bystanders:
        bystander.start()
    with listening, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answered = runner.run(storm(f"https://localhost:{port}/", tls, connector))
    over.set()
    for bystander in bystanders:
        bystander.join(10)
    assert sum(bystander.harmed for bystander in bystanders) == 0
    assert all((tmp_path / f"file-{number}").stat().st_size == 0 for number in range(4)), "somebody wrote there"
    assert answered > 0
    deadline = time.monotonic() + 10
    while sockets_open() > before:  # the server's threads end by themselves
        assert time.monotonic() < deadline, f"{sockets_open() - before} sockets are left open"
        time.sleep(0.05)


def test_the_garbage_collector_leaves_a_socket_alone() -> None:
    """Its descriptor belongs to the loop; closing it is what `close` is for."""
    made = LoopOwnedSocket()
    descriptor = made.fileno()
    del made
    gc.collect()
    os.fstat(descriptor)
    os.close(descriptor)
    closed = LoopOwnedSocket()
    descriptor = closed.fileno()
    closed.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_every_client_session_of_the_collector_is_made_so() -> None:
    """One that is not may close a segment of the spool: give it `connector=client_sockets.connector(...)`."""
    package = Path(__file__).resolve().parents[1] / "ndcollector"
    wrong = []
    for file in package.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func).removeprefix("aiohttp.")
            lacks = name == "ClientSession" and "connector" not in {keyword.arg for keyword in call.keywords}
            if lacks or (name == "TCPConnector" and file.name != "client_sockets.py"):
                wrong.append(f"{file.relative_to(package)}:{call.lineno}: {name}")
    assert wrong == []
