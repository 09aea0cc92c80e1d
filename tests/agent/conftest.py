"""A site of collector and agents for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import AgentSite


@pytest.fixture
def site(tmp_path: Path) -> Iterator[AgentSite]:
    """A collector that runs, with HTTPS and MQTT for agents."""
    with AgentSite(tmp_path) as running:
        yield running
