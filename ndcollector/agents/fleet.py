"""The collector's knowledge of its agents, as inputs use it: whom to let in, what to note, whom to suspect.

Promises:
  * `admit` answers from memory; only a spool id that nobody has registered costs a write, which is durable before the
    answer. A revoked or unknown agent, and the spool of another one, is refused with a reason of a closed set;
  * what a command changed (`ndcollector agents revoke` …) counts within `LOOK_SECONDS`;
  * `seen` costs no I/O: what was heard is written every `WRITE_SECONDS` together. A crash loses that much of "last
    seen" and nothing else: enrolments and spool ids are on the disk before anybody is told;
  * an agent that must be two processes is flagged once, at ERROR, audited and counted (clones.py), and still taken;
  * memory holds one small record for each agent (agents.max_agents), and reports waiting to be written are bounded.
Refuses: protocols. Identity comes from the certificate, and the input is who read that.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.wire.enrolment import Endpoints, Reason
from ndagent.wire.status import AgentStatus, is_run_id, is_spool_id
from ndcollector.agents.config import AgentsConfig
from ndcollector.agents.database import Database
from ndcollector.agents.enrolment import Enrolment, Surroundings
from ndcollector.agents.inventory import Inventory
from ndcollector.agents.member import Member
from ndcollector.agents.rows import Agent, Held, Remembered, report_of
from ndcollector.agents.schema import InventoryError
from ndcollector.agents.trust import Bundle, TrustFile
from ndcollector.audit import Audit

log = logging.getLogger("agents")

WRITE_SECONDS = 5.0
LOOK_SECONDS = 1.0
MAX_REPORT_BYTES = 8 << 20
"""Reports waiting to be written; beyond this, `status` waits for the disk."""
MAX_NEW_SPOOLS = 16
"""Spool ids that one agent may register within `NEW_SPOOLS_SECONDS`."""
NEW_SPOOLS_SECONDS = 3600.0
_AUDIT_SECONDS = 60.0

Refused = Literal["unknown_agent", "revoked_agent", "foreign_spool", "too_many_spools", "malformed", "unavailable"]
"""Why an agent's data is not taken. "unavailable" is for now (503, no PUBACK); the others until a person acts."""

REMEDIES: dict[Refused, str] = {
    "unknown_agent": "its certificate is good, but it is not in the inventory: enrol it again",
    "revoked_agent": "it was revoked: enrol it again with a new token if it is to send",
    "foreign_spool": "its spool is registered to another agent. The same host, enrolled anew? `ndcollector agents "
    "rm --force` the former one. Else it is a copy: delete its state and enrol it",
    "too_many_spools": "it registers new spools again and again: look at its disk",
    "malformed": "its run id or spool id has not the form of one",
    "unavailable": "the inventory cannot be written now: see the collector's log",
}


