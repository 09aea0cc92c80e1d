"""Agents through the customer's own broker: real mosquitto, real agent, real collector, each of them killed."""

from pathlib import Path

import pytest
from broker_site import BrokerSite
from services import fetch
from services.need import need
from test_agent_e2e import lines, write


@pytest.fixture(autouse=True)
def _broker() -> None:
    need(fetch.MOSQUITTO)


def test_lines_arrive_once_under_the_agents_own_name(tmp_path: Path) -> None:
    """The broker took the certificate; the signature says the same, and the events carry it."""
    with BrokerSite(tmp_path) as here:
        agent = here.agent()
        agent.start()
        write(agent, 0, 500)
        here.site.wait_for(500)
        events = here.collector.events()
        assert {event["message"]: 1 for event in events} == lines(500)
        assert len({event["event"]["id"] for event in events}) == 500
        agent.process.wait_until(lambda: bool(agent.status()["agent_id"]), "its id")
        assert {event["agent"]["id"] for event in events} == {agent.status()["agent_id"]}
