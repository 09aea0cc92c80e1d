"""The fleet as inputs use it: whom it lets in, what it remembers, whom it suspects, and what it costs."""

import asyncio
import logging
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fleet_site import RUNS, SPOOLS, FleetSite, enrol, group_of, renewal, serial
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.enrolment import HostFacts
from ndagent.wire.status import AgentStatus, PolicyStatus, Shed, SpoolStatus
from ndcollector import pki
from ndcollector.agents import clones, enrolment, registrations, schema
from ndcollector.agents import fleet as fleet_module
from ndcollector.agents.clones import Addresses, Runs
from ndcollector.agents.fleet import Fleet
from ndcollector.agents.inventory import MAX_SHED, MAX_SPOOLS, Inventory
from ndcollector.agents.member import Member
from ndcollector.agents.registrations import MAX_NEW_SPOOLS, NEW_SPOOLS_SECONDS
from ndcollector.agents.rows import Agent, Held, Newcomer

RUN, SPOOL = RUNS[0], SPOOLS[0]


@pytest.fixture
def site(tmp_path: Path) -> FleetSite:
    return FleetSite(tmp_path)


def row(site: FleetSite, which: str) -> Agent:
    inventory = site.inventory()
    try:
        return inventory.find(which)
    finally:
        inventory.close()


