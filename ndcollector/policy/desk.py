"""The daemon's side of policy: hands each agent its signed bundle, and tells the inputs when there are new ones.

    desk.bundle_for(agent) → (etag, bytes)     on SUBSCRIBE to …/policy, on GET /agents/v1/policy
    desk.subscribe(changed)                    called on the loop with the id of each agent that has another bundle now

Promises: a policy that the command applied is picked up within a second; bundles are made and signed when first asked
for and kept (CACHE_BYTES); one that lives on is signed anew at half its lifetime under the same entity tag; a bundle is
handed out only after its version is on disk. What agents report is kept within FLUSH_SECONDS, in a thread.
Refuses: transports, and judging agents: an agent's report is shown, nothing more.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ndagent.core.log import Throttle
from ndagent.core.waiting import first
from ndagent.core.watching import changes
from ndagent.wire.policy import BadBundle, Bundle, pack
from ndcollector.pki.store import PkiError
from ndcollector.policy.applying import Agent, Resolver
from ndcollector.policy.keys import PolicyKeys
from ndcollector.policy.layers import AgentFacts
from ndcollector.policy.store import PolicyStore, PolicyStoreError, Report, Row, Superseded

log = logging.getLogger(__name__)

CACHE_BYTES = 32 << 20
FLUSH_SECONDS = 0.5
MAX_REPORTS = 10_000
"""Reports that wait to be kept; beyond, an agent's next one must do."""
MAX_WAITING = 100_000
"""Agents that asked before anything was applied, and are told when it is."""
_LOOK_EVERY_SECONDS = 10.0  # where the kernel does not tell of changed files
_MESSAGE_CHARACTERS = 500


class Reported(Protocol):
    """An agent's word on its policy (wire/status.py has it)."""

    @property
    def version(self) -> int:
        """The version in force."""

    @property
    def result(self) -> str:
        """What became of the last one it was sent: applied, refused, rolled_back."""

    @property
    def message(self) -> str:
        """Why, for people."""


@dataclass(frozen=True, slots=True)
class _Signed:
    agent: Agent
    etag: str
    data: bytes
    renew_at: float


@dataclass(frozen=True, slots=True)
class _State:
    """What is being handed out: one apply, and the keys as they were when it was read."""

    version: int
    resolver: Resolver
    key: Ed25519PrivateKey


