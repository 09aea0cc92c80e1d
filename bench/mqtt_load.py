"""Load for bench/mqtt.py, a process of its own: agents that publish over mTLS and wait for PUBACK.

    bulk      some connections, each with a full window of publishes, for so many seconds
    crowd     many agents, each with one event a second and a certificate of its own

Promises: one JSON line `{"connected": n}` when all are in, begins on a line on stdin, ends with one JSON line. A
publish counts when its PUBACK came; what is not a PUBACK with success is an error that ends the process.
"""

import argparse
import asyncio
import json
import random
import ssl
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]

from load import raise_descriptor_limit  # noqa: E402 - found by the line above
from mqtt_client import V5, Client, Writer, u16  # noqa: E402

from ndagent.wire.envelope import Header, pack  # noqa: E402

_WRITE = Writer(V5)


def context(ca: Path, cert: Path, key: Path) -> ssl.SSLContext:
    """An agent's."""
    made = ssl.create_default_context(cafile=ca)
    made.load_cert_chain(cert, key)
    return made


def _lines(size_bytes: int, seed: int) -> bytes:
    """NDJSON of about this size, events of 400 bytes, as an agent has them."""
    dice, found, length = random.Random(seed), [], 0
    while length < size_bytes - 350:
        text = (
            f"Accepted publickey for user{dice.randrange(10**6)} from 10.{dice.randrange(256)}.0.{dice.randrange(256)}"
        )
        line = {
            "@timestamp": "2026-01-02T03:04:05.678901Z", "message": f"{text} port {dice.randrange(65536)} ssh2",
            "host": {"hostname": f"host-{seed}"}, "log": {"file": {"path": "/var/log/auth.log"}},
            "ecs": {"version": "8.17"},
            "event": {"kind": "event", "dataset": "auth", "id": f"{seed:016d}-{dice.getrandbits(64):x}"},
        }  # fmt: skip
        found.append(json.dumps(line).encode() + b"\n")
        length += len(found[-1])
    return b"".join(found)


class _Bulk(threading.Thread):
    """One connection: `window` publishes under way."""

    def __init__(self, arguments: argparse.Namespace, agent: str, number: int, ends: threading.Event) -> None:
        super().__init__(daemon=True)
        self._arguments, self._agent, self._ends = arguments, agent, ends
        self._client = Client(context(arguments.ca, arguments.cert, arguments.key), arguments.port, timeout=60)
        answer = self._client.connect("")  # one certificate, so each gets an identifier of its own
        assert answer is not None
        assert answer[1][1] == 0, answer
        self._topic = f"nd/v1/agents/{agent}/events"
        self._lines = _lines(arguments.size, number)
        self._spool_id = f"{number:016d}"
        self._sent = 0
        self.acknowledged = 0
        self.latencies: list[float] = []
        self.wire_bytes = 0

    def _publish(self) -> bytes:
        payload = self._lines
        if self._arguments.envelope:
            count = payload.count(b"\n")
            first = self._sent * count
            header = Header("security_events", self._spool_id, first, first + count - 1, count, len(payload),
                            time.time_ns(), self._agent, "ab" * 8)  # fmt: skip
            payload = pack(header, payload)
        self._sent += 1
        self.wire_bytes += len(payload)
        return _WRITE.publish(self._topic, payload, (self._sent - 1) % 65535 + 1)

    def run(self) -> None:
        connection, times = self._client.socket, []
        rest = b""
        while not (self._ends.is_set() and self._sent == self.acknowledged):
            room = self._arguments.window - (self._sent - self.acknowledged)
            if room and not self._ends.is_set():
                connection.sendall(b"".join(self._publish() for _ in range(room)))
                times += [time.perf_counter()] * room
            rest += connection.recv(65536)
            whole = len(rest) // 4
            now = time.perf_counter()
            for index in range(whole):
                assert rest[4 * index : 4 * index + 2] == b"\x40\x02", rest
                assert rest[4 * index + 2 : 4 * index + 4] == u16(self.acknowledged % 65535 + 1)
                self.latencies.append(now - times[index])
                self.acknowledged += 1
            del times[:whole]
            rest = rest[4 * whole :]


