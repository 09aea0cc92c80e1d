"""The syslog_tcp input with real sockets, on both loops: what arrives, who may connect, which limits hold."""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from collected import WAIT_SECONDS, Collected
from waiting import until

from ndagent.core import listening as listening_module
from ndagent.core import tcp_listener
from ndagent.core.metrics import Metrics
from ndagent.core.settings import Listen
from ndagent.core.syslog_tcp import SyslogTcp, SyslogTcpConfig
from ndagent.core.tcp_connection import READ_BYTES
from ndagent.wire.record import Batch, Flags, Framing

GOOD = b"<13>1 - good - - - -\n"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close() sends a reset


class Stage:
    """An input that runs, and its metrics."""

    def __init__(self, **config: Any) -> None:
        self.metrics = Metrics()
        settings = SyslogTcpConfig.model_validate({"listen": ["127.0.0.1:0"], **config})
        self.syslog = SyslogTcp("syslog_tcp", settings, metrics=self.metrics, clock=time.time)
        self.accept = Collected()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Stage"]:
        await self.syslog.start()
        self.port = self.syslog.addresses[0].port
        self.task = asyncio.create_task(self.syslog.run(self.accept))
        try:
            yield self
        finally:
            self.accept.free.set()
            await self.stop()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=WAIT_SECONDS)
        assert self.task.cancelled(), self.task

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_SECONDS, source_address=(source, 0))

    async def send(self, data: bytes, source: str = "127.0.0.1") -> None:
        """And close at once."""
        with self.connect(source) as peer:
            await asyncio.to_thread(peer.sendall, data)

    async def is_refused(self, source: str = "127.0.0.1") -> bool:
        """The connection ends though the peer said nothing."""
        with self.connect(source) as peer:
            try:
                return await asyncio.to_thread(peer.recv, 1) == b""
            except ConnectionResetError:
                return True

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"input": "syslog_tcp", **labels}) or 0

    def refused(self, reason: str) -> float:
        return self.value("nd_input_refused_connections_total", reason=reason)

    def open(self) -> float:
        return self.value("nd_input_connections")

    def of(self, address: str) -> bytes:
        """All that came from there, in order."""
        return b"".join(data for section, data in self.accept.sections() if section.origin.address == address)


