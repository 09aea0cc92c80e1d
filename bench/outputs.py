"""How fast outputs that speak HTTP empty a spool, and what a dead one costs the others.

    python bench/outputs.py [--events 1000000] [--repeat 3] [--rows https https-zstd …] [--through | --dead]

A row's collector takes the events while nobody listens where its output sends to; then the receiver (receiver.py, a
process of its own) is started, and counts. Promises: a rate is from the first request that the receiver has until the
last event, decoding included; CPU is the collector's in that time, all threads; exit status 1 if an event is missing.
`--through`: syslog over TLS in and HTTP out at the same time, from the first byte sent; with `rsyslog-elasticsearch`,
Debian's omelasticsearch in bulk mode, its queue in memory (Debian has no omhttp; and one that finds nobody at first
sends each event alone and some twice, so that its drain would be no comparison).
`--dead`: syslog into a file, alone and beside an output whose far side takes connections and never answers, in turn.
Target: less than 2 % of rate and CPU.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]

import payload  # noqa: E402 - found by the line above
from collector_process import Certificates  # noqa: E402
from contenders import RSYSLOG_CONFIG, Running, start_ours  # noqa: E402
from measure import cpu_seconds, resident_bytes  # noqa: E402
from scenarios import Bench, Result, answer, finish, tell  # noqa: E402
from services import fetch, rsyslog  # noqa: E402
from services.process import free_port, listens  # noqa: E402

RSYSLOG = fetch.Service(
    "rsyslog-elasticsearch", ("rsyslog", "rsyslog-openssl", "rsyslog-elasticsearch"), "usr/sbin/rsyslogd", "-v"
)
_PATIENCE_SECONDS = 60.0
_AT_ONCE = {"initial": "500ms", "maximum": "500ms"}
_NEVER_OPEN = {"failures": 1_000_000}
"""The receiver is away while the spool fills; the measurement is of the drain and not of the waits before it."""

OUTPUTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "https": lambda port: {"type": "https", "url": f"http://127.0.0.1:{port}/in"},
    "https-plain": lambda port: {"type": "https", "url": f"http://127.0.0.1:{port}/in", "compression": "none"},
    "https-zstd": lambda port: {"type": "https", "url": f"http://127.0.0.1:{port}/in", "compression": "zstd"},
    "elasticsearch": lambda port: {"type": "elasticsearch", "url": f"http://127.0.0.1:{port}", "template": "none"},
    "splunk_hec": lambda port: {"type": "splunk_hec", "url": f"http://127.0.0.1:{port}", "token": "t", "health": None},
    "https-array": lambda port: {"type": "https", "url": f"http://127.0.0.1:{port}/in", "encoding": "json_array"},
}
"""A row of ours: the output's settings for a receiver on a port. The first is with defaults."""

_OMFILE = 'action(type="omfile" file="{output}" template="ecs" ioBufferSize="256k")'
_OMELASTICSEARCH = """action(type="omelasticsearch" server="127.0.0.1" serverport="{target}" template="ecs"
        searchIndex="logs" searchType="" bulkmode="on" maxbytes="4m" action.resumeInterval="1"
        action.resumeRetryCount="-1")"""


def _start_rsyslog(directory: Path, pki: Path, target: int, events: int) -> Running:
    port, output = free_port(), directory / "unused"
    action = _OMELASTICSEARCH.replace("{target}", str(target))
    text = RSYSLOG_CONFIG.replace(_OMFILE, action).replace('size="250000"', f'size="{events + 10_000}"')
    config = 'module(load="omelasticsearch")\n' + text.format(directory=directory, pki=pki, port=port, output=output)
    return Running(rsyslog.start(config, directory, port=port, service=RSYSLOG), port, output)


def _start_ours(row: str) -> Callable[[Path, Path, int, int], Running]:
    def start(directory: Path, pki: Path, target: int, _events: int) -> Running:
        siem = {**OUTPUTS[row](target), "retry": _AT_ONCE, "breaker": _NEVER_OPEN, "endpoint_breaker": _NEVER_OPEN}
        return start_ours(directory, pki, settings={"outputs": {"siem": siem}}, only=("siem",))

    return start


ROWS = {**{row: _start_ours(row) for row in OUTPUTS}, "rsyslog-elasticsearch": _start_rsyslog}


@contextmanager
def receiver(port: int, *options: str) -> Iterator[None]:
    """receiver.py at work, until the end of the context."""
    command = [sys.executable, str(Path(__file__).with_name("receiver.py")), "--port", str(port), *options]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not listens(port)() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


