"""The running agent: builds every part from one configuration, keeps them running, and takes them down in order.

    inputs ──checkpoints──► spools ──► dispatcher ──► collector output        identity, status and policy beside them

Promises:
  * inputs are read and spooled from the first second, enrolled or not, collector or not: what happens before the agent
    can speak is told later;
  * a part that fails for a reason nobody foresaw is started again after a pause with jitter; the others go on;
  * a reload works whole or changes nothing; a policy is a reload with other settings, and no reason not to start;
  * a stop takes no more data, delivers for at most `shutdown_timeout`, and saves cursors and positions.
Refuses: knowing any plug by name (the registries do), exiting (__main__ does), making keys (enrolment.py).
"""

import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ndagent import __version__, host, unused_code
from ndagent.config import AgentConfig, https_endpoints, load, proxy_of
from ndagent.core import messages
from ndagent.core.checkpoints import Checkpoints
from ndagent.core.config_watch import saves
from ndagent.core.decoding import Decoding
from ndagent.core.deliveries import DeliveryBuilder, close
from ndagent.core.delivery import Delivery
from ndagent.core.dispatcher import Dispatcher
from ndagent.core.dispatching import Dispatching
from ndagent.core.inherited import HELD
from ndagent.core.intake import Intake
from ndagent.core.ledger import Bookkeeper
from ndagent.core.log import name_plugs
from ndagent.core.metrics import Metrics
from ndagent.core.notify import Notifier
from ndagent.core.plugs import builder
from ndagent.core.progress import Progress
from ndagent.core.spool import Spool, SpoolLocked, UnknownFormat
from ndagent.core.spool.files import OsFiles
from ndagent.core.spool.recovery import lock
from ndagent.core.spool_set import open_spool, streams_on_disk
from ndagent.core.supervision import StartError, Supervised, in_words
from ndagent.core.waiting import first
from ndagent.core.yaml_file import ConfigError
from ndagent.identity import IdentityStore
from ndagent.inputs import INPUTS, InputContext
from ndagent.membership import Membership
from ndagent.outputs.collector import NAME, Collector
from ndagent.policy_link import PolicyLink
from ndagent.reporting import Reloads, Reporter
from ndagent.shed import ShedBook
from ndagent.uplink import Uplink
from ndagent.wire.own_lines import OwnDecoder
from ndagent.wire.record import Batch

log = logging.getLogger(__name__)

FIRST_STREAM = "security_events"
_STREAMS = frozenset({"security_events", "alerts", "metrics"})
"""What the collector takes from agents (wire/routes.py)."""
_LOOK_SECONDS = 2.0
_SEND_SECONDS = 86400.0
"""For a batch that waits until its rate allows it; each try of a way has a limit of its own, `delivery.timeout`."""
_REST_OF_STOP_SECONDS = 30.0
"""Of a stop, what is not `shutdown_timeout`: inputs hand over what they read, cursors and positions are saved."""
_FIXED = ("state_dir", "spool", "host_name")
"""Sections that only a restart changes: open files and identities hang on them."""


