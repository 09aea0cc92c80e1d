"""One policy for each agent: the merge, what is wrong with it, and what would change.

Promises: agents with the same layers are merged once; `faults` tells what no single file shows: an input whose type
nobody says, two layers that mean two types by one name, a policy too large for agents to take. It asks not only for the
agents that are known but for each layer's own audience, so that the first agent of a new group finds its policy good.
Refuses: reading files and writing state.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ndagent.core.policy_settings import INPUT_TYPES, MAX_INPUTS
from ndagent.wire.policy import MAX_BUNDLE_BYTES, canonical, settings_digest
from ndcollector.policy.layers import DEPARTMENT, INSTANCE, ROLE, AgentFacts, Policies
from ndcollector.policy.merge import Leaf, Merged, Path, merge

_ENVELOPE_BYTES = 16 * 1024  # of a bundle, for all but the settings: a name and a digest for each of its layers
MAX_SETTINGS_BYTES = MAX_BUNDLE_BYTES - _ENVELOPE_BYTES
_MAX_MERGED = 1024


@dataclass(frozen=True, slots=True)
class Agent:
    """AgentFacts as plain data."""

    id: str
    name: str = ""
    group: str = ""
    roles: tuple[str, ...] = ()

    @classmethod
    def of(cls, facts: AgentFacts) -> "Agent":
        """The facts as they are now, whatever holds them."""
        return cls(facts.id, facts.name, facts.group, tuple(sorted(facts.roles)))

    @property
    def title(self) -> str:
        """What people read: the name where there is one."""
        return self.name or self.id


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an agent should run, and the digests of the layers it comes from; a new `digest` needs a new version."""

    merged: Merged
    settings: Mapping[str, Any]
    digest: str
    layers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs; None stands for: not set. `place` says where the new one is written, if it is."""

    path: Path
    before: object
    after: object
    place: str


@dataclass(slots=True)
class Resolver:
    """The policy of any agent under one state of the layers. `next_key` is announced along with it, in a rotation."""

    policies: Policies
    next_key: bytes | None = None
    _merged: dict[tuple[str, ...], Wanted] = field(default_factory=dict)

    def wanted(self, agent: AgentFacts) -> Wanted:
        """What this agent should run."""
        layers = self.policies.of(agent)
        key = tuple(layer.name for layer in layers)
        found = self._merged.get(key)
        if found is None:
            merged = merge(layers)
            settings = merged.settings()
            digests = {layer.name: layer.digest for layer in layers}
            digest = settings_digest({"settings": settings, "next_key": (self.next_key or b"").hex()})
            found = Wanted(merged, settings, digest, digests)
            if len(self._merged) >= _MAX_MERGED:
                self._merged.clear()
            self._merged[key] = found
        return found

    def faults(self, agents: Iterable[AgentFacts]) -> list[str]:
        """What is wrong with the policies of these agents and of each layer's audience; one line each."""
        found: dict[str, None] = {}
        seen = set()
        for agent in (*self._audiences(), *map(Agent.of, agents)):
            wanted = self.wanted(agent)
            key = tuple(wanted.layers)
            if key not in seen:
                seen.add(key)
                found.update(dict.fromkeys(_faults(wanted)))
        return list(found)

    def _audiences(self) -> Iterator[Agent]:
        yield Agent("")
        for name in self.policies.layers:
            kind, _, one = name.rpartition("/")
            if kind == DEPARTMENT:
                yield Agent("", group=one)
            elif kind == ROLE:
                yield Agent("", roles=(one,))
            elif kind == INSTANCE:
                yield Agent("", name=one)


def changes(before: Wanted | None, after: Wanted | None) -> list[Change]:
    """What differs, in the order of the paths."""
    old, new = _values(before), _values(after)
    written = {leaf.path: leaf.place for leaf in after.merged.leaves()} if after else {}
    return [
        Change(path, old.get(path), new.get(path), written.get(path, ""))
        for path in sorted(old.keys() | new.keys())
        if path not in old or path not in new or canonical(old[path]) != canonical(new[path])
    ]


SWITCHED_OFF = "switched off"


def _values(wanted: Wanted | None) -> dict[Path, object]:
    return dict(_flat(wanted.settings if wanted else {}))


def _flat(settings: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, object]]:
    for key, value in settings.items():
        here = (*path, key)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, here)
        else:
            yield here, SWITCHED_OFF if value is None else value


def _faults(wanted: Wanted) -> Iterator[str]:
    inputs = wanted.settings.get("inputs", {})
    leaves = {leaf.path: leaf for leaf in wanted.merged.leaves()}
    for name, one in inputs.items():
        if one is not None and one["type"] not in INPUT_TYPES:
            first = next(leaf for path, leaf in leaves.items() if path[:2] == ("inputs", name))
            yield f"{first.place}: inputs.{name}: no layer says its type; add `type`, one of {', '.join(INPUT_TYPES)}"
        yield from _two_types(leaves.get(("inputs", name, "type")))
    if len(inputs) > MAX_INPUTS:
        yield f"{', '.join(wanted.layers)}: together they hold {len(inputs)} inputs, {MAX_INPUTS} are allowed"
    if len(canonical(wanted.settings)) > MAX_SETTINGS_BYTES:
        yield f"{', '.join(wanted.layers)}: together they hold more than {MAX_SETTINGS_BYTES} bytes"


def _two_types(leaf: Leaf | None) -> Iterator[str]:
    """Settings of two types must not mix under one name."""
    earlier = leaf.overrode[0] if leaf is not None and leaf.overrode else None
    if leaf is not None and earlier is not None and earlier.path == leaf.path and earlier.value != leaf.value:
        name = leaf.path[1]
        yield (
            f"{leaf.place}: inputs.{name}.type: is {leaf.value} here and {earlier.value} in {earlier.place}; give the "
            "input another name, and switch the other off with null"
        )