def _report(port: int) -> dict[str, float]:
    """What the receiver has counted; nothing while it starts."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/report", timeout=5) as reply:
            report: dict[str, float] = json.loads(reply.read())
            return report
    except OSError:
        return {"events": 0, "requests": 0, "body_bytes": 0, "first": 0.0, "last": 0.0}


def drain(bench: Bench, row: str, *, events: int) -> Result:
    """Fill, let the receiver come, wait until it has all."""
    path = payload.write(bench.directory / f"bulk-{events}.octet", connection=0, count=events, framing="octet")
    target = free_port()
    with bench.running(lambda home, pki: ROWS[row](home, pki, target, events), row) as contender:
        load = bench.load("bulk", contender, "--payload", path)
        answer(load)
        tell(load, "go")
        finish(load)
        _settle(contender.pid)
        before = cpu_seconds(contender.pid)
        with receiver(target):
            report = _until_quiet(target, events)
        cpu = cpu_seconds(contender.pid) - before
        peak = resident_bytes(contender.pid, "VmHWM")
    return _result(report, events=events, cpu=cpu, peak=peak)


def through(bench: Bench, row: str, *, events: int) -> Result:
    """Syslog in, HTTP out."""
    path = payload.write(bench.directory / f"bulk-{events}.octet", connection=0, count=events, framing="octet")
    target = free_port()
    with (
        receiver(target),
        bench.running(lambda home, pki: ROWS[row](home, pki, target, events), row) as contender,
    ):
        load = bench.load("bulk", contender, "--payload", path)
        answer(load)
        before = cpu_seconds(contender.pid)
        tell(load, "go")
        report = _until_quiet(target, events)
        cpu = cpu_seconds(contender.pid) - before
        peak = resident_bytes(contender.pid, "VmHWM")
        report["first"] = finish(load)["started"]
    return _result(report, events=events, cpu=cpu, peak=peak)


def _result(report: Mapping[str, float], *, events: int, cpu: float, peak: int) -> Result:
    seconds = report["last"] - report["first"]
    return {
        "events_per_second": report["events"] / seconds if seconds > 0 else 0.0,
        "cpu_us_per_event": cpu / events * 1e6,
        "bytes_per_event": report["body_bytes"] / max(report["events"], 1),
        "requests": report["requests"],
        "peak_rss_bytes": peak,
        "missing": events - report["events"],
    }


def _settle(pid: int) -> None:
    """Wait until the contender has taken what was sent and does little more."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        before = cpu_seconds(pid)
        time.sleep(0.5)
        if cpu_seconds(pid) - before <= 0.1:
            return


def _until_quiet(port: int, events: int) -> dict[str, float]:
    report = _report(port)
    changed = time.monotonic()
    while report["events"] < events and time.monotonic() - changed < _PATIENCE_SECONDS:
        time.sleep(0.1)
        now = _report(port)
        if now["events"] != report["events"]:
            report, changed = now, time.monotonic()
    return report


def dead(bench: Bench, *, events: int) -> dict[str, Result]:
    """Syslog into a file, alone and beside a dead output."""
    path = payload.write(bench.directory / f"bulk-{events}.octet", connection=0, count=events, framing="octet")
    found = {}
    for name in ("alone", "beside a dead one"):
        port = free_port()
        more: Mapping[str, Any] = {"outputs": {"siem": OUTPUTS["https"](port)}} if name != "alone" else {}
        with (
            receiver(port, "--silent"),
            bench.running(lambda home, pki, more=more: start_ours(home, pki, settings=more), "dead") as contender,
        ):
            found[name] = bench.measure(contender, {0: events}, "bulk", "--payload", path)
    return found


def _print(results: Mapping[str, list[Result]]) -> None:
    print(f"{'':24}{'events/s':>12}{'lowest to highest':>22}{'CPU µs/event':>14}{'bytes/event':>13}{'peak RSS MB':>13}")
    for name, runs in results.items():
        rate = sorted(run["events_per_second"] for run in runs)
        spread = f"{rate[0]:,.0f} to {rate[-1]:,.0f}"
        cpu, size, peak = (
            statistics.median(run.get(key, 0.0) for run in runs)
            for key in ("cpu_us_per_event", "bytes_per_event", "peak_rss_bytes")
        )
        print(f"{name:24}{statistics.median(rate):12,.0f}{spread:>22}{cpu:14.2f}{size:13.0f}{peak / 1e6:13.0f}")


def main(argv: Sequence[str]) -> int:
    """Measure in turn and print the tables; 1 if a receiver has more or less than was sent."""
    parser = argparse.ArgumentParser(description="outputs that speak HTTP")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--through", action="store_true", help="syslog in and HTTP out at the same time")
    kind.add_argument("--dead", action="store_true", help="the cost of a dead output for another one")
    arguments = parser.parse_args(argv)
    rows = arguments.rows or [row for row in ROWS if arguments.through or row in OUTPUTS]
    measure = through if arguments.through else drain
    if "rsyslog-elasticsearch" in rows:
        fetch.ensure(RSYSLOG)
    (ROOT / "bench-results").mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="work-", dir=ROOT / "bench-results"))
    results: dict[str, list[Result]] = {}
    try:
        Certificates.make(directory / "pki")
        bench = Bench(directory, directory / "pki")
        for _ in range(arguments.repeat):
            if arguments.dead:
                found = dead(bench, events=arguments.events)
            else:
                found = {row: measure(bench, row, events=arguments.events) for row in rows}
            for name, result in found.items():
                results.setdefault(name, []).append(result)
                print(name, {key: round(value, 2) for key, value in result.items()}, file=sys.stderr)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    _print(results)
    return int(any(run["missing"] for runs in results.values() for run in runs))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
