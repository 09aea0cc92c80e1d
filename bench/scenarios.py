"""What is measured. Each function starts one contender afresh, loads it, checks what arrived, returns plain figures.

Promises: a rate is from the first byte sent until the last line is in the file; CPU is the server's, all threads, for
that same work; every message is accounted for. Figures of a run that lost something are reported with the loss.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import payload
from contenders import CONTENDERS, Running, start_ours
from measure import MemoryWatch, cpu_seconds, resident_bytes
from verify import Arrived, Follower, wait_until_quiet

Result = dict[str, Any]
_LOAD = Path(__file__).with_name("load.py")
_PATIENCE_SECONDS = 60  # a stalled disk is no loss
_STREAM = 99_999  # the connection that streams while others storm


@dataclass(frozen=True)
class Bench:
    """Where a run happens and with which certificates."""

    directory: Path
    pki: Path
    loads: "list[subprocess.Popen[str]]" = field(default_factory=list)  # begun for the contender that runs

    @contextmanager
    def running(self, start: Callable[[Path, Path], Running], name: str) -> Iterator[Running]:
        """A contender in a directory of its own, ended with the context; what it wrote is removed."""
        home = self.directory / f"{name}-{time.monotonic_ns()}"
        home.mkdir()
        contender = start(home, self.pki)
        try:
            yield contender
        finally:
            while self.loads:
                self.loads.pop().kill()  # ended already, unless the scenario failed
            contender.process.stop(timeout_seconds=60)
            contender.output.unlink(missing_ok=True)

    def load(self, mode: str, contender: Running, *arguments: object) -> "subprocess.Popen[str]":
        """The load generator at work; talk to it by its pipes."""
        command: list[object] = [sys.executable, _LOAD, mode, "--port", contender.port, "--pki", self.pki, *arguments]
        load = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.loads.append(load)
        return load

    def measure(self, contender: Running, sent: Mapping[int, int], mode: str, *arguments: object) -> Result:
        """Run a load to its end and say what it cost and what arrived."""
        events = sum(sent.values())
        process = self.load(mode, contender, *arguments)
        answer(process)  # it is connected: handshakes are not part of the price of an event
        cpu_before = cpu_seconds(contender.pid)
        tell(process, "go")
        load = finish(process)
        cpu, arrived = _settle(contender, sent)
        peak = resident_bytes(contender.pid, "VmHWM")
        return {
            "events": events,
            "events_per_second": events / (arrived.finished - load["started"]),
            "cpu_us_per_event": (cpu - cpu_before) / events * 1e6,
            "peak_rss_bytes": peak,
            "client_cpu_us_per_event": load["cpu_seconds"] / events * 1e6,
            "bytes_per_line": arrived.size_bytes / max(arrived.lines, 1),
            **_verdict(arrived),
        }


def _settle(contender: Running, sent: Mapping[int, int]) -> tuple[float, Arrived]:
    """The server's CPU seconds and what arrived, once all has, or once nothing more came for a long while.

    The file is read only when it has been quiet, so that reading it costs neither rate nor CPU of the measurement.
    """
    follower = Follower(contender.output)
    while True:
        wait_until_quiet(contender.output)
        cpu = cpu_seconds(contender.pid)
        follower.read()
        arrived = follower.arrived(sent)
        if arrived.complete or time.time() - arrived.finished > _PATIENCE_SECONDS:
            return cpu, arrived
        time.sleep(0.5)


def finish(load: "subprocess.Popen[str]") -> dict[str, float]:
    """End its stdin, wait for it, and read its report."""
    out, _ = load.communicate()
    if load.returncode:
        raise RuntimeError(f"the load generator failed with {load.returncode}")
    report: dict[str, float] = json.loads(out)
    return report


def _verdict(arrived: Arrived) -> Result:
    return {
        "lines": arrived.lines,
        "missing": arrived.missing,
        "duplicates": arrived.duplicates,
        "out_of_order": arrived.out_of_order,
    }


def bulk(bench: Bench, name: str, *, events: int) -> Result:
    """One connection, sent as fast as it is read."""
    path = payload.write(bench.directory / f"bulk-{events}.octet", connection=0, count=events, framing="octet")
    with bench.running(CONTENDERS[name], name) as contender:
        return bench.measure(contender, {0: events}, "bulk", "--payload", path)


def single(bench: Bench, name: str, *, connections: int, count: int) -> Result:
    """Many connections, each event in a TLS record of its own."""
    sent = dict.fromkeys(range(connections), count)
    with bench.running(CONTENDERS[name], name) as contender:
        return bench.measure(contender, sent, "single", "--connections", connections, "--count", count)


def idle(bench: Bench, *, connections: int) -> Result:
    """Thousands of idle connections, then all of them reconnecting at once while another one streams."""
    limits = {"connections": connections * 2 + 100, "connections_per_address": connections * 2 + 100}
    settings = {"inputs": {"syslog_tls": {"limits": limits}}}

    def start(directory: Path, pki: Path) -> Running:
        return start_ours(directory, pki, settings=settings)

    with bench.running(start, "ndcollector-idle") as contender:
        empty = resident_bytes(contender.pid)
        crowd = bench.load("idle", contender, "--connections", connections)
        opened = _ask(crowd, "open")
        time.sleep(2)  # handshake garbage is freed, the figure is of idle connections
        held = resident_bytes(contender.pid)
        cpu_before, asleep = cpu_seconds(contender.pid), 5.0
        time.sleep(asleep)
        idle_cpu = (cpu_seconds(contender.pid) - cpu_before) / asleep
        storm = _storm(bench, contender, crowd, connections)
        _finish_crowd(crowd)
        return {
            "connections": connections,
            "connect_seconds": opened["ended"] - opened["started"],
            "rss_empty_bytes": empty,
            "rss_held_bytes": held,
            "bytes_per_connection": (held - empty) / connections,
            "idle_cpu_share": idle_cpu,
            "peak_rss_bytes": resident_bytes(contender.pid, "VmHWM"),
            **storm,
        }


def _storm(bench: Bench, contender: Running, crowd: "subprocess.Popen[str]", connections: int) -> Result:
    """All drop and reconnect, each sending one event; served when the last of these events is in the file."""
    stream = bench.load("stream", contender, "--connection", _STREAM)
    follower = Follower(contender.output)
    while not follower.lines:
        time.sleep(0.05)
        follower.read()
    tell(crowd, "storm")
    deadline = time.time() + 300
    while len(follower.seen) < connections + 1 and time.time() < deadline:
        time.sleep(0.05)
        follower.read()
    served = time.time()
    storm = answer(crowd)
    streamed = finish(stream)
    wait_until_quiet(contender.output)
    follower.read()
    arrived = follower.arrived({**dict.fromkeys(range(connections), 1), _STREAM: int(streamed["count"])})
    return {
        "served_seconds": served - storm["started"],
        "refused_at_first": storm["refused"],
        "streamed_events": streamed["count"],
        "streamed_longest_wait_seconds": streamed["longest_send"],
        **_verdict(arrived),
    }


def tell(crowd: "subprocess.Popen[str]", command: str) -> None:
    assert crowd.stdin is not None
    crowd.stdin.write(command + "\n")
    crowd.stdin.flush()


def answer(crowd: "subprocess.Popen[str]") -> dict[str, float]:
    assert crowd.stdout is not None
    answer: dict[str, float] = json.loads(crowd.stdout.readline())
    return answer


def _ask(crowd: "subprocess.Popen[str]", command: str) -> dict[str, float]:
    tell(crowd, command)
    return answer(crowd)


def _finish_crowd(crowd: "subprocess.Popen[str]") -> None:
    tell(crowd, "stop")
    crowd.wait(60)


def overload(bench: Bench, *, seconds: float, connections: int = 8, events: int = 400_000) -> Result:
    """Several bulk senders against an output that does not work, until the spool is full and long after; then it works.

    The output's directory cannot be made because a file stands in its place; removing the file is the cure.
    """
    obstacle = bench.directory / f"obstacle-{time.monotonic_ns()}"
    obstacle.touch()
    archive = {
        "path": str(obstacle / "{stream}.ndjson"),
        "retry": {"maximum": "2s"},
        "breaker": {"open_for": "2s"},
    }
    settings = {"spool": {"max_bytes": "128MiB", "segment_bytes": "16MiB"}, "outputs": {"archive": archive}}
    paths = [
        payload.write(bench.directory / f"over-{n}-{events}.octet", connection=n, count=events, framing="octet")
        for n in range(connections)
    ]

    def start(directory: Path, pki: Path) -> Running:
        running = start_ours(directory, pki, settings=settings)
        running.output = obstacle / "security_events.ndjson"
        return running

    with bench.running(start, "ndcollector-overload") as contender:
        with MemoryWatch(contender.pid) as watch:
            load = bench.load("bulk", contender, "--payload", *paths)
            answer(load)
            tell(load, "go")
            time.sleep(seconds)
        still_blocked = load.poll() is None
        stopped = list(watch.samples)
        obstacle.unlink()
        finish(load)
        wait_until_quiet(contender.output, quiet_seconds=5, timeout_seconds=300)
        follower = Follower(contender.output)
        follower.read()
        arrived = follower.arrived(dict.fromkeys(range(connections), events))
        full = stopped[len(stopped) // 3 :]  # the first third fills the spool
        return {
            "seconds": seconds,
            "senders_blocked": still_blocked,
            "rss_first_full_bytes": full[0],
            "rss_last_bytes": full[-1],
            "rss_growth_bytes": max(full) - full[0],
            "peak_rss_bytes": resident_bytes(contender.pid, "VmHWM"),
            **_verdict(arrived),
        }
