"""NetFlow and IPFIX: flows a second through the collector into its file, and Debian's nfcapd beside it.

    python bench/netflow.py [--rate 150000] [--seconds 5] [--only NAME …]

Promises: the sender is a process of its own on the same machine, makes its datagrams before the clock starts and keeps
to the rate; every flow is numbered by its exporter's sequence, so that sent = taken + lost can be said. CPU is the
receiver's, all threads, from the kernel's books; `core` is flows per second of that CPU.

What is compared is not equal: ours writes each flow as ECS JSON of some 850 bytes, first to its spool with fsync, then
to the output's file; nfcapd writes a binary record of some 100 bytes, without fsync.
"""

import argparse
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]

from collector_process import Certificates, CollectorProcess  # noqa: E402 - found by the line above
from measure import cpu_seconds, resident_bytes  # noqa: E402
from netflow_datagrams import NOON, ipfix, pack_set, template, v5, v5_flow, v9  # noqa: E402
from services import fetch  # noqa: E402
from services.process import ServiceProcess, free_port  # noqa: E402

_UPTIMES = [(22, 4), (21, 4)]
_MILLISECONDS = [(152, 8), (153, 8)]
_FIELDS = [
    (8, 4), (12, 4), (15, 4), (10, 4), (14, 4), (2, 4), (1, 4), (7, 2), (11, 2), (6, 1), (4, 1), (5, 1), (16, 4),
    (17, 4), (9, 1), (13, 1), (61, 1),
]  # fmt: skip  # what Cisco's "netflow-original" record has
_RECORD = struct.Struct(">IIIIIIIHHBBBIIBBB")
_DATAGRAMS = 2000
"""Different ones; they are sent over and over under new numbers."""
_SOURCES, _SERVERS = 20_000, 5_000


def _record(dice: random.Random) -> bytes:
    draw = dice.randrange
    return _RECORD.pack(
        0x0A000000 + draw(_SOURCES), 0xC0A80000 + draw(_SERVERS), 0x0A0101FE, draw(48), draw(48), draw(1, 1000),
        draw(60, 10**6), draw(1024, 65536), draw(1, 1024), 27, 6, 0, 65001, 64512, 24, 16, 0,
    )  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A version: its template, if it has one, its datagrams, and how they are numbered."""

    announcement: bytes | None
    datagrams: list[bytes]
    flows: int
    """In each datagram."""
    sequence_at: int
    step: int


def _kinds() -> dict[str, Callable[[], Kind]]:
    dice = random.Random(1)

    def of_five() -> Kind:
        made = [
            v5(*(v5_flow(0x0A000000 + dice.randrange(_SOURCES), 0xC0A80000 + dice.randrange(_SERVERS),
                         bytes=dice.randrange(10**6), first=dice.randrange(40_000, 50_000)) for _ in range(30)))
            for _ in range(_DATAGRAMS)
        ]  # fmt: skip
        return Kind(None, made, 30, 16, 30)

    def of_nine() -> Kind:
        records = (struct.pack(">II", dice.randrange(40_000, 50_000), 59_000) + _record(dice) for _ in iter(int, 1))
        made = [v9(pack_set(256, b"".join(next(records) for _ in range(26)))) for _ in range(_DATAGRAMS)]
        return Kind(v9(pack_set(0, template(256, [*_UPTIMES, *_FIELDS]))), made, 26, 12, 1)

    def of_ten() -> Kind:
        began = NOON * 1000
        records = (struct.pack(">QQ", began - dice.randrange(10_000), began) + _record(dice) for _ in iter(int, 1))
        made = [ipfix(pack_set(256, b"".join(next(records) for _ in range(22)))) for _ in range(_DATAGRAMS)]
        return Kind(ipfix(pack_set(2, template(256, [*_MILLISECONDS, *_FIELDS]))), made, 22, 8, 22)

    return {"v5": of_five, "v9": of_nine, "ipfix": of_ten}


def send(name: str, port: int, rate: int, seconds: float) -> None:
    """The sender's own process: says on stdout how many flows it sent, and in how many seconds."""
    kind = _kinds()[name]()
    number = struct.Struct(">I")
    datagrams = [bytearray(data) for data in kind.datagrams]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", port))
        if kind.announcement is not None:
            sender.send(kind.announcement)
            time.sleep(0.2)
        total, sent, sequence = round(rate * seconds / kind.flows), 0, 1 if name == "v9" else 0
        began = time.perf_counter()
        while sent < total:
            due = min(total, int((time.perf_counter() - began) * rate / kind.flows) + 1)
            while sent < due:
                data = datagrams[sent % _DATAGRAMS]
                number.pack_into(data, kind.sequence_at, sequence % 2**32)
                sender.send(data)
                sent, sequence = sent + 1, sequence + kind.step
            time.sleep(0.0005)
        print(sent * kind.flows, time.perf_counter() - began)


