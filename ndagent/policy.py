"""The agent's side of policy: takes signed bundles, applies what this host allows, and goes back if that cuts it off.

    offer(bundle) ─► signature ─► audience, version, expiry ─► policy_allow ─► on disk ─► apply ─► trial ─► kept
                         │                 │                       │                       │         └──► rolled back
                         └─────────────────┴── refused, and the settings in force stay ────┘

Promises:
  * nothing is applied that was not signed by the key from enrolment (or one that it introduced), for this agent, above
    every version that was ever here, in time, and within `policy_allow`; a policy is applied whole or not at all;
  * the state on disk is written before the settings are applied, so a crash at any instruction comes back with a policy
    that was accepted; one that crashes the agent is tried against the old one after CRASHES starts;
  * the last good policy is kept until another has reached a collector; see policy_trial.py for when it comes back.

Refuses: transports (they call `offer` with what arrives, as often as it does), and knowing how settings are applied:
`apply` is the app's, and changes either everything or nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from ndagent.core import messages
from ndagent.ed25519 import is_signed
from ndagent.policy_memory import Memory, PolicyFiles
from ndagent.policy_trial import Phase, Trial, TrialTimes
from ndagent.wire.policy import BadBundle, Bundle, open_bundle, settings_digest, why_not_adopted

log = logging.getLogger(__name__)

CRASHES = 3
PROBE_SECONDS = 5.0
AGAIN_SECONDS = 300.0
"""Between tries of a policy that could not be applied (a full disk, an address in use)."""
_MESSAGE_CHARACTERS = 500

Settings = Mapping[str, Any]
Result = Literal["applied", "refused", "rolled_back"]


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What the agent reports: the version in force (0: none), and what became of the last bundle that was offered."""

    version: int
    result: Result
    message: str
    since: int


@dataclass(frozen=True, slots=True)
class World:
    """What the keeper needs of the agent around it.

    check: settings → reasons against them (policy_check.why_refused); apply: makes settings ({}: no policy) those in
    force, or raises and changes nothing; reaches: whether a collector is reached with the settings in force, asked for
    anew each time; changed: called when there is something new to report. clock: Unix seconds.
    """

    check: Callable[[Settings], list[str]]
    apply: Callable[[Settings], Awaitable[None]]
    reaches: Callable[[], Awaitable[bool]]
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    changed: Callable[[], None] = lambda: None


