"""The snmp_trap input with Net-SNMP as the sender: traps of every version, informs answered when they are durable."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import yaml
from services import fetch, snmp
from services.need import need
from waiting import until

from ndagent import __version__
from ndagent.config import load
from ndagent.core import trap_intake
from ndagent.core.metrics import Metrics
from ndagent.core.trap_intake import TrapInput
from ndagent.core.yaml_file import ConfigError
from ndagent.inputs import HostFacts, InputContext
from ndagent.inputs import snmp_trap as agent_plug
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.own_lines import OwnDecoder
from ndagent.wire.record import Batch, pack_body
from ndagent.wire.snmp import ber
from ndagent.wire.snmp.messages import Kind, Pdu, make_community_message, make_pdu
from ndcollector.inputs.snmp_trap import Config

NOON = 1_790_000_000.5
LINK_DOWN = [
    "", snmp.LINK_DOWN,
    f"{snmp.IF_INDEX}.3", "i", "3", f"{snmp.IF_DESCR}.3", "s", "eth3", f"{snmp.IF_ADMIN}.3", "i", "2",
]  # fmt: skip
V2C = ["-v", "2c", "-c", "public"]
AUTH, PRIVACY = ("SHA-256", "correct horse"), ("AES", "battery staple")
USER = {"name": "traps", "auth_password": AUTH[1], "privacy_password": PRIVACY[1]}
pytestmark = pytest.mark.service


class Site:
    """An input at a port of its own, a spool that a test may block, and Net-SNMP beside it."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.metrics = Metrics()
        self.batches: list[Batch] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.now = 1000.0
        wanted = {"listen": ["127.0.0.1:0"], "communities": ["public"], "users": [USER], **settings}
        self.input = TrapInput(
            "snmp_trap", Config.model_validate(wanted), state_dir=directory, metrics=self.metrics, clock=lambda: NOON,
            monotonic=lambda: self.now,
        )  # fmt: skip

    async def accept(self, batch: Batch) -> None:
        await self.gate.wait()
        self.batches.append(batch)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Site"]:
        need(fetch.SNMP)
        await self.input.start()
        self.port = self.input.addresses[0].port
        task = asyncio.create_task(self.input.run(self.accept))
        await asyncio.sleep(0)  # it has begun
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def send(self, program: str, options: Sequence[str], words: Sequence[str] = LINK_DOWN) -> tuple[int, str]:
        """Its exit status and what it said."""
        found = await asyncio.to_thread(snmp.run, program, options, words, directory=self.directory, port=self.port)
        return found.returncode, found.stderr + found.stdout

    @property
    def durable(self) -> int:
        return sum(batch.count for batch in self.batches)

    def events(self) -> list[dict[str, Any]]:
        """What outputs would get, through the collector's decoder."""
        decoder = make_decoder(DecodeSettings(observer_name="c"))
        found = []
        for number, batch in enumerate(self.batches):
            body = b"".join(pack_body(batch))
            place = {"stream": batch.stream, "spool_id": "s", "sequence": number * 10_000}
            events = decoder.decode(body, **place, received_at_ns=batch.received_at_ns)
            found += [orjson.loads(one) for one in events.lines()]
        return found

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"input": "snmp_trap", **labels})

    def dropped(self, reason: str) -> float | None:
        return self.metric("nd_input_dropped_events_total", reason=reason)


