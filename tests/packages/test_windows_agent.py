"""The agent on Windows, end to end: enrolled at a real collector, nothing lost over a kill, by both ways."""

from pathlib import Path

import pytest
from agent_process import AgentSite
from packages.windows_agent import WindowsAgent, until, write_lines
from packages.wine import Wine

pytestmark = [pytest.mark.packages, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("way", ["https", "mqtt"])
def test_a_killed_agent_goes_on_where_it_was_and_every_line_arrives_once(wine: Wine, tmp_path: Path, way: str) -> None:
    """Lines before the kill, lines that came while it was dead, and lines while the collector was away."""
    with AgentSite(tmp_path) as site:
        agent = WindowsAgent(wine, f"kill-{way}", settings={"outputs": {way: {}}, "spool": {"segment_bytes": "64KiB"}})
        log = agent.logs / "app.log"
        agent.enroll(site)
        expected = [f"line {number} {'x' * 200}" for number in range(2000)]
        agent.start()
        write_lines(log, expected[:1000])
        until(lambda: len(site.messages()) >= 500, "half of the lines arrive")
        agent.kill()
        write_lines(log, expected[1000:1500])
        site.collector.kill()
        agent.start()
        write_lines(log, expected[1500:])
        until(lambda: agent.pending() >= 500, "the lines wait in the spool")
        agent.kill()
        site.collector.start()
        agent.start()
        until(lambda: len(site.distinct()) >= len(expected), "all lines arrive")
        agent.kill()
        assert site.distinct() == dict.fromkeys(expected, 1)


def test_a_log_is_followed_while_its_owner_renames_it_under_our_hands(wine: Wine, tmp_path: Path) -> None:
    """Windows keeps a file that somebody has open from being renamed, unless they share it for that: we do."""
    rename = "import os; os.replace(r'C:\\rotate\\logs\\app.log', r'C:\\rotate\\logs\\app.log.1')"
    with AgentSite(tmp_path) as site:
        agent = WindowsAgent(wine, "rotate", settings={"outputs": {"https": {}}})
        agent.enroll(site)
        agent.start()
        write_lines(agent.logs / "app.log", ["before"])
        until(lambda: "before" in site.messages(), "the first line arrives")
        wine.python("-c", rename)
        write_lines(agent.logs / "app.log.1", ["late"])
        write_lines(agent.logs / "app.log", ["after"])
        until(lambda: len(site.messages()) >= 3, "the lines of both files arrive")
        agent.kill()
        assert site.distinct() == {"before": 1, "late": 1, "after": 1}


def test_utf_16_is_read_as_text(wine: Wine, tmp_path: Path) -> None:
    """What PowerShell's `>` writes."""
    with AgentSite(tmp_path) as site:
        agent = WindowsAgent(wine, "utf16", settings={"outputs": {"https": {}}})
        agent.enroll(site)
        (agent.logs / "app.log").write_text("Grüße 🦉\r\nend\r\n", encoding="utf-16")
        agent.start()
        until(lambda: len(site.messages()) >= 2, "the lines arrive")
        agent.kill()
        assert set(site.messages()) == {"Grüße 🦉", "end"}


def test_check_and_status_speak_of_this_agent(wine: Wine, tmp_path: Path) -> None:
    """`status` reads what `run` keeps current."""
    with AgentSite(tmp_path) as site:
        agent = WindowsAgent(wine, "status", settings={"outputs": {"https": {}}})
        assert "valid; inputs: app" in agent.command("check")
        assert "no agent has run here yet" in agent.command("status", check=False)
        agent.enroll(site)
        agent.start()
        until(lambda: "localhost" in agent.command("status", check=False), "a collector is reached")
        said = agent.command("status")
        agent.kill()
        assert "agent      runs" in said
        assert "enrolled   as" in said
