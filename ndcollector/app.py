"""The running collector: builds every part from one configuration, keeps them running, and takes them down in order.

    inputs ──accept──► spools ──► dispatcher ──► outputs          admin doors, watchers, watchdog beside them

Promises:
  * READY=1 is said when every input takes data, not before;
  * a part that fails for a reason nobody foresaw is started again after a pause with jitter; the others go on;
  * a reload works whole or changes nothing: everything that can refuse (the file, certificates, addresses, plugs) is
    tried before anything is given up, and an input that gave up its address for a new one that fails gets it back;
  * a stop takes no more data, makes durable what was read, delivers for at most `shutdown_timeout`, saves the cursors,
    and says the ledger as its last line.
Refuses: knowing any plug by name (the registries in inputs/ and outputs/ do), and exiting (__main__ does).
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from watchfiles import awatch

from ndagent.core.backoff import full_jitter
from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import Input
from ndagent.core.metrics import Metrics
from ndagent.core.settings import OutputConfig, Settings
from ndagent.core.spool import Spool, SpoolLocked, UnknownFormat
from ndagent.core.tls import TlsContexts, TlsFilesError
from ndagent.core.waiting import first
from ndagent.core.yaml_file import ConfigError
from ndagent.wire.codec import make_decoder
from ndagent.wire.record import Batch
from ndcollector.admin import AdminServer
from ndcollector.config import CollectorConfig, load
from ndcollector.decoding import Decoding
from ndcollector.dispatcher import Dispatcher
from ndcollector.inputs import INPUTS, InputContext
from ndcollector.ledger import Bookkeeper
from ndcollector.notify import Notifier
from ndcollector.outputs import OUTPUTS, OutputContext
from ndcollector.pki.revocation import refresh_crl_if_due
from ndcollector.pki.store import PkiError

log = logging.getLogger(__name__)

FIRST_STREAM = "security_events"
"""Exists from the first start; other streams get a spool when a directory for them is found."""

_STREAM = re.compile(r"[a-z0-9_]+")
"""A file system of its own for the spools brings a lost+found along."""

_FIXED = ("node_name", "state_dir", "spool", "admin", "log")
"""Sections that only a restart changes: open files, bound doors and identities hang on them."""

_CRL_LOOK_SECONDS = 3600.0
_STOP_INPUT_SECONDS = 10.0


class StartError(Exception):
    """The collector cannot start; the text names the thing, the place and the remedy."""


@dataclass(slots=True)
class _RunningInput:
    settings: Settings
    plug: Input
    task: "asyncio.Task[None]"


class Collector:
    """One per process. `run` serves until `stop` is called; `reload` may be asked for at any time."""

    def __init__(self, config: CollectorConfig, *, path: Path, notifier: Notifier) -> None:
        self._config = config
        self._path = path
        self._notifier = notifier
        self._metrics = Metrics()
        self._spools: dict[str, Spool] = {}
        self._inputs: dict[str, _RunningInput] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._background: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._tls_replaced = asyncio.Event()
        self._admin = AdminServer(daemon=self, registry=self._metrics.registry)

    # ---- what operators and signals ask for

    def stop(self) -> None:
        """Stop gracefully; asked a second time, stop without waiting for outputs."""
        (self._hurry if self._stopping.is_set() else self._stopping).set()

    def reload(self) -> None:
        """Read configuration and certificates again, soon."""
        self._reload_wanted.set()

    def not_ready_because(self) -> list[str]:
        """Reasons why data would not be taken now."""
        reasons = [f"input {name} is not running" for name, running in self._inputs.items() if running.task.done()]
        missing = self._config.inputs.keys() - self._inputs.keys()
        reasons += [f"input {name} has not started" for name in sorted(missing)]
        return [*reasons, "stopping"] if self._stopping.is_set() else reasons

    def ledger(self) -> dict[str, object]:
        """The conservation ledger as plain data."""
        return self._bookkeeper.snapshot().plain()

    async def replay(self, *, output: str, stream: str | None, start: int, until: int | None) -> dict[str, object]:
        """Send an output its events from sequence `start` on again; raises ValueError for one that is not there."""
        return {"replayed": await self._dispatcher.replay(output=output, stream=stream, start=start, until=until)}

    # ---- life

    async def run(self) -> None:
        """Serve until stopped; raises StartError if it never began."""
        try:
            await self._open()
            self._notifier.ready(self._status())
            log.info("ready: %s", self._status())
            await self._serve()
        finally:
            await self._close()

    async def _open(self) -> None:
        self._tls = self._make_tls(self._config)
        for stream in self._streams():
            directory = self._config.state_dir / "spool" / stream
            try:
                self._spools[stream] = await Spool.open(
                    directory, stream=stream, config=self._config.spool, metrics=self._metrics
                )
            except (SpoolLocked, UnknownFormat) as error:
                raise StartError(str(error)) from error
            except OSError as error:
                raise StartError(f"spool {directory}: {error}") from error
        self._bookkeeper = Bookkeeper(self._spools, self._metrics)
        self._deliveries = self._build_deliveries(self._config)
        self._start_dispatcher(self._config)
        await self._open_doors()
        for name, settings in self._config.inputs.items():
            try:
                await self._start_input(name, settings, self._tls)
            except OSError as error:
                raise StartError(f"input {name}: {error}") from error
        for job in (self._watch_certificates, self._watch_config, self._refresh_crl, self._feed_watchdog):
            self._background.append(asyncio.create_task(_supervise(job.__name__.strip("_"), job)))

    async def _serve(self) -> None:
        while not self._stopping.is_set():
            await first(self._stopping.wait(), self._reload_wanted.wait())
            if self._reload_wanted.is_set() and not self._stopping.is_set():
                self._reload_wanted.clear()
                await self._reload_now()

    async def _close(self) -> None:
        self._stopping.set()
        self._notifier.stopping()
        await _cancel(self._background)
        await asyncio.gather(*(self._stop_input(name) for name in list(self._inputs)))
        if self._deliveries:
            drain = self._dispatcher.drain(self._config.shutdown_timeout)
            await first(drain, self._hurry.wait())
            await _cancel([self._dispatching])
            log.info("stopped: %s", self._bookkeeper.snapshot().text)
        await asyncio.gather(*(delivery.aclose() for delivery in self._deliveries.values()))
        for spool in self._spools.values():
            await spool.aclose()
        await self._admin.aclose()

    # ---- parts

    def _make_tls(self, config: CollectorConfig) -> TlsContexts:
        try:
            return TlsContexts(config.tls, metrics=self._metrics, clock=time.time)
        except TlsFilesError as error:
            raise StartError(str(error)) from error

    def _streams(self) -> list[str]:
        root = self._config.state_dir / "spool"
        found = {entry.name for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
        return sorted({name for name in found if _STREAM.fullmatch(name)} | {FIRST_STREAM})

    def _build_deliveries(self, config: CollectorConfig) -> dict[str, Delivery]:
        """One delivery per output; those whose settings did not change are kept, with their open files and breakers."""
        found: dict[str, Delivery] = {}
        for name, settings in config.outputs.items():
            assert isinstance(settings, OutputConfig)  # noqa: S101 - the registry's models all are
            old = self._deliveries.get(name)
            found[name] = old if old is not None and old.config == settings else self._build_delivery(name, settings)
        return found

    def _build_delivery(self, name: str, settings: OutputConfig) -> Delivery:
        loop = asyncio.get_running_loop()
        context = OutputContext(state_dir=self._config.state_dir, metrics=self._metrics, clock=time.time)
        plug = import_module(OUTPUTS[settings.type]).build(name, settings, context)
        chain = wrap(
            plug,
            name=name,
            config=settings,
            metrics=self._metrics,
            clock=loop.time,
            sleep=asyncio.sleep,
            random=random.random,
        )
        letters = DeadLetters(
            self._config.state_dir / "dead_letters",
            output=name,
            max_bytes=settings.dead_letter_max_bytes,
            clock=time.time,
        )
        return Delivery(
            chain,
            name=name,
            config=settings,
            dead_letters=letters,
            clock=loop.time,
            sleep=asyncio.sleep,
            random=random.random,
        )

    def _start_dispatcher(self, config: CollectorConfig) -> None:
        decoder = make_decoder(config.decode_settings())
        decoding = Decoding(decoder, metrics=self._metrics, ring_bytes=config.decode.ring_bytes)
        self._dispatcher = Dispatcher(
            spools=self._spools, outputs=list(self._deliveries.values()), decoding=decoding
        )
        for stream, spool in self._spools.items():
            spool.retire_unused([name for name, one in self._deliveries.items() if one.config.wants(stream)])
        self._dispatching = asyncio.create_task(self._dispatcher.run(), name="dispatcher")

    async def _open_doors(self) -> None:
        admin = self._config.admin
        try:
            await self._admin.listen(admin.listen)
        except OSError as error:
            raise StartError(f"admin.listen {admin.listen}: {error}; choose another or stop what has it") from error
        try:
            admin.socket.parent.mkdir(parents=True, exist_ok=True)
            await self._admin.listen_socket(admin.socket)
        except OSError as error:
            log.warning("admin.socket %s: %s; commands that need it will not work", admin.socket, error)

    async def _accept(self, batch: Batch) -> None:
        await self._spools[batch.stream].append(batch)

    async def _start_input(self, name: str, settings: Settings, tls: TlsContexts) -> None:
        context = InputContext(state_dir=self._config.state_dir, metrics=self._metrics, tls=tls, clock=time.time)
        build = import_module(INPUTS[getattr(settings, "type", name)]).build
        plug: Input = build(name, settings, context)
        await plug.start()
        task = asyncio.create_task(_supervise(f"input {name}", lambda: plug.run(self._accept)))
        self._inputs[name] = _RunningInput(settings, plug, task)

    async def _stop_input(self, name: str) -> None:
        running = self._inputs.pop(name)
        running.task.cancel()
        _, late = await asyncio.wait([running.task], timeout=_STOP_INPUT_SECONDS)
        if late:
            log.error("input %s did not stop in %.0fs; what its peers still sent is lost", name, _STOP_INPUT_SECONDS)

    def _status(self) -> str:
        return f"{len(self._inputs)} inputs, {len(self._deliveries)} outputs"

    # ---- reload

    async def _reload_now(self) -> None:
        self._notifier.reloading()
        try:
            config = load(self._path)
            await self._change_to(config)
        except (ConfigError, StartError, OSError, ValueError) as error:
            self._metrics.reloads.labels("config", "refused").inc()
            log.error("reload refused, the old configuration stays: %s", error)
        else:
            self._metrics.reloads.labels("config", "done").inc()
            log.info("reloaded: %s", self._status())
        self._notifier.ready(self._status())

    async def _change_to(self, config: CollectorConfig) -> None:
        old = self._config
        fixed = [section for section in _FIXED if getattr(config, section) != getattr(old, section)]
        if fixed:
            raise StartError(f"{', '.join(fixed)}: changed, which needs a restart: systemctl restart ndcollector")
        tls = self._tls if config.tls == old.tls else self._make_tls(config)
        deliveries = self._build_deliveries(config)
        await self._change_inputs(config, tls)
        self._config = config
        if tls is not self._tls:
            self._tls = tls
            self._tls_replaced.set()
        self._tls.reload()
        if config.outputs != old.outputs or config.decode != old.decode:
            await self._change_outputs(config, deliveries)

    async def _change_inputs(self, config: CollectorConfig, tls: TlsContexts) -> None:
        """Swap the inputs that changed; if one of the new ones cannot start, the old ones are put back."""
        changed = [
            name for name, settings in config.inputs.items()
            if tls is not self._tls or name not in self._inputs or self._inputs[name].settings != settings
        ]
        gone = [name for name in self._inputs if name not in config.inputs]
        replaced = {name: self._inputs[name].settings for name in [*changed, *gone] if name in self._inputs}
        await asyncio.gather(*(self._stop_input(name) for name in replaced))
        try:
            for name in changed:
                await self._start_input(name, config.inputs[name], tls)
        except OSError as error:
            await asyncio.gather(*(self._stop_input(name) for name in changed if name in self._inputs))
            for name, settings in replaced.items():
                await self._start_input(name, settings, self._tls)
            raise StartError(f"input {name}: {error}") from error

    async def _change_outputs(self, config: CollectorConfig, deliveries: dict[str, Delivery]) -> None:
        await self._dispatcher.drain(0)
        await _cancel([self._dispatching])
        dropped = [old for name, old in self._deliveries.items() if deliveries.get(name) is not old]
        await asyncio.gather(*(delivery.aclose() for delivery in dropped))
        self._deliveries = deliveries
        self._start_dispatcher(config)

    # ---- watching

    async def _watch_certificates(self) -> None:
        while True:
            await first(self._tls.watch(), self._tls_replaced.wait())
            self._tls_replaced.clear()

    async def _watch_config(self) -> None:
        """Reload when the file or its conf.d was saved (the directory is watched: editors replace files)."""
        directory, fragments = self._path.resolve().parent, self._path.resolve().parent / "conf.d"
        watched = [folder for folder in (directory, fragments) if folder.is_dir()]
        async for _changes in awatch(*watched, recursive=False, step=200, debounce=800):
            with suppress(ConfigError):
                if load(self._path) == self._config:
                    continue
            self.reload()

    async def _refresh_crl(self) -> None:
        """Sign the built-in CA's revocation list anew at half its life: one past its end refuses every client."""
        directory = self._config.tls.ca_file.parent
        while True:
            try:
                if await asyncio.to_thread(refresh_crl_if_due, directory, now=datetime.now(UTC)):
                    log.info("revocation list signed anew", extra={"path": str(directory / "ca.crl")})
            except (PkiError, OSError) as error:
                log.error("revocation list not signed anew: %s; it refuses every client once it has expired", error)
            await asyncio.sleep(_CRL_LOOK_SECONDS)

    async def _feed_watchdog(self) -> None:
        await self._notifier.feed_watchdog(lambda: not self._dispatching.done())


async def _supervise(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run until cancelled or done; after an unforeseen failure, again, after a pause with jitter."""
    attempt = 0
    while True:
        try:
            return await run()
        except Exception:
            log.exception("%s failed and is started again; please report this traceback", name)
        await asyncio.sleep(full_jitter(attempt, initial_seconds=0.5, maximum_seconds=30, random=random.random))
        attempt += 1


async def _cancel(tasks: Iterable["asyncio.Task[None]"]) -> None:
    for task in (found := list(tasks)):
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)