def bulk(arguments: argparse.Namespace) -> None:
    """Publish as fast as it is acknowledged."""
    ends = threading.Event()
    senders = [_Bulk(arguments, arguments.agent, arguments.first + n, ends) for n in range(arguments.connections)]
    print(json.dumps({"connected": len(senders)}), flush=True)
    sys.stdin.readline()
    began = time.time()
    for sender in senders:
        sender.start()
    time.sleep(arguments.seconds)
    ends.set()
    for sender in senders:
        sender.join()
    latencies = [one for sender in senders for one in sender.latencies]
    _tell(began, latencies, sum(sender.wire_bytes for sender in senders))


async def _one_agent(arguments: argparse.Namespace, number: int, go: asyncio.Event, gate: asyncio.Semaphore,
                     connected: list[int]) -> list[float]:  # fmt: skip
    """Connect, wait, then one event a second at a phase of its own; the time from each PUBLISH to its PUBACK."""
    name = f"agent-{number}"
    files = arguments.certificates
    async with gate:
        tls = context(arguments.ca, files / f"agent-{name}.crt", arguments.key)
        reader, writer = await asyncio.open_connection("localhost", arguments.port, ssl=tls)
        writer.write(_WRITE.connect(name, keep_alive=600))
        head = await reader.readexactly(2)
        assert head[0] == 0x20
        assert (await reader.readexactly(head[1]))[1] == 0
    connected.append(number)
    await go.wait()
    loop = asyncio.get_running_loop()
    at, latencies = loop.time() + random.random(), []
    end = loop.time() + arguments.seconds
    packet_id = 0
    while at < end:
        await asyncio.sleep(at - loop.time())
        at += 1
        packet_id += 1
        line = b'{"message":"event %d of %d"}' % (packet_id, number)
        sent = time.perf_counter()
        writer.write(_WRITE.publish(f"nd/v1/agents/{name}/events", line, packet_id))
        assert await reader.readexactly(4) == b"\x40\x02" + u16(packet_id)
        latencies.append(time.perf_counter() - sent)
    writer.close()
    return latencies


async def crowd(arguments: argparse.Namespace) -> None:
    """Many agents at one event a second."""
    go, gate, connected = asyncio.Event(), asyncio.Semaphore(32), []  # type: ignore[var-annotated]
    numbers = range(arguments.first, arguments.first + arguments.connections)
    agents = [asyncio.create_task(_one_agent(arguments, number, go, gate, connected)) for number in numbers]
    while len(connected) < len(agents):
        await asyncio.sleep(0.05)
        for failed in (one for one in agents if one.done()):
            failed.result()
    print(json.dumps({"connected": len(agents)}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began = time.time()
    go.set()
    found = await asyncio.gather(*agents)
    _tell(began, [one for latencies in found for one in latencies], 0)


def _tell(began: float, latencies: list[float], wire_bytes: int) -> None:
    latencies.sort()
    at = {f"p{rank}": latencies[len(latencies) * rank // 100] * 1000 for rank in (50, 99)}
    at["longest"] = latencies[-1] * 1000
    print(json.dumps({"began": began, "ended": time.time(), "acknowledged": len(latencies), "wire": wire_bytes, **at}))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["bulk", "crowd"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--cert", type=Path, help="bulk: the agent's certificate")
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--certificates", type=Path, help="crowd: directory of agent-agent-<n>.crt, all with --key")
    parser.add_argument("--agent", help="bulk: whose certificate that is")
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="number of the first connection")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--size", type=int, default=20_000, help="bulk: bytes of NDJSON in one publish")
    parser.add_argument("--window", type=int, default=32, help="bulk: publishes under way per connection")
    parser.add_argument("--envelope", action="store_true", help="bulk: zstd envelopes instead of plain lines")
    arguments = parser.parse_args()
    raise_descriptor_limit()
    if arguments.kind == "bulk":
        bulk(arguments)
    else:
        asyncio.run(crowd(arguments))


if __name__ == "__main__":
    main()
