"""NetFlow and IPFIX over UDP into batches of ECS flow events; the plugs of agent and collector are made of this.

    DatagramIntake ──datagrams of one exporter──► FlowDecoder ──lines──► Batcher ──accept──► spool
                                                       └─ templates, every minute and at a stop ─► state_dir/netflow/

Promises:
  * everything that DatagramIntake promises: who may send, one place of loss, bounded memory;
  * every record whose template is known, or comes in time, is an event; what was malformed, came without a template or
    was numbered by its exporter and never seen, is counted (nd_input_dropped_events, nd_input_sequence_missing);
  * after a restart records are read with the templates of before; a file of them that is damaged costs only the wait
    for the next announcement.
Refuses: keeping datagrams. What a datagram means depends on what came before it, so events are spooled, not bytes.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field

from ndagent.core.datagram_intake import DatagramConfig, DatagramIntake, DatagramLimits
from ndagent.core.interfaces import Accept
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.networks import AllowedNetworks, AllowNetworks
from ndagent.core.settings import ByteSize, Duration, Listen, ListenAddress
from ndagent.core.spool.files import Files, OsFiles
from ndagent.core.template_file import TemplateFile
from ndagent.wire.framing import Chunk
from ndagent.wire.netflow.decoder import UNITS, FlowDecoder
from ndagent.wire.netflow.lines import Written
from ndagent.wire.netflow.templates import MAX_DOMAINS, MAX_SAMPLERS, TemplateLimits
from ndagent.wire.record import Flags, Framing, Origin

DATAGRAMS_A_READ = 64
"""Some 1 500 flows, 8 ms of work: the loop has other things to do."""
CHUNK_BYTES = 128 * 1024
SAVE_EVERY_SECONDS = 60.0
_SAY_EVERY_SECONDS = 60.0


class FlowLimits(DatagramLimits):
    """What exporters may take of this machine."""

    exporters: int = Field(
        default=4096, ge=1, le=2**20,
        description="Exporters whose templates are remembered; the one heard of longest ago goes first.",
    )  # fmt: skip
    templates_per_exporter: int = Field(default=256, ge=1, le=65536, description="Templates of one exporter.")
    templates: int = Field(default=32768, ge=1, le=2**20, description="Templates of all exporters together.")
    template_fields: int = Field(
        default=65536, ge=512, le=2**22,
        description="Fields of all different templates together; one takes some 700 bytes.",
    )  # fmt: skip
    domains: int = Field(
        default=32768, ge=MAX_DOMAINS, le=2**20,
        description="Observation domains of all exporters together; one takes some 500 bytes.",
    )  # fmt: skip
    samplers: int = Field(
        default=65536, ge=MAX_SAMPLERS, le=2**20,
        description="Sampling rates, told by options, of all exporters together.",
    )  # fmt: skip
    held_bytes: ByteSize = Field(
        default=16 * 2**20, ge=2**16,
        description="Records that wait for their template; beyond it the oldest are dropped.",
    )  # fmt: skip
    held_for: Duration = Field(
        default=300.0, ge=1, le=86400,
        description="How long records wait for their template; then they are dropped, counted.",
    )  # fmt: skip


class FlowConfig(DatagramConfig):
    """Settings of a netflow input."""

    listen: tuple[ListenAddress, ...] = Field(
        default=(Listen("0.0.0.0", 2055),), min_length=1,
        description="Addresses to receive at. 2055 is usual for NetFlow, 4739 is IANA's for IPFIX; any takes all.",
    )  # fmt: skip
    allow: AllowNetworks = Field(default=AllowNetworks(), description="Which exporters may send.")
    limits: FlowLimits = Field(default=FlowLimits(), description="What exporters may take of this machine.")
    community_id: bool = Field(
        default=True,
        description="Add network.community_id, by which other sensors name the same flow; it costs a SHA-1.",
    )  # fmt: skip


class FlowInput:
    """An Input; see the module. `constants` are members of every event, each with a comma behind it."""

    def __init__(
        self,
        name: str,
        config: FlowConfig,
        *,
        state_dir: Path,
        metrics: Metrics,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        constants: bytes = b"",
        files: Files | None = None,
    ) -> None:
        self._name = name
        self._metrics = metrics
        self._clock = clock
        self._log = logging.getLogger(name)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=monotonic)
        self._saved = TemplateFile(state_dir / "netflow" / f"{name}.templates", files=files or OsFiles(), log=self._log)
        self._decoder = _decoder(config, constants)
        self._restored = False
        self._evicted = 0
        self._redefined = 0
        self._declare()
        self._intake = DatagramIntake(
            name,
            config,
            allow=AllowedNetworks(config.allow.networks),
            metrics=metrics,
            clock=clock,
            monotonic=monotonic,
            translate=self._translate,
            format="ecs",
            datagrams_a_read=DATAGRAMS_A_READ,
        )

    @property
    def addresses(self) -> list[Listen]:
        """Where it receives, with the ports that the kernel chose."""
        return self._intake.addresses

    async def start(self) -> None:
        """Open the sockets and read the templates of before; raises OSError that names the address."""
        await self._intake.start()
        if not self._restored:
            self._restored = True
            await self._saved.restore(self._decoder, now=self._clock())

    async def run(self, accept: Accept) -> None:
        """Receive until cancelled; then as DatagramIntake does, and save the templates."""
        await self.start()
        minding = asyncio.create_task(self._mind(), name=f"{self._name}: templates")
        receiving = asyncio.create_task(self._intake.run(accept), name=f"{self._name}: datagrams")
        try:
            done, _ = await asyncio.wait({minding, receiving}, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:  # neither ends by itself but by an error
                ended.result()
        finally:
            minding.cancel()
            receiving.cancel()
            await self._see_out(receiving, minding)

    async def _see_out(self, receiving: "asyncio.Task[None]", minding: "asyncio.Task[None]") -> None:
        """A second cancel goes on to the intake, which then counts what it has left."""
        try:
            await asyncio.wait({receiving, minding})
        except asyncio.CancelledError:
            receiving.cancel()
            await asyncio.wait({receiving, minding})
            raise
        finally:
            self._decoder.close()
            self._count()
            await self._saved.save(self._decoder, now=self._clock())

    async def _mind(self) -> None:
        """Each second what waits too long, and what there is to count; each minute the templates."""
        since_saved = 0.0
        while True:
            await asyncio.sleep(1.0)
            self._decoder.expire(self._clock())
            self._count()
            since_saved += 1.0
            if since_saved >= SAVE_EVERY_SECONDS:
                since_saved = 0.0
                await self._saved.save(self._decoder, now=self._clock())

    # ---- datagrams

    def _translate(self, origin: Origin, is_cut: bool, datagrams: list[bytes]) -> Iterator[Chunk]:
        now = self._clock()
        texts: list[bytes] = []
        size = count = 0
        for data in datagrams:
            for written in self._read(origin, data, now=now, is_cut=is_cut):
                texts.append(written.text)
                size += len(written.text)
                count += written.lines
                if size >= CHUNK_BYTES:
                    yield Chunk(Framing.LF, Flags.OWN, count, b"".join(texts))
                    texts, size, count = [], 0, 0
        if count:
            yield Chunk(Framing.LF, Flags.OWN, count, b"".join(texts))

    def _read(self, origin: Origin, data: bytes, *, now: float, is_cut: bool) -> Iterator[Written]:
        try:
            yield from self._decoder.feed(origin.address, data, now=now, is_cut=is_cut)
        except Exception:  # noqa: BLE001 - a bug in the decoder must not cost the datagrams behind; it is logged
            self._intake.misread(origin, data)

    # ---- counting

    def _declare(self) -> None:
        metrics, name = self._metrics, self._name
        for reason in ("malformed", "no_template"):
            metrics.dropped.labels(name, reason)  # there from the start: a rate needs the zero
        for unit in UNITS.values():
            metrics.sequence_missing.labels(name, unit)
            metrics.sequence_late.labels(name, unit)
        for total in (metrics.exporter_restarts, metrics.templates_evicted, metrics.templates_redefined):
            total.labels(name)

    def _count(self) -> None:
        counts, metrics, name = self._decoder.take_counts(), self._metrics, self._name
        for unit, missing in counts.missing.items():
            metrics.sequence_missing.labels(name, unit).inc(missing)
        for unit, late in counts.late.items():
            metrics.sequence_late.labels(name, unit).inc(late)
        metrics.exporter_restarts.labels(name).inc(counts.restarts)
        templates = self._decoder.templates
        metrics.templates.labels(name).set(templates.count)
        metrics.templates_evicted.labels(name).inc(templates.evicted - self._evicted)
        self._evicted = templates.evicted
        self._count_redefined()
        self._drop("malformed", counts.malformed, f"no NetFlow or IPFIX that can be read; the last: {counts.fault}")
        self._drop(
            "no_template", counts.no_template, "sets of records whose template did not come in time; have the "
            "exporters announce theirs more often, say every minute",
        )  # fmt: skip

    def _count_redefined(self) -> None:
        templates = self._decoder.templates
        redefined = templates.redefined - self._redefined
        if not redefined:
            return
        self._metrics.templates_redefined.labels(self._name).inc(redefined)
        self._redefined = templates.redefined
        if self._throttle.allow("redefined") is not None:
            self._log.warning(
                "%d templates changed their shape; the last: %s. After a new configuration that is right; if it goes "
                "on, several exporters share an address and records may be misread: give each a domain (source id) of "
                "its own", redefined, templates.redefined_last,
            )

    def _drop(self, reason: str, events: int, what: str) -> None:
        if not events:
            return
        self._metrics.received.labels(self._name).inc(events)  # received is durable or refused
        self._metrics.count_drop(input=self._name, reason=reason, events=events)
        if self._throttle.allow(reason) is not None:
            self._log.error("%d lost: %s", events, what)


def _decoder(config: FlowConfig, constants: bytes) -> FlowDecoder:
    limits = config.limits
    return FlowDecoder(
        limits=TemplateLimits(
            exporters=limits.exporters,
            per_exporter=limits.templates_per_exporter,
            fields=limits.template_fields,
            templates=limits.templates,
            domains=limits.domains,
            samplers=limits.samplers,
        ),
        held_bytes=limits.held_bytes,
        held_seconds=limits.held_for,
        community_ids=config.community_id,
        constants=constants,
    )