async def test_a_v2c_trap_is_an_event_with_names_and_typed_values(tmp_path: Path) -> None:
    """Whole, as an output gets it."""
    async with Site(tmp_path).running() as site:
        assert await site.send("snmptrap", V2C) == (0, "")
        await until(lambda: site.durable == 1)
    (event,) = site.events()
    snmp_fields = event.pop("snmp")
    assert event["source"]["ip"] == event["observer"]["ip"] == "127.0.0.1"
    assert event["@timestamp"] == "2026-09-21T14:13:20.500000Z"
    assert event["message"] == "IF-MIB::linkDown ifIndex.3=3 ifDescr.3=eth3 ifAdminStatus.3=down"
    assert event["event"] == {
        "id": "s-0", "kind": "event", "category": ["network"], "type": ["info"], "action": "linkDown",
        "code": snmp.LINK_DOWN, "created": "2026-09-21T14:13:20.500000Z",
    }  # fmt: skip
    assert snmp_fields["version"] == "2c"
    assert snmp_fields["pdu"] == "trap"
    assert snmp_fields["trap"] == {"oid": snmp.LINK_DOWN, "name": "linkDown", "mib": "IF-MIB"}
    assert snmp_fields["uptime"]["ms"] == snmp_fields["uptime"]["ticks"] * 10 > 0
    assert snmp_fields["varbinds"][2:] == [
        {"oid": f"{snmp.IF_INDEX}.3", "name": "IF-MIB::ifIndex.3", "type": "integer", "value": "3", "number": 3},
        {"oid": f"{snmp.IF_DESCR}.3", "name": "IF-MIB::ifDescr.3", "type": "octet_string", "value": "eth3"},
        {
            "oid": f"{snmp.IF_ADMIN}.3", "name": "IF-MIB::ifAdminStatus.3", "type": "integer", "value": "down",
            "number": 2,
        },
    ]  # fmt: skip
    assert "public" not in str(site.batches)
    assert site.metric("nd_input_received_events_total") == 1


async def test_a_v1_trap_is_told_as_v2_would_tell_it(tmp_path: Path) -> None:
    """A generic one and an enterprise's own, whose agent address is the observer."""
    v1 = ["-v", "1", "-c", "public"]
    async with Site(tmp_path).running() as site:
        assert await site.send("snmptrap", v1, ["1.3.6.1.4.1.9.1.1", "10.1.2.3", "2", "0", "4711"]) == (0, "")
        own = ["1.3.6.1.4.1.9.9.43.2", "10.1.2.3", "6", "1", "4712", "1.3.6.1.4.1.9.9.43.1.1.6.1.3.7", "i", "1"]
        assert await site.send("snmptrap", v1, own) == (0, "")
        await until(lambda: site.durable == 2)
    generic, special = site.events()
    assert generic["event"]["action"] == "linkDown"
    assert generic["event"]["code"] == snmp.LINK_DOWN
    assert generic["snmp"]["uptime"] == {"ticks": 4711, "ms": 47110}
    assert generic["snmp"]["enterprise"] == {"oid": "1.3.6.1.4.1.9.1.1"}
    assert generic["observer"] == {"ip": "10.1.2.3", "vendor": "Cisco"}
    assert special["event"]["category"] == ["configuration"]
    assert special["event"]["code"] == "1.3.6.1.4.1.9.9.43.2.0.1"
    assert special["snmp"]["specific_trap"] == 1
    assert special["message"] == (
        "CISCO-CONFIG-MAN-MIB::ciscoConfigManEvent ccmHistoryEventCommandSource.7=commandLine"
    )


@pytest.mark.parametrize(
    ("digest", "cipher"),
    [
        ("SHA", None), ("SHA-224", None), ("SHA", "AES"), ("SHA-256", "AES-256"), ("SHA-384", "AES-192"),
        ("SHA-512", "AES"),
    ],
)  # fmt: skip
async def test_traps_and_informs_of_v3_at_every_level(tmp_path: Path, digest: str, cipher: str | None) -> None:
    """A trap by the sender's engine, an inform by ours, which the sender finds and whose time it learns."""
    auth, privacy = (digest, AUTH[1]), (cipher, PRIVACY[1]) if cipher else None
    user = {"name": "traps", "auth": auth[0], "auth_password": auth[1], "privacy": privacy[0] if privacy else "none"}
    user |= {"privacy_password": privacy[1]} if privacy else {}
    options = snmp.v3("traps", auth, privacy)
    async with Site(tmp_path, users=[user]).running() as site:
        assert await site.send("snmptrap", [*options, "-e", "0x8000000001020304"]) == (0, "")
        assert await site.send("snmpinform", options) == (0, "")
        await until(lambda: site.durable == 2)
        trap, inform = site.events()
        assert trap["snmp"]["engine_id"] == "8000000001020304"
        assert trap["snmp"]["security_level"] == ("authPriv" if privacy else "authNoPriv")
        assert inform["snmp"]["engine_id"] == site.input._engine.engine_id.hex()
        assert (trap["snmp"]["pdu"], inform["snmp"]["pdu"]) == ("trap", "inform")
        assert trap["snmp"]["user"] == "traps"
        assert trap["message"] == inform["message"]
    assert site.metric("nd_input_informs_total", result="answered") == 1
    assert site.metric("nd_input_received_events_total") == 2  # finding engines is no loss


