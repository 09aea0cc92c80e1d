"""Syslog over UDP into batches: every datagram that was sent is durable, refused, or lost by number."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from waiting import until

from ndagent.core import datagram_intake
from ndagent.core.allow_list import AllowConfig, AllowList
from ndagent.core.datagram_intake import CHUNK_BYTES, DatagramIntake, as_they_came
from ndagent.core.metrics import Metrics
from ndagent.core.origin_limits import OriginLimits
from ndagent.core.settings import Listen
from ndagent.wire.decoder import split_messages
from ndagent.wire.record import Batch, Flags, Origin
from ndcollector.inputs.syslog_udp import Config


class Site:
    """An input at a port of its own, and a spool that a test may block."""

    def __init__(self, networks: tuple[str, ...] = (), **settings: object) -> None:
        self.now = 100.0
        self.metrics = Metrics()
        self.batches: list[Batch] = []
        self.gate = asyncio.Event()
        self.gate.set()
        config = Config.model_validate({"listen": ["127.0.0.1:0"], **settings})
        self.input = DatagramIntake(
            "syslog_udp",
            config,
            allow=AllowList(AllowConfig.model_validate({"networks": networks})),
            metrics=self.metrics,
            clock=lambda: 1.0,
            monotonic=lambda: 1.0,
            rates=OriginLimits.make(config.limits, clock=lambda: self.now),
        )

    async def accept(self, batch: Batch) -> None:
        await self.gate.wait()
        self.batches.append(batch)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.input.start()
        self.address = self.input.addresses[0]
        task = asyncio.create_task(self.input.run(self.accept))
        await asyncio.sleep(0)  # it has begun
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def send(self, *messages: bytes, source: str = "127.0.0.1") -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            for message in messages:
                sender.sendto(message, self.address)

    def messages(self, of: Callable[[str, Flags], bool] = lambda _address, _flags: True) -> list[bytes]:
        found: list[bytes] = []
        for batch in self.batches:
            payload, at = b"".join(batch.payload), 0
            for origin, framing, flags, length, count in batch.sections:
                if of(origin.address, flags):
                    found += split_messages(payload[at : at + length], framing=framing, count=count)
                at += length
        return found

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"input": "syslog_udp", **labels}) or 0.0


async def test_each_datagram_is_a_message_of_its_sender() -> None:
    """Line feeds and bytes of any kind in it are its own."""
    site = Site()
    async with site.running():
        site.send(b"<13>one\ntwo", b"\0\xff", b"12 <13>no frame", source="127.0.0.2")
        site.send(b"<13>other", source="127.0.0.3")
        await until(lambda: len(site.messages()) == 4)
    assert site.messages(lambda address, _: address == "127.0.0.2") == [b"<13>one\ntwo", b"\0\xff", b"12 <13>no frame"]
    assert site.messages(lambda address, _: address == "127.0.0.3") == [b"<13>other"]
    assert site.metric("nd_input_received_events_total") == 4
    assert site.metric("nd_input_received_bytes_total") == sum(map(len, site.messages()))


async def test_a_longer_one_is_cut_and_flagged() -> None:
    """Sat on the limit, and one byte above it."""
    site = Site(max_message_bytes=480)
    async with site.running():
        site.send(b"a" * 480, b"b" * 481)
        await until(lambda: len(site.messages()) == 2)
    assert site.messages(lambda _, flags: flags is Flags.TRUNCATED) == [b"b" * 480]
    assert site.metric("nd_input_truncated_events_total") == 1


async def test_while_the_spool_waits_the_kernel_drops_and_every_one_is_counted() -> None:
    """Sent = durable + lost, and lost is what the kernel says, at each socket."""
    site = Site(limits={"receive_buffer_bytes": 2**18, "buffer_bytes": 2**16}, sockets=1)
    site.gate.clear()
    async with site.running():
        for start in range(0, 20_000, 100):
            site.send(*(b"<13>%06d %s" % (number, b"x" * 200) for number in range(start, start + 100)))
            await asyncio.sleep(0)
        await until(lambda: site.metric("nd_input_paused") == 1)
        site.gate.set()
        await until(lambda: site.metric("nd_input_paused") == 0)
    lost = site.metric("nd_input_dropped_events_total", reason="kernel_queue_full")
    assert 0 < lost < 20_000
    assert len(site.messages()) + lost == 20_000
    assert site.metric("nd_input_received_events_total") == 20_000
    assert site.metric("nd_input_datagrams_lost_total", socket=f"{site.address}#0") == lost


async def test_a_sender_outside_the_networks_is_refused_and_counted() -> None:
    """There is no certificate to ask for: an address is all there is."""
    site = Site(networks=("127.0.0.2/32",))
    async with site.running():
        site.send(b"<13>good", source="127.0.0.2")
        site.send(b"<13>bad", b"<13>bad", source="127.0.0.9")
        await until(lambda: site.metric("nd_input_received_events_total") == 3)
    assert site.messages() == [b"<13>good"]
    assert site.metric("nd_input_dropped_events_total", reason="not_allowed") == 2


async def test_forged_senders_do_not_grow_the_table() -> None:
    """The least recently seen is forgotten; its messages are not."""
    site = Site(limits={"max_senders": 16})
    async with site.running():
        for number in range(200):
            site.send(b"<13>%d" % number, source=f"127.0.1.{number}")
        await until(lambda: len(site.messages()) == 200)
        assert len(site.input._senders) == 16
    assert len({origin.address for batch in site.batches for origin, *_ in batch.sections}) == 200


def forge(address: tuple[str, int], numbers: range) -> None:
    """One datagram from each of these addresses of 127.0.0.0/8; the kernel takes the address that IP_PKTINFO names."""
    ip_pktinfo = 8  # linux/in.h
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in numbers:
            source = (0x7F010000 + number).to_bytes(4, "big")
            control = [(socket.IPPROTO_IP, ip_pktinfo, struct.pack("=I4s4s", 0, source, bytes(4)))]
            sender.sendmsg([b"<13>forged"], control, 0, address)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="real addresses and memory as Linux has them")
async def test_a_burst_from_a_hundred_thousand_addresses_is_taken_in_bounded_memory() -> None:
    """All of it is received; the tables hold what they may to the entry, and say how many had to make room."""
    burst = 100_000
    site = Site(limits={"events_per_second_per_origin": 10.0, "rated_origins": 1000})
    seen = 0

    async def only_count(batch: Batch) -> None:
        nonlocal seen
        seen += batch.count

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    site.accept = only_count  # type: ignore[method-assign]  # keeping them would be the test's own memory
    before = resident_bytes()
    async with site.running():
        for start in range(0, burst, 200):  # the smallest queue that a kernel gives holds so many
            forge(site.address, range(start, start + 200))
            await until(lambda so_far=start: seen >= so_far)  # type: ignore[misc]  # the argument has a default
        await until(lambda: site.metric("nd_input_senders_forgotten_total") >= burst - 16384)
        assert site.metric("nd_input_senders") == len(site.input._senders) == 16384
        assert site.input._rates is not None
        assert len(site.input._rates) == 1000
        assert resident_bytes() - before < 50e6
    assert seen == site.metric("nd_input_received_events_total") == burst
    assert site.metric("nd_input_senders_forgotten_total") == burst - 16384


async def test_a_sender_over_its_rate_loses_what_is_beyond_and_nobody_else_does() -> None:
    """To the message: 100 of a second's worth pass, the rest is dropped by reason; half a second later 50 more."""
    site = Site(limits={"events_per_second_per_origin": 100.0})
    async with site.running():
        site.send(*(b"<13>loud %d" % number for number in range(150)), source="127.0.0.2")
        site.send(*(b"<13>quiet %d" % number for number in range(100)), source="127.0.0.3")
        await until(lambda: site.metric("nd_input_received_events_total") == 250)
        site.now += 0.5
        site.send(*(b"<13>loud %d" % number for number in range(150, 300)), source="127.0.0.2")
        await until(lambda: site.metric("nd_input_received_events_total") == 400)
    loud = site.messages(lambda address, _: address == "127.0.0.2")
    assert loud == [b"<13>loud %d" % number for number in (*range(100), *range(150, 200))]
    assert len(site.messages(lambda address, _: address == "127.0.0.3")) == 100
    assert site.metric("nd_input_dropped_events_total", reason="rate_limited") == 150


