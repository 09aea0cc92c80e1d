"""The collector's knowledge of its agents, as inputs use it: whom to let in, what to note, whom to suspect.

Promises:
  * what inputs ask (`inputs.agent_gate.Gate`) is answered from memory, at once, and raises nothing;
  * a revoked or unknown agent, and the spool of another one, is refused with a reason of a closed set; what a command
    changed (`ndcollector agents revoke` …) counts within `LOOK_SECONDS`;
  * a spool id is bound to its agent durably before anybody is answered: the collector's accept awaits `settle`;
  * `seen` costs no I/O: what was heard is written every `WRITE_SECONDS` together. A crash loses that much of "last
    seen" and nothing else: enrolments and spool ids are on the disk before anybody is told;
  * an agent that must be two processes is flagged once, at ERROR, audited and counted (clones.py), and still taken;
  * memory holds one small record for each agent (agents.max_agents), and reports waiting to be written are bounded.
Refuses: protocols. Identity comes from the certificate, and the input is who read that. (Past 400 lines: many short
answers from one memory; what could stand by itself does, in the files beside it.)
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from ndagent.core import messages
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.wire.enrolment import Endpoints, Reason
from ndagent.wire.fields import BadDocument
from ndagent.wire.status import AgentStatus, is_run_id
from ndcollector.agents.config import AgentsConfig
from ndcollector.agents.database import Database
from ndcollector.agents.downlink import Downlink, Policies
from ndcollector.agents.enrolment import Enrolment, Surroundings
from ndcollector.agents.inventory import Inventory
from ndcollector.agents.member import Member
from ndcollector.agents.registrations import Registrations
from ndcollector.agents.rows import Agent, Held, Remembered, report_of
from ndcollector.agents.schema import InventoryError
from ndcollector.agents.trust import Bundle, TrustFile
from ndcollector.audit import Audit

log = logging.getLogger("agents")

WRITE_SECONDS = 5.0
LOOK_SECONDS = 1.0
MAX_REPORT_BYTES = 8 << 20
"""Reports waiting to be written: at this they are written at once, beyond twice of it the next ones are left out."""
_SAY_SECONDS = 60.0

Refused = Literal["unknown_agent", "revoked_agent", "foreign_spool", "too_many_spools", "malformed"]
"""Why an agent's data is not taken, until a person acts."""

