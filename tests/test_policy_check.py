"""What a host lets a policy do: types, paths through links, secrets, and other people's keys."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from ndagent.config import PolicyAllowConfig as PolicyAllow
from ndagent.core.policy_settings import PolicySettings, overlay
from ndagent.core.settings import ConfigPath, Duration, Settings
from ndagent.inputs.file_paths import _covers
from ndagent.policy_check import MAX_REASONS, why_refused
from ndagent.policy_paths import PathGuard

PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n"


class FileConfig(Settings):
    """As an input of type file may look."""

    type: str = "file"
    paths: tuple[str, ...] = Field(min_length=1)
    exclude: tuple[str, ...] = ()
    pattern: str = ""


class AuditdConfig(Settings):
    """An input with a path that has a default."""

    type: str = "auditd"
    path: ConfigPath = Path("/var/log/audit/audit.log")
    flush: Duration = 1.0


class Listener(Settings):
    """Not in the default of policy_allow."""

    type: str = "syslog_udp"


CONFIGS: dict[str, type[Settings]] = {"file": FileConfig, "auditd": AuditdConfig, "syslog_udp": Listener}


def config_of(kind: str) -> type[Settings]:
    if kind == "journald":
        raise ImportError("libsystemd is missing")
    return CONFIGS[kind]


def refused(settings: dict[str, Any], allow: PolicyAllow | None = None, **own_inputs: str) -> list[str]:
    allow = allow or PolicyAllow()
    guard = PathGuard(allow.paths, own_directories=[Path("/var/lib/ndagent")])
    return why_refused(settings, allow=allow, guard=guard, config_of=config_of, own_inputs=own_inputs)


def file(*paths: str, **more: object) -> dict[str, Any]:
    return {"inputs": {"a": {"type": "file", "paths": list(paths), **more}}}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"log": {"level": "debug"}, "spool": {"max_bytes": "1GiB"}, "delivery": {"batch_age": "2s"}},
        {"inputs": {"gone": None, "own": None}},
        file("/var/log/auth.log", "/var/log/*.log", "/var/log/**", "/var/log/nginx/**/*.log", exclude=["*.gz"]),
        {"inputs": {"own": {"type": "auditd"}}},
    ],
)
def test_what_is_allowed_is_taken(settings: dict[str, Any]) -> None:
    """By the default of policy_allow, a host's own input of an allowed type included."""
    assert refused(settings, own="file") == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"log": {"level": "loud"}}, "log.level: Input should be 'debug', 'info', 'warning' or 'error'"),
        ({"endpoints": {}}, "endpoints: Extra inputs are not permitted"),
        ({"inputs": {"a": {"type": "syslog_udp"}}}, "inputs.a.type: syslog_udp is not in policy_allow.inputs"),
        (
            {"inputs": {"a": {"type": "host_metrics"}}},
            ("inputs.a.type: this version of ndagent has no input host_metrics"),
        ),
        (
            {"inputs": {"a": {"type": "journald"}}},
            ("inputs.a.type: journald cannot run on this host: libsystemd is missing"),
        ),
        ({"inputs": {"a": {}}}, "inputs.a.type: None is not in policy_allow.inputs"),
        ({"inputs": {"own": None}}, "inputs.own: is the host's own, of a type that is not in policy_allow.inputs"),
        (file("/var/log/a", speed=1), "inputs.a.speed: Extra inputs are not permitted"),
        (file(), "inputs.a.paths: Tuple should have at least 1 item after validation, not 0"),
        (file("/srv/app.log"), "inputs.a.paths[0]: /srv/app.log is outside policy_allow.paths (/var/log/**)"),
        (file("/var/**/x"), "inputs.a.paths[0]: /var/**/x is outside policy_allow.paths (/var/log/**)"),
        (file("/**"), "inputs.a.paths[0]: /** is outside policy_allow.paths (/var/log/**)"),
        (
            file("/var/log/../../etc/passwd"),
            (
                "inputs.a.paths[0]: '/var/log/../../etc/passwd' is not an absolute path; "
                "policies have no directory of their own"
            ),
        ),
        (
            file("/var/log/a", pattern="/etc/passwd"),
            ("inputs.a.pattern: /etc/passwd is outside policy_allow.paths (/var/log/**)"),
        ),
        (file("/var/log/a", pattern="~/x"), "inputs.a.pattern: ~/x is not an absolute path"),
        (
            {"inputs": {"a": {"type": "auditd", "path": "/etc/shadow"}}},
            ("inputs.a.path: /etc/shadow may hold secrets and is never read for a policy"),
        ),
    ],
)
def test_what_is_not_is_refused_with_path_and_reason(settings: dict[str, Any], reason: str) -> None:
    """One thing at a time."""
    assert refused(settings, own="syslog_udp") == [reason]


