"""The snmp_poll input against Net-SNMP's snmpd: a device's health as metric events, and a device that is not there."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import yaml
from services import fetch, snmp
from services.need import need
from services.process import ServiceProcess
from waiting import until

from ndagent.config import load
from ndagent.core.metrics import Metrics
from ndagent.core.poll_intake import PollInput, Times
from ndagent.core.yaml_file import ConfigError
from ndagent.inputs import HostFacts, InputContext
from ndagent.inputs import snmp_poll as agent_plug
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, pack_body
from ndagent.wire.snmp import ber
from ndagent.wire.snmp.messages import (
    CommunityMessage,
    Kind,
    make_community_message,
    make_pdu,
    open_message,
    open_pdu,
)
from ndcollector.inputs.snmp_poll import Config

SNMPD = """
rocommunity public 127.0.0.1
createUser monitor SHA-256 "correct horse" AES "battery staple"
rouser monitor priv
createUser plain SHA "correct horse"
rouser plain auth
sysName core-1
sysObjectID 1.3.6.1.4.1.8072.3.2.10
override 1.3.6.1.2.1.25.3.3.1.2.7 integer 30
override 1.3.6.1.2.1.25.3.3.1.2.8 integer 45
"""
MONITOR = {"name": "monitor", "auth_password": "correct horse", "privacy_password": "battery staple"}


def udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Site:
    """An input and what it handed over."""

    def __init__(self, *devices: dict[str, Any], **settings: object) -> None:
        self.metrics = Metrics()
        self.batches: list[Batch] = []
        config = Config.model_validate(
            {"devices": devices, "every": 1.0, "jitter": 0.0, "timeout": 0.5, "retries": 0, **settings}
        )
        self.input = PollInput(
            "snmp_poll", config, metrics=self.metrics, clock=lambda: 1_790_000_000.5, uniform=lambda low, _: low
        )

    async def accept(self, batch: Batch) -> None:
        self.batches.append(batch)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Site"]:
        task = asyncio.create_task(self.input.run(self.accept))
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def events(self, what: str = "device") -> list[dict[str, Any]]:
        """What outputs would get."""
        decoder = make_decoder(DecodeSettings(observer_name="c"))
        found = []
        for number, batch in enumerate(self.batches):
            body = b"".join(pack_body(batch))
            place = {"stream": batch.stream, "spool_id": "s", "sequence": number * 10_000}
            events = decoder.decode(body, **place, received_at_ns=batch.received_at_ns)
            found += [orjson.loads(one) for one in events.lines()]
        return [event for event in found if event["metricset"]["name"] == what]

    def polls(self, result: str) -> float | None:
        return self.metrics.registry.get_sample_value(
            "nd_input_snmp_polls_total", {"input": "snmp_poll", "result": result}
        )


@pytest.fixture
def device(tmp_path: Path) -> Any:
    need(fetch.SNMP)
    port = udp_port()
    with snmp.snmpd(SNMPD, directory=tmp_path, port=port):
        yield {"address": "127.0.0.1", "port": port}


@pytest.mark.service
@pytest.mark.parametrize(
    "who",
    [
        {"community": "public"},
        {"user": MONITOR},
        {"user": {"name": "plain", "auth": "SHA", "auth_password": "correct horse", "privacy": "none"}},
    ],
    ids=["v2c", "authPriv", "authNoPriv"],
)
async def test_a_device_s_health_is_told(device: dict[str, Any], who: dict[str, Any]) -> None:
    """Twice, so that there are rates; loopback is an interface that every machine has."""
    async with Site({**device, **who, "name": "core"}).running() as site:
        await until(lambda: len(site.events()) >= 2)
    assert {batch.stream for batch in site.batches} == {"metrics"}
    event = site.events()[1]
    assert event["observer"] == {"ip": "127.0.0.1", "name": "core", "hostname": "core-1", "vendor": "Net-SNMP"}
    assert event["event"]["kind"] == "metric"
    assert event["event"]["dataset"] == "snmp.device"
    assert event["snmp"]["device"]["up"] == 1
    assert event["snmp"]["device"]["uptime"]["ms"] > 0
    assert event["snmp"]["device"]["cpu"] == {"pct": 0.375, "count": 2}
    assert event["snmp"]["device"]["interfaces"]["up"] >= 1
    interfaces = [one["snmp"]["interface"] for one in site.events("interface")]
    loopback = [one for one in interfaces if one["name"] == "lo"]
    assert len(loopback) >= 2
    assert loopback[1]["status"] == loopback[1]["admin_status"] == "up"
    assert loopback[1]["in"]["bytes"] >= loopback[0]["in"]["bytes"] > 0  # snmpd looks every few seconds only
    assert loopback[1]["in"]["bytes_per_second"] >= 0
    assert loopback[1]["in"]["errors"] == loopback[1]["out"]["errors"] == 0
    assert "bytes_per_second" not in loopback[0]["in"]
    assert (site.polls("silent"), site.polls("denied")) == (0, 0)


@pytest.mark.service
@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ({"user": {**MONITOR, "name": "nobody"}}, "does not know this user"),
        ({"user": {**MONITOR, "auth_password": "incorrect horse"}}, "authentication password is wrong"),
        ({"user": {"name": "monitor", "auth": "none", "privacy": "none"}}, "error 16"),
        ({"community": "private"}, "no answer"),
    ],
)
async def test_a_device_that_denies_us_says_why(device: dict[str, Any], who: dict[str, Any], reason: str) -> None:
    """In its event, not as an error a round."""
    async with Site({**device, **who}).running() as site:
        await until(lambda: len(site.events()) >= 2)
    for event in site.events():
        assert event["snmp"]["device"]["up"] == 0
        assert reason in event["snmp"]["device"]["reason"]


@pytest.mark.service
async def test_a_device_goes_and_comes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line when it went, one when it is back, an event each round; its engine has booted meanwhile."""
    need(fetch.SNMP)
    port = udp_port()

    def start() -> ServiceProcess:
        return snmp.snmpd(SNMPD, directory=tmp_path, port=port)

    site = Site({"address": "127.0.0.1", "port": port, "user": MONITOR}, every=1.0, timeout=0.2)
    caplog.set_level("INFO")
    first = await asyncio.to_thread(start)
    try:
        async with site.running():
            await until(lambda: site.polls("answered") >= 1)
            first.stop()
            await until(lambda: site.polls("silent") >= 2)
            second = await asyncio.to_thread(start)
            try:
                await until(lambda: site.events()[-1]["snmp"]["device"]["up"])
            finally:
                second.stop()
    finally:
        first.stop()
    ups = [event["snmp"]["device"]["up"] for event in site.events()]
    assert ups[0] == 1
    assert ups.count(0) >= 2
    said = [record.getMessage() for record in caplog.records if record.name == "snmp_poll"]
    assert [" is down: no answer" in one for one in said[:2]] == [True, False]
    assert "is up again" in said[1]