async def test_an_inform_is_answered_only_when_it_is_durable(tmp_path: Path) -> None:
    """While the spool waits the sender hears nothing and asks again; it succeeds when the spool has it."""
    async with Site(tmp_path).running() as site:
        site.gate.clear()
        asking = asyncio.create_task(site.send("snmpinform", [*V2C, "-t", "1", "-r", "20"]))
        received = lambda: (site.metric("nd_input_received_bytes_total") or 0)  # noqa: E731 - read again and again
        await until(lambda: received() > 0)
        first = received()
        await until(lambda: received() >= 2 * first)  # it asked again: nobody had answered
        assert not asking.done()
        assert site.metric("nd_input_informs_total", result="answered") == 0
        site.gate.set()
        assert await asking == (0, "")
        await until(lambda: site.durable >= 2)
    assert len({event["snmp"]["request_id"] for event in site.events()}) == 1


async def test_an_inform_that_the_spool_never_takes_is_never_answered(tmp_path: Path) -> None:
    """Its sender says so; at the stop it is counted."""
    site = Site(tmp_path)
    need(fetch.SNMP)
    await site.input.start()
    site.port = site.input.addresses[0].port
    task = asyncio.create_task(site.input.run(site.accept))
    site.gate.clear()
    status, said = await site.send("snmpinform", [*V2C, "-t", "0.3", "-r", "1"])
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert status == 1
    assert "Timeout" in said
    assert (site.durable, site.dropped("stopped")) == (0, 2)
    assert site.metric("nd_input_informs_total", result="answered") == 0


async def test_informs_that_wait_for_their_answer_have_a_limit(tmp_path: Path) -> None:
    """They are kept whole until then, however little of them is in their events."""
    long = [(snmp.TRAP_OID, ber.from_oid(snmp.LINK_DOWN)), ("1.3.6.1.4.1.9.2", ber.from_octets(b"x" * 40_000))]
    inform = make_community_message(1, b"public", make_pdu(Kind.INFORM, 1, long))
    async with Site(tmp_path, limits={"buffer_bytes": 2**16, "value_bytes": 64}).running() as site:
        site.gate.clear()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(inform, ("127.0.0.1", site.port))
            await until(lambda: (site.metric("nd_input_received_bytes_total") or 0) >= len(inform))
            assert site.metric("nd_input_paused") == 0
            sender.sendto(inform, ("127.0.0.1", site.port))
            await until(lambda: site.metric("nd_input_paused") == 1)
            site.gate.set()
            await until(lambda: site.durable == 2)
            await until(lambda: site.metric("nd_input_paused") == 0)
    assert site.metric("nd_input_informs_total", result="answered") == 2


async def test_what_is_refused_is_told_by_its_reason(tmp_path: Path) -> None:
    """Community, user, passwords, level, engine; received = durable + dropped."""
    users = [{**USER, "engine_ids": ["0x8000000001020304"]}]
    async with Site(tmp_path, users=users).running() as site:
        engine, other = ["-e", "0x8000000001020304"], ["-e", "0x8000000001020305"]
        assert (await site.send("snmptrap", ["-v", "2c", "-c", "private"]))[0] == 0
        await site.send("snmptrap", ["-v", "1", "-c", "publi"], ["1.3.6.1.4.1.9", "10.1.2.3", "2", "0", "1"])
        await until(lambda: site.dropped("wrong_community") == 2)
        await site.send("snmptrap", [*snmp.v3("nobody", AUTH, PRIVACY), *engine])
        await until(lambda: site.dropped("unknown_user") == 1)
        await site.send("snmptrap", [*snmp.v3("traps", ("SHA-256", "incorrect horse"), PRIVACY), *engine])
        await until(lambda: site.dropped("wrong_digest") == 1)
        await site.send("snmptrap", [*snmp.v3("traps", AUTH), *engine])
        await site.send("snmptrap", [*snmp.v3("traps", None), *engine])
        await until(lambda: site.dropped("security_level") == 2)
        await site.send("snmptrap", [*snmp.v3("traps", AUTH, PRIVACY), *other])
        await until(lambda: site.dropped("unknown_engine") == 1)
        _, said = await site.send("snmpget", [*V2C, "-t", "0.2", "-r", "0"], ["1.3.6.1.2.1.1.1.0"])
        assert "Timeout" in said
        await until(lambda: site.dropped("not_a_trap") == 1)
    assert (site.durable, site.metric("nd_input_received_events_total")) == (0, 8)


