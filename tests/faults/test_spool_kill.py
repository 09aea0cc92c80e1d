"""Kill -9 of a process that appends: at random moments, and at every named fault point."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_spool import POINTS
from spool_layers import messages

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig, offline

DRIVER = Path(__file__).with_name("kill_spool.py")


def run_until_killed(directory: Path, first: int, *, acks: int = 0, point: str = "", nth: int = 0) -> list[int]:
    """Start the driver, kill it after so many acknowledgements (or let it kill itself); what it acknowledged."""
    arguments = [str(directory), str(first), *([point, str(nth)] if point else [])]
    tests = DRIVER.parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}
    command = [sys.executable, str(DRIVER), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        data = b""
        while block := os.read(process.stdout.fileno(), 65536):
            data += block
            if not point and data.count(b"\n") >= acks:
                process.kill()
                acks = 1 << 60
        assert process.wait() == -9
    return [int(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


async def stored(directory: Path) -> set[int]:
    """Open as a daemon would, within two seconds, and read everything that the slow cursor still needs."""
    started = time.monotonic()
    spool = await Spool.open(directory, stream="test", config=SpoolConfig(), metrics=Metrics())
    assert time.monotonic() - started < 2
    found = set()
    cursor = spool.cursor("keeps")
    while cursor.sequence < spool.next_sequence:
        for record in await cursor.read(1 << 20):
            found.update(int(text.partition(":")[0]) for text in messages(record))
            cursor.advance(record.end)
    account = cursor.account()
    assert account.appended == account.delivered == len(found)
    await spool.aclose()
    return found


async def kill_many(directory: Path, times: int) -> None:
    chance = random.Random(times)
    acknowledged: set[int] = set()
    for _ in range(times):
        first = max(acknowledged, default=-1) + 1000
        acknowledged.update(run_until_killed(directory, first, acks=chance.randint(1, 400)))
        assert offline.verify(directory) == []
    assert acknowledged <= await stored(directory)
    assert offline.verify(directory) == []


async def test_ten_kills_at_random_lose_nothing_acknowledged(tmp_path):
    """The ack law on a real process and a real file system."""
    await kill_many(tmp_path / "spool", 10)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_hundred_kills_at_random_lose_nothing_acknowledged(tmp_path):
    """The same, often enough to meet rare moments."""
    await kill_many(tmp_path / "spool", 100)


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_a_named_point_loses_nothing_acknowledged(tmp_path, point):
    """Random kills rarely fall between two file operations; these always do."""
    directory = tmp_path / "spool"
    if point == "segment_deleted":
        run_until_killed(directory, 0, point=point, nth=2)
        assert offline.verify(directory) == []
        return
    acknowledged = set(run_until_killed(directory, 0, point=point, nth=5))
    assert offline.verify(directory) == []
    assert acknowledged <= await stored(directory)
