"""Closing outputs: one that hangs or fails is nobody else's trouble."""

import asyncio
import threading
from pathlib import Path

import pytest
from file_output_batches import NOON, batch, sequences

from ndagent.core import deliveries
from ndcollector.outputs.file import Config, FileOutput
from ndcollector.outputs.file_log import Disk


class Stuck:
    """An output whose far side never answers its goodbye."""

    name = "stuck"

    def __init__(self) -> None:
        self.answered, self.is_closed = asyncio.Event(), False

    async def aclose(self) -> None:
        """Wait for that answer."""
        await self.answered.wait()
        self.is_closed = True


class Failing:
    """One that fails at it."""

    name = "failing"

    async def aclose(self) -> None:
        """Fail."""
        raise OSError("no goodbye")


async def test_an_output_that_does_not_close_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Between two dispatchers of a reload everybody waits for this."""
    monkeypatch.setattr(deliveries, "CLOSE_SECONDS", 0.05)
    stuck = Stuck()
    async with asyncio.timeout(10):
        await deliveries.close([stuck, Failing()])  # type: ignore[list-item]  # all of a Delivery that is asked for
        assert "output stuck hangs and is still not closed" in caplog.text
        assert "output failing did not close well" in caplog.text
        stuck.answered.set()
        while not stuck.is_closed:
            await asyncio.sleep(0)


class FrozenDisk(Disk):
    """Writes hang, as on a file system whose server is gone, until it is back."""

    def __init__(self) -> None:
        self.hangs, self.is_back = threading.Event(), threading.Event()

    def write(self, fd: int, data: memoryview) -> int:
        """Wait for the server."""
        self.hangs.set()
        self.is_back.wait(30)
        return super().write(fd, data)


async def test_a_file_that_hung_while_it_was_closed_is_free_once_the_disk_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed output of the same path, which a reload has made meanwhile, must get its lock in the end."""
    monkeypatch.setattr(deliveries, "CLOSE_SECONDS", 0.05)
    disk, config = FrozenDisk(), Config(path=tmp_path / "{stream}.ndjson")
    output = FileOutput("archive", config, clock=NOON.timestamp, disk=disk)
    output.name = "archive"  # type: ignore[attr-defined]  # as the Delivery around it has one
    sending = asyncio.ensure_future(output.send(batch(0, 3)))
    assert await asyncio.to_thread(disk.hangs.wait, 10)
    sending.cancel()
    await deliveries.close([output])  # type: ignore[list-item]  # all of a Delivery that is asked for
    assert deliveries._closing, "it hangs"
    disk.is_back.set()
    changed = FileOutput("archive", config, clock=NOON.timestamp)
    async with asyncio.timeout(10):
        while deliveries._closing:
            await asyncio.sleep(0.01)
        await changed.send(batch(0, 3))
    await changed.aclose()
    assert sequences(tmp_path / "security_events.ndjson") == [0, 1, 2]
