"""An agent that is paused reads nothing and keeps the rest running; a Windows service is told so."""

import asyncio
from pathlib import Path

import yaml
from waiting import until

from ndagent.app import Agent
from ndagent.config import load
from ndagent.core.notify import Notifier


async def test_paused_inputs_read_nothing_not_even_after_a_reload_and_go_on_where_they_were(tmp_path: Path) -> None:
    """A pause is the operator's word: a configuration that is saved meanwhile does not end it."""
    log, path = tmp_path / "app.log", tmp_path / "etc" / "ndagent.yaml"
    path.parent.mkdir()
    app = {"type": "file", "paths": [str(log)], "watch": "poll", "poll_interval": "50ms"}
    path.write_text(yaml.safe_dump({"state_dir": str(tmp_path / "state"), "inputs": {"app": app}}))
    agent = Agent(load(path), path=path, notifier=Notifier({}))
    running = asyncio.create_task(agent.run())

    def spooled() -> int:
        return agent._spools["security_events"].next_sequence

    log.write_text("before\n")
    await until(lambda: agent._intake is not None and spooled() == 1)
    await agent.pause()
    log.write_text("before\nmeanwhile\n")
    path.write_text(yaml.safe_dump({"state_dir": str(tmp_path / "state"), "inputs": {"app": app, "app2": app}}))
    agent.reload()
    await until(lambda: "app2" in agent._config.inputs)
    assert len(agent._intake or ()) == 0
    assert [(one.state, one.message) for one in agent._reporter.status().inputs] == [
        ("failed", "is paused by the service manager")
    ] * 2
    assert spooled() == 1
    await agent.resume()
    await until(lambda: spooled() >= 4)  # app2 is new and reads both lines
    agent.stop()
    await running
    assert spooled() == 4
