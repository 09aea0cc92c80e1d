"""The agent's inputs, one file each; file name = config key = metric label = logger name.

A plug module has `Config` (Settings) and `build(name, config, context) -> Input`, and its line in INPUTS.

What an input hands to `accept` is a `Batch` of format `ecs`: one complete ECS object a line, without `event.id` (the
spool's sequence gives it) and without `agent.id` (the collector takes it from the certificate); or of format `syslog`,
messages as devices sent them, which the agent's decoder makes events of (wire/own_lines.py). An input that must go
on where it stopped puts its position into the batch (`Batch.checkpoint`) and asks `context.checkpoints` for it when it
runs: the position is durable exactly when the lines are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ndagent.core.metrics import Metrics
from ndagent.wire.record import Checkpoint

INPUTS = {
    "file": "ndagent.inputs.file",
    "journald": "ndagent.inputs.journald",
    "auditd": "ndagent.inputs.auditd",
    "windows_event": "ndagent.inputs.windows_event",
    "host_metrics": "ndagent.inputs.host_metrics",
    "netflow": "ndagent.inputs.netflow",
    "snmp_trap": "ndagent.inputs.snmp_trap",
    "snmp_poll": "ndagent.inputs.snmp_poll",
    "syslog_udp": "ndagent.inputs.syslog_udp",
    "syslog_tcp": "ndagent.inputs.syslog_tcp",
}
"""Input type → module; imported only when configured."""


class Positions(Protocol):
    """Where inputs stood when they were last heard of (`ndagent.core.checkpoints.Checkpoints` is one)."""

    def last(self, input_name: str) -> bytes | None:
        """The position of the input's newest durable checkpoint; None if it never made one."""

    def parts(self, input_name: str) -> Mapping[bytes, bytes]:
        """The same for an input whose position has parts (one per file, say); empty if it never made one."""

    async def note(self, checkpoint: Checkpoint, *, stream: str) -> None:
        """Make a position durable that no batch carries, because nothing was read or nothing was worth an event."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What an event says about the machine it comes from: ECS `host.*`, gathered once at start.

    `os_type` is ECS' word (linux, windows), the other os fields are those of os-release(5); empty where not known.
    """

    hostname: str
    name: str
    os_type: str = ""
    os_platform: str = ""
    os_name: str = ""
    os_version: str = ""
    os_kernel: str = ""
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class InputContext:
    """What the composition root hands to every input's `build`."""

    state_dir: Path
    metrics: Metrics
    clock: Callable[[], float]  # Unix seconds
    checkpoints: Positions
    host: HostFacts
    guard: Callable[[str, int], str | None] | None = None
    """Why the input of this name may not read from this open file; None if it may. Asked before its first byte is
    read: what a policy's paths lead to may change at any time."""
