"""`ndcollector run`: the daemon, on uvloop, until SIGTERM or SIGINT; SIGHUP reloads. Exit status: core/daemon.py."""

import argparse
import logging
from functools import partial
from pathlib import Path

import uvloop

from ndagent.core.daemon import obey_signals, run_daemon
from ndagent.core.notify import Notifier
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

    def serve(config: CollectorConfig) -> None:
        log.info("ndcollector %s starts", __version__, extra={"config": str(arguments.config), "codec": codec_name()})
        if codec_name() == "pure":
            log.warning(
                "the compiled codec is not there: decoding is about twenty times slower; install gcc and python3-dev, "
                "then install ndcollector again"
            )
        uvloop.run(_serve(config, arguments.config))

    return run_daemon("ndcollector", partial(load, arguments.config), serve=serve)


async def _serve(config: CollectorConfig, path: Path) -> None:
    collector = Collector(config, path=path, notifier=Notifier())
    obey_signals(collector)
    await collector.run()
