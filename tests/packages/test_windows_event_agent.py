"""The Windows agent reads the event log, end to end: enrolled at a real collector, every record once over a kill."""

from pathlib import Path

import pytest
from agent_process import AgentSite
from packages.windows_agent import WindowsAgent, until
from packages.windows_records import Records, event_log
from packages.wine import Wine

pytestmark = [pytest.mark.packages, pytest.mark.timeout(1200)]


def test_every_record_arrives_once_though_the_agent_is_killed(
    wine: Wine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records before the kill, and records that came while it was dead; the place is in the agent's spool."""
    records = Records(tmp_path / "records")
    for name, value in records.environment.items():
        monkeypatch.setenv(name, value)
    settings = {
        "outputs": {"https": {}},
        "inputs": {"windows_event": {"channels": ["Canned"], "start": "beginning", "batch_events": 16}},
    }
    expected = [f"record {number}" for number in range(500)]
    with event_log(wine), AgentSite(tmp_path) as site:
        agent = WindowsAgent(wine, "eventlog", settings=settings)
        agent.enroll(site)
        for text in expected[:300]:
            records.write(text)
        agent.start()
        until(lambda: len(texts(site)) >= 100, "the first records arrive")
        agent.kill()
        for text in expected[300:]:
            records.write(text)
        agent.start()
        until(lambda: len(set(texts(site))) >= len(expected), "all records arrive")
        agent.kill()
        assert sorted(texts(site)) == sorted(expected)


def texts(site: AgentSite) -> list[str]:
    """The values of the records that arrived, one for each event.id: what is sent again has its old one."""
    found = {
        event["event"]["id"]: event["winlog"]["event_data"]["text"]
        for event in site.collector.events()
        if "winlog" in event
    }
    return list(found.values())
