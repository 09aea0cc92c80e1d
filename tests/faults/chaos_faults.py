"""Carries out a plan: one thread for each target does its faults one after another, each begun, waited out and undone.

Promises: whatever happens, each fault that was begun is undone, and when `join` returns every process runs again; what
the account must know (the collector was down, its disk was bad) is noted in the History with its times; what a thread
dies of is in `errors`. `said` has a line for each fault as it really was.
"""

import contextlib
import os
import signal
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from chaos_account import History, Span
from chaos_outlets import Victim
from chaos_plan import AGENT, CABLE, CLOCK, COLLECTOR, CONFIG, FULL, LINK, SEAM, SERVICE, Fault, Kind
from chaos_site import Faulty, Site, SmallDisk
from far_network import FarNetwork
from proxy import FaultProxy

START_SECONDS = 120.0
"""For a process to come up again among all the other faults, tried anew each half second."""
_AN_HOUR = 3600.0
_IN_SYNC_SECONDS = 1.0


class Target(Protocol):
    """Something that faults befall."""

    @abstractmethod
    def begin(self, kind: str) -> None:
        """Let it happen."""

    @abstractmethod
    def end(self, kind: str) -> None:
        """Let it be over."""


class Link(Target):
    """A proxy between two processes."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._begin: Mapping[str, Callable[[], None]] = {
            "late": lambda: proxy.change(latency_seconds=0.1, jitter_seconds=0.1),
            "thin": lambda: proxy.change(bytes_per_second=20_000),
            "stalled": lambda: proxy.change(stalled=True),
            "blackhole": lambda: proxy.change(swallowing=True),
            "truncated": lambda: proxy.truncate(2_000),
            "reset": proxy.reset,
            "half_open": proxy.abandon,
            "refused": proxy.refuse,
        }
        self._heal = proxy.heal

    def begin(self, kind: str) -> None:
        self._begin[kind]()

    def end(self, kind: str) -> None:
        self._heal()


class Cable(Target):
    """The veth pair to the far network."""

    def __init__(self, far: FarNetwork) -> None:
        self._begin: Mapping[str, Callable[[], None]] = {
            "cut": far.cut,
            "lossy": lambda: far.lose(percent=15),
            "narrow": lambda: far.narrow(bytes_per_second=30_000),
        }
        self._heal = far.heal

    def begin(self, kind: str) -> None:
        self._begin[kind]()

    def end(self, kind: str) -> None:
        self._heal()


class Process(Target):
    """Something that can be killed; `going_down` is called just before it is, `back` when it runs again.

    One of ours can be killed in the worst moment: while a sync takes long and what came meanwhile is in memory alone.
    Whoever acknowledges too early is found out by that, and hardly by a kill at a random moment: a sync takes 1 ms.
    """

    def __init__(
        self,
        site: Site,
        victim: Victim,
        *,
        daemon: Faulty | None,
        going_down: Callable[[str], None],
        back: Callable[[str, float], None],
    ) -> None:
        self._site = site
        self._victim = victim
        self._daemon = daemon
        self._going_down = going_down
        self._back = back
        self._since = 0.0

    def begin(self, kind: str) -> None:
        self._since = time.monotonic()
        self._going_down(kind)
        process = self._victim.process()
        if kind == "frozen":
            os.kill(process.pid, signal.SIGSTOP)
        elif kind == "stopped":
            process.stop(timeout_seconds=45)
        else:
            if kind == "killed_in_sync":
                self._slow_down(_IN_SYNC_SECONDS)
                time.sleep(_IN_SYNC_SECONDS * 0.7)
            process.kill()
            self._slow_down(None)

    def end(self, kind: str) -> None:
        if kind == "frozen":
            os.kill(self._victim.process().pid, signal.SIGCONT)
        else:
            self._site.start_patiently(self._victim, limit_seconds=START_SECONDS)
        self._back(kind, self._since)

    def _slow_down(self, sync_seconds: float | None) -> None:
        if self._daemon is not None:
            self._daemon.suffer(sync_seconds=sync_seconds)


class Seam(Target):
    """The disk or the clock below a daemon of ours; see faulty_daemon.py."""

    _FAULTS: Mapping[str, dict[str, Any]] = {
        "no_space": {"no_space": True},
        "sync_errors": {"sync_errors": 0.3},
        "write_errors": {"write_errors": 0.3},
        "slow_sync": {"sync_seconds": 0.3},
        "an_hour_ahead": {"clock_seconds": _AN_HOUR},
        "an_hour_behind": {"clock_seconds": -_AN_HOUR},
    }

    def __init__(self, daemon: Faulty, *, over: Callable[[str, float], None]) -> None:
        self._daemon = daemon
        self._over = over
        self._since = 0.0

    def begin(self, kind: str) -> None:
        self._since = time.monotonic()
        self._daemon.suffer(**self._FAULTS[kind])

    def end(self, kind: str) -> None:
        self._daemon.suffer(**dict.fromkeys(self._FAULTS[kind]))
        self._over(kind, self._since)


class Disk(Target):
    """A file system without room."""

    def __init__(self, disk: SmallDisk, *, over: Callable[[str, float], None]) -> None:
        self._disk = disk
        self._over = over
        self._since = 0.0

    def begin(self, kind: str) -> None:
        self._since = time.monotonic()
        self._disk.fill()

    def end(self, kind: str) -> None:
        self._disk.free()
        self._over(kind, self._since)


class Config(Target):
    """A person who edits the collector's configuration, not always well."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._times = 0

    def begin(self, kind: str) -> None:
        self._times += 1
        if kind == "new_certificate":
            self._site.renew_certificate(self._times)
        elif kind == "broken_config":
            self._site.change(lambda config: config["outputs"][self._first].update(no_such_key=1))
        else:
            self._site.change(self._turn)

    def end(self, kind: str) -> None:
        if kind == "broken_config":
            self._site.change(lambda config: config["outputs"][self._first].pop("no_such_key", None))

    @property
    def _first(self) -> str:
        return self._site.outlets[0].name

    def _turn(self, config: dict[str, Any]) -> None:
        """Every output is built anew, and the log's level with it."""
        for output in config["outputs"].values():
            output["batch_bytes"] = "4MiB" if self._times % 2 else "256KiB"
        config["log"]["level"] = "debug" if self._times % 2 else "info"


