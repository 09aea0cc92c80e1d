"""Syslog over UDP: messages a second through the collector into its file, and Debian's rsyslog (imudp) beside it.

    python bench/syslog_udp.py [--rates 50000 100000 0] [--seconds 5] [--repeat 3] [--only ndcollector rsyslog]

Promises: the sender is a process of its own on the same machine: sixteen devices (sockets of sixteen addresses), 250
bytes a message, numbered, kept to the rate; a rate of 0 is as fast as two such processes can. Sent = lines in the file
+ what the kernel dropped at the receiver's sockets (/proc/net/udp, by port), or the row says by how much not. `says
lost` is the receiver's own figure for that. CPU is the receiver's, all threads, from the kernel's books.

What is compared is not equal: ours writes to its spool with fsync, then to the output's file; rsyslog queues in
memory, without fsync, and its file lacks what it cannot give (contenders.py). Both have a receive queue of 16 MiB a
socket; ours has two sockets, rsyslog one.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]

from collector_process import Certificates, CollectorProcess  # noqa: E402 - found by the line above
from contenders import RSYSLOG_INTO_FILE  # noqa: E402
from measure import cpu_seconds, resident_bytes  # noqa: E402
from services import rsyslog  # noqa: E402
from services.fetch import ServiceMissingError  # noqa: E402
from services.process import free_port  # noqa: E402

DEVICES = 16
MESSAGE_BYTES = 250
_TICK_SECONDS = 0.001
_SAMPLE = (
    b"<38>1 2026-11-25T21:14:15.003Z fw-%02d.example.net sshd 311 - - n%09d Accepted publickey for operator from "
    b"10.20.7.%d port %d ssh2: ED25519 SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8 session opened"
)
_RSYSLOG = (
    """
global(workDirectory="{directory}" maxMessageSize="64k" net.enableDNS="off")
module(load="imudp" batchSize="128")
module(load="imptcp")
"""
    + RSYSLOG_INTO_FILE
    + """
input(type="imudp" address="127.0.0.1" port="{port}" rcvbufSize="16m" ruleset="in")
input(type="imptcp" address="127.0.0.1" port="{ready}" ruleset="in")
"""
)
"""The TCP input only tells when it is up. A batch of 128: its default of 32 was slower here."""


def send(port: int, rate: int, seconds: float) -> None:
    """The sender's own process: says on stdout how many messages it sent, and in how many seconds."""
    devices = []
    for number in range(DEVICES):
        device = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        device.bind((f"127.0.0.{number + 2}", 0))
        device.connect(("127.0.0.1", port))
        devices.append(device.send)
    sent, began = 0, time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        due = min(int(now * rate) + 1, int(rate * seconds)) if rate else sent + 1000
        while sent < due:
            device_number = sent % DEVICES
            text = _SAMPLE % (device_number, sent, sent % 251, 1024 + sent % 60_000)
            devices[device_number](text.ljust(MESSAGE_BYTES, b"="))
            sent += 1
        if rate:
            time.sleep(_TICK_SECONDS)
    print(sent, time.perf_counter() - began)


def kernel_drops(port: int) -> int:
    """What the kernel dropped at the sockets of this port since they were opened: the last column of proc_net(5)."""
    rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return sum(int(row[-1]) for row in rows if int(row[1].partition(":")[2], 16) == port)


@dataclass(frozen=True)
class Result:
    """One run."""

    what: str
    rate: int
    sent: int
    seconds: float
    written: int
    dropped: int
    says_lost: int | None
    cpu: float
    resident: int
    load: float

    @property
    def unaccounted(self) -> int:
        """Neither written nor dropped by the kernel."""
        return self.sent - self.written - self.dropped

    @property
    def cpu_us(self) -> float:
        """CPU of each message that was written."""
        return self.cpu / max(self.written, 1) * 1e6

    def line(self) -> str:
        """Of the table."""
        says = "-" if self.says_lost is None else f"{self.says_lost:,d}"
        return (
            f"{self.what:12} {self.rate or 'all':>8} {self.sent / self.seconds:9,.0f} {self.sent:10,d} "
            f"{self.written:10,d} {self.dropped:9,d} {says:>9} {self.unaccounted:7,d} {self.cpu_us:7.2f} "
            f"{self.resident / 2**20:6.0f} {self.load:5.1f}"
        )


