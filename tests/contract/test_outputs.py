"""The contract of every output: whatever happens to it, each event ends at the far side or in a dead letter.

Events carry unique sequences; after each scenario what arrived and what was buried must add up to what was sent.
A new output adds one line to CASES.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson
import pytest
from http_far_side import Act, FarSide, Received, close, silence
from http_far_side import answer as http_answer
from https_site import Site
from kafka_topic import read_topic
from otlp_receiver import OtlpReceiver
from s3_site import Door, Store, moto
from services import fetch
from services.kafka import Cluster
from services.need import need

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import Output, Unavailable
from ndagent.core.metrics import Metrics
from ndagent.core.settings import Listen, OutputConfig
from ndagent.https_client import Place
from ndagent.outputs import Target
from ndagent.outputs.collector import DeliveryConfig
from ndcollector.kafka_admin import KafkaAdmin
from ndcollector.kafka_client import Connection
from ndcollector.outputs import OutputContext, elasticsearch, file, https, kafka, otlp, relp, s3, splunk_hec, syslog_tls
from ndcollector.topics import Difference
from tests.agent.collector_output import real
from tests.contract.bulk_servers import BulkServer, HecServer
from tests.contract.tcp_output import ScriptedServer, TcpOutput
from tests.events import SwiftTime, event_batch, sequences_in
from tests.syslog_receivers import RelpReceiver, TlsReceiver
from tests.syslog_receivers import Site as SyslogSite

EVENTS = 200
PER_BATCH = 10


class Scripted(Protocol):
    """A far end that answers as a test wants: a script of the sequences of each request."""

    script: Callable[[list[int]], str]


class FarEnd(Protocol):
    """What the suite needs of the other end."""

    output: Output
    config: OutputConfig
    server: Scripted | None
    """Where its answers can be scripted; None where the far end is not a peer that can refuse (a file)."""

    async def arrived(self) -> list[int]:
        """The sequences that the far end holds."""

    async def break_down(self) -> None:
        """Make it unavailable."""

    async def heal(self) -> None:
        """Make it available again."""


@dataclass
class TcpEnd:
    """The suite's own output, or another one that talks to a scripted server."""

    server: ScriptedServer
    output: Output
    config: OutputConfig

    async def arrived(self) -> list[int]:
        return self.server.kept

    async def break_down(self) -> None:
        await self.server.stop()

    async def heal(self) -> None:
        await self.server.start()


@asynccontextmanager
async def tcp_end(_directory: Path) -> AsyncIterator[TcpEnd]:
    server = ScriptedServer()
    await server.start()
    yield TcpEnd(server, TcpOutput(server), OutputConfig(type="tcp"))
    await server.stop()


@dataclass
class FileEnd:
    """The `file` output; it breaks when its directory does."""

    directory: Path
    output: Output
    config: OutputConfig
    server: None = None

    async def arrived(self) -> list[int]:
        path = self.directory / "out" / "security_events.ndjson"
        return sequences_in(path.read_bytes()) if path.exists() else []

    async def break_down(self) -> None:
        out = self.directory / "out"
        if out.exists():
            out.rename(self.directory / "away")
        out.write_text("a file where the directory should be")

    async def heal(self) -> None:
        (self.directory / "out").unlink()
        if (self.directory / "away").exists():
            (self.directory / "away").rename(self.directory / "out")


@asynccontextmanager
async def file_end(directory: Path) -> AsyncIterator[FileEnd]:
    config = file.Config(path=directory / "out" / "{stream}.ndjson")
    context = OutputContext(state_dir=directory, metrics=Metrics(), clock=lambda: 1_700_000_000.0)
    yield FileEnd(directory, file.build("archive", config, context), config)


@dataclass
class KafkaEnd:
    """The `kafka` output and a real broker, which is killed and started again."""

    cluster: Cluster
    output: Output
    config: OutputConfig
    server: None = None

    async def arrived(self) -> list[int]:
        records = await read_topic(self.cluster.bootstrap(), "events")
        return sequences_in(b"\n".join(record.value for record in records))

    async def break_down(self) -> None:
        await asyncio.to_thread(self.cluster.nodes[0].kill)

    async def heal(self) -> None:
        await asyncio.to_thread(self.cluster.nodes[0].start)


