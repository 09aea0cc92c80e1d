"""A TCP link that fails on command: what stands between two real programs in a fault test, TLS and all.

    with FaultProxy(target=("127.0.0.1", 6514), seed=7) as link:     # a program connects to link.port
        link.change(latency_seconds=0.05, jitter_seconds=0.02)       # every byte is late, none is reordered
        link.change(bytes_per_second=20_000)                         # a thin line, in each direction
        link.change(stalled=True)                                    # nothing is read any more: back-pressure
        link.change(swallowing=True)                                 # a blackhole: taken, thrown away, no answer
        link.truncate(1500)                                          # so many more bytes, then FIN in the middle
        link.reset()                                                 # RST to both ends of every connection
        link.abandon()                                               # half-open: clients see RST, servers nothing
        link.refuse()                                                # nobody listens: ECONNREFUSED
        link.heal()                                                  # all of it is over; what was swallowed from is cut

Promises: bytes that arrive are the bytes that were sent, in order, up to where a fault cut them; each fault that really
happened is in `happened`, so that a test can tell a fault from a quiet day; the port stays the same over `refuse` and
`heal`; memory is bounded by QUEUE_CHUNKS chunks a direction. Works in a thread of its own; every method may be called
from any thread and returns when it is done. Connections from which bytes were swallowed are reset by `heal`: no real
network loses bytes in the middle of a TCP stream and goes on.
Refuses: looking into what it carries, UDP.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import Enum
from types import TracebackType
from typing import Any, Self, TypeVar

CHUNK_BYTES = 16 * 1024
QUEUE_CHUNKS = 64
_CONTROL_SECONDS = 30
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST and forgets what was queued
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Weather:
    """What the link does to all its connections just now."""

    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float | None = None
    stalled: bool = False
    swallowing: bool = False


class _End(Enum):
    """How a connection ends: FIN or RST to both sides, or RST to the client alone."""

    FIN = 1
    RESET = 2
    ABANDON = 3


class _Cut(Exception):
    """The last byte that a truncation lets pass was sent."""


class FaultProxy:
    """See the module. `host` and `port` are where it listens; the kernel chooses the port unless one is given."""

    def __init__(self, *, target: tuple[str, int], seed: int = 0, host: str = "127.0.0.1", port: int = 0) -> None:
        self.target = target
        self.host = host
        self.port = port
        self.happened: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._weather = Weather()
        self._truncate_after: int | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    # ---- from any thread

    def start(self) -> None:
        """Listen; raises OSError."""
        self._thread.start()
        self._call(self._listen())

    def close(self) -> None:
        """Reset what is open and end the thread."""
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CONTROL_SECONDS)
        self._loop.close()

    def change(self, **settings: Any) -> None:
        """Set fields of Weather; the others stay as they are."""
        self._call(self._change(replace(self._weather, **settings)))

    def truncate(self, after_bytes: int) -> None:
        """Carry so many more bytes, both directions counted; the connection that has the last of them is closed."""
        self._call(self._set_truncation(after_bytes))

    def reset(self) -> None:
        """RST to both ends of every connection there is."""
        self._call(self._end_all(_End.RESET, what="reset"))

    def abandon(self) -> None:
        """RST to the clients; the servers' ends stay open and silent until `heal`."""
        self._call(self._end_all(_End.ABANDON, what="abandoned"))

    def refuse(self) -> None:
        """Listen no more; connections that are open go on."""
        self._call(self._stop_listening())
        self.happened["refused"] += 1

    def heal(self) -> None:
        """Fair weather."""
        self._call(self._heal())

    @property
    def open_connections(self) -> int:
        """How many it carries."""
        return len(self._connections)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        done: Future[_T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(_CONTROL_SECONDS)

    # ---- in the loop

    async def _listen(self) -> None:
        if self._listener is not None:
            return
        listening = socket.create_server((self.host, self.port), backlog=128)
        listening.setblocking(False)
        self.port = listening.getsockname()[1]
        self._listener = self._loop.create_task(self._accept(listening))

    async def _accept(self, listening: socket.socket) -> None:
        with listening:
            while True:
                client, _ = await self._loop.sock_accept(listening)
                client.setblocking(False)
                task = self._loop.create_task(self._carry(client))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _carry(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        server.setblocking(False)
        try:
            await self._loop.sock_connect(server, self.target)
        except OSError:
            _close(client, rudely=True)
            server.close()
            return
        connection = _Connection(self, client, server)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait({self._listener})
            self._listener = None

    async def _change(self, weather: Weather) -> None:
        self._weather = weather
        for connection in self._connections:
            (connection.flowing.clear if weather.stalled else connection.flowing.set)()

    async def _set_truncation(self, after_bytes: int) -> None:
        self._truncate_after = after_bytes

    async def _end_all(self, how: "_End", *, what: str) -> None:
        for connection in list(self._connections):
            self.happened[what] += 1
            connection.end(how)

    async def _heal(self) -> None:
        self._truncate_after = None
        await self._change(Weather())
        for connection in list(self._connections):
            if connection.is_broken:
                connection.end(_End.RESET)
        await self._listen()

    async def _shut(self) -> None:
        await self._stop_listening()
        await self._end_all(_End.RESET, what="closed")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    # ---- what a connection asks

    def delay_seconds(self) -> float:
        """For a chunk that has just come."""
        weather = self._weather
        return weather.latency_seconds + self._random.random() * weather.jitter_seconds

    @property
    def weather(self) -> Weather:
        """As of now."""
        return self._weather

    def within_truncation(self, data: bytes) -> tuple[bytes, bool]:
        """What of the data may pass, and whether it is the last of its connection."""
        if self._truncate_after is None:
            return data, False
        if len(data) < self._truncate_after:
            self._truncate_after -= len(data)
            return data, False
        kept, self._truncate_after = data[: self._truncate_after], None
        self.happened["truncated"] += 1
        return kept, True


class _Connection:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, client: socket.socket, server: socket.socket) -> None:
        self.flowing = asyncio.Event()
        self.is_broken = False  # bytes are missing: it must not live on
        self._proxy = proxy
        self._client = client
        self._server = server
        self._ending: asyncio.Future[_End] = asyncio.get_running_loop().create_future()
        self._released = asyncio.Event()
        if not proxy.weather.stalled:
            self.flowing.set()

    async def run(self) -> None:
        """Until both directions have ended or somebody cuts it."""
        pumps = [
            asyncio.create_task(_pump(self._client, self._server, self)),
            asyncio.create_task(_pump(self._server, self._client, self)),
        ]
        ended = asyncio.ensure_future(asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION))
        await asyncio.wait({ended, self._ending}, return_when=asyncio.FIRST_COMPLETED)
        how = self._ending.result() if self._ending.done() else _how(pumps)
        for one in (ended, *pumps):
            one.cancel()
        await asyncio.wait({ended, *pumps})
        _close(self._client, rudely=how is not _End.FIN)
        if how is _End.ABANDON:
            await self._released.wait()
        _close(self._server, rudely=how is not _End.FIN)

    def end(self, how: "_End") -> None:
        """End it now; one that was abandoned is let go of."""
        if not self._ending.done():
            self.is_broken |= how is _End.ABANDON
            self._ending.set_result(how)
        elif how is not _End.ABANDON:
            self._released.set()

    def passing(self, data: bytes) -> tuple[bytes, bool]:
        """See FaultProxy.within_truncation."""
        return self._proxy.within_truncation(data)

    @property
    def proxy(self) -> FaultProxy:
        """Its link."""
        return self._proxy


