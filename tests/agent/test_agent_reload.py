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


async def test_a_status_that_cannot_be_gathered_keeps_no_reload_from_its_end(tmp_path: Path, monkeypatch) -> None:
    """systemd waits for READY=1 after a reload, and would end an agent that does not say it."""
    path = tmp_path / "ndagent.yaml"
    path.write_text(yaml.safe_dump({"state_dir": str(tmp_path / "state")}))
    notifier = Notifier({})
    said: list[str] = []
    agent = Agent(load(path), path=path, notifier=notifier)
    running = asyncio.create_task(agent.run())
    await until(lambda: agent._intake is not None and agent._reporter is not None)

    def fails() -> bytes:
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(agent._reporter, "_report", fails)
    monkeypatch.setattr(notifier, "ready", said.append)
    for turn in (1, 2):
        agent.reload()
        await until(lambda turn=turn: running.done() or len(said) == turn)
        assert not running.done(), running.exception()
    agent.stop()
    await running
