"""Tells systemd how the daemon is: READY, RELOADING, STOPPING, STATUS and the watchdog (sd_notify(3)).

Promises: the watchdog is fed only while `alive()` says that the parts make progress; being blocked on a full disk or a
dead output counts as alive, because a restart would cure neither. A start that takes long (a spool of many files on a
slow disk) and a stop that was configured to take long are waited for (EXTEND_TIMEOUT_USEC): systemd would kill
them, and the next would take as long. Without NOTIFY_SOCKET every call does nothing; what cannot be told is logged,
because systemd would kill a daemon that it does not hear.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

log = logging.getLogger(__name__)

START_SECONDS = 3600.0
"""For so long a start is waited for; one that takes longer hangs."""
_START_STEP_SECONDS = 10.0
_SAY_AT_STEP = 3
_START_PATIENCE_SECONDS = 60.0  # asked for at each step; more than one step may be late on a busy machine


class Notifier:
    """One per daemon. Only where `environ` (the process's own) has systemd's variables is there anybody to tell."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._wanted = bool(environ.get("NOTIFY_SOCKET"))
        # WATCHDOG_PID names the process that must feed; absent means "you" (sd_watchdog_enabled(3)).
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(environ.get("WATCHDOG_USEC", "0")) / 1e6 if mine else 0.0

    @asynccontextmanager
    async def starting(self, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> AsyncIterator[None]:
        """While this is entered systemd waits, TimeoutStartSec= or not, as long as the loop turns."""
        asking = asyncio.create_task(self._ask_for_time(sleep)) if self._wanted else None
        try:
            yield
        finally:
            if asking is not None:
                asking.cancel()

    async def _ask_for_time(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        for step in range(int(START_SECONDS / _START_STEP_SECONDS)):
            self._tell(f"EXTEND_TIMEOUT_USEC={int(_START_PATIENCE_SECONDS * 1e6)}")
            if step == _SAY_AT_STEP:
                log.warning("the start takes longer than %.0f s; a slow disk?", step * _START_STEP_SECONDS)
            await sleep(_START_STEP_SECONDS)
        log.error("the start hangs: systemd is not asked to wait any longer, ends this process and begins again")

    def ready(self, status: str) -> None:
        """Inputs take data (also said after a reload)."""
        self._tell(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """A reload has begun; Type=notify-reload wants the monotonic time with it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, *, at_most_seconds: float) -> None:
        """No more data is taken; draining. Beyond TimeoutStopSec= systemd waits for so long."""
        self._tell(f"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={int(at_most_seconds * 1e6)}")

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
            notifier = SystemdNotifier(debug=True)
            with notifier.socket:
                notifier.notify(state.encode().decode("latin-1"))
        except OSError as error:
            log.warning("cannot tell systemd %r: %s", state, error)
