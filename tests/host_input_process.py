"""One agent input in a process of its own, with a real spool and real checkpoints: what a kill -9 is aimed at.

As a program (`python host_input_process.py STATE_DIR NAME CONFIG_JSON`) it runs until SIGTERM or SIGKILL. As a module
it starts that program and reads what its spool holds.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.process import ServiceProcess

from ndagent.core.checkpoints import Checkpoints
from ndagent.core.metrics import Metrics
from ndagent.core.plugs import PlugTypes, builder
from ndagent.core.spool import Record, Spool
from ndagent.core.spool.config import SpoolConfig
from ndagent.core.spool.offline import records
from ndagent.inputs import INPUTS, HostFacts, InputContext
from ndagent.wire.record import Checkpoint, unpack_body

STREAM = "security_events"
HOST = HostFacts(hostname="testhost", name="testhost")


class InputProcess(ServiceProcess):
    """The program, running."""

    def __init__(self, state_dir: Path, name: str, config: Mapping[str, Any]) -> None:
        self._state_dir = state_dir
        state_dir.mkdir(exist_ok=True)
        command = [sys.executable, __file__, str(state_dir), name, json.dumps(config, default=str)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        super().__init__("input", command, directory=state_dir, environment=environment)

    def wait_for_events(self, count: int, of: Callable[[dict[str, Any]], bool] = bool) -> list[dict[str, Any]]:
        """Until the spool holds so many (that `of` is true of); all that it holds then."""
        deadline = time.monotonic() + 60
        while sum(map(of, found := spooled_events(self._state_dir))) < count:
            if self.returncode is not None or time.monotonic() > deadline:
                raise AssertionError(f"{len(found)} events, not {count}; the log ends:\n{self.tail()}")
            time.sleep(0.1)  # reading the whole spool is work: leave the processor to the input
        return found


def spooled_events(state_dir: Path, stream: str = STREAM) -> list[dict[str, Any]]:
    """All events in the spool, in order; works beside a running writer."""
    found = []
    for item in records(state_dir / "spool" / stream, 0, 2**62):
        if isinstance(item, Record):
            found += [json.loads(line) for line in bytes(unpack_body(item.body).payload).splitlines()]
    return found


class Positions:
    """Checkpoints in memory, for inputs that run in the test's own process."""

    def __init__(self) -> None:
        self.table: dict[str, Any] = {}

    def take(self, checkpoint: Checkpoint | None) -> None:
        """As a batch does once it is durable."""
        if checkpoint is not None and isinstance(checkpoint.position, Mapping):
            merged = {**self.table.get(checkpoint.input, {}), **checkpoint.position}
            self.table[checkpoint.input] = {key: part for key, part in merged.items() if part}
        elif checkpoint is not None:
            self.table[checkpoint.input] = checkpoint.position

    def last(self, input_name: str) -> bytes | None:
        """See ndagent.inputs.Positions."""
        return self.table.get(input_name)

    def parts(self, input_name: str) -> Mapping[bytes, bytes]:
        """See ndagent.inputs.Positions."""
        return self.table.get(input_name, {})

    async def note(self, checkpoint: Checkpoint, *, stream: str) -> None:
        """See ndagent.inputs.Positions."""
        self.take(checkpoint)


async def _main(state_dir: Path, name: str, config: dict[str, Any]) -> None:
    settings = PlugTypes("input", INPUTS).config(config["type"]).model_validate(config)
    metrics = Metrics()
    checkpoints = await Checkpoints.recover(state_dir)
    spool = await Spool.open(
        state_dir / "spool" / STREAM, stream=STREAM, config=SpoolConfig(replay_window=86400.0), metrics=metrics
    )
    await checkpoints.attach({STREAM: spool})
    context = InputContext(state_dir, metrics, time.time, checkpoints, HOST)
    plug = builder(INPUTS, context)(name, settings)
    await plug.start()
    saving = asyncio.create_task(checkpoints.run())
    running = asyncio.create_task(plug.run(checkpoints.accept(spool.append)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    saving.cancel()
    await checkpoints.aclose()
    await spool.aclose()


if __name__ == "__main__":
    directory, input_name, settings_json = sys.argv[1:]
    asyncio.run(_main(Path(directory), input_name, json.loads(settings_json)))
