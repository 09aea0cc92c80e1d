"""The agent's keeper: what it takes and refuses, what survives a crash at any instruction, and when it goes back."""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ndagent.core.spool.errors import UnknownFormat
from ndagent.policy import AGAIN_SECONDS, CRASHES, PolicyKeeper, PolicyState, World
from ndagent.policy_memory import STATE, PolicyFiles
from ndagent.wire.policy import Bundle, pack

KEY, NEXT, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)) for number in (1, 2, 3))
INFO, DEBUG, ERROR = ({"log": {"level": level}} for level in ("info", "debug", "error"))
NOW = 1_800_000_000


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def bundle(version: int, settings: dict[str, Any] = INFO, *, key: Ed25519PrivateKey = KEY, **more: Any) -> bytes:
    """Signed for the agent `me`, good for a day."""
    fields = {"audience": "me", "issued_at": NOW, "expires_at": NOW + 86400} | more
    return pack(Bundle(version=version, settings=settings, **fields), sign=key.sign)


@dataclass
class Host:
    """An agent around a keeper: what is applied, whether a collector is reached with it, and time that tests move."""

    directory: Path
    in_force: Any = None
    applied: list[Any] = field(default_factory=list)
    reaches: Callable[[Any], bool] = lambda _settings: True
    forbidden: list[Any] = field(default_factory=list)
    failing: list[Any] = field(default_factory=list)
    now: float = NOW
    seconds: float = 0.0
    probes: int = 0
    reports: list[PolicyState | None] = field(default_factory=list)
    files: Any = None
    keeper: PolicyKeeper = field(init=False)

    def start(self, *, agent_id: str = "me", key: Ed25519PrivateKey = KEY) -> "Host":
        """As a process does: load, and apply what was loaded."""
        world = World(
            check=lambda settings: ["it is forbidden"] if settings in self.forbidden else [],
            apply=self._apply,
            reaches=self._reaches,
            clock=lambda: self.now,
            monotonic=lambda: self.seconds,
            sleep=self._sleep,
            changed=lambda: self.reports.append(self.keeper.state),
        )
        files = self.files or PolicyFiles(self.directory)
        self.keeper = PolicyKeeper(agent_id=agent_id, public_key=public(key), files=files, world=world)
        self.in_force = self.keeper.load()
        return self

    async def _apply(self, settings: Any) -> None:
        if settings in self.failing:
            raise OSError("address in use")
        self.in_force = settings
        self.applied.append(settings)

    async def _reaches(self) -> bool:
        self.probes += 1
        return self.reaches(self.in_force)

    async def _sleep(self, seconds: float) -> None:
        self.seconds += seconds
        await asyncio.sleep(0)

    async def offer(self, data: bytes) -> tuple[int, str, str]:
        state = await self.keeper.offer(data)
        return state.version, state.result, state.message


