"""Batches over HTTPS: the collector's https input beside aiohttp's own TLS server that only reads and syncs.

    python bench/https.py [--requests 5000] [--connections 16] [--repeat 3]

Both are a process of their own on uvloop and answer a POST of about 20 KB (60 KB of events) over mutual TLS 1.3 once
its bytes are on disk. The input opens the envelope, checks and counts it, and appends its events to the real spool; the
other one writes the bodies as they came to one file, by group commit in a thread. The clients share the machine, so
CPU for each request, which is the server's alone, and the ratio tell more than the rate.
"""

import argparse
import asyncio
import itertools
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]

import aiohttp  # noqa: E402 - found by the line above
import uvloop  # noqa: E402
from aiohttp import web  # noqa: E402
from https_site import AGENT, SPOOL  # noqa: E402
from measure import cpu_seconds  # noqa: E402

from ndagent.wire import routes  # noqa: E402
from ndagent.wire.envelope import Header, pack  # noqa: E402
from ndcollector import pki  # noqa: E402

LINES = 200


def make_files(directory: Path) -> ssl.SSLContext:
    """A CA, a server and an agent below the directory; the agent's context."""
    now = datetime.now(UTC)
    pki.init(directory, pki.Subject("server", "c", dns=("localhost",), ips=("127.0.0.1",)), now=now)
    pki.issue(directory, pki.Subject("agent", AGENT), now=now)
    context = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    certificate = directory / "issued" / f"agent-{AGENT}.crt"
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


def bodies() -> Iterator[bytes]:
    """Envelopes with keys of their own; the events are the same, of which a third does not compress."""
    lines = (
        b'{"@timestamp":"2025-11-23T14:39:07.123456Z","message":"Accepted publickey for user %s from 192.0.2.7",'
        b'"event":{"id":"%s-%d"},"host":{"hostname":"web-1","name":"web-1"},"log":{"syslog":{"priority":86}}}\n'
        % (os.urandom(70).hex().encode(), SPOOL.encode(), n)
        for n in range(LINES)
    )
    ndjson = b"".join(lines)
    now = time.time_ns()
    for first in itertools.count(1, LINES):
        header = Header(
            "security_events", SPOOL, first, first + LINES - 1, LINES, len(ndjson), now, AGENT, "00112233445566aa"
        )
        yield pack(header, ndjson)


async def serve_ours(files: Path, state: Path) -> None:
    """The input over a spool."""
    from ndagent.core.metrics import Metrics
    from ndagent.core.settings import Listen
    from ndagent.core.spool import Spool
    from ndagent.core.spool.config import SpoolConfig
    from ndagent.core.tls import TlsConfig, TlsContexts
    from ndcollector.inputs import InputContext
    from ndcollector.inputs.https import Config, Https, HttpsLimits

    metrics = Metrics()
    names = {"ca_file": "ca.crt", "cert_file": "server.crt", "key_file": "server.key"}
    config = TlsConfig.model_validate({key: files / name for key, name in names.items()})
    contexts = TlsContexts(config, metrics=metrics, clock=time.time)
    spool = await Spool.open(state, stream="security_events", config=SpoolConfig(), metrics=metrics)
    limits = HttpsLimits(connections_per_agent=1000, requests_per_agent=1000)
    settings = Config(listen=(Listen("127.0.0.1", 0),), limits=limits)
    https = Https("https", settings, InputContext(state, metrics, contexts, time.time))
    await https.start()
    print(https.addresses[0].port, flush=True)
    await https.run(spool.append)


class GroupCommit:
    """Bodies to one file: what comes during a sync shares the next one."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    async def append(self, data: bytes) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((data, done))
        self._wake.set()
        await done

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            taken, self._waiting = self._waiting, []
            await asyncio.to_thread(self._write, b"".join([data for data, _ in taken]))
            for _, done in taken:
                done.set_result(None)

    def _write(self, data: bytes) -> None:
        os.write(self._file, data)
        os.fdatasync(self._file)


async def serve_plain(files: Path, state: Path) -> None:
    """aiohttp over asyncio's TLS."""
    state.mkdir(parents=True, exist_ok=True)
    commit = GroupCommit(state / "bodies")
    committing = asyncio.create_task(commit.run())

    async def handle(request: web.BaseRequest) -> web.Response:
        await commit.append(await request.read())
        return web.json_response({"stored": True})

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files / "server.crt", files / "server.key")
    context.load_verify_locations(files / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    server = await asyncio.get_running_loop().create_server(
        web.Server(handle, access_log=None), "127.0.0.1", 0, ssl=context
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await committing


async def load(port: int, context: ssl.SSLContext, *, requests: int, connections: int) -> float:
    """Post so many batches over so many connections; the seconds it took."""
    work = itertools.islice(bodies(), requests)
    url = f"https://localhost:{port}{routes.BATCHES}"
    headers = {"Content-Type": routes.ENVELOPE_TYPE}

    async def one(client: aiohttp.ClientSession) -> None:
        for body in work:
            async with client.post(url, data=body, headers=headers) as response:
                assert response.status == 200, await response.text()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=connections)) as client:
        began = time.monotonic()
        await asyncio.gather(*(one(client) for _ in range(connections)))
        return time.monotonic() - began


def measure(kind: str, files: Path, context: ssl.SSLContext, options: argparse.Namespace) -> tuple[float, float]:
    """Requests a second, and the server's CPU microseconds for each."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, __file__, "--serve", kind, str(files), str(Path(state) / "spool")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            uvloop.run(load(port, context, requests=200, connections=options.connections))
            before = cpu_seconds(server.pid)
            seconds = uvloop.run(load(port, context, requests=options.requests, connections=options.connections))
            cpu = cpu_seconds(server.pid) - before
        finally:
            server.kill()
            server.wait()
    return options.requests / seconds, cpu / options.requests * 1e6


def main() -> None:
    """One line for each server, by turns, and the ratio of their CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, files, state = options.serve
        uvloop.run({"ours": serve_ours, "plain": serve_plain}[kind](Path(files), Path(state)))
        return
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory) / "pki"
        context = make_files(files)
        print(f"{options.requests} batches of {len(next(bodies()))} bytes, {options.connections} connections, fsync")
        runs = {"ours": [], "plain": []}
        for _ in range(options.repeat):
            for kind, found in runs.items():
                found.append(measure(kind, files, context, options))
    cpu = {}
    for kind, found in runs.items():
        cpu[kind] = statistics.median(one for _, one in found)
        rate = statistics.median(one for one, _ in found)
        name = "ndcollector https input" if kind == "ours" else "aiohttp's own TLS server"
        print(f"{name:<26} {rate:>8.0f} requests/s {cpu[kind]:>8.0f} µs CPU a request")
    print(f"CPU ratio {cpu['ours'] / cpu['plain']:.2f}")


if __name__ == "__main__":
    main()
