"""Syslog over TLS into Kafka, side by side with Debian's rsyslog and its omkafka, in one run.

    python bench/kafka.py [--events 2000000] [--repeat 3] [--compression none] [--contenders ndcollector rsyslog]

The receiver is librdkafka's mock cluster: three brokers in a process of their own, which take requests and keep little.
Promises: both require the client's certificate, write the same fields as JSON (see contenders.py), key each record by
host with Kafka's murmur2, and ask for acks=all and idempotence; ours spools with fsync, rsyslog queues in memory. A
rate is from the first byte sent until the brokers have the last record; CPU is the contender's, all threads. Exit
status 1 if the brokers have not exactly what was sent.
rsyslog gets librdkafka's large batches and two queue workers, which is what was fastest here.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]

import payload  # noqa: E402 - found by the line above
from collector_process import Certificates  # noqa: E402
from contenders import RSYSLOG_CONFIG, Running, start_ours  # noqa: E402
from measure import cpu_seconds, resident_bytes  # noqa: E402
from mock_kafka import MockCluster  # noqa: E402
from scenarios import Bench, Result, answer, finish, tell  # noqa: E402
from services import fetch, rsyslog  # noqa: E402
from services.process import free_port  # noqa: E402

TOPIC = "security_events"
RSYSLOG = fetch.Service(
    "rsyslog-kafka", ("rsyslog", "rsyslog-openssl", "rsyslog-kafka"), "usr/sbin/rsyslogd", "-v"
)  # fmt: skip
_OMFILE = 'action(type="omfile" file="{output}" template="ecs" ioBufferSize="256k")'
_OMKAFKA = """action(type="omkafka" broker=[{brokers}] topic="security_events" template="ecs"
        dynaKey="on" key="host_key" partitions.auto="on" resubmitOnFailure="on"
        confParam=["compression.codec={compression}", "acks=all", "enable.idempotence=true",
            "partitioner=murmur2_random", "queue.buffering.max.messages=1000000", "queue.buffering.max.ms=20",
            "batch.num.messages=10000"])"""
_KEY = 'template(name="host_key" type="string" string="%hostname%")\n'


def _start_ours(directory: Path, pki: Path, servers: str, compression: str) -> Running:
    bus = {"type": "kafka", "bootstrap_servers": servers.split(","), "compression": compression}
    return start_ours(directory, pki, settings={"outputs": {"bus": bus}}, only=("bus",))


def _start_rsyslog(directory: Path, pki: Path, servers: str, compression: str) -> Running:
    port, output = free_port(), directory / "unused"
    brokers = ",".join(f'"{server}"' for server in servers.split(","))
    action = _OMKAFKA.replace("{brokers}", brokers).replace("{compression}", compression)
    text = 'module(load="omkafka")\n' + _KEY + RSYSLOG_CONFIG.replace(_OMFILE, action)
    config = text.format(directory=directory, pki=pki, port=port, output=output)
    return Running(rsyslog.start(config, directory, port=port, service=RSYSLOG), port, output)


CONTENDERS = {"ndcollector": _start_ours, "rsyslog": _start_rsyslog}


def bulk(bench: Bench, name: str, *, events: int, compression: str) -> Result:
    """One connection, sent as fast as it is read."""
    path = payload.write(bench.directory / f"bulk-{events}.octet", connection=0, count=events, framing="octet")

    with MockCluster(TOPIC) as cluster:

        def start(directory: Path, pki: Path) -> Running:
            return CONTENDERS[name](directory, pki, cluster.servers, compression)

        with bench.running(start, f"{name}-kafka") as contender:
            load = bench.load("bulk", contender, "--payload", path)
            answer(load)  # it is connected
            cpu_before = cpu_seconds(contender.pid)
            tell(load, "go")
            arrived, ended = _until_quiet(cluster, events)
            cpu = cpu_seconds(contender.pid) - cpu_before
            peak = resident_bytes(contender.pid, "VmHWM")
            report = finish(load)
            broker_cpu = cpu_seconds(cluster.pid)
    return {
        "events_per_second": events / (ended - report["started"]),
        "cpu_us_per_event": cpu / events * 1e6,
        "broker_cpu_us_per_event": broker_cpu / events * 1e6,
        "peak_rss_bytes": peak,
        "missing": events - arrived,
    }


def _until_quiet(cluster: MockCluster, events: int, *, quiet_seconds: float = 10) -> tuple[int, float]:
    """(records, when the last came): all of them, or no more for a while."""
    count, changed = 0, time.time()
    while count < events and time.time() - changed < quiet_seconds:
        time.sleep(0.02)
        now = cluster.count(TOPIC)
        if now != count:
            count, changed = now, time.time()
    return count, changed


def _print(results: dict[str, list[Result]]) -> None:
    print(f"{'':14}{'events/s':>12}{'lowest to highest':>22}{'CPU µs/event':>14}{'brokers µs':>12}{'peak RSS MB':>13}")
    rates = {}
    for name, runs in results.items():
        rate = sorted(run["events_per_second"] for run in runs)
        cpu, brokers, peak = (
            statistics.median(run[key] for run in runs)
            for key in ("cpu_us_per_event", "broker_cpu_us_per_event", "peak_rss_bytes")
        )
        rates[name] = statistics.median(rate), cpu
        spread = f"{rate[0]:,.0f} to {rate[-1]:,.0f}"
        print(f"{name:14}{rates[name][0]:12,.0f}{spread:>22}{cpu:14.2f}{brokers:12.2f}{peak / 1e6:13.0f}")
    if len(rates) == 2:
        (ours, our_cpu), (theirs, their_cpu) = rates.values()
        print(f"ratio of events per second {ours / theirs:.2f} (target 1.5), of CPU {our_cpu / their_cpu:.2f}")


def main(argv: Sequence[str]) -> int:
    """Measure in turn and print the table; 1 if the brokers have more or less than was sent."""
    parser = argparse.ArgumentParser(description="syslog over TLS into Kafka, side by side with rsyslog's omkafka")
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--compression", choices=["none", "lz4", "zstd"], default="none")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    arguments = parser.parse_args(argv)
    if "rsyslog" in arguments.contenders:
        fetch.ensure(RSYSLOG)
    results: dict[str, list[Result]] = {name: [] for name in arguments.contenders}
    (ROOT / "bench-results").mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="work-", dir=ROOT / "bench-results"))
    try:
        Certificates.make(directory / "pki")
        bench = Bench(directory, directory / "pki")
        for number in range(arguments.repeat):
            for name in arguments.contenders:
                run = bulk(bench, name, events=arguments.events, compression=arguments.compression)
                results[name].append(run)
                print(
                    f"{name} {number + 1}/{arguments.repeat}: {run['events_per_second']:,.0f} events/s, "
                    f"{run['cpu_us_per_event']:.2f} CPU µs/event, missing {run['missing']}, "
                    f"load {os.getloadavg()[0]:.1f}",
                    file=sys.stderr,
                )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    _print(results)
    return int(any(run["missing"] for runs in results.values() for run in runs))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
