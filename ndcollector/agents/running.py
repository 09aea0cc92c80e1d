"""Fleet and policies of a running collector, put together: what the composition root opens, runs and closes.

Promises: an inventory that cannot be used is a StartError with its remedy; policies that cannot be read are said, and
keep no agent from sending. Refuses: inputs; they get `fleet` (their Gate) and `fleet.enrolment` (their Enroller).
"""

import logging
import time
from collections.abc import Callable, Mapping

from ndagent.core.metrics import Metrics
from ndagent.core.process_user import process_user
from ndagent.core.settings import Settings
from ndagent.core.supervision import StartError, Supervised, in_words
from ndcollector.agents.fleet import Fleet
from ndcollector.agents.schema import InventoryError
from ndcollector.agents.trust import endpoints
from ndcollector.config import CollectorConfig
from ndcollector.pki.store import PkiError
from ndcollector.policy.desk import PolicyDesk
from ndcollector.policy.keys import PolicyKeys
from ndcollector.policy.store import PolicyStore, PolicyStoreError

log = logging.getLogger("agents")

INPUT_TYPES = {"mqtt", "https", "mqtt_broker"}
"""Inputs that need a fleet."""


def is_needed(inputs: Mapping[str, Settings]) -> bool:
    """Whether any of these is for agents."""
    return any(getattr(settings, "type", name) in INPUT_TYPES for name, settings in inputs.items())


class RunningFleet:
    """One per collector that has inputs for agents. `config` is asked each time: a reload changes it."""

    def __init__(self, config: Callable[[], CollectorConfig], *, metrics: Metrics) -> None:
        first = config()
        self._pki = first.tls.ca_file.parent
        self._state_dir = first.state_dir
        self.fleet = Fleet(
            state_dir=first.state_dir,
            pki=self._pki,
            ca_file=lambda: config().agents.ca_file or config().tls.ca_file,
            config=lambda: config().agents,
            endpoints=lambda: endpoints(config().agents, config().inputs, config().tls.cert_file),
            metrics=metrics,
            clock=time.time,
            monotonic=time.monotonic,
        )
        keys = PolicyKeys(self._pki)
        self.policies = PolicyDesk(
            PolicyStore(first.state_dir),
            keys,
            lifetime_seconds=first.policies.lifetime,
            clock=time.time,
            inventory=self.fleet.agents,
        )
        self.fleet.attach(self.policies)
        self.fleet.policy_key = keys.public_key

    async def open(self) -> None:
        """Read the inventory and what was applied; raises StartError."""
        try:
            await self.fleet.open()
        except InventoryError as error:
            raise StartError(f"agents: {error}") from error
        except OSError as error:
            raise StartError(
                f"agents: {in_words(error)}; may {process_user()} write below {self._state_dir}?"
            ) from error
        try:
            self.policies.load()
        except (PolicyStoreError, PkiError) as error:
            log.error("policies cannot be read, agents keep the one they have: %s", error)

    def start(self) -> list[Supervised]:
        """What runs beside the inputs."""
        return [Supervised("agents", self.fleet.run), Supervised("policies", self.policies.run)]

    async def aclose(self) -> None:
        """After the inputs have stopped."""
        await self.fleet.aclose()
