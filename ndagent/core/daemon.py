"""A daemon's life around its own work: configuration, log, signals, exit status; the same for agent and collector.

Promises: exit status 0 after a graceful stop; 1 when it could not start, with each mistake in the configuration on
stderr as file:line:column, or when it ended for a reason nobody foresaw. SIGTERM and SIGINT stop, SIGHUP reloads (on
Windows Ctrl+C and Ctrl+Break stop; a service is told otherwise, see ndagent/winservice.py).
A daemon that is ended because it hangs (SIGABRT, which is what systemd's watchdog sends) says where: the stack of each
thread stands on stderr, hence in the journal.
Refuses: exiting (__main__ does), and knowing what is run.
"""

import asyncio
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ndagent.core import log as logs
from ndagent.core import messages
from ndagent.core.inherited import HELD, take_over
from ndagent.core.supervision import StartError
from ndagent.core.yaml_file import ConfigError

log = logging.getLogger(__name__)

Config = TypeVar("Config", bound=Any)
"""Has a `log.level`."""


class Daemon(Protocol):
    """What signals speak to."""

    def stop(self) -> None:
        """Stop gracefully."""

    def reload(self) -> None:
        """Read the configuration again, soon."""


def run_daemon(program: str, load: Callable[[], Config], *, serve: Callable[[Config], None]) -> int:
    """Load, serve until that returns; the exit status. `program` is the command, for messages."""
    logs.configure(program=program)
    try:
        config = load()
    except ConfigError as error:
        for fault in error.faults:
            log.error("%s", fault)
        log.error(
            "cannot start: the configuration has mistakes; `%s check` lists them too", program,
            extra=messages.CANNOT_START,
        )
        return 1
    logging.getLogger().setLevel(config.log.level.upper())
    faulthandler.enable()
    HELD.add(take_over(os.environ))
    try:
        serve(config)
    except StartError as error:
        log.error("cannot start: %s", error, extra=messages.CANNOT_START)
        return 1
    except Exception:
        log.exception("ended by an unexpected error; please report this traceback", extra=messages.CRASHED)
        return 1
    return 0


def obey_signals(daemon: Daemon) -> None:
    """Call it on the running loop."""
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":
        for number in (signal.SIGINT, signal.SIGBREAK):  # Ctrl+C and Ctrl+Break: asyncio has no signal handlers there
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(daemon.stop))
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
