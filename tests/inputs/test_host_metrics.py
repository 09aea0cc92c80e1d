"""The host_metrics input against psutil and /proc on this machine, and against counters that are told to it."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from host_input_process import HOST, Positions

from ndagent.config import load
from ndagent.core.metrics import Metrics
from ndagent.core.yaml_file import ConfigError
from ndagent.inputs import InputContext
from ndagent.inputs.host_metrics import Config, HostMetrics, build
from ndagent.inputs.host_metrics_round import MAX_THINGS, Rounds, Selection
from ndagent.wire.record import Batch

SETS = {"cpu", "load", "memory", "filesystem", "diskio", "network", "summary", "process"}


def make(**settings: Any) -> HostMetrics:
    context = InputContext(Path(), Metrics(), time.time, Positions(), HOST)
    return build("host_metrics", Config(**settings), context)


EVERYTHING = Selection()


def two_looks(selection: Selection = EVERYTHING, *, work: float = 0.3) -> list[tuple[str, dict]]:
    """A round after some work."""
    rounds = Rounds(psutil, selection)
    rounds.prime(monotonic=time.monotonic())
    end = time.process_time() + work
    while time.process_time() < end:
        pass
    return rounds.read(unix=time.time(), monotonic=time.monotonic())


def only(found: list[tuple[str, dict]], name: str) -> list[dict]:
    return [document for metricset, document in found if metricset == name]


async def test_rounds_arrive_as_events_of_the_metrics_stream() -> None:
    """The first within seconds; all metricsets, Metricbeat's names, no event.id."""
    plug = make(every=60.0)
    batches: asyncio.Queue[Batch] = asyncio.Queue()
    task = asyncio.create_task(plug.run(batches.put))
    async with asyncio.timeout(20):
        batch = await batches.get()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    events = [json.loads(line) for line in b"".join(batch.payload).splitlines()]
    assert (batch.stream, batch.format, batch.count, batch.checkpoint) == ("metrics", "ecs", len(events), None)
    assert {event["metricset"]["name"] for event in events} >= {"cpu", "load", "memory", "summary", "process"}
    assert {event["metricset"]["name"] for event in events} <= SETS
    for event in events:
        assert event["event"]["kind"] == "metric"
        assert event["event"]["dataset"] == f"system.{event['metricset']['name']}"
        assert event["metricset"]["period"] == 60_000
        assert event["host"]["hostname"] == HOST.hostname
        assert "id" not in event["event"]
        assert b"null" not in json.dumps(event).encode()


def test_cpu_shares_add_up_to_the_cores() -> None:
    """Modes are shares of one core each; together they are all cores, and we were busy."""
    (document,) = only(two_looks(), "cpu")
    cpu = document["system"]["cpu"]
    modes = ("user", "system", "nice", "idle", "iowait", "irq", "softirq", "steal")
    assert sum(cpu[mode]["pct"] for mode in modes) == pytest.approx(cpu["cores"], abs=0.01)
    assert 0 < document["host"]["cpu"]["usage"] <= 1
    assert cpu["total"]["norm"]["pct"] == document["host"]["cpu"]["usage"]
    jiffies = int(Path("/proc/stat").read_text().split()[1])
    assert cpu["user"]["ticks"] == pytest.approx(jiffies, abs=500)


def test_memory_is_what_proc_says() -> None:
    """meminfo is in KiB."""
    (document,) = only(two_looks(work=0), "memory")
    memory = document["system"]["memory"]
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    meminfo = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}
    assert memory["total"] == meminfo["MemTotal"]
    assert memory["swap"]["total"] == meminfo["SwapTotal"]
    assert memory["used"]["bytes"] == memory["total"] - memory["free"]
    assert memory["actual"]["free"] == pytest.approx(meminfo["MemAvailable"], rel=0.1)
    assert 0 <= memory["actual"]["used"]["pct"] <= 1


def test_interfaces_and_disks_are_those_of_proc() -> None:
    """Names and counters; patterns leave some out."""
    found = two_looks(Selection(exclude_interfaces=("lo",), exclude_disks=("loop*", "ram*")), work=0)
    names = {line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]}
    assert {document["system"]["network"]["name"] for document in only(found, "network")} == names - {"lo"}
    disks = {line.split()[2] for line in Path("/proc/diskstats").read_text().splitlines()}
    told = {document["system"]["diskio"]["name"] for document in only(found, "diskio")}
    assert told <= disks
    assert not [name for name in told if name.startswith(("loop", "ram"))]