@contextmanager
def no_files_left() -> Iterator[Callable[[], None]]:
    """This process can open no file until what is given is called."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open("rb") as last:
        lowest_free = last.fileno()

    def release() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield release
    finally:
        release()


def octets(*messages: bytes) -> bytes:
    return b"".join(b"%d %s" % (len(message), message) for message in messages)


def lines(*messages: bytes) -> bytes:
    return b"".join(b"%s\n" % message for message in messages)


class TestArrival:
    """Everything that a peer sent before it closed, in order, with its address."""

    @pytest.mark.parametrize(("frame", "framing"), [(octets, Framing.OCTET_COUNTED), (lines, Framing.LF)])
    async def test_all_in_order_to_the_last_byte(self, frame: Callable[..., bytes], framing: Framing) -> None:
        """Two megabytes and an immediate close by a sender that never reads."""
        data = frame(*(b"<13>1 - host app - - - message %d" % number for number in range(50_000)))
        async with Stage().running() as stage:
            await stage.send(data)
            await stage.accept.until(50_000)
            await stage.stop()
            assert stage.accept.payload() == data
            assert {section.framing for section, _ in stage.accept.sections()} == {framing}
            assert stage.value("nd_input_received_events_total") == 50_000
            assert stage.value("nd_input_received_bytes_total") == len(data)

    async def test_the_sender_is_its_address_and_port(self) -> None:
        """There is nothing else to know it by."""
        async with Stage().running() as stage:
            with stage.connect("127.0.0.7") as peer:
                peer.sendall(GOOD)
                await stage.accept.until(1)
                origin = stage.accept.batches[0].sections[0].origin
                assert (origin.input, origin.address, origin.port) == ("syslog_tcp", *peer.getsockname())
            assert origin.identity == "127.0.0.7"
            assert (origin.subject, origin.serial, origin.names) == ("", "", ())

    async def test_over_ipv6_too(self) -> None:
        """An allow-list may name both families."""
        stage = Stage(listen=["[::1]:0", "127.0.0.1:0"], allow={"networks": ["::1", "127.0.0.2"]})
        async with stage.running():
            with socket.create_connection(("::1", stage.port), timeout=WAIT_SECONDS) as peer:
                await asyncio.to_thread(peer.sendall, GOOD)
                await stage.accept.until(1)
            assert stage.of("::1") == GOOD

    async def test_many_peers_at_once_each_in_order(self) -> None:
        """Chunks of all share batches and never mix."""
        streams = {f"127.0.1.{peer}": lines(*(b"<13>%d %d" % (peer, n) for n in range(500))) for peer in range(12)}
        async with Stage().running() as stage:
            await asyncio.gather(*(stage.send(data, source) for source, data in streams.items()))
            await stage.accept.until(12 * 500)
            assert {source: stage.of(source) for source in streams} == streams

    async def test_a_reset_keeps_what_came_before_it(self) -> None:
        """A device that lost its power: half a message is an event, marked; the next connection is unaffected."""
        async with Stage().running() as stage:
            peer = stage.connect()
            peer.sendall(octets(b"<13>whole") + b"100 <13>half")
            await stage.accept.until(1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.close()
            await stage.accept.until(2)
            section, data = stage.accept.sections()[-1]
            assert (section.flags, data) == (Flags.TRUNCATED, b"<13>half")
            await stage.send(GOOD)
            await stage.accept.until(3)

    @pytest.mark.parametrize("frame", [octets, lines])
    async def test_a_longer_message_is_cut_and_flagged(self, frame: Callable[..., bytes]) -> None:
        """max_message_bytes: sat on the limit, and one byte above it."""
        async with Stage(max_message_bytes=480).running() as stage:
            await stage.send(frame(b"<13>" + b"a" * 476, b"<13>" + b"b" * 477, b"<13>next"))
            await stage.accept.until(3)
            cut = b"".join(data for section, data in stage.accept.sections() if section.flags & Flags.TRUNCATED)
            assert (cut.count(b"a"), cut.count(b"b")) == (0, 476)
            assert stage.value("nd_input_truncated_events_total") == 1

    async def test_tls_spoken_to_a_plain_port_does_no_harm(self) -> None:
        """A device set to TLS by mistake: its hello is an event that says so, and the port goes on."""
        hello = bytes.fromhex("160301020001")
        async with Stage().running() as stage:
            await stage.send(hello)
            await stage.send(GOOD, "127.0.0.2")
            await stage.accept.until(2)
            assert stage.of("127.0.0.1") == hello
            assert stage.of("127.0.0.2") == GOOD

    async def test_an_input_that_failed_while_it_was_paused_reads_again_when_it_is_started_again(self) -> None:
        """Whoever paused it is gone with the first run; a pause that nobody lifts would be an input that is deaf."""
        stage = Stage(limits={"buffer_bytes": 65536, "drain_timeout": "100ms"})

        async def fail(_batch: Batch) -> None:
            while not stage.value("nd_input_paused"):
                await asyncio.sleep(0)
            raise RuntimeError("a bug of ours")

        await stage.syslog.start()
        stage.port = stage.syslog.addresses[0].port
        failing = asyncio.create_task(stage.syslog.run(fail))
        with stage.connect() as peer:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(peer.sendall, GOOD * 10_000)
            with pytest.raises(ExceptionGroup, match="unhandled errors"):
                await failing
        async with stage.running():
            await stage.send(GOOD)
            await stage.accept.until(1)
            assert stage.value("nd_input_paused") == 0


class TestWhoMayConnect:
    """Networks, and connections in all and of one address: each limit at it and one beyond."""

    async def test_an_address_outside_the_networks_is_refused(self) -> None:
        """Before anything of it is read."""
        async with Stage(allow={"networks": ["127.0.0.2/31"]}).running() as stage:
            for source in ("127.0.0.1", "127.0.0.4"):
                assert await stage.is_refused(source)
            assert stage.refused("network_not_allowed") == 2
            for source in ("127.0.0.2", "127.0.0.3"):
                await stage.send(GOOD, source)
            await stage.accept.until(2)
            assert stage.value("nd_input_accepted_connections_total") == 2

    async def test_connections_in_all(self) -> None:
        """The third of two is refused; when one leaves there is room again."""
        async with Stage(limits={"connections": 2}).running() as stage:
            with stage.connect("127.0.0.2") as first, stage.connect("127.0.0.3"):
                await until(lambda: stage.open() == 2)
                assert await stage.is_refused("127.0.0.4")
                assert stage.refused("too_many_connections") == 1
                first.close()
                await until(lambda: stage.open() == 1)
                await stage.send(GOOD, "127.0.0.4")
                await stage.accept.until(1)

    async def test_connections_of_one_address(self) -> None:
        """The third of two is refused, another address is not."""
        async with Stage(limits={"connections_per_address": 2}).running() as stage:
            with stage.connect() as first, stage.connect():
                await until(lambda: stage.open() == 2)
                assert await stage.is_refused()
                assert stage.refused("too_many_from_address") == 1
                await stage.send(GOOD, "127.0.0.2")
                await stage.accept.until(1)
                first.close()
                await until(lambda: stage.open() == 1)
                await stage.send(GOOD)
                await stage.accept.until(2)

    async def test_the_silent_are_closed_where_that_is_wished(self) -> None:
        """idle_timeout: the silent go and the busy stay."""
        async with Stage(limits={"idle_timeout": "1s"}).running() as stage:
            with stage.connect("127.0.0.2") as silent, stage.connect("127.0.0.3") as busy:

                async def chatter() -> None:
                    while True:
                        await asyncio.to_thread(busy.sendall, GOOD)
                        await asyncio.sleep(0.1)

                talking = asyncio.create_task(chatter())
                await until(lambda: stage.refused("idle") == 1)
                assert await asyncio.to_thread(silent.recv, 1) == b""
                assert stage.open() == 1
                talking.cancel()
                await asyncio.wait({talking})

    async def test_an_address_that_is_taken_is_named(self) -> None:
        """And nothing stays open."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            stage = Stage(listen=["127.0.0.1:0", f"127.0.0.1:{port}"])
            with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}.*ss -ltnp"):
                await stage.syslog.start()
        assert stage.syslog.addresses == []

    async def test_a_start_that_fails_keeps_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever came to the first address before the second could not be had is let go, not kept for ever."""
        came: list[socket.socket] = []

        async def bind(listen: Listen) -> socket.socket:
            if came:
                raise OSError(errno.EADDRINUSE, f"cannot listen on {listen}")
            listening = await listening_module.bind(listen)
            came.append(socket.create_connection(listening.getsockname(), timeout=WAIT_SECONDS))
            return listening

        monkeypatch.setattr(tcp_listener, "bind", bind)
        with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:1"):
            await Stage(listen=["127.0.0.1:0", "127.0.0.1:1"]).syslog.start()
        with came[0] as peer, pytest.raises(ConnectionResetError):
            await asyncio.to_thread(peer.recv, 1)

    async def test_without_files_to_spare_those_who_come_wait(self) -> None:
        """EMFILE: they stay in the kernel's queue, and all that they sent comes when there is a file again."""
        async with Stage().running() as stage:
            with stage.connect("127.0.0.2") as peer, no_files_left() as release:
                peer.sendall(GOOD)
                await asyncio.sleep(0.1)  # nothing may come of it: there is no event to wait for
                release()
                await stage.accept.until(1)

    async def test_a_stop_without_files_says_whom_it_could_not_let_in(self, caplog: pytest.LogCaptureFixture) -> None:
        """What they had sent is lost, and must not be so in silence."""
        async with Stage().running() as stage:
            await stage.send(GOOD)
            await stage.accept.until(1)  # it runs
            with stage.connect("127.0.0.2") as peer, no_files_left():
                peer.sendall(GOOD)
                await stage.stop()
        assert "cannot accept those who wait: [Errno 24]" in caplog.text


