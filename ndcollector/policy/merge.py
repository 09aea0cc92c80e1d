"""Laying policy layers over each other, and remembering who said what.

Promises: a pure function of the layers in their order. Mappings are merged key by key, anything else (lists too) is
replaced, null takes away what came before (RFC 7396, with the nulls kept until the end). What a layer marks `locked`
stays as it is at that layer, absence included, and what later layers say about it is kept as `blocked`. The tree that
holds the result holds the explanation too, so the two cannot differ.
Refuses: files, schemas, and knowing which layers an agent has (layers.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

Path = tuple[str, ...]
"""Where a value stands: the keys that lead to it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's settings as plain data; `places` says for each path where it is written ("…/base.yaml:3")."""

    name: str
    data: Mapping[str, Any]
    digest: str
    places: Mapping[Path, str] = field(default_factory=dict)
    locked: tuple[Path, ...] = ()

    def leaf(self, path: Path, value: object, overrode: tuple["Leaf", ...] = ()) -> "Leaf":
        """A value of this layer."""
        return Leaf(path, value, self.name, self.places.get(path, self.name), overrode)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value, who set it and what it replaced (the latest first; each with its own history)."""

    path: Path
    value: object
    layer: str
    place: str
    overrode: tuple["Leaf", ...] = ()


@dataclass(frozen=True, slots=True)
class Blocked:
    """What a layer wanted although an earlier one had locked it; `lock` is the locked path."""

    leaf: Leaf
    lock: Path


_Tree = dict[str, Union["_Tree", Leaf]]


@dataclass(frozen=True, slots=True)
class Merged:
    """The layers as one. `leaves` includes those that are null."""

    tree: _Tree
    blocked: tuple[Blocked, ...]
    layers: tuple[Layer, ...]

    def leaves(self) -> Iterator[Leaf]:
        """Every value with its history, in the order of the paths."""
        return _leaves(self.tree)

    def settings(self) -> dict[str, Any]:
        """What an agent is sent: inputs have their type, nulls are gone but for `inputs.<name>: null`."""
        settings = _without_nulls(self.tree)
        switched_off = {name: None for name, one in _inputs(self.tree) if isinstance(one, Leaf) and one.value is None}
        inputs = settings.get("inputs", {})
        named = {name: {"type": name, **one} if isinstance(one, dict) else one for name, one in inputs.items()}
        settings["inputs"] = named | switched_off
        return {section: values for section, values in settings.items() if values != {}}


def merge(layers: Iterable[Layer]) -> Merged:
    """The layers over each other, the last one winning."""
    tree: _Tree = {}
    blocked: list[Blocked] = []
    locks: set[Path] = set()
    used = []
    for layer in layers:
        _Lay(layer, locks, blocked).over(tree, layer.data)
        locks.update(layer.locked)
        used.append(layer)
    return Merged(tree, tuple(blocked), tuple(used))


class _Lay:
    """One layer being laid over the tree of the earlier ones."""

    def __init__(self, layer: Layer, locks: set[Path], blocked: list[Blocked]) -> None:
        self._layer = layer
        self._locks = frozenset(locks)
        self._above_locks = {lock[:depth]: lock for lock in locks for depth in range(1, len(lock))}
        self._blocked = blocked

    def over(self, tree: _Tree, data: Mapping[str, Any], path: Path = (), replaced: Sequence[Leaf] = ()) -> None:
        """Lay `data` over `tree`, which stands at `path`; `replaced` is what stood in the way of the tree itself."""
        for key, value in data.items():
            here = (*path, key)
            if here in self._locks:
                self._block(here, value, here)
            elif isinstance(value, Mapping):
                self._mapping(tree, here, value, replaced)
            elif here in self._above_locks:
                self._block(here, value, self._above_locks[here])
            else:
                earlier = tree.get(key)
                history = _leaves(earlier) if isinstance(earlier, dict) else (earlier,) if earlier else replaced
                tree[key] = self._layer.leaf(here, value, tuple(history))

    def _mapping(self, tree: _Tree, here: Path, value: Mapping[str, Any], replaced: Sequence[Leaf]) -> None:
        below = tree.get(here[-1])
        if isinstance(below, dict):
            self.over(below, value, here)
            return
        history = (below,) if below else tuple(replaced)
        if not value:
            tree[here[-1]] = self._layer.leaf(here, {}, history)
            return
        inner: _Tree = {}
        self.over(inner, value, here, history)
        if inner:  # else all of it was locked
            tree[here[-1]] = inner

    def _block(self, here: Path, value: object, lock: Path) -> None:
        leaves = _flat(self._layer, here, value)
        self._blocked.extend(Blocked(leaf, lock) for leaf in leaves)


def _flat(layer: Layer, path: Path, value: object) -> Iterator[Leaf]:
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _flat(layer, (*path, key), one)
    else:
        yield layer.leaf(path, value)


def _leaves(tree: _Tree) -> Iterator[Leaf]:
    for key in sorted(tree):
        node = tree[key]
        if isinstance(node, Leaf):
            yield node
        else:
            yield from _leaves(node)


def _inputs(tree: _Tree) -> Iterator[tuple[str, "_Tree | Leaf"]]:
    inputs = tree.get("inputs")
    return iter(inputs.items() if isinstance(inputs, dict) else ())


def _without_nulls(tree: _Tree) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, node in tree.items():
        if isinstance(node, dict):
            result[key] = _without_nulls(node)
        elif node.value is not None:
            result[key] = node.value
    return result
