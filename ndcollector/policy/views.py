"""What the policy commands show, as plain data (--json) and as text made from the same data.

Promises: text is safe on a terminal: values come from files and from agents. Refuses: printing.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ndagent.core.log import printable
from ndagent.core.yaml_file import dotted
from ndcollector.policy.applying import Agent, Change, Resolver, Wanted, changes
from ndcollector.policy.layers import Policies
from ndcollector.policy.merge import Blocked, Leaf
from ndcollector.policy.store import Applied, Row

_SHOWN_AGENTS = 8
_SHOWN_CHARACTERS = 72
_NULL = "null (taken away)"


def difference(before: Policies, after: Policies, agents: Iterable[Agent]) -> dict[str, Any]:
    """What applying `after` would change: which layers, and for which agents which values; and what locks keep."""
    old, new = Resolver(before), Resolver(after)
    groups: dict[str, tuple[list[str], list[Change]]] = {}
    locked: dict[str, Blocked] = {}
    for agent in agents:
        wanted = new.wanted(agent)
        locked |= {f"{one.leaf.place} {dotted(one.leaf.path)}": one for one in wanted.merged.blocked}
        found = changes(old.wanted(agent), wanted)
        if found:
            groups.setdefault(repr(found), ([], found))[0].append(agent.title)
    return {
        "layers": _layers(before, after),
        "agents": [{"agents": sorted(names), "changes": _plain_changes(found)} for names, found in groups.values()],
        "locked": [_plain_blocked(one) for one in locked.values()],
    }


def _layers(before: Policies, after: Policies) -> dict[str, str]:
    names = sorted(before.layers.keys() | after.layers.keys())
    found = {}
    for name in names:
        old, new = before.layers.get(name), after.layers.get(name)
        if old is None or new is None:
            found[name] = "removed" if new is None else "added"
        elif (old.digest, old.locked) != (new.digest, new.locked):
            found[name] = "changed"
    if before.selector != after.selector:
        found.setdefault("local/emergency", "changed")
    return found


def _plain_changes(found: Sequence[Change]) -> list[dict[str, object]]:
    return [
        {"path": dotted(one.path), "before": one.before, "after": one.after, "place": one.place or None}
        for one in found
    ]  # fmt: skip


def _plain_blocked(one: Blocked) -> dict[str, object]:
    return {
        "path": dotted(one.leaf.path),
        "value": one.leaf.value,
        "layer": one.leaf.layer,
        "place": one.leaf.place,
        "locked": dotted(one.lock),
    }


def difference_text(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `policy diff`."""
    signs = {"added": "+", "removed": "-", "changed": "~"}
    layers = [f"{signs[what]} {name}" for name, what in found["layers"].items()]
    yield "layers: " + (", ".join(layers) if layers else "as they were applied")
    for group in found["agents"]:
        yield f"{_count(len(group['agents']))}: {some(group['agents'])}"
        for one in group["changes"]:
            yield "  " + _change_text(one)
    if layers and not found["agents"]:
        yield "no known agent gets other settings"
    yield from _locked_text(found["locked"])


def _change_text(one: Mapping[str, Any]) -> str:
    place = f"    {one['place']}" if one["place"] else ""
    if one["before"] is None:
        return printable(f"+ {one['path']}: {_value(one['after'])}{place}")
    if one["after"] is None:
        return printable(f"- {one['path']}: {_value(one['before'])}{place}")
    return printable(f"~ {one['path']}: {_value(one['before'])} → {_value(one['after'])}{place}")


def _locked_text(blocked: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if blocked:
        yield "without effect, locked by compliance:"
    for one in blocked:
        lock = "" if one["locked"] == one["path"] else f" (lock: {one['locked']})"
        yield printable(f"  {one['path']}: {_value(one['value'])}{lock}    {one['place']}")


def explanation(agent: Agent, wanted: Wanted) -> dict[str, Any]:
    """Every value of the agent's policy: who set it where, and what that overrode; and what locks kept away."""
    return {
        "agent": {"id": agent.id, "name": agent.name, "group": agent.group, "roles": list(agent.roles)},
        "layers": list(wanted.layers),
        "values": [_plain_leaf(leaf) | {"overrode": list(_history(leaf))} for leaf in wanted.merged.leaves()],
        "locked": [_plain_blocked(one) for one in wanted.merged.blocked],
    }


def _plain_leaf(leaf: Leaf) -> dict[str, object]:
    return {"path": dotted(leaf.path), "value": leaf.value, "layer": leaf.layer, "place": leaf.place}


def _history(leaf: Leaf) -> Iterator[dict[str, object]]:
    for one in leaf.overrode:
        yield _plain_leaf(one)
        yield from _history(one)


def explanation_text(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `policy explain`."""
    agent = found["agent"]
    roles = ", ".join(agent["roles"]) or "none"
    yield printable(f"{agent['name'] or agent['id']} (group: {agent['group'] or 'none'}, roles: {roles})")
    yield "layers: " + (" → ".join(found["layers"]) or "none")
    for one in found["values"]:
        yield printable(f"  {one['path']}: {_value(one['value'], _NULL)}    {one['place']} ({one['layer']})")
        for older in one["overrode"]:
            path = "" if older["path"] == one["path"] else f"{older['path']}: "
            yield printable(f"      over {path}{_value(older['value'], _NULL)}    {older['place']} ({older['layer']})")
    yield from _locked_text(found["locked"])


def standing(applied: Applied | None, rows: Iterable[Row]) -> dict[str, Any]:
    """Which version each agent has, what it made of it, and since when."""
    return {
        "applied": None
        if applied is None
        else {
            "version": applied.version,
            "at": _time(applied.applied_at),
            "by": applied.applied_by,
            "layers": sorted(applied.policies.layers),
        },
        "agents": [_plain_row(row) for row in sorted(rows, key=lambda row: (row.agent.title, row.agent.id))],
    }


def _plain_row(row: Row) -> dict[str, object]:
    report = row.report
    return {
        "id": row.agent.id,
        "name": row.agent.name,
        "group": row.agent.group,
        "wanted": row.version or None,
        "in_force": report.in_force if report else None,
        "result": report.result if report else None,
        "message": report.message if report else "",
        "since": _time(row.since) if report else None,
        "is_current": bool(report and report.in_force == row.version != 0),
    }


def standing_text(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `policy status`."""
    applied = found["applied"]
    if applied is None:
        yield "Nothing was applied yet; `ndcollector policy apply` does."
    else:
        yield printable(f"Applied: version {applied['version']} at {applied['at']} by {applied['by']}")
    rows = found["agents"]
    if not rows:
        yield "There is no agent yet; `ndcollector agents token create` is how they get in."
        return
    current = sum(bool(row["is_current"]) for row in rows)
    yield f"{current} of {_count(len(rows))} run what they should."
    yield f"{'AGENT':<24} {'GROUP':<12} {'WANTED':>10} {'IN FORCE':>10} {'RESULT':<11} SINCE"
    for row in rows:
        wanted, has = (row[key] if row[key] is not None else "-" for key in ("wanted", "in_force"))
        line = f"{row['name'] or row['id']:<24} {row['group']:<12} {wanted:>10} {has:>10} "
        yield printable(f"{line}{row['result'] or 'silent':<11} {row['since'] or ''}".rstrip())
        if row["message"]:
            yield printable(f"    {row['message']}")


def _count(number: int) -> str:
    return f"{number} agent{'' if number == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _SHOWN_AGENTS
    return printable(", ".join(names[:_SHOWN_AGENTS])) + (f" and {more} more" if more > 0 else "")


def _value(value: object, null: str = "null") -> str:
    text = null if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
