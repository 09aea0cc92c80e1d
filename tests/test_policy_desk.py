"""Versions, keys and the desk: what agents are handed, and that nothing is handed out twice under one version."""

import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ndagent.wire.policy import Bundle, NotTrusted, open_bundle
from ndcollector.pki.store import PkiError
from ndcollector.policy import desk as desk_module
from ndcollector.policy.applying import Agent, Resolver
from ndcollector.policy.desk import PolicyDesk
from ndcollector.policy.keys import KEY, NEXT_KEY, PolicyKeys
from ndcollector.policy.layers import Policies
from ndcollector.policy.merge import Layer
from ndcollector.policy.store import PolicyStore, PolicyStoreError, Report, Superseded

WEB, DB = Agent("id1", "web-1", "web"), Agent("id2", "db-1", "db")
DAY = 86400.0


def policies(**levels: str) -> Policies:
    """`base="info"` is a layer global/base with that log level; `web` and `db` are departments."""
    names = {"base": "global/base", "emergency": "local/emergency"}
    layers = {}
    for short, level in levels.items():
        name = names.get(short, f"group/department/{short}")
        layers[name] = Layer(name, {"log": {"level": level}}, digest=level)
    return Policies(layers)


@dataclass
class Office:
    """A store, keys, a desk, and a clock that stands still."""

    path: Path
    now: float = 1_800_000_000.0
    lifetime: float = 30 * DAY
    store: PolicyStore = field(init=False)
    keys: PolicyKeys = field(init=False)
    desk: PolicyDesk = field(init=False)

    def __post_init__(self) -> None:
        (self.path / "pki").mkdir(exist_ok=True)
        self.keys = PolicyKeys(self.path / "pki")
        self.restart()

    def restart(self) -> None:
        self.store = PolicyStore(self.path)
        self.desk = PolicyDesk(self.store, self.keys, lifetime_seconds=self.lifetime, clock=lambda: self.now)

    def apply(self, what: Policies) -> int:
        """As the command does."""
        resolver = Resolver(what, self.keys.next_public_key())
        known = [row.agent for row in self.store.rows().values()]
        wanted = {agent: resolver.wanted(agent).digest for agent in known}
        applied, _ = self.store.apply(what, by="me", now=self.now, wanted=wanted)
        return applied.version

    def handed(self, agent: Agent, key: bytes | None = None) -> Bundle:
        """The agent's bundle, as an agent with this key opens it."""
        found = self.desk.bundle_for(agent)
        assert found is not None
        bundle = opened(found[1], key or self.keys.public_key())
        assert bundle.etag == found[0]
        assert bundle.audience == agent.id
        return bundle


