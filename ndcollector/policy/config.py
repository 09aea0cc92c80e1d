"""`policies:` in ndcollector.yaml."""

from pathlib import Path

from pydantic import Field

from ndagent.core.settings import ConfigPath, Duration, Settings


class PoliciesConfig(Settings):
    """What agents are told to do; see docs/policy.md."""

    directory: ConfigPath = Field(default=Path("policies"), description="The layers: global/, group/ and local/.")
    lifetime: Duration = Field(
        default=30 * 86400.0,
        ge=3600,
        description="A signed policy that no agent took by then is void; it is signed anew long before.",
    )
