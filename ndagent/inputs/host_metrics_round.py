"""One round of host metrics: what psutil says now, against what it said in the round before, as ECS documents.

Promises: one document for each metricset and thing it measures (each disk, interface, file system, top process), named
as Elastic's Metricbeat names them (module `system`), so that its dashboards and rules read them; counters as they are,
and rates over the time that really passed (`interval.ms`). A thing that came in between has no rate yet; a counter that
went backwards (the device is a new one) has none either. What we may not see is left out, without a word.
Refuses: threads, schedules, JSON. `source` is the module psutil: this file does not import it.

pct is a share of 1 and of one core, as top shows it (1.3 = 130 %); norm.pct is the same of all cores.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

MAX_THINGS = 256
"""Disks, interfaces or file systems told of in one round; a host with ten thousand veths must not fill the spool."""

Document = dict[str, Any]
_MODES = ("user", "system", "nice", "idle", "iowait", "irq", "softirq", "steal")


@dataclass(frozen=True)
class Selection:
    """What to leave out (shell patterns), and how many processes to name."""

    exclude_disks: Sequence[str] = ()
    exclude_interfaces: Sequence[str] = ()
    exclude_filesystems: Sequence[str] = ()
    top: int = 10
    command_line: bool = False


class _Used(NamedTuple):
    """What one process has used so far; a pid comes back, pid and create_time do not."""

    key: tuple[int, float]
    seconds: float
    memory: Any
    process: Any


@dataclass
class _Seen:
    """What the last round saw."""

    at: float  # monotonic seconds
    cpu: Any
    disks: Mapping[str, Any]
    interfaces: Mapping[str, Any]
    processes: dict[tuple[int, float], float] = field(default_factory=dict)  # _Used.key → CPU seconds


class Rounds:
    """Rounds of one host. `prime` looks without telling, so that the next `read` has rates."""

    def __init__(self, source: Any, selection: Selection) -> None:
        self._psutil = source
        self._selection = selection
        self._cores = source.cpu_count() or 1
        self._memory_total = source.virtual_memory().total
        self._seen: _Seen | None = None

    def prime(self, *, monotonic: float) -> None:
        """The look that the first round's rates count from."""
        self._seen = self._look(monotonic)
        self._seen.processes = {used.key: used.seconds for used in self._all_used()}

    def read(self, *, unix: float, monotonic: float) -> list[tuple[str, Document]]:
        """(metricset, document) of everything; `unix` is the time now, for what is counted since boot."""
        before, now = self._seen, self._look(monotonic)
        self._seen = now
        seconds = max(monotonic - before.at, 1e-3) if before else 0.0
        found: list[tuple[str, Document]] = []
        usage = self._cpu(before, now, found)
        found.extend(("load", {"system": {"load": one}}) for one in self._load())
        found.append(("memory", {"system": {"memory": self._memory()}}))
        found.extend(("filesystem", {"system": {"filesystem": one}}) for one in self._filesystems())
        disks = _Rates(before.disks if before else {}, now.disks, seconds)
        found.extend(("diskio", {"system": {"diskio": _disk(name, disks)}}) for name in disks.names)
        networks = _Rates(before.interfaces if before else {}, now.interfaces, seconds)
        found.extend(("network", {"system": {"network": _interface(name, networks)}}) for name in networks.names)
        found.append(("summary", self._summary(unix, usage, disks, networks)))
        found.extend(("process", document) for document in self._processes(before, now, seconds))
        return found

    def _look(self, monotonic: float) -> _Seen:
        chosen = self._selection
        disks = _quiet(lambda: self._psutil.disk_io_counters(perdisk=True))
        interfaces = _quiet(lambda: self._psutil.net_io_counters(pernic=True))
        return _Seen(
            monotonic,
            self._psutil.cpu_times(),
            _without(disks or {}, chosen.exclude_disks),
            _without(interfaces or {}, chosen.exclude_interfaces),
        )

    def _cpu(self, before: _Seen | None, now: _Seen, found: list[tuple[str, Document]]) -> float | None:
        """system.cpu; the share of all cores that was used, None before there is a second look."""
        modes = [mode for mode in _MODES if hasattr(now.cpu, mode)]
        cpu: Document = {"cores": self._cores}
        cpu |= {mode: {"ticks": round(getattr(now.cpu, mode) * 100)} for mode in modes}
        if before is None:
            found.append(("cpu", {"system": {"cpu": cpu}}))
            return None
        spent = {mode: max(0.0, getattr(now.cpu, mode) - getattr(before.cpu, mode)) for mode in modes}
        whole = sum(spent.values()) or 1.0
        shares = {mode: seconds / whole for mode, seconds in spent.items()}
        usage: float = 1 - shares.get("idle", 0.0) - shares.get("iowait", 0.0)
        for mode, share in shares.items():
            cpu[mode] |= self._share(share)
        cpu["total"] = self._share(usage)
        cpu["interval"] = {"ms": round((now.at - before.at) * 1000)}
        found.append(("cpu", {"host": {"cpu": {"usage": round(usage, 4)}}, "system": {"cpu": cpu}}))
        return usage

    def _share(self, of_all: float) -> Document:
        return {"pct": round(of_all * self._cores, 4), "norm": {"pct": round(of_all, 4)}}

    def _load(self) -> Iterator[Document]:
        loads = _quiet(self._psutil.getloadavg)
        if loads is None:
            return
        averages = dict(zip(("1", "5", "15"), (round(load, 2) for load in loads), strict=True))
        norm = {name: round(load / self._cores, 4) for name, load in averages.items()}
        yield {"cores": self._cores, **averages, "norm": norm}

    def _memory(self) -> Document:
        memory, swap = self._psutil.virtual_memory(), _quiet(self._psutil.swap_memory)
        used = memory.total - memory.free
        actual = memory.total - memory.available
        document = {
            "total": memory.total,
            "free": memory.free,
            "cached": getattr(memory, "cached", None),
            "used": _part(used, memory.total),
            "actual": {"free": memory.available, "used": _part(actual, memory.total)},
        }
        if swap is not None:
            document["swap"] = {"total": swap.total, "free": swap.free, "used": _part(swap.used, swap.total)}
        return document

    def _filesystems(self) -> Iterator[Document]:
        mounts = _quiet(lambda: self._psutil.disk_partitions(all=False)) or []
        places = _without({one.mountpoint: one for one in mounts}, self._selection.exclude_filesystems)
        for place, mount in places.items():
            usage = _quiet(lambda place=place: self._psutil.disk_usage(place))  # type: ignore[misc]  # a bound default
            if usage is not None:
                yield {
                    "device_name": mount.device,
                    "mount_point": place,
                    "type": mount.fstype,
                    "total": usage.total,
                    "available": usage.free,
                    "used": _part(usage.used, usage.used + usage.free),
                }

    def _summary(self, unix: float, usage: float | None, disks: "_Rates", networks: "_Rates") -> Document:
        """ECS' own host.* fields: sums over all devices since the round before (ECS: "since the last collection")."""
        uptime = max(0.0, unix - self._psutil.boot_time())
        host: Document = {"uptime": int(uptime)}
        if usage is not None:
            host["cpu"] = {"usage": round(usage, 4)}
            host["disk"] = {
                "read": {"bytes": disks.sum("read_bytes")},
                "write": {"bytes": disks.sum("write_bytes")},
            }
            ways = (("ingress", "bytes_recv", "packets_recv"), ("egress", "bytes_sent", "packets_sent"))
            host["network"] = {
                way: {"bytes": networks.sum(octets), "packets": networks.sum(packets)} for way, octets, packets in ways
            }
        return {"host": host, "system": {"uptime": {"duration": {"ms": int(uptime * 1000)}}}}

    def _processes(self, before: _Seen | None, now: _Seen, seconds: float) -> Iterator[Document]:
        """The `top` by CPU in the interval, and the `top` by memory, each once."""
        found = []
        for used in self._all_used():
            now.processes[used.key] = used.seconds
            # A process that began since the last look has used all its time since then.
            spent = None if before is None else max(0.0, used.seconds - before.processes.get(used.key, 0.0))
            found.append((spent, used))
        top = self._selection.top
        by_cpu = sorted(found, key=lambda one: one[0] or 0.0, reverse=True)[:top]
        by_memory = sorted(found, key=lambda one: one[1].memory.rss, reverse=True)[:top]
        for spent, used in {one[1].key: one for one in [*by_cpu, *by_memory]}.values():
            try:
                yield self._process(spent, used, seconds)
            except (self._psutil.Error, OSError):  # ended in between; OSError is Windows' word for it
                continue

    def _all_used(self) -> Iterator[_Used]:
        """Every process that is there and ours to see."""
        if not self._selection.top:
            return
        for process in self._psutil.process_iter():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    key = (process.pid, process.create_time())
                    yield _Used(key, times.user + times.system, process.memory_info(), process)
            except (self._psutil.Error, OSError):  # as below
                continue

    def _process(self, spent: float | None, used: _Used, seconds: float) -> Document:
        process, memory = used.process, used.memory
        with process.oneshot():
            about: Document = {"pid": process.pid, "name": process.name()}
            about["parent"] = {"pid": process.ppid()}
            about["executable"] = self._allowed(process.exe) or None
            if self._selection.command_line:
                about["command_line"] = " ".join(self._allowed(process.cmdline) or ()) or None
            owner = self._allowed(process.username)
            state = self._allowed(process.status)
        cpu: Document = {"value": round(used.seconds * 1000)}
        if spent is not None:
            share = spent / seconds
            cpu |= {"pct": round(share, 4), "norm": {"pct": round(share / self._cores, 4)}}
        measured = {
            "state": state,
            "cpu": {"total": cpu},
            "memory": {
                "size": memory.vms,
                "rss": _part(memory.rss, self._memory_total),
                "share": getattr(memory, "shared", None),
            },
        }
        document: Document = {"process": about, "system": {"process": measured}}
        return document | ({"user": {"name": owner}} if owner else {})

    def _allowed(self, ask: Callable[[], Any]) -> Any:
        """None where the answer is not for us; a process that is gone is the caller's to leave out."""
        try:
            return ask()
        except self._psutil.AccessDenied:
            return None