async def test_a_guesser_is_said_once_and_counted_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However many words are tried; none of them is in the log."""
    async with Site(tmp_path).running() as site:
        for word in ("guess1", "guess2", "guess3"):
            await site.send("snmptrap", ["-v", "2c", "-c", word])
        await until(lambda: site.dropped("wrong_community") == 3)
    said = [one.getMessage() for one in caplog.records if "wrong community" in one.getMessage()]
    assert len(said) == 1
    assert "127.0.0.1" in said[0]
    assert "guess" not in caplog.text


async def test_a_refused_inform_s_sender_is_told_why(tmp_path: Path) -> None:
    """By a Report, which Net-SNMP puts in words."""
    async with Site(tmp_path).running() as site:
        told = await site.send("snmpinform", snmp.v3("nobody", AUTH, PRIVACY))
        assert "Unknown user name" in told[1]
        told = await site.send("snmpinform", snmp.v3("traps", ("SHA-256", "incorrect horse"), PRIVACY))
        assert "Authentication failure" in told[1]
        told = await site.send("snmpinform", snmp.v3("traps", AUTH))
        assert "Unsupported security level" in told[1]
    assert site.metric("nd_input_snmp_reports_total", reason="unknown_user") == 1
    assert site.dropped("unknown_user") == 1
    assert site.durable == 0


async def test_whatever_a_datagram_holds_it_is_an_event_or_a_number(tmp_path: Path) -> None:
    """Lies, nests, and too much of everything, as long as UDP has them; then a good one is taken as before."""
    null = bytes((ber.NULL, 0))
    name = ber.from_oid(snmp.LINK_DOWN)

    def trap(*binds: tuple[str, bytes]) -> bytes:
        return make_community_message(1, b"public", make_pdu(Kind.TRAP, 1, [(snmp.TRAP_OID, name), *binds]))

    nest = b""
    for _ in range(15_000):
        nest = ber.value(ber.SEQUENCE, nest)
    many, deep = trap(*[("1.3", null)] * 8000), trap(("1.3.6", nest[-50_000:]))
    huge = make_community_message(1, b"public", make_pdu(Kind.TRAP, 2**70, [(snmp.TRAP_OID, name)]))
    hostile = [b"", b"\x30", nest[:60_000], many[:-1], b"\xff" * 65_000, b"\x30\x84\xff\xff\xff\xff", deep, huge]
    async with Site(tmp_path, limits={"varbinds": 16}).running() as site:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number, data in enumerate([*hostile, many, trap()], 1):
                sender.sendto(data, ("127.0.0.1", site.port))
                await until(lambda number=number: site.metric("nd_input_received_events_total") == number)
    assert (site.durable, site.dropped("malformed")) == (2, len(hostile))
    crowded, good = sorted(site.events(), key=lambda one: -len(one["snmp"]["varbinds"]))
    assert (len(crowded["snmp"]["varbinds"]), crowded["snmp"]["varbinds_omitted"]) == (16, 8001 - 16)
    assert crowded["tags"] == ["_truncated"]
    assert site.metric("nd_input_truncated_events_total") == 1
    assert good["event"]["action"] == "linkDown"
    assert site.metric("nd_input_received_events_total") == 2 + len(hostile)


async def test_a_bug_of_the_decoder_costs_one_trap_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those behind it in the same read are events."""
    true_line = trap_intake.line

    def line(pdu: Pdu, *facts: Any, **more: Any) -> tuple[bytes, bool]:
        if pdu.request_id == 2:
            raise ZeroDivisionError("a bug")
        return true_line(pdu, *facts, **more)

    monkeypatch.setattr(trap_intake, "line", line)
    binds = [(snmp.TRAP_OID, ber.from_oid(snmp.LINK_DOWN))]
    async with Site(tmp_path).running() as site:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in (1, 2, 3):  # the loop has no turn meanwhile: one read
                trap = make_community_message(1, b"public", make_pdu(Kind.TRAP, number, binds))
                sender.sendto(trap, ("127.0.0.1", site.port))
        await until(lambda: site.durable == 2)
    assert site.dropped("decoder_failed") == 1
    assert site.metric("nd_input_received_events_total") == 3