@dataclass(frozen=True)
class Result:
    """One run."""

    what: str
    sent: int
    seconds: float
    taken: int
    cpu: float
    resident: float
    behind: float
    """Seconds until everything was written, after the last datagram."""

    def line(self) -> str:
        """Of the table."""
        lost = self.sent - self.taken
        each = self.cpu / max(self.taken, 1) * 1e6
        return (
            f"{self.what:14} {self.sent / self.seconds:10,.0f} {self.taken:10,d} {lost:8,d} {each:8.2f} "
            f"{1e6 / each:10,.0f} {self.behind:8.2f} {self.resident / 2**20:8.1f}"
        )


def _sender(name: str, port: int, rate: int, seconds: float) -> tuple[int, float]:
    words = [sys.executable, __file__, "--send", name, str(port), "--rate", str(rate), "--seconds", str(seconds)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    sent, took = done.stdout.split()
    return int(sent), float(took)


def _until_still(figure: Callable[[], float]) -> float:
    """Wait until it no longer grows; how long it did."""
    began = grew = time.perf_counter()
    last = figure()
    while time.perf_counter() - grew < 2:
        time.sleep(0.1)
        if (now := figure()) != last:
            last, grew = now, time.perf_counter()
    return grew - began


def ours(name: str, rate: int, seconds: float) -> Result:
    """The collector, default settings, into a file."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nd-bench-") as directory:
        certificates = Certificates.make(Path(directory) / "pki")
        settings = {"inputs": {"netflow": {"listen": [f"127.0.0.1:{port}"]}}}
        with CollectorProcess(Path(directory) / "collector", certificates, settings=settings) as collector:
            before = cpu_seconds(collector.pid)
            sent, took = _sender(name, port, rate, seconds)

            def size() -> float:
                return collector.output.stat().st_size if collector.output.exists() else 0

            behind = _until_still(size)
            cpu, resident = cpu_seconds(collector.pid) - before, resident_bytes(collector.pid)
            with collector.output.open("rb") as file:
                taken = sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    return Result(f"ours {name}", sent, took, taken, cpu, resident, behind)


def nfcapd(name: str, rate: int, seconds: float) -> Result:
    """Debian's, into its binary files."""
    service, port = fetch.ensure(fetch.NFDUMP), free_port()
    with tempfile.TemporaryDirectory(prefix="nd-bench-") as directory:
        flows = Path(directory) / "flows"
        flows.mkdir()
        words: list[str | Path] = [
            service.path("usr/bin/nfcapd"), "-w", flows, "-p", str(port), "-b", "127.0.0.1", "-t", "3600",
            "-B", "16777216",
        ]  # fmt: skip
        with ServiceProcess("nfcapd", words, directory=Path(directory), environment=service.environment()) as process:
            time.sleep(1)
            before = cpu_seconds(process.pid)
            sent, took = _sender(name, port, rate, seconds)
            time.sleep(1)
            cpu, resident = cpu_seconds(process.pid) - before, resident_bytes(process.pid)
            process.stop()
        command = [service.path("usr/bin/nfdump"), "-I", "-R", flows]
        told = subprocess.run(command, env=service.environment(), check=True, capture_output=True, text=True).stdout
    found = re.search(r"^Flows: (\d+)", told, re.MULTILINE)
    return Result(f"nfcapd {name}", sent, took, int(found[1]) if found else 0, cpu, resident, 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=150_000, help="flows a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", nargs="*", choices=["v5", "v9", "ipfix"], default=["v5", "v9", "ipfix"])
    parser.add_argument("--send", nargs=2, metavar=("NAME", "PORT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.send:
        send(chosen.send[0], int(chosen.send[1]), chosen.rate, chosen.seconds)
        return
    print(f"{'':14} {'flows/s':>10} {'taken':>10} {'lost':>8} {'µs/flow':>8} {'core':>10} {'behind s':>8} {'MB':>8}")
    for name in chosen.only:
        print(ours(name, chosen.rate, chosen.seconds).line(), flush=True)
        try:
            print(nfcapd(name, chosen.rate, chosen.seconds).line(), flush=True)
        except fetch.ServiceMissingError as error:
            print(error)


if __name__ == "__main__":
    main()
