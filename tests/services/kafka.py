"""A real Apache Kafka (KRaft) on loopback: one node or several, to be killed, frozen, moved, filled and started again.

    with Cluster(directory, nodes=3) as cluster:            # ready: every broker registered and unfenced
        cluster.bootstrap()                                 # "127.0.0.1:23001,127.0.0.1:…"
        cluster.create_topic("events", partitions=8, replication=3)     # Kafka's own Java tool
        cluster.console_produce("events", [("key", "value"), …])
        cluster.console_consume("events", count=100)        # [Consumed(partition=0, offset=0, key="key", …), …]
        node = cluster.nodes[0]
        node.kill(); node.start()                           # SIGKILL; the same address and data again
        node.freeze(); node.thaw()                          # SIGSTOP, SIGCONT
        node.move(); node.stop()                            # another port; SIGTERM
    Cluster(directory, security=Security(ca, cert, key, users={"collector": "secret"}))
        cluster.bootstrap("SSL")                            # mutual TLS, a client certificate is required
        cluster.bootstrap("SASL_SSL")                       # PLAIN, SCRAM-SHA-256 and -512, OAUTHBEARER (unsecured JWT)
        cluster.deny("collector", "events", "Write")        # an ACL; allow() takes it back; PLAINTEXT may all
    Cluster(directory, disk_bytes=64 * 2**20)               # root only: a file system of its own for each node
        node.fill_disk(); node.free_disk()

Promises: every node is a process of its own with a small heap, started within seconds, ended by its own process id when
the context is left, frozen or not; ports stay the same over restarts and lie below the kernel's range of ephemeral
ports, so that no client can take a dead broker's port, or connect to itself there. Java tools raise ToolError with
what they printed. A broker that dies unseen fails the wait with the end of its log.
Refuses: making certificates; any address but 127.0.0.1.

Timeouts are a tenth of Kafka's defaults: a dead broker loses its leaderships after about two seconds. One that was
started again answers when start() returns, and is back among the replicas in sync a moment later.
"""

import asyncio
import base64
import fcntl
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest

from services import fetch
from services.kafka_java import Consumed, ToolError, archive, consumed, environment, java, run_tool
from services.kafka_settings import BROKER, Security
from services.process import ServiceProcess

__all__ = ["Cluster", "Consumed", "Node", "Security", "ToolError", "run_tool"]

START_SECONDS = 60.0  # takes 2 to 5 on an idle machine
_STARTED = "Kafka Server started"  # KafkaRaftServer says so once the broker is unfenced and answers
_PORTS = range(15000, 32000)  # below net.ipv4.ip_local_port_range, above well-known services