@contextlib.asynccontextmanager
async def running(host: Host) -> AsyncIterator[Host]:
    """The keeper's task; simulated time passes while it is awaited."""
    task = asyncio.ensure_future(host.keeper.run())
    try:
        yield host
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], most: int = 20_000) -> None:
    """Let the loop turn until it is so."""
    for _ in range(most):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Freshly enrolled."""
    return Host(tmp_path / "policy").start()


async def kept(host: Host, data: bytes) -> None:
    """Offer a policy and let it prove itself."""
    async with running(host):
        await host.offer(data)
        await until(lambda: "trial" not in host.keeper._memory.message)


# ---- taking


async def test_the_first_policy_is_applied_tried_and_kept(host: Host) -> None:
    """With a report at each step, and still there after a restart."""
    assert (host.keeper.state, host.in_force) == (None, {})
    assert await host.offer(bundle(5)) == (5, "applied", "version 5, on trial until it has reached a collector")
    assert host.applied == [INFO]
    async with running(host):
        await until(lambda: host.keeper.state and host.keeper.state.message == "version 5")
    host.start()
    assert host.in_force == INFO
    assert host.keeper.state == PolicyState(5, "applied", "version 5", NOW)
    assert host.probes == 1


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"garbage", "not a policy bundle"),
        (bundle(9, DEBUG, key=STRANGER), "not that of the key"),
        (bundle(9, DEBUG)[:-1] + b" ", "not that of the key"),
        (bundle(9, DEBUG, audience="you"), "version 9: it is meant for another agent"),
        (bundle(4, DEBUG), "version 4: it is older than version 5"),
        (bundle(5, DEBUG), "version 5: another policy was here"),
        (bundle(9, DEBUG, expires_at=NOW - 601), "version 9: it expired"),
    ],
)
async def test_what_is_not_for_this_agent_now_is_refused(host: Host, data: bytes, why: str) -> None:
    """The settings in force stay, the refusal is reported once and is gone when the right one comes again."""
    await kept(host, bundle(5))
    before = len(host.reports)
    for _ in range(3):
        version, result, message = await host.offer(data)
        assert (version, result) == (5, "refused")
        assert why in message
    assert len(host.reports) == before + 1
    assert (host.in_force, host.applied) == (INFO, [INFO])
    assert await host.offer(bundle(5)) == (5, "applied", "version 5")


async def test_the_floor_survives_a_restart(host: Host) -> None:
    """Replaying an old bundle is of no use, one that was refused by the host included."""
    await kept(host, bundle(5))
    host.forbidden = [DEBUG]
    assert await host.offer(bundle(7, DEBUG)) == (5, "refused", "version 7: it is forbidden")
    host.start()
    assert host.in_force == INFO
    assert (await host.offer(bundle(6, ERROR)))[2] == "version 6: it is older than version 7, which was here already"


async def test_what_the_host_refused_is_judged_anew_after_a_restart(host: Host) -> None:
    """The owner changed policy_allow and started the agent, which asks without an entity tag."""
    await kept(host, bundle(5))
    host.forbidden = [DEBUG]
    await host.offer(bundle(7, DEBUG))
    host.forbidden = []
    host.start()
    assert (await host.offer(bundle(7, DEBUG)))[:2] == (7, "applied")


async def test_a_host_that_allows_less_drops_the_policy(host: Host) -> None:
    """At the next start it does not count, and the collector is told why."""
    await kept(host, bundle(5))
    host.forbidden = [INFO]
    host.start()
    assert host.in_force == {}
    assert host.keeper.state == PolicyState(0, "refused", "version 5: it is forbidden", NOW)
    assert await host.offer(bundle(5)) == (0, "refused", "version 5: it is forbidden")
    host.forbidden = []
    host.start()
    assert (await host.offer(bundle(5)))[:2] == (5, "applied")


async def test_the_same_settings_under_a_new_version_disturb_nothing(host: Host) -> None:
    """No input is started anew, no trial."""
    await kept(host, bundle(5))
    assert await host.offer(bundle(6)) == (6, "applied", "version 6")
    assert host.applied == [INFO]


async def test_settings_that_cannot_be_applied_are_refused_and_tried_again(host: Host) -> None:
    """The app changed nothing; once the address is free they are applied, nobody need send them again."""
    await kept(host, bundle(5))
    host.failing = [DEBUG]
    assert await host.offer(bundle(6, DEBUG)) == (5, "refused", "version 6: cannot be applied: address in use")
    assert (host.in_force, PolicyFiles(host.directory).load()) == (INFO, host.keeper._memory)
    async with running(host):
        await until(lambda: host.seconds > 2 * AGAIN_SECONDS)
        assert host.in_force == INFO
        host.failing = []
        await until(lambda: host.in_force == DEBUG)


async def test_another_enrolment_begins_anew(host: Host) -> None:
    """Another collector gave another id; its versions say nothing about the old one's."""
    await kept(host, bundle(5))
    host.start(agent_id="you", key=STRANGER)
    assert (host.in_force, host.keeper.state) == ({}, None)
    assert (await host.offer(bundle(1, DEBUG, key=STRANGER, audience="you")))[:2] == (1, "applied")


async def test_a_renewal_may_bring_another_key(host: Host) -> None:
    """An agent that slept through a rotation; policy and floor stay, the old key is worth nothing."""
    await kept(host, bundle(5))
    host.start(key=NEXT)
    assert (host.in_force, host.keeper.state) == (INFO, PolicyState(5, "applied", "version 5", NOW))
    assert (await host.offer(bundle(6, DEBUG, key=KEY)))[1] == "refused"
    assert (await host.offer(bundle(4, DEBUG, key=NEXT)))[1] == "refused"
    assert (await host.offer(bundle(6, DEBUG, key=NEXT)))[:2] == (6, "applied")


async def test_a_renewal_that_brings_the_key_in_use_changes_nothing(host: Host) -> None:
    """The rotation was heard of already, and another may be under way."""
    await kept(host, bundle(5, next_key=public(NEXT)))
    await kept(host, bundle(6, DEBUG, key=NEXT, next_key=public(STRANGER)))
    host.start(key=NEXT)
    assert (await host.offer(bundle(7, INFO, key=STRANGER)))[:2] == (7, "applied")


