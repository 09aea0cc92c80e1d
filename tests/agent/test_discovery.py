"""Which collectors an agent finds, in which order, and what it does when DNS does not answer."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import dns.asyncresolver
import dns.message
import dns.resolver
import dns.rrset
import pytest
from pydantic import ValidationError

from ndagent.core.discovery import Srv, find_services, resolve_host
from ndagent.outputs import Target
from ndagent.outputs.discovery import MAX_TARGETS, Discovery
from ndagent.outputs.https import Config as HttpsConfig

NAME = "_nd-mqtt._tcp.example.net"


class Dns:
    """Answers that a test writes down; an address list that is empty, or a name that is not there, fails."""

    def __init__(self, hosts: Mapping[str, Sequence[str]], services: Mapping[str, Sequence[Srv]] | None = None) -> None:
        self.hosts = dict(hosts)
        self.services = dict(services or {})
        self.is_down = False

    async def resolve(self, host: str, _port: int) -> list[str]:
        if self.is_down or not self.hosts.get(host):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return list(self.hosts[host])

    async def find(self, name: str) -> list[Srv]:
        if self.is_down or name not in self.services:
            raise OSError("no such name")
        return list(self.services[name])

    def discovery(
        self, endpoints: Mapping[str, Sequence[str]], *, spread: str | None = None, **more: object
    ) -> Discovery:
        return Discovery(endpoints, spread=spread, clock=lambda: 0.0, resolve=self.resolve, services=self.find, **more)


def shown(targets: Sequence[Target]) -> list[str]:
    """As `host:port address`, by protocol."""
    return [f"{one.protocol} {one.place.host}:{one.place.port} {one.place.address}" for one in targets]


async def test_every_address_of_every_endpoint_in_the_order_of_the_configuration() -> None:
    """`ordered`: protocols, endpoints and addresses as they stand; the certificate must name the host all the same."""
    dns = Dns({"a": ["10.0.0.2", "10.0.0.1"], "b": ["10.0.0.3", "fd00::1"]})
    found = await dns.discovery({"mqtt": ["a:8883", "b:8883"], "https": ["a:8443"]}).targets()
    assert shown(found) == [
        "mqtt a:8883 10.0.0.2",
        "mqtt a:8883 10.0.0.1",
        "mqtt b:8883 10.0.0.3",
        "mqtt b:8883 fd00::1",
        "https a:8443 10.0.0.2",
        "https a:8443 10.0.0.1",
    ]


async def test_spread_is_stable_for_an_agent_and_even_over_a_fleet() -> None:
    """Each of four equal collectors comes first for about a quarter of a fleet; protocols keep their order."""
    dns = Dns({name: [f"10.0.0.{ord(name)}"] for name in "abcd"})
    endpoints = {"mqtt": [f"{name}:1" for name in "abcd"], "https": ["a:2"]}
    firsts: Counter[str] = Counter()
    for number in range(1000):
        found = await dns.discovery(endpoints, spread=f"agent{number}").targets()
        assert found == await dns.discovery(endpoints, spread=f"agent{number}").targets()
        assert [one.protocol for one in found] == ["mqtt"] * 4 + ["https"]
        firsts[found[0].place.host] += 1
    assert all(200 < count < 300 for count in firsts.values()), firsts


async def test_srv_weights_are_the_proportions_of_a_fleet() -> None:
    """RFC 2782: within a priority by weight, whatever number of addresses a host has; the next priority only after."""
    records = [Srv(10, 60, "a", 1), Srv(10, 30, "b", 1), Srv(10, 10, "c", 1), Srv(10, 0, "d", 1), Srv(20, 90, "z", 1)]
    hosts = {
        "a": ["10.0.0.1"],
        "b": ["10.0.1.1", "10.0.1.2", "10.0.1.3"],
        "c": ["10.0.2.1"],
        "d": ["10.0.3.1"],
        "z": ["10.9.9.9"],
    }
    dns = Dns(hosts, {NAME: records})
    firsts: Counter[str] = Counter()
    for number in range(1000):
        found = await dns.discovery({"mqtt": [f"srv:{NAME}"]}, spread=f"agent{number}").targets()
        assert found[-1].place.host == "z"
        firsts[found[0].place.host] += 1
    assert 550 < firsts["a"] < 650, firsts
    assert 255 < firsts["b"] < 345, firsts
    assert 70 < firsts["c"] < 135, firsts
    assert firsts["d"] < 10, firsts


async def test_srv_without_spread_goes_by_priority_and_weight() -> None:
    """The heaviest of the first priority comes first, for everybody."""
    dns = Dns(
        {"a": ["1.1.1.1"], "b": ["2.2.2.2"], "c": ["3.3.3.3"]},
        {NAME: [Srv(2, 9, "c", 1), Srv(1, 1, "a", 1), Srv(1, 5, "b", 1)]},
    )
    found = await dns.discovery({"mqtt": [f"srv:{NAME}"]}).targets()
    assert [one.place.host for one in found] == ["b", "a", "c"]


async def test_equal_records_without_weight_are_equal() -> None:
    """All zero: an even choice, as for plain names."""
    dns = Dns({name: [f"10.0.0.{ord(name)}"] for name in "ab"}, {NAME: [Srv(0, 0, "a", 1), Srv(0, 0, "b", 1)]})
    discoveries = [dns.discovery({"mqtt": [f"srv:{NAME}"]}, spread=f"agent{number}") for number in range(400)]
    firsts = Counter([(await one.targets())[0].place.host for one in discoveries])
    assert 150 < firsts["a"] < 250


async def test_what_dns_said_last_counts_while_it_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """And it is told once, not every minute; a new answer replaces the old one."""
    dns = Dns({"a": ["10.0.0.1"], "b": ["10.0.0.2"]}, {NAME: [Srv(0, 0, "b", 7)]})
    discovery = dns.discovery({"mqtt": ["a:1", f"srv:{NAME}"]})
    before = await discovery.targets()
    dns.is_down = True
    for _ in range(3):
        assert await discovery.targets() == before
    assert caplog.text.count("a:1 cannot be resolved") == 1
    dns.is_down = False
    dns.hosts["a"] = ["10.0.0.9"]
    assert shown(await discovery.targets()) == ["mqtt a:1 10.0.0.9", "mqtt b:7 10.0.0.2"]


async def test_one_name_that_is_gone_does_not_take_the_others_with_it() -> None:
    """Neither among endpoints nor among the hosts of an SRV record."""
    dns = Dns({"b": ["10.0.0.2"]}, {NAME: [Srv(0, 0, "gone", 1), Srv(1, 0, "b", 1)]})
    found = await dns.discovery({"mqtt": ["gone:1", f"srv:{NAME}"]}).targets()
    assert shown(found) == ["mqtt b:1 10.0.0.2"]


async def test_nothing_that_dns_says_raises() -> None:
    """Names that it cannot have, no addresses, nothing at all."""
    dns = Dns({"a": []})
    assert await dns.discovery({"mqtt": ["a:1", "srv:nothing.here", "gone:1"]}).targets() == []
    assert await Discovery({"mqtt": ["a..b:1", f"{'x' * 64}:1"]}, spread=None, clock=lambda: 0.0).targets() == []


async def test_there_are_never_too_many_targets_and_each_protocol_has_its_share() -> None:
    """A name with thousands of addresses, SRV with thousands of records."""
    many = [f"10.{number // 250}.{number % 250}.1" for number in range(5000)]
    dns = Dns({"a": many, "b": ["10.0.0.2"]}, {NAME: [Srv(0, 0, "a", port) for port in range(1, 3)] * 500})
    found = await dns.discovery({"mqtt": ["a:1", f"srv:{NAME}"], "https": ["b:1"]}).targets()
    assert len(found) <= MAX_TARGETS
    assert shown(found)[-1] == "https b:1 10.0.0.2"
    assert len(set(found)) == len(found)


async def test_a_host_behind_a_proxy_is_not_resolved() -> None:
    """The proxy does that; there may be no other DNS that could."""
    dns = Dns({"b": ["10.0.0.2"]})
    found = await dns.discovery({"https": ["a:8443"], "mqtt": ["b:1"]}, proxied={"https"}).targets()
    assert shown(found) == ["https a:8443 None", "mqtt b:1 10.0.0.2"]


async def test_localhost_by_the_system_itself() -> None:
    """Numbers and names, each address once."""
    assert await resolve_host("127.0.0.1", 1) == ["127.0.0.1"]
    assert "127.0.0.1" in await resolve_host("localhost", 1)


class Server(asyncio.DatagramProtocol):
    """A DNS server that knows SRV records of one name."""

    def __init__(self, records: Sequence[str]) -> None:
        self._records = records

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        if query.question[0].name.to_text() == f"{NAME}.":
            answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "SRV", *self._records))
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(answer.to_wire(), address)  # type: ignore[attr-defined]  # a datagram transport


@asynccontextmanager
async def name_server(records: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Server(records), local_addr=("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], transport.get_extra_info("sockname")[1]
    monkeypatch.setattr(dns.asyncresolver, "default_resolver", resolver)
    yield
    transport.close()


async def test_srv_records_of_a_real_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Priority, weight, host and port as it says; a target of "." means that there is no such service."""
    async with name_server(["10 60 8883 a.example.net.", "20 0 8884 b.example.net.", "0 0 1 ."], monkeypatch):
        assert sorted(await find_services(NAME)) == [
            Srv(10, 60, "a.example.net", 8883),
            Srv(20, 0, "b.example.net", 8884),
        ]
        with pytest.raises(OSError, match="does not exist"):
            await find_services("_other._tcp.example.net")
        with pytest.raises(OSError, match=r"."):
            await find_services("x" * 64 + ".example.net")


@pytest.mark.parametrize(
    "text", ["collector", "a:0", "a:70000", "[::1]", "a b:1", "srv:", "srv:x y.net", "https://a:1", ""]
)
def test_an_endpoint_that_is_none_is_told_by_check(text: str) -> None:
    """Not by a crash at the first send."""
    with pytest.raises(ValidationError, match="is no endpoint; write"):
        HttpsConfig(type="https", endpoints=(text,))


@pytest.mark.parametrize("text", ["collector:1", "[fd00::1]:8443", "10.0.0.1:65535", f"srv:{NAME}", f"srv:{NAME}."])
def test_an_endpoint_that_is_one(text: str) -> None:
    """host:port, with brackets around IPv6; or the name of an SRV record."""
    assert HttpsConfig(type="https", endpoints=(text,)).endpoints == (text,)
