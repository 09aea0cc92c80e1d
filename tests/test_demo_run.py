"""`ndcollector demo` as a user runs it: a real collector, real TLS, and an exit status that can be trusted."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("demo")  # two at once may choose the same ports
LEDGER = re.compile(r"received (\d+) · delivered (\d+) · dropped (\d+)")


def demo(*arguments: str, state: Path) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "ndcollector", "demo", "--state", str(state), *arguments]


def daemons(state: Path) -> list[int]:
    """Collectors that serve this directory."""
    others = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and int(entry.name) != os.getpid()]
    found = []
    for entry in others:
        with suppress(OSError):  # it ended meanwhile
            if f"{state}/ndcollector.yaml".encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def test_a_counted_demo_ends_by_itself_and_its_ledger_adds_up(tmp_path: Path) -> None:
    """The newcomer's first minute; the last line is read by scripts. A second run replaces the first."""
    for _ in range(2):
        done = subprocess.run(
            demo("--events", "2000", "--exit", state=tmp_path), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "received 2000 · delivered 2000 · dropped 0"
        assert "What to type next" in done.stdout
        assert (tmp_path / "events/security_events.ndjson").read_bytes().count(b"\n") == 2000
    assert daemons(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_endless_demo_ends_in_order_when_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C stops the senders first, so that nothing is cut; and no daemon stays behind."""
    running = subprocess.Popen(demo(state=tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr
    while "received 0" in (line := running.stderr.readline()) or not line.startswith("sent"):
        assert line, "the demo ended by itself"
    running.send_signal(number)
    out, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    ledger = LEDGER.fullmatch(out.splitlines()[-1])
    assert ledger
    assert int(ledger[1]) == int(ledger[2]) > 0
    assert daemons(tmp_path) == []


def test_a_demo_whose_collector_dies_says_so(tmp_path: Path) -> None:
    """Exit status 0 must mean something."""
    running = subprocess.Popen(demo(state=tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr
    while not running.stderr.readline().startswith("sent"):
        assert running.poll() is None
    (daemon,) = daemons(tmp_path)
    os.kill(daemon, signal.SIGKILL)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "the collector ended with status" in errors


def test_a_directory_that_is_not_a_demos_is_left_alone(tmp_path: Path) -> None:
    """`--state /etc` must not be the end of a machine."""
    (tmp_path / "precious").touch()
    done = subprocess.run(demo(state=tmp_path), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "not from a demo" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
