"""The directory of layers: what is read, for whom, and how mistakes are told."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ndagent.core.yaml_file import ConfigError, load_single_yaml
from ndcollector.policy import layers
from ndcollector.policy.applying import MAX_SETTINGS_BYTES, Agent, Resolver, changes
from ndcollector.policy.layers import Policies, load_policies

Write = Callable[[str, str], None]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty `policies/`."""
    (tmp_path / "policies").mkdir()
    return tmp_path / "policies"


@pytest.fixture
def write(directory: Path) -> Write:
    """Write one layer's file."""

    def write(name: str, text: str) -> None:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")

    return write


def faults(directory: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_policies(directory)
    return str(caught.value).replace(f"{directory}/", "").splitlines()


def names(policies: Policies, agent: Agent) -> list[str]:
    return [layer.name for layer in policies.of(agent)]


def test_an_agent_gets_its_layers_in_the_order_of_the_names_of_the_issue(directory: Path, write: Write) -> None:
    """Global, group, local; roles by name; the instance's name, then its id; emergency last."""
    for name in (
        "global/base", "global/compliance", "group/department/web", "group/department/db", "group/role/b",
        "group/role/a", "local/instance/web-1", "local/instance/id1", "local/emergency",
    ):  # fmt: skip
        write(f"{name}.yaml", "log: {level: info}\n")
    policies = load_policies(directory)
    assert names(policies, Agent("id1", "web-1", "web", ("b", "a"))) == [
        "global/base", "global/compliance", "group/department/web", "group/role/a", "group/role/b",
        "local/instance/web-1", "local/instance/id1", "local/emergency",
    ]  # fmt: skip
    assert names(policies, Agent("id2")) == ["global/base", "global/compliance", "local/emergency"]


@pytest.mark.parametrize(
    ("agent", "is_selected"),
    [
        (Agent("id1", "x", "web"), True),
        (Agent("id1", "x", "db", ("edge",)), True),
        (Agent("id1", "db-1", "db"), True),
        (Agent("id7", "x", "db"), True),
        (Agent("id1", "x", "db"), False),
        (Agent("id1"), False),
    ],
)
def test_an_emergency_is_for_whom_its_selector_names(
    agent: Agent, is_selected: bool, directory: Path, write: Write
) -> None:
    """By group, role, name or id."""
    selector = "{groups: [web], roles: [edge], agents: [db-1, id7]}"
    write("local/emergency.yaml", f"selector: {selector}\nlog: {{level: debug}}\n")
    assert names(load_policies(directory), agent) == ["local/emergency"] * is_selected


def test_every_fault_of_every_file_is_told_with_its_place(directory: Path, write: Write) -> None:
    """In one go, as for the configuration."""
    write("global/base.yaml", "inputs:\n  auth: {type: fiel, paths: [var/log]}\n  b: {paths: [/a/../b]}\nlgo: {}\n")
    write("global/compliance.yaml", "locked: [inputs.audit, devliery.batch_age, inputs..x]\nspool: {max_age: soon}\n")
    write("group/role/db.yaml", "locked: [log]\n")
    write("local/emergency.yaml", "selector: everybody\n")
    assert faults(directory) == [
        "global/base.yaml:2:16: inputs.auth.type: 'fiel' is not a type of input; did you mean 'file'?",
        (
            "global/base.yaml:3:15: inputs.b.paths[0]: '/a/../b' is not an absolute path; policies have no directory "
            "of their own"
        ),
        "global/base.yaml:4:1: lgo: unknown key; did you mean 'log'?",
        "global/compliance.yaml:1:24: locked[1]: 'devliery.batch_age' names no setting; did you mean 'delivery'?",
        (
            "global/compliance.yaml:1:44: locked[2]: 'inputs..x' is not a path; write the keys with a dot between them"
            ", such as inputs.audit"
        ),
        (
            "global/compliance.yaml:2:18: spool.max_age: 'soon' is not a duration; write seconds, or a number with a "
            "unit such as 250ms, 90s, 7d"
        ),
        "group/role/db.yaml:1:1: locked: unknown key; known: delivery, inputs, log, spool",
        "local/emergency.yaml:1:1: selector: should be 'all'; should be a mapping: `key: value` lines, not 'everybody'",
    ]


def test_a_file_where_none_belongs_is_told(directory: Path, write: Write) -> None:
    """A policy that silently does not count is a trap; other files are nobody's business."""
    write("global/bsae.yaml", "")
    write("group/web.yaml", "")
    write("group/role/db.yml", "")
    write("README.md", "")
    write("global/.base.yaml.swp", "")
    assert faults(directory) == [
        "global/bsae.yaml:1:1: is not a layer's file; did you mean 'global/base'?",
        "group/role/db.yml:1:1: is not read; rename it to end in .yaml",
        "group/web.yaml:1:1: is not a layer's file; did you mean 'group/role/web'?",
    ]


def test_no_variable_and_no_file_of_this_machine_leaves_with_a_layer(
    directory: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`${…}` is refused; a dollar alone, as in patterns, is a dollar. conf.d is not read either."""
    monkeypatch.setenv("SECRET", "s3cret")
    write("global/base.yaml", 'inputs:\n  a: {type: file, paths: ["/var/log/a"], only: "x$", b: "${SECRET}"}\n')
    write("global/conf.d/more.yaml", "log: {level: debug}\n")
    assert faults(directory) == [
        "global/base.yaml:2:57: inputs.a.b: '${' is not replaced in this file; write the value",
        "global/conf.d/more.yaml:1:1: is not a layer's file; did you mean 'global/compliance'?",
    ]
    document = load_single_yaml(directory / "global" / "base.yaml")
    assert document.data["inputs"]["a"]["only"] == "x$"
    assert list(document.data) == ["inputs"]


def test_a_file_that_is_no_yaml_is_told_and_a_missing_directory(directory: Path, write: Write) -> None:
    """The two ways to have nothing to read."""
    write("global/base.yaml", "a: [")
    assert faults(directory)[0].startswith("global/base.yaml:2:1: is not YAML")
    with pytest.raises(ConfigError, match="there is no such directory"):
        load_policies(directory / "nowhere")


def test_there_is_a_limit_to_the_files(directory: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is allowed, one more is not."""
    monkeypatch.setattr(layers, "MAX_LAYER_FILES", 2)
    write("global/base.yaml", "")
    write("local/emergency.yaml", "")
    assert len(load_policies(directory).layers) == 2
    write("group/role/x.yaml", "")
    assert "holds more than 2 files" in faults(directory)[0]


def test_what_is_stored_is_what_was_loaded(directory: Path, write: Write) -> None:
    """Places, locks and selector included: explain reads them from the store."""
    write("global/base.yaml", "inputs:\n  a:\n    type: file\n    paths: [/var/log/a]\n")
    write("global/compliance.yaml", "locked: [inputs.a]\n")
    write("local/emergency.yaml", "selector: {agents: [x]}\ninputs: {a: null}\n")
    loaded = load_policies(directory)
    stored = Policies.from_plain(loaded.plain())
    assert stored.plain() == loaded.plain()
    assert stored.is_same_as(loaded)
    places = stored.layers["global/base"].places
    assert places["inputs", "a", "paths"] == "policies/global/base.yaml:4"


@pytest.mark.parametrize(
    ("name", "text", "is_same"),
    [
        ("global/base.yaml", "# a comment\nlog:  {level: info}\n", True),
        ("global/base.yaml", "log: {level: debug}\n", False),
        ("global/compliance.yaml", "locked: [log]\n", False),
        ("local/emergency.yaml", "selector: {agents: [y]}\nlog: {level: debug}\n", False),
    ],
)
def test_a_comment_is_no_change_and_a_lock_is_one(
    name: str, text: str, is_same: bool, directory: Path, write: Write
) -> None:
    """Which decides whether `apply` has something to do."""
    write("global/base.yaml", "log: {level: info}\n")
    write("global/compliance.yaml", "")
    write("local/emergency.yaml", "selector: {agents: [x]}\nlog: {level: debug}\n")
    before = load_policies(directory)
    write(name, text)
    assert load_policies(directory).is_same_as(before) is is_same


def test_what_no_single_file_shows_is_told_before_anybody_gets_it(directory: Path, write: Write) -> None:
    """Also for a group that has no agent yet."""
    write("global/base.yaml", "inputs:\n  auth: {type: file, paths: [/var/log/auth.log]}\n")
    write("group/department/web.yaml", "inputs:\n  auth: {type: journald}\n")
    write("group/role/db.yaml", "inputs:\n  slow: {paths: [/var/log/slow.log]}\n")
    found = Resolver(load_policies(directory)).faults([Agent("id1", "web-1", "web")])
    assert found == [
        (
            "policies/group/department/web.yaml:2: inputs.auth.type: is journald here and file in "
            "policies/global/base.yaml:2; give the input another name, and switch the other off with null"
        ),
        (
            "policies/group/role/db.yaml:2: inputs.slow: no layer says its type; add `type`, one of auditd, file, "
            "host_metrics, journald, netflow, snmp_trap, syslog_tcp, syslog_udp, windows_event"
        ),
    ]


def test_an_input_that_was_switched_off_may_come_back_as_another_type(directory: Path, write: Write) -> None:
    """Null ends the old one, so nothing mixes."""
    write("global/base.yaml", "inputs:\n  auth: {type: file, paths: [/var/log/auth.log]}\n")
    write("group/department/web.yaml", "inputs: {auth: null}\n")
    write("local/emergency.yaml", "inputs: {auth: {type: journald}}\n")
    resolver = Resolver(load_policies(directory))
    agent = Agent("id1", "web-1", "web")
    assert resolver.wanted(agent).settings == {"inputs": {"auth": {"type": "journald"}}}
    elsewhere = resolver.faults([agent])  # agents outside web
    assert [one.split(";")[0] for one in elsewhere] == [
        "policies/local/emergency.yaml:1: inputs.auth.type: is journald here and file in policies/global/base.yaml:2"
    ]


def test_a_policy_that_is_too_large_is_told(directory: Path, write: Write) -> None:
    """Each layer is small enough, the two together are not."""
    for name, key in (("global/base", "a"), ("local/emergency", "b")):
        write(f"{name}.yaml", f"inputs: {{{key}: {{type: file, only: {'x' * (MAX_SETTINGS_BYTES // 2)}}}}}\n")
    assert Resolver(load_policies(directory)).faults([]) == [
        f"global/base, local/emergency: together they hold more than {MAX_SETTINGS_BYTES} bytes"
    ]


def test_too_many_inputs_are_told(directory: Path, write: Write) -> None:
    """64 are allowed in one layer and in all together."""
    inputs = ", ".join(f"i{number}: {{type: file}}" for number in range(64))
    write("global/base.yaml", f"inputs: {{{inputs}}}\n")
    assert Resolver(load_policies(directory)).faults([]) == []
    write("local/emergency.yaml", "inputs: {more: {type: file}}\n")
    assert Resolver(load_policies(directory)).faults([]) == [
        "global/base, local/emergency: together they hold 65 inputs, 64 are allowed"
    ]
    write("global/base.yaml", f"inputs: {{{inputs}, more: {{type: file}}}}\n")
    assert "holds 65 inputs, 64 are allowed" in faults(directory)[0]


def test_changes_say_what_was_and_what_will_be(directory: Path, write: Write) -> None:
    """With the line that says so."""
    write("global/base.yaml", "log: {level: info}\nspool: {max_age: 7d}\ninputs: {a: {type: file}}\n")
    before = Resolver(load_policies(directory)).wanted(Agent("x"))
    write("global/base.yaml", "log: {level: debug}\ndelivery: {batch_age: 1s}\ninputs: {a: null}\n")
    found = changes(before, Resolver(load_policies(directory)).wanted(Agent("x")))
    assert [(".".join(one.path), one.before, one.after, one.place.rpartition("/")[2]) for one in found] == [
        ("delivery.batch_age", None, "1s", "base.yaml:2"),
        ("inputs.a", None, "switched off", "base.yaml:3"),
        ("inputs.a.type", "file", None, ""),
        ("log.level", "info", "debug", "base.yaml:1"),
        ("spool.max_age", "7d", None, ""),
    ]
