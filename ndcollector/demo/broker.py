"""The demo's broker: somebody else's program, started and ended with the demo.

Which one is said in the environment (`make demo` does): ND_DEMO_BROKER is a command line. It is run with a directory as
its last word, prints one line of JSON when its broker takes data, and ends when its stdin does:

    {"bootstrap": "127.0.0.1:23001", "what": "Apache Kafka 4.3.1", "consumer": "kafka-console-consumer … --topic"}

Promises: nothing stays behind, not even if the demo is killed. Refuses: a cluster that was there before: the demo makes
topics and counts all that stands on them, which is nothing for a cluster that others use.
"""

import asyncio
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ndcollector.demo.collector import DemoError

COMMAND = "ND_DEMO_BROKER"
_START_SECONDS = 900.0
"""The first time there is a download in it, and on a new machine an installation of Java."""
_STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Broker:
    """One that runs: its address, its name, and a command that reads a topic when the topic's name is added."""

    bootstrap: str
    what: str
    consumer: str


class DemoBroker:
    """A context: enter to start it, leave to end it; raises DemoError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> Broker:
        """Run the command and wait until it has a broker."""
        command = shlex.split(os.environ.get(COMMAND, ""))
        if not command:
            raise DemoError('--kafka needs a broker to start: use make demo ARGS="--kafka", which brings one')
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                str(self._directory),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the demo, which stops the collector first
            )
            async with asyncio.timeout(_START_SECONDS):
                assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
                return Broker(**json.loads(await self._process.stdout.readline()))
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise DemoError(f"no broker: {shlex.join(command)} ({COMMAND}) says above why") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