async def _pump(source: socket.socket, sink: socket.socket, connection: _Connection) -> None:
    """One direction, until its FIN was handed on; raises OSError, _Cut."""
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_CHUNKS)
    async with asyncio.TaskGroup() as group:
        group.create_task(_take(source, queue, connection))
        group.create_task(_give(sink, queue, connection))


async def _take(source: socket.socket, queue: "asyncio.Queue[tuple[float, bytes]]", connection: _Connection) -> None:
    loop, proxy = asyncio.get_running_loop(), connection.proxy
    due = 0.0
    while True:
        await connection.flowing.wait()
        data = await loop.sock_recv(source, CHUNK_BYTES)
        await connection.flowing.wait()  # it may have stalled while we waited for this chunk
        if proxy.weather.swallowing and data:
            proxy.happened["swallowed_bytes"] += len(data)
            connection.is_broken = True
        elif not connection.is_broken:
            due = max(due, loop.time() + proxy.delay_seconds())  # late, never out of order
            await queue.put((due, data))
        if not data:
            return


async def _give(sink: socket.socket, queue: "asyncio.Queue[tuple[float, bytes]]", connection: _Connection) -> None:
    loop, proxy = asyncio.get_running_loop(), connection.proxy
    while True:
        due, data = await queue.get()
        await asyncio.sleep(max(0.0, due - loop.time()))
        if not data:
            sink.shutdown(socket.SHUT_WR)
            return
        for piece in _slices(data, proxy.weather.bytes_per_second):
            if proxy.weather.bytes_per_second:
                await asyncio.sleep(len(piece) / proxy.weather.bytes_per_second)
            passed, is_last = connection.passing(piece)
            await loop.sock_sendall(sink, passed)
            if is_last:
                raise _Cut


def _how(pumps: "Sequence[asyncio.Task[None]]") -> "_End":
    """Of pumps that ended by themselves: a reset of one side is passed on as one."""
    errors = [pump.exception() for pump in pumps if pump.done()]
    leaves = [leaf for error in errors if isinstance(error, BaseExceptionGroup) for leaf in error.exceptions]
    return _End.RESET if any(not isinstance(leaf, _Cut) for leaf in leaves) else _End.FIN


def _slices(data: bytes, bytes_per_second: float | None) -> list[bytes]:
    """Small enough that a thin line trickles and a healed one is not held up for long."""
    size = max(1, int(bytes_per_second / 20)) if bytes_per_second else len(data)
    return [data[start : start + size] for start in range(0, len(data), size)]


def _close(end: socket.socket, *, rudely: bool) -> None:
    with contextlib.suppress(OSError):
        if rudely:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    end.close()
