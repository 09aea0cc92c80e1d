"""Tells systemd how the daemon is: READY, RELOADING, STOPPING, STATUS and the watchdog (sd_notify(3)).

Promises: the watchdog is fed only while `alive()` says that the parts make progress; being blocked on a full disk or a
dead output counts as alive, because a restart would cure neither. Without NOTIFY_SOCKET every call does nothing.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping

from sdnotify import SystemdNotifier


class Notifier:
    """One per daemon. `environ` is where systemd's variables are looked for."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._systemd = SystemdNotifier()
        # WATCHDOG_PID names the process that must feed; absent means "you" (sd_watchdog_enabled(3)).
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(environ.get("WATCHDOG_USEC", "0")) / 1e6 if mine else 0.0

    def ready(self, status: str) -> None:
        """Inputs take data (also said after a reload)."""
        self._systemd.notify(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """A reload has begun; Type=notify-reload wants the monotonic time with it."""
        self._systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """No more data is taken; draining."""
        self._systemd.notify("STOPPING=1\nSTATUS=draining")

    async def feed_watchdog(self, alive: Callable[[], bool]) -> None:
        """Feed at half the interval, until cancelled; returns at once where systemd did not ask for it."""
        while self.watchdog_seconds > 0:
            if alive():
                self._systemd.notify("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / 2)