REMEDIES: dict[Refused, str] = {
    "unknown_agent": "its certificate is good, but it is not in the inventory: enrol it again",
    "revoked_agent": "it was revoked: enrol it again with a new token if it is to send",
    "foreign_spool": "its spool is registered to another agent. The same host, enrolled anew? `ndcollector agents "
    "rm --force` the former one. Else it is a copy: delete its state and enrol it",
    "too_many_spools": "it registers new spools again and again: look at its disk",
    "malformed": "its run id or spool id has not the form of one, or its report is none",
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
        self._unwritten: dict[str, Member] = {}
        self._report_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes = 0
        self._trail_thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._trail = Audit(state_dir, by="daemon", clock=clock)
        self._audit_throttle = Throttle(_SAY_SECONDS, clock=monotonic)
        self._trust = TrustFile(ca_file)
        self.policy_key: Callable[[], bytes] = lambda: b""
        """What agents verify policies with; set by whoever signs them."""
        self._database = Database(state_dir, pki, clock=clock, remembered=self._remembered)
        self._spools = Registrations(self._database, clock=clock, monotonic=monotonic, written=self._registered)
        self._downlink = Downlink()
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
        trouble = Throttle(_SAY_SECONDS, clock=self._monotonic)
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
        await self._downlink.aclose()
        await self._spools.aclose()
        await self.enrolment.aclose()
        try:
            await self.write()
        except (InventoryError, OSError) as error:
            log.warning("what was last heard of agents is not written: %s", error)
        await asyncio.gather(*self._tasks)
        await self._database.aclose()
        await asyncio.to_thread(self._trail_thread.shutdown)

    # ---- what inputs ask

    def admit(self, agent_id: str, *, spool_id: str = "", run_id: str = "", address: str = "") -> Refused | None:
        """Why this agent may not send, or None; ids are empty where they are not known yet.

        `address` is the peer's; empty where it is not the agent's own (a broker's). A spool id is this agent's in
        memory at once, and durably once `settle` returns.
        """
        member = self._members.get(agent_id)
        if member is None or member.revoked_at is not None:
            return self._refuse("unknown_agent" if member is None else "revoked_agent", agent_id, address)
        if spool_id:
            refused = self._spools.claim(member, spool_id, self._members)
            if refused is not None:
                return self._refuse(refused, agent_id, address, spool_id=spool_id)
        return self._note_run(member, run_id, address) if run_id else None

    async def settle(self, spool_ids: Collection[str] | None = None) -> None:
        """Return when these spools (None: all) are registered durably: await it before their events are acknowledged.

        Others that wait for the inventory's disk delay nobody.
        """
        await self._spools.settle(spool_ids)

    @property
    def is_blocked(self) -> bool:
        """Whether `settle` waits for a disk that refuses, or for a command that holds the inventory."""
        return self._spools.is_blocked

    def seen(self, agent_id: str, *, address: str, transport: str, clock_skew: float | None = None) -> None:
        """It spoke just now. `clock_skew` is its clock minus ours, in seconds, where that was measured."""
        member = self._members.get(agent_id)
        if member is not None:
            member.heard(self._clock(), address=address, transport=transport, clock_skew=clock_skew)
            self._unwritten[agent_id] = member

    def status(self, agent_id: str, document: bytes, *, address: str = "") -> None:
        """What the agent reports of itself (wire/status.py), as it came; what is no report is refused and said."""
        self._reported(agent_id, document, address=address, relayed=False)

    def relayed_status(self, agent_id: str, document: bytes) -> None:
        """Like `status`, but through a broker: it may come late, so it says nothing about clocks and clones.

        One of an earlier process of the agent is old news and ignored.
        """
        self._reported(agent_id, document, address="", relayed=True)

    def _reported(self, agent_id: str, document: bytes, *, address: str, relayed: bool) -> None:
        if self.admit(agent_id, address=address) is not None:
            return
        member, now = self._members[agent_id], self._clock()
        try:
            status = AgentStatus.from_json(document)
        except BadDocument as error:
            self._refuse("malformed", agent_id, address, why=str(error))
            return
        if relayed and status.run_id in member.runs.ids[:-1]:
            return
        skew = status.sent_at_ns / 1e9 - now if status.sent_at_ns and not relayed else None
        member.heard(now, address=address, transport="", clock_skew=skew)
        member.trust_bundle = status.trust_bundle
        self._unwritten[agent_id] = member
        self._note_run(member, status.run_id, address)
        self._downlink.reported(agent_id, status.policy)
        before = len(member.report.status) if member.report else 0
        if self._report_bytes - before + len(document) <= 2 * MAX_REPORT_BYTES:
            self._report_bytes += len(document) - before
            member.report = report_of(status, document, now=now)
        if self._report_bytes > MAX_REPORT_BYTES and not self._tasks:
            self._start(self._write_or_say())

    def lost(self, agent_id: str, document: bytes) -> None:
        """Its connection ended without a word; `document` is the report that it left for this case, or b""."""
        if document:
            self.status(agent_id, document)

    def downlink(self, agent_id: str) -> bytes | None:
        """The signed policy that is meant for this agent now."""
        member = self._members.get(agent_id)
        return None if member is None or member.revoked_at is not None else self._downlink.bundle(member)

    def subscribe(self, changed: Callable[[str], None]) -> Callable[[], None]:
        """Call `changed` with an agent's id when its downlink may be another; the result ends that."""
        return self._downlink.subscribe(changed)

    def attach(self, policies: Policies) -> Callable[[], None]:
        """Hand out these policies; the result ends that."""
        return self._downlink.attach(policies)

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

    def members(self) -> list[Member]:
        """Those that may speak, with what policies ask of them: id, name, group, roles."""
        return [member for member in self._members.values() if member.revoked_at is None]

    def facts(self, agent_id: str) -> Member | None:
        """Its id, name, group and roles, for policies; None for an agent that is not there."""
        return self._members.get(agent_id)

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
            log.warning(text, agent_id, reason, REMEDIES[reason], extra={**messages.AGENT_REFUSED, **fields})
            self._trail_thread.submit(self._record, "agent_refused", {"reason": reason, **fields})
        return reason

    def _record(self, kind: str, fields: dict[str, object]) -> None:
        try:
            self._trail.record(kind, **fields)
        except OSError as error:
            log.error("the audit trail cannot be written: %s", error, extra=messages.AUDIT_UNWRITTEN)

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
            "if it is none: ndcollector agents clear %s", member.name, reason, member.id,
            extra={**messages.CLONE_SUSPECTED, "agent_id": member.id},
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

        self._start(do())

    def _start(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _registered(self, claims: Mapping[str, str]) -> None:
        for spool_id, agent_id in claims.items():
            fields: dict[str, object] = {"agent_id": agent_id, "spool_id": spool_id}
            self._trail_thread.submit(self._record, "spool_registered", fields)

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
        members, now, is_moved = {}, self._clock(), False
        for agent in agents:
            member = self._members.get(agent.id) or Member(agent)
            is_moved |= (member.name, member.group, member.roles) != (agent.name, agent.group, agent.roles)
            member.take_over(agent)
            member.hold(held.get(agent.id, ()), now)
            members[agent.id] = member
        gone = self._members.keys() - members.keys()
        self._members = members
        self._spools.load(spools)
        self._unwritten = {key: one for key, one in self._unwritten.items() if key in members}
        self._count()
        self._downlink.gone(gone)
        if is_moved:
            self._downlink.moved()

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
        spools = self._spools.of()
        for member in list(self._members.values()):
            yield member.remembered(spools.get(member.id, ()))