class Table(asyncio.DatagramProtocol):
    """A device that has these objects, and a way to answer GetBulk of its own."""

    def __init__(self, objects: dict[str, bytes], *, rows_an_answer: int = 50) -> None:
        self.objects = objects
        self.rows_an_answer = rows_an_answer
        self.asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.asked += 1
        message = open_message(data)
        assert isinstance(message, CommunityMessage)
        pdu = open_pdu(message.pdu, most=100)
        names = [one.oid for one in pdu.varbinds]
        bulk = pdu.kind is Kind.GET_BULK
        found = self.rows(names, min(pdu.error_index, self.rows_an_answer)) if bulk else self.exactly(names)
        answer = make_pdu(Kind.RESPONSE, pdu.request_id, found)
        self.transport.sendto(make_community_message(1, message.community, answer), addr)

    def exactly(self, names: list[str]) -> list[tuple[str, bytes]]:
        return [(name, self.objects.get(name, b"\x80\x00")) for name in names]

    def rows(self, names: list[str], repetitions: int) -> list[tuple[str, bytes]]:
        order = sorted(self.objects, key=arcs)
        found = []
        for _ in range(repetitions):
            names = [next((one for one in order if arcs(one) > arcs(name)), name) for name in names]
            found += [(name, self.objects.get(name, b"\x82\x00")) for name in names]
        return found


def arcs(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split(".")))


