"""The audit trail: whole lines on the disk, bounded, shared by daemon and commands."""

import json
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from ndcollector.audit import Audit


def lines(directory: Path) -> list[dict[str, object]]:
    """Every line of every file, the oldest file first; raises where one is not whole."""
    found = [*sorted(directory.glob("audit-*.ndjson")), directory / "audit.ndjson"]
    return [json.loads(line) for path in found for line in path.read_text().splitlines()]


def trail(directory: Path, **limits: int) -> Audit:
    return Audit(directory, by="test", clock=lambda: 1_800_000_000.25, **limits)


def test_a_line_says_when_what_and_who(tmp_path: Path) -> None:
    """And what a peer said is cut, not refused."""
    trail(tmp_path).record("agent_enrolled", agent_id="a", text="x" * 5000, odd=Path("/x"))
    (line,) = lines(tmp_path)
    assert line == {
        "time": "2027-01-15T08:00:00.250+00:00",
        "kind": "agent_enrolled",
        "by": "test",
        "agent_id": "a",
        "text": "x" * 1000,
        "odd": "/x",
    }
    assert stat.S_IMODE((tmp_path / "audit.ndjson").stat().st_mode) & 0o007 == 0


def test_what_a_crash_tore_does_not_swallow_the_next_line(tmp_path: Path) -> None:
    """The torn one stays to be seen; the next begins on a line of its own."""
    trail(tmp_path).record("one")
    with (tmp_path / "audit.ndjson").open("ab") as stream:
        stream.write(b'{"time": "2027')
    trail(tmp_path).record("two")
    text = (tmp_path / "audit.ndjson").read_text().splitlines()
    assert json.loads(text[-1])["kind"] == "two"
    assert len(text) == 3


def test_the_trail_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    """Files are full to the limit and no further, also when many fill up within a second."""
    audit = trail(tmp_path, max_bytes=1000, keep=3)
    for number in range(200):
        audit.record("n", number=number)
    files = [*tmp_path.glob("audit-*.ndjson"), tmp_path / "audit.ndjson"]
    assert len(files) == 4
    assert all(800 < one.stat().st_size <= 1000 for one in files[:-1])
    numbers = [line["number"] for line in lines(tmp_path)]
    assert numbers == list(range(numbers[0], 200))  # type: ignore[arg-type]  # numbers


def _write(directory: Path, name: int) -> None:
    audit = trail(directory, max_bytes=4000, keep=1000)
    for number in range(100):
        audit.record("n", number=number, name=name)


def test_daemon_and_commands_lose_nothing_of_each_other(tmp_path: Path) -> None:
    """Three processes write through many rotations; each one's lines are all there, in order."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(tmp_path, name)) for name in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = lines(tmp_path)
    for name in range(3):
        assert [line["number"] for line in found if line["name"] == name] == list(range(100))


def test_the_line_is_synced_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of system calls is the promise."""
    calls: list[str] = []
    for name in ("write", "fsync"):
        real = getattr(os, name)

        def noted(*arguments: object, _name: str = name, _real: object = real) -> object:
            calls.append(_name)
            return _real(*arguments)  # type: ignore[operator]  # the function it stands for

        monkeypatch.setattr(os, name, noted)
    trail(tmp_path).record("one")
    assert calls[-2:] == ["write", "fsync"]


def test_a_thousand_lines_take_no_time_but_the_disks(tmp_path: Path) -> None:
    """A refused flood is throttled elsewhere; still a line must be cheap."""
    audit = trail(tmp_path)
    began = time.process_time()
    for number in range(1000):
        audit.record("n", number=number)
    assert time.process_time() - began < 1