async def test_two_ports_of_one_address_share_its_rate() -> None:
    """Opening another socket buys nothing."""
    site = Site(limits={"events_per_second_per_origin": 100.0})
    async with site.running():
        for _ in range(3):
            site.send(*[b"<13>loud"] * 50)
        await until(lambda: site.metric("nd_input_received_events_total") == 150)
    assert len(site.messages()) == 100


async def test_the_largest_datagram_there_is_passes_whole() -> None:
    """65 507 bytes over IPv4, without a limit below it."""
    site = Site()
    async with site.running():
        site.send(b"x" * 65_507)
        await until(lambda: len(site.messages()) == 1)
    assert site.messages(lambda _, flags: flags is Flags.NONE) == [b"x" * 65_507]


async def test_a_stop_takes_what_is_queued() -> None:
    """Sent before the stop is taken, though the loop had no time to read it."""
    site = Site()
    async with site.running():
        site.send(*(b"<13>%d" % number for number in range(1000)))
    assert len(site.messages()) == 1000


async def test_what_comes_while_a_socket_rests_is_taken_afterwards() -> None:
    """After a read that found little it is left alone for some milliseconds; so it is when the stop comes, too."""
    site = Site(sockets=1)
    async with site.running():
        site.send(b"<13>0")
        await until(lambda: len(site.messages()) == 1)
        for number in range(1, 500):
            site.send(b"<13>%d" % number)
            await asyncio.sleep(0)
        await until(lambda: len(site.messages()) == 500)
        site.send(*(b"<13>%d" % number for number in range(500, 600)))
        await asyncio.sleep(0)  # the loop may see it, or not
        site.send(*(b"<13>%d" % number for number in range(600, 1000)))
    assert sorted(int(one[4:]) for one in site.messages()) == list(range(1000))


