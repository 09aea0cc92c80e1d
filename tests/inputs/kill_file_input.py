"""A process that follows files into a spool until somebody kills it.

    kill_file_input.py STATE_DIR GLOB

It says `up` once the input has looked. The spool keeps everything for a cursor that never moves, and segments are
small, so that kills fall between them too.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

from ndagent.core.checkpoints import Checkpoints
from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig
from ndagent.inputs import HostFacts, InputContext
from ndagent.inputs.file import Config, build

STREAM = "security_events"
MULTILINE = {"pattern": "^[^ ]", "flush_after": 0.3}


async def main(state_dir: Path, glob: str) -> None:
    metrics = Metrics()
    checkpoints = await Checkpoints.recover(state_dir)
    config = SpoolConfig(segment_bytes=32768, max_bytes=1 << 30, tip_bytes=4096)
    spool = await Spool.open(state_dir / "spool" / STREAM, stream=STREAM, config=config, metrics=metrics)
    spool.cursor("keeps")
    await checkpoints.attach({STREAM: spool})
    context = InputContext(state_dir, metrics, time.time, checkpoints, HostFacts("h", "h"))
    settings = Config(paths=(Path(glob),), scan_interval=0.3, multiline=MULTILINE)
    plug = build("file", settings, context)

    async def say_up() -> None:
        while not checkpoints.parts("file"):  # noted by the first look: what is rotated before it is not ours
            await asyncio.sleep(0.005)
        os.write(1, b"up\n")

    await asyncio.gather(plug.run(checkpoints.accept(spool.append)), checkpoints.run(), say_up())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
