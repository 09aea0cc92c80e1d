"""The demo's endpoint: a real `ndagent` that enrols with a token and tails a file which grows while the demo runs.

Promises: what a user would type is what is run: `ndcollector agents token create`, `ndagent enroll`, `ndagent run`; it
is one of the senders, so its lines are part of what must add up. Refuses: leaving its process behind.
"""

import asyncio
import sys
from contextlib import suppress

from ndcollector.demo.collector import DemoCollector, DemoError

NAME = "agent"
_STOP_SECONDS = 15.0
_BEATS_PER_SECOND = 10.0
_BURST = 200
_CONFIGURATION = """\
# Written by `ndcollector demo`: an agent as you would set it up on a host.
host_name: demo-host
state_dir: state
inputs:
  app:
    type: file
    paths: ["{log}"]
    start: beginning
"""


class DemoAgent:
    """`enroll`, then `run` as one of the senders, then `stop`."""

    def __init__(self, collector: DemoCollector, *, count: int | None, rate: float | None) -> None:
        self.name = NAME
        self.sent = 0
        self.directory = collector.directory / "agent"
        self.config = self.directory / "ndagent.yaml"
        self.live_file = self.directory / "app.log"
        self._collector = collector
        self._count = count
        self._rate = rate
        self._process: asyncio.subprocess.Process | None = None

    async def enroll(self) -> None:
        """A token, a certificate of its own, and the running agent; raises DemoError."""
        self.directory.mkdir()
        self.config.write_text(_CONFIGURATION.format(log=self.live_file))
        collector = ["-c", str(self._collector.config)]
        said = await _output("ndcollector", "agents", "token", "create", "--group", "demo", *collector)
        token = said.split()[0]
        url = f"https://localhost:{self._collector.https_port}"
        enrolled = await _output("ndagent", "enroll", "--url", url, "--token", token, "-c", str(self.config))
        print(f"agent: {enrolled}", file=sys.stderr)
        with (self.directory / "agent.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ndagent", "run", "-c", str(self.config),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    async def run(self, stop: asyncio.Event) -> None:
        """Write lines into the live file until all are written or the demo stops."""
        started = asyncio.get_running_loop().time()
        with self.live_file.open("a", encoding="utf-8") as log:
            while not stop.is_set() and (burst := self._burst()):
                log.writelines(f"request {self.sent + number} served in 12 ms\n" for number in range(burst))
                log.flush()
                self.sent += burst
                if self._rate is not None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(started + self.sent / self._rate):
                            await stop.wait()

    async def stop(self) -> None:
        """Ask the agent to stop, and wait until it has."""
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _burst(self) -> int:
        burst = _BURST if self._rate is None else max(1, round(self._rate / _BEATS_PER_SECOND))
        return burst if self._count is None else min(burst, self._count - self.sent)


async def _output(program: str, *arguments: str) -> str:
    """What one of our commands prints; raises DemoError with what it says when it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", program, *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    if process.returncode:
        raise DemoError(f"{program} {arguments[0]}: {err.decode(errors='replace').strip()}")
    return out.decode().strip()
