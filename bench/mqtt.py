"""Agents over MQTT into the real collector: publishes a second with fsync, and a thousand agents at an event a second.

    python bench/mqtt.py [--seconds 8] [--size 20000] [--agents 1000] [--only plain|envelope|crowd]

The load comes from processes of its own (mqtt_load.py) over mutual TLS 1.3; a publish counts when its PUBACK came,
which the collector sends after fdatasync. No output reads the spool, so what is measured is the way in. `core` is
publishes per second of the collector's CPU (all threads): what one core does where the clock is shared with other work.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]

from collector_process import Certificates, CollectorProcess  # noqa: E402 - found by the line above
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import NameOID  # noqa: E402
from load import raise_descriptor_limit  # noqa: E402
from measure import cpu_seconds, resident_bytes  # noqa: E402
from services.process import free_port  # noqa: E402

from ndcollector import pki  # noqa: E402

AGENT = "agent-0"
LOADERS = 2


@contextmanager
def _collector(directory: Path, certificates: Certificates) -> Iterator[tuple[CollectorProcess, int]]:
    """Started with the agents' certificates in its PKI, so that it knows them."""
    port = free_port()
    archive = {"type": "file", "path": str(directory / "out" / "{stream}.ndjson"), "streams": ["alerts"]}
    settings = {
        "inputs": {"mqtt": {"listen": [f"127.0.0.1:{port}"]}},
        "outputs": {"archive": archive},
        "spool": {"max_bytes": "2GiB"},
    }
    with CollectorProcess(directory, certificates, settings=settings) as process:
        yield process, port


def _loader(kind: str, port: int, ca: Path, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "bench" / "mqtt_load.py"), kind, "--port", str(port), "--ca", str(ca)]
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def _answer(loader: "subprocess.Popen[str]") -> dict[str, Any]:
    line = loader.stdout.readline() if loader.stdout else ""
    if not line:
        raise SystemExit("a loader ended; its error stands above")
    found: dict[str, Any] = json.loads(line)
    return found


def _go(loaders: Sequence["subprocess.Popen[str]"]) -> list[dict[str, Any]]:
    for loader in loaders:
        assert loader.stdin is not None
        loader.stdin.write("go\n")
        loader.stdin.flush()
    return [_answer(loader) for loader in loaders]


def bulk(directory: Path, *, seconds: float, size: int, envelope: bool) -> dict[str, float]:
    """Eight connections, each with a full window."""
    certificates = Certificates.make(directory / "pki")
    issued = pki.issue(directory / "pki", pki.Subject("agent", AGENT), now=datetime.now(UTC))
    with _collector(directory, certificates) as (collector, port), ExitStack() as stack:
        own = ["--agent", AGENT, "--cert", issued.certificate_file, "--key", issued.key_file, "--seconds", seconds]
        more = ["--size", size, "--connections", 4, *(["--envelope"] if envelope else [])]
        loaders = []
        for number in range(LOADERS):
            loader = _loader("bulk", port, issued.ca_file, *own, *more, "--first", 4 * number)
            loaders.append(stack.enter_context(loader))
        for loader in loaders:
            _answer(loader)
        before = cpu_seconds(collector.pid)
        found = _go(loaders)
        cpu = cpu_seconds(collector.pid) - before
        elapsed = max(one["ended"] for one in found) - min(one["began"] for one in found)
        publishes = sum(one["acknowledged"] for one in found)
        return {
            "rate": publishes / elapsed, "core": publishes / cpu, "cpu_us": cpu / publishes * 1e6,
            "wire_mb": sum(one["wire"] for one in found) / elapsed / 1e6,
            "p50": max(one["p50"] for one in found), "p99": max(one["p99"] for one in found),
            "peak_mb": resident_bytes(collector.pid, "VmHWM") / 1e6,
        }  # fmt: skip


def _agents(directory: Path, count: int) -> tuple[Path, Path]:
    """A certificate for each, all for one key: what is measured is the collector's side. Folder and key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agent")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    csr = request.public_bytes(serialization.Encoding.PEM)
    for number in range(count):
        pki.issue(directory, pki.Subject("agent", f"agent-{number}"), now=now, csr=csr)
    key_file = directory / "crowd.key"
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return directory / "issued", key_file


def crowd(directory: Path, *, agents: int, seconds: float) -> dict[str, float]:
    """Each with a connection and a certificate of its own, one event a second."""
    certificates = Certificates.make(directory / "pki")
    folder, key = _agents(directory / "pki", agents)
    with _collector(directory, certificates) as (collector, port), ExitStack() as stack:
        alone = resident_bytes(collector.pid)
        ca = directory / "pki" / "ca.crt"
        arguments = ["--certificates", folder, "--key", key, "--connections", agents // LOADERS, "--seconds", seconds]
        loaders = []
        for number in range(LOADERS):
            loader = _loader("crowd", port, ca, *arguments, "--first", agents // LOADERS * number)
            loaders.append(stack.enter_context(loader))
        for loader in loaders:
            _answer(loader)
        connected = resident_bytes(collector.pid)
        before = cpu_seconds(collector.pid)
        found = _go(loaders)
        cpu = cpu_seconds(collector.pid) - before
        return {
            "agents": agents, "events": sum(one["acknowledged"] for one in found),
            "p50": max(one["p50"] for one in found), "p99": max(one["p99"] for one in found),
            "longest": max(one["longest"] for one in found), "cpu_percent": 100 * cpu / seconds,
            "kb_per_connection": (connected - alone) / agents / 1024,
        }  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--only", choices=["plain", "envelope", "crowd"])
    arguments = parser.parse_args(argv)
    raise_descriptor_limit()
    missed = 0
    for what in [arguments.only] if arguments.only else ["plain", "envelope", "crowd"]:
        with tempfile.TemporaryDirectory(prefix="nd-bench-") as name:
            if what == "crowd":
                found = crowd(Path(name), agents=arguments.agents, seconds=arguments.seconds)
                missed += found["p99"] >= 100
            else:
                found = bulk(Path(name), seconds=arguments.seconds, size=arguments.size, envelope=what == "envelope")
                missed += what == "plain" and found["rate"] < 10_000
        print(f"{what:9}" + "  ".join(f"{key} {value:,.1f}" for key, value in found.items()), flush=True)
    print("targets: plain 10,000 publishes/s of 20 KB; crowd p99 under 100 ms" + (" — MISSED" if missed else ""))
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
