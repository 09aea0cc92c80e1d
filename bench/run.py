"""Side by side in one run: our collector, Debian's rsyslog and syslog-ng, on the same certificates and the same load.

    python bench/run.py                            all parts, a few minutes
    python bench/run.py --only bulk --repeat 5     one part
    python bench/run.py --contenders ndcollector   without the others
    python bench/run.py --overload-seconds 600     the long overload (make bench-long)

Promises: contenders alternate and each run is a fresh process; the table gives medians with the spread (lowest to
highest), ratios to rsyslog, and each target with what was reached; all raw figures go to `bench-results/` as JSON.
Exit status 1 if an event was lost; a target that was missed is printed, not an error: noise is the machine's.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]

from collector_process import Certificates  # noqa: E402 - found by the line above
from contenders import CONTENDERS  # noqa: E402
from report import print_report  # noqa: E402
from scenarios import Bench, Result, bulk, idle, overload, single  # noqa: E402
from services.fetch import SERVICES, ServiceMissingError, ensure  # noqa: E402

PARTS = ("bulk", "single", "idle", "overload")
_SLOW = {"syslog-ng": 10}  # contender → how many times fewer events it gets, to end in the same time


def _alternate(
    names: Sequence[str], repeat: int, run: Callable[[str], Result], *, part: str
) -> dict[str, list[Result]]:
    """Every contender `repeat` times, in turn, each round beginning with another one."""
    results: dict[str, list[Result]] = {name: [] for name in names}
    for round_number in range(repeat):
        shift = round_number % len(names)
        for name in (*names[shift:], *names[:shift]):
            result = run(name)
            result["load_average"] = os.getloadavg()[0]
            results[name].append(result)
            print(
                f"{part} {name} {round_number + 1}/{repeat}: {result['events_per_second']:,.0f} events/s, "
                f"{result['cpu_us_per_event']:.2f} CPU µs/event, missing {result['missing']}",
                file=sys.stderr,
                flush=True,
            )
    return results


def _run(arguments: argparse.Namespace, bench: Bench) -> dict[str, object]:
    found: dict[str, object] = {}
    names: list[str] = arguments.contenders
    if "bulk" in arguments.only:
        found["bulk"] = _alternate(
            names,
            arguments.repeat,
            lambda name: bulk(bench, name, events=arguments.events // _SLOW.get(name, 1)),
            part="bulk",
        )
    if "single" in arguments.only:
        found["single"] = _alternate(
            [name for name in names if name not in _SLOW],
            arguments.repeat,
            lambda name: single(bench, name, connections=500, count=arguments.events // 1000),
            part="single",
        )
    if "idle" in arguments.only and "ndcollector" in names:
        found["idle"] = idle(bench, connections=arguments.idle_connections)
    if "overload" in arguments.only and "ndcollector" in names:
        found["overload"] = overload(bench, seconds=arguments.overload_seconds)
    return found


def _machine() -> dict[str, object]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpus": os.cpu_count(),
        "cpu": models[0].partition(": ")[2] if models else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _available(names: Sequence[str]) -> list[str]:
    """The contenders that this machine can have; the others are named."""
    found = []
    for name in names:
        try:
            if name in SERVICES:
                ensure(SERVICES[name])
            found.append(name)
        except ServiceMissingError as error:
            print(f"bench: without {error}", file=sys.stderr)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="side by side with rsyslog and syslog-ng")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--contenders", nargs="+", choices=tuple(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--events", type=int, default=1_000_000, help="of one bulk run")
    parser.add_argument("--idle-connections", type=int, default=10_000)
    parser.add_argument("--overload-seconds", type=float, default=30)
    return parser


def main(argv: Sequence[str]) -> int:
    """Measure, keep the raw figures, print the table; 1 if an event was lost."""
    arguments = _parser().parse_args(argv)
    arguments.contenders = _available(arguments.contenders)
    results = ROOT / "bench-results"
    results.mkdir(exist_ok=True)
    # On the project's own file system: /tmp may be memory, where fsync is free.
    directory = Path(tempfile.mkdtemp(prefix="work-", dir=results))
    try:
        Certificates.make(directory / "pki")
        found = _run(arguments, Bench(directory, directory / "pki"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    report = {"time": stamp, "machine": _machine(), "arguments": vars(arguments), "results": found}
    (results / f"{stamp}.json").write_text(json.dumps(report, indent=1))
    print(f"raw figures: bench-results/{stamp}.json\n")
    return print_report(found)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
