"""Settings of the ledger per origin."""

from pydantic import Field

from ndagent.core.settings import Settings


class LedgerConfig(Settings):
    """Which device's events were received and what became of them (`ndcollector ledger`)."""

    max_origins: int = Field(
        default=50_000,
        ge=1,
        le=1_000_000,
        description="Senders counted each by itself; what comes from further ones is counted together, as (others).",
    )
