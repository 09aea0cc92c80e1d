"""One agent in the daemon's memory: what `admit` decides by, and what was heard since the inventory was last written.

Promises: small and bounded (certificates that are good, run ids, a few addresses). Refuses: I/O.
"""

import sys
from collections.abc import Iterable, Sequence

from ndagent.wire.enrolment import HostFacts
from ndcollector.agents.clones import Addresses, Runs
from ndcollector.agents.rows import Agent, Heard, Held, Newcomer, Remembered, Report


class Member:
    """See the module."""

    __slots__ = (
        "_facts",
        "_origin",
        "_registered",
        "_token_id",
        "address",
        "addresses",
        "clock_skew",
        "clone_at",
        "first_seen",
        "group",
        "held",
        "id",
        "last_seen",
        "name",
        "report",
        "revoked_at",
        "roles",
        "runs",
        "transport",
        "trust_bundle",
    )

    def __init__(self, agent: Agent) -> None:
        self.id = agent.id
        self.runs = Runs(agent.runs)
        self.addresses = Addresses()
        self.held: tuple[Held, ...] = ()
        self.first_seen, self.last_seen = agent.first_seen, agent.last_seen
        self.address, self.transport = agent.address, sys.intern(agent.transport)
        self.clock_skew = agent.clock_skew
        self.trust_bundle = agent.trust_bundle
        self.report: Report | None = None
        self._registered: list[float] = []  # a deque takes 600 bytes, and there are many agents
        self.take_over(agent)

    def take_over(self, agent: Agent) -> None:
        """What commands may have changed."""
        shared = map(sys.intern, (agent.os, agent.os_name, agent.architecture, agent.version))
        self._facts = HostFacts(agent.hostname, *shared)
        self._origin, self._token_id = sys.intern(agent.origin), agent.token_id
        self.name, self.group, self.roles = agent.name, sys.intern(agent.group), tuple(map(sys.intern, agent.roles))
        self.revoked_at, self.clone_at = agent.revoked_at, agent.clone_at

    def hold(self, held: Iterable[Held], now: float) -> None:
        """Its certificates, the newest last; those that are good are kept in memory."""
        self.held = tuple(one for one in held if one.is_current(now))

    def keys(self, now: float) -> tuple[bytes, ...]:
        """Public keys of the certificates that are good, the newest first, each once."""
        keys = (one.spki for one in reversed(self.held) if one.spki is not None and one.is_current(now))
        return tuple(dict.fromkeys(keys))

    def heard(self, now: float, *, address: str, transport: str, clock_skew: float | None) -> None:
        """It spoke."""
        if self.first_seen is None:
            self.first_seen = now
        self.last_seen = now
        self.address, self.transport = address or self.address, transport or self.transport
        if clock_skew is not None:
            self.clock_skew = clock_skew

    def may_register(self, now: float, *, most: int, within_seconds: float) -> bool:
        """Whether one more spool id is no nuisance; counts it if so."""
        self._registered = [one for one in self._registered if now - one <= within_seconds]
        if len(self._registered) >= most:
            return False
        self._registered.append(now)
        return True

    def news(self) -> Heard:
        """What is to be written; the report is handed over."""
        report, self.report = self.report, None
        return Heard(
            id=self.id,
            first_seen=self.first_seen,
            last_seen=self.last_seen,
            address=self.address,
            transport=self.transport,
            runs=self.runs.ids,
            clock_skew=self.clock_skew,
            report=report,
        )

    def give_back(self, news: Heard) -> None:
        """It could not be written; a newer report wins."""
        self.report = self.report or news.report

    def remembered(self, spools: Sequence[str]) -> Remembered:
        """All that memory knows."""
        newcomer = Newcomer(self.id, self._facts, self._origin, self.group, self.roles, self._token_id)
        return Remembered(newcomer, self.name, self.held, spools, self.revoked_at, self.clone_at)
