"""The units are what systemd understands, and as closed as they say."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from collector_process import ROOT

UNITS = ROOT / "systemd"
ANALYZE = shutil.which("systemd-analyze")

pytestmark = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here; apt-get install systemd")

UNKNOWN_BEFORE_254 = re.compile(r"Unknown key '(RestartSteps|RestartMaxDelaySec)' in section \[Service\], ignoring")


def analyze(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze …`."""
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *words], capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.mark.parametrize(
    ("unit", "most"), [("ndcollector.service", 1.5), ("ndcollector@.service", 1.5), ("ndagent.service", 2.5)]
)
def test_a_unit_is_exposed_no_more_than_promised(unit: str, most: float) -> None:
    """systemd's own measure; 1.5 for the collector, which strangers talk to."""
    said = analyze("security", "--offline=yes", str(UNITS / unit)).stdout
    (level,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert float(level) <= most, said


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """An unknown key is only a warning to it, and a protection that is not there to us."""
    for unit in UNITS.iterdir():
        if unit.suffix in {".service", ".socket", ".slice"}:  # the programs are not installed here
            text = re.sub(r"(?m)^(Exec\w+=)(ndcollector|ndagent) .*$", r"\1/bin/true", unit.read_text())
            (tmp_path / unit.name).write_text(text)
    units = sorted(str(unit) for unit in tmp_path.iterdir())
    done = analyze("verify", "--man=no", *units, environment={"SYSTEMD_UNIT_PATH": f"{tmp_path}:"})
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert [line for line in ours if not UNKNOWN_BEFORE_254.search(line)] == []
    assert done.returncode == 0, done.stderr


def test_sockets_are_those_of_the_shipped_configuration() -> None:
    """A socket on another address than the input's would be held by systemd and served by nobody."""
    inputs = yaml.safe_load((ROOT / "conf" / "ndcollector.yaml").read_text())["inputs"]
    held: dict[str, list[str]] = {}
    for unit in UNITS.glob("*.socket"):
        name = re.search(r"(?m)^FileDescriptorName=(.*)$", unit.read_text())
        assert name is not None
        held[name[1]] = re.findall(r"(?m)^ListenStream=(.*)$", unit.read_text())
    wanted = {"syslog_tls": inputs["syslog_tls"]["listen"], "mqtt": ["0.0.0.0:8883"], "https": ["0.0.0.0:8443"]}
    assert held == wanted
    assert inputs["mqtt"] == inputs["https"] == {}, "they listen elsewhere than on their defaults now"


def test_an_instance_differs_only_in_where_its_things_are() -> None:
    """What is hardened or explained in one and forgotten in the other would be found by an attacker."""

    def settings(unit: str) -> list[str]:
        text = (UNITS / unit).read_text().replace("-%i", "").replace("/instances/%i", "").replace(" %i", "")
        return list(dict.fromkeys(line for line in text.splitlines() if line and not line.startswith("#")))

    instance = (UNITS / "ndcollector@.service").read_text()
    assert re.findall(r"(?m)^ReadWritePaths=-(.*)$", instance) == [
        "/etc/ndcollector/pki", "/etc/ndcollector/instances/%i/pki",
    ], "the list that docs/systemd.md has it share is signed by it, too"  # fmt: skip
    assert settings("ndcollector@.service") == settings("ndcollector.service")


def test_the_reload_that_systemd_runs_is_a_command_of_ours() -> None:
    """`systemctl reload` waits for it and fails as it does."""
    from ndagent.__main__ import build_parser as agent
    from ndcollector.__main__ import build_parser as collector

    for unit, parser in (("ndcollector", collector()), ("ndcollector@", collector()), ("ndagent", agent())):
        text = (UNITS / f"{unit}.service").read_text()
        commands = re.findall(r"(?m)^Exec(?:Start|Reload)=\S+ (.*)$", text)
        assert [parser.parse_args(command.split()).command for command in commands] == ["run", "reload"]
        assert json.dumps(commands).count("-c /etc/nd") == 2