class TestBackPressure:
    """TCP can wait: nothing is lost, memory is bounded."""

    async def test_while_the_spool_waits_so_do_the_senders(self) -> None:
        """Held: buffer_bytes, and one read; the rest stays with the kernel and the sender, and comes afterwards."""
        data = lines(*(b"<13>%06d %s" % (number, b"x" * 100) for number in range(200_000)))
        async with Stage(limits={"buffer_bytes": 2**16}).running() as stage:
            stage.accept.free.clear()
            sending = asyncio.create_task(stage.send(data))
            await until(lambda: stage.value("nd_input_paused") == 1)
            with stage.connect("127.0.0.2") as late:
                late.sendall(GOOD)
                await asyncio.sleep(0.2)  # nothing may come of it: there is no event to wait for
                assert stage.open() == 1, "nobody new is let in while reading is paused"
                assert not sending.done()
                assert stage.syslog._batcher is not None
                most = 2**16 + READ_BYTES + 256 * (READ_BYTES // 2**15)
                assert stage.syslog._batcher.buffered_bytes <= most
                stage.accept.free.set()
                await stage.accept.until(200_001)
            assert stage.of("127.0.0.1") == data
            assert stage.of("127.0.0.2") == GOOD

    async def test_a_peer_that_closed_while_it_was_not_read_loses_nothing(self) -> None:
        """Its last bytes wait in our kernel, with its FIN behind them."""
        async with Stage(limits={"buffer_bytes": 2**16}).running() as stage:
            with stage.connect("127.0.0.2") as quiet:
                await until(lambda: stage.open() == 1)
                stage.accept.free.clear()
                flood = asyncio.create_task(stage.send(lines(*[b"<13>" + b"x" * 1000] * 5000)))
                await until(lambda: stage.value("nd_input_paused") == 1)
                quiet.sendall(lines(*[b"<13>last words"] * 100))
            stage.accept.free.set()
            await stage.accept.until(5100)
            await flood
            assert stage.of("127.0.0.2").count(b"last words") == 100

    async def test_one_address_that_is_too_fast_waits_alone(self) -> None:
        """limits.events_per_second_per_origin, over all its connections; a stop takes what it had sent."""
        async with Stage(limits={"events_per_second_per_origin": 100.0}).running() as stage:
            for _ in range(2):
                await stage.send(lines(*[b"<13>fast"] * 200))
            await until(lambda: stage.value("nd_input_limited_origins") >= 1)
            with stage.connect() as held:
                held.sendall(lines(*[b"<13>more"] * 200))
                await until(lambda: stage.open() >= 1)
                await stage.send(lines(*[b"<13>slow"] * 50), "127.0.0.2")
                await until(lambda: stage.of("127.0.0.2").count(b"slow") == 50)
                await stage.stop()
            assert stage.of("127.0.0.1") == lines(*[b"<13>fast"] * 400, *[b"<13>more"] * 200)
            assert stage.value("nd_input_dropped_events_total", reason="stopped") == 0

    async def test_whoever_holds_back_the_end_of_long_messages_is_dropped(self) -> None:
        """limits.partial_bytes, of all peers together; what it had sent is kept, cut."""
        async with Stage(max_message_bytes="1MiB", limits={"partial_bytes": 2**16}).running() as stage:
            with stage.connect() as hoarder, stage.connect("127.0.0.2") as other:
                hoarder.sendall(b"<13>" + b"x" * 2**17)
                await until(lambda: stage.refused("too_many_part_messages") == 1)
                other.sendall(GOOD)
                await stage.accept.until(2)
            assert set(stage.of("127.0.0.1")) == set(b"<13>x")
            flags = {section.origin.address: section.flags for section, _ in stage.accept.sections()}
            assert flags == {"127.0.0.1": Flags.TRUNCATED, "127.0.0.2": Flags.NONE}

    async def test_those_who_hold_back_long_messages_do_not_keep_others_from_sending_theirs(self) -> None:
        """Nobody needs a certificate here: the first to come could else take all of partial_bytes, and say no more."""
        async with Stage(limits={"partial_bytes": 2**16}).running() as stage:
            with stage.connect() as hoarder, stage.connect() as another, stage.connect("127.0.0.2") as good:
                for number, peer in enumerate((hoarder, another), 1):
                    await asyncio.to_thread(peer.sendall, b"<13>" + b"x" * 30_000)
                    await until(lambda so_far=number: stage.syslog.partial_bytes == so_far * 30_004)
                message = b"<13>" + b"long" * 5_000
                await asyncio.to_thread(good.sendall, message)
                await until(lambda: stage.refused("too_many_part_messages") == 1)
                await asyncio.to_thread(good.sendall, b"\n")
                await stage.accept.until(2)
                assert stage.of("127.0.0.2") == message + b"\n"
                assert await asyncio.to_thread(hoarder.recv, 1) == b"", "it was there first"
                assert stage.syslog.partial_bytes == 30_004
                assert stage.open() == 2

    async def test_a_stop_takes_what_peers_had_sent(self) -> None:
        """Whether they had closed or not."""
        async with Stage().running() as stage:
            data = lines(*[b"<13>" + b"x" * 100] * 20_000)
            with stage.connect() as peer:
                await asyncio.gather(asyncio.to_thread(peer.sendall, data), stage.send(data, "127.0.0.2"))
                await stage.stop()
                assert await asyncio.to_thread(peer.recv, 1) == b"", "it hears that we stop"
            assert stage.of("127.0.0.1") == stage.of("127.0.0.2") == data

    @pytest.mark.parametrize("resets", [False, True])
    async def test_a_stop_takes_last_words_that_a_pause_left_unread(self, resets: bool) -> None:
        """Whether their sender closed or was reset: they lie in our kernel."""
        async with Stage(limits={"buffer_bytes": 2**16}).running() as stage:
            quiet = stage.connect("127.0.0.2")
            await until(lambda: stage.open() == 1)
            stage.accept.free.clear()
            flood = asyncio.create_task(stage.send(lines(*[b"<13>" + b"x" * 1000] * 100)))
            await until(lambda: stage.value("nd_input_paused") == 1)
            quiet.sendall(lines(*[b"<13>last words"] * 100))
            if resets:
                quiet.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            quiet.close()
            stopping = asyncio.create_task(stage.stop())
            await asyncio.sleep(0.05)  # it says that we stop, and nobody is read yet
            stage.accept.free.set()
            await asyncio.gather(stopping, flood)
            assert stage.of("127.0.0.2").count(b"last words") == 100