def test_a_process_is_told_as_psutil_knows_it() -> None:
    """Who, whose, how big, and how much CPU it had in the interval."""
    begun = time.monotonic()
    found = two_looks(Selection(top=200), work=0.5)
    (mine,) = [one for one in only(found, "process") if one["process"]["pid"] == os.getpid()]
    assert mine["process"]["name"]
    assert mine["process"]["parent"]["pid"] == os.getppid()
    assert mine["user"]["name"] == psutil.Process().username()
    assert mine["system"]["process"]["cpu"]["total"]["pct"] >= 0.4 / (time.monotonic() - begun)
    rss = psutil.Process().memory_info().rss
    assert mine["system"]["process"]["memory"]["rss"]["bytes"] == pytest.approx(rss, rel=0.2)
    assert "command_line" not in mine["process"]


def test_the_top_is_by_cpu_of_the_interval_and_by_memory() -> None:
    """Not by CPU of a whole life; who is at the top of both is told once."""
    told = Told()
    rounds = Rounds(told, Selection(top=1))
    told.processes = [process(1, created=1.0, seconds=900.0), process(2, created=1.0), process(3, created=1.0, rss=99)]
    rounds.prime(monotonic=0.0)
    told.processes = [
        process(1, created=1.0, seconds=900.1),
        process(2, created=1.0, seconds=0.5),
        process(3, created=1.0, rss=99),
    ]
    found = only(rounds.read(unix=time.time(), monotonic=10.0), "process")
    assert [one["process"]["pid"] for one in found] == [2, 3]
    told.processes[2] = process(3, created=1.0, seconds=5.0, rss=99)
    found = only(rounds.read(unix=time.time(), monotonic=20.0), "process")
    assert [one["process"]["pid"] for one in found] == [3]


def test_a_new_process_has_used_its_time_in_the_interval() -> None:
    """It was not there at the look before."""
    rounds = Rounds(psutil, Selection(top=200, command_line=True))
    rounds.prime(monotonic=time.monotonic())
    code = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = rounds.read(unix=time.time(), monotonic=time.monotonic())
        child.communicate(b"\n")
    (document,) = [one for one in only(found, "process") if one["process"]["pid"] == child.pid]
    assert document["system"]["process"]["cpu"]["total"]["value"] >= 190
    assert document["system"]["process"]["cpu"]["total"]["pct"] > 0.05
    assert "process_time" in document["process"]["command_line"]


def test_a_round_is_cheap() -> None:
    """Less than 20 ms of CPU for each 100 processes (7.5 ms measured alone; other tests share the machine)."""
    plug = make()
    plug._rounds.prime(monotonic=time.monotonic())
    plug._lines(time.time())
    costs = []
    for _ in range(5):
        begun = time.process_time()
        plug._lines(time.time())
        costs.append(time.process_time() - begun)
    assert min(costs) < 0.020 * max(1.0, len(psutil.pids()) / 100)


# ---- counters that are told


class Told:
    """A psutil whose answers the test gives; what it is not given, the real one answers."""

    Error, AccessDenied = psutil.Error, psutil.AccessDenied

    def __init__(self) -> None:
        self.networks: dict[str, Any] = {}
        self.processes: list[Any] = []
        self.mounts: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(psutil, name)

    def net_io_counters(self, pernic: bool) -> dict[str, Any]:
        return dict(self.networks)

    def process_iter(self) -> list[Any]:
        return self.processes

    def disk_partitions(self, all: bool) -> list[Any]:  # noqa: A002 - psutil's name
        return self.mounts

    def disk_usage(self, path: str) -> Any:
        raise PermissionError(path)


