"""Metrics of this host every few seconds: CPU, load, memory, file systems, disks, interfaces, top processes.

Promises: a round costs some milliseconds of CPU, in a thread; a round that the spool cannot take yet is waited for, and
those due meanwhile are left out, not queued: the next one's rates cover the whole time. Events go to the stream
`metrics`. Refuses: positions (what was not measured cannot be measured later), and reading what this user may not see.

The fields: see host_metrics_round.py. Needs psutil (the extra `host-metrics`).
"""

import asyncio
import importlib
import time
from importlib.util import find_spec
from typing import Any, Literal

import orjson
from pydantic import Field, model_validator

from ndagent.core.interfaces import Accept
from ndagent.core.settings import Duration, SettingError, Settings
from ndagent.inputs import InputContext
from ndagent.inputs.ecs_batch import base_fields, batch_of, timestamp
from ndagent.inputs.host_metrics_round import Rounds, Selection
from ndagent.wire.record import Origin

FIRST_AFTER_SECONDS = 1.0
"""The first round comes so soon: who just installed the agent wants to see it work, and rates need two looks."""


class ProcessesConfig(Settings):
    """Which processes are told of."""

    top: int = Field(
        default=10, ge=0, le=200, description="So many by CPU in the interval and so many by memory; 0 for none."
    )
    command_line: bool = Field(default=False, description="With their arguments, which may hold secrets.")


class Config(Settings):
    """Settings of a host_metrics input."""

    type: Literal["host_metrics"] = Field(default="host_metrics", description="Metrics of this host.")
    every: Duration = Field(default=15.0, ge=1, le=86400, description="Time between two rounds.")
    stream: Literal["metrics", "security_events"] = Field(
        default="metrics", description="The stream that the events belong to."
    )
    exclude_disks: tuple[str, ...] = Field(
        default=("loop*", "ram*", "fd*", "sr*"), description="Disks left out, as shell patterns of their names."
    )
    exclude_interfaces: tuple[str, ...] = Field(
        default=("lo", "veth*"), description="Network interfaces left out, as shell patterns of their names."
    )
    exclude_filesystems: tuple[str, ...] = Field(
        default=("/snap/*", "/var/lib/docker/*"),
        description="File systems left out, as shell patterns of where they are mounted.",
    )
    processes: ProcessesConfig = Field(default=ProcessesConfig(), description="Which processes are told of.")

    @model_validator(mode="after")
    def _is_installed(self) -> "Config":
        """Told where the configuration is read, so `check`, a reload and a policy are refused with the remedy."""
        if find_spec("psutil") is None:
            raise SettingError(("type",), "psutil is missing; pip install 'neurodefender-collector[host-metrics]'")
        return self


def build(name: str, config: Config, context: InputContext) -> "HostMetrics":
    """The input; raises ImportError without psutil."""
    return HostMetrics(name, config, context, importlib.import_module("psutil"))


class HostMetrics:
    """See the module. `source` is the module psutil, imported only where this input is configured."""

    def __init__(self, name: str, config: Config, context: InputContext, source: Any) -> None:
        self._config = config
        self._clock = context.clock
        self._origin = Origin(name, context.host.hostname, 0)
        self._received = context.metrics.received.labels(name)
        selection = Selection(
            exclude_disks=config.exclude_disks,
            exclude_interfaces=config.exclude_interfaces,
            exclude_filesystems=config.exclude_filesystems,
            top=config.processes.top,
            command_line=config.processes.command_line,
        )
        self._rounds = Rounds(source, selection)
        self._base = base_fields(context.host)

    async def start(self) -> None:
        """Nothing to open."""

    async def run(self, accept: Accept) -> None:
        """Measure and hand over until cancelled."""
        await asyncio.to_thread(self._rounds.prime, monotonic=time.monotonic())
        loop = asyncio.get_running_loop()
        due = loop.time() + min(FIRST_AFTER_SECONDS, self._config.every)
        while True:
            await asyncio.sleep(due - loop.time())
            now = self._clock()
            lines = await asyncio.to_thread(self._lines, now)
            await accept(
                batch_of(lines, origin=self._origin, received_at_ns=int(now * 1e9), stream=self._config.stream)
            )
            self._received.inc(len(lines))
            due = max(due + self._config.every, loop.time())

    def _lines(self, now: float) -> list[bytes]:
        """A round as NDJSON lines; in a thread."""
        started = time.perf_counter_ns()
        found = self._rounds.read(unix=now, monotonic=time.monotonic())
        duration = time.perf_counter_ns() - started
        moment = timestamp(now)
        lines = []
        for metricset, document in found:
            event = {
                "kind": "metric",
                "module": "system",
                "dataset": f"system.{metricset}",
                "created": moment,
                "duration": duration,
            }
            about = {"name": metricset, "period": round(self._config.every * 1000)}
            host = {**self._base["host"], **document.pop("host", {})}
            whole = {"@timestamp": moment, **self._base, "host": host, "event": event, "metricset": about, **document}
            lines.append(orjson.dumps(_without_none(whole)) + b"\n")
        return lines


def _without_none(document: dict[str, Any]) -> dict[str, Any]:
    """An absent value is an absent key."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in document.items()
        if value is not None
    }
