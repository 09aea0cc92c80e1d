"""The agent, and Debian's rsyslog and syslog-ng as agents, on the same file: footprint, a trickle, a backlog.

    python bench/agent.py [--lines 300000] [--seconds 10] [--repeat 1] [--only NAME …]

Promises: each shipper is a fresh process that tails one file and sends over mutual TLS to one collector of ours on the
same machine; every line is numbered, and what is missing or came twice at the collector's output is said. CPU is the
shipper's own, all threads, from the kernel's books; `core` is lines per second of that CPU, what one core would do
where the clock is shared with other work.

What is compared is not equal: ours makes an ECS event of each line, writes it to its spool with fsync, compresses, and
counts it as sent when the collector has it on its disk; the other two send syslog uncompressed, keep their queue in
memory and hear of nothing behind TCP (a connection that breaks loses what was under way).
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]

from agent_process import AgentSite  # noqa: E402 - found by the line above
from measure import cpu_seconds, resident_bytes  # noqa: E402
from services import rsyslog, syslog_ng  # noqa: E402
from services.fetch import ServiceMissingError  # noqa: E402
from services.process import ServiceProcess, free_port  # noqa: E402

_NUMBER = re.compile(rb"n(\d{9}) ")
_PATIENCE_SECONDS = 180
_TARGETS = (
    ("RSS idle, one transport, MB", "idle_mb", 45.0, False),
    ("% of a core at 100 events/s", "trickle_percent", 1.0, False),
    ("start, s of CPU", "start_cpu_seconds", 0.5, False),
    ("lines/s of one core", "core", 30_000.0, True),
)
"""Of the issue: what, which figure, how much, whether more is better."""


_COLUMNS = {
    "start_cpu_seconds": ("start CPU s", ".2f"), "idle_mb": ("idle MB", ".1f"), "after_mb": ("after MB", ".1f"),
    "peak_mb": ("peak MB", ".1f"), "trickle_percent": ("% at 100/s", ".2f"), "cpu_us_per_line": ("CPU µs/line", ".1f"),
    "core": ("lines/s/core", ",.0f"), "lines_per_second": ("lines/s clock", ",.0f"),
    "collector_us_per_line": ("collector µs", ".1f"), "missing": ("missing", ".0f"), "repeated": ("repeated", ".0f"),
}  # fmt: skip
"""Which figure, its heading, its form."""


@dataclass(frozen=True)
class Running:
    """A shipper that is up and tails `file`."""

    process: ServiceProcess
    file: Path
    start_seconds: float = 0.0
    start_cpu_seconds: float = 0.0


Figures = dict[str, float]
Start = Callable[[AgentSite, Path], Running]


def _line(number: int) -> bytes:
    """150 bytes, most of them different from line to line."""
    user, host, port = number * 7919 % 99_991, number * 31 % 254, number % 64_511 + 1024
    text = (
        f"n{number:09d} 2026-11-25T21:{number // 60 % 60:02d}:{number % 60:02d}.{number % 1000:03d}Z sshd[{port}]: "
        f"Accepted publickey for user{user} from 10.20.{host}.7 port {port} ssh2: ED25519 SHA256:{number * 48271:x}"
    )
    return text.encode().ljust(149, b"=")[:149] + b"\n"


def _ours(*ways: str) -> Start:
    def start(site: AgentSite, _directory: Path) -> Running:
        agent = site.enrolled("-".join(ways), outputs={way: {} for way in ways})
        began = time.monotonic()
        agent.start()
        took = time.monotonic() - began
        pid = agent.process.pid
        return Running(agent.process, agent.logs / "app.log", took, cpu_seconds(pid))

    return start


def _rsyslog(site: AgentSite, directory: Path) -> Running:
    file, port = directory / "app.log", free_port()
    file.touch()
    pki = site.collector.certificates.client_files
    config = rsyslog.client_config(
        directory, port=port, target=site.collector.ports[0], driver="ossl", pki=pki, peer="localhost",
        framing="octet-counted",
    )  # fmt: skip
    config += f'module(load="imfile" mode="inotify")\ninput(type="imfile" file="{file}" tag="app:")\n'
    return Running(rsyslog.start(config, directory, port=port), file)


def _syslog_ng(site: AgentSite, directory: Path) -> Running:
    file, port = directory / "app.log", free_port()
    file.touch()
    pki = site.collector.certificates.client_files
    config = syslog_ng.client_config(port=port, target=site.collector.ports[0], driver="syslog", pki=pki)
    config += f"""
source tail {{ file("{file}" follow-freq(0.2) flags(no-parse) program-override("app") log-iw-size(10000)); }};
log {{ source(tail); destination(collector); flags(flow-control); }};
"""
    return Running(syslog_ng.start(config, directory, port=port), file)


SHIPPERS: dict[str, Start] = {
    "ndagent https": _ours("https"),
    "ndagent mqtt": _ours("mqtt"),
    "ndagent mqtt+https": _ours("mqtt", "https"),
    "rsyslog": _rsyslog,
    "syslog-ng": _syslog_ng,
}


class _Arrivals:
    """Which numbered lines stand in the collector's output."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._at = 0
        self.lines = 0

    def look(self) -> int:
        """How many lines there are now; reads only what is new."""
        if self._output.exists():
            with self._output.open("rb") as stream:
                stream.seek(self._at)
                while piece := stream.read(1 << 20):
                    self._at += len(piece)
                    self.lines += piece.count(b"\n")
        return self.lines

    def numbers(self) -> list[bytes]:
        """Of all of them."""
        return _NUMBER.findall(self._output.read_bytes())


