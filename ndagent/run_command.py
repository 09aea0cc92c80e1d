"""`ndagent run`: the agent in the foreground, until SIGTERM or SIGINT; SIGHUP reloads.

Exit status 0 after a graceful stop; 1 when it could not start, with each mistake on stderr as file:line:column, or
when it ended for a reason nobody foresaw.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path

from ndagent import __version__
from ndagent.config import AgentConfig, add_config_option, load
from ndagent.core import log as logs
from ndagent.core.supervision import StartError
from ndagent.core.yaml_file import ConfigError

log = logging.getLogger(__name__)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `run`."""
    parser = commands.add_parser("run", help="run the agent in the foreground (systemd starts it so)")
    add_config_option(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Load the configuration, serve, return the exit status."""
    logs.configure()
    try:
        config = load(arguments.config)
    except ConfigError as error:
        for fault in error.faults:
            log.error("%s", fault)
        log.error("cannot start: the configuration has mistakes; `ndagent check` lists them too")
        return 1
    logs.configure(config.log.level.upper())
    log.info("ndagent %s starts", __version__, extra={"config": str(arguments.config)})
    try:
        run_on_loop(_serve(config, arguments.config))
    except StartError as error:
        log.error("cannot start: %s", error)
        return 1
    except Exception:
        log.exception("ended by an unexpected error; please report this traceback")
        return 1
    return 0


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
    if sys.platform != "win32":
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop)
        loop.add_signal_handler(signal.SIGHUP, agent.reload)
    await agent.run()
