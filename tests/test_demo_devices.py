"""The demo's devices and senders: what they say is varied, real in form, harmless in content, and sent whole."""

import asyncio
import ipaddress
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
import trustme

from ndcollector.demo.collector import free_ports
from ndcollector.demo.devices import DEVICES, Device
from ndcollector.demo.senders import Credentials, Sender, run_all

NOW = datetime(2026, 7, 28, 12, 34, 56, 123456, UTC)
RANGES = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
DOCUMENTATION = [ipaddress.ip_network(text) for text in RANGES]
BY_NAME = pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)


def says(device: Device, count: int = 300) -> list[str]:
    """What the device says first."""
    random = Random(7)
    return [device.message(random, NOW) for _ in range(count)]


def test_there_are_a_dozen_kinds_in_both_framings() -> None:
    """What the demo promises."""
    assert len({device.kind for device in DEVICES}) >= 12
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    assert min(Counter(device.octet_counted for device in DEVICES).values()) >= 4


@BY_NAME
def test_the_same_seed_says_the_same(device: Device) -> None:
    """A demo that surprises its presenter is none."""
    assert says(device) == says(device)


@BY_NAME
def test_messages_vary(device: Device) -> None:
    """A thousand equal lines show nothing."""
    assert len(set(says(device))) > 250


@BY_NAME
def test_every_message_is_one_syslog_message(device: Device) -> None:
    """A valid PRI (RFC 5424 §6.2.1), no line feed inside, and of a size that any receiver takes (§6.1)."""
    for message in says(device):
        pri = re.match(r"<(\d{1,3})>", message)
        assert pri, message
        assert 0 <= int(pri[1]) <= 191
        assert "\n" not in message
        assert len(message.encode()) < 2048


@BY_NAME
def test_addresses_are_those_set_aside_for_documentation(device: Device) -> None:
    """RFC 5737 and RFC 3849: no message may accuse somebody's real address."""
    for message in says(device):
        for text in re.findall(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])", message):
            address = ipaddress.ip_address(text)
            assert address.is_unspecified or any(address in network for network in DOCUMENTATION), message


def test_a_frame_is_what_its_framing_says() -> None:
    """RFC 6587 §3.4.1 counts bytes, not characters; §3.4.2 ends with one line feed."""
    umlauts = Device("a", "k", True, lambda _random, _now: "<13>äöü")
    assert umlauts.frame(Random(0), NOW) == b"10 <13>\xc3\xa4\xc3\xb6\xc3\xbc"
    lines = Device("a", "k", False, lambda _random, _now: "<13>x")
    assert lines.frame(Random(0), NOW) == b"<13>x\n"


class Peer:
    """A TLS server that demands a certificate and remembers, for each one, what came."""

    def __init__(self) -> None:
        self.got: dict[str, bytes] = {}
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read to the end."""
        certificate = writer.get_extra_info("peercert")
        data = await reader.read(-1)
        self.got[str(dict(certificate["subjectAltName"])["DNS"])] = data
        writer.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """One CA for all tests here."""
    return trustme.CA()


@pytest.fixture
async def peer(authority: trustme.CA) -> AsyncIterator[Peer]:
    """The server, on a port of the kernel's choice."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    made = Peer()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made


@pytest.fixture
def credentials(authority: trustme.CA, tmp_path: Path) -> Credentials:
    """A device's certificate on disk."""
    pair = authority.issue_cert("app-1.example.net")
    files = [tmp_path / name for name in ("ca", "cert", "key")]
    authority.cert_pem.write_to_path(str(files[0]))
    pair.cert_chain_pems[0].write_to_path(str(files[1]))
    pair.private_key_pem.write_to_path(str(files[2]))
    return Credentials(*files)


def sender(credentials: Credentials, port: int, *, count: int | None = None, rate: float | None = None) -> Sender:
    """A sender of line-framed, numbered messages."""
    numbers = iter(range(10**9))
    device = Device("app-1", "numbers", False, lambda _random, _now: f"<13>{next(numbers)}")
    context = credentials.context()
    return Sender(device, context, port=port, count=count, rate=rate, random=Random(0), now=lambda: NOW)


async def test_everything_that_was_counted_as_sent_arrives(peer: Peer, credentials: Credentials) -> None:
    """The demo compares this number with the collector's."""
    device = sender(credentials, peer.port, count=10_007)
    assert await run_all([device], asyncio.Event()) == []
    await asyncio.sleep(0)
    lines = peer.got["app-1.example.net"].splitlines()
    assert device.sent == len(lines) == 10_007
    assert lines[-1] == b"<13>10006"


async def test_a_stop_ends_between_two_messages(peer: Peer, credentials: Credentials) -> None:
    """Ctrl-C in the middle of a stream must not make a truncated event; it also wakes a sender that waits its turn."""
    stop = asyncio.Event()
    device = sender(credentials, peer.port, rate=0.2)
    running = asyncio.ensure_future(run_all([device], stop))
    while not device.sent:
        await asyncio.sleep(0.01)
    stop.set()
    assert await running == []
    assert peer.got["app-1.example.net"] == b"<13>0\n"


async def test_a_refused_device_is_reported_by_name(credentials: Credentials) -> None:
    """A demo that hides a failure would lie."""
    (port,) = free_ports([0])
    (failure,) = await run_all([sender(credentials, port, count=1)], asyncio.Event())
    assert failure.startswith("app-1: ")


async def test_a_taken_port_is_replaced(peer: Peer) -> None:
    """Somebody's collector may run on 6514 already."""
    chosen = free_ports([peer.port, 0])
    assert peer.port not in chosen
    assert len(set(chosen)) == 2
