"""`ndcollector run`: the daemon, on uvloop, until SIGTERM or SIGINT; SIGHUP reloads.

Exit status 0 after a graceful stop; 1 when it could not start, with each mistake on stderr as file:line:column, or
when it ended for a reason nobody foresaw.
"""

import argparse
import asyncio
import logging
import signal
from pathlib import Path

import uvloop

from ndagent.core import log as logs
from ndagent.core.notify import Notifier
from ndagent.core.supervision import StartError
from ndagent.core.yaml_file import ConfigError
from ndagent.wire.codec import codec_name
from ndcollector import __version__
from ndcollector.app import Collector
from ndcollector.config import CollectorConfig, add_config_option, load

log = logging.getLogger(__name__)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `run`."""
    parser = commands.add_parser("run", help="run the collector in the foreground (systemd starts it so)")
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
        log.error("cannot start: the configuration has mistakes; `ndcollector check` lists them too")
        return 1
    logs.configure(config.log.level.upper())
    log.info("ndcollector %s starts", __version__, extra={"config": str(arguments.config), "codec": codec_name()})
    if codec_name() == "pure":
        log.warning(
            "the compiled codec is not there: decoding is about twenty times slower; install gcc and python3-dev, then "
            "install ndcollector again"
        )
    try:
        uvloop.run(_serve(config, arguments.config))
    except StartError as error:
        log.error("cannot start: %s", error)
        return 1
    except Exception:
        log.exception("ended by an unexpected error; please report this traceback")
        return 1
    return 0


async def _serve(config: CollectorConfig, path: Path) -> None:
    collector = Collector(config, path=path, notifier=Notifier())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, collector.stop)
    loop.add_signal_handler(signal.SIGHUP, collector.reload)
    await collector.run()
