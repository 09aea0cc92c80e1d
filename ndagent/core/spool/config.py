"""What users set about a spool."""

from typing import Literal

from pydantic import Field

from ndagent.core.settings import ByteSize, Duration, Settings


class SpoolConfig(Settings):
    """How much a stream's spool may hold, and what an acknowledgement means."""

    max_bytes: ByteSize = Field(
        default=20 << 30,
        ge=1 << 16,
        description="Disk space per stream. When it is used up, outputs with `on_full: drop_oldest` lose their oldest "
        "events, and where that frees nothing the inputs wait.",
    )
    max_age: Duration = Field(
        default=0.0,
        ge=0,
        description="Undelivered events older than this are given up (counted) by outputs with `on_full: drop_oldest`; "
        "0: never.",
    )
    durability: Literal["fsync", "interval", "os"] = Field(
        default="fsync",
        description="What an acknowledged event survives. `fsync`: a power cut. `interval`: a power cut, except for "
        "the last `interval`. `os`: a crash of the daemon, while a power cut may cost some 30 s of events.",
    )
    interval: Duration = Field(
        default=0.2,
        ge=0.01,
        description="With `durability: interval`, how often to sync; outputs get events only after that.",
    )
    replay_window: Duration = Field(
        default=0.0,
        description="Keep delivered events at least this long for `spool replay`. It yields when space is needed: no "
        "input waits and no output loses events for it.",
    )
    segment_bytes: ByteSize = Field(
        default=64 << 20, ge=1 << 13, description="Size of one spool file, at most an eighth of `max_bytes`."
    )
    tip_bytes: ByteSize = Field(
        default=8 << 20, description="Newest events kept in memory, for outputs that keep up with the inputs."
    )
    quarantine_bytes: ByteSize = Field(
        default=256 << 20, description="Copies of damaged bytes kept in quarantine/; beyond that they are only counted."
    )
