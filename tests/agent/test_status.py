"""`ndagent status` and `ndagent check`: what they say, and with which exit status."""

import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from agent_process import AgentProcess

from ndagent.__main__ import main
from ndagent.status_command import lines

REPORT: dict[str, Any] = {
    "pid": 42, "agent_id": "abcdefghijklmnop", "group": "web", "ledger": "received 5 · delivered 5 · dropped 0",
    "adds_up": True, "run_id": "ab" * 8, "sent_at_ns": 0, "version": "0.1.0", "os": "linux", "hostname": "h",
    "spools": [
        {"stream": "security_events", "spool_id": "s", "pending_events": 7, "bytes": 2048, "max_bytes": 1 << 30}
    ],
    "inputs": [
        {"name": "app", "type": "file", "state": "running", "received": 5, "dropped": 0, "message": ""},
        {"name": "bad", "type": "file", "state": "failed", "received": 1, "dropped": 2, "message": "no such file"},
    ],
    "shed": [{"input": "app", "events": 12, "since_ns": 1, "until_ns": 2}],
    "policy": {"version": 3, "result": "in_force", "message": ""},
    "trust_bundle": "", "certificate_not_after": 0, "endpoint": "mqtt://c:8883 (10.0.0.1)",
}  # fmt: skip


class Host:
    """An agent's state directory."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "ndagent.yaml"
        self.state = directory / "state"
        self.state.mkdir()
        self.config.write_text(f"state_dir: {self.state}\n")

    def report(self, *, age: float = 1.0, **changes: Any) -> None:
        found = {
            **REPORT,
            "sent_at_ns": int((time.time() - age) * 1e9),
            "certificate_not_after": time.time() + 86400 * 30,
        }
        (self.state / "status.json").write_bytes(orjson.dumps({**found, **changes}))

    def run(self, *command: str) -> int:
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(main([*command, "-c", str(self.config)]))
        return int(ended.value.code or 0)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_line_for_each_thing() -> None:
    """Words as operators read them."""
    found = {**REPORT, "certificate_not_after": 1000 + 86400 * 29.6}
    assert lines(found, age_seconds=1, now=1000) == [
        "agent      runs (pid 42, version 0.1.0)",
        "enrolled   as abcdefghijklmnop, group web; certificate: 30 days left",
        "collector  mqtt://c:8883 (10.0.0.1)",
        "policy     version 3, in force",
        "spool      security_events: 7 events wait; 2KiB of 1GiB",
        "input      app (file): running; 5 events",
        "input      bad (file): failed: no such file; 1 events, 2 lost",
        "given up   12 events of app",
        "ledger     received 5 · delivered 5 · dropped 0",
    ]


def test_exit_status_0_only_if_it_runs_is_enrolled_and_reaches_a_collector(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of the three alone makes it 1, and a line says which."""
    host.report()
    assert host.run("status") == 0
    for changes, words in (
        ({"age": 60}, "has not reported for 60 s"),
        ({"age": -86400}, "has not reported since the clock was set back"),
        ({"agent_id": None}, "enrolled   no: ndagent enroll --url"),
        ({"endpoint": ""}, "collector  none answers"),
    ):
        host.report(**changes)  # type: ignore[arg-type]  # one of them is the age
        capsys.readouterr()
        assert host.run("status") == 1
        assert words in capsys.readouterr().out


def test_hostile_text_reaches_no_terminal(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file's name, a policy, a collector."""
    evil = "\x1b]0;owned\x07\u202e\nagent      runs"
    inputs = [{**REPORT["inputs"][0], "message": evil}]
    host.report(inputs=inputs, endpoint=evil, policy={"version": 1, "result": "refused", "message": evil})
    host.run("status")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    assert sum(line.startswith("agent ") for line in out.splitlines()) == 1


def test_json_for_scripts(host: Host, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The report itself."""
    host.report()
    assert host.run("status", "--json") == 0
    assert orjson.loads(capfdbinary.readouterr().out)["agent_id"] == "abcdefghijklmnop"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"sent_at_ns": "x"}', b"\xff"])
def test_a_file_that_is_no_report_is_told(host: Host, capsys: pytest.CaptureFixture[str], damage: bytes) -> None:
    """Not with a traceback."""
    (host.state / "status.json").write_bytes(damage)
    assert host.run("status") == 1
    assert "is not a report of this version" in capsys.readouterr().err


def test_no_report_yet_and_one_that_cannot_be_read(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sentences, exit status 1."""
    assert host.run("status") == 1
    assert "no agent has run here yet" in capsys.readouterr().err
    (host.state / "status.json").mkdir()
    assert host.run("status") == 1
    assert "run it as root, or as the agent's user" in capsys.readouterr().err
    host.config.write_text("inputs: [")
    assert host.run("status") == 1
    assert "ndagent.yaml:2:1: is not YAML" in capsys.readouterr().err


def test_check_says_what_the_agent_would_stumble_over(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """Valid, with warnings: exit status 0; and nothing is written."""
    before = sorted(host.state.rglob("*"))
    assert host.run("check") == 0
    said = capsys.readouterr()
    assert "valid; inputs: none; outputs: mqtt, https" in said.out
    assert "inputs: is empty; nothing is read" in said.err
    assert "not enrolled: ndagent enroll --url" in said.err
    assert sorted(host.state.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("outputs: {mqtt: {endpoints: [collector]}}", "1:", "is no endpoint; write"),
        ("outputs: {https: {endpoints: []}}", "1:", "should not be empty"),
        ("outputs: {https: {proxy: ftp://p}}", "1:", "write http://proxy.example.net:3128"),
        ("outputs: {}", "1:", "is empty"),
        ("delivery: {batch_age: 61s}", "1:", "60"),
        ("outputs:\n  carrier_pigeon: {}", "2:", "carrier_pigeon"),
    ],
)
def test_check_tells_a_mistake_with_its_place(
    host: Host, capsys: pytest.CaptureFixture[str], text: str, place: str, words: str
) -> None:
    """Line and column; exit status 1."""
    host.config.write_text(text + "\n")
    assert host.run("check") == 1
    said = capsys.readouterr().err
    assert f"ndagent.yaml:{place}" in said
    assert words in said


def test_a_running_agent_reports_within_seconds(tmp_path: Path) -> None:
    """Without a collector: it runs, is not enrolled, and its inputs are told; after its end the report is stale."""
    agent = AgentProcess(tmp_path, settings={})
    (agent.logs / "app.log").write_text("one\ntwo\n")
    agent.start()
    try:
        agent.process.wait_until(lambda: agent.pending() == 2, "two events waiting", 30)
        done = agent.command("status")
        assert done.returncode == 1
        assert "agent      runs" in done.stdout
        assert "enrolled   no" in done.stdout
        assert "input      app (file): running; 2 events" in done.stdout
        assert (agent.state / "status.json").stat().st_mode & 0o777 == 0o600
    finally:
        assert agent.stop() == 0
