"""`ndagent run`: the agent in the foreground until SIGTERM or SIGINT; SIGHUP reloads. Exit status: core/daemon.py."""

import argparse
import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from pathlib import Path

from ndagent import __version__
from ndagent.config import AgentConfig, add_config_option, load
from ndagent.core.daemon import obey_signals, run_daemon

log = logging.getLogger(__name__)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `run`."""
    parser = commands.add_parser("run", help="run the agent in the foreground (systemd starts it so)")
    add_config_option(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Load the configuration, serve, return the exit status."""

    def serve(config: AgentConfig) -> None:
        log.info("ndagent %s starts", __version__, extra={"config": str(arguments.config)})
        run_on_loop(_serve(config, arguments.config))

    return run_daemon("ndagent", partial(load, arguments.config), serve=serve)


def run_on_loop(main: Coroutine[None, None, None]) -> None:
    """On asyncio's selector loop everywhere: uvloop would cost 2 MB (measured) and an agent's loop is seldom busy.

    On Windows the MQTT client needs it, too.
    """
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main)


async def _serve(config: AgentConfig, path: Path) -> None:
    from ndagent.app import Agent  # after the configuration: a mistake in it is told at once
    from ndagent.core.notify import Notifier

    agent = Agent(config, path=path, notifier=Notifier())
    obey_signals(agent)
    await agent.run()
