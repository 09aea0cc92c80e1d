"""A reload that is refused leaves the agent as it was: reading, and delivering."""

import asyncio
from pathlib import Path

import yaml
from waiting import until

from ndagent.app import Agent
from ndagent.config import load
from ndagent.core.notify import Notifier


async def test_an_output_that_cannot_be_built_leaves_the_old_one_and_the_inputs_at_work(tmp_path: Path) -> None:
    """Here a later version wrote dead letters; what was new about the inputs is not taken up either."""
    path, letters = tmp_path / "etc" / "ndagent.yaml", tmp_path / "state" / "dead_letters" / "collector.ndjson"
    path.parent.mkdir()
    first = {"type": "file", "paths": [str(tmp_path / "first.log")], "watch": "poll"}
    settings = {"state_dir": str(tmp_path / "state"), "inputs": {"first": first}}
    path.write_text(yaml.safe_dump(settings))
    agent = Agent(load(path), path=path, notifier=Notifier({}))
    running = asyncio.create_task(agent.run())
    await until(lambda: agent._intake is not None and agent._reporter is not None)
    letters.parent.mkdir(parents=True, exist_ok=True)
    letters.write_text('{"format":2,"event":{}}\n')
    second = first | {"paths": [str(tmp_path / "second.log")]}
    path.write_text(
        yaml.safe_dump(settings | {"inputs": {"first": first, "second": second}, "delivery": {"batch_age": "9s"}})
    )
    agent.reload()
    await until(lambda: agent._reloads.refusal)
    assert "collector.ndjson" in agent._reloads.refusal
    assert agent._dispatching._running is not None
    assert not agent._dispatching._running.has_ended
    assert set(agent._config.inputs) == {"first"}
    assert [one.name for one in agent._reporter.status().inputs] == ["first"]
    agent.stop()
    await running
