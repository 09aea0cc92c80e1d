"""An agent's membership while it runs: renewal in time, CAs that change, identities that come and go."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from collector_process import ROOT
from tls_peers import Authority

from ndagent import enrolment, membership
from ndagent.identity import IdentityStore, NoIdentity
from ndagent.membership import Membership, run_ndagent
from ndagent.wire.enrolment import bundle_fingerprint, certificates_of
from tests.agent.test_identity import Collector, collecting

DAY = 86400.0


class Member:
    """A membership on injected clocks; children are counted, not started."""

    def __init__(self, store: IdentityStore, monkeypatch: pytest.MonkeyPatch, **environ: str) -> None:
        self.unix, self.steady = 0.0, 5000.0
        self.children: list[tuple[str, ...]] = []
        self.result = (1, "no collector answers")
        self.changes = 0
        self.failing_changes = 0

        async def child(*arguments: str) -> tuple[int, str]:
            self.children.append(arguments)
            return self.result

        monkeypatch.setattr(membership, "run_ndagent", child)
        monkeypatch.setattr(membership, "LOOK_SECONDS", 0.0)
        self.one = Membership(
            store,
            config_path=Path("ndagent.yaml"),
            environ=environ,
            clock=lambda: self.unix,
            monotonic=lambda: self.steady,
            random=lambda: 0.5,
            changed=self._changed,
        )

    async def _changed(self) -> None:
        if self.failing_changes:
            self.failing_changes -= 1
            raise RuntimeError("not now")
        self.changes += 1


@asynccontextmanager
async def running(member: Member) -> AsyncIterator[None]:
    task = asyncio.create_task(member.one.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
async def enrolled(tmp_path: Path) -> AsyncIterator[tuple[Collector, IdentityStore]]:
    """A collector, and an agent that went through enrolment with it."""
    (tmp_path / "state").mkdir()
    store = IdentityStore(tmp_path / "state" / "identity")
    async with collecting(tmp_path) as collector:
        await enrolment.enrol(collector.url, collector.token, store)
        yield collector, store


Enrolled = tuple[Collector, IdentityStore]


async def test_renewal_begins_at_two_thirds_and_is_tried_with_jitter(
    enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not a second before; 5, 10, 20 … seconds at most between tries, 15 minutes in the end; told once an hour."""
    _, store = enrolled
    member = Member(store, monkeypatch)
    member.unix = store.load().renew_after - 1
    monkeypatch.setattr(member.one, "_trust_at", float("inf"))
    async with running(member):
        await until(lambda: member.changes == 1)
        await turns()
        assert member.children == []
        member.unix += 1
        await until(lambda: len(member.children) == 1)
        assert member.children[0] == ("renew", "-c", "ndagent.yaml")
        tries = []
        for _ in range(3000):
            before = len(member.children)
            member.steady += 1
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            tries += [member.steady] if len(member.children) > before else []
        gaps = [after - before for before, after in pairwise(tries)]
        assert gaps == sorted(gaps)
        assert max(gaps) <= 451
        assert caplog.text.count("renew failed and is tried again: no collector answers") == 1