_HEAD = (
    f"{'':12} {'rate':>8} {'sent/s':>9} {'sent':>10} {'written':>10} {'dropped':>9} {'says lost':>9} {'missing':>7} "
    f"{'µs/msg':>7} {'MiB':>6} {'load':>5}"
)


def _sent(port: int, rate: int, seconds: float) -> tuple[int, float]:
    """How many messages, in how many seconds."""
    words = [sys.executable, __file__, "--send", str(port), "--rates", str(rate), "--seconds", str(seconds)]
    senders = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(1 if rate else 2)]
    told = [sender.communicate()[0].split() for sender in senders]
    return sum(int(sent) for sent, _ in told), max(float(took) for _, took in told)


class _Lines:
    """Lines of a file that grows; reads only what is new."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._count = path, 0, 0

    def count(self) -> int:
        """So far."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._at)
                while piece := file.read(2**20):
                    self._at += len(piece)
                    self._count += piece.count(b"\n")
        return self._count

    def settled(self) -> int:
        """Once no line has come for two seconds."""
        last, since = self.count(), time.monotonic()
        while time.monotonic() - since < 2:
            time.sleep(0.2)
            if (now := self.count()) != last:
                last, since = now, time.monotonic()
        return last


def _measured(
    what: str, pid: int, port: int, output: Path, says: Callable[[], int] | None, *, rate: int, seconds: float
) -> Result:
    before, lines = cpu_seconds(pid), _Lines(output)
    sent, took = _sent(port, rate, seconds)
    load = os.getloadavg()[0]
    written = lines.settled()
    return Result(
        what, rate, sent, took, written, kernel_drops(port), says and says(), cpu_seconds(pid) - before,
        resident_bytes(pid, "VmHWM"), load,
    )  # fmt: skip


def ours(directory: Path, rate: int, seconds: float) -> Result:
    """The collector, default settings, into a file."""
    port = free_port()
    certificates = Certificates.make(directory / "pki")
    settings = {"inputs": {"syslog_udp": {"listen": [f"127.0.0.1:{port}"]}}}
    with CollectorProcess(directory / "collector", certificates, settings=settings) as collector:

        def says() -> int:
            name = 'nd_input_dropped_events_total{input="syslog_udp",reason="kernel_queue_full"}'
            return int(collector.metrics()[name])

        return _measured("ndcollector", collector.pid, port, collector.output, says, rate=rate, seconds=seconds)


def imudp(directory: Path, rate: int, seconds: float) -> Result:
    """Debian's rsyslog; it has no figure for what the kernel dropped."""
    port, ready, output = free_port(), free_port(), directory / "out.ndjson"
    config = _RSYSLOG.format(directory=directory, port=port, ready=ready, output=output)
    with rsyslog.start(config, directory, port=ready) as process:
        return _measured("rsyslog", process.pid, port, output, None, rate=rate, seconds=seconds)


_CONTENDERS = {"ndcollector": ours, "rsyslog": imudp}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where ours lost what it does not account for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=[50_000, 100_000, 0], help="messages a second; 0: all")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(_CONTENDERS), default=list(_CONTENDERS))
    parser.add_argument("--send", type=int, metavar="PORT", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.send:
        send(chosen.send, chosen.rates[0], chosen.seconds)
        return 0
    results = ROOT / "bench-results"  # on the project's own file system: /tmp may be memory, where fsync is free
    results.mkdir(exist_ok=True)
    found: list[Result] = []
    print(_HEAD)
    for rate in chosen.rates:
        for _ in range(chosen.repeat):
            for name in chosen.only:
                with tempfile.TemporaryDirectory(prefix="work-", dir=results) as directory:
                    try:
                        found.append(_CONTENDERS[name](Path(directory), rate, chosen.seconds))
                    except ServiceMissingError as error:
                        print(error)
                    else:
                        print(found[-1].line(), flush=True)
    _print_medians(found)
    return int(any(one.what == "ndcollector" and (one.unaccounted or one.says_lost != one.dropped) for one in found))


def _print_medians(found: Sequence[Result]) -> None:
    for what, rate in dict.fromkeys((one.what, one.rate) for one in found):
        runs = [one for one in found if (one.what, one.rate) == (what, rate)]
        dropped = median(one.dropped / one.sent for one in runs)
        written = median(one.written / one.seconds for one in runs)
        print(
            f"median: {what} at {rate or 'all it could'}: {dropped:.1%} dropped, {written:,.0f} written/s, "
            f"{median(one.cpu_us for one in runs):.2f} CPU µs/message"
        )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
