"""Under wine: the input windows_event on the real pywin32 and wevtapi.c, its events as JSON lines on stdout.

    python windows_event_reader.py STATE_FILE EVENTS [SETTINGS_JSON]

reads until it has so many events, with its positions from and to the file. It says "reading" on a line of its own when
it has begun.
"""

import asyncio
import base64
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ndagent.core.metrics import Metrics
from ndagent.inputs import HostFacts, InputContext
from ndagent.inputs.windows_event import Config, build
from ndagent.wire.record import Batch, Checkpoint


class Positions:
    """In a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text() if path.exists() else "{}"
        self._parts = {key.encode(): base64.b64decode(part) for key, part in json.loads(text).items()}

    def last(self, input_name: str) -> bytes | None:
        """Not for this input."""
        return None

    def parts(self, input_name: str) -> Mapping[bytes, bytes]:
        """The channels' places."""
        return self._parts

    async def note(self, checkpoint: Checkpoint, *, stream: str) -> None:
        """Keep them."""
        assert isinstance(checkpoint.position, Mapping)
        self._parts.update(checkpoint.position)
        self._path.write_text(json.dumps({k.decode(): base64.b64encode(v).decode() for k, v in self._parts.items()}))


async def main(state: Path, wanted: int, settings: dict[str, object]) -> None:
    """Read so many."""
    positions = Positions(state)
    context = InputContext(Path(), Metrics(), time.time, positions, HostFacts("winehost", "winehost"))
    plug = build("windows_event", Config(**settings), context)
    done = asyncio.Event()
    seen = 0

    async def accept(batch: Batch) -> None:
        nonlocal seen
        for line in b"".join(batch.payload).splitlines():
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
            seen += 1
        if batch.checkpoint is not None:
            await positions.note(batch.checkpoint, stream=batch.stream)
        if seen >= wanted:
            done.set()

    await plug.start()
    task = asyncio.create_task(plug.run(accept))
    print("reading", flush=True)
    await asyncio.wait({task, asyncio.create_task(done.wait())}, return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


if __name__ == "__main__":
    given = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), {"channels": ["Canned"], "start": "beginning", **given}))