async def test_a_datagram_that_was_cut_is_malformed(tmp_path: Path) -> None:
    """Nobody knows what stood behind."""
    async with Site(tmp_path, max_message_bytes=480).running() as site:
        await site.send("snmptrap", V2C, [*LINK_DOWN, "1.3.6.1.4.1.9.2", "s", "x" * 600])
        await until(lambda: site.dropped("malformed") == 1)
    assert site.durable == 0


async def test_an_inform_over_ipv6_is_answered(tmp_path: Path) -> None:
    """From the address that it came to."""
    async with Site(tmp_path, listen=["[::1]:0"], allow={"networks": ["::1"]}).running() as site:
        command = [fetch.SNMP.path("usr/bin/snmpinform"), *V2C, f"udp6:[::1]:{site.port}", *LINK_DOWN]
        environment = snmp.environment(tmp_path)
        done = await asyncio.to_thread(subprocess.run, command, env=environment, check=False, timeout=60)
        assert done.returncode == 0
    assert site.events()[0]["source"]["ip"] == "::1"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"communities": []}, "communities: is missing, and so is `users`"),
        ({"communities": [""]}, "communities[0]: is empty"),
        ({"users": [USER, USER]}, "users[1].name: 'traps' is listed twice"),
        ({"users": [{"name": "x"}]}, "users[0].auth_password: auth: SHA-256 needs a password of 8 characters"),
        ({"users": [{**USER, "auth_password": "tooShrt"}]}, "users[0].auth_password: auth: SHA-256 needs a password"),
        ({"users": [{**USER, "auth": "MD5"}]}, "users[0].auth: "),
        ({"users": [{**USER, "auth": "SHA", "privacy": "AES-256"}]}, "users[0].privacy: AES-256 needs a longer digest"),
        ({"users": [{**USER, "auth": "none"}]}, "users[0].privacy: privacy without authentication"),
        ({"users": [{**USER, "privacy": "none"}]}, "users[0].privacy_password: is of no use"),
        ({"users": [{**USER, "engine_ids": ["0x8000"]}]}, "users[0].engine_ids[0]: '0x8000' is not an engine id"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_names_its_place(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    """And no password is in the error."""
    file = tmp_path / "ndagent.yaml"
    file.write_text(yaml.safe_dump({"inputs": {"snmp_trap": {"communities": ["public"], **settings}}}))
    with pytest.raises(ConfigError) as refused:
        load(file, {})
    assert f"snmp_trap.{said}" in str(refused.value)
    assert not any(secret in str(refused.value) for secret in (AUTH[1], PRIVACY[1], "tooShrt"))


async def test_a_sender_outside_the_networks_is_refused(tmp_path: Path) -> None:
    """Before a byte of it is read."""
    async with Site(tmp_path, allow={"networks": ["10.0.0.0/8"]}).running() as site:
        await site.send("snmptrap", V2C)
        await until(lambda: site.dropped("not_allowed") == 1)
    assert site.durable == 0


async def test_an_agent_s_traps_say_who_took_them_and_nothing_of_its_host(tmp_path: Path) -> None:
    """Through the agent's own plug and decoder."""
    site = Site(tmp_path)
    context = InputContext(tmp_path, site.metrics, lambda: NOON, cast("Any", None), HostFacts("agent-1", "agent-1"))
    config = agent_plug.Config.model_validate({"listen": ["127.0.0.1:0"], "communities": ["public"]})
    site.input = agent_plug.build("snmp_trap", config, context)
    async with site.running():
        await site.send("snmptrap", V2C)
        await until(lambda: site.durable == 1)
    (batch,) = site.batches
    place = {"stream": batch.stream, "spool_id": "s", "sequence": 35, "received_at_ns": batch.received_at_ns}
    (line,) = OwnDecoder(DecodeSettings(observer_name="agent-1")).decode(b"".join(pack_body(batch)), **place).lines()
    event = orjson.loads(line)
    assert event["event"]["id"] == "s-z"
    assert event["agent"] == {"type": "ndagent", "version": __version__}
    assert event["observer"] == {"ip": "127.0.0.1"}
    assert "host" not in event
