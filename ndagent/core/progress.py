"""Whether parts that have work get on with it: what the watchdog is fed by, besides a loop that turns.

A part shows `Signs`: whether it has work, and how much it has finished since it was made. One that had work at every
look of `patience_seconds` and finished nothing in that time is stuck: a thread that hangs in a system call, a pause
that nobody lifted, an accept that never returns.

Promises: waiting for a far side, for room in a spool or for a disk that is full is no work (`signs_of`), because a
restart would cure none of them; a look costs a few comparisons, and parts pay nothing per event. A part that is gone is
forgotten. Refuses: doing anything about it. Whoever feeds the watchdog stops, and systemd restarts the daemon.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from ndagent.core import messages

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0
"""As long as the kernel waits before it calls a task hung (sysctl kernel.hung_task_timeout_secs): a disk that is merely
slow must not have its daemon killed amid the one fdatasync that takes that long."""


class Signs(NamedTuple):
    """What can be seen of one part."""

    has_work: bool
    done: int
    """Grows with each piece of work that was finished."""


class _Spool(Protocol):
    @property
    def is_full(self) -> bool: ...

    def signs(self) -> Signs: ...


class _Intake(Protocol):
    def signs(self) -> Iterator[tuple[str, Signs]]: ...


def signs_of(spools: Mapping[str, _Spool], intake: _Intake | None) -> dict[str, Signs]:
    """All parts of a daemon, by name; inputs only while every spool takes what they bring."""
    found = {f"spool {stream}": spool.signs() for stream, spool in spools.items()}
    if intake is not None and not any(spool.is_full for spool in spools.values()):
        found.update(intake.signs())
    return found


class Progress:
    """One per daemon; looks as often as the watchdog is fed."""

    def __init__(self, *, clock: Callable[[], float], patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._working: dict[str, tuple[int, float]] = {}  # what was done, and since when nothing more
        self._said: set[str] = set()

    def is_made(self, spools: Mapping[str, _Spool], intake: _Intake | None) -> bool:
        """Look at all parts of a daemon: whether none is stuck."""
        return not self.stuck(signs_of(spools, intake))

    def stuck(self, parts: Mapping[str, Signs]) -> list[str]:
        """Those that do not get on with their work; each is said once, as an ERROR, until it moves again."""
        now = self._clock()
        working = {name: signs.done for name, signs in parts.items() if signs.has_work}
        known = self._working
        self._working = {
            name: known[name] if name in known and known[name][0] == done else (done, now)
            for name, done in working.items()
        }
        found = [name for name, (_, since) in self._working.items() if now - since >= self._patience_seconds]
        for name in found:
            if name not in self._said:
                log.error(
                    "%s has work and has not got on with it for %.0fs: systemd is no longer told that this daemon is "
                    "alive and restarts it, if its unit has WatchdogSec; nothing acknowledged is lost. Please report "
                    "the stack traces that follow", name, self._patience_seconds, extra=messages.STUCK,
                )
        self._said = set(found)
        return found