@asynccontextmanager
async def kafka_end(directory: Path) -> AsyncIterator[KafkaEnd]:
    need(fetch.KAFKA)
    with Cluster(directory / "kafka") as cluster:
        servers = [cluster.bootstrap()]
        config = kafka.Config(
            bootstrap_servers=servers, request_timeout="1s", timeout="3s", topics={"security_events": "events"}
        )
        async with KafkaAdmin(Connection(config)) as admin:
            await admin.make(Difference("create", "events", "", partitions=3, replication=1))
        context = OutputContext(state_dir=directory, metrics=Metrics(), clock=lambda: 1_700_000_000.0)
        yield KafkaEnd(cluster, kafka.build("bus", config, context), config)


class HttpServer(ScriptedServer):
    """The same scripts in HTTP: OK 200, LATER 503, NEVER 400, or 422 with the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.far_side = FarSide(reply=self._reply)

    async def start(self) -> None:
        await self.far_side.start()

    async def stop(self) -> None:
        await self.far_side.stop()

    def _reply(self, request: Received) -> bytes | Act:
        sequences = sequences_in(request.plain)
        verdict, _, detail = self.script(sequences).partition(" ")
        if verdict in ("OK", "keep"):
            self.kept += sequences
        if verdict in ("silence", "close", "keep"):
            return silence if verdict == "silence" else close
        if verdict == "NEVER":
            return http_answer(422, b'{"rejected": [%s]}' % detail.encode()) if detail else http_answer(400)
        return http_answer(200 if verdict == "OK" else 503)


_HTTP = {"endpoint_breaker": {"failures": 1_000_000}}
"""For trials whose time is not real; the pauses of a breaker are."""


@asynccontextmanager
async def https_end(directory: Path) -> AsyncIterator[TcpEnd]:
    server = HttpServer()
    await server.start()
    config = https.Config(url=server.far_side.url, rejected_field="rejected", **_HTTP)
    context = OutputContext(state_dir=directory, metrics=Metrics(), clock=lambda: 1_700_000_000.0)
    yield TcpEnd(server, https.build("siem", config, context), config)
    await server.stop()


@asynccontextmanager
async def elasticsearch_end(directory: Path) -> AsyncIterator[TcpEnd]:
    server = BulkServer()
    await server.start()
    config = elasticsearch.Config(url=server.far_side.url, template="none", **_HTTP)
    context = OutputContext(state_dir=directory, metrics=Metrics(), clock=lambda: 1_700_000_000.0)
    yield TcpEnd(server, elasticsearch.build("siem", config, context), config)
    await server.stop()


@asynccontextmanager
async def splunk_hec_end(directory: Path) -> AsyncIterator[TcpEnd]:
    server = HecServer()
    await server.start()
    config = splunk_hec.Config(url=server.far_side.url, token="t", health=None, **_HTTP)
    context = OutputContext(state_dir=directory, metrics=Metrics(), clock=lambda: 1_700_000_000.0)
    yield TcpEnd(server, splunk_hec.build("siem", config, context), config)
    await server.stop()


@dataclass
class AgentEnd:
    """The agent's output to its collectors, over the collector's own https input, which is stopped and started."""

    site: Site
    output: Output
    config: OutputConfig
    server: None = None

    async def arrived(self) -> list[int]:
        return sequences_in(b"\n".join(self.site.disk.lines))

    async def break_down(self) -> None:
        await self.site.stop()

    async def heal(self) -> None:
        await self.site.start()


@asynccontextmanager
async def agent_end(directory: Path) -> AsyncIterator[AgentEnd]:
    site = Site(directory)
    await site.start()
    site.settings = site.settings.model_copy(update={"listen": (Listen("127.0.0.1", site.port),)})
    target = Target("https", Place("localhost", site.port, "127.0.0.1"))
    yield AgentEnd(site, real(site.context(), target), DeliveryConfig())
    if site.running:
        await site.stop()


@dataclass
class SyslogEnd:
    """The `syslog_tls` output and a receiver, which drops repeats by event.id as a real one is told to."""

    receiver: TlsReceiver
    output: Output
    config: OutputConfig
    server: None = None

    async def arrived(self) -> list[int]:
        await self.output.aclose()  # in order: what is on its way is read first
        await self.receiver.quiet()
        return sorted(set(sequences_in(b"\n".join(self.receiver.messages))))

    async def break_down(self) -> None:
        await self.receiver.stop()

    async def heal(self) -> None:
        await self.receiver.start()


@asynccontextmanager
async def syslog_end(directory: Path) -> AsyncIterator[SyslogEnd]:
    site = SyslogSite(directory / "pki")
    receiver = TlsReceiver(site.context())
    await receiver.start()
    config = syslog_tls.Config(
        endpoints=[f"127.0.0.1:{receiver.port}"],
        tls=site.tls(server_name="localhost"),
        replay_window={"seconds": "100ms"},
        timeout="5s",
    )
    context = OutputContext(state_dir=directory, metrics=Metrics(), clock=lambda: 1_700_000_000.0)
    output = syslog_tls.build("siem", config, context)
    yield SyslogEnd(receiver, output, config)
    await output.aclose()
    await receiver.stop()


@asynccontextmanager
async def relp_end(directory: Path) -> AsyncIterator[TcpEnd]:
    server = RelpReceiver()
    await server.start()
    config = relp.Config(endpoints=[f"127.0.0.1:{server.port}"], tls=None, window=4)
    context = OutputContext(state_dir=directory, metrics=Metrics(), clock=lambda: 1_700_000_000.0)
    yield TcpEnd(server, relp.build("siem", config, context), config)
    await server.stop()


@dataclass
class OtlpEnd:
    """The `otlp` output and a receiver that reads with OpenTelemetry's own protobuf code."""

    server: OtlpReceiver
    output: Output
    config: OutputConfig

    async def arrived(self) -> list[int]:
        return self.server.kept

    async def break_down(self) -> None:
        await self.server.stop()

    async def heal(self) -> None:
        await self.server.start()


