"""Agents as people and programs see them: a table, one in full, JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import orjson

from ndagent.core.settings import format_size
from ndcollector.agents.rows import Agent, Held

_TIMES = ("enrolled_at", "first_seen", "last_seen", "status_at", "revoked_at", "clone_at", "certificate_not_after")


def as_json(agent: Agent, held: Sequence[Held], *, now: float, silent_after: float) -> dict[str, object]:
    """Everything in the row, and what follows from it."""
    current = [one for one in held if one.is_current(now)]
    return {
        **asdict(agent),
        "state": state(agent, now=now, silent_after=silent_after),
        "certificate_serial": current[-1].serial if current else None,
        "certificate_not_after": current[-1].not_after if current else None,
        "serials": [one.serial for one in held],
    }


def state(agent: Agent, *, now: float, silent_after: float) -> str:
    """The worst first."""
    if agent.revoked_at is not None:
        return "revoked"
    if agent.clone_at is not None:
        return "clone?"
    if agent.last_seen is None:
        return "new"
    return "silent" if now - agent.last_seen > silent_after else "active"


def table(
    agents: Sequence[Agent], certificates: Mapping[str, Sequence[Held]], *, now: float, silent_after: float
) -> Iterator[str]:
    """A head, and one line each."""
    width = max((len(one.name) for one in agents), default=4)
    head = ("STATE", "SEEN", "CERT", "PENDING", "POLICY")
    yield f"{'ID':<16} {'NAME':<{width}} {head[0]:<7} {head[1]:>6} {head[2]:>5} {head[3]:>9} {head[4]:>7}  GROUP"
    for one in agents:
        current = [held for held in certificates.get(one.id, ()) if held.is_current(now)]
        cells = (
            state(one, now=now, silent_after=silent_after),
            "-" if one.last_seen is None else _ago(now - one.last_seen),
            f"{(current[-1].not_after - now) / 86400:.0f}d" if current else "none",
            "-" if one.pending_bytes is None else _size(one.pending_bytes),
            "-" if one.policy_version is None else str(one.policy_version),
        )
        cell = f"{cells[0]:<7} {cells[1]:>6} {cells[2]:>5} {cells[3]:>9} {cells[4]:>7}"
        yield f"{one.id:<16} {one.name:<{width}} {cell}  {one.group}".rstrip()


def describe(found: Mapping[str, object]) -> str:
    """One agent, a field a line; what is not known is left out."""
    lines = []
    for key, value in found.items():
        if value in (None, "", [], (), 0) and key != "pending_events":
            continue
        lines.append(f"{key.replace('_', ' '):<22} {_text(key, value)}")
    return "\n".join(lines)


def _text(key: str, value: object) -> str:
    if key in _TIMES and isinstance(value, int | float):
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if key == "shed" and isinstance(value, list):
        return f"\n{'':<23}".join(_shed(one) for one in value)
    if key == "status":
        return orjson.dumps(value).decode()
    if isinstance(value, list | tuple):
        return f"\n{'':<23}".join(map(str, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _shed(one: Mapping[str, object]) -> str:
    since, until = (datetime.fromtimestamp(int(str(one[key])) / 1e9, UTC) for key in ("since_ns", "until_ns"))
    return f"{one['events']} events of {one['input']}, {since:%Y-%m-%d %H:%M:%S} to {until:%Y-%m-%d %H:%M:%S} UTC"


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f}{name}"
    return f"{max(0, seconds):.0f}s"


def _size(size: int) -> str:
    return format_size(size) if size < 1024 else format_size((size >> 10) << 10 if size < 1 << 20 else size >> 20 << 20)