async def test_a_host_that_allows_less_while_it_runs_drops_the_policy(host: Host) -> None:
    """A reload of ndagent.yaml; the app applies what counts then."""
    await kept(host, bundle(5))
    assert host.keeper.reconsider() == INFO
    host.forbidden = [INFO]
    assert host.keeper.reconsider() == {}
    assert host.start().in_force == {}


# ---- keys


async def test_a_key_may_introduce_the_next(host: Host) -> None:
    """From the first bundle that the next key signs on, the old one is worth nothing, also after a restart."""
    await kept(host, bundle(5, next_key=public(NEXT)))
    host.start()
    assert (await host.offer(bundle(6, DEBUG)))[:2] == (6, "applied")  # a bundle without the key takes it back
    assert (await host.offer(bundle(7, key=NEXT)))[1] == "refused"
    assert (await host.offer(bundle(7, next_key=public(NEXT))))[:2] == (7, "applied")
    assert (await host.offer(bundle(8, DEBUG, key=NEXT)))[:2] == (8, "applied")
    host.start()
    assert (await host.offer(bundle(9, ERROR, key=KEY)))[1] == "refused"
    assert (await host.offer(bundle(9, ERROR, key=NEXT)))[:2] == (9, "applied")


async def test_only_a_bundle_that_is_taken_introduces_a_key(host: Host) -> None:
    """An old one that is played again must not; one whose settings the host refuses may, or rotations would stick."""
    await kept(host, bundle(5))
    await host.offer(bundle(4, next_key=public(NEXT)))
    assert (await host.offer(bundle(6, key=NEXT)))[1] == "refused"
    host.forbidden = [DEBUG]
    await host.offer(bundle(6, DEBUG, next_key=public(NEXT)))
    assert (await host.offer(bundle(7, ERROR, key=NEXT)))[:2] == (7, "applied")


# ---- trials


async def test_a_policy_that_cuts_the_agent_off_is_rolled_back(host: Host) -> None:
    """And its version is not taken again, a higher one is."""
    await kept(host, bundle(5))
    host.reaches = lambda settings: settings != DEBUG
    async with running(host):
        await host.offer(bundle(6, DEBUG))
        await until(lambda: host.keeper.state and host.keeper.state.result == "rolled_back")
        assert host.keeper.state is not None
        assert host.keeper.state.version == 5
        assert host.keeper.state.message == "version 6 does not reach a collector, version 5 does"
        assert host.applied == [INFO, DEBUG, INFO, DEBUG, INFO]
        assert (await host.offer(bundle(6, DEBUG)))[:2] == (5, "rolled_back")
        host.start()
        assert host.in_force == INFO
        assert (await host.offer(bundle(6, DEBUG)))[:2] == (5, "rolled_back")
        assert (await host.offer(bundle(7, ERROR)))[:2] == (7, "applied")


async def test_a_collector_that_is_down_rolls_nothing_back(host: Host) -> None:
    """A day without it, then the policy is kept."""
    await kept(host, bundle(5))
    host.reaches = lambda _settings: False
    async with running(host):
        await host.offer(bundle(6, DEBUG))
        await until(lambda: host.seconds > 86400, most=200_000)
        assert "rolled_back" not in [state.result for state in host.reports if state]
        host.reaches = lambda _settings: True
        await until(lambda: host.keeper.state and host.keeper.state.message == "version 6")
    assert host.in_force == DEBUG


async def test_a_higher_version_ends_a_trial(host: Host) -> None:
    """The fix for a bad policy is taken at once, and what was good stays what one goes back to."""
    await kept(host, bundle(5))
    host.reaches = lambda settings: settings == INFO
    async with running(host):
        await host.offer(bundle(6, DEBUG))
        await until(lambda: host.in_force == INFO)  # the old one is being tried
        await host.offer(bundle(7, ERROR))
        assert host.in_force == ERROR
        await until(lambda: host.keeper.state and host.keeper.state.result == "rolled_back")
    assert (host.in_force, host.start().in_force) == (INFO, INFO)


async def test_taking_back_a_policy_on_trial_needs_no_trial(host: Host) -> None:
    """The same settings as the good ones."""
    await kept(host, bundle(5))
    host.reaches = lambda settings: settings == INFO
    await host.offer(bundle(6, DEBUG))
    assert await host.offer(bundle(7, INFO)) == (7, "applied", "version 7")
    assert host.in_force == INFO
    assert not host.keeper._memory.is_on_trial