@asynccontextmanager
async def otlp_end(directory: Path) -> AsyncIterator[OtlpEnd]:
    receiver = OtlpReceiver()
    await receiver.start()
    config = otlp.Config(url=f"http://127.0.0.1:{receiver.port}", **_HTTP)
    context = OutputContext(state_dir=directory, metrics=Metrics(), clock=lambda: 1_700_000_000.0)
    yield OtlpEnd(receiver, otlp.build("trial", config, context), config)
    await receiver.stop()


@dataclass
class S3End:
    """The `s3` output and a real S3 server, behind a door that is shut and opened."""

    store: Store
    door: Door
    output: Output
    config: OutputConfig
    server: None = None

    async def arrived(self) -> list[int]:
        return await asyncio.to_thread(self.store.sequences)

    async def break_down(self) -> None:
        await self.door.stop()

    async def heal(self) -> None:
        await self.door.start()


@asynccontextmanager
async def s3_end(directory: Path) -> AsyncIterator[S3End]:
    store, door = await asyncio.to_thread(lambda: Store(moto())), Door(moto())
    await door.start()
    config = s3.Config(bucket=store.bucket, endpoint=door.url, access_key_id="a", secret_access_key="b")
    context = OutputContext(state_dir=directory, metrics=Metrics(), clock=lambda: 1_700_000_000.0)
    yield S3End(store, door, s3.build("trial", config, context), config)
    await door.stop()


class Case(NamedTuple):
    """How to make a far end, and whether it can answer (a file cannot refuse an event)."""

    make: Callable[[Path], AbstractAsyncContextManager[FarEnd]]
    answers: bool


