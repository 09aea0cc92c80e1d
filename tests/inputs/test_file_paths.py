"""Which files globs mean, what a policy may name, and names as text."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.inputs import file_paths
from ndagent.inputs.file_paths import Globs, display, filesystem_of, path_is_allowed, stem


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, *patterns: str, exclude: tuple[str, ...] = ()) -> set[str]:
    """Wanted files, relative to the root; `look` and `wants` must agree."""
    globs = Globs([f"{root}/{pattern}" for pattern in patterns], exclude)
    look = globs.look()
    wanted = {one.path for one in look.files if one.is_wanted}
    everything = {str(path) for path in root.rglob("*") if path.is_file()}
    assert {path for path in everything if globs.wants(path)} == wanted
    return {str(Path(path).relative_to(root)) for path in wanted}


def test_globs_match_within_a_name_and_across_directories(tmp_path):
    """As a shell does, hidden names left out."""
    touch(tmp_path, "a.log", "b.txt", ".h.log", "d/a.log", "d/e/a.log", "d/.h/a.log", "x[1].log")
    assert found(tmp_path, "*.log") == {"a.log", "x[1].log"}
    assert found(tmp_path, "**/*.log") == {"a.log", "x[1].log", "d/a.log", "d/e/a.log"}
    assert found(tmp_path, "d/**") == {"d/a.log", "d/e/a.log"}
    assert found(tmp_path, "?.*", ".*.log") == {"a.log", "b.txt", ".h.log"}
    assert found(tmp_path, "*/a.log", "[ab].log") == {"d/a.log", "a.log"}
    assert found(tmp_path, "x[[]1].log") == {"x[1].log"}
    assert found(tmp_path, "missing/*.log") == set()


def test_excludes_name_files_or_whole_paths(tmp_path):
    """With a slash, whole paths."""
    touch(tmp_path, "a.log", "d/a.log", "d/debug.log")
    assert found(tmp_path, "**/*.log", exclude=("debug*",)) == {"a.log", "d/a.log"}
    assert found(tmp_path, "**/*.log", exclude=(f"{tmp_path}/d/*",)) == {"a.log"}


def test_rotated_siblings_are_seen_but_not_wanted(tmp_path):
    """So that what rotation does between two looks is found."""
    names = ("app.log", "app.log.1", "app.log-20261125", "app.log.2.gz", "app.log.bak", "other.log.1", "app.log.10")
    touch(tmp_path, *names)
    look = Globs([f"{tmp_path}/app.log"]).look()
    seen = {Path(one.path).name: one.is_wanted for one in look.files}
    assert seen == {"app.log": True, "app.log.1": False, "app.log-20261125": False, "app.log.10": False}


def test_directories_that_are_not_there_yet_are_waited_for(tmp_path):
    """The nearest one that exists is worth watching."""
    touch(tmp_path, "a/x.log")
    look = Globs([f"{tmp_path}/a/b/c/*.log", f"{tmp_path}/a/*.log"]).look()
    assert look.directories == {f"{tmp_path}/a"}


def test_links_that_lead_in_circles_end(tmp_path):
    """`**` follows no link, a wild component may, and only so deep."""
    touch(tmp_path, "d/a.log")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    look = Globs([f"{tmp_path}/**/*.log"]).look()
    assert [one.path for one in look.files] == [f"{tmp_path}/d/a.log"]


def test_directories_in_one_look_are_bounded(tmp_path, monkeypatch):
    """And the look says that it was not complete."""
    monkeypatch.setattr(file_paths, "MAX_DIRECTORIES", 5)
    touch(tmp_path, *(f"{number}/a.log" for number in range(4)))
    assert Globs([f"{tmp_path}/*/a.log"]).look().is_complete
    touch(tmp_path, "4/a.log", "5/a.log")
    assert not Globs([f"{tmp_path}/*/a.log"]).look().is_complete


@pytest.mark.parametrize(
    ("name", "before"),
    [("app.log", "app.log"), ("app.log.1", "app.log"), ("app.log.12.gz", "app.log"), ("app.log-20261125", "app.log"),
     ("app.log-20261125-1795600000", "app.log"), ("app.log.2026-11-25_10:00", "app.log"), ("1", "1"), ("a1", "a1"),
     ("messages-20261125.xz", "messages"), ("app2.log", "app2.log")],
)  # fmt: skip
def test_the_name_before_rotation(name, before):
    """logrotate's numbers and dates, log4j's dates."""
    assert stem(name) == before


@given(st.binary(min_size=1, max_size=30))
def test_any_name_becomes_text_that_can_be_read_back(raw):
    """Percent-escaped only where it must be."""
    text = display(os.fsdecode(raw))
    text.encode()
    try:
        assert text == raw.decode()
    except UnicodeDecodeError:
        from urllib.parse import unquote_to_bytes

        assert unquote_to_bytes(text) == raw


class TestPolicy:
    """`policy_allow.paths` bounds what a policy may make an agent read."""

    @pytest.mark.parametrize(
        ("path", "allowed"),
        [("/var/log/syslog", ["/var/log/*"]), ("/var/log/a/b.log", ["/var/log/**"]), ("/var/log/x", ["/var/log/x"]),
         ("/var/log/*.log", ["/var/log/**"]), ("/var/log/*.log", ["/var/log/*.log"]), ("/var/log/*", ["/var/log/*"]),
         ("/var/log/**/*.log", ["/var/log/**"]), ("/var/log/./x", ["/var/log/x"]), ("/var//log/x", ["/var/log/x"])],
    )  # fmt: skip
    def test_what_lies_within_is_allowed(self, path, allowed):
        """Files, and globs whose every match lies within."""
        assert path_is_allowed(path, allowed)

    @pytest.mark.parametrize(
        ("path", "allowed"),
        [("/etc/shadow", ["/var/log/**"]), ("/var/log/../../etc/shadow", ["/var/log/**"]),
         ("/var/log/a/b", ["/var/log/*"]), ("/var/log", ["/var/log/**"]), ("/var/logs/x", ["/var/log/**"]),
         ("/var/log/*/../../../etc/shadow", ["/var/log/**"]), ("/var/log/**", ["/var/log/*"]),
         ("/var/log/*", ["/var/log/*.log"]), ("/**", ["/var/log/**"]), ("x", ["**", "/**x"]), ("", ["/**"]),
         ("/var/log/x\0", ["/var/log/**"]), ("/var/log/x", []), ("/var/log/[ab]", ["/var/log/a"]),
         ("/var/log/x", ["var/log/*"])],
    )  # fmt: skip
    def test_what_leads_outside_is_not(self, path, allowed):
        """Whatever it looks like."""
        assert not path_is_allowed(path, allowed)

    def test_links_are_followed_before_the_answer(self, tmp_path):
        """On either side."""
        touch(tmp_path, "logs/real.log", "secret/key")
        (tmp_path / "logs" / "link.log").symlink_to(tmp_path / "secret" / "key")
        (tmp_path / "logs" / "dir").symlink_to(tmp_path / "secret")
        (tmp_path / "alias").symlink_to(tmp_path / "logs")
        allowed = [f"{tmp_path}/logs/**"]
        assert path_is_allowed(f"{tmp_path}/logs/real.log", allowed)
        assert not path_is_allowed(f"{tmp_path}/logs/link.log", allowed)
        assert not path_is_allowed(f"{tmp_path}/logs/dir/key", allowed)
        assert not path_is_allowed(f"{tmp_path}/logs/dir/*", allowed)
        assert path_is_allowed(f"{tmp_path}/alias/real.log", allowed)
        assert path_is_allowed(f"{tmp_path}/logs/real.log", [f"{tmp_path}/alias/*"])


def test_the_file_system_of_a_path_is_its_deepest_mount():
    """The lines are those of proc(5)."""
    mounts = (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "40 22 0:40 / /mnt/log\\040files rw - nfs4 server:/x rw\n"
        "41 22 0:41 / /mnt rw - xfs /dev/sdb rw\n"
    )
    assert filesystem_of("/var/log", mounts) == "ext4"
    assert filesystem_of("/mnt/log files/a", mounts) == "nfs4"
    assert filesystem_of("/mnt/logs", mounts) == "xfs"
    assert filesystem_of("/mntx", "") == ""
