"""State files that a power cut or a person has damaged: the agent starts, and says which file and what now."""

import os
import signal
from pathlib import Path

import orjson
import pytest
from agent_process import AgentProcess

IDENTITY = {
    "agent_id": "a" * 16,
    "endpoints": {"mqtt": ["localhost:1"], "https": ["localhost:1"]},
    "ca": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "renew_after": 1,
    "not_after": 2,
    "policy_key": None,
    "group": None,
    "pair": "pair.pem",
}
DAMAGED = {
    "identity/identity.json": [orjson.dumps(IDENTITY), orjson.dumps({**IDENTITY, "ca": "x"}), b"", b"[]"],
    "shed.json": [b"[{}]", b'[{"input":"a","events":"x","since_ns":1,"until_ns":2}]', b"{"],
    "checkpoints/security_events.checkpoint": [b"", b"\0" * 100],
}
CASES = [(name, content) for name, contents in DAMAGED.items() for content in contents]


@pytest.mark.parametrize(("name", "content"), CASES, ids=[f"{name}-{content[:8]!r}" for name, content in CASES])
def test_the_agent_starts_and_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    """A host whose agent does not start is a host nobody watches."""
    agent = AgentProcess(tmp_path, settings={"shutdown_timeout": "0s"})
    path = agent.state / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    (path.parent / "pair.pem").touch()
    agent.start()
    assert agent.stop() == 0
    assert agent.said(path.name) or agent.said("pair.pem")
    assert not agent.said("Traceback")


def test_a_state_directory_that_cannot_be_used_is_told_without_a_traceback(tmp_path: Path) -> None:
    """What stops it then are parts that never began."""
    agent = AgentProcess(tmp_path, settings={"shutdown_timeout": "0s"})
    agent.state.write_text("not a directory")
    done = agent.command("run")
    assert done.returncode == 1
    assert "cannot start: state_dir" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_agent_on_the_same_state_is_refused_before_it_writes(tmp_path: Path) -> None:
    """`ndagent run` by hand beside the service: recovering positions and policies writes, and is the first one's."""
    agent = AgentProcess(tmp_path, settings={"shutdown_timeout": "0s"})
    (agent.logs / "app.log").write_text("one\n")
    agent.start()
    segments = agent.state / "spool" / "security_events"
    agent.process.wait_until(lambda: list(segments.glob("*.seg")), "the line is in the spool", 20)
    os.kill(agent.process.pid, signal.SIGSTOP)
    status = Path(f"/proc/{agent.process.pid}/stat")  # a signal stops it only some time later
    agent.process.wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped", 20)
    saved = agent.state / "checkpoints" / "security_events.checkpoint"
    saved.unlink(missing_ok=True)
    done = agent.command("run")
    assert not saved.exists()
    os.kill(agent.process.pid, signal.SIGCONT)
    assert done.returncode == 1
    assert f"process {agent.process.pid} has" in done.stderr
    assert "Traceback" not in done.stderr
    assert agent.stop() == 0