def net(received: int) -> Any:
    names = ("bytes_sent", "packets_sent", "errin", "errout", "dropin", "dropout")
    return SimpleNamespace(bytes_recv=received, packets_recv=received // 100, **dict.fromkeys(names, 0))


def test_rates_are_over_the_time_that_passed() -> None:
    """Late rounds do not make traffic look heavier; counters stay as they are."""
    told = Told()
    rounds = Rounds(told, Selection(top=0))
    told.networks = {"eth0": net(1000)}
    rounds.prime(monotonic=100.0)
    told.networks = {"eth0": net(61_000), "eth1": net(5)}
    found = rounds.read(unix=time.time(), monotonic=120.0)
    first, new = (one["system"]["network"] for one in only(found, "network"))
    assert first["in"]["bytes"] == 61_000
    assert first["in"]["per_sec"] == {"bytes": 3000.0, "packets": 30.0}
    assert first["interval"] == {"ms": 20_000}
    assert "per_sec" not in new["in"]  # it came in between: no rate yet
    assert "interval" not in new
    (summary,) = only(found, "summary")
    assert summary["host"]["network"]["ingress"] == {"bytes": 60_000, "packets": 600}


def test_a_counter_that_began_anew_has_no_rate() -> None:
    """The interface was taken away and came back: a negative rate would be nonsense, and so would a huge one."""
    told = Told()
    rounds = Rounds(told, Selection(top=0))
    told.networks = {"eth0": net(5000)}
    rounds.prime(monotonic=0.0)
    told.networks = {"eth0": net(10)}
    (document,) = only(rounds.read(unix=time.time(), monotonic=10.0), "network")
    assert "per_sec" not in document["system"]["network"]["in"]


def test_a_pid_that_came_back_is_another_process() -> None:
    """Its CPU time does not count from the old one's."""
    told = Told()
    rounds = Rounds(told, Selection(top=5))
    told.processes = [process(7, created=1.0, seconds=100.0)]
    rounds.prime(monotonic=0.0)
    told.processes = [process(7, created=2.0, seconds=3.0), process(8, created=3.0, denied=True)]
    (document,) = only(rounds.read(unix=time.time(), monotonic=10.0), "process")
    assert document["system"]["process"]["cpu"]["total"]["pct"] == pytest.approx(0.3)


def process(pid: int, *, created: float, seconds: float = 0.0, rss: int = 1, denied: bool = False) -> Any:
    def refuse() -> Any:
        raise psutil.AccessDenied(pid)

    return SimpleNamespace(
        pid=pid,
        oneshot=contextlib.nullcontext,
        create_time=lambda: created,
        cpu_times=refuse if denied else lambda: SimpleNamespace(user=seconds, system=0.0),
        memory_info=lambda: SimpleNamespace(rss=rss, vms=2, shared=0),
        name=lambda: "p",
        ppid=lambda: 1,
        exe=refuse,
        username=refuse,
        status=lambda: "sleeping",
    )


def test_what_is_not_permitted_is_left_out() -> None:
    """No name of the program, no file system: the rest is told, and nobody is bothered."""
    told = Told()
    told.processes = [process(7, created=1.0)]
    told.mounts = [SimpleNamespace(device="/dev/x", mountpoint="/secret", fstype="ext4")]
    found = Rounds(told, Selection(top=1)).read(unix=time.time(), monotonic=0.0)
    (document,) = only(found, "process")
    assert document["process"]["executable"] is None
    assert "user" not in document
    assert only(found, "filesystem") == []


def test_a_windows_without_performance_counters_tells_the_rest() -> None:
    """psutil has load averages and the page file from them; and a process without a name is no OSError of ours."""

    def switched_off() -> None:
        raise RuntimeError("PdhAddEnglishCounterW failed. Performance counters may be disabled.")

    def nameless() -> None:
        raise OSError(22, "Invalid parameter")

    told = Told()
    told.getloadavg = told.swap_memory = switched_off  # type: ignore[attr-defined]  # psutil's
    told.processes = [process(7, created=1.0), process(8, created=1.0)]
    told.processes[0].name = nameless
    found = Rounds(told, Selection(top=2)).read(unix=time.time(), monotonic=0.0)
    assert only(found, "load") == []
    assert "swap" not in only(found, "memory")[0]["system"]["memory"]
    assert [document["process"]["pid"] for document in only(found, "process")] == [8]


def test_things_are_bounded() -> None:
    """At the limit all are told; beyond it no more."""
    told = Told()
    for count in (MAX_THINGS, MAX_THINGS + 1):
        told.networks = {f"veth{number}": net(1) for number in range(count)}
        found = Rounds(told, Selection(top=0)).read(unix=time.time(), monotonic=0.0)
        assert len(only(found, "network")) == MAX_THINGS


def test_a_missing_psutil_is_told_when_the_configuration_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With place and remedy, not as a traceback of the start."""
    (tmp_path / "ndagent.yaml").write_text("inputs: {host_metrics: {}}\n")
    assert load(tmp_path / "ndagent.yaml", {}).inputs
    monkeypatch.setattr("ndagent.inputs.host_metrics.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"host_metrics.*psutil is missing; pip install"):
        load(tmp_path / "ndagent.yaml", {})
