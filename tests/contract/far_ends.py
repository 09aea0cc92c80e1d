"""The far ends of the contract: for every output a real or faithful receiver that can break down and heal."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from http_far_side import Act, FarSide, Received, close, silence
from http_far_side import answer as http_answer
from https_site import Site
from kafka_topic import read_topic
from otlp_receiver import OtlpReceiver
from s3_site import Door, Store, moto
from services import fetch
from services.kafka import Cluster
from services.need import need

from ndagent.core.interfaces import Output
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
from tests.events import sequences_in
from tests.syslog_receivers import RelpReceiver, TlsReceiver
from tests.syslog_receivers import Site as SyslogSite


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


class Stoppable(Protocol):
    """A far side that comes and goes."""

    async def start(self) -> None:
        """Be there, at the same place each time."""

    async def stop(self) -> None:
        """Be gone; again is no harm."""


@dataclass
class End:
    """An output and a far side that is stopped and started; `look` gives the sequences that it holds."""

    output: Output
    config: OutputConfig
    far: Stoppable
    look: Callable[[], Awaitable[list[int]]]
    server: Scripted | None = None

    async def arrived(self) -> list[int]:
        return await self.look()

    async def break_down(self) -> None:
        await self.far.stop()

    async def heal(self) -> None:
        await self.far.start()


def surroundings(directory: Path) -> OutputContext:
    return OutputContext(state_dir=directory, metrics=Metrics(), clock=lambda: 1_700_000_000.0)


@asynccontextmanager
async def running(far: Stoppable) -> AsyncIterator[None]:
    await far.start()
    yield
    await far.stop()


class Scriptable(Stoppable, Scripted, Protocol):
    """A receiver of ours: scripted, and it tells what it has."""

    kept: list[int]


@asynccontextmanager
async def scripted(server: Scriptable, make: Callable[[], tuple[Output, OutputConfig]]) -> AsyncIterator[End]:
    """`make` is called once the server has its port."""

    async def look() -> list[int]:
        return server.kept

    async with running(server):
        yield End(*make(), server, look, server)


def tcp_end(_directory: Path) -> AbstractAsyncContextManager[End]:
    """The suite's own output."""
    server = ScriptedServer()
    return scripted(server, lambda: (TcpOutput(server), OutputConfig(type="tcp")))


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
    yield FileEnd(directory, file.build("archive", config, surroundings(directory)), config)


class Broker:
    """A real Kafka node, killed and started again."""

    def __init__(self, cluster: Cluster) -> None:
        self._node = cluster.nodes[0]

    async def start(self) -> None:
        await asyncio.to_thread(self._node.start)

    async def stop(self) -> None:
        await asyncio.to_thread(self._node.kill)


@asynccontextmanager
async def kafka_end(directory: Path) -> AsyncIterator[End]:
    need(fetch.KAFKA)
    with Cluster(directory / "kafka") as cluster:
        servers = [cluster.bootstrap()]
        config = kafka.Config(
            bootstrap_servers=servers, request_timeout="1s", timeout="3s", topics={"security_events": "events"}
        )
        async with KafkaAdmin(Connection(config)) as admin:
            await admin.make(Difference("create", "events", "", partitions=3, replication=1))

        async def look() -> list[int]:
            records = await read_topic(cluster.bootstrap(), "events")
            return sequences_in(b"\n".join(record.value for record in records))

        yield End(kafka.build("bus", config, surroundings(directory)), config, Broker(cluster), look)


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


def https_end(directory: Path) -> AbstractAsyncContextManager[End]:
    server = HttpServer()

    def make() -> tuple[Output, OutputConfig]:
        config = https.Config(url=server.far_side.url, rejected_field="rejected", **_HTTP)
        return https.build("siem", config, surroundings(directory)), config

    return scripted(server, make)


def elasticsearch_end(directory: Path) -> AbstractAsyncContextManager[End]:
    server = BulkServer()

    def make() -> tuple[Output, OutputConfig]:
        config = elasticsearch.Config(url=server.far_side.url, template="none", **_HTTP)
        return elasticsearch.build("siem", config, surroundings(directory)), config

    return scripted(server, make)


def splunk_hec_end(directory: Path) -> AbstractAsyncContextManager[End]:
    server = HecServer()

    def make() -> tuple[Output, OutputConfig]:
        config = splunk_hec.Config(url=server.far_side.url, token="t", health=None, **_HTTP)
        return splunk_hec.build("siem", config, surroundings(directory)), config

    return scripted(server, make)


def otlp_end(directory: Path) -> AbstractAsyncContextManager[End]:
    """A receiver that reads with OpenTelemetry's own protobuf code."""
    server = OtlpReceiver()

    def make() -> tuple[Output, OutputConfig]:
        config = otlp.Config(url=f"http://127.0.0.1:{server.port}", **_HTTP)
        return otlp.build("siem", config, surroundings(directory)), config

    return scripted(server, make)


def relp_end(directory: Path) -> AbstractAsyncContextManager[End]:
    server = RelpReceiver()

    def make() -> tuple[Output, OutputConfig]:
        config = relp.Config(endpoints=[f"127.0.0.1:{server.port}"], tls=None, window=4)
        return relp.build("siem", config, surroundings(directory)), config

    return scripted(server, make)


@asynccontextmanager
async def agent_end(directory: Path) -> AsyncIterator[End]:
    """The agent's output to its collectors, over the collector's own https input."""
    site = Site(directory)
    await site.start()
    site.settings = site.settings.model_copy(update={"listen": (Listen("127.0.0.1", site.port),)})
    target = Target("https", Place("localhost", site.port, "127.0.0.1"))

    async def look() -> list[int]:
        return sequences_in(b"\n".join(site.disk.lines))

    yield End(real(site.context(), target), DeliveryConfig(), site, look)
    if site.running:
        await site.stop()


@asynccontextmanager
async def syslog_end(directory: Path) -> AsyncIterator[End]:
    """A receiver that drops repeats by event.id, as a real one is told to."""
    site = SyslogSite(directory / "pki")
    receiver = TlsReceiver(site.context())
    async with running(receiver):
        config = syslog_tls.Config(
            endpoints=[f"127.0.0.1:{receiver.port}"],
            tls=site.tls(server_name="localhost"),
            replay_window={"seconds": "100ms"},
            timeout="5s",
        )
        output = syslog_tls.build("siem", config, surroundings(directory))

        async def look() -> list[int]:
            await output.aclose()  # in order: what is on its way is read first
            await receiver.quiet()
            return sorted(set(sequences_in(b"\n".join(receiver.messages))))

        yield End(output, config, receiver, look)
        await output.aclose()


@asynccontextmanager
async def s3_end(directory: Path) -> AsyncIterator[End]:
    """A real S3 server, behind a door that is shut and opened."""
    store, door = await asyncio.to_thread(lambda: Store(moto())), Door(moto())
    async with running(door):
        config = s3.Config(bucket=store.bucket, endpoint=door.url, access_key_id="a", secret_access_key="b")

        async def look() -> list[int]:
            return await asyncio.to_thread(store.sequences)

        yield End(s3.build("trial", config, surroundings(directory)), config, door, look)
