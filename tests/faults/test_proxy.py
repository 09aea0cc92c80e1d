"""The fault proxy does what it says: a fault test that meets no fault would prove nothing."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from proxy import FaultProxy

SECONDS = 10  # a limit for what must happen, never a measure


class Echo:
    """A server that sends back what it gets, and remembers it; `ended` says how each connection did."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listening.getsockname()
        self.received = bytearray()
        self.ended: list[str] = []
        self.silent = False
        self.threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.received += data
                    if not self.silent:
                        connection.sendall(data)
                self.ended.append("fin")
            except ConnectionResetError:
                self.ended.append("reset")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # close() alone does not wake the accept that waits
        self._listening.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def link(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(target=echo.address, seed=1) as proxy:
        yield proxy


def connect(link: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=SECONDS)


def echoed(client: socket.socket, data: bytes) -> bytes:
    """What comes back for it, all of it."""
    client.sendall(data)
    return exactly(client, len(data))


def exactly(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


def until(condition, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.005)


def test_in_fair_weather_bytes_and_the_end_pass_unchanged(link, echo):
    """A megabyte each way, and a FIN arrives as a FIN."""
    data = bytes(range(256)) * 4096
    with connect(link) as client:
        sending = threading.Thread(target=client.sendall, args=(data,))
        sending.start()
        assert exactly(client, len(data)) == data
        sending.join(SECONDS)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    until(lambda: echo.ended == ["fin"], "FIN at the server")
    assert not link.happened


def test_latency_and_jitter_delay_both_ways_and_reorder_nothing(link):
    """There and back takes at least twice the latency; a thousand small pieces come in order."""
    with connect(link) as client:
        echoed(client, b"x")
        link.change(latency_seconds=0.1, jitter_seconds=0.05)
        began = time.monotonic()
        echoed(client, b"x")
        assert time.monotonic() - began >= 0.2
        data = b"".join(b"%04d" % number for number in range(1000))
        for start in range(0, len(data), 40):
            client.sendall(data[start : start + 40])
        assert exactly(client, len(data)) == data


def test_a_thin_line_carries_what_it_may(link):
    """20 kB at 100 kB/s in each direction: a fifth of a second, twice."""
    with connect(link) as client:
        link.change(bytes_per_second=100_000)
        began = time.monotonic()
        echoed(client, b"x" * 20_000)
        assert time.monotonic() - began >= 0.2


def test_a_reset_is_a_reset_at_both_ends(link, echo):
    """Not a FIN, which would read as a good end."""
    with connect(link) as client:
        echoed(client, b"x")
        link.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    until(lambda: echo.ended == ["reset"], "RST at the server")
    assert link.happened["reset"] == 1


def test_a_blackhole_takes_everything_and_says_nothing(link, echo):
    """The client's bytes are gone, no error comes; healed, that connection is reset and a new one works."""
    with connect(link) as client:
        echoed(client, b"before")
        link.change(swallowing=True)
        client.sendall(b"lost")
        until(lambda: link.happened["swallowed_bytes"] == 4, "swallowed bytes")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(SECONDS)
        link.heal()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert bytes(echo.received) == b"before"
    with connect(link) as client:
        assert echoed(client, b"again") == b"again"


def test_a_stalled_link_pushes_back_and_then_loses_nothing(link):
    """The sender blocks once the kernels' buffers are full; all of it comes when the link flows again."""
    data = bytes(32 << 20)
    with connect(link) as client:
        link.change(stalled=True)
        sending = threading.Thread(target=client.sendall, args=(data,))
        sending.start()
        sending.join(0.3)
        assert sending.is_alive(), "nobody pushed back"
        link.change(stalled=False)
        assert exactly(client, len(data)) == data
        sending.join(SECONDS)


def test_truncation_ends_in_the_middle_with_a_good_end(link, echo):
    """Exactly so many bytes arrive, then FIN: only a protocol that marks its ends can tell."""
    echo.silent = True
    link.truncate(1500)
    with connect(link) as client, contextlib.suppress(OSError):
        client.sendall(b"x" * 4000)
        client.recv(1)
    until(lambda: bool(echo.ended), "end at the server")
    assert len(echo.received) == 1500
    assert link.happened["truncated"] == 1


def test_half_open_the_server_knows_nothing_of_the_end(link, echo):
    """The client is reset, the server's end stays open and silent until the link heals."""
    with connect(link) as client:
        echoed(client, b"x")
        link.abandon()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    time.sleep(0.05)  # what must not happen gets a moment to
    assert echo.ended == []
    link.heal()
    until(lambda: echo.ended == ["reset"], "end at the server")


def test_refused_connections_are_refused_and_the_port_stays(link):
    """Open connections go on; new ones get ECONNREFUSED until the link heals."""
    with connect(link) as client:
        echoed(client, b"x")
        link.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(link)
        assert echoed(client, b"still") == b"still"
        link.heal()
        with connect(link) as another:
            assert echoed(another, b"y") == b"y"


def test_a_server_that_is_away_is_seen_as_a_reset(link, echo):
    """Like a load balancer with nobody behind it."""
    echo.close()
    with contextlib.suppress(OSError), connect(link) as client:
        client.sendall(b"x")
        assert client.recv(1) == b""
    assert link.open_connections == 0