async def test_a_short_queue_is_not_left_alone_for_longer_than_a_burst_takes_to_fill_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """208 KiB hold 300 messages, and that is what a kernel gives without a word from its owner."""
    monkeypatch.setattr(datagram_intake, "GATHER_SECONDS", 3600.0)
    site = Site(sockets=1, limits={"receive_buffer_bytes": 212_992})
    async with site.running():
        for number in range(1, 4):  # each read but the last is one that found little
            site.send(b"<13>")
            await until(lambda so_far=number: len(site.messages()) == so_far)  # type: ignore[misc]  # as above


def test_long_datagrams_are_no_longer_chunk_than_others() -> None:
    """A record is decoded whole: what one sender's read holds, 16 MiB, would be one."""
    sent = [(b"%03d" % number).ljust(65_507, b"=") for number in range(200)]
    chunks = list(as_they_came(Origin("syslog_udp", "192.0.2.1", 514), False, sent))
    assert max(len(chunk.payload) for chunk in chunks) <= CHUNK_BYTES
    found = [
        message
        for framing, _, count, payload in chunks
        for message in split_messages(payload, framing=framing, count=count)
    ]
    assert found == sent


async def test_an_address_that_is_taken_is_named() -> None:
    """And nothing stays open."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        site = Site(listen=[f"127.0.0.1:{port}"])
        with pytest.raises(OSError, match=f"cannot receive at 127.0.0.1:{port}.*ss -lunp"):
            await site.input.start()
    assert site.input._sockets == []


async def test_two_sockets_share_one_address() -> None:
    """The kernel spreads senders over them; all of what is sent arrives."""
    site = Site(sockets=4)
    async with site.running():
        assert site.input.addresses == [Listen("127.0.0.1", site.address.port)]
        for number in range(64):
            site.send(b"<13>%d" % number)
        await until(lambda: len(site.messages()) == 64)
    assert {int(one[4:]) for one in site.messages()} == set(range(64))
