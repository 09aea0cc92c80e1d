"""One round at one device: is it up, how long, how busy, and what its interfaces carry; as documents for events.

Promises: one document for the device and one for each interface, at most so many; counters as they are, and rates over
the time that really passed. A counter that went backwards (a restart, or 32 bits that were full) has no rate. What a
device does not have is left out, without a word.
Refuses: sockets and schedules.

CPU is the mean of hrProcessorLoad (HOST-RESOURCES-MIB), or the vendor's own figure where sysObjectID names one that
keeps it elsewhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ndagent.core.snmp_client import Asking, Silent
from ndagent.core.snmp_talk import Denied
from ndagent.wire.snmp import ber, names, values
from ndagent.wire.snmp.ber import Malformed
from ndagent.wire.snmp.messages import Varbind

Document = dict[str, Any]
_SYSTEM = "1.3.6.1.2.1.1"
_OBJECT_ID, _UPTIME, _NAME = f"{_SYSTEM}.2.0", f"{_SYSTEM}.3.0", f"{_SYSTEM}.5.0"
_IF, _IFX = "1.3.6.1.2.1.2.2.1", "1.3.6.1.2.1.31.1.1.1"
_DESCR, _ADMIN, _OPER, _ALIAS, _SHORT, _SPEED = (
    f"{_IF}.2", f"{_IF}.7", f"{_IF}.8", f"{_IFX}.18", f"{_IFX}.1", f"{_IFX}.15",
)  # fmt: skip
_COUNTERS = {
    ("in", "bytes"): (f"{_IFX}.6", f"{_IF}.10"), ("out", "bytes"): (f"{_IFX}.10", f"{_IF}.16"),
    ("in", "errors"): (f"{_IF}.14",), ("out", "errors"): (f"{_IF}.20",),
    ("in", "discards"): (f"{_IF}.13",), ("out", "discards"): (f"{_IF}.19",),
}  # fmt: skip
"""Direction and what is counted: the column to believe, and the one to believe where that is not there."""
_QUESTIONS = (
    (_OPER, _ADMIN, _DESCR, _SHORT, _ALIAS, _SPEED),
    tuple(column for row in _COUNTERS.values() for column in row),
)
"""Columns asked for together: ten rows of them are less than most devices put into one datagram."""
_PROCESSORS = "1.3.6.1.2.1.25.3.3.1.2"  # hrProcessorLoad: percent over a minute, of each
_VENDORS_CPU = {
    "Cisco": "1.3.6.1.4.1.9.9.109.1.1.1.1.7",  # cpmCPUTotal1minRev
    "Fortinet": "1.3.6.1.4.1.12356.101.4.1.3",  # fgSysCpuUsage
    "Juniper": "1.3.6.1.4.1.2636.3.1.13.1.8",  # jnxOperatingCPU: zero for parts that have none
}
_CPUS = 256
_LARGEST_PERCENT = 100
_MEGABIT = 1_000_000
_LARGEST_32 = 2**32 - 1


class Selection(NamedTuple):
    """How many interfaces to tell of, and which to leave out (shell patterns of their names)."""

    interfaces: int
    exclude: Sequence[str] = ()


class Health:
    """Rounds at one device."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._before: Mapping[str, Document] = {}
        self._before_at = 0.0

    def forget(self) -> None:
        """The device was not there: what it counts next has no rate."""
        self._before = {}

    async def ask(self, asking: Asking, *, monotonic: float) -> tuple[Document, list[Document]]:
        """The device's document and its interfaces'; raises Silent or Denied where it does not answer at all."""
        system = await asking.get((_OBJECT_ID, _UPTIME, _NAME))
        vendor = _vendor(system.get(_OBJECT_ID))
        device: Document = {"up": 1}
        ticks = _number(system.get(_UPTIME))
        if ticks is not None and ticks <= _LARGEST_32:  # TimeTicks; a lie is left out, not multiplied
            device["uptime"] = {"ms": ticks * 10}
        device |= {"name": _text(system.get(_NAME)), "vendor": vendor}
        interfaces: list[Document] = []
        try:
            table: dict[str, dict[str, Varbind]] = {}
            for columns in _QUESTIONS:
                table |= await asking.walk(columns, rows=self._selection.interfaces)
            interfaces = _interfaces(table, self._selection)
            device["cpu"] = await self._cpu(asking, vendor)
        except (Silent, Denied) as fault:  # it is up, and told a part
            device["incomplete"] = str(fault) or "no answer to a part of the questions"
        self._rate(interfaces, monotonic)
        device["interfaces"] = {
            "total": len(interfaces), "up": sum(one.get("status") == "up" for one in interfaces),
        }  # fmt: skip
        return device, interfaces

    async def _cpu(self, asking: Asking, vendor: str) -> Document | None:
        for column in filter(None, (_VENDORS_CPU.get(vendor), _PROCESSORS)):
            found = (await asking.walk((column,), rows=_CPUS))[column].values()
            loads = [load for load in map(_number, found) if load is not None and 0 <= load <= _LARGEST_PERCENT]
            if column == _VENDORS_CPU["Juniper"]:
                loads = [load for load in loads if load]
            if loads:
                return {"pct": round(sum(loads) / len(loads) / 100, 4), "count": len(loads)}
        return None

    def _rate(self, interfaces: Iterable[Document], monotonic: float) -> None:
        seconds = monotonic - self._before_at
        now = {one["index"]: one for one in interfaces}
        for index, one in now.items():
            before = self._before.get(index)
            if before is None or seconds <= 0 or before.get("name") != one.get("name"):
                continue
            one["interval"] = {"ms": round(seconds * 1000)}
            for direction in ("in", "out"):
                _add_rates(one.get(direction, {}), before.get(direction, {}), seconds)
        self._before, self._before_at = now, monotonic