def test_a_default_of_the_input_is_judged_too() -> None:
    """A host that allows auditd but not its file says so twice."""
    allow = PolicyAllow(inputs=("auditd",), paths=("/srv/**",))
    assert refused({"inputs": {"a": {"type": "auditd"}}}, allow) == [
        "inputs.a.path: /var/log/audit/audit.log is outside policy_allow.paths (/srv/**)"
    ]


def test_a_host_can_keep_its_inputs_to_itself() -> None:
    """With empty lists nothing can be added, changed or switched off."""
    allow = PolicyAllow(inputs=(), paths=())
    assert len(refused(file("/var/log/a"), allow)) == 1
    assert len(refused({"inputs": {"own": None}}, allow, own="file")) == 1
    assert refused({"log": {"level": "debug"}}, allow) == []


def test_the_reasons_are_bounded() -> None:
    """They travel in a status of bounded size."""
    assert len(refused({"inputs": {f"i{number}": {"type": "x_y"} for number in range(40)}})) <= MAX_REASONS
    assert len(refused({"inputs": {f"i{number}": {"type": "syslog_udp"} for number in range(40)}})) == MAX_REASONS


# ---- files as they are


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A directory that the host allows, with a log in it."""
    (tmp_path / "logs" / "app").mkdir(parents=True)
    (tmp_path / "logs" / "app" / "x.log").write_text("hello\n")
    return tmp_path / "logs"


@pytest.fixture
def guard(logs: Path, tmp_path: Path) -> PathGuard:
    """Allows logs/**; the password file of this test is tmp/shadow."""
    (tmp_path / "shadow").write_text("root:!:1::::::\n")
    state = logs / "agent-state"
    state.mkdir()
    return PathGuard(
        [f"{logs}/**"], own_directories=[state], password_files=[str(tmp_path / "shadow"), "/nowhere/shadow"]
    )  # fmt: skip


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    """Closed after the test."""
    opened: list[int] = []
    yield opened
    for one in opened:
        os.close(one)


def why_not(guard: PathGuard, path: Path, descriptors: list[int]) -> tuple[str | None, str | None]:
    """What is said about the path, and about the file that it opens."""
    descriptors.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    return guard.why_not(str(path)), guard.why_not_opened(descriptors[-1])


def test_a_log_may_be_read(guard: PathGuard, logs: Path, descriptors: list[int]) -> None:
    """As it is, and through a link that stays inside."""
    assert why_not(guard, logs / "app" / "x.log", descriptors) == (None, None)
    (logs / "current").symlink_to(logs / "app")
    assert why_not(guard, logs / "current" / "x.log", descriptors) == (None, None)


def test_a_link_that_leads_out_is_seen(guard: PathGuard, logs: Path, tmp_path: Path, descriptors: list[int]) -> None:
    """By name, and for a link that was put there after the name was judged, by the open file."""
    (tmp_path / "secret.txt").write_text("x")
    (logs / "out.log").symlink_to(tmp_path / "secret.txt")
    for reason in why_not(guard, logs / "out.log", descriptors):
        assert reason is not None
        assert "outside policy_allow.paths" in reason
    (logs / "dir").symlink_to(tmp_path)
    assert guard.why_not(f"{logs}/dir/*.txt") is not None


def test_an_allowed_directory_may_be_a_link_itself(logs: Path, tmp_path: Path, descriptors: list[int]) -> None:
    """/var/log on a disk of its own: the host's word is followed the same way."""
    (tmp_path / "var-log").symlink_to(logs)
    guard = PathGuard([f"{tmp_path}/var-log/**"], own_directories=[])
    assert why_not(guard, tmp_path / "var-log" / "app" / "x.log", descriptors) == (None, None)
    assert guard.why_not(f"{tmp_path}/var-log/*/x.log") is None


SECRETS = ["server.key", "id_ed25519", "ssh_host_rsa_key", "shadow", "gshadow-", "a.pem", ".netrc"]


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_known_by_their_names(name: str, guard: PathGuard, logs: Path, descriptors: list[int]) -> None:
    """In a directory that the host allows, too."""
    (logs / name).write_text("x")
    assert all(reason is not None and "secrets" in reason for reason in why_not(guard, logs / name, descriptors))
    (logs / "harmless.log").symlink_to(logs / name)
    assert None not in why_not(guard, logs / "harmless.log", descriptors)