class Node:
    """One broker that is a controller too; see the module."""

    def __init__(self, cluster: "Cluster", number: int, listeners: Sequence[str]) -> None:
        self.id = number
        self.directory = cluster.directory / f"node-{number}"
        self.ports = {listener: _steady_port() for listener in ("CONTROLLER", *listeners)}
        self.advertised: dict[str, str] = {}  # listener → the host:port that clients are told, where it is another
        self._cluster = cluster
        self._process: ServiceProcess | None = None
        self._disk: _Disk | None = None
        self._frozen = False
        self._log_from = 0
        self.directory.mkdir(parents=True)

    @property
    def pid(self) -> int:
        """Of the broker that runs now or ran last."""
        return self.process.pid

    @property
    def process(self) -> ServiceProcess:
        """The broker that runs now or ran last; `process.returncode` is None while it runs."""
        if self._process is None:
            raise RuntimeError(f"Kafka node {self.id} was not started")
        return self._process

    @property
    def data(self) -> Path:
        """Where the broker keeps its logs; its own file system if it has one (seen through the holder's /proc)."""
        return self._disk.seen if self._disk else self.directory / "data"

    def address(self, listener: str = "PLAINTEXT") -> str:
        """host:port of a listener."""
        return f"127.0.0.1:{self.ports[listener]}"

    def start(self) -> None:
        """Start it and wait until it takes part in the cluster. AssertionError with the end of its log."""
        self.launch()
        self.await_started()

    def launch(self) -> None:
        """Start it without waiting."""
        self._write_properties()
        command = [*java(), "kafka.Kafka", str(self.directory / "server.properties")]
        command[1:1] = self._cluster.options
        if self._disk:
            command = ["nsenter", f"--mount=/proc/{self._disk.pid}/ns/mnt", *command]
        log = self.directory / "kafka.log"
        self._log_from = log.stat().st_size if log.exists() else 0
        self._frozen = False
        self._process = ServiceProcess("kafka", command, directory=self.directory, environment=environment())

    def await_started(self) -> None:
        """Wait for what launch() began; AssertionError with the end of its log, and the broker is ended."""
        try:
            self.process.wait_until(self._has_started, _STARTED, START_SECONDS)
        except AssertionError:
            self.process.kill()
            raise

    def stop(self) -> None:
        """SIGTERM: it hands over its leaderships and ends."""
        if self._process:
            self.thaw()
            self._process.stop(timeout_seconds=30)

    def kill(self) -> None:
        """SIGKILL, at whatever instruction it is."""
        if self._process:
            self._process.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        """SIGCONT; the cluster may have fenced it meanwhile, it comes back by itself."""
        if self._frozen and self.process.returncode is None:
            os.kill(self.pid, signal.SIGCONT)
        self._frozen = False

    def move(self) -> None:
        """End it and bring it back under other client ports, as if the machine had been replaced; its data is kept."""
        self.stop()
        for listener in self.ports:
            if listener != "CONTROLLER":
                self.ports[listener] = _steady_port()
        self.start()

    def fill_disk(self) -> None:
        """Leave no byte free on the node's own file system."""
        with (self.data / "ballast").open("ab") as ballast:
            try:
                while True:
                    os.write(ballast.fileno(), bytes(65536))
            except OSError:
                return

    def free_disk(self) -> None:
        """Take away what fill_disk() put there."""
        (self.data / "ballast").unlink(missing_ok=True)

    def give_disk(self, size_bytes: int) -> None:
        """A file system of its own, before the first start."""
        (self.directory / "data").mkdir()
        self._disk = _Disk(self.directory / "data", size_bytes)

    def close(self) -> None:
        """End the broker for good."""
        if self._process:
            self.thaw()
            self._process.kill()
        if self._disk:
            self._disk.close()

    def _has_started(self) -> bool:
        with self.process.log.open("rb") as log:
            log.seek(self._log_from)
            return _STARTED.encode() in log.read()

    def _write_properties(self) -> None:
        listeners = ",".join(f"{name}://{self.address(name)}" for name in self.ports)
        told = {name: self.address(name) for name in self.ports if name != "CONTROLLER"} | self.advertised
        advertised = ",".join(f"{name}://{address}" for name, address in told.items())
        properties = self._cluster.properties | {
            "node.id": str(self.id), "listeners": listeners, "advertised.listeners": advertised,
            "log.dirs": str(self.directory / "data"),
        }  # fmt: skip
        lines = [f"{name}={value}\n" for name, value in properties.items()]
        (self.directory / "server.properties").write_text("".join(lines))


class _Disk:
    """A tmpfs in a mount namespace that a sleeping process keeps, so that it outlives the broker's death."""

    def __init__(self, where: Path, size_bytes: int) -> None:
        if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter"):
            raise fetch.ServiceMissingError("kafka: a file system of its own needs root and util-linux")
        script = 'mount -t tmpfs -o size="$2" none "$1" && echo mounted && exec sleep infinity'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(where), str(size_bytes)]
        self._process = ServiceProcess("disk", command, directory=where.parent)
        self._process.until_ready(lambda: "mounted" in self._process.tail(), "mount")
        self.pid = self._process.pid
        self.seen = Path(f"/proc/{self.pid}/root{where}")

    def close(self) -> None:
        self._process.kill()


