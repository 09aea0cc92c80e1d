"""Why appends wait, said once: an ERROR with the remedy when it begins, an INFO when it is over, and the gauge between.

Refuses: deciding anything. The engine tells it what it met.
"""

import logging

from ndagent.core import messages
from ndagent.core.instruments import Instrument
from ndagent.core.settings import format_size

log = logging.getLogger(__name__)

_SITUATIONS = {
    "max_bytes": ("spool.max_bytes ({}) is used up", "raise spool.max_bytes"),
    "disk full": ("the disk is full", "free space on that file system"),
    "disk error": ("the disk refuses to write", "check the disk (dmesg, smartctl)"),
}


class Trouble:
    """One per spool."""

    def __init__(self, stream: str, *, max_bytes: int, full: Instrument) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._full = full
        self.present = False
        full.set(0)

    def begins(self, kind: str, holder: str) -> None:
        """Appends wait from now on; nothing is said if they did before."""
        if self.present:
            return
        self.present = True
        self._full.set(1)
        situation, remedy = _SITUATIONS[kind]
        log.error(
            "spool %s: %s; inputs wait, nothing is lost: %s. It goes on by itself; to help, bring the output back, or "
            "%s",
            self._stream,
            situation.format(format_size(self._max_bytes)),
            holder,
            remedy, extra=messages.SPOOL_FULL,
        )

    def ends(self, how: str) -> None:
        """A commit succeeded, or whoever waited for one has gone."""
        if self.present:
            self.present = False
            self._full.set(0)
            log.info("spool %s: %s", self._stream, how, extra=messages.SPOOL_TAKES_AGAIN)