def _add_rates(now: Document, before: Document, seconds: float) -> None:
    for what in ("bytes", "errors", "discards"):
        if what in now and what in before and now[what] >= before[what]:
            now[f"{what}_per_second"] = round((now[what] - before[what]) / seconds, 3)


def _interfaces(table: Mapping[str, Mapping[str, Varbind]], selection: Selection) -> list[Document]:
    found = []
    for index in table[_OPER] or table[_DESCR]:
        one: Document = {"index": index}
        name = _text(table[_SHORT].get(index)) or _text(table[_DESCR].get(index))
        if name and any(fnmatchcase(name, pattern) for pattern in selection.exclude):
            continue
        one |= {"name": name, "description": _text(table[_DESCR].get(index)), "alias": _text(table[_ALIAS].get(index))}
        one |= {"status": _word(table[_OPER].get(index)), "admin_status": _word(table[_ADMIN].get(index))}
        megabits = _number(table[_SPEED].get(index))
        one["speed"] = {"bits_per_second": megabits * _MEGABIT} if megabits and megabits <= _LARGEST_32 else None
        for (direction, what), columns in _COUNTERS.items():
            counts = [_number(table[column].get(index)) for column in columns]
            count = next((count for count in counts if count is not None), None)
            if count is not None:
                one.setdefault(direction, {})[what] = count
        found.append(one)
    return found


def _number(one: Varbind | None) -> int | None:
    try:
        return None if one is None else values.number(one)
    except Malformed:
        return None


def _text(one: Varbind | None) -> str | None:
    return values.text(one.contents) or None if one is not None and one.tag == ber.OCTET_STRING else None


def _word(one: Varbind | None) -> str | None:
    """A status in words."""
    found: str | None = None
    with suppress(Malformed):
        found = None if one is None else values.described(one, most_bytes=64).get("value")
    return found


def _vendor(one: Varbind | None) -> str:
    try:
        return names.vendor(ber.oid(one.contents)) if one is not None and one.tag == ber.OID else ""
    except Malformed:
        return ""