CASES = {
    "tcp": Case(tcp_end, answers=True),
    "file": Case(file_end, answers=False),
    "elasticsearch": Case(elasticsearch_end, answers=True),
    "https": Case(https_end, answers=True),
    "splunk_hec": Case(splunk_hec_end, answers=True),
    "kafka": Case(kafka_end, answers=False),
    "collector": Case(agent_end, answers=False),
    "syslog_tls": Case(syslog_end, answers=False),
    "relp": Case(relp_end, answers=True),
    "otlp": Case(otlp_end, answers=True),
    "s3": Case(s3_end, answers=False),
}


class Trial:
    """One output behind its Delivery, and the sum at the end.

    Timeouts are real time, and on a busy machine a short one sends what has arrived again: `timeout_seconds` is for
    trials that wait for one.
    """

    def __init__(self, directory: Path, far_end: FarEnd, *, timeout_seconds: float | None = None) -> None:
        self.far_end = far_end
        self.time = SwiftTime()
        self.metrics = Metrics()
        config = far_end.config
        if timeout_seconds is not None:
            config = config.model_copy(update={"timeout": timeout_seconds})
        plumbing = {"clock": self.time.clock, "sleep": self.time.sleep, "random": lambda: 0.5}
        self._letters = DeadLetters(directory, output="trial", max_bytes=2**30, clock=lambda: 0.0)
        output = wrap(far_end.output, name="trial", config=config, metrics=self.metrics, **plumbing)
        self.delivery = Delivery(output, name="trial", config=config, dead_letters=self._letters, **plumbing)
        self._window = asyncio.Semaphore(config.in_flight)
        self._unsynced: list[int] = []  # sent since the last sync that ended well

    async def deliver_all(self, sequences: Sequence[int] = range(EVENTS)) -> int:
        """As a feed does: in order of the batches, `in_flight` at a time; returns how many were buried."""
        self._unsynced += sequences
        starts = range(0, len(sequences), PER_BATCH)
        return sum(await asyncio.gather(*(self._deliver(sequences[at : at + PER_BATCH]) for at in starts)))

    async def _deliver(self, sequences: Sequence[int]) -> int:
        async with self._window:
            return len(await self.delivery.deliver(event_batch(sequences)))

    async def arrived(self) -> list[int]:
        """After a sync, which must succeed once the far end is well; one that fails asks for everything again."""
        try:
            await self.delivery.sync()
        except Unavailable:
            await self.deliver_all(list(self._unsynced))
            await self.delivery.sync()
        self._unsynced.clear()
        return sorted(await self.far_end.arrived())

    def buried(self) -> list[int]:
        path = self._letters.path
        lines = path.read_bytes().splitlines() if path.exists() else []
        return sorted(orjson.loads(line)["sequence"] for line in lines)


@pytest.fixture(params=CASES)
async def trial(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Trial]:
    """For scenarios that every output must go through; narrowed by `answering`."""
    async with CASES[request.param].make(tmp_path) as end:
        made = Trial(tmp_path / "dead_letters", end)
        yield made
        await made.delivery.aclose()


@pytest.fixture
def server(trial: Trial) -> Scripted:
    """The scripted far end, for scenarios that only a peer with a will of its own can play."""
    assert trial.far_end.server is not None
    return trial.far_end.server


answering = pytest.mark.parametrize("trial", [name for name, case in CASES.items() if case.answers], indirect=True)


async def test_succeed(trial: Trial) -> None:
    """Each event arrives, once."""
    assert await trial.deliver_all() == 0
    assert await trial.arrived() == list(range(EVENTS))


async def test_unavailable_from_the_start(trial: Trial) -> None:
    """The destination may be down when the daemon starts."""
    await trial.far_end.break_down()
    delivering = asyncio.ensure_future(trial.deliver_all())
    while trial.metrics.registry.get_sample_value("nd_output_unavailable_total", {"output": "trial"}) < 10:
        await asyncio.sleep(0)
    await trial.far_end.heal()
    assert await delivering == 0
    assert await trial.arrived() == list(range(EVENTS))


async def test_unavailable_in_between(trial: Trial) -> None:
    """An outage amid the work costs nothing that was sent before, amid or after."""
    await trial.deliver_all(range(100))
    await trial.far_end.break_down()
    delivering = asyncio.ensure_future(trial.deliver_all(range(100, EVENTS)))
    while trial.metrics.registry.get_sample_value("nd_output_unavailable_total", {"output": "trial"}) < 10:
        await asyncio.sleep(0)
    await trial.far_end.heal()
    await delivering
    assert await trial.arrived() == list(range(EVENTS))


