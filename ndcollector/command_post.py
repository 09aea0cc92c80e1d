"""The collector's side of its agents, put together: the fleet, and the policies that it hands out.

Promises: opened before the inputs that ask it and closed after them; what cannot be used (an inventory of a newer
version, policies that cannot be read) is a StartError or, for policies, an ERROR and a collector that goes on taking
events; a collector without agents pays for two small databases that nobody asks.
Refuses: protocols (inputs/), rules (agents/ and policy/ have them).
"""

import logging
import time
from collections.abc import Callable

from ndagent.core.metrics import Metrics
from ndagent.core.supervision import StartError, Supervised, in_words
from ndagent.wire.record import Batch
from ndcollector.agents.enrolment import Enrolment
from ndcollector.agents.fleet import Fleet
from ndcollector.agents.schema import InventoryError
from ndcollector.agents.trust import endpoints
from ndcollector.config import CollectorConfig
from ndcollector.pki.store import PkiError
from ndcollector.policy.desk import PolicyDesk
from ndcollector.policy.keys import PolicyKeys
from ndcollector.policy.store import PolicyStore, PolicyStoreError

log = logging.getLogger("agents")

_NO_SPOOL = {""}
"""Of events that no agent named: syslog must not wait for the inventory's disk."""


class CommandPost:
    """One per collector; `config` gives the configuration as it is now."""

    def __init__(self, config: Callable[[], CollectorConfig], *, metrics: Metrics) -> None:
        now = config()
        pki = now.tls.ca_file.parent
        self._keys = PolicyKeys(pki)
        self._desk = PolicyDesk(
            PolicyStore(now.state_dir),
            self._keys,
            lifetime_seconds=now.policies.lifetime,
            clock=time.time,
            inventory=lambda: self.fleet.members(),  # noqa: PLW0108 - the fleet is made below
        )
        self.fleet = Fleet(
            state_dir=now.state_dir,
            pki=pki,
            ca_file=lambda: config().agents.ca_file or config().tls.ca_file,
            config=lambda: config().agents,
            endpoints=lambda: endpoints(config().agents, config().inputs, config().tls.cert_file),
            metrics=metrics,
            clock=time.time,
            monotonic=time.monotonic,
        )
        self.fleet.policy_key = self._policy_key
        self._is_open = False

    @property
    def enrolment(self) -> Enrolment:
        """Who gives agents their certificates."""
        return self.fleet.enrolment

    async def open(self) -> None:
        """Raises StartError."""
        try:
            await self.fleet.open()
        except (InventoryError, OSError) as error:
            raise StartError(f"agents: {in_words(error)}") from error
        self._is_open = True
        self.fleet.attach(self._desk)
        try:
            self._desk.load()
        except (PolicyStoreError, PkiError) as error:
            log.error("agents get no policy for now: %s", error)

    def parts(self) -> list[Supervised]:
        """What runs beside the inputs."""
        return [Supervised("agents", self.fleet.run), Supervised("policies", self._desk.run)]

    async def settle(self, batch: Batch) -> None:
        """Return when whatever was said of the spools that name these events is durable: before it is acknowledged."""
        spool_ids = {section.origin.spool_id for section in batch.sections}
        if spool_ids != _NO_SPOOL:
            await self.fleet.settle(spool_ids)

    async def aclose(self) -> None:
        """Write what was heard last, and close."""
        if self._is_open:
            await self.fleet.aclose()

    def _policy_key(self) -> bytes:
        """What new agents verify policies with; none where the PKI is the customer's and holds no key of ours."""
        try:
            return self._keys.public_key()
        except (PkiError, OSError) as error:
            log.error("agents are enrolled without a policy key and will obey no policy: %s", error)
            return b""
