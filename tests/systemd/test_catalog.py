"""Each message that says that a state changed is explained by `journalctl -x`, and nothing else is."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from collector_process import ROOT

from ndagent.__main__ import build_parser as agent
from ndcollector.__main__ import build_parser as collector

CATALOGS = ROOT / "systemd"


def load() -> ModuleType:
    """packaging/catalog.py, which is no package."""
    spec = importlib.util.spec_from_file_location("catalog", ROOT / "packaging" / "catalog.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


catalog = load()


def test_every_message_of_the_code_is_explained_and_every_explanation_has_a_message() -> None:
    """Both ways: an id without words helps nobody, words without an id are never shown."""
    assert set(catalog.ENTRIES) == set(catalog.ids())
    logged = {name for program in catalog.PROGRAMS for name in catalog.names_of(program)}
    assert logged == set(catalog.ids()), "a message that nobody logs"


def test_identities_are_128_bits_and_no_two_are_the_same() -> None:
    """systemd tells messages apart by nothing else."""
    found = list(catalog.ids().values())
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("program", ["ndcollector", "ndagent"])
def test_the_catalogues_are_those_of_the_table(program: str) -> None:
    """Made by packaging/catalog.py, and shipped."""
    shipped = (CATALOGS / f"{program}.catalog").read_text()
    assert shipped == catalog.catalog(program), "run: .venv/bin/python packaging/catalog.py"


@pytest.mark.parametrize("program", ["ndcollector", "ndagent"])
def test_the_commands_of_ours_that_are_advised_exist(program: str) -> None:
    """A command that is mistyped in a night is one that somebody believes in."""
    parsers = {"ndcollector": collector(), "ndagent": agent()}
    commands = re.findall(r"(?m)^Next:\n    (.*)$", (CATALOGS / f"{program}.catalog").read_text())
    assert len(commands) == len(catalog.names_of(program))
    for command in commands:
        words = command.replace("@SYSLOG_IDENTIFIER@", program).partition(" > ")[0].split()
        if words[0] in parsers:
            parsers[words[0]].parse_args(words[1:])


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="journalctl is not here; apt-get install systemd")
def test_systemd_takes_them_up(tmp_path: Path) -> None:
    """Both at once, as on a host that has agent and collector."""
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    for program in catalog.PROGRAMS:
        shutil.copy(CATALOGS / f"{program}.catalog", place)
    done = subprocess.run(
        ["journalctl", "--update-catalog", f"--root={tmp_path}"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    listed = subprocess.run(
        ["journalctl", "--list-catalog", f"--root={tmp_path}"], capture_output=True, text=True, timeout=60, check=True,
        env={"SYSTEMD_CATALOG": str(tmp_path / "var/lib/systemd/catalog/database")},
    ).stdout  # fmt: skip
    assert {line.split()[0] for line in listed.splitlines()} == set(catalog.ids().values())