def opened(data: bytes, key: bytes) -> Bundle:
    def verify(signature: bytes, message: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    return open_bundle(data, verify=verify)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    """Nothing was applied yet."""
    return Office(tmp_path)


def test_before_anything_is_applied_there_is_nothing(office: Office) -> None:
    """And asking made no file."""
    assert office.desk.load() is False
    assert office.desk.bundle_for(WEB) is None
    assert not (office.path / "policy").exists()


def test_each_agent_gets_its_own(office: Office) -> None:
    """Signed for it, under the version that was applied."""
    version = office.apply(policies(base="info", web="debug"))
    assert office.desk.load() is True
    assert office.handed(WEB).settings == {"log": {"level": "debug"}}
    assert office.handed(DB).settings == {"log": {"level": "info"}}
    assert office.handed(WEB).version == office.handed(DB).version == version
    assert office.handed(WEB).layers == {"global/base": "info", "group/department/web": "debug"}
    assert office.handed(WEB).expires_at == office.now + 30 * DAY


def test_only_agents_whose_settings_change_get_a_new_version(office: Office) -> None:
    """An emergency for some does not disturb the others."""
    first = office.apply(policies(base="info", web="debug"))
    office.desk.load()
    before = office.handed(DB), office.handed(WEB)
    second = office.apply(policies(base="info", web="error"))
    assert office.desk.load() is True
    assert (office.handed(DB).etag, office.handed(DB).version) == (before[0].etag, first)
    assert (office.handed(WEB).version, office.handed(WEB).settings) == (second, {"log": {"level": "error"}})
    assert second > first


def test_an_agent_that_moves_to_another_group_gets_a_new_version(office: Office) -> None:
    """One version never stands for two policies, also after a restart."""
    office.apply(policies(base="info", web="debug"))
    office.desk.load()
    first = office.handed(WEB)
    moved = Agent(WEB.id, WEB.name, "db")
    second = office.handed(moved)
    assert second.version > first.version
    office.restart()
    office.desk.load()
    assert office.handed(moved).version == second.version
    assert office.handed(WEB).version > second.version


def test_a_version_is_never_used_again(office: Office) -> None:
    """Not after a restart, not when the clock goes back, not after the state was lost."""
    versions = [office.apply(policies(base="info"))]
    office.restart()
    office.now -= 7 * DAY
    versions.append(office.apply(policies(base="debug")))
    office.now += 8 * DAY
    for file in (office.path / "policy").iterdir():
        file.unlink()
    versions.append(office.apply(policies(base="info")))
    assert sorted(set(versions)) == versions


def apply_many(path: Path, versions: "multiprocessing.Queue[list[int]]") -> None:
    versions.put([Office(path).apply(policies(base="info")) for _ in range(20)])


def test_two_commands_at_once_get_different_versions(tmp_path: Path) -> None:
    """Each write is one transaction, the making of the database included."""
    context = multiprocessing.get_context("spawn")
    versions: multiprocessing.Queue[list[int]] = context.Queue()
    processes = [context.Process(target=apply_many, args=(tmp_path, versions)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [version for _ in processes for version in versions.get(timeout=60)]
    for process in processes:
        process.join()
    assert len(set(found)) == 40


def test_a_bundle_is_signed_anew_before_it_expires(office: Office) -> None:
    """Under the same tag: an agent that has it does not fetch it again."""
    office.apply(policies(base="info"))
    office.desk.load()
    first = office.handed(WEB)
    office.now += 15 * DAY - 1
    assert office.handed(WEB) == first
    office.now += 1
    assert office.handed(WEB).expires_at == first.expires_at + 15 * DAY
    assert office.handed(WEB).etag == first.etag


def test_the_cache_is_bounded(office: Office) -> None:
    """By bytes; what falls out is made again."""
    office.apply(policies(base="info"))
    one = 300
    office.desk = PolicyDesk(
        office.store, office.keys, lifetime_seconds=DAY, clock=lambda: office.now, cache_bytes=10 * one
    )  # fmt: skip
    office.desk.load()
    etags = {number: office.handed(Agent(f"id{number}")).etag for number in range(100)}
    assert 0 < office.desk._cached_bytes <= 10 * one
    assert office.desk._cached_bytes == sum(len(one.data) for one in office.desk._cache.values())
    assert {number: office.handed(Agent(f"id{number}")).etag for number in range(100)} == etags


def test_what_was_applied_a_moment_ago_counts_at_once(office: Office) -> None:
    """The watch had not told yet when an agent moved: it must not get the old layers under a new version."""
    office.apply(policies(base="info", web="debug"))
    office.desk.load()
    version = office.apply(policies(base="error"))
    assert (office.handed(WEB).version, office.handed(WEB).settings) == (version, {"log": {"level": "error"}})


def test_the_inventory_is_assigned_in_one_commit(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet that gets its first policy must not be a thousand fsyncs on the loop; moved agents neither."""
    inventory = [Agent(f"id{number}", f"host-{number}", "web") for number in range(1000)]
    office.desk = PolicyDesk(
        office.store, office.keys, lifetime_seconds=DAY, clock=lambda: office.now, inventory=lambda: inventory
    )  # fmt: skip
    commits = []
    assign = office.store.assign
    monkeypatch.setattr(office.store, "assign", lambda *a, **k: (commits.append(1), assign(*a, **k))[1])
    version = office.apply(policies(base="info", web="debug"))
    office.desk.load()
    assert {office.handed(agent).version for agent in inventory} == {version}
    told: list[str] = []
    office.desk.subscribe(told.append)
    inventory[:10] = [Agent(agent.id, agent.name, "db") for agent in inventory[:10]]
    office.desk.agents_changed()
    assert len({office.handed(agent).version for agent in inventory}) == 2
    assert (len(commits), len(told)) == (2, 10)


def test_an_assignment_against_an_old_state_is_refused(office: Office) -> None:
    """The store's side of the same."""
    first = office.apply(policies(base="info"))
    office.apply(policies(base="debug"))
    with pytest.raises(Superseded):
        office.store.assign({WEB: "digest"}, applied=first, now=office.now)


def test_there_is_a_limit_to_the_agents(office: Office) -> None:
    """The limit is taken, one more is not, and those that are here go on."""
    version = office.apply(policies(base="info"))
    store = PolicyStore(office.path, max_agents=2)
    for agent in (WEB, DB, WEB):
        store.assign({agent: "digest"}, applied=version, now=office.now)
    with pytest.raises(PolicyStoreError, match="3 agents, 2 are allowed"):
        store.assign({Agent("id3"): "digest"}, applied=version, now=office.now)
    store.forget(DB.id)
    store.assign({Agent("id3"): "digest"}, applied=version, now=office.now)


def test_a_damaged_or_newer_database_is_an_error_in_words(office: Office) -> None:
    """And agents keep what they have."""
    office.apply(policies(base="info"))
    path = office.path / "policy" / "policy.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(PolicyStoreError, match="written by a newer one"):
        office.desk.load()
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(PolicyStoreError, match="not a database"):
        office.desk.load()
    assert office.desk.bundle_for(WEB) is None


def test_the_database_is_not_for_everybody(office: Office) -> None:
    """What hosts are told to read is of use to whoever wants not to be seen."""
    office.apply(policies(base="info"))
    assert stat.S_IMODE((office.path / "policy" / "policy.db").stat().st_mode) == 0o640
    assert stat.S_IMODE((office.path / "policy").stat().st_mode) == 0o750


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_daemon(tmp_path: Path) -> None:
    """Database, key and directory; SQLite sees to its own -wal and -shm."""
    os.chown(tmp_path, 4242, 4242)
    (tmp_path / "pki").mkdir()
    os.chown(tmp_path / "pki", 4242, 4242)
    office = Office(tmp_path)
    office.keys.public_key()
    office.apply(policies(base="info"))
    with contextlib.closing(sqlite3.connect(tmp_path / "policy" / "policy.db")) as db:
        db.execute("SELECT * FROM agents").fetchall()
        assert {path.stat().st_uid for path in (tmp_path / "policy").iterdir()} == {4242}
        assert len(list((tmp_path / "policy").iterdir())) == 3
    assert {(tmp_path / one).stat().st_uid for one in ("policy", "pki/policy.key")} == {4242}


# ---- keys


def test_the_key_is_made_once_and_for_the_owner_only(office: Office) -> None:
    """Whoever has it can tell agents what to read."""
    public = office.keys.public_key()
    assert len(public) == 32
    assert PolicyKeys(office.path / "pki").public_key() == public
    assert stat.S_IMODE((office.path / "pki" / KEY).stat().st_mode) == 0o600


def test_a_key_that_is_none_is_told(office: Office, tmp_path: Path) -> None:
    """By file, and never replaced: agents know its public half."""
    (office.path / "pki" / KEY).write_text("nonsense")
    with pytest.raises(PkiError, match=r"policy\.key cannot be used"):
        office.keys.public_key()
    assert (office.path / "pki" / KEY).read_text() == "nonsense"
    with pytest.raises(PkiError, match="pki init"):
        PolicyKeys(tmp_path / "nowhere").public_key()


def test_a_rotation_introduces_the_next_key_and_then_uses_it(office: Office) -> None:
    """In two steps, each a new version for every agent."""
    old = office.keys.public_key()
    versions = [office.apply(policies(base="info"))]
    office.desk.load()
    assert office.handed(WEB).next_key is None

    new = office.keys.begin_rotation()
    with pytest.raises(PkiError, match="under way"):
        office.keys.begin_rotation()
    versions.append(office.apply(policies(base="info")))
    office.desk.load()
    announced = office.handed(WEB, old)
    assert (announced.next_key, announced.version) == (new, versions[1])

    office.keys.finish_rotation()
    versions.append(office.apply(policies(base="info")))
    office.desk.load()
    used = office.handed(WEB, new)
    assert (used.next_key, used.version) == (None, versions[2])
    with pytest.raises(NotTrusted):
        office.handed(WEB, old)
    with pytest.raises(PkiError, match="no rotation is under way"):
        office.keys.finish_rotation()


def test_a_rotation_cut_short_can_be_finished(office: Office) -> None:
    """A crash between the two files' changes leaves the new key in both."""
    office.keys.begin_rotation()
    pki = office.path / "pki"
    (pki / KEY).write_bytes((pki / NEXT_KEY).read_bytes())
    assert office.keys.next_public_key() is None
    office.keys.finish_rotation()
    assert not (pki / NEXT_KEY).exists()


# ---- the running desk


@dataclass
class Status:
    """As wire/status.py has it."""

    version: int
    result: str
    message: str = ""


@pytest.fixture
async def running(office: Office) -> AsyncIterator[Office]:
    """A desk that runs."""
    task = asyncio.ensure_future(office.desk.run())
    yield office
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition with a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.01)


async def test_what_is_applied_is_told_within_a_second_or_two(running: Office) -> None:
    """The directory does not even exist at the start; the second one is seen in it. Unsubscribed is not told."""
    told: list[str] = []
    end = running.desk.subscribe(told.append)
    running.desk.subscribe(lambda _agent_id: 1 // 0)  # somebody else's mistake
    assert running.desk.bundle_for(WEB) is None  # it is connected before anything was applied
    await asyncio.sleep(0.3)  # the watch is up
    for count, level in enumerate(("info", "debug"), 1):
        started = time.monotonic()
        await asyncio.to_thread(running.apply, policies(base=level))
        await until(lambda: told == [WEB.id] * count)  # noqa: B023 - used before it changes
        assert running.handed(WEB).settings == {"log": {"level": level}}
        assert time.monotonic() - started < 3
    end()
    await asyncio.to_thread(running.apply, policies(base="error"))
    await until(lambda: running.handed(WEB).settings == {"log": {"level": "error"}})
    assert len(told) == 2


async def test_reports_are_kept_and_only_changes_written(running: Office) -> None:
    """With the time since when it is so."""
    version = running.apply(policies(base="info"))
    running.desk.load()
    running.handed(WEB)
    running.desk.reported(WEB.id, Status(version, "applied"))
    running.desk.reported("nobody", Status(version, "applied"))
    await until(lambda: running.store.rows()[WEB.id].report == Report(version, "applied"))
    assert running.store.rows()[WEB.id].since == running.now
    running.now += 60
    running.desk.reported(WEB.id, Status(version, "applied"))
    assert not running.desk._reports
    running.desk.reported(WEB.id, Status(version - 1, "rolled_back", "x" * 1000))
    await until(lambda: running.store.rows()[WEB.id].since == running.now)
    assert running.store.rows()[WEB.id].report == Report(version - 1, "rolled_back", "x" * 500)
    running.desk.forget(WEB.id)
    assert running.store.rows() == {}


async def test_reports_that_wait_are_kept_at_the_end(office: Office) -> None:
    """A stop loses none, and they are bounded."""
    version = office.apply(policies(base="info"))
    office.desk.load()
    office.handed(WEB)
    office.handed(DB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk_module, "MAX_REPORTS", 1)
        office.desk.reported(WEB.id, Status(version, "refused"))
        office.desk.reported(DB.id, Status(version, "refused"))
        office.desk.reported(WEB.id, Status(version, "applied"))
    task = asyncio.ensure_future(office.desk.run())
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    rows = office.store.rows()
    assert (rows[WEB.id].report, rows[DB.id].report) == (Report(version, "applied"), None)


def test_a_policy_that_cannot_be_made_is_told_once(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """A thousand agents that ask are one line, and they keep what they have."""
    office.apply(policies(base="info"))
    office.desk.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(office.store, "assign", lambda *_a, **_k: (_ for _ in ()).throw(PolicyStoreError("disk full")))
        assert [office.desk.bundle_for(Agent(f"id{number}")) for number in range(1000)] == [None] * 1000
    assert [record.getMessage() for record in caplog.records] == ["agents do not get their policy: disk full"]
