"""Settings of the sources view."""

from pydantic import Field

from ndagent.core.settings import Duration, Settings


class SourcesConfig(Settings):
    """Who sends, how often, and who has gone quiet (`ndcollector sources`)."""

    max_sources: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Sources remembered. Beyond it newcomers make room first, least recently heard first, then others; "
        "those that `sources expect` named stay.",
    )
    max_channels: int = Field(
        default=64,
        ge=0,
        le=4096,
        description="Channels (datasets, event logs) told apart of one agent; 0: only the agent itself.",
    )
    alerts: bool = Field(
        default=True, description="Put an event into the stream `alerts` when a source goes quiet, and when it is back."
    )
    quiet_factor: float = Field(
        default=10.0, ge=2, le=1000, description="Quiet is who is silent for so many times the usual pause."
    )
    shortest_quiet: Duration = Field(
        default=300.0, ge=1, description="Nobody is quiet before so long, however fast they usually send."
    )
    longest_quiet: Duration = Field(
        default=86400.0, ge=1, description="Everybody is quiet after so long, unless half of it is their usual pause."
    )
    learn: Duration = Field(
        default=86400.0, ge=0, description="A source is known for so long before its silence means something."
    )