class Cluster:
    """Kafka nodes that know each other; see the module.

    `properties` are merged over the brokers' defaults; `options` go to their JVMs.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 1,
        security: Security | None = None,
        properties: Mapping[str, str] | None = None,
        disk_bytes: int | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.options = tuple(options)
        directory.mkdir(parents=True, exist_ok=True)
        self._security = security
        self._disk_bytes = disk_bytes
        listeners = ["PLAINTEXT", "SSL", "SASL_SSL"] if security else ["PLAINTEXT"]
        self.nodes = [Node(self, number, listeners) for number in range(1, nodes + 1)]
        self.properties = self._base_properties() | dict(properties or {})

    def __enter__(self) -> Self:
        try:
            if not self.options:
                _make_archive()
            self._format()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start every node that does not run and wait for all."""
        started = [node for node in self.nodes if node._process is None or node.process.returncode is not None]
        for node in started:
            node.launch()
        for node in started:
            node.await_started()

    def close(self) -> None:
        """Kill all: nobody will read their data again."""
        for node in self.nodes:
            node.close()

    def bootstrap(self, listener: str = "PLAINTEXT") -> str:
        """host:port of every node, separated by commas: PLAINTEXT, or with `security` SSL or SASL_SSL."""
        return ",".join(node.address(listener) for node in self.nodes)

    def tool(self, main: str, *arguments: str, text: str = "", timeout_seconds: float = 60) -> str:
        """run_tool() with --bootstrap-server; what it printed. Raises ToolError."""
        address = ("--bootstrap-server", self.bootstrap())
        return run_tool(main, *address, *arguments, text=text, timeout_seconds=timeout_seconds)

    def create_topic(self, topic: str, *, partitions: int = 1, replication: int = 1, **config: str) -> None:
        """As kafka-topics does; `config` keys are Kafka's with underscores (min_insync_replicas="2")."""
        settings = [f"--config={name.replace('_', '.')}={value}" for name, value in config.items()]
        shape = (f"--partitions={partitions}", f"--replication-factor={replication}")
        self.topics("--create", "--topic", topic, *shape, *settings)
        with ThreadPoolExecutor(1) as thread:  # the caller's may have a loop of its own
            thread.submit(asyncio.run, self._until_known(topic)).result()

    async def _until_known(self, topic: str) -> None:
        """The controller made it; every broker that runs is to know it, with a leader."""
        for node in self.nodes:
            if node.process.returncode is not None or node._frozen or node.advertised:
                continue
            client = AIOKafkaClient(bootstrap_servers=node.address())
            await client.bootstrap()
            try:
                async with asyncio.timeout(START_SECONDS):
                    while not await self._knows(client, topic):
                        await asyncio.sleep(0.05)
            finally:
                await client.close()

    async def _knows(self, client: AIOKafkaClient, topic: str) -> bool:
        request = MetadataRequest([topic], allow_auto_topic_creation=False)
        (found,) = (await client.send(client.get_random_node(), request)).topics
        partitions = found[-1]
        return not found[0] and bool(partitions) and all(one[2] >= 0 for one in partitions)

    def topics(self, *arguments: str) -> str:
        """kafka-topics with these arguments, such as "--describe"."""
        return self.tool("org.apache.kafka.tools.TopicCommand", *arguments)

    def deny(self, user: str, topic: str, operation: str) -> None:
        """Refuse a user an operation on a topic (Write, Read, Describe …).

        `user` is a SASL user's name, or a client certificate's "CN=…".
        """
        self._acl("--add", user, topic, operation)

    def allow(self, user: str, topic: str, operation: str) -> None:
        """Take deny() back."""
        self._acl("--remove", "--force", user, topic, operation)

    def _acl(self, *words: str) -> None:
        *how, user, topic, operation = words
        who = (f"--deny-principal=User:{user}", f"--operation={operation}", f"--topic={topic}")
        self.tool("org.apache.kafka.tools.AclCommand", *how, *who)

    def console_produce(
        self, topic: str, records: Iterable[tuple[str, str]], *, timeout_seconds: float = 60
    ) -> None:
        """Kafka's console producer: keys and values, neither with TAB or LF; Java chooses the partitions."""
        text = "".join(f"{key}\t{value}\n" for key, value in records)
        options = ["--topic", topic, "--reader-property", "parse.key=true", "--request-required-acks=all"]
        options += ["--request-timeout-ms=2000", "--message-send-max-retries=300"]  # 1.5 s and 3 give up on a failover
        self.tool("org.apache.kafka.tools.ConsoleProducer", *options, text=text, timeout_seconds=timeout_seconds)

    def console_consume(self, topic: str, *, count: int, timeout_seconds: float = 30) -> list[Consumed]:
        """Kafka's console consumer, from the beginning, read_committed; fewer if no more come within the timeout."""
        options = ["--topic", topic, "--from-beginning", f"--max-messages={count}", "--isolation-level=read_committed"]
        options.append(f"--timeout-ms={int(timeout_seconds * 1000)}")
        for what in ("timestamp", "partition", "offset", "headers", "key"):
            options += ["--formatter-property", f"print.{what}=true"]
        consumer = "org.apache.kafka.tools.consumer.ConsoleConsumer"
        printed = self.tool(consumer, *options, timeout_seconds=timeout_seconds + 30)
        return [consumed(line) for line in printed.splitlines() if "\tPartition:" in line]

    def _base_properties(self) -> dict[str, str]:
        copies = min(3, len(self.nodes))
        voters = ",".join(f"{node.id}@{node.address('CONTROLLER')}" for node in self.nodes)
        text = BROKER + (self._security.properties(self.directory) if self._security else "")
        found = dict(line.split("=", 1) for line in text.splitlines() if line)
        return found | {
            "controller.quorum.voters": voters,
            "offsets.topic.replication.factor": str(copies),
            "transaction.state.log.replication.factor": str(copies),
            "transaction.state.log.min.isr": str(min(2, copies)),
            "share.coordinator.state.topic.replication.factor": str(copies),
            "share.coordinator.state.topic.min.isr": str(min(2, copies)),
        }

    def _format(self) -> None:
        """Kafka formats the first node; the others differ in two identifiers, which saves a JVM for each."""
        first = self.nodes[0]
        scram = self._security.scram_options() if self._security else []
        for node in self.nodes:
            if self._disk_bytes:
                node.give_disk(self._disk_bytes)
        first._write_properties()
        blank = self.directory / "formatted"
        properties = self.directory / "format.properties"
        text = (first.directory / "server.properties").read_text()
        properties.write_text(text.replace(str(first.directory / "data"), str(blank)))
        run_tool("kafka.tools.StorageTool", "format", f"--cluster-id={_uuid()}", f"--config={properties}", *scram)
        for node in self.nodes:
            node.data.mkdir(exist_ok=True)
            for file in blank.iterdir():
                shutil.copy(file, node.data)
            lines = (blank / "meta.properties").read_text().splitlines()
            kept = [line for line in lines if not line.startswith(("node.id=", "directory.id="))]
            kept += [f"node.id={node.id}", f"directory.id={_uuid()}"]
            (node.data / "meta.properties").write_text("\n".join(kept) + "\n")


def _make_archive() -> None:
    """Once per fetch, keep the broker's classes as the JVM holds them: a start costs 1.4 s of CPU instead of 2.4."""
    recorded = archive(fetch.ensure(fetch.KAFKA))
    with (recorded.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if recorded.exists():
            return
        partial = recorded.with_suffix(".partial")
        with tempfile.TemporaryDirectory() as directory:
            recorder = Cluster(Path(directory), options=(f"-XX:ArchiveClassesAtExit={partial}",))
            with recorder:
                recorder.nodes[0].stop()
        partial.rename(recorded)


def _uuid() -> str:
    """As Kafka writes them: 16 bytes in URL-safe base64, not beginning with a dash (it would read as an option)."""
    return "A" + base64.urlsafe_b64encode(secrets.token_bytes(16)).decode()[1:22]


def _steady_port() -> int:
    """A port that is free now and that the kernel gives to nobody; see the module."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
