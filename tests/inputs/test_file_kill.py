"""Kill -9 of a process that follows files into a spool: every line stands in the spool exactly once."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest
from file_site import append

from ndagent.core.spool import offline
from ndagent.wire.record import unpack_body

DRIVER = Path(__file__).with_name("kill_file_input.py")
STREAM = "security_events"


class Writer:
    """Events of one to three lines into a file that is renamed away every now and then."""

    def __init__(self, log: Path, chance: random.Random) -> None:
        self._log, self._chance = log, chance
        self._rotations = 0
        self.events: list[str] = []

    def write(self, count: int) -> None:
        for _ in range(count):
            number = len(self.events)
            lines = [f"event {number} {'x' * (number % 300)}", *["  at frame"] * self._chance.randint(0, 2)]
            append(self._log, *lines)
            self.events.append("\n".join(lines))
            if self._chance.random() < 0.01:
                self._log.rename(f"{self._log}.{self._rotations}")
                self._rotations += 1


def stored(state_dir: Path) -> list[str]:
    """The messages in the spool, as they lie there."""
    records = offline.records(state_dir / "spool" / STREAM, 0, 1 << 62)
    lines = [line for record in records for line in bytes(unpack_body(record.body).payload).splitlines()]
    return [orjson.loads(line)["message"] for line in lines]


def run(state_dir: Path, log: Path, until) -> None:
    """Run the driver, and kill it once `until(process)` returns."""
    tests = DRIVER.parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}
    command = [sys.executable, str(DRIVER), str(state_dir), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"up\n"
        try:
            until()
            assert process.poll() is None
        finally:
            process.kill()


def kill_many(tmp_path: Path, times: int) -> None:
    chance = random.Random(times)
    log, state_dir = tmp_path / "app.log", tmp_path / "state"
    writer = Writer(log, chance)

    def some_time() -> None:
        end = time.monotonic() + chance.random() * 0.6
        while time.monotonic() < end:
            writer.write(chance.randint(1, 60))
            time.sleep(0.01)

    def everything_is_there() -> None:
        deadline = time.monotonic() + 60
        while len(stored(state_dir)) < len(writer.events):
            assert time.monotonic() < deadline, f"{len(stored(state_dir))} of {len(writer.events)}"
            time.sleep(0.1)

    for _ in range(times):
        run(state_dir, log, some_time)
        writer.write(chance.randint(0, 100))
        assert offline.verify(state_dir / "spool" / STREAM) == []
    run(state_dir, log, everything_is_there)
    found, written = Counter(stored(state_dir)), Counter(writer.events)
    assert found - written == Counter()
    assert written - found == Counter()


def test_ten_kills_leave_every_event_in_the_spool_exactly_once(tmp_path):
    """While it is written to, rotated, and in the midst of multi-line events."""
    kill_many(tmp_path, 10)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fifty_kills_leave_every_event_in_the_spool_exactly_once(tmp_path):
    """The same, often enough to meet rare moments."""
    kill_many(tmp_path, 50)