def interface_objects(count: int, octets: int) -> dict[str, bytes]:
    columns = {2: lambda index: ber.from_octets(b"eth%d" % index), 8: lambda _: ber.from_integer(1)}
    columns |= {7: lambda _: ber.from_integer(2), 10: lambda _: ber.from_integer(octets, 0x41)}
    entry, indexes = "1.3.6.1.2.1.2.2.1", range(count)
    table = {f"{entry}.{number}.{index}": make(index) for number, make in columns.items() for index in indexes}
    return {"1.3.6.1.2.1.1.3.0": ber.from_integer(100, 0x43), **table}


@asynccontextmanager
async def answering(table: Table) -> AsyncIterator[dict[str, Any]]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: table, local_addr=("127.0.0.1", 0))
    try:
        yield {"address": "127.0.0.1", "port": transport.get_extra_info("sockname")[1], "community": "public"}
    finally:
        transport.close()


def test_rounds_keep_their_beat_and_jitter_never_adds_up() -> None:
    """A round that takes longer than the interval leaves out those that were due meanwhile."""
    times = Times(60.0, 5.0, uniform=lambda low, high: high)
    assert times.next(1000.0) == 1005.0  # soon, and no two devices at once
    assert times.next(1006.0) == 1065.0 + 5.0
    assert times.next(1071.0) == 1125.0 + 5.0
    assert times.next(1390.0) == 1425.0 + 5.0
    assert times.next(1425.0 + 5.0 + 0.1) == 1485.0 + 5.0


async def test_rates_are_over_the_time_that_passed(tmp_path: Path) -> None:
    """One that went backwards has none; without the wide counters of ifXTable the narrow ones are believed."""
    table = Table(interface_objects(1, 1000))
    async with answering(table) as device:
        site = Site(device)
        now = iter(range(0, 10_000, 10))  # each look at the clock is ten seconds later
        site.input._monotonic = lambda: float(next(now))
        async with site.running():
            await until(lambda: len(site.events()) == 1)
            table.objects |= interface_objects(1, 21_000)
            await until(lambda: len(site.events()) == 2)
            table.objects |= interface_objects(1, 500)
            await until(lambda: len(site.events()) == 3)
    first, second, third = (one["snmp"]["interface"] for one in site.events("interface")[:3])
    assert first["in"] == {"bytes": 1000}
    assert second["in"] == {"bytes": 21_000, "bytes_per_second": 1000.0}
    assert second["interval"] == {"ms": 20_000}
    assert third["in"] == {"bytes": 500}
    assert (first["name"], first["status"], first["admin_status"]) == ("eth0", "up", "down")


@pytest.mark.parametrize("rows_an_answer", [1, 3, 50])
async def test_a_walk_takes_so_many_rows_however_they_come(rows_an_answer: int) -> None:
    """Devices put as many into an answer as they like; beyond `interfaces` nobody asks."""
    table = Table(interface_objects(40, 1), rows_an_answer=rows_an_answer)
    async with answering(table) as device, Site(device, interfaces=25).running() as site:
        await until(lambda: len(site.events()) == 1)
        asked = table.asked
    assert [one["snmp"]["interface"]["name"] for one in site.events("interface")][:25] == [f"eth{n}" for n in range(25)]
    assert site.events()[0]["snmp"]["device"]["interfaces"] == {"total": 25, "up": 25}
    assert asked < 100


async def test_a_name_that_is_no_name_is_left_out() -> None:
    """Sixty thousand bytes in each cell of a table would be megabytes of memory for one device."""
    table = Table(interface_objects(2, 1) | {"1.3.6.1.2.1.2.2.1.2.1": ber.from_octets(b"x" * 1025)}, rows_an_answer=1)
    async with answering(table) as device, Site(device).running() as site:
        await until(lambda: len(site.events()) == 1)
    found = [one["snmp"]["interface"] for one in site.events("interface")[:2]]
    assert [(one["index"], one.get("description")) for one in found] == [("0", "eth0"), ("1", None)]