def _until(count: int, arrivals: _Arrivals, running: Running) -> None:
    running.process.wait_until(lambda: _looked(arrivals) >= count, f"{count} lines", _PATIENCE_SECONDS)


def _looked(arrivals: _Arrivals) -> int:
    time.sleep(0.1)  # counting costs the same machine
    return arrivals.look()


def _trickle(running: Running, *, first: int, seconds: float) -> float:
    """100 lines a second, ten at a time; the share of a core that takes, in percent."""
    began, before = time.monotonic(), cpu_seconds(running.process.pid)
    with running.file.open("ab", buffering=0) as log:
        for tenth in range(round(seconds * 10)):
            log.write(b"".join(_line(first + tenth * 10 + number) for number in range(10)))
            time.sleep(max(began + (tenth + 1) / 10 - time.monotonic(), 0))
    return 100 * (cpu_seconds(running.process.pid) - before) / (time.monotonic() - began)


def measure(site: AgentSite, start: Start, directory: Path, *, lines: int, seconds: float) -> Figures:
    """One shipper from its start to its last line."""
    directory.mkdir()
    arrivals = _Arrivals(site.collector.output)
    running = start(site, directory)
    pid, collector = running.process.pid, site.collector.pid
    try:
        with running.file.open("ab") as log:
            log.write(_line(0))  # one line there and back: connected, everything loaded
        _until(1, arrivals, running)
        time.sleep(2)
        found = {"start_seconds": running.start_seconds, "start_cpu_seconds": running.start_cpu_seconds}
        found["idle_mb"] = resident_bytes(pid) / 1e6
        ticks = round(seconds * 10) * 10
        found["trickle_percent"] = _trickle(running, first=1, seconds=seconds)
        _until(1 + ticks, arrivals, running)
        backlog = b"".join(_line(1 + ticks + number) for number in range(lines))
        cpu, collector_cpu, began = cpu_seconds(pid), cpu_seconds(collector), time.monotonic()
        with running.file.open("ab") as log:
            log.write(backlog)
        _until(1 + ticks + lines, arrivals, running)
        elapsed = time.monotonic() - began
        time.sleep(1.5)  # cursors and positions are saved
        cpu, collector_cpu = cpu_seconds(pid) - cpu, cpu_seconds(collector) - collector_cpu
        found |= {
            "lines_per_second": lines / elapsed, "cpu_us_per_line": cpu / lines * 1e6, "core": lines / cpu,
            "collector_us_per_line": collector_cpu / lines * 1e6, "peak_mb": resident_bytes(pid, "VmHWM") / 1e6,
            "after_mb": resident_bytes(pid) / 1e6,
        }  # fmt: skip
        numbers = arrivals.numbers()
        found["missing"] = 1 + ticks + lines - len(set(numbers))
        found["repeated"] = len(numbers) - len(set(numbers))
        return found
    finally:
        running.process.stop()


def _print(name: str, found: Sequence[Figures]) -> Figures:
    """One row of medians."""
    middle = {key: median(one[key] for one in found) for key in found[0]}
    columns = [format(middle[key], form) for key, (_, form) in _COLUMNS.items()]
    print(f"{name:19}" + "".join(f"{text:>14}" for text in columns), flush=True)
    return middle


def _verdict(name: str, found: Figures) -> None:
    for what, key, limit, more in _TARGETS:
        good = found[key] >= limit if more else found[key] <= limit
        bound = f"at {'least' if more else 'most'} {limit:,g}"
        print(f"  {name}: {what}: {found[key]:,.2f} ({bound}){'' if good else ' - MISSED'}")


def _runs(name: str, arguments: argparse.Namespace) -> list[Figures]:
    """Each with a collector of its own; none where the shipper cannot be had."""
    results = ROOT / "bench-results"
    results.mkdir(exist_ok=True)
    runs: list[Figures] = []
    for _ in range(arguments.repeat):
        # On the project's own file system: /tmp may be memory, where fsync is free.
        directory = Path(tempfile.mkdtemp(prefix="work-", dir=results))
        try:
            with AgentSite(directory / "site") as site:
                sizes = {"lines": arguments.lines, "seconds": arguments.seconds}
                runs.append(measure(site, SHIPPERS[name], directory / "shipper", **sizes))
        except ServiceMissingError as error:
            print(f"bench: without {error}", file=sys.stderr)
            break
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return runs


def main(argv: Sequence[str]) -> int:
    """Run and print; 1 if a line was lost: targets that are missed are said, noise is the machine's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=300_000, help="of the backlog")
    parser.add_argument("--seconds", type=float, default=10, help="of the trickle")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(SHIPPERS), default=list(SHIPPERS))
    arguments = parser.parse_args(argv)
    print(f"{'':19}" + "".join(f"{heading:>14}" for heading, _ in _COLUMNS.values()))
    summary: dict[str, Figures] = {}
    lost = 0.0
    for name in arguments.only:
        if runs := _runs(name, arguments):
            summary[name] = _print(name, runs)
            lost += sum(one["missing"] for one in runs)
    print(f"load average {os.getloadavg()[0]:.1f}: CPU is what counts, the clock is shared")
    for name, found in summary.items():
        if name.startswith("ndagent"):
            _verdict(name, found)
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