class Agent:
    """One per process. `run` serves until `stop` is called; `reload` may be asked for at any time."""

    def __init__(
        self, config: AgentConfig, *, path: Path, notifier: Notifier, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._config = config
        self._path = path
        self._notifier = notifier
        self._metrics = Metrics(exported=False)
        self._run_id = os.urandom(8).hex()
        self._membership = Membership(
            IdentityStore(config.state_dir / "identity"),
            config_path=path,
            environ=environ,
            clock=time.time,
            monotonic=time.monotonic,
            random=random.random,
            changed=self._identity_changed,
            proxy=lambda: proxy_of(self._config),
            endpoints=lambda: https_endpoints(self._config),
        )
        self._shed = ShedBook(config.state_dir / "shed.json")
        self._spools: dict[str, Spool] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._lock_fd: int | None = None
        self._checkpoints: Checkpoints | None = None
        self._collector: Collector | None = None
        self._intake: Intake | None = None
        self._dispatching = Dispatching(self._make_dispatcher)
        self._background: list[Supervised] = []
        self._watchdog: Supervised | None = None
        self._reloads = Reloads()
        self._stopping = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._is_paused = False
        self._own = config  # ndagent.yaml without the policy that lies over it in _config
        self._changing = asyncio.Lock()
        self._policy = PolicyLink(
            config.state_dir,
            load=lambda settings: load(path, policy=settings),
            apply=self._obey,
            report=self._tell,
        )

    def stop(self) -> None:
        """Stop gracefully."""
        self._stopping.set()

    def reload(self) -> None:
        """Read the configuration again, soon."""
        self._reloads.asked += 1
        self._reload_wanted.set()

    async def pause(self) -> None:
        """Stop reading until `resume`; what is spooled is sent on, connections stay. What was read is durable."""
        async with self._changing:
            self._is_paused = True
            await self._change_inputs(self._config)
        log.info("paused: inputs read nothing until they are told to continue")

    async def resume(self) -> None:
        """Read on where inputs stopped; raises StartError if one cannot, and then all stay paused."""
        async with self._changing:
            self._is_paused = False
            try:
                await self._change_inputs(self._config)
            except StartError:
                self._is_paused = True
                raise
        log.info("continued: %s", self._status())

    # ---- life

    async def run(self) -> None:
        """Serve until stopped; raises StartError if it never began."""
        try:
            async with self._notifier.starting():
                for step in (
                    self._take_state_dir, self._open_policy, self._open_spools, self._open_output, self._open_inputs,
                    self._watch,
                ):  # fmt: skip
                    if self._stopping.is_set():
                        return
                    await step()
            self._notifier.ready(self._status())
            log.info("ready: %s", self._status(), extra=messages.READY)
            await self._serve()
        finally:
            await self._close()

    async def _take_state_dir(self) -> None:
        """Before anything is read: recovering positions and policies writes, and may be another process's to do."""
        state_dir = self._config.state_dir
        try:
            await asyncio.to_thread(_make_state_dir, state_dir)
            self._lock_fd = await asyncio.to_thread(lock, OsFiles(), state_dir)
        except SpoolLocked as error:
            raise StartError(f"state_dir {error}") from error
        except OSError as error:
            raise StartError(f"state_dir {state_dir}: {in_words(error)}; may this user write there?") from error

    async def _open_policy(self) -> None:
        """Before the spools: a policy may say how large they are."""
        await asyncio.to_thread(self._membership.look)
        try:
            has_policy = self._policy.look(self._membership.identity)
        except UnknownFormat as error:
            raise StartError(f"state_dir {error}") from error
        if has_policy:
            self._config = load(self._path, policy=self._policy.settings)
            logging.getLogger().setLevel(self._config.log.level.upper())

    async def _open_spools(self) -> None:
        name_plugs(inputs=self._config.inputs, outputs=[*self._config.outputs, NAME])
        state_dir = self._config.state_dir
        try:
            checkpoints = await Checkpoints.recover(state_dir)
        except UnknownFormat as error:
            raise StartError(f"state_dir {error}") from error
        except OSError as error:
            raise StartError(f"state_dir {state_dir}: {in_words(error)}; may this user write there?") from error
        for stream in self._streams():
            self._spools[stream] = await self._open_spool(stream)
        await checkpoints.attach(self._spools)
        self._checkpoints = checkpoints
        self._bookkeeper = Bookkeeper(self._spools, self._metrics)

    async def _open_output(self) -> None:
        self._collector, self._deliveries = await self._build_output(self._config)
        self._start_dispatcher()

    async def _open_inputs(self) -> None:
        assert self._checkpoints is not None  # noqa: S101 - _open_spools was before
        context = InputContext(
            self._config.state_dir,
            self._metrics,
            time.time,
            self._checkpoints,
            host.host_facts(self._config.host_name),
            guard=self._policy.why_not_read,
        )
        self._intake = Intake(self._checkpoints.accept(self._accept), build=builder(INPUTS, context))
        # What a policy asked for started once; that it cannot today must not keep a policy that mends it from coming.
        await self._intake.start(self._config.inputs, patient=self._policy.settings.get("inputs", {}))
        HELD.tell_unused()

    async def _watch(self) -> None:
        assert self._checkpoints is not None  # noqa: S101 - as above
        self._reporter = self._make_reporter()
        self._background = [
            Supervised("saving positions", self._checkpoints.run),
            Supervised("identity", self._membership.run),
            Supervised("policy", self._policy.run),
            Supervised("reporting", lambda: self._reporter.run(lambda: self._config.status_every)),
            Supervised("status file", self._reporter.run_file),
            Supervised("watching the configuration", self._watch_config),
            Supervised("letting go of unused code", unused_code.run),
        ]
        self._watchdog = Supervised("watchdog", self._feed_watchdog)

    async def _serve(self) -> None:
        while not self._stopping.is_set():
            await first(self._stopping.wait(), self._reload_wanted.wait())
            if self._reload_wanted.is_set() and not self._stopping.is_set():
                self._reload_wanted.clear()
                await self._reload_now()

    async def _close(self) -> None:
        self._stopping.set()
        self._notifier.stopping(at_most_seconds=self._config.shutdown_timeout + _REST_OF_STOP_SECONDS)
        for step in (
            self._stop_inputs, self._stop_output, self._stop_background, self._close_spools, self._stop_watchdog,
        ):  # fmt: skip
            try:
                await step()
            except Exception:
                log.exception("a part failed to stop, the others stop all the same; please report this traceback")
        if self._checkpoints is not None:
            log.info("stopped: %s", self._bookkeeper.snapshot().text, extra=messages.STOPPED)

    async def _stop_inputs(self) -> None:
        if self._intake is not None:
            await self._intake.stop()

    async def _stop_output(self) -> None:
        await self._dispatching.stop(self._config.shutdown_timeout)
        await close(self._deliveries.values())

    async def _stop_background(self) -> None:
        await asyncio.gather(*(one.stop() for one in self._background))
        self._policy.stopped()
        if self._checkpoints is not None:
            await self._checkpoints.aclose()

    async def _stop_watchdog(self) -> None:
        """Last: a drain takes longer than its interval."""
        if self._watchdog is not None:
            await self._watchdog.stop()

    async def _close_spools(self) -> None:
        await asyncio.gather(*(spool.aclose() for spool in self._spools.values()))
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # ---- parts

    def _streams(self) -> list[str]:
        """Those that inputs feed, and those that hold something from earlier."""
        found = {FIRST_STREAM} | _fed(self._config) | (streams_on_disk(self._config.state_dir) & _STREAMS)
        if "host_metrics" in self._config.policy_allow.inputs:
            found.add("metrics")  # a policy may ask for them while the agent runs
        return sorted(found)

    async def _open_spool(self, stream: str) -> Spool:
        options = {"config": self._config.spool, "metrics": self._metrics, "mourn": self._shed.mourn}
        return await open_spool(self._config.state_dir, stream, options)

    async def _build_output(self, config: AgentConfig) -> tuple[Collector, dict[str, Delivery]]:
        """The collector as an output, not connected yet, and the delivery around it; raises StartError."""
        uplink = Uplink(config, self._membership, run_id=self._run_id, offer=self._policy.offer)
        collector = uplink.collector()
        building = DeliveryBuilder(lambda _name, _config: collector, state_dir=config.state_dir, metrics=self._metrics)
        patient = config.delivery.model_copy(update={"timeout": _SEND_SECONDS})  # see outputs/collector.py
        return collector, await building.build({NAME: patient}, {})

    def _start_dispatcher(self) -> None:
        for spool in self._spools.values():
            spool.retire_unused([NAME])
        self._dispatching.start()

    def _make_dispatcher(self) -> Dispatcher:
        settings = self._config.decode.settings(self._config.host_name, agent_version=__version__)
        decoding = Decoding(OwnDecoder(settings), metrics=self._metrics, ring_bytes=1 << 20)
        return Dispatcher(spools=self._spools, outputs=list(self._deliveries.values()), decoding=decoding)

    def _make_reporter(self) -> Reporter:
        return Reporter(
            run_id=self._run_id,
            spools=self._spools,
            bookkeeper=self._bookkeeper,
            membership=self._membership,
            collector=self._current_collector,
            inputs=lambda: self._config.inputs,
            failing=self._failures,
            troubles=lambda: self._intake.troubles() if self._intake else {},
            policy=self._policy.status,
            shed=self._shed.totals,
            oldest=self._oldest,
            reloads=self._reloads,
            max_bytes=self._config.spool.max_bytes,
            state_dir=self._config.state_dir,
        )

    async def _tell(self) -> bool:
        return await self._reporter.tell()

    def _oldest(self, stream: str) -> int:
        lag = self._dispatching.now.lags().get((NAME, stream))
        return lag.oldest_received_at_ns or 0 if lag is not None else 0

    def _current_collector(self) -> Collector:
        assert self._collector is not None  # noqa: S101 - built before anything reports
        return self._collector

    async def _accept(self, batch: Batch) -> None:
        await self._spools[batch.stream].append(batch)

    async def _identity_changed(self) -> None:
        if self._policy.look(self._membership.identity):
            self.reload()
        await self._current_collector().renew()

    async def _obey(self, config: AgentConfig) -> None:
        """Run with a policy's configuration; raises StartError or what a part raised, and then nothing changed."""
        async with self._changing:
            await self._change_to(config)
        log.info("policy in force: %s", self._status())

    def _status(self) -> str:
        inputs = ", ".join(self._config.inputs) or "no inputs"
        return f"{inputs} → {', '.join(self._config.outputs)}"

    # ---- reload

    async def _reload_now(self) -> None:
        self._notifier.reloading()
        asked, refusal = self._reloads.asked, ""
        try:
            async with self._changing:
                own = load(self._path)
                self._policy.reconsider()
                await self._change_to(load(self._path, policy=self._policy.settings))
                self._policy.taken_up()
                self._own = own
        except (ConfigError, StartError) as error:
            refusal = "; ".join(str(error).splitlines())
            log.error("reload refused, the old configuration stays: %s", refusal, extra=messages.RELOAD_REFUSED)
        except Exception:
            refusal = "it failed for a reason nobody foresaw; the log has the traceback"
            log.exception(
                "reload failed; restart when you can, and please report this traceback",
                extra=messages.RELOAD_REFUSED,
            )
        else:
            log.info("reloaded: %s", self._status(), extra=messages.RELOADED)
        self._reloads.answered, self._reloads.refusal = asked, refusal
        try:
            await self._reporter.write_file()  # whoever asked may be waiting for it
        except Exception:
            log.exception("the status file was not written after a reload; please report this traceback")
        self._notifier.ready(self._status())

    async def _change_to(self, config: AgentConfig) -> None:
        old = self._config
        if load(self._path).spool == self._own.spool:  # a policy's words on spools count from the next start on
            config = config.model_copy(update={"spool": old.spool})
        fixed = [section for section in _FIXED if getattr(config, section) != getattr(old, section)]
        fixed += [f"stream {stream}" for stream in _fed(config) - self._spools.keys()]
        if fixed:
            raise StartError(f"{', '.join(fixed)}: changed, which needs a restart of the agent")
        is_other = (config.outputs, config.delivery, config.decode) != (old.outputs, old.delivery, old.decode)
        output = await self._build_output(config) if is_other else None
        try:
            await self._change_inputs(config)
        except BaseException:
            await close(output[1].values() if output is not None else ())
            raise
        self._config = config
        HELD.tell_unused()
        logging.getLogger().setLevel(config.log.level.upper())
        name_plugs(inputs=config.inputs, outputs=[*config.outputs, NAME])
        if output is not None:
            await self._change_output(*output)

    async def _change_inputs(self, config: AgentConfig) -> None:
        assert self._intake is not None  # noqa: S101 - nobody asks before all is open
        await self._intake.change({} if self._is_paused else config.inputs)

    def _failures(self) -> dict[str, str]:
        if self._is_paused:
            return dict.fromkeys(self._config.inputs, "is paused by the service manager")
        return self._intake.failures() if self._intake else {}

    async def _change_output(self, collector: Collector, deliveries: dict[str, Delivery]) -> None:
        await self._dispatching.stop(0)
        await close(self._deliveries.values())
        self._collector, self._deliveries = collector, deliveries
        self._start_dispatcher()

    # ---- watching

    async def _watch_config(self) -> None:
        async for _ in saves(self._path, look_every_seconds=_LOOK_SECONDS):
            try:
                if load(self._path) == self._own:
                    continue
            except ConfigError:
                pass  # the reload says what is wrong
            self.reload()

    async def _feed_watchdog(self) -> None:
        progress = Progress(clock=asyncio.get_running_loop().time)
        await self._notifier.feed_watchdog(
            lambda: progress.is_made(self._spools, self._intake) and self._dispatching.is_well
        )


def _make_state_dir(state_dir: Path) -> None:
    if not state_dir.is_dir():
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        if sys.platform == "win32":  # modes mean nothing there
            from ndagent.windows_security import make_private

            make_private(state_dir)


def _fed(config: AgentConfig) -> set[str]:
    """Streams that inputs say they feed."""
    return {getattr(settings, "stream", FIRST_STREAM) for settings in config.inputs.values()}
