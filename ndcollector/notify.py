"""Tells systemd how the daemon is: READY, RELOADING, STOPPING, STATUS and the watchdog (sd_notify(3)).

Promises: the watchdog is fed only while `alive()` says that the parts make progress; being blocked on a full disk or a
dead output counts as alive, because a restart would cure neither. Without NOTIFY_SOCKET every call does nothing; what
cannot be told is logged, because systemd would kill a daemon that it does not hear.
"""

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 1.0  # systemd is always listening; should it not be, the loop must go on


class Notifier:
    """One per daemon. `environ` is where systemd's variables are looked for."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        # An abstract address is written with @ (sd_notify(3)).
        self._address = re.sub("^@", "\0", environ.get("NOTIFY_SOCKET", ""))
        # WATCHDOG_PID names the process that must feed; absent means "you" (sd_watchdog_enabled(3)).
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(environ.get("WATCHDOG_USEC", "0")) / 1e6 if mine else 0.0

    def ready(self, status: str) -> None:
        """Inputs take data (also said after a reload)."""
        self._tell(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """A reload has begun; Type=notify-reload wants the monotonic time with it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """No more data is taken; draining."""
        self._tell("STOPPING=1\nSTATUS=draining")

    async def feed_watchdog(self, alive: Callable[[], bool]) -> None:
        """Feed at half the interval, until cancelled; returns at once where systemd did not ask for it."""
        while self.watchdog_seconds > 0:
            if alive():
                self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / 2)

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as systemd:
                systemd.settimeout(_PATIENCE_SECONDS)
                systemd.sendto(state.encode(), self._address)
        except OSError as error:
            log.warning("cannot tell systemd %r: %s", state, error)
