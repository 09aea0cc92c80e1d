"""The far ends of the contract: for every output a real or faithful receiver that can break down and heal."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
