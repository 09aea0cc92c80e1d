"""What the commands about agents work on: configuration, inventory, PKI directory, audit trail."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ndcollector.agents.inventory import Inventory
from ndcollector.agents.schema import FILE, InventoryError
from ndcollector.agents.trust import TrustFile
from ndcollector.audit import Audit, person
from ndcollector.config import CollectorConfig, load


@dataclass(frozen=True, slots=True)
class Desk:
    """Open until its command ends."""

    config: CollectorConfig
    inventory: Inventory
    audit: Audit

    @property
    def pki(self) -> Path:
        """The built-in PKI's directory; nothing need be there."""
        return self.config.tls.ca_file.parent

    @property
    def trust(self) -> TrustFile:
        """The CAs that agents check collectors with."""
        return TrustFile(lambda: self.config.agents.ca_file or self.config.tls.ca_file)


@contextmanager
def opened(config_file: Path) -> Iterator[Desk]:
    """The desk of this configuration; raises ConfigError, InventoryError."""
    config = load(config_file)
    if not config.state_dir.is_dir():
        raise InventoryError(
            f"state_dir {config.state_dir} does not exist; the collector makes it at its first start, as its own user"
        )
    inventory = Inventory(config.state_dir / FILE)
    try:
        yield Desk(config, inventory, Audit(config.state_dir, by=person(), clock=time.time))
    finally:
        inventory.close()
