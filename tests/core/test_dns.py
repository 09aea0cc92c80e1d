"""What name servers are asked and how long their answers are believed, against a real one on loopback."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import dns.asyncresolver
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from ndagent.core.discovery import (
    LONGEST_SECONDS,
    SHORTEST_SECONDS,
    SYSTEM_SECONDS,
    Found,
    LastKnown,
    Srv,
    addresses,
    services,
)

Zone = Mapping[tuple[str, str], tuple[int, list[str]]]
"""(name, type): (TTL, records); with none of them the server says that it failed."""


class Server(asyncio.DatagramProtocol):
    """Knows one zone; a name with another type only is there, without an answer."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        reply = dns.message.make_response(query)
        question = query.question[0]
        name, kind = question.name.to_text().rstrip("."), dns.rdatatype.to_text(question.rdtype)
        if (name, kind) in self._zone:
            ttl, records = self._zone[name, kind]
            if records:
                reply.answer.append(dns.rrset.from_text(question.name, ttl, "IN", kind, *records))
            else:
                reply.set_rcode(dns.rcode.SERVFAIL)
        elif name not in {known for known, _ in self._zone}:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(reply.to_wire(), address)  # type: ignore[attr-defined]  # a datagram transport


@asynccontextmanager
async def name_server(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Server(zone), local_addr=("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], transport.get_extra_info("sockname")[1]
    monkeypatch.setattr(dns.asyncresolver, "default_resolver", resolver)
    yield
    transport.close()


async def test_both_families_and_the_shorter_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may have no answer; what it says is believed within bounds."""
    zone = {
        ("both.example", "A"): (60, ["10.0.0.1", "10.0.0.2"]),
        ("both.example", "AAAA"): (30, ["fd00::1"]),
        ("four.example", "A"): (0, ["10.0.0.3"]),
        ("week.example", "AAAA"): (604800, ["fd00::2"]),
    }
    async with name_server(zone, monkeypatch):
        found = await addresses("both.example")
        assert (sorted(found.values), found.ttl_seconds) == (["10.0.0.1", "10.0.0.2", "fd00::1"], 30.0)
        assert await addresses("four.example") == Found(["10.0.0.3"], SHORTEST_SECONDS)
        assert await addresses("week.example") == Found(["fd00::2"], LONGEST_SECONDS)


async def test_a_family_that_gets_no_answer_is_told_apart_from_one_without_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It must not be forgotten for as long as the other one's TTL says."""
    zone = {("half.example", "A"): (3600, []), ("half.example", "AAAA"): (3600, ["fd00::1"])}
    async with name_server(zone, monkeypatch):
        assert await addresses("half.example") == Found(["fd00::1"], SYSTEM_SECONDS, (4,))


async def test_names_that_only_the_system_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/hosts counts for this as for everything else on the machine; nobody's name is an OSError."""
    async with name_server({}, monkeypatch):
        found = await addresses("localhost")
        assert "127.0.0.1" in found.values
        assert found.ttl_seconds == SYSTEM_SECONDS
        with pytest.raises(OSError, match=r"."):
            await addresses("nobody.invalid")


async def test_services_with_their_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    """As find_services, which leaves the TTL out."""
    zone = {("_siem._tcp.example", "SRV"): (120, ["10 60 8443 a.example.", "0 0 1 ."])}
    async with name_server(zone, monkeypatch):
        assert await services("_siem._tcp.example") == Found([Srv(10, 60, "a.example", 8443)], 120.0)


async def test_what_was_known_last_stays_while_there_is_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a failure nor an empty answer makes it forget; said once in ten minutes."""
    now = 0.0
    known: LastKnown[int] = LastKnown(logging.getLogger("test"), remedy="look at DNS", clock=lambda: now)

    async def fails() -> list[int]:
        raise OSError("down")

    async def says(*values: int) -> list[int]:
        return list(values)

    assert await known.find("a", "a.example", fails) == []
    assert await known.find("a", "a.example", lambda: says(1, 2)) == [1, 2]
    assert await known.find("a", "a.example", fails) == [1, 2]
    assert await known.find("a", "a.example", says) == [1, 2]
    assert await known.find("b", "b.example", says) == []
    assert caplog.text.count("a.example cannot be resolved (down); look at DNS") == 1
    now = 600.0
    await known.find("a", "a.example", says)
    assert "a.example cannot be resolved (DNS knows no address of it); look at DNS" in caplog.text
