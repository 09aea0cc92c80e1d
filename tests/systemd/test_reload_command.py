"""`ndcollector reload` and `ndagent reload`, which systemd runs, wait for the reload and tell how it went."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import AgentProcess
from collector_site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A running collector."""
    found = Site(tmp_path)
    with found.collector:
        yield found


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    """A running agent that belongs to nobody."""
    found = AgentProcess(tmp_path / "agent", settings={})
    found.start()
    yield found
    found.kill()


def test_a_collector_that_took_its_new_configuration_says_so(site: Site) -> None:
    """It has it when the command returns, which nobody can say of a signal."""
    site.change(lambda config: config["log"].update(level="debug") if "log" in config else config.update(log={}))
    done = site.command("reload")
    assert (done.returncode, done.stdout) == (0, "reloaded\n")
    assert "reloaded: " in site.collector.process.log.read_text()


def test_a_collector_that_keeps_its_old_configuration_says_why(site: Site) -> None:
    """Here a change that only a restart can bring; it goes on."""
    site.change(lambda config: config.update(node_name="another"))
    done = site.command("reload")
    assert done.returncode == 1
    assert "node_name: changed, which needs a restart" in done.stderr
    assert "goes on as before" in done.stderr
    assert site.not_ready() == []


def test_a_reload_by_systemd_asks_the_daemon_whatever_the_file_says(site: Site, tmp_path: Path) -> None:
    """A secret that is shown to the daemon alone, or another socket: it is the daemon's to judge."""
    socket = next(file for file in tmp_path.rglob("*") if file.is_socket())
    by_systemd = {**os.environ, "RUNTIME_DIRECTORY": str(socket.parent), "MAINPID": str(site.collector.pid)}
    command = [sys.executable, "-m", "ndcollector", "reload", "-c", str(site.collector.config)]
    site.change(lambda config: config["admin"].update(socket=str(tmp_path / "other")))
    moved = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=by_systemd)
    assert moved.returncode == 1
    assert "admin: changed, which needs a restart" in moved.stderr
    site.change(lambda config: config.update(node_name="${file:/none}"))
    unreadable = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=by_systemd)
    assert unreadable.returncode == 1
    assert "node_name: /none does not exist" in unreadable.stderr
    assert "needs no configuration" not in unreadable.stderr


def test_a_collector_that_does_not_run_cannot_reload(tmp_path: Path) -> None:
    """And says how to see why."""
    done = Site(tmp_path).command("reload")
    assert done.returncode == 1
    assert "systemctl status ndcollector" in done.stderr


def test_an_agent_tells_how_a_reload_went(agent: AgentProcess) -> None:
    """By its status file; the process is the one that systemd names in MAINPID."""
    mine = {"MAINPID": str(agent.process.pid)}
    before = agent.said("reloaded: ")
    done = agent.command("reload", environment=mine)
    assert (done.returncode, done.stdout) == (0, "reloaded\n"), done.stderr
    assert agent.said("reloaded: ") > before
    agent.configure({**agent.settings, "host_name": "another"})
    refused = agent.command("reload", environment=mine)
    assert refused.returncode == 1
    assert "host_name: changed, which needs a restart" in refused.stderr
    agent.configure({**agent.settings, "host_nam": "another"})
    refused = agent.command("reload", environment=mine)
    assert refused.returncode == 1
    assert "ndagent.yaml:" in refused.stderr
    assert agent.process.returncode is None


def test_an_agent_that_is_not_named_or_not_there_gets_no_signal(tmp_path: Path) -> None:
    """The number in an old status file may be somebody else's process by now."""
    agent = AgentProcess(tmp_path, settings={})
    assert agent.command("reload").returncode == 2
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    done = agent.command("reload", "--pid", str(gone.pid))
    assert done.returncode == 1
    assert "does not run" in done.stderr


def test_a_daemon_that_the_watchdog_ends_says_where_it_was(site: Site) -> None:
    """SIGABRT is what systemd sends; the stack of the loop's thread stands in the log, which is the journal."""
    os.kill(site.collector.pid, signal.SIGABRT)
    process = site.collector.process
    with pytest.raises(AssertionError, match="exit -6"):
        process.wait_until(lambda: False, "end", 20)
    said = process.log.read_text()
    assert "Fatal Python error: Aborted" in said
    assert "run_command.py" in said