def add(site: FleetSite, count: int) -> list[str]:
    """Agents with a certificate each, without the cost of keys."""
    inventory = site.inventory()
    now = site.clock.unix
    ids = [f"agent{number:011}".translate(str.maketrans("0189", "abcd")) for number in range(count)]
    with inventory.writing() as database:
        for number, agent_id in enumerate(ids):
            values = (agent_id, f"host-{number}", "host", "linux", "Debian", "x86_64", "1", "g", "[]", "token", now)
            database.execute(
                "INSERT INTO agents (id, name, hostname, os, os_name, architecture, version, group_name, roles, "
                "origin, enrolled_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            certificate = (f"{number:X}", agent_id, "", now, now + 90 * 86400, number.to_bytes(91, "big"), None)
            database.execute("INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?)", certificate)
    inventory.close()
    return ids


def status(**changes: object) -> bytes:
    fields = {"run_id": RUN, "sent_at_ns": 0, "version": "2", "os": "linux", "hostname": "web-1", **changes}
    return AgentStatus(**fields).to_json()  # type: ignore[arg-type]  # as given


# -- who is let in ---------------------------------------------------------------------------------------------------


async def test_admit_knows_its_own_and_refuses_the_rest(site: FleetSite) -> None:
    """Each with a reason of its own, counted and on the trail."""
    async with site.fleet() as fleet:
        one, other = (await enrol(site, fleet)).agent_id, (await enrol(site, fleet)).agent_id
        assert fleet.admit(one, spool_id=SPOOL, run_id=RUN) is None
        assert fleet.admit(one, spool_id=SPOOL, run_id=RUN) is None
        assert fleet.admit("a" * 16, spool_id=SPOOL, run_id=RUN) == "unknown_agent"
        assert fleet.admit(other, spool_id=SPOOL, run_id=RUN) == "foreign_spool"
        assert fleet.admit(other, spool_id="../../etc", run_id=RUN) == "malformed"
        assert fleet.admit(other, spool_id=SPOOLS[1], run_id="x") == "malformed"
        assert fleet.admit(one) is None
        assert fleet.admit("b" * 16) == "unknown_agent"
    assert site.metric("nd_agents_refused_total", reason="foreign_spool") == 1
    assert site.trail.count('"kind":"agent_refused"') == 4  # one for each reason and agent within a minute
    assert site.trail.count('"kind":"spool_registered"') == 2


async def test_a_spool_is_on_the_disk_before_the_answer(site: FleetSite) -> None:
    """Another connection sees it at once, and so does the next life."""
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id
        assert {fleet.admit(agent_id, spool_id=SPOOL, run_id=RUN) for _ in range(50)} == {None}
        await fleet.settle()
        inventory = site.inventory()
        assert inventory.spools() == {SPOOL: agent_id}
        inventory.close()
    async with site.fleet() as fleet:
        other = (await enrol(site, fleet)).agent_id
        assert fleet.admit(other, spool_id=SPOOL, run_id=RUN) == "foreign_spool"


async def test_a_host_enrolled_anew_takes_its_spool_along_once_the_former_is_revoked(site: FleetSite) -> None:
    """Its backlog must not be stuck for ever; while the former lives it may be a copy."""
    async with site.fleet() as fleet:
        former, new = (await enrol(site, fleet)).agent_id, (await enrol(site, fleet)).agent_id
        assert fleet.admit(former, spool_id=SPOOL, run_id=RUN) is None
        assert fleet.admit(new, spool_id=SPOOL, run_id=RUN) == "foreign_spool"
        pki.revoke(site.pki, former, now=datetime.now(UTC))
        await fleet._look()
        assert fleet.admit(former, spool_id=SPOOL, run_id=RUN) == "revoked_agent"
        assert fleet.admit(new, spool_id=SPOOL, run_id=RUN) is None
        assert fleet.public_keys(former) == ()


async def test_the_number_of_spools_is_bounded_by_rate_and_in_all(site: FleetSite) -> None:
    """The limit is exact, and the longest registered is forgotten first."""
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id
        for start in range(0, MAX_SPOOLS + MAX_NEW_SPOOLS, MAX_NEW_SPOOLS):
            for spool_id in SPOOLS[start : start + MAX_NEW_SPOOLS]:
                assert fleet.admit(agent_id, spool_id=spool_id, run_id=RUN) is None
                await fleet.settle()
                site.clock.unix += 1
            assert fleet.admit(agent_id, spool_id=SPOOLS[-1], run_id=RUN) == "too_many_spools"
            site.clock.pass_by(NEW_SPOOLS_SECONDS + 1)
    inventory = site.inventory()
    assert list(inventory.spools()) == SPOOLS[MAX_NEW_SPOOLS : MAX_SPOOLS + MAX_NEW_SPOOLS]
    inventory.close()


async def test_what_a_command_changed_counts_after_the_next_look(site: FleetSite) -> None:
    """Revoked, renamed, moved, removed by another process."""
    async with site.fleet() as fleet:
        one, other = (await enrol(site, fleet)).agent_id, (await enrol(site, fleet)).agent_id
        inventory = site.inventory()
        inventory.mark_revoked(one, reason="keyCompromise", now=1.0)
        inventory.move(other, "db", ("primary",))
        assert fleet.admit(one) is None
        await fleet._look()
        assert fleet.admit(one) == "revoked_agent"
        assert group_of(fleet, other) == ("db", ("primary",))
        inventory.remove(one)
        inventory.close()
        await fleet._look()
        assert fleet.admit(one) == "unknown_agent"
        assert len(fleet) == 1


async def test_a_certificate_made_by_hand_makes_an_agent(site: FleetSite) -> None:
    """`ndcollector pki issue --agent` is an operator's word too; its key is known from the PKI's file."""
    async with site.fleet() as fleet:
        issued = pki.issue(site.pki, pki.Subject("agent", "by-hand"), now=datetime.now(UTC))
        assert fleet.admit("by-hand") == "unknown_agent"
        await fleet._look()
        assert fleet.admit("by-hand", spool_id=SPOOL, run_id=RUN) is None
        assert len(fleet.public_keys("by-hand")) == 1
        assert issued.key is not None


async def test_a_look_at_the_index_in_the_middle_of_an_enrolment_loses_no_key(
    site: FleetSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index has the certificate before the inventory does, and knows no key."""
    async with site.fleet() as fleet:
        real = enrolment.sign

        def sign_then_look(*arguments: object, **named: object) -> object:
            result = real(*arguments, **named)  # type: ignore[arg-type]  # as given
            look = asyncio.run_coroutine_threadsafe(fleet._look(), loop)
            look.result(10)
            return result

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(enrolment, "sign", sign_then_look)
        answer = await enrol(site, fleet)
        await fleet._reload()
        assert len(fleet.public_keys(answer.agent_id)) == 1


# -- what is remembered ----------------------------------------------------------------------------------------------


async def test_what_was_seen_is_written_together_and_a_crash_loses_only_that(site: FleetSite) -> None:
    """Not before `write`; enrolment and spool are there all the same."""
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id
        fleet.admit(agent_id, spool_id=SPOOL, run_id=RUN, address="192.0.2.9")
        fleet.seen(agent_id, address="192.0.2.9", transport="mqtt", clock_skew=-3.5)
        assert row(site, agent_id).last_seen is None
        await fleet.write()
        found = row(site, agent_id)
    assert (found.last_seen, found.address, found.transport) == (site.clock.unix, "192.0.2.9", "mqtt")
    assert (found.clock_skew, found.runs) == (-3.5, (RUN,))


async def test_a_report_becomes_a_row(site: FleetSite) -> None:
    """Sums over spools, lag by the agent's own clock, skew by ours, policy, bundle."""
    sent = int((site.clock.unix + 86400) * 1e9)
    spools = (SpoolStatus("a", SPOOL, 5, 100, 1000, sent - 7_000_000_000), SpoolStatus("b", SPOOLS[1], 1, 10, 1000))
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id
        document = status(
            sent_at_ns=sent, spools=spools, shed=(Shed("file", 3, 1, 2),), policy=PolicyStatus(4, "refused", "why"),
            trust_bundle=fleet.trust_bundle().fingerprint, endpoint="mqtts://a:8883",
        )  # fmt: skip
        fleet.status(agent_id, document, address="192.0.2.1")
        await fleet.write()
        fleet.status(agent_id, b"[]")
        fleet.status("a" * 16, document)
        assert site.metric("nd_agents_refused_total", reason="malformed") == 1
        assert site.metric("nd_agents_refused_total", reason="unknown_agent") == 1
    found = row(site, agent_id)
    assert (found.pending_events, found.pending_bytes, found.lag_seconds) == (6, 110, 7.0)
    assert (found.policy_version, found.policy_result, found.version) == (4, "refused", "2")
    assert found.clock_skew == pytest.approx(86400, abs=0.01)
    assert found.trust_bundle == fleet.trust_bundle().fingerprint
    assert site.metric("nd_agents_shed_events") == 3


async def test_shed_events_are_counted_once_however_often_they_are_reported(site: FleetSite) -> None:
    """A loss that goes on is the same one, grown; the number remembered is bounded."""
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id
        for events, until in ((3, 20), (5, 30), (5, 30)):
            fleet.status(agent_id, status(shed=(Shed("file", events, 10, until),)))
            await fleet.write()
        inventory = site.inventory()
        assert inventory.shed(agent_id) == [("file", 10, 30, 5)]
        for start in range(100, 100 + 3 * MAX_SHED, MAX_SHED):
            shed = tuple(Shed("file", 1, since, since) for since in range(start, start + MAX_SHED))
            fleet.status(agent_id, status(shed=shed))
            await fleet.write()
        assert len(inventory.shed(agent_id)) == MAX_SHED
        inventory.close()


async def test_reports_waiting_for_the_disk_are_bounded(site: FleetSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit they are written at once; while the disk takes none, those beyond twice of it are left out."""
    ids = add(site, 30)
    monkeypatch.setattr(fleet_module, "MAX_REPORT_BYTES", 100_000)
    async with site.fleet() as fleet:
        padding = status()[:-1] + b" " * 20_000 + b"}"
        for agent_id in ids:
            fleet.status(agent_id, padding)
            assert fleet._report_bytes <= 200_000
        for _ in range(20):  # one agent that reports again and again is counted once
            fleet.status(ids[0], padding)
        assert fleet._report_bytes <= 200_000
        await asyncio.gather(*fleet._tasks)
        assert fleet._report_bytes == 0
        for agent_id in ids:
            fleet.status(agent_id, padding)
            await asyncio.gather(*fleet._tasks)
    assert all(row(site, agent_id).status_at for agent_id in ids)


async def test_a_bundle_that_changed_is_read_anew(site: FleetSite) -> None:
    """What inputs compare an agent's report with."""
    from ndcollector.pki.rotation import stage

    async with site.fleet() as fleet:
        before = fleet.trust_bundle()
        stage(site.pki, now=datetime.now(UTC))
        after = fleet.trust_bundle()
        assert (len(before.certificates), len(after.certificates)) == (1, 2)
        assert before.fingerprint != after.fingerprint
        assert set(before.fingerprints) < set(after.fingerprints)
        answer = await enrol(site, fleet)
        assert answer.ca == after.pem


# -- clones ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=50))
def test_one_process_after_another_is_never_a_clone(steps: list[tuple[float, bool]]) -> None:
    """However long they live and whatever of the one before arrives late, within the grace."""
    runs, now, current = Runs(), 0.0, 0
    for seconds, restarts in steps:
        now += seconds
        current += restarts
        assert not runs.is_strange(f"{current:016x}", now)
        if restarts and current > 0 and f"{current - 1:016x}" in runs.ids:
            assert not runs.is_strange(f"{current - 1:016x}", now + clones.GRACE_SECONDS * 0.99)
    assert len(runs.ids) <= clones.MAX_RUNS


@given(st.lists(st.booleans(), min_size=4, max_size=30), st.floats(0.1, 5))
def test_two_processes_at_once_are_found_out(turns: list[bool], beat: float) -> None:
    """Whoever speaks first and however unevenly, once both have spoken after the grace."""
    runs, now, found = Runs(), 0.0, False
    for turn in [True, False, *turns]:
        found |= runs.is_strange(RUNS[turn], now)
        now += beat
    now += clones.GRACE_SECONDS
    found |= runs.is_strange(RUNS[True], now) | runs.is_strange(RUNS[False], now)
    assert found


def test_an_older_run_is_strange_just_after_the_grace() -> None:
    """The limit is exact; after a collector's restart there is none."""
    runs = Runs()
    runs.is_strange(RUNS[0], 0)
    runs.is_strange(RUNS[1], 5)
    assert not runs.is_strange(RUNS[0], 5 + clones.GRACE_SECONDS)
    assert runs.is_strange(RUNS[0], 5.001 + clones.GRACE_SECONDS)
    assert Runs(runs.ids).is_strange(RUNS[0], 0)


def test_addresses_by_turns_are_strange_and_a_journey_is_not() -> None:
    """A laptop changes networks and comes home; two copies of a machine take turns for ever."""
    addresses, now = Addresses(), 0.0
    for address in ("home", "train", "office", "train", "home", "office"):
        now += 600
        assert not addresses.is_strange(address, now)
    results = []
    for turn in range(20):
        now += 1
        results.append(addresses.is_strange("ab"[turn % 2], now))
    assert results.index(True) == clones.RETURNS + 1
    for number in range(10_000):
        addresses.is_strange(str(number), now)
    assert len(addresses.known) < 8


async def test_a_clone_is_flagged_once_and_still_taken(site: FleetSite, caplog: pytest.LogCaptureFixture) -> None:
    """ERROR, trail, metric, inventory; a restart does not forget and does not repeat it."""
    caplog.set_level(logging.ERROR)
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id
        for turn in range(6):
            refused = fleet.admit(agent_id, spool_id=SPOOL, run_id=RUNS[turn % 2], address="192.0.2.1")
            assert refused is None
            site.clock.pass_by(clones.GRACE_SECONDS + 1)
        await fleet.write()
    async with site.fleet() as fleet:
        fleet.admit(agent_id, spool_id=SPOOL, run_id=RUNS[0], address="192.0.2.1")
        assert site.metric("nd_agents", state="clone_suspected") == 1
    assert [record.levelname for record in caplog.records if "two hosts" in record.message] == ["ERROR"]
    assert site.trail.count('"kind":"clone_suspected"') == 1
    assert "spoke after" in (row(site, agent_id).clone_reason or "")


async def test_a_person_can_say_that_it_was_none(site: FleetSite) -> None:
    """And a sign after that is told again."""
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id

        async def speak() -> None:
            for run_id in (RUNS[0], RUNS[1], RUNS[0]):
                fleet.admit(agent_id, spool_id=SPOOL, run_id=run_id, address="192.0.2.1")
                site.clock.pass_by(clones.GRACE_SECONDS + 1)
            await fleet.write()

        await speak()
        inventory = site.inventory()
        inventory.mark_clone(agent_id, reason=None, now=0)
        inventory.close()
        await fleet._look()
        assert site.metric("nd_agents", state="clone_suspected") == 0
        await speak()
        assert site.metric("nd_agents", state="clone_suspected") == 1


# -- a file that cannot be used --------------------------------------------------------------------------------------


async def test_a_damaged_inventory_is_set_aside_and_made_anew_from_the_pki(
    site: FleetSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody types `rm`; agents with a certificate are known again, a revoked one is not."""
    async with site.fleet() as fleet:
        kept, revoked = await enrol(site, fleet), await enrol(site, fleet)
    pki.revoke(site.pki, revoked.agent_id, now=datetime.now(UTC))
    for damage in (b"this is no database" * 1000, b""):
        site.file.write_bytes(damage)
        site.file.with_name(site.file.name + "-wal").unlink(missing_ok=True)
        async with site.fleet() as fleet:
            assert fleet.admit(kept.agent_id, spool_id=SPOOL, run_id=RUN) is None
            assert fleet.admit(revoked.agent_id) == "unknown_agent"
            again = await fleet.enrolment.renew(kept.agent_id, renewal(), serial(kept))
            assert fleet.public_keys(again.agent_id)
    assert len(list((site.state / "quarantine").glob("inventory-*.sqlite"))) == 1  # an empty file is a new database
    assert [record.levelname for record in caplog.records if "set aside" in record.message] == ["ERROR"]


async def test_a_file_that_is_damaged_while_running_loses_only_tokens(site: FleetSite) -> None:
    """Memory knows the agents, their names, spools and keys."""
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet, hostname="db-7")).agent_id
        fleet.admit(agent_id, spool_id=SPOOL, run_id=RUN)
        inventory = site.inventory()
        inventory.move(agent_id, "db", ("primary",))
        with inventory.reading() as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        inventory.close()
        await fleet._look()
        keys = fleet.public_keys(agent_id)
        size = site.file.stat().st_size
        with site.file.open("r+b") as stream:
            stream.write(b"\xa5" * size)
        await fleet._database.call(lambda inventory: inventory._database.execute("PRAGMA shrink_memory"))
        assert fleet.admit(agent_id, spool_id=SPOOLS[1], run_id=RUN) is None
        await fleet.write()
        assert fleet.public_keys(agent_id) == keys
    found = row(site, agent_id)
    assert (found.name, found.group, found.roles) == ("db-7", "db", ("primary",))
    inventory = site.inventory()
    assert inventory.spools() == {SPOOL: agent_id, SPOOLS[1]: agent_id}
    inventory.close()


def test_many_may_make_the_file_at_once(tmp_path: Path) -> None:
    """The daemon and the first command of a day may start together."""

    def make(path: Path) -> None:
        Inventory(path).close()

    with ThreadPoolExecutor(8) as threads:
        for number in range(5):
            list(threads.map(make, [tmp_path / f"{number}.sqlite"] * 8))


def test_a_file_that_cannot_be_opened_is_told_in_words(tmp_path: Path) -> None:
    """`ndcollector agents ls`, typed by somebody who may not read it, shows no traceback."""
    with pytest.raises(schema.InventoryError, match=f"{tmp_path}: unable to open database file"):
        schema.connect(tmp_path)


async def test_a_newer_versions_file_is_refused_and_left_alone(site: FleetSite) -> None:
    """A downgrade must not destroy what it does not understand."""
    async with site.fleet():
        pass
    inventory = site.inventory()
    inventory._database.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    inventory.close()
    with pytest.raises(schema.InventoryError, match="written by a newer one"):
        async with site.fleet():
            pass
    assert not (site.state / "quarantine").exists()


async def test_a_busy_inventory_makes_new_spools_wait_and_nothing_else(
    site: FleetSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that holds the write lock: known spools are taken from memory; a new one is not answered meanwhile."""
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(registrations, "RETRY_SECONDS", 0.01)
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id
        fleet.admit(agent_id, spool_id=SPOOL, run_id=RUN)
        inventory = site.inventory()
        await fleet.settle()
        with inventory.writing():
            assert fleet.admit(agent_id, spool_id=SPOOL, run_id=RUN) is None
            await fleet.settle()
            assert fleet.admit(agent_id, spool_id=SPOOLS[1], run_id=RUN) is None
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(fleet.settle({SPOOLS[1]}), 0.3)
            assert fleet.is_blocked, "a hang to the watchdog, which would end a daemon that waits for somebody else"
            await asyncio.wait_for(fleet.settle({SPOOL, ""}), 0.3)
            fleet.seen(agent_id, address="192.0.2.5", transport="https")
            with pytest.raises(schema.InventoryError, match="locked"):
                await fleet.write()
        await fleet.settle()
        assert not fleet.is_blocked
        assert inventory.spools() == {SPOOL: agent_id, SPOOLS[1]: agent_id}
        await fleet.write()
        inventory.close()
    assert row(site, agent_id).address == "192.0.2.5"


async def test_an_inventory_that_cannot_be_written_keeps_no_collector_from_starting(
    site: FleetSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk (here a lock): what the PKI knows besides is taken up once it can be; outputs deliver meanwhile."""
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.05)
    async with site.fleet():
        pass
    pki.issue(site.pki, pki.Subject("agent", "by-hand"), now=datetime.now(UTC))
    inventory = site.inventory()
    with inventory.writing():
        async with site.fleet() as fleet:
            assert "it is tried again by itself" in caplog.text
            assert fleet.admit("by-hand") == "unknown_agent"
    async with site.fleet() as fleet:
        assert fleet.admit("by-hand") is None
    inventory.close()


async def test_commands_and_the_daemon_write_at_the_same_time(site: FleetSite) -> None:
    """A hundred renames against a daemon that writes as fast as it can: none is lost on either side."""
    ids = add(site, 100)
    async with site.fleet() as fleet:
        stop = asyncio.Event()

        async def daemon() -> None:
            while not stop.is_set():
                for agent_id in ids:
                    fleet.seen(agent_id, address="192.0.2.8", transport="mqtt")
                await fleet.write()
                await fleet._look()

        def commands() -> None:
            inventory = site.inventory()
            for number, agent_id in enumerate(ids):
                inventory.rename(agent_id, f"renamed-{number}")
            inventory.close()

        working = asyncio.create_task(daemon())
        await asyncio.to_thread(commands)
        stop.set()
        await working
    found = [row(site, agent_id) for agent_id in ids]
    assert [one.name for one in found] == [f"renamed-{number}" for number in range(100)]
    assert {one.address for one in found} == {"192.0.2.8"}


async def test_it_runs_until_it_is_cancelled_and_survives_trouble(
    site: FleetSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line while the inventory cannot be used, and it goes on by itself after that."""
    monkeypatch.setattr(fleet_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.01)
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id
        running = asyncio.create_task(fleet.run())
        inventory = site.inventory()
        with inventory.writing():
            fleet.seen(agent_id, address="192.0.2.6", transport="https")
            async with asyncio.timeout(10):
                while "cannot be used" not in caplog.text:
                    site.clock.steady += fleet_module.WRITE_SECONDS / 4
                    await asyncio.sleep(0.01)
            site.clock.steady += fleet_module.WRITE_SECONDS
            await asyncio.sleep(0.1)  # more trouble, no more lines
        inventory.close()
        async with asyncio.timeout(10):
            while row(site, agent_id).address != "192.0.2.6":
                site.clock.steady += fleet_module.WRITE_SECONDS
                await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert caplog.text.count("cannot be used") == 1


# -- cost ------------------------------------------------------------------------------------------------------------


async def one_second_of(fleet: Fleet, ids: list[str]) -> None:
    for number, agent_id in enumerate(ids):
        assert fleet.admit(agent_id, spool_id=f"{number:016}", run_id=RUN, address="192.0.2.1") is None
        fleet.seen(agent_id, address="192.0.2.1", transport="mqtt")


async def test_a_thousand_agents_cost_little(site: FleetSite) -> None:
    """At most 2.5 KB each in memory; to let one in, under 20 µs; to write what was heard of all, under 0.3 s of CPU."""
    ids = add(site, 1000)
    inventory = site.inventory()
    with inventory.writing() as database:
        rows = [(f"{number:016}", agent_id, 0.0) for number, agent_id in enumerate(ids)]
        database.executemany("INSERT INTO spools VALUES (?, ?, ?)", rows)
    inventory.close()
    tracemalloc.start()
    async with site.fleet() as fleet:
        await one_second_of(fleet, ids)
        await fleet.write()
        assert tracemalloc.get_traced_memory()[0] < 2_500_000
        tracemalloc.stop()
        began = time.process_time()
        for _ in range(10):
            await one_second_of(fleet, ids)
        admitted = (time.process_time() - began) / 10_000
        began = time.process_time()
        await fleet.write()
        written = time.process_time() - began
        began = time.process_time()
        await fleet._reload()
        loaded = time.process_time() - began
    print(f"admit and seen {admitted * 1e6:.1f} µs, write {written * 1e3:.0f} ms, reload {loaded * 1e3:.0f} ms")
    assert admitted < 20e-6
    assert written < 0.3
    assert loaded < 0.5


async def test_the_newcomer_of_a_lost_inventory_is_named_by_its_id(site: FleetSite) -> None:
    """Nothing is invented."""
    async with site.fleet():
        pass
    inventory = site.inventory()
    inventory.add(Newcomer("a" * 16, HostFacts("", ""), "recovered"), [Held("1", "", 0, 1, None)], now=0)
    inventory.add(Newcomer("b" * 16, HostFacts("a" * 16, "linux"), "token"), now=0)
    assert [one.name for one in inventory.agents()] == ["a" * 16, f"{'a' * 16}-{'b' * 16}"]
    assert inventory.find("a" * 16).id == "a" * 16
    inventory.close()


# -- what goes down --------------------------------------------------------------------------------------------------


class Handout:
    """Policies that say whom they are for."""

    def __init__(self) -> None:
        self.changed: list[Callable[[str], None]] = []
        self.reports: list[tuple[str, int]] = []
        self.forgotten: list[str] = []
        self.moves = 0

    def bundle_for(self, agent: Member) -> tuple[str, bytes]:
        return "tag", f"{agent.id} {agent.group}".encode()

    def subscribe(self, changed: Callable[[str], None]) -> Callable[[], None]:
        self.changed.append(changed)
        return lambda: self.changed.remove(changed)

    def reported(self, agent_id: str, report: PolicyStatus) -> None:
        self.reports.append((agent_id, report.version))

    def agents_changed(self) -> None:
        self.moves += 1

    def forget(self, agent_id: str) -> None:
        self.forgotten.append(agent_id)


async def test_each_agent_gets_its_own_policy_and_a_change_reaches_every_input(
    site: FleetSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Also behind an input that fails; the loop gets its turns in between; a revoked agent gets nothing."""
    ids = add(site, 250)
    handout = Handout()
    async with site.fleet() as fleet:
        detach = fleet.attach(handout)
        assert fleet.downlink(ids[3]) == f"{ids[3]} g".encode()
        assert fleet.downlink("z" * 16) is None
        told: list[str] = []

        def fails(_agent_id: str) -> None:
            raise ValueError("an input's bug")

        ends = [fleet.subscribe(fails), fleet.subscribe(told.append)]
        for agent_id in ids:
            handout.changed[0](agent_id)
        assert told == []
        turns = 0
        while len(told) < len(ids):
            await asyncio.sleep(0)
            turns += 1
        assert told == ids
        assert turns >= 3
        assert "please report this" in caplog.text
        for end in ends:
            end()
        handout.changed[0](ids[0])
        fleet.status(ids[0], status(policy=PolicyStatus(7, "applied")))
        assert handout.reports == [(ids[0], 7)]
        inventory = site.inventory()
        inventory.move(ids[1], "db", ())
        inventory.mark_revoked(ids[2], reason="x", now=1)
        inventory.remove(ids[4])
        inventory.close()
        await fleet._look()
        assert (handout.moves, handout.forgotten) == (1, [ids[4]])
        assert fleet.downlink(ids[1]) == f"{ids[1]} db".encode()
        assert fleet.downlink(ids[2]) is None
        detach()
        assert handout.changed == []
    assert told == ids