class PolicyKeeper:
    """One per agent. `load` first, then `offer` at any time, while `run` runs."""

    def __init__(
        self, *, agent_id: str, public_key: bytes, files: PolicyFiles, world: World, times: TrialTimes | None = None
    ) -> None:
        self._agent_id = agent_id
        self._files = files
        self._world = world
        self._times = times or TrialTimes()
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._trial: Trial | None = None
        enrolled = public_key.hex()
        self._memory = Memory(agent_id, enrolled, enrolled)
        self._active: Bundle | None = None
        self._good: Bundle | None = None
        self._again: bytes | None = None

    # ---- what the app asks

    def load(self) -> Settings:
        """The settings to start with, {} for none; never raises. Another agent id begins anew."""
        found = self._files.load()
        if found is None or found.agent_id != self._agent_id:
            return {}
        found = _with_key(found, self._memory.enrolled_key)
        self._good = self._files.get(found.good) if found.good else None
        self._active = self._files.get(found.active) if found.active and found.is_on_trial else self._good
        if self._active is None:
            self._active = self._good  # its file is gone; what is good goes on, and what comes is judged anew
        is_on_trial = self._active is not self._good
        good = found.good if self._good else ""
        self._memory = replace(found, good=good, active=found.active if is_on_trial else good)
        reasons = self._world.check(self._in_force)
        if reasons:
            self._drop(reasons)
        elif is_on_trial:
            self._resume_trial()
        return self._in_force

    def reconsider(self) -> Settings:
        """The host's rules changed: drop a policy that they do not allow; returns the settings that count now."""
        if self._in_force and (reasons := self._world.check(self._in_force)):
            self._trial = None
            self._drop(reasons)
        return self._in_force

    def stopped(self) -> None:
        """The agent stops as it should: what it does after the next start is no sign of a crash."""
        if self._memory.is_on_trial:
            self._save(replace(self._memory, starts=0, is_confirming=False))

    @property
    def state(self) -> PolicyState | None:
        """What to report; None while there never was a policy."""
        if not self._memory.result:
            return None
        result = cast("Result", self._memory.result)
        return PolicyState(self._version, result, self._memory.message, self._memory.since)

    async def offer(self, data: bytes) -> PolicyState:
        """Take a bundle, or refuse it; returns what to report. Never raises."""
        async with self._lock:
            self._again = None
            await self._offer(data)
        state = self.state
        assert state is not None  # noqa: S101 - every way through _offer leaves a result
        return state

    async def run(self) -> None:
        """Bring trials to their end, and try again what could not be applied, until cancelled."""
        while True:
            trial, again = self._trial, self._again
            if again is not None and trial is None:
                await self._world.sleep(AGAIN_SECONDS)
                if self._again is again:
                    await self.offer(again)
                continue
            if trial is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            phase = trial.phase
            reached = await self._world.reaches()
            async with self._lock:
                if self._trial is trial and trial.phase is phase:  # else the answer is about other settings
                    await self._go_on(trial, reached=reached)
            await self._world.sleep(PROBE_SECONDS)

    # ---- taking a bundle

    async def _offer(self, data: bytes) -> None:
        try:
            bundle, memory = self._authentic(data)
        except BadBundle as error:
            self._refuse(self._memory, f"not a policy for this agent: {error}")
            return
        reason = why_not_adopted(bundle, agent_id=self._agent_id, floor=self._memory.floor, now=self._world.clock())
        if reason is not None:
            self._refuse(self._memory, f"version {bundle.version}: {reason}")
            return
        memory = replace(memory, floor_version=bundle.version, floor_digest=bundle.digest)
        if bundle.version == memory.rejected:
            return  # it was rolled back; the report says so already
        if self._active is not None and bundle.etag == self._active.etag:
            self._note_again(bundle)
            return
        memory = replace(memory, rejected=0)
        reasons = self._world.check(bundle.settings)
        if reasons:
            self._refuse(memory, f"version {bundle.version}: {'; '.join(reasons)}")
        else:
            await self._adopt(data, bundle, memory)

    def _authentic(self, data: bytes) -> tuple[Bundle, Memory]:
        """The bundle, and the memory with the keys that count once it is taken; raises BadBundle."""
        memory, signer = self._memory, ""

        def verify(signature: bytes, message: bytes) -> bool:
            nonlocal signer
            keys = [key for key in (memory.key, memory.next_key) if key]
            signer = next((key for key in keys if is_signed(bytes.fromhex(key), signature, message)), "")
            return bool(signer)

        bundle = open_bundle(data, verify=verify)
        next_key = bundle.next_key.hex() if bundle.next_key else ""
        return bundle, replace(memory, key=signer, next_key=next_key)

    def _refuse(self, memory: Memory, message: str) -> None:
        """The settings in force stay."""
        if (memory.result, memory.message) != ("refused", message[:_MESSAGE_CHARACTERS]) or memory != self._memory:
            log.error("policy refused: %s", message, extra=messages.POLICY_REFUSED)
            self._save(self._with(memory, "refused", message))

    def _note_again(self, bundle: Bundle) -> None:
        """What is in force came once more; if something else was refused, that is over."""
        if self._memory.result == "refused":
            self._save(self._with(self._memory, "applied", f"version {bundle.version}"))

    async def _adopt(self, data: bytes, bundle: Bundle, memory: Memory) -> None:
        """On disk first, then in force; back to what was if either fails."""
        before = self._memory, self._active, self._good, self._trial
        in_force = self._in_force
        is_proven = _is_same(bundle.settings, self._good.settings if self._good else {})
        message = f"version {bundle.version}" + ("" if is_proven else ", on trial until it has reached a collector")
        try:
            name = self._files.put(data, version=bundle.version)
            new = replace(memory, active=name, good=name if is_proven else memory.good, starts=0, is_confirming=False)
            self._files.save(self._with(new, "applied", message))
            self._memory, self._active, self._trial = self._with(new, "applied", message), bundle, None
            self._good = bundle if is_proven else self._good
            if not _is_same(in_force, bundle.settings):
                await self._world.apply(bundle.settings)
        except Exception as error:  # noqa: BLE001 - a full disk, or whatever an input's start may raise
            old, self._active, self._good, self._trial = before
            old = replace(old, floor_version=memory.floor_version, floor_digest=memory.floor_digest, rejected=0)
            self._again = data
            self._wake.set()
            message = f"version {bundle.version}: cannot be applied: {error}"
            self._refuse(replace(old, key=memory.key, next_key=memory.next_key), message)
            return
        log.info("policy version %s is in force", bundle.version, extra=messages.POLICY_IN_FORCE)
        if not is_proven:
            self._begin_trial(Phase.NEW)
        self._world.changed()

    # ---- the trial

    def _resume_trial(self) -> None:
        """After a start. A policy that ended the process several times is not given the first word again."""
        starts = self._memory.starts + 1
        phase = Phase.OLD if starts >= CRASHES else Phase.NEW
        self._begin_trial(Phase.OLD_AGAIN if self._memory.is_confirming else phase)
        self._save(replace(self._memory, starts=starts))

    def _begin_trial(self, phase: Phase) -> None:
        self._trial = Trial(self._times, now=self._world.monotonic(), phase=phase)
        self._wake.set()

    async def _go_on(self, trial: Trial, *, reached: bool) -> None:
        used_old = trial.uses_old
        trial.tell(reached=reached, now=self._world.monotonic())
        is_confirming = trial.phase is Phase.NEW_AGAIN
        if is_confirming != self._memory.is_confirming and not trial.is_over:
            self._save(replace(self._memory, is_confirming=is_confirming))
        if trial.uses_old != used_old and not await self._switch():
            trial.could_not_switch(self._world.monotonic())
        if trial.is_over:
            self._settle(keep=trial.phase is Phase.KEPT)

    async def _switch(self) -> bool:
        """Put in force what the trial's phase wants; whether it worked."""
        log.warning("on trial: policy version %s is put in force, to see whether it reaches a collector", self._version)
        try:
            await self._world.apply(self._in_force)
        except Exception as error:  # noqa: BLE001 - whatever an input's start may raise
            log.error(
                "policy version %s cannot be put in force: %s", self._version, error,
                extra=messages.POLICY_REFUSED,
            )
            return False
        self._world.changed()
        return True

    def _settle(self, *, keep: bool) -> None:
        """End the trial with the policy that is in force."""
        memory, version = self._memory, self._active.version if self._active else 0
        self._trial = None
        memory = replace(memory, starts=0, is_confirming=False)
        if keep:
            self._good = self._active
            log.info("policy version %s reached a collector and is kept", version, extra=messages.POLICY_IN_FORCE)
            self._save(self._with(replace(memory, good=memory.active), "applied", f"version {version}"))
            return
        self._active = self._good
        message = f"version {version} does not reach a collector, version {self._version} does"
        log.error("policy rolled back: %s", message, extra=messages.POLICY_ROLLED_BACK)
        self._save(self._with(replace(memory, active=memory.good, rejected=version), "rolled_back", message))

    # ---- small parts

    @property
    def _current(self) -> Bundle | None:
        return self._good if self._trial is not None and self._trial.uses_old else self._active

    @property
    def _in_force(self) -> Settings:
        return self._current.settings if self._current is not None else {}

    @property
    def _version(self) -> int:
        return self._current.version if self._current is not None else 0

    def _drop(self, reasons: list[str]) -> None:
        """This host allows less than it did."""
        version = self._active.version if self._active else 0
        self._active = self._good = None
        log.error(
            "policy version %s is no longer allowed here and does not count: %s", version, "; ".join(reasons),
            extra=messages.POLICY_REFUSED,
        )
        memory = replace(self._memory, active="", good="", starts=0, is_confirming=False)
        self._save(self._with(memory, "refused", f"version {version}: {'; '.join(reasons)}"))

    def _with(self, memory: Memory, result: Result, message: str) -> Memory:
        return replace(memory, result=result, message=message[:_MESSAGE_CHARACTERS], since=int(self._world.clock()))

    def _save(self, memory: Memory) -> None:
        """Keep it; where the disk does not take it, it counts until the process ends."""
        self._memory = memory
        try:
            self._files.save(memory)
        except OSError as error:
            log.error("the policy's state cannot be written and will be lost with the next start: %s", error)
        self._world.changed()


def _with_key(memory: Memory, told: str) -> Memory:
    """With the key that the collector told last, at enrolment or renewal.

    Told the same as before, or one that a bundle introduced, it changes nothing; another one takes the place of both.
    """
    if told == memory.enrolled_key or told in (memory.key, memory.next_key):
        return replace(memory, enrolled_key=told)
    return replace(memory, enrolled_key=told, key=told, next_key="")


def _is_same(one: Settings, other: Settings) -> bool:
    return settings_digest(one) == settings_digest(other)
