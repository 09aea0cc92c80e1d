"""Tells systemd how the daemon is: READY, RELOADING, STOPPING, STATUS and the watchdog (sd_notify(3)).

Promises: the watchdog is fed only while `alive()` says that the parts make progress; being blocked on a full disk or a
dead output counts as alive, because a restart would cure neither. Without NOTIFY_SOCKET every call does nothing; what
cannot be told is logged, because systemd would kill a daemon that it does not hear.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class Notifier:
    """One per daemon. Only where `environ` (the process's own) has systemd's variables is there anybody to tell."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._wanted = bool(environ.get("NOTIFY_SOCKET"))
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
        """Feed four times in the interval, until cancelled; returns at once where systemd did not ask for it.

        Four, so that one look at a bad moment (outputs that are just being started again) costs nothing.
        """
        while self.watchdog_seconds > 0:
            if alive():
                self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / 4)

    def _tell(self, state: str) -> None:
        if not self._wanted:
            return
        from sdnotify import SystemdNotifier  # Linux only, and only where somebody listens

        try:
            # debug: errors are raised, not swallowed. It sends Latin-1, which this makes the UTF-8 that systemd reads.
            SystemdNotifier(debug=True).notify(state.encode().decode("latin-1"))
        except OSError as error:
            log.warning("cannot tell systemd %r: %s", state, error)
