"""What an agent tells its collector of its own trouble: how far it is behind, and which files it cannot read."""

import asyncio
import logging
import os
import time
from pathlib import Path

import pytest

from ndagent.wire.status import AgentStatus, InputStatus, SpoolStatus
from ndcollector.agents.rows import report_of
from tests.test_policy_agent import Site, until


async def test_an_agent_that_reaches_nobody_says_since_when_its_events_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own report, as the collector reads it; without events that wait there is no lag."""
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    site, log = Site(tmp_path), tmp_path / "own.log"
    site.yaml.write_text(f"state_dir: state\nshutdown_timeout: 0s\ninputs: {{own: {{type: file, paths: [{log}]}}}}\n")
    async with site.running() as agent:
        assert {one.oldest_at_ns for one in agent._reporter.status().spools} == {0}
        began = time.time()
        log.write_text("one\n")

        def told() -> AgentStatus:
            return AgentStatus.from_json(agent._reporter.status().to_json())

        def events() -> SpoolStatus:
            return next(one for one in told().spools if one.stream == "security_events")

        await until(lambda: events().pending_events == 1 and events().oldest_at_ns)
        assert began <= events().oldest_at_ns / 1e9 <= time.time()
        await asyncio.sleep(0.05)
        status = told()
        assert report_of(status, b"", now=0.0).lag_seconds >= 0.05


async def test_an_agent_tells_of_files_that_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input runs all the same; once the file is gone, so is the trouble."""
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    site, pipe = Site(tmp_path), tmp_path / "pipe.log"
    site.yaml.write_text(
        f"state_dir: state\nshutdown_timeout: 0s\ninputs: {{own: {{type: file, paths: ['{tmp_path}/*.log']}}}}\n"
    )
    os.mkfifo(pipe)
    async with site.running() as agent:

        def own() -> InputStatus:
            return AgentStatus.from_json(agent._reporter.status().to_json()).inputs[0]

        await until(lambda: own().message)
        assert (own().name, own().state) == ("own", "running")
        assert own().message == f"{pipe}: it is no regular file (FIFO, socket or device)"
        pipe.unlink()
        await until(lambda: not own().message)
