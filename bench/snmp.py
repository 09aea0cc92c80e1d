"""SNMP traps: how many a second through the collector into its file, and what an agent that takes them weighs.

    python bench/snmp.py [--rate 5000 …] [--seconds 5]

Promises: the sender is a process of its own on the same machine that keeps to the rate; its linkDown traps have five
varbinds; `counted` is what the receiver says was lost. CPU is the receiver's, all
threads, from the kernel's books. v3 is SHA-256 and AES: each trap is checked and decrypted.
"""

import argparse
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]

from agent_process import AgentProcess  # noqa: E402 - found by the line above
from collector_process import Certificates, CollectorProcess  # noqa: E402
from host_input_process import spooled_events  # noqa: E402
from measure import cpu_seconds, resident_bytes  # noqa: E402
from services.process import free_port  # noqa: E402

from ndagent.core.snmp_usm import User  # noqa: E402
from ndagent.wire.snmp import ber  # noqa: E402
from ndagent.wire.snmp import messages as m  # noqa: E402

_PASSWORDS = {"auth_password": "correct horse", "privacy_password": "battery staple"}
_ENGINE = bytes.fromhex("8000000001020304")
_DIFFERENT = 1000


def _traps(version: str) -> list[bytes]:
    user = User("traps", auth="SHA-256", privacy="AES", **_PASSWORDS)
    found = []
    for number in range(_DIFFERENT):
        index = number % 48 + 1
        binds = [
            ("1.3.6.1.2.1.1.3.0", ber.from_integer(360_000 + number, 0x43)),
            ("1.3.6.1.6.3.1.1.4.1.0", ber.from_oid("1.3.6.1.6.3.1.1.5.3")),
            (f"1.3.6.1.2.1.2.2.1.1.{index}", ber.from_integer(index)),
            (f"1.3.6.1.2.1.2.2.1.7.{index}", ber.from_integer(1)),
            (f"1.3.6.1.2.1.2.2.1.8.{index}", ber.from_integer(2)),
        ]
        pdu = m.make_pdu(m.Kind.TRAP, number + 1, binds)
        if version == "v2c":
            found.append(m.make_community_message(m.V2C, b"public", pdu))
            continue
        keys, salt = user.keys(_ENGINE), os.urandom(8)
        scoped = keys.encrypt(m.make_scoped(_ENGINE, b"", pdu), boots=5, time=1000, salt=salt)
        security = m.Security(_ENGINE, 5, 1000, b"traps", keys.digest_bytes, salt)
        found.append(keys.signed(*m.make_secured(number + 1, user.level, security, scoped)))
    return found


def send(version: str, port: int, rate: int, seconds: float) -> None:
    """The sender's own process: says on stdout how many it sent, and in how many seconds."""
    traps = _traps(version)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", port))
        total, sent = round(rate * seconds), 0
        began = time.perf_counter()
        while sent < total:
            due = min(total, int((time.perf_counter() - began) * rate) + 1)
            for number in range(sent, due):
                sender.send(traps[number % _DIFFERENT])
            sent = due
            time.sleep(0.0005)
        print(sent, time.perf_counter() - began)


def _input(port: int) -> dict[str, Any]:
    return {"listen": [f"127.0.0.1:{port}"], "communities": ["public"], "users": [{"name": "traps", **_PASSWORDS}]}


def _sender(version: str, port: int, rate: int, seconds: float) -> tuple[int, float]:
    words = [sys.executable, __file__, "--send", version, str(port), "--rate", str(rate), "--seconds", str(seconds)]
    sent, took = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    return int(sent), float(took)


def collector(version: str, rate: int, seconds: float) -> str:
    """One run into a file; a line of the table."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nd-bench-") as name:
        directory = Path(name)
        certificates = Certificates.make(directory / "pki")
        settings = {"inputs": {"snmp_trap": _input(port)}}
        with CollectorProcess(directory / "collector", certificates, settings=settings) as running:
            before = cpu_seconds(running.pid)
            sent, took = _sender(version, port, rate, seconds)
            ended = time.perf_counter()
            last, grew = -1, ended
            while time.perf_counter() - grew < 2:
                time.sleep(0.1)
                size = running.output.stat().st_size if running.output.exists() else 0
                if size != last:
                    last, grew = size, time.perf_counter()
            cpu, resident = cpu_seconds(running.pid) - before, resident_bytes(running.pid)
            counted = sum(count for what, count in running.metrics().items() if "nd_input_dropped_events" in what)
            taken = running.output.read_bytes().count(b"\n") if running.output.exists() else 0
    each = cpu / max(taken, 1) * 1e6
    return (
        f"collector {version:4} {sent / took:10,.0f} {taken:10,d} {sent - taken:8,d} {counted:8,.0f} {each:10.1f} "
        f"{grew - ended:10.2f} {resident / 2**20:8.1f}"
    )


def agent(version: str, rate: int, seconds: float) -> str:
    """An agent that no collector answers: it takes them into its spool."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nd-bench-") as name:
        running = AgentProcess(Path(name), settings={"inputs": {"snmp_trap": _input(port)}})
        running.start()
        try:
            time.sleep(1)
            idle = resident_bytes(running.process.pid)
            before = cpu_seconds(running.process.pid)
            sent, took = _sender(version, port, rate, seconds)
            time.sleep(2)
            cpu, resident = cpu_seconds(running.process.pid) - before, resident_bytes(running.process.pid)
        finally:
            running.stop()
        taken = len(spooled_events(running.state))
    each = cpu / max(taken, 1) * 1e6
    return (
        f"agent     {version:4} {sent / took:10,.0f} {taken:10,d} {sent - taken:8,d} {'':8} {each:10.1f} {'':10} "
        f"{resident / 2**20:8.1f}   idle {idle / 2**20:.1f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, nargs="+", default=[5000, 15_000])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--send", nargs=2, metavar=("VERSION", "PORT"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    logging.basicConfig(level="ERROR")
    if given.send:
        send(given.send[0], int(given.send[1]), given.rate[0], given.seconds)
        return
    heads = {"traps/s": 10, "taken": 10, "lost": 8, "counted": 8, "CPU µs": 10, "behind s": 10, "RSS MiB": 8}
    print(" " * 14, *(f"{head:>{width}}" for head, width in heads.items()))
    for rate in given.rate:
        for version in ("v2c", "v3"):
            print(collector(version, rate, given.seconds), flush=True)
    for version in ("v2c", "v3"):
        print(agent(version, given.rate[0], given.seconds), flush=True)


if __name__ == "__main__":
    main()
