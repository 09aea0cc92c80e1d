"""The running collector: builds every part from one configuration, keeps them running, and takes them down in order.

    inputs ──accept──► spools ──► dispatcher ──► outputs          admin doors, watchers, watchdog beside them

Promises:
  * READY=1 is said when every input takes data, not before; a start that fails says why in a StartError and leaves
    nothing behind, also when it is told to stop half-way;
  * a part that fails for a reason nobody foresaw is started again after a pause with jitter; the others go on;
  * a reload works whole or changes nothing: everything that can refuse (the file, certificates, addresses, plugs) is
    tried before anything is given up;
  * a stop takes no more data, makes durable what was read, delivers for at most `shutdown_timeout`, saves the cursors,
    and says the ledger as its last line; a part that fails to stop does not keep the others from it.
Refuses: knowing any plug by name (the registries in inputs/ and outputs/ do), and exiting (__main__ does). (Past 400
lines: the order in which parts begin, change and end is one thing to read.)
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from ndagent.core import messages
from ndagent.core.config_watch import saves
from ndagent.core.decoding import Decoding
from ndagent.core.deliveries import DIRECTORY, DeliveryBuilder, close, without
from ndagent.core.delivery import Delivery
from ndagent.core.dispatcher import Dispatcher
from ndagent.core.dispatching import Dispatching
from ndagent.core.inherited import HELD
from ndagent.core.intake import STOP_SECONDS, Intake
from ndagent.core.ledger import Bookkeeper
from ndagent.core.log import name_plugs
from ndagent.core.metrics import Metrics
from ndagent.core.notify import Notifier
from ndagent.core.plugs import builder
from ndagent.core.progress import Progress
from ndagent.core.reloading import ReloadRequests
from ndagent.core.spool import Spool
from ndagent.core.spool_set import open_spool, streams_on_disk
from ndagent.core.supervision import StartError, Supervised, in_words
from ndagent.core.tls import TlsContexts, TlsFilesError
from ndagent.core.waiting import first
from ndagent.core.yaml_file import ConfigError
from ndagent.wire.codec import Decoder, codec_name, make_decoder
from ndagent.wire.record import Batch
from ndcollector import __version__
from ndcollector.admin import AdminServer
from ndcollector.audit import Audit
from ndcollector.command_post import CommandPost
from ndcollector.config import CollectorConfig, load
from ndcollector.dead_letters.desk import Desk
from ndcollector.inputs import INPUTS, InputContext
from ndcollector.ledger.ledger import Ledger
from ndcollector.ledger_metrics import LedgerMetrics
from ndcollector.outputs import OUTPUTS, OutputContext
from ndcollector.pki.crl_keeper import keep_signed
from ndcollector.private_tmp import emptied_at_stop
from ndcollector.routing.routes import Routes, originals
from ndcollector.sources.alerts import STREAM as ALERTS
from ndcollector.sources.desk import SourcesDesk
from ndcollector.sources.sources import Sources
from ndcollector.status import Status
from ndcollector.tap.hub import Taps
from ndcollector.tap.look import Point, Wish

log = logging.getLogger(__name__)

FIRST_STREAM = "security_events"
"""Exists from the first start, as `alerts` does, into which we write ourselves (ndcollector/sources); other streams get
a spool when an input feeds them, or a directory for them is found."""

_REST_OF_STOP_SECONDS = 60.0
"""Of a stop, what is not `shutdown_timeout`: inputs hand over what they read, cursors and the ledger are saved."""

_FIXED = ("node_name", "state_dir", "spool", "ledger", "admin")
"""Sections that only a restart changes: open files, bound doors and identities hang on them."""


class Collector:
    """One per process. `run` serves until `stop` is called; `reload` may be asked for at any time."""

    def __init__(self, config: CollectorConfig, *, path: Path, notifier: Notifier) -> None:
        self._config = config
        self._path = path
        self._notifier = notifier
        self._metrics = Metrics()
        self._metrics.build.info({"version": __version__, "codec": codec_name()})
        for what, result in product(("config", "tls"), ("done", "refused")):
            self._metrics.reloads.labels(what, result)  # there from the start: a rate needs the zero
        self._spools: dict[str, Spool] = {}
        self._deliveries: dict[str, Delivery] = {}
        self.sources = Sources(
            lambda: self._config.sources,
            node_name=config.node_name,
            metrics=self._metrics,
            listening=self._listening,
            clock=time.time,
        )
        self._ledger = Ledger(
            config.state_dir, config=config.ledger, metrics=self._metrics, clock=time.time, sources=self.sources
        )
        self._intake: Intake | None = None
        self._bookkeeper: Bookkeeper | None = None
        self._dispatching = Dispatching(self._make_dispatcher)
        self._background: list[Supervised] = []
        self._watchdog: Supervised | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reloads = ReloadRequests()
        self._taps = self._make_taps()
        self._routes = Routes()
        outputs = OutputContext(config.state_dir, self._metrics, clock=time.time, node_name=config.node_name)
        self._builder = DeliveryBuilder(
            self._routes.formatting(builder(OUTPUTS, outputs)),
            state_dir=config.state_dir,
            metrics=self._metrics,
            over=self._taps.over,
            letters_command="ndcollector dlq",
            route=self._routes.route,
        )
        self._post = CommandPost(lambda: self._config, metrics=self._metrics)
        self.dead_letters = Desk(
            config.state_dir / DIRECTORY,
            deliveries=lambda: self._deliveries,
            decoder=lambda: make_decoder(self._config.decode_settings()),
            is_coming=lambda *place: self._dispatching.now.is_coming(*place),  # noqa: PLW0108 - a reload makes another
            metrics=self._metrics,
            audit=Audit(config.state_dir, by="daemon", clock=time.time),
        )
        self.sources_desk = SourcesDesk(
            self.sources,
            lost=self._ledger.lost,
            commit=self._ledger.commit,
            audit=Audit(config.state_dir, by="daemon", clock=time.time),
        )
        self._admin = AdminServer(daemon=self, registry=self._metrics.registry)

    # ---- what operators and signals ask for

    def stop(self) -> None:
        """Stop gracefully; asked a second time, stop without waiting for outputs."""
        (self._hurry if self._stopping.is_set() else self._stopping).set()

    def reload(self) -> None:
        """Read configuration and certificates again, soon."""
        self._reloads.ask()

    async def reload_now(self) -> str | None:
        """Read configuration and certificates again; returns once that is done, or why it was refused."""
        return await self._reloads.outcome()

    def not_ready_because(self) -> list[str]:
        """Reasons why data would not be taken now."""
        if self._stopping.is_set():
            return ["stopping"]  # which is why inputs do not run
        reasons = ["inputs have not started"] if self._intake is None else list(self._intake.not_running())
        return reasons + [f"spool {stream} has no room" for stream, spool in self._spools.items() if spool.is_full]

    def _listening(self) -> set[str]:
        """Inputs that take data now; none while a spool has no room."""
        if self._intake is None or any(spool.is_full for spool in self._spools.values()):
            return set()
        return self._config.inputs.keys() - self._intake.failures().keys()

    def ledger(self) -> dict[str, object]:
        """The conservation ledger as plain data."""
        return self._bookkeeper.snapshot().plain() if self._bookkeeper else {}

    async def origins(self, *, origin: str | None, output: str | None, stream: str | None) -> dict[str, object]:
        """The ledger per origin as plain data: rows that match, proofs over everything."""
        return await self._ledger.report(origin=origin, output=output, stream=stream)

    async def replay(self, *, output: str, stream: str | None, start: int, until: int | None) -> dict[str, object]:
        """Send an output its events from sequence `start` on again; raises ValueError for one that is not there."""
        return {"replayed": await self._dispatching.now.replay(output=output, stream=stream, start=start, until=until)}

    def status(self) -> dict[str, object]:
        """What `ndcollector top` shows."""
        assert self._bookkeeper is not None  # noqa: S101 - the doors open after the spools
        now = Status(self._config, self._metrics, self._spools, self._bookkeeper.snapshot(), self._dispatching.now)
        return {
            **now.plain(),
            "taps": len(self._taps),
            "dead_letters": self.dead_letters.plain(),
            "not_ready_because": self.not_ready_because(),
        }

    def tap(self, wish: Wish) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A live look at events; raises LookupError for a name that is not there, TooManyTaps."""
        there: dict[Point, Iterable[str]] = {
            "input": self._config.inputs, "output": self._config.outputs, "stream": self._spools,
        }  # fmt: skip
        names = sorted(there[wish.point])
        if wish.name is not None and wish.name not in names:
            raise LookupError(f"no {wish.point} {wish.name!r}; there are: {', '.join(names) or 'none'}")
        return self._taps.open(wish)

    # ---- life

    async def run(self) -> None:
        """Serve until stopped; raises StartError if it never began."""
        try:
            async with self._notifier.starting():
                for step in (
                    self._open_spools, self._open_outputs, self._open_doors, self._post.open, self._open_inputs,
                    self._watch,
                ):  # fmt: skip
                    if self._stopping.is_set():  # between steps only: one cut in two would leave its half behind
                        return
                    await step()
            self._notifier.ready(self._status())
            log.info("ready: %s", self._status(), extra=messages.READY)
            await self._serve()
        finally:
            await self._close()

    async def _open_spools(self) -> None:
        emptied = emptied_at_stop(self._config.state_dir)
        if emptied is not None:  # what is acknowledged must outlive a stop
            raise StartError(
                f"state_dir {self._config.state_dir}: {emptied} is private to this service and emptied when it stops "
                "(PrivateTmp=yes); choose a directory that stays, such as /var/lib/ndcollector"
            )
        name_plugs(inputs=self._config.inputs, outputs=self._config.outputs)
        self._tls = self._make_tls()
        streams = {FIRST_STREAM, ALERTS} | _fed(self._config) | streams_on_disk(self._config.state_dir)
        for stream in sorted(streams):
            self._spools[stream] = await self._open_spool(stream)
        await self._ledger.open(self._spools)
        self._bookkeeper = Bookkeeper(self._spools, self._metrics)
        self._metrics.registry.register(LedgerMetrics(self._bookkeeper))

    async def _open_outputs(self) -> None:
        self.dead_letters.open()
        self._deliveries = await self._builder.build(self._config.outputs, {})
        self._start_dispatcher()

    async def _open_inputs(self) -> None:
        context = InputContext(
            self._config.state_dir,
            self._metrics,
            self._tls,
            time.time,
            self._post.fleet,
            self._post.enrolment,
            self._config.node_name,
        )
        self._intake = Intake(self._accept, build=builder(INPUTS, context))
        await self._intake.start(self._config.inputs)
        HELD.tell_unused()

    async def _watch(self) -> None:
        self._background = [
            Supervised("watching certificates", self._tls.watch),
            Supervised("watching the configuration", self._watch_config),
            Supervised("signing the revocation list", lambda: keep_signed(self._pki_directory)),
            Supervised("ledger", self._ledger.run),
            Supervised("sources", lambda: self.sources.run(self._accept)),
            *self._post.parts(),
        ]
        self._watchdog = Supervised("watchdog", self._feed_watchdog)

    async def _serve(self) -> None:
        while not self._stopping.is_set():
            await first(self._stopping.wait(), self._reloads.wanted.wait())
            if self._reloads.wanted.is_set() and not self._stopping.is_set():
                await self._reloads.serve(self._reload_now)

    async def _close(self) -> None:
        self._stopping.set()
        self._notifier.stopping(at_most_seconds=self._config.shutdown_timeout + _REST_OF_STOP_SECONDS)
        self._reloads.give_up("the collector is stopping")
        for step in (
            self._taps.aclose, self._stop_background, self._stop_inputs, self._stop_outputs, self._close_spools,
            self._ledger.aclose, self._post.aclose, self._stop_watchdog,
        ):  # fmt: skip
            try:
                await step()
            except Exception:
                log.exception("a part failed to stop, the others stop all the same; please report this traceback")
        if self._bookkeeper is not None:
            log.info("stopped: %s", self._bookkeeper.snapshot().text, extra=messages.STOPPED)
        await self._admin.aclose()

    async def _stop_background(self) -> None:
        await asyncio.gather(*(one.stop(STOP_SECONDS) for one in self._background))

    async def _stop_watchdog(self) -> None:
        """Last: a drain takes longer than its interval."""
        if self._watchdog is not None:
            await self._watchdog.stop()

    async def _stop_inputs(self) -> None:
        if self._intake is not None:
            await self._intake.stop()

    async def _stop_outputs(self) -> None:
        await self.dead_letters.suspend()
        await self._dispatching.stop(self._config.shutdown_timeout, hurry=self._hurry)
        await close(self._deliveries.values())
        await self.dead_letters.aclose()  # only now: until here an output may have added letters
        self._routes.close()

    async def _close_spools(self) -> None:
        await asyncio.gather(*(spool.aclose() for spool in self._spools.values()))

    # ---- parts

    def _make_tls(self) -> TlsContexts:
        try:
            return TlsContexts(self._config.tls, metrics=self._metrics, clock=time.time)
        except TlsFilesError as error:
            raise StartError(f"tls: {error}") from error

    def _make_taps(self) -> Taps:
        def decoder(*, keep_original: bool) -> Decoder:
            settings = self._config.decode_settings()
            return make_decoder(replace(settings, keep_original="always") if keep_original else settings)

        return Taps(
            self._spools,
            decoder,
            most=self._config.admin.max_taps,
            buffer_bytes=self._config.admin.tap_buffer_bytes,
            clock=time.perf_counter,
            sleep=asyncio.sleep,
            random=random.random,
        )

    async def _open_spool(self, stream: str) -> Spool:
        options = {
            "config": self._config.spool,
            "metrics": self._metrics,
            "mourn": partial(self._ledger.mourn, stream),
            "held_from": 0,  # until the ledger knows what it needs
        }
        return await open_spool(self._config.state_dir, stream, options)

    def _start_dispatcher(self) -> None:
        for stream, spool in self._spools.items():
            spool.retire_unused([name for name, one in self._deliveries.items() if one.config.wants(stream)])
        self._dispatching.start()
        self.dead_letters.begin()

    def _make_dispatcher(self) -> Dispatcher:
        settings, outputs = self._config.decode_settings(), self._deliveries
        decoding = Decoding(
            make_decoder(settings),
            metrics=self._metrics,
            ring_bytes=self._config.decode.ring_bytes,
            watch=self.sources.decoded,
        )
        return Dispatcher(
            spools=self._spools,
            outputs=[*outputs.values()],
            decoding=decoding,
            own_decodings=originals({name: one.config for name, one in outputs.items()}, settings, decoding),
            journal=self._ledger,
        )

    async def _open_doors(self) -> None:
        admin = self._config.admin
        try:
            await self._admin.listen(admin.listen)
        except OSError as error:
            raise StartError(
                f"admin.listen {admin.listen}: {in_words(error)}; choose another or stop what has it (ss -ltnp)"
            ) from error
        try:
            await self._admin.listen_socket(admin.socket)
        except OSError as error:
            log.warning("admin.socket %s: %s; commands that need it will not work", admin.socket, in_words(error))

    async def _accept(self, batch: Batch) -> None:
        await self._spools[batch.stream].append(batch)
        await self._post.settle(batch)

    def _status(self) -> str:
        inputs = ", ".join(self._config.inputs) or "no inputs"
        return f"{inputs} → {', '.join(self._config.outputs)}"

    # ---- reload

    async def _reload_now(self) -> str | None:
        """Why it was refused; None where it was done."""
        refusal: str | None = None
        self._notifier.reloading()
        try:
            await self._change_to(load(self._path))
        except (ConfigError, StartError) as error:
            self._metrics.reloads.labels("config", "refused").inc()
            refusal = "; ".join(str(error).splitlines())
            log.error("reload refused, the old configuration stays: %s", refusal, extra=messages.RELOAD_REFUSED)
        except Exception:
            refusal = "it failed for a reason nobody foresaw; the log has the traceback"
            self._metrics.reloads.labels("config", "refused").inc()
            log.exception(
                "reload failed; restart when you can, and please report this traceback",
                extra=messages.RELOAD_REFUSED,
            )
        else:
            self._metrics.reloads.labels("config", "done").inc()
            log.info("reloaded: %s", self._status(), extra=messages.RELOADED)
        self._notifier.ready(self._status())
        return refusal

    async def _change_to(self, config: CollectorConfig) -> None:
        assert self._intake is not None  # noqa: S101 - reloads are served once all is open
        old = self._config
        fixed = [section for section in _FIXED if getattr(config, section) != getattr(old, section)]
        if fixed:
            raise StartError(f"{', '.join(fixed)}: changed, which needs a restart: systemctl restart ndcollector")
        unopened = _fed(config) - self._spools.keys()
        if unopened:
            names = ", ".join(sorted(unopened))
            raise StartError(f"inputs: stream {names} is new, which needs a restart: systemctl restart ndcollector")
        try:
            take_up_tls = self._tls.reload if config.tls == old.tls else self._tls.prepare(config.tls)
        except TlsFilesError as error:
            raise StartError(f"tls: {error}") from error
        deliveries = await self._builder.build(config.outputs, self._deliveries)
        try:
            await self._intake.change(config.inputs)
        except BaseException:
            await close(without(deliveries, self._deliveries))
            raise
        self._config = config
        HELD.tell_unused()
        take_up_tls()
        logging.getLogger().setLevel(config.log.level.upper())
        name_plugs(inputs=config.inputs, outputs=config.outputs)
        if config.outputs != old.outputs or config.decode != old.decode:
            await self._change_outputs(deliveries)

    async def _change_outputs(self, deliveries: dict[str, Delivery]) -> None:
        await self.dead_letters.suspend()
        await self._dispatching.stop(0)
        dropped = without(self._deliveries, deliveries)
        self._deliveries = deliveries
        await close(dropped)
        self._start_dispatcher()

    # ---- watching

    async def _watch_config(self) -> None:
        """Reload when the configuration was saved with something new, or something wrong, in it."""
        async for _ in saves(self._path):
            with suppress(ConfigError):
                if load(self._path) == self._config:
                    continue
            self.reload()

    def _pki_directory(self) -> Path:
        return self._config.tls.ca_file.parent

    async def _feed_watchdog(self) -> None:
        progress = Progress(clock=asyncio.get_running_loop().time)

        def is_alive() -> bool:
            intake = None if self._post.fleet.is_blocked else self._intake  # inputs wait then, which no restart cures
            return progress.is_made(self._spools, intake) and self._dispatching.is_well

        await self._notifier.feed_watchdog(is_alive)


def _fed(config: CollectorConfig) -> set[str]:
    """Streams that inputs say they feed: one that is configured, or the several that agents send."""
    inputs = config.inputs.values()
    several = {stream for settings in inputs for stream in getattr(settings, "streams", ())}
    return several | {getattr(settings, "stream", FIRST_STREAM) for settings in inputs}