async def test_a_clock_that_jumps_neither_storms_nor_sleeps(
    enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far ahead: every new certificate is due at once, and is not renewed again for a while. Back: tries go on."""
    _, store = enrolled
    member = Member(store, monkeypatch)
    member.result = (0, "")
    member.unix = store.load().renew_after + DAY
    monkeypatch.setattr(member.one, "_trust_at", float("inf"))
    async with running(member):
        await until(lambda: len(member.children) == 1)
        for _ in range(100):
            member.steady += 30
            await turns()
        assert len(member.children) == 1
        member.result = (1, "")
        member.steady += 700
        await until(lambda: len(member.children) == 2)
        member.unix = store.load().renew_after + 1
        member.steady += 1000
        await until(lambda: len(member.children) == 3)


async def test_who_is_not_enrolled_enrols_only_with_url_and_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The token stays in the environment and off the command line."""
    store = IdentityStore(tmp_path / "identity")
    lonely = Member(store, monkeypatch)
    async with running(lonely):
        await turns()
    assert lonely.children == []
    assert caplog.text.count("this agent is not enrolled") == 1
    with pytest.raises(NoIdentity):
        _ = lonely.one.tls
    member = Member(store, monkeypatch, ND_COLLECTOR_URL="https://c:1", ND_ENROLL_TOKEN="ndt1_secret")
    async with running(member):
        await until(lambda: bool(member.children))
    assert member.children[0] == ("enroll", "--url", "https://c:1", "-c", "ndagent.yaml")


async def test_what_is_stored_by_another_process_is_taken_up(
    enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one whose first taking-up failed, and one whose file was unreadable for a while."""
    _, store = enrolled
    member = Member(store, monkeypatch)
    member.unix = store.load().renew_after - DAY
    monkeypatch.setattr(member.one, "_trust_at", float("inf"))
    member.failing_changes = 1
    with pytest.raises(RuntimeError):
        await member.one.run()
    file = store.directory / "identity.json"
    good = file.read_bytes()
    async with running(member):
        await until(lambda: member.changes == 1)
        before = member.one.identity
        await enrolment.renew(store)
        await until(lambda: member.changes == 2)
        assert before is not None
        assert member.one.identity is not None
        assert member.one.identity.pair != before.pair
        file.write_bytes(b"damaged")
        await turns()
        assert member.one.identity.pair != before.pair
        file.write_bytes(good)
        await until(lambda: member.changes == 3)


async def test_another_set_of_cas_is_taken_over_and_kept(enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch) -> None:
    """As during a rotation: the old one and a new one; asked for again an hour later, not before."""
    collector, store = enrolled
    both = collector.ca + Collector.pem(Authority("next CA"))
    collector.handed_out = "a word before\n" + both + "and one behind, with \u00fc\n"
    member = Member(store, monkeypatch)
    async with running(member):
        await until(lambda: store.load().trust_bundle == bundle_fingerprint(certificates_of(both)))
        await until(lambda: member.changes == 2)
        asked = collector.seen.connections
        member.steady += 1700
        await turns()
        assert collector.seen.connections == asked
        member.steady += 2000
        await until(lambda: collector.seen.connections > asked)
    store.context(store.load())


GARBAGE: list[Callable[[Collector], str]] = [
    lambda _: "",
    lambda _: "no PEM at all",
    lambda _: "-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n",
    lambda _: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    lambda _: Collector.pem(Authority("somebody else's")),
    lambda one: one.ca + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    lambda one: one.ca * 200,
    lambda one: one.site.files.server.pem().decode(),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_cas_that_would_cut_the_agent_off_are_not_stored(
    enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch, garbage: Callable[[Collector], str]
) -> None:
    """Garbage, strangers, and more than can be read again: the agent goes on as it is, also after a restart."""
    collector, store = enrolled
    before = store.load()
    collector.handed_out = garbage(collector)
    member = Member(store, monkeypatch)
    member.one.look()
    await member.one._refresh_trust(before)
    assert store.load() == before
    again = Member(store, monkeypatch)
    assert again.one.look()
    assert again.one.tls.cert_store_stats()["x509_ca"] == 1


async def test_cas_do_not_undo_a_renewal_that_was_stored_meanwhile(enrolled: Enrolled) -> None:
    """The store's own identity counts, not the one that the caller saw."""
    collector, store = enrolled
    old = store.load()
    new = await enrolment.renew(store)
    both = collector.ca + Collector.pem(Authority("next CA"))
    assert store.trust(old.agent_id, both)
    assert store.load().pair == new.pair
    assert not store.trust("ponmlkjihgfedcba", collector.ca)


async def test_two_processes_that_store_at_a_time_leave_one_whole_identity(enrolled: Enrolled) -> None:
    """`ndagent renew` by hand beside the agent's own: whoever is last counts, with its own key."""
    collector, store = enrolled
    code = (
        f"import asyncio; from pathlib import Path; from ndagent import enrolment; from ndagent.identity import *\n"
        f"for _ in range(4): asyncio.run(enrolment.renew(IdentityStore(Path({str(store.directory)!r}))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    racing = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    codes = await asyncio.gather(*(asyncio.to_thread(one.wait, 50) for one in racing))
    assert codes == [0, 0, 0]
    store.context(store.load())
    assert collector.keys


async def test_a_child_is_killed_with_whoever_waits_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stop does not wait three minutes for a collector that does not answer."""
    script = tmp_path / "slow"
    script.write_text("#!/bin/sh\nexec sleep 100\n")
    script.chmod(0o755)
    monkeypatch.setattr(membership.sys, "executable", str(script))
    monkeypatch.setattr(membership.sys, "frozen", True, raising=False)
    running = asyncio.create_task(run_ndagent("renew"))
    await asyncio.sleep(0.2)
    running.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait({running})
    assert running.cancelled()
    script.write_text("#!/bin/sh\necho why >&2; exit 3\n")
    assert await run_ndagent("renew") == (3, "why")
    script.unlink()
    code, said = await run_ndagent("renew")
    assert (code, "No such file" in said) == (1, True)