def test_a_password_file_is_known_under_any_name(
    guard: PathGuard, logs: Path, tmp_path: Path, descriptors: list[int]
) -> None:
    """A hard link has another name and the same inode."""
    (logs / "app" / "y.log").hardlink_to(tmp_path / "shadow")
    said = why_not(guard, logs / "app" / "y.log", descriptors)
    assert said == (None, f"is {tmp_path / 'shadow'} by another name")


@pytest.mark.parametrize("text", [PRIVATE_KEY, "\n  -----BEGIN PRIVATE KEY-----\n", "PuTTY-User-Key-File-3: ssh-x"])
def test_a_private_key_is_known_by_its_content(text: str, guard: PathGuard, logs: Path, descriptors: list[int]) -> None:
    """Whatever it is called."""
    (logs / "notes.txt").write_text(text)
    assert why_not(guard, logs / "notes.txt", descriptors)[1] == "holds a private key"


def test_a_log_that_speaks_of_keys_is_a_log(guard: PathGuard, logs: Path, descriptors: list[int]) -> None:
    """Else a line in it could keep the rest from being read."""
    (logs / "app" / "x.log").write_text(f"Nov 25 app: got {PRIVATE_KEY}")
    assert why_not(guard, logs / "app" / "x.log", descriptors) == (None, None)


def test_the_agent_and_the_kernel_are_closed(guard: PathGuard, logs: Path, descriptors: list[int]) -> None:
    """State directory, /proc, /sys, /dev, keys' directories: even where a host allows everything."""
    everything = PathGuard(["/**"], own_directories=[logs / "agent-state"])
    for path in ("/proc/self/environ", "/sys/kernel", "/dev/sda", "/root/.ssh/known_hosts", "/etc/ssl/private/x"):
        assert everything.why_not(path) is not None
    (logs / "agent-state" / "spool").write_text("x")
    assert None not in why_not(guard, logs / "agent-state" / "spool", descriptors)
    assert everything.why_not("/etc/passwd") is None


def test_a_deleted_file_is_judged_by_where_it_was(guard: PathGuard, logs: Path, descriptors: list[int]) -> None:
    """Rotation removes logs that are still being read."""
    descriptors.append(os.open(logs / "app" / "x.log", os.O_RDONLY))
    (logs / "app" / "x.log").unlink()
    assert guard.why_not_opened(descriptors[0]) is None


names = st.sampled_from(["a", "b", "ab"])
glob_parts = st.lists(names | st.sampled_from(["*", "**", "a*", "?"]), max_size=4)


@given(glob_parts, glob_parts, st.lists(names, max_size=4))
def test_a_glob_that_is_covered_matches_nothing_more(allowed: list[str], asked: list[str], path: list[str]) -> None:
    """Sound: what the policy's glob can match, the host's does."""
    if _covers(allowed, asked) and _covers(asked, path):
        assert _covers(allowed, path)


def test_many_stars_cost_no_exponential_time() -> None:
    """A policy of 20 `**` against a deep path."""
    assert not _covers(["**", "a"] * 20, ["a"] * 200 + ["b"])


# ---- settings


def test_a_policy_lies_over_the_hosts_own_settings() -> None:
    """Inputs are replaced whole, other sections key by key, null switches off; neither argument is changed."""
    own: dict[str, Any] = {"inputs": {"a": {"type": "file", "x": 1}, "b": {}}, "spool": {"max_bytes": 1}, "name": "n"}
    policy: dict[str, Any] = {"inputs": {"a": {"type": "auditd"}, "b": None}, "spool": {"max_age": "1d"}}
    assert overlay(own, policy) == {
        "inputs": {"a": {"type": "auditd"}}, "spool": {"max_bytes": 1, "max_age": "1d"}, "name": "n",
    }  # fmt: skip
    assert overlay(own, {}) == own
    assert (own["inputs"]["b"], policy["inputs"]["b"]) == ({}, None)
    assert overlay({}, policy)["inputs"] == {"a": {"type": "auditd"}}


@pytest.mark.parametrize(
    "settings",
    [
        {"spool": {"max_bytes": 2**20 - 1}},
        {"spool": {"max_age": "59s"}},
        {"delivery": {"bytes_per_second": 1023}},
        {"delivery": {"events_per_second": 0}},
        {"delivery": {"batch_bytes": "5MiB"}},
        {"delivery": {"batch_age": "61s"}},
        {"outputs": {"https": {"endpoints": ["elsewhere:1"]}}},
        {"inputs": {"Upper": {}}},
        {"tls": {}},
    ],
)
def test_a_policy_cannot_strangle_or_redirect_an_agent(settings: dict[str, Any]) -> None:
    """Every limit at its edge, and no key that says where events go."""
    with pytest.raises(ValidationError):
        PolicySettings.model_validate(settings)