async def test_a_device_that_goes_in_circles_is_left(tmp_path: Path) -> None:
    """It answers GetBulk with what was asked for, again and again."""

    class Circle(Table):
        def rows(self, names: list[str], repetitions: int) -> list[tuple[str, bytes]]:
            return [(f"{name}.1", ber.from_integer(1)) for name in names for _ in range(repetitions)]

    table = Circle(interface_objects(1, 1))
    async with answering(table) as device, Site(device).running() as site:
        await until(lambda: len(site.events()) == 1)
    assert table.asked < 1000
    assert site.events()[0]["snmp"]["device"]["up"] == 1


async def test_a_device_that_answers_nonsense_is_down_and_bounded(tmp_path: Path) -> None:
    """Garbage, a wrong request id, and ten thousand varbinds: none is an answer that the round waits for twice."""

    class Liar(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.DatagramTransport", transport)

        def datagram_received(self, data: bytes, addr: Any) -> None:
            for answer in (b"", b"\x30", data, b"\x30\x84\xff\xff\xff\xff", b"\x02" * 60_000):
                self.transport.sendto(answer, addr)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Liar, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    async with Site({"address": "127.0.0.1", "port": port, "community": "public"}, timeout=0.1).running() as site:
        await until(lambda: site.polls("silent") >= 1)
    transport.close()
    assert site.events()[0]["snmp"]["device"] == {"up": 0, "reason": "no answer"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"devices": [{"address": "x"}]}, "devices[0].community: give a device `community` (v2c) or `user` (v3)"),
        ({"devices": [{"address": "x", "community": "c", "user": MONITOR}]}, "devices[0].community: give a device"),
        ({"devices": [{"address": "", "community": "c"}]}, "devices[0].address: is empty"),
        ({"devices": [{"address": "x", "community": "c"}] * 2}, "devices[1]: a second device is called 'x'"),
        ({"devices": [{"address": "x", "community": "c"}], "every": "5s"}, "jitter: is not less than `every`"),
        ({"devices": []}, "devices: "),
    ],
)
def test_a_setting_that_cannot_be_names_its_place(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    """In the words of the one who wrote it."""
    file = tmp_path / "ndagent.yaml"
    file.write_text(yaml.safe_dump({"inputs": {"snmp_poll": settings}}))
    with pytest.raises(ConfigError) as refused:
        load(file, {})
    assert f"snmp_poll.{said}" in str(refused.value)


async def test_numbers_that_no_event_can_hold_are_left_out() -> None:
    """Of a device that lies about them; it is up, and the input goes on."""
    speed, name = "1.3.6.1.2.1.31.1.1.1.15.0", "1.3.6.1.2.1.2.2.1.14.0"
    lies = {"1.3.6.1.2.1.1.3.0": ber.from_integer(2**64 - 1, 0x43), speed: ber.from_integer(2**63, 0x42)}
    table = Table(interface_objects(1, 2**64 - 1) | lies | {name: ber.value(0x41, b"\xff" * 9)})
    async with answering(table) as device, Site(device).running() as site:
        await until(lambda: len(site.events()) == 2)
    assert "uptime" not in site.events()[0]["snmp"]["device"]
    interface = site.events("interface")[0]["snmp"]["interface"]
    assert interface["in"] == {"bytes": 2**64 - 1}
    assert "speed" not in interface


@pytest.mark.parametrize("name", ["nowhere.invalid", "a" * 64 + ".invalid", "a..invalid"])
async def test_a_name_that_is_none_is_a_device_that_is_down(name: str) -> None:
    """The others go on."""
    async with Site({"address": name, "community": "public"}).running() as site:
        await until(lambda: site.polls("silent") >= 1)
    assert site.events()[0]["snmp"]["device"]["up"] == 0


@pytest.mark.service
async def test_an_agent_asks_for_itself(device: dict[str, Any], tmp_path: Path) -> None:
    """Through its own plug: `agent` is who asked, `host` is nobody."""
    site = Site({**device, "community": "public"})
    context = InputContext(
        tmp_path, site.metrics, lambda: 1_790_000_000.5, cast("Any", None), HostFacts("agent-1", "agent-1")
    )
    settings = {"devices": [{**device, "community": "public"}], "every": 1.0, "jitter": 0.0}
    config = agent_plug.Config.model_validate(settings)
    site.input = agent_plug.build("snmp_poll", config, context)
    async with site.running():
        await until(site.events)
    event = site.events()[0]
    assert event["agent"]["type"] == "ndagent"
    assert "host" not in event