async def test_an_answer_about_other_settings_is_not_counted(host: Host) -> None:
    """A new bundle comes while a probe is under way."""
    await kept(host, bundle(5))
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow() -> bool:
        asked.set()
        await answer.wait()
        return True

    object.__setattr__(host.keeper._world, "reaches", slow)
    async with running(host):
        await host.offer(bundle(6, DEBUG))
        await asked.wait()
        asked.clear()
        await host.offer(bundle(7, ERROR))
        answer.set()
        answer.clear()
        await asked.wait()
        assert host.keeper._memory.is_on_trial
        answer.set()
        await until(lambda: not host.keeper._memory.is_on_trial)
    assert host.keeper._good is not None
    assert host.keeper._good.version == 7


@pytest.mark.parametrize("failing", [INFO, DEBUG], ids=["the old one", "the new one again"])
async def test_settings_that_cannot_be_put_back_do_not_end_the_keeper(host: Host, failing: Any) -> None:
    """Without the old one the new one goes on; without the new one the old."""
    await kept(host, bundle(5))
    host.reaches = lambda settings: settings == INFO
    async with running(host):
        await host.offer(bundle(6, DEBUG))
        host.failing = [failing]
        if failing == INFO:
            await until(lambda: host.seconds > 1000)
            assert (host.in_force, host.keeper.state and host.keeper.state.version) == (DEBUG, 6)
            host.failing = []
        await until(lambda: host.keeper.state and host.keeper.state.result == "rolled_back")
    assert host.in_force == INFO


# ---- crashes


async def test_a_policy_that_ends_the_process_is_rolled_back(host: Host) -> None:
    """After some starts the old one is asked first; when the new one crashes again, the old one is confirmed."""
    await kept(host, bundle(5))
    host.reaches = lambda settings: settings == INFO
    await host.offer(bundle(6, DEBUG))
    for start in range(1, CRASHES):
        assert host.start().in_force == DEBUG, start
    assert host.start().in_force == INFO
    async with running(host):
        await until(lambda: host.in_force == DEBUG)  # the second chance; it ends the process
    assert host.start().in_force == INFO
    async with running(host):
        await until(lambda: host.keeper.state and host.keeper.state.result == "rolled_back")


async def test_clean_stops_are_no_crashes(host: Host) -> None:
    """A host that is restarted every day during a collector's outage keeps its new policy."""
    await kept(host, bundle(5))
    await host.offer(bundle(6, DEBUG))
    for _ in range(3 * CRASHES):
        host.keeper.stopped()
        assert host.start().in_force == DEBUG