class PolicyDesk:
    """One per collector; `run` it as long as the collector runs. Use it on the loop only."""

    def __init__(
        self,
        store: PolicyStore,
        keys: PolicyKeys,
        *,
        lifetime_seconds: float,
        clock: Callable[[], float],
        inventory: Callable[[], Iterable[AgentFacts]] = tuple,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._store = store
        self._inventory = inventory
        self._keys = keys
        self._lifetime = lifetime_seconds
        self._clock = clock
        self._cache_bytes = cache_bytes
        self._state: _State | None = None
        self._rows: dict[str, Row] = {}
        self._cache: OrderedDict[str, _Signed] = OrderedDict()
        self._cached_bytes = 0
        self._waiting: dict[str, Agent] = {}
        self._subscribers: dict[object, Callable[[str], None]] = {}
        self._reports: dict[str, tuple[Report, int]] = {}
        self._reported = asyncio.Event()
        self._throttle = Throttle(60.0, clock=clock)

    def load(self) -> bool:
        """Read what was applied, if it is not here yet; whether it was new. Raises PolicyStoreError, PkiError.

        Agents of the inventory that have not asked yet get their versions here, in one commit.
        """
        version = self._store.applied_version()
        if version == (self._state.version if self._state else 0):
            return False
        latest = self._store.latest()
        if latest is None:
            return False
        resolver = Resolver(latest.policies, self._keys.next_public_key())
        self._state = _State(latest.version, resolver, self._keys.signing_key())
        self._rows = self._store.rows()
        self._cache.clear()
        self._cached_bytes = 0
        with suppress(Superseded):  # applied this moment; the watch tells again
            self._assign([*map(Agent.of, self._inventory()), *self._waiting.values()])
            self._waiting.clear()
        return True

    def bundle_for(self, agent: AgentFacts) -> tuple[str, bytes] | None:
        """The agent's entity tag and signed bundle; None while nothing was applied or it cannot be made (logged).

        Cheap when it is in the cache; else a signature (50 µs), and for an agent that is new or has moved a commit.
        """
        facts = Agent.of(agent)
        if self._state is None:
            if len(self._waiting) < MAX_WAITING:
                self._waiting[facts.id] = facts
            return None
        found = self._cache.get(facts.id)
        if found is not None and found.agent == facts and self._clock() < found.renew_at:
            self._cache.move_to_end(facts.id)
            return found.etag, found.data
        try:
            signed = self._sign(facts)
        except (PolicyStoreError, PkiError, BadBundle) as error:
            if self._throttle.allow(str(error)) is not None:
                log.error("agents do not get their policy: %s", error)
            return None
        self._keep(signed)
        return signed.etag, signed.data

    def subscribe(self, changed: Callable[[str], None]) -> Callable[[], None]:
        """Have `changed` called with each agent's id that may have another bundle; what is returned ends that."""
        token = object()
        self._subscribers[token] = changed

        def unsubscribe() -> None:
            self._subscribers.pop(token, None)

        return unsubscribe

    def agents_changed(self) -> None:
        """The inventory moved agents to other groups: they may have new bundles."""
        before = self._versions()
        try:
            if self._state is not None:
                self._assign(map(Agent.of, self._inventory()))
        except (PolicyStoreError, Superseded) as error:  # each of them is looked at again when it asks
            log.warning("agents that were moved are assigned one by one: %r", error)
        self._tell(before)

    def _versions(self) -> dict[str, tuple[int, str]]:
        return {agent_id: (row.version, row.digest) for agent_id, row in self._rows.items()}

    def _tell(self, before: Mapping[str, tuple[int, str]]) -> None:
        """Everybody who wants to know, of every agent whose row is another than before."""
        changed = [agent_id for agent_id, now in self._versions().items() if before.get(agent_id) != now]
        for callback in list(self._subscribers.values()):
            try:
                for agent_id in changed:
                    callback(agent_id)
            except Exception:
                log.exception("telling of a new policy failed, agents get it when they ask; please report this")

    def reported(self, agent_id: str, report: Reported) -> None:
        """Note what an agent says about its policy."""
        row = self._rows.get(agent_id)
        new = Report(report.version, report.result, report.message[:_MESSAGE_CHARACTERS])
        if row is None or row.report == new or (len(self._reports) >= MAX_REPORTS and agent_id not in self._reports):
            return
        now = int(self._clock())
        self._rows[agent_id] = Row(row.agent, row.version, row.digest, new, now)
        self._reports[agent_id] = new, now
        self._reported.set()

    def forget(self, agent_id: str) -> None:
        """The agent was removed from the inventory. Raises PolicyStoreError."""
        self._store.forget(agent_id)
        self._rows.pop(agent_id, None)
        self._reports.pop(agent_id, None)
        self._drop(agent_id)

    async def run(self) -> None:
        """Pick up what is applied and keep what is reported, until cancelled."""
        try:
            await first(self._watch(), self._flush())
        finally:
            self._flush_now()

    async def _watch(self) -> None:
        directory = self._store.directory
        told = changes(lambda: [directory, directory.parent], look_every_seconds=_LOOK_EVERY_SECONDS)
        async with aclosing(told):
            while True:
                self._look()
                await anext(told)

    def _look(self) -> None:
        before = self._versions()
        try:
            if self.load():
                log.info("policy: version %s is handed out", self._there.version)
                self._tell(before)
        except (PolicyStoreError, PkiError) as error:
            if self._throttle.allow(str(error)) is not None:
                log.error("what was applied cannot be read, agents keep their policy: %s", error)

    async def _flush(self) -> None:
        while True:
            await self._reported.wait()
            await asyncio.sleep(FLUSH_SECONDS)
            self._reported.clear()
            await asyncio.to_thread(self._flush_now)

    def _flush_now(self) -> None:
        reports, self._reports = self._reports, {}
        if not reports:
            return
        try:
            self._store.report(reports)
        except PolicyStoreError as error:
            if self._throttle.allow("reports") is not None:
                log.warning("what agents report of their policy is not kept: %s", error)

    # ---- making bundles

    def _sign(self, agent: Agent) -> _Signed:
        try:
            return self._signed(agent)
        except Superseded:  # applied a moment ago, the watch has not told yet
            self.load()
            return self._signed(agent)

    def _signed(self, agent: Agent) -> _Signed:
        state = self._there
        self._assign([agent])
        wanted, row = state.resolver.wanted(agent), self._rows[agent.id]
        now = int(self._clock())
        bundle = Bundle(
            audience=agent.id,
            version=row.version,
            issued_at=now,
            expires_at=now + int(self._lifetime),
            settings=wanted.settings,
            layers=wanted.layers,
            next_key=state.resolver.next_key,
        )
        return _Signed(agent, bundle.etag, pack(bundle, sign=state.key.sign), now + self._lifetime / 2)

    @property
    def _there(self) -> _State:
        assert self._state is not None  # noqa: S101 - bundle_for asked, and what was applied does not go away
        return self._state

    def _assign(self, agents: Iterable[Agent]) -> None:
        """Have a row for each of them that is right, on disk and here. Raises Superseded, PolicyStoreError."""
        state = self._there
        wanted = {agent: state.resolver.wanted(agent).digest for agent in agents}
        stale = {agent: digest for agent, digest in wanted.items() if not self._is_assigned(agent, digest)}
        if stale:
            self._rows |= self._store.assign(stale, applied=state.version, now=self._clock())

    def _is_assigned(self, agent: Agent, digest: str) -> bool:
        row = self._rows.get(agent.id)
        return row is not None and row.digest == digest and row.agent == agent

    def _keep(self, signed: _Signed) -> None:
        self._drop(signed.agent.id)
        self._cache[signed.agent.id] = signed
        self._cached_bytes += len(signed.data)
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= len(oldest.data)

    def _drop(self, agent_id: str) -> None:
        found = self._cache.pop(agent_id, None)
        if found is not None:
            self._cached_bytes -= len(found.data)