async def test_cancelled_and_sent_again(trial: Trial) -> None:
    """As a stop and a start: a send cut off at any turn of the loop leaves nothing that the next cannot complete."""
    for turns in range(12):
        first = turns * PER_BATCH
        sending = asyncio.ensure_future(trial.delivery.deliver(event_batch(range(first, first + PER_BATCH))))
        for _ in range(turns):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await trial.delivery.deliver(event_batch(range(first, first + PER_BATCH)))
    assert sorted(set(await trial.arrived())) == list(range(12 * PER_BATCH))


async def test_closing_is_safe_at_any_time(trial: Trial) -> None:
    """Before the first send, and twice."""
    await trial.delivery.aclose()
    await trial.delivery.aclose()


async def test_a_sync_without_a_send_is_fine(trial: Trial) -> None:
    """A cursor may have to be saved for other reasons."""
    assert await trial.arrived() == []


@answering
async def test_rejected_without_names(trial: Trial, server: Scripted) -> None:
    """Only the guilty are buried, and all of them."""
    guilty = {3, 4, 77, 199}
    server.script = lambda sequences: "NEVER" if guilty & set(sequences) else "OK"
    assert await trial.deliver_all() == 4
    assert trial.buried() == sorted(guilty)
    assert await trial.arrived() == sorted(set(range(EVENTS)) - guilty)


@answering
async def test_rejected_with_names(trial: Trial, server: Scripted) -> None:
    """The named are buried, the rest of the batch is sent again."""
    guilty = {0, 9, 55, 56}

    def script(sequences: list[int]) -> str:
        named = ",".join(str(index) for index, sequence in enumerate(sequences) if sequence in guilty)
        return f"NEVER {named}" if named else "OK"

    server.script = script
    assert await trial.deliver_all() == 4
    assert trial.buried() == sorted(guilty)
    assert await trial.arrived() == sorted(set(range(EVENTS)) - guilty)


@answering
async def test_everything_rejected(trial: Trial, server: Scripted) -> None:
    """A destination that refuses all costs many sends and no event."""
    server.script = lambda _sequences: "NEVER"
    assert await trial.deliver_all() == EVENTS
    assert trial.buried() == list(range(EVENTS))


@answering
async def test_silence(trial: Trial, server: Scripted, tmp_path: Path) -> None:
    """A far end that takes the bytes and never answers: timed out, sent again; what was only slow may come twice."""
    silent = iter([True] * 6)
    server.script = lambda _sequences: "silence" if next(silent, False) else "OK"
    impatient = Trial(tmp_path / "impatient", trial.far_end, timeout_seconds=0.25)
    assert await impatient.deliver_all() == 0
    assert sorted(set(await impatient.arrived())) == list(range(EVENTS))
    assert next(silent, None) is None
    assert impatient.metrics.registry.get_sample_value("nd_output_unavailable_total", {"output": "trial"}) >= 6


@answering
@pytest.mark.parametrize("seed", range(5))
async def test_everything_mixed_at_random(trial: Trial, server: Scripted, seed: int) -> None:
    """Every answer in any order; at least once for the innocent, buried for the guilty, nothing in neither."""
    draw = random.Random(seed)
    guilty = set(draw.sample(range(EVENTS), 7))

    def script(sequences: list[int]) -> str:
        indexes = [index for index, sequence in enumerate(sequences) if sequence in guilty]
        if draw.random() < 0.4:
            return draw.choice(["LATER 0", "LATER 3", "close", "close" if indexes else "keep and close"])
        if not indexes:
            return "OK"
        return "NEVER" if draw.random() < 0.5 else f"NEVER {indexes[0]}"

    server.script = script
    await trial.deliver_all()
    assert trial.buried() == sorted(guilty)
    assert set(await trial.arrived()) == set(range(EVENTS)) - guilty