async def test_a_damaged_state_is_set_aside(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """The agent runs with its own settings and takes the next bundle."""
    await kept(host, bundle(5))
    for damage in (b"", b"{", b"[]", b"7", b'"x"', b'{"format": 0}', b'{"format": 1, "agent_id": 7}'):
        (host.directory / STATE).write_bytes(damage)
        assert host.start().in_force == {}
    assert (host.directory / "state.damaged").exists()
    assert "policies begin anew" in caplog.text
    assert (await host.offer(bundle(5)))[:2] == (5, "applied")


async def test_the_state_of_a_later_version_is_refused_and_kept(host: Host) -> None:
    """Begun anew, an older policy could be put in force again."""
    await kept(host, bundle(5))
    (host.directory / STATE).write_bytes(b'{"format": 9, "floor": "what we do not know"}')
    with pytest.raises(UnknownFormat, match="policy format 9, this program reads up to 1"):
        host.start()
    assert (host.directory / STATE).read_bytes().startswith(b'{"format": 9')


@pytest.mark.parametrize("is_gone", [True, False])
async def test_a_bundle_that_is_gone_or_damaged_is_fetched_again(host: Host, is_gone: bool) -> None:
    """Under the same version."""
    await kept(host, bundle(5))
    (path,) = host.directory.glob("*.bundle")
    path.unlink() if is_gone else path.write_bytes(path.read_bytes()[:-1])
    assert host.start().in_force == {}
    assert (await host.offer(bundle(5)))[:2] == (5, "applied")
    assert host.start().in_force == INFO


async def test_a_full_disk_refuses_the_policy_and_changes_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in force that would not be there after a restart."""
    await kept(host, bundle(5))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        version, result, message = await host.offer(bundle(6, DEBUG))
    assert (version, result) == (5, "refused")
    assert "No space left" in message
    assert (host.in_force, host.start().in_force) == (INFO, INFO)


async def test_files_that_no_state_names_are_removed(host: Host) -> None:
    """Two bundles at most: the one on trial and the good one."""
    for version, settings in enumerate([INFO, DEBUG, ERROR, INFO, DEBUG], 1):
        await host.offer(bundle(version, settings))
        assert len(list(host.directory.glob("*.bundle"))) <= 2
    await kept(host, bundle(9, ERROR))
    assert len(list(host.directory.glob("*.bundle"))) == 1
    assert json.loads((host.directory / STATE).read_bytes())["good"].startswith("9-")


class Crash(BaseException):
    """The process ends here."""


class CrashingFiles(PolicyFiles):
    """Ends the process at the n-th write, before or after it."""

    def __init__(self, directory: Path, *, at: int, after: bool) -> None:
        super().__init__(directory)
        self._left, self._after = at, after

    def _write(self, name: str, content: bytes) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Crash
        super()._write(name, content)
        if self._left == 0:
            raise Crash


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("after", [False, True])
async def test_a_crash_while_taking_a_policy_leaves_the_old_or_the_new(host: Host, at: int, after: bool) -> None:
    """At each write, before and after it; either way the next offer works."""
    await kept(host, bundle(5))
    host.files = CrashingFiles(host.directory, at=at, after=after)
    host.start()
    with pytest.raises(Crash):
        await host.offer(bundle(6, DEBUG))
    host.files = None
    assert host.start().in_force == (DEBUG if (at, after) == (2, True) else INFO)
    assert (await host.offer(bundle(6, DEBUG)))[:2] == (6, "applied")
    assert len(list(host.directory.glob("*.bundle"))) == 2


# ---- any order of events


LEVELS = (INFO, DEBUG, ERROR)


class Life(RuleBasedStateMachine):
    """Offers, restarts, outages and time in any order."""

    directory: Path

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.highest = 0
        self.bad: list[Any] = []
        self.is_up = True

    @initialize()
    def begin(self) -> None:
        self.host = Host(Path(tempfile.mkdtemp(dir=self.directory))).start()
        self.host.reaches = lambda settings: self.is_up and settings not in self.bad

    def _run(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    @rule(step=st.integers(-2, 3), settings=st.sampled_from(LEVELS), key=st.sampled_from([KEY, KEY, KEY, STRANGER]))
    def offer(self, step: int, settings: Any, key: Ed25519PrivateKey) -> None:
        version = max(1, self.highest + step)
        before = self.host.in_force
        version_before = self.host.keeper._version
        state = self._run(self.host.keeper.offer(bundle(version, settings, key=key)))
        if key is STRANGER or version < self.highest:
            assert state.result in ("refused", "rolled_back")
            assert (self.host.in_force, state.version) == (before, version_before)
        elif version > self.highest:
            assert (state.version, state.result, self.host.in_force) == (version, "applied", settings)
            self.highest = version

    @rule(bad=st.lists(st.sampled_from(LEVELS), max_size=2))
    def break_settings(self, bad: list[Any]) -> None:
        self.bad = bad

    @rule(is_up=st.booleans())
    def collector(self, is_up: bool) -> None:
        self.is_up = is_up

    @rule(count=st.integers(1, 200))
    def let_time_pass(self, count: int) -> None:
        async def some() -> None:
            async with running(self.host):
                await turns(3 * count)

        self._run(some())

    @rule()
    def crash_and_start(self) -> None:
        self.host.start()

    @rule()
    def stop_and_start(self) -> None:
        self.host.keeper.stopped()
        self.host.start()

    @invariant()
    def what_is_reported_is_what_is_in_force(self) -> None:
        if not hasattr(self, "host"):
            return
        keeper = self.host.keeper
        assert keeper._in_force == self.host.in_force
        assert keeper._version <= self.highest
        stored = PolicyFiles(self.host.directory).load()
        assert stored is None or stored.floor_version == self.highest
        assert stored is None or stored == keeper._memory

    def teardown(self) -> None:
        self.loop.close()


def test_any_order_of_events_keeps_the_promises(tmp_path: Path) -> None:
    """Nothing below the highest version comes into force, and memory, disk and report always agree."""
    machine = type("LifeHere", (Life,), {"directory": tmp_path})
    run_state_machine_as_test(machine, settings=hypothesis_settings(max_examples=60, stateful_step_count=30))
