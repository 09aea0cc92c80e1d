"""Kafka Connect's own runtime as a process: a standalone worker with the connectors that its configuration files name.

Promises: ready means that every connector and task runs; the worker keeps its offsets below the directory; it is
ended by its process id. Refuses: connectors that Kafka itself does not ship.
"""

import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.kafka_java import environment, java
from services.process import ServiceProcess, free_port

START_SECONDS = 60.0


class ConnectWorker:
    """`worker` and `connectors` are properties files' contents; the worker's REST door is added."""

    def __init__(
        self, directory: Path, *, worker: Mapping[str, str], connectors: Sequence[Mapping[str, str]]
    ) -> None:
        self._directory = directory
        self._names = [connector["name"] for connector in connectors]
        self._port = free_port()
        extra = {"listeners": f"http://127.0.0.1:{self._port}", "offset.flush.interval.ms": "500"}
        directory.mkdir(parents=True, exist_ok=True)
        self._files = [_write(directory / "worker.properties", {**worker, **extra})]
        self._files += [_write(directory / f"{connector['name']}.properties", connector) for connector in connectors]
        self._process: ServiceProcess | None = None

    def __enter__(self) -> Self:
        command = [*java(), "org.apache.kafka.connect.cli.ConnectStandalone", *map(str, self._files)]
        self._process = ServiceProcess("connect", command, directory=self._directory, environment=environment())
        try:
            self._process.wait_until(self._all_run, f"running {', '.join(self._names)}", START_SECONDS)
        except AssertionError:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.stop(timeout_seconds=20)

    def _all_run(self) -> bool:
        return all(_runs(self._status(name)) for name in self._names)

    def _status(self, name: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/connectors/{name}/status", timeout=5) as reply:
                status: dict[str, Any] = json.load(reply)
        except OSError:  # not up yet; HTTPError, for a connector not known yet, is one too
            return {}
        return status


def _runs(status: Mapping[str, Any]) -> bool:
    tasks = status.get("tasks", [])
    return bool(tasks) and all(part["state"] == "RUNNING" for part in [status["connector"], *tasks])


def _write(path: Path, properties: Mapping[str, str]) -> Path:
    path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
    return path