class Strikes:
    """The targets of a site, and the threads that carry out a plan against them."""

    def __init__(self, site: Site, history: History, *, before_broker_dies: Callable[[], None]) -> None:
        self._site = site
        self._history = history
        self._before_broker_dies = before_broker_dies
        self.kinds: dict[str, Sequence[Kind]] = {}
        self.errors: list[BaseException] = []
        self.said: list[str] = []
        self._targets: dict[str, Target] = {}
        self._threads: list[threading.Thread] = []
        self._gather()

    def begin(self, faults: Sequence[Fault], started: float) -> None:
        """Start the threads; `started` is the moment that the plan's times count from."""
        for name in sorted({fault.target for fault in faults}):
            mine = [fault for fault in faults if fault.target == name]
            self._threads.append(threading.Thread(target=self._run, args=(mine, started), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Return when all faults are over and undone."""
        for thread in self._threads:
            thread.join(START_SECONDS + 60)

    def _run(self, faults: Sequence[Fault], started: float) -> None:
        try:
            for fault in faults:
                if not self._site.over.wait(max(0.0, started + fault.at - time.monotonic())):
                    self._strike(fault, started)
        except BaseException as error:  # noqa: BLE001 - the driver ends the run and shows it
            self.errors.append(error)
            self._site.over.set()

    def _strike(self, fault: Fault, started: float) -> None:
        target = self._targets[fault.target]
        began = time.monotonic() - started
        try:
            target.begin(fault.kind)
            self._site.over.wait(fault.lasts)
        finally:
            target.end(fault.kind)
        took = time.monotonic() - started - began
        self.said.append(f"{began:7.2f}s {fault.target}: {fault.kind}, over after {took:.2f}s")

    # ---- what there is

    def _gather(self) -> None:
        site = self._site
        for name, link in site.links.items():
            self._add(name, Link(link), LINK)
        if site.far is not None:
            self._add("cable", Cable(site.far), CABLE)
        for name, disk in site.disks.items():
            self._add(name, Disk(disk, over=self._trouble), FULL)
        self._add("collector disk", Seam(site.collector, over=self._trouble), SEAM)
        self._add("collector clock", Seam(site.collector, over=_nothing), CLOCK)
        self._add("configuration", Config(site), CONFIG)
        agent = site.agents["a2"]
        self._add("a2 disk", Seam(agent, over=_nothing), SEAM)
        self._add("a2 clock", Seam(agent, over=_nothing), CLOCK)
        outlets = {name: kinds for outlet in site.outlets for name, kinds in outlet.kinds.items()}
        for outlet in site.outlets:
            for name, link in outlet.links().items():
                self._add(name, Link(link), outlets[name])
        for name, victim in site.victims().items():
            kinds = AGENT if name in site.agents else COLLECTOR if name == "collector" else SERVICE
            self._add(name, self._process(name, victim), outlets.get(name, kinds))

    def _add(self, name: str, target: Target, kinds: Sequence[Kind]) -> None:
        self._targets[name] = target
        self.kinds[name] = kinds

    def _process(self, name: str, victim: Victim) -> Process:
        going_down: Callable[[str], None] = _nothing
        back: Callable[[str, float], None] = _nothing
        if name == "collector":
            back = self._collector_back
        elif name == "mosquitto":
            going_down = self._broker_goes
        daemon = self._site.collector if name == "collector" else self._site.agents.get(name)
        return Process(self._site, victim, daemon=daemon, going_down=going_down, back=back)

    def _collector_back(self, kind: str, since: float) -> None:
        span = Span(since, time.monotonic())
        (self._history.troubles if kind == "frozen" else self._history.downs).append(span)

    def _broker_goes(self, kind: str) -> None:
        if kind == "killed":
            self._before_broker_dies()

    def _trouble(self, _kind: str, since: float) -> None:
        self._history.troubles.append(Span(since, time.monotonic()))


def _nothing(*_given: object) -> None:
    pass


def heal(site: Site) -> None:
    """Undo whatever a thread that died may have left; safe at any time."""
    links = [*site.links.values(), *(link for outlet in site.outlets for link in outlet.links().values())]
    for link in links:
        link.heal()
    for disk in site.disks.values():
        disk.free()
    for victim in site.victims().values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.process().pid, signal.SIGCONT)
