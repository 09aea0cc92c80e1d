"""Joins policy to the running agent: configuration = ndagent.yaml with the policy in force laid over it.

Promises: the keeper is that of whoever this agent is now; a policy that would not make a valid configuration is refused
like one that the host does not allow; what transports bring is taken one at a time in a task of its own, the newest
only, because taking it may close the very connection that brought it; one that this host did not allow is looked at
again whenever ndagent.yaml changes, since no transport brings again what it has brought.
Refuses: carrying out a changed configuration (app.py does), rules (policy.py, policy_check.py).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from ndagent.config import AgentConfig
from ndagent.core.plugs import PlugTypes
from ndagent.core.waiting import first
from ndagent.core.yaml_file import ConfigError
from ndagent.identity import Identity
from ndagent.inputs import INPUTS
from ndagent.policy import PolicyKeeper, World
from ndagent.policy_check import why_refused
from ndagent.policy_memory import PolicyFiles
from ndagent.policy_paths import PathGuard
from ndagent.wire.policy import KEY_BYTES
from ndagent.wire.status import PolicyStatus

_TYPES = PlugTypes("input", INPUTS)
_REACH_SECONDS = 15.0

Load = Callable[[Mapping[str, Any]], AgentConfig]
"""ndagent.yaml as it is now with these settings over it; raises ConfigError."""


class PolicyLink:
    """One per agent. `look` at start and whenever the identity changed; `run` as long as the agent runs."""

    def __init__(
        self,
        state_dir: Path,
        *,
        load: Load,
        apply: Callable[[AgentConfig], Awaitable[None]],
        report: Callable[[], Awaitable[bool]],
    ) -> None:
        """`apply` changes the running agent or raises and changes nothing; `report` tells whether a collector heard."""
        self._directory = state_dir / "policy"
        self._state_dir = state_dir
        self._load = load
        self._apply = apply
        self._report = report
        self._keeper: PolicyKeeper | None = None
        self._identity: tuple[str, bytes] | None = None
        self._offered: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._latest = b""  # that was looked at
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self._settings: Mapping[str, Any] = {}
        self._guarded: frozenset[str] = frozenset()  # inputs that run, or are about to, because a policy said so
        self._guard = PathGuard((), own_directories=[state_dir])  # of the ndagent.yaml that was judged by last

    @property
    def settings(self) -> Mapping[str, Any]:
        """The policy in force; {} without one."""
        return self._settings

    def look(self, identity: Identity | None) -> bool:
        """Take over what was kept for this identity; whether other settings count now. Reads the disk."""
        known = (identity.agent_id, identity.policy_key) if identity and len(identity.policy_key) == KEY_BYTES else None
        if known == self._identity:
            return False
        self.stopped()
        before, self._identity, self._latest = self._settings, known, b""
        self._keeper = self._make_keeper(*known) if known else None
        self._settings = self._keeper.load() if self._keeper else {}
        self._guarded |= _inputs(self._settings)
        self._changed.set()
        return self._settings != before

    def why_not_read(self, name: str, descriptor: int) -> str | None:
        """InputContext.guard: the host's own inputs may read what they like, a policy's what the host allows."""
        return self._guard.why_not_opened(descriptor) if name in self._guarded else None

    def status(self) -> PolicyStatus | None:
        """For the status report."""
        state = self._keeper.state if self._keeper else None
        return PolicyStatus(state.version, state.result, state.message) if state else None

    async def offer(self, data: bytes) -> None:
        """Take what a transport brought, soon; what has not been looked at yet is forgotten for it."""
        if self._offered.full():
            self._offered.get_nowait()
        self._offered.put_nowait(data)

    def reconsider(self) -> None:
        """ndagent.yaml changed: a policy that it no longer allows does not count, one that it allows now may."""
        if self._keeper is None:
            return
        self._settings = self._keeper.reconsider()
        is_refused = self._keeper.state is not None and self._keeper.state.result == "refused"
        if is_refused and self._latest and self._offered.empty():
            self._offered.put_nowait(self._latest)

    def taken_up(self) -> None:
        """The inputs that run are those of `settings` now; until then those of before are judged as a policy's, too."""
        self._guarded = _inputs(self._settings)

    async def run(self) -> None:
        """Take policies and bring their trials to an end, until cancelled."""
        while True:
            self._changed.clear()
            keeper = self._keeper
            work = [self._take(keeper), keeper.run(), self._tell()] if keeper else []
            await first(self._changed.wait(), *work)

    def stopped(self) -> None:
        """The agent stops as it should."""
        if self._keeper is not None:
            self._keeper.stopped()

    # ---- inside

    async def _take(self, keeper: PolicyKeeper) -> None:
        while True:
            self._latest = await self._offered.get()
            await keeper.offer(self._latest)

    async def _tell(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._report()

    def _make_keeper(self, agent_id: str, public_key: bytes) -> PolicyKeeper:
        world = World(
            check=self._check,
            apply=self._put_in_force,
            reaches=self._reaches,
            clock=time.time,
            monotonic=time.monotonic,
            changed=self._news.set,
        )
        return PolicyKeeper(agent_id=agent_id, public_key=public_key, files=PolicyFiles(self._directory), world=world)

    def _check(self, settings: Mapping[str, Any]) -> list[str]:
        try:
            own = self._load({})
            self._guard = PathGuard(own.policy_allow.paths, own_directories=[self._state_dir])
            reasons = why_refused(
                settings,
                allow=own.policy_allow,
                guard=self._guard,
                config_of=_TYPES.config,
                own_inputs={name: str(getattr(one, "type", name)) for name, one in own.inputs.items()},
            )
            if not reasons:
                self._load(settings)
        except ConfigError as error:
            return [str(fault) for fault in error.faults]
        return reasons

    async def _put_in_force(self, settings: Mapping[str, Any]) -> None:
        before, self._settings = self._settings, settings
        self._guarded |= _inputs(settings)
        try:
            await self._apply(self._load(settings))
        except BaseException:
            self._settings = before
            raise
        self.taken_up()

    async def _reaches(self) -> bool:
        try:
            async with asyncio.timeout(_REACH_SECONDS):
                return await self._report()
        except TimeoutError:
            return False


def _inputs(settings: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(settings.get("inputs", {}))