class Fleet:
    """One per collector: `open`, then `run` until cancelled, then `aclose`. Belongs to one event loop."""

    def __init__(
        self,
        *,
        state_dir: Path,
        pki: Path,
        ca_file: Callable[[], Path],
        config: Callable[[], AgentsConfig],
        endpoints: Callable[[], Endpoints],
        metrics: Metrics,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """`pki` is the built-in PKI's directory; `ca_file` names the CAs that agents check collectors with."""
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._monotonic = monotonic
        self._members: dict[str, Member] = {}
        self._spools: dict[str, str] = {}
        self._unwritten: dict[str, Member] = {}
        self._report_bytes = 0
        self._registering = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes = 0
        self._trail_thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._trail = Audit(state_dir, by="daemon", clock=clock)
        self._audit_throttle = Throttle(_AUDIT_SECONDS, clock=monotonic)
        self._trust = TrustFile(ca_file)
        self.policy_key: Callable[[], bytes] = lambda: b""
        """What agents verify policies with; set by whoever signs them."""
        self._database = Database(state_dir, pki, clock=clock, remembered=self._remembered)
        around = Surroundings(pki, self._trust, config, endpoints, self._policy_key)
        self.enrolment = Enrolment(
            self._database, self, around, audit=self._trail, metrics=metrics, clock=clock, monotonic=monotonic
        )

    # ---- life

    async def open(self) -> None:
        """Read the inventory; raises InventoryError (a newer version's file), OSError."""
        await self._database.open()
        await self._reload()

    async def run(self) -> None:
        """Write what was heard, and look for what commands changed, until cancelled."""
        write_at = self._monotonic() + WRITE_SECONDS
        trouble = Throttle(_AUDIT_SECONDS, clock=self._monotonic)
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
                if self._monotonic() >= write_at:
                    write_at = self._monotonic() + WRITE_SECONDS
                    await self.write()
            except (InventoryError, OSError) as error:
                if trouble.allow("inventory") is not None:
                    log.error("the agents' inventory cannot be used: %s; agents are answered from memory", error)

    async def aclose(self) -> None:
        """Write what was heard, and close."""
        await self.enrolment.aclose()
        try:
            await self.write()
        except (InventoryError, OSError) as error:
            log.warning("what was last heard of agents is not written: %s", error)
        await asyncio.gather(*self._tasks)
        await self._database.aclose()
        await asyncio.to_thread(self._trail_thread.shutdown)

    # ---- what inputs ask

    async def admit(self, agent_id: str, *, spool_id: str, run_id: str, address: str = "") -> Refused | None:
        """Whether data of this agent's process, from this spool, is taken; None means yes.

        `address` is the peer's; empty where it is not the agent's own (a broker's).
        """
        member = self._members.get(agent_id)
        if member is None or member.revoked_at is not None:
            return self._refuse("unknown_agent" if member is None else "revoked_agent", agent_id, address)
        if self._spools.get(spool_id) != agent_id:
            refused = await self._register(member, spool_id)
            if refused is not None:
                return self._refuse(refused, agent_id, address, spool_id=spool_id)
        return self._note_run(member, run_id, address)

    def knows(self, agent_id: str) -> Refused | None:
        """As `admit`, where no spool is concerned (policy, status)."""
        member = self._members.get(agent_id)
        if member is None:
            return "unknown_agent"
        return None if member.revoked_at is None else "revoked_agent"

    def seen(self, agent_id: str, *, address: str, transport: str, clock_skew: float | None = None) -> None:
        """It spoke just now. `clock_skew` is its clock minus ours, in seconds, where that was measured."""
        member = self._members.get(agent_id)
        if member is not None:
            member.heard(self._clock(), address=address, transport=transport, clock_skew=clock_skew)
            self._unwritten[agent_id] = member

    async def status(self, agent_id: str, document: bytes, *, address: str = "") -> Refused | None:
        """Take an agent's report; raises BadDocument. None means taken."""
        member = self._members.get(agent_id)
        if member is None or member.revoked_at is not None:
            return self._refuse("unknown_agent" if member is None else "revoked_agent", agent_id, address)
        status = AgentStatus.from_json(document)
        now = self._clock()
        self._report_bytes += len(document) - (len(member.report.status) if member.report else 0)
        member.report = report_of(status, document, now=now)
        member.trust_bundle = status.trust_bundle
        skew = status.sent_at_ns / 1e9 - now if status.sent_at_ns else None
        member.heard(now, address=address, transport="", clock_skew=skew)
        self._unwritten[agent_id] = member
        refused = self._note_run(member, status.run_id, address)
        if self._report_bytes > MAX_REPORT_BYTES:
            await self._write_or_say()
        return refused

    def public_keys(self, agent_id: str) -> tuple[bytes, ...]:
        """Public keys (SubjectPublicKeyInfo, DER) of its certificates that are good now, the newest first."""
        member = self._members.get(agent_id)
        return member.keys(self._clock()) if member is not None and member.revoked_at is None else ()

    def trust_bundle(self) -> Bundle:
        """The CAs that agents are to check collectors with; raises TrustError."""
        return self._trust.bundle()

    def audit(self, kind: str, *, agent_id: str = "", address: str = "", **said: object) -> None:
        """Put something that concerns identity on the trail, soon: the first of its kind and agent within a minute."""
        silenced = self._audit_throttle.allow((kind, agent_id))
        if silenced is None:
            return
        fields = {**said, "agent_id": agent_id, "address": address, "silenced": silenced}
        self._trail_thread.submit(self._record, kind, fields)

    def group(self, agent_id: str) -> tuple[str, tuple[str, ...]] | None:
        """Its group and roles, for policy; None for an agent that is not there."""
        member = self._members.get(agent_id)
        return None if member is None else (member.group, member.roles)

    def __len__(self) -> int:
        """Agents in the inventory, revoked ones too."""
        return len(self._members)

    # ---- what enrolment asks

    def why_not_renew(self, agent_id: str, serial: str, now: float) -> tuple[Reason, str] | None:
        """See enrolment.Members."""
        member = self._members.get(agent_id)
        if member is None:
            return "unknown_agent", f"agent {agent_id} is not in the inventory; enrol it again"
        if member.revoked_at is not None:
            return "revoked_agent", f"agent {agent_id} was revoked"
        held = next((one for one in member.held if one.serial == serial), None)
        if held is None or not held.is_current(now):
            return "revoked_agent", f"certificate {serial} is not one that agent {agent_id} may renew with"
        return None

    def learn(self, agent: Agent, held: Held) -> None:
        """See enrolment.Members."""
        member = self._members.get(agent.id)
        if member is None:
            member = self._members[agent.id] = Member(agent)
        others = [one for one in member.held if one.serial != held.serial]
        member.hold([*others, held], self._clock())

    # ---- inside

    def _policy_key(self) -> bytes:
        return self.policy_key()

    def _refuse(self, reason: Refused, agent_id: str, address: str, **said: object) -> Refused:
        self._metrics.agents_refused.labels(reason).inc()
        silenced = self._audit_throttle.allow((reason, agent_id))
        if silenced is not None:
            text = "agent %s refused (%s): %s"
            fields: dict[str, object] = {"agent_id": agent_id, "address": address, "silenced": silenced, **said}
            log.warning(text, agent_id, reason, REMEDIES[reason], extra=fields)
            if reason != "unavailable":
                self._trail_thread.submit(self._record, "agent_refused", {"reason": reason, **fields})
        return reason

    def _record(self, kind: str, fields: dict[str, object]) -> None:
        try:
            self._trail.record(kind, **fields)
        except OSError as error:
            log.error("the audit trail cannot be written: %s", error)

    def _note_run(self, member: Member, run_id: str, address: str) -> Refused | None:
        if run_id == member.runs.current and address in ("", member.addresses.current):
            return None
        if not is_run_id(run_id):
            return self._refuse("malformed", member.id, address)
        now = self._monotonic()
        before = member.runs.current
        if member.runs.is_strange(run_id, now):
            self._suspect(member, f"run {run_id} spoke after {before}, which is newer", address)
        elif member.runs.current != before:
            member.addresses.start_anew()
            self._unwritten[member.id] = member
        if address and member.addresses.is_strange(address, now):
            known = ", ".join(sorted(set(member.addresses.known)))
            self._suspect(member, f"run {run_id} speaks from several addresses by turns: {known}", address)
        return None

    def _suspect(self, member: Member, reason: str, address: str) -> None:
        if member.clone_at is not None:
            return
        member.clone_at = self._clock()
        fields: dict[str, object] = {"agent_id": member.id, "name": member.name, "address": address, "why": reason}
        log.error(
            "agent %s seems to be two hosts with one key: %s. Find the copy, revoke the agent, enrol both hosts anew; "
            "if it is none: ndcollector agents clear %s", member.name, reason, member.id, extra={"agent_id": member.id},
        )  # fmt: skip
        self._trail_thread.submit(self._record, "clone_suspected", fields)
        self._count()
        self._later(lambda inventory: inventory.mark_clone(member.id, reason=reason, now=self._clock()))

    def _later(self, function: Callable[[Inventory], object]) -> None:
        """Do it in the inventory's thread, behind what waits there; an error is said."""

        async def do() -> None:
            try:
                await self._database.call(function)
            except (InventoryError, OSError) as error:
                log.error("the agents' inventory cannot be written: %s", error)

        task = asyncio.create_task(do())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _register(self, member: Member, spool_id: str) -> Refused | None:
        if not is_spool_id(spool_id):
            return "malformed"
        async with self._registering:  # the first batches of a new spool come together
            owner = self._spools.get(spool_id)
            if owner == member.id:
                return None
            if owner is not None and owner in self._members and self._members[owner].revoked_at is None:
                return "foreign_spool"
            if not member.may_register(self._monotonic(), most=MAX_NEW_SPOOLS, within_seconds=NEW_SPOOLS_SECONDS):
                return "too_many_spools"
            now = self._clock()
            try:
                other = await self._database.call(
                    lambda inventory: inventory.register_spool(member.id, spool_id, now=now)
                )
            except (InventoryError, OSError) as error:
                log.error("spool %s of agent %s cannot be registered: %s", spool_id, member.id, error)
                return "unavailable"
            if other is not None:
                return "foreign_spool"
            self._spools[spool_id] = member.id
            fields: dict[str, object] = {"agent_id": member.id, "spool_id": spool_id, "former": owner or ""}
            self._trail_thread.submit(self._record, "spool_registered", fields)
            return None

    async def write(self) -> None:
        """Write what was heard now; raises InventoryError, and keeps it for the next time."""
        unwritten, self._unwritten = self._unwritten, {}
        news = [(member, member.news()) for member in unwritten.values()]
        self._report_bytes = 0
        try:
            if news:
                await self._database.call(lambda inventory: inventory.heard([one for _, one in news]))
        except BaseException:
            for member, one in news:
                member.give_back(one)
                self._unwritten.setdefault(member.id, member)
            self._report_bytes = sum(len(one.report.status) for one in self._unwritten.values() if one.report)
            raise
        self._metrics.agents_shed.set(await self._database.call(Inventory.shed_events))
        self._count()

    async def _write_or_say(self) -> None:
        try:
            await self.write()
        except (InventoryError, OSError) as error:
            for member in self._unwritten.values():
                member.report = None  # the next report says it anew; the disk has the one before
            self._report_bytes = 0
            log.error("reports of agents cannot be written and are left out: %s", error)

    async def _look(self) -> None:
        """Reload what commands changed, and what the PKI says."""
        changed = await self._database.reconcile_if_changed()
        changes = await self._database.call(lambda inventory: inventory.changes)
        if changed or changes != self._changes:
            await self._reload()

    async def _reload(self) -> None:
        """Take over what the inventory says; what was heard and is not written yet stays."""

        def read(inventory: Inventory) -> tuple[int, list[Agent], dict[str, list[Held]], dict[str, str]]:
            return inventory.changes, inventory.agents(), inventory.certificates(), inventory.spools()

        self._changes, agents, held, spools = await self._database.call(read)
        members, now = {}, self._clock()
        for agent in agents:
            member = self._members.get(agent.id) or Member(agent)
            member.take_over(agent)
            member.hold(held.get(agent.id, ()), now)
            members[agent.id] = member
        self._members, self._spools = members, spools
        self._unwritten = {key: one for key, one in self._unwritten.items() if key in members}
        self._count()

    def _count(self) -> None:
        now, silent_after = self._clock(), self._config().silent_after
        states = {"enrolled": 0, "silent": 0, "revoked": 0, "clone_suspected": 0}
        for member in self._members.values():
            states["enrolled"] += 1
            states["revoked"] += member.revoked_at is not None
            states["clone_suspected"] += member.clone_at is not None
            states["silent"] += member.revoked_at is None and now - (member.last_seen or 0) > silent_after
        for state, count in states.items():
            self._metrics.agents.labels(state).set(count)

    def _remembered(self) -> Iterator[Remembered]:
        """For an inventory that was lost. Called in its thread."""
        spools: dict[str, list[str]] = {}
        for spool_id, agent_id in list(self._spools.items()):
            spools.setdefault(agent_id, []).append(spool_id)
        for member in list(self._members.values()):
            yield member.remembered(spools.get(member.id, ()))
