"""Laying layers over each other: against a plain merge, with locks, and what `explain` says of it."""

from functools import reduce
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ndcollector.policy.merge import Layer, Leaf, Merged, Path, merge

KEYS = st.sampled_from(["a", "b", "c"])
SCALARS = st.none() | st.integers(0, 3) | st.lists(st.integers(0, 2), max_size=2)
trees = st.dictionaries(
    KEYS,
    st.recursive(SCALARS, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8),
    max_size=3,
)
"""Anything over anything."""
fixed_shape = st.fixed_dictionaries(
    {},
    optional={"a": SCALARS, "b": st.fixed_dictionaries({}, optional={"a": SCALARS, "c": SCALARS}), "c": SCALARS},
)
"""A key is always a mapping or never, as in settings; null aside."""
paths = st.lists(KEYS, min_size=1, max_size=3).map(tuple)


def layers_of(*datas: dict[str, Any], locked: tuple[Path, ...] = (), locker: int = 1) -> list[Layer]:
    return [
        Layer(f"layer {index}", data, "", locked=locked if index == locker else ())
        for index, data in enumerate(datas)
    ]  # fmt: skip


def over(older: Any, newer: Any) -> Any:
    """RFC 7396 with the nulls kept: the oracle."""
    if not isinstance(newer, dict):
        return newer
    if not isinstance(older, dict):
        older = {}
    return {**older, **{key: over(older.get(key), value) for key, value in newer.items()}}


def plain(merged: Merged) -> dict[str, Any]:
    """The tree with its leaves' values."""

    def value(node: Any) -> Any:
        return node.value if isinstance(node, Leaf) else {key: value(one) for key, one in node.items()}

    return {key: value(node) for key, node in merged.tree.items()}


def at(tree: Any, path: Path) -> Any:
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return "absent"
        tree = tree[key]
    return tree


@given(st.lists(trees, max_size=5))
def test_without_locks_it_is_a_merge_patch(datas: list[dict[str, Any]]) -> None:
    """The tree that remembers and the plain merge agree on every value."""
    assert plain(merge(layers_of(*datas))) == reduce(over, datas, {})


@given(st.lists(fixed_shape, min_size=3, max_size=3))
def test_layers_may_be_merged_in_any_grouping(datas: list[dict[str, Any]]) -> None:
    """Associative where a key is a mapping in every layer or in none: how many layers lie between does not matter."""
    first, second, third = datas
    left = plain(merge(layers_of(plain(merge(layers_of(first, second))), third)))
    right = plain(merge(layers_of(first, plain(merge(layers_of(second, third))))))
    assert left == right == plain(merge(layers_of(*datas)))


@given(trees)
def test_a_layer_over_itself_changes_nothing(data: dict[str, Any]) -> None:
    """Idempotent."""
    assert plain(merge(layers_of(data, data))) == plain(merge(layers_of(data)))


@given(st.lists(trees, min_size=2, max_size=5), st.lists(paths, min_size=1, max_size=3))
def test_what_is_locked_never_changes(datas: list[dict[str, Any]], locked: list[Path]) -> None:
    """Whatever later layers hold: set, cleared, replaced from above, or set where there was nothing."""
    locks = tuple(locked)
    until_lock = plain(merge(layers_of(*datas[:2])))
    result = plain(merge(layers_of(*datas, locked=locks)))
    for lock in locks:
        assert at(result, lock) == at(until_lock, lock)


@given(st.lists(trees, min_size=3, max_size=5), st.lists(paths, min_size=1, max_size=3))
def test_every_value_is_either_in_force_or_overridden_or_blocked(
    datas: list[dict[str, Any]], locked: list[Path]
) -> None:
    """Explain forgets nothing that a layer said, and its winner is the merge's value."""
    merged = merge(layers_of(*datas, locked=tuple(locked)))
    result = plain(merged)
    accounted: set[tuple[Path, str]] = set()

    def account(leaf: Leaf) -> None:
        accounted.add((leaf.path, leaf.layer))
        for older in leaf.overrode:
            account(older)

    for leaf in merged.leaves():
        assert at(result, leaf.path) == leaf.value
        assert at(datas[int(leaf.layer.split()[1])], leaf.path) == leaf.value
        account(leaf)
    for blocked in merged.blocked:
        shorter = min(len(blocked.lock), len(blocked.leaf.path))
        assert blocked.lock[:shorter] == blocked.leaf.path[:shorter]
        accounted.add((blocked.leaf.path, blocked.leaf.layer))
    for index, data in enumerate(datas):
        for path, value in said(data):
            assert (path, f"layer {index}") in accounted or value == {}


def said(data: dict[str, Any], path: Path = ()) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    for key, value in data.items():
        here = (*path, key)
        found += said(value, here) if isinstance(value, dict) and value else [(here, value)]
    return found


def test_the_settings_name_types_and_switch_inputs_off() -> None:
    """What an agent is sent: the type defaults to the name, null stays for inputs alone."""
    base = {"inputs": {"journald": {"units": ["sshd"]}, "noisy": {"type": "file"}}, "spool": {"max_age": "7d"}}
    emergency = {"inputs": {"noisy": None, "audit": None}, "spool": {"max_age": None}, "log": {"level": "debug"}}
    assert merge(layers_of(base, emergency)).settings() == {
        "inputs": {"journald": {"type": "journald", "units": ["sshd"]}, "noisy": None, "audit": None},
        "log": {"level": "debug"},
    }


def test_an_emergency_wins_over_everything_but_locks() -> None:
    """The order of the issue: the last layer wins, compliance's locks aside, and both are told."""
    base = {"log": {"level": "info"}, "inputs": {"audit": {"type": "auditd"}}}
    compliance: dict[str, Any] = {}
    emergency = {"log": {"level": "debug"}, "inputs": {"audit": None}}
    merged = merge(layers_of(base, compliance, emergency, locked=(("inputs", "audit"),)))
    assert merged.settings() == {"log": {"level": "debug"}, "inputs": {"audit": {"type": "auditd"}}}
    assert [(one.leaf.path, one.leaf.value, one.lock) for one in merged.blocked] == [
        (("inputs", "audit"), None, ("inputs", "audit"))
    ]
    level = next(leaf for leaf in merged.leaves() if leaf.path == ("log", "level"))
    assert (level.layer, [one.value for one in level.overrode]) == ("layer 2", ["info"])


def test_a_large_layer_costs_linear_work() -> None:
    """As many values as a file may hold are merged at once; quadratic work would run into the time limit."""
    data = {"inputs": {str(index): {"type": "file"} for index in range(50_000)}}
    assert len(list(merge(layers_of(data, data, {"inputs": None})).leaves())) == 1
