"""`ndcollector demo --kafka` with the broker that `make demo` gives it: what it shows, checks and leaves behind."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from collector_process import ROOT
from services import fetch
from services.kafka import Cluster
from services.need import need

from ndcollector.demo import bus
from ndcollector.demo.broker import COMMAND

pytestmark = [pytest.mark.service, pytest.mark.timeout(180)]
BROKER = shlex.join(["env", f"PYTHONPATH={ROOT / 'tests'}", sys.executable, "-m", "services.demo_broker"])


def demo(*arguments: str, state: Path) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "ndcollector", "demo", "--kafka", "--state", str(state), *arguments]


def environment(broker: str = BROKER) -> Mapping[str, str]:
    """As `make demo` sets it."""
    return {**os.environ, COMMAND: broker}


def still_here(state: Path) -> list[str]:
    """Processes that have the demo's directory in their command line."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                lines.append((entry / "cmdline").read_bytes().decode())
            except OSError:  # it ended meanwhile
                continue
    return [line for line in lines if str(state) in line]


def test_a_demo_that_stays_can_be_looked_into_and_then_ends_whole(tmp_path: Path) -> None:
    """What it tells a person to type works: Kafka's own consumer, the topics' difference; Ctrl-C ends all of it."""
    need(fetch.KAFKA)
    command = demo("--events", "3000", state=tmp_path / "demo")
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            shown = until_it_waits(running)
            (consumer,) = (line for line in shown if "ConsoleConsumer" in line)
            consumed = subprocess.run(shlex.split(consumer), capture_output=True, text=True, timeout=60, check=True)
            values = [json.loads(line.partition("\t")[2]) for line in consumed.stdout.splitlines()]
            (diff,) = (line for line in shown if "topics diff" in line)
            words = [sys.executable, "-m", *shlex.split(diff[diff.index("ndcollector topics") :])]
            difference = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            running.send_signal(signal.SIGINT)
            out, errors = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 0, errors
    assert {"message", "event"} <= values[2].keys()
    assert (difference.returncode, difference.stdout.splitlines()[-1].strip()) == (0, "nothing to change")
    assert "A consumer counted 3,000 events on them:" in shown
    assert any("ndcollector tap" in line for line in shown)
    assert out.splitlines()[-1] == "received 3000 · delivered 3000 · dropped 0"
    assert still_here(tmp_path) == []


def until_it_waits(running: "subprocess.Popen[str]") -> list[str]:
    """What a demo has shown by the time that it waits for Ctrl-C."""
    assert running.stderr
    assert running.stdout
    while not (line := running.stderr.readline()).startswith("All sent"):
        assert line, "the demo ended by itself"
    return [line.strip() for line in os.read(running.stdout.fileno(), 65536).decode().splitlines()]


@pytest.mark.parametrize(
    ("broker", "why"), [("", 'make demo ARGS="--kafka"'), ("false", "no broker: false"), ("echo", "no broker: echo")]
)
def test_without_a_broker_it_says_what_to_do(tmp_path: Path, broker: str, why: str) -> None:
    """No traceback, no collector, status 1."""
    done = subprocess.run(
        demo("--events", "10", "--exit", state=tmp_path / "demo"), env=environment(broker),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert still_here(tmp_path) == []


async def test_an_event_that_stands_twice_on_a_topic_is_counted_once(kafka: Cluster, topic: str) -> None:
    """And one that is not there is not counted: the demo's exit status hangs on it."""
    kafka.create_topic(topic, partitions=3)
    numbers = [0, 1, 3, 3, 3]
    kafka.console_produce(topic, [(f"h{n}", json.dumps({"event": {"id": f"spool-{n}"}})) for n in numbers])
    size = await bus.size(kafka.bootstrap(), topic)
    assert (size.partitions, size.records) == (3, 5)
    counted = await bus.count(kafka.bootstrap(), topic)
    assert (counted.events, counted.records) == (3, 5)


async def test_an_empty_topic_counts_nothing(kafka: Cluster, topic: str) -> None:
    """Nothing is waited for."""
    kafka.create_topic(topic, partitions=2)
    assert await bus.count(kafka.bootstrap(), topic) == bus.Counted(0, 0, [])
    assert await bus.size(kafka.bootstrap(), topic) == bus.Size(2, 0, 0)