class _Rates:
    """Counters of things by name, now and in the round before."""

    def __init__(self, before: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> None:
        self._before = before
        self._now = now
        self._seconds = seconds
        self.names = list(now)

    def of(self, name: str) -> Any:
        """The counters as they are."""
        return self._now[name]

    def delta(self, name: str, counter: str) -> int | None:
        """What was added since the round before; None without one, or if the counter began anew."""
        before = self._before.get(name)
        if before is None:
            return None
        added: int = getattr(self._now[name], counter) - getattr(before, counter)
        return added if added >= 0 else None

    def sum(self, counter: str) -> int:
        """The deltas of all things together."""
        return sum(self.delta(name, counter) or 0 for name in self.names)

    def per_second(self, name: str, counter: str) -> float | None:
        """The delta over the time that passed."""
        delta = self.delta(name, counter)
        return None if delta is None or not self._seconds else round(delta / self._seconds, 3)

    def interval(self, name: str) -> Document:
        """What the rates of this thing are over."""
        return {"interval": {"ms": round(self._seconds * 1000)}} if name in self._before else {}


def _disk(name: str, rates: _Rates) -> Document:
    counters = rates.of(name)
    stat: Document = {}
    for way in ("read", "write"):
        per_second = rates.per_second(name, f"{way}_bytes"), rates.per_second(name, f"{way}_count")
        if None not in per_second:
            stat[way] = {"per_sec": {"bytes": per_second[0]}, "request": {"per_sec": per_second[1]}}
    busy = rates.per_second(name, "busy_time") if hasattr(counters, "busy_time") else None
    if busy is not None:
        stat["busy"] = round(min(busy / 10, 100.0), 2)  # milliseconds in a second to percent, as iostat's %util
    document = {
        "name": name,
        "read": {"bytes": counters.read_bytes, "count": counters.read_count, "time": counters.read_time},
        "write": {"bytes": counters.write_bytes, "count": counters.write_count, "time": counters.write_time},
    }
    return document | ({"iostat": stat} if stat else {}) | rates.interval(name)


def _interface(name: str, rates: _Rates) -> Document:
    counters = rates.of(name)
    document: Document = {"name": name}
    for way, suffix, short in (("in", "recv", "in"), ("out", "sent", "out")):
        document[way] = {
            "bytes": getattr(counters, f"bytes_{suffix}"),
            "packets": getattr(counters, f"packets_{suffix}"),
            "errors": getattr(counters, f"err{short}"),
            "dropped": getattr(counters, f"drop{short}"),
        }
        octets, packets = rates.per_second(name, f"bytes_{suffix}"), rates.per_second(name, f"packets_{suffix}")
        if octets is not None and packets is not None:
            document[way]["per_sec"] = {"bytes": octets, "packets": packets}
    return document | rates.interval(name)


def _part(used: int, whole: int) -> Document:
    return {"bytes": used, "pct": round(used / whole, 4) if whole else 0.0}


def _without(things: Mapping[str, Any], patterns: Iterable[str]) -> dict[str, Any]:
    """At most MAX_THINGS whose names no pattern fits."""
    patterns = tuple(patterns)
    kept = (name for name in things if not any(fnmatchcase(name, pattern) for pattern in patterns))
    return {name: things[name] for name, _ in zip(kept, range(MAX_THINGS), strict=False)}


def _quiet(ask: Callable[[], Any]) -> Any:
    """None where the system does not answer: not permitted, gone in between, not there on this kernel.

    RuntimeError is psutil's for a Windows whose performance counters are switched off.
    """
    try:
        return ask()
    except (OSError, RuntimeError):
        return None
