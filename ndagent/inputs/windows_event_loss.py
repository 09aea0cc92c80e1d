"""What a pull of a channel gives, and how the input tells of records that are gone.

Promises: each loss is an event, a count and, at most once a minute for a channel, a line in the log that says how many
holes were passed over in silence since. Refuses: finding out (windows_event_channel.py does).
"""

import logging
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field

from ndagent.core.log import Throttle
from ndagent.inputs.ecs_batch import timestamp
from ndagent.inputs.windows_event_lines import cleared_line, gap_line
from ndagent.inputs.windows_event_place import Place
from ndagent.wire.winevent_ecs import Rules

CLEARED = "log_cleared"


@dataclass(frozen=True, slots=True)
class Reading:
    """How an input's channels are read. `start` is beginning, end or seconds back; the clocks count seconds."""

    query: str
    start: str | float
    wants_words: bool
    batch_events: int
    check_seconds: float
    rules: Rules
    unix: Callable[[], float]
    monotonic: Callable[[], float]
    throttle: Throttle
    log: logging.Logger
    cleared: MutableMapping[str, float]
    """Channels, in lower case, whose log was said to be cleared, and when that was heard; shared by all."""


@dataclass(slots=True)
class Pulled:
    """What one pull gave. `place` is behind the last line; None if it is where it was."""

    channel: str
    lines: list[bytes] = field(default_factory=list)
    place: Place | None = None
    lost: Counter[str] = field(default_factory=Counter)
    """Records that are gone, by reason."""
    gaps: int = 0
    read_bytes: int = 0
    unrendered: int = 0
    truncated: int = 0
    repeated: int = 0


class Teller:
    """Says it, for one channel."""

    def __init__(self, channel: str, reading: Reading) -> None:
        self._channel = channel
        self._reading = reading

    def gap(self, first: int, last: int | None, reason: str, pulled: Pulled, *, why: str = "") -> None:
        """Records are gone; `last` is None where it is not known how many."""
        reading = self._reading
        count = 1 if last is None else last - first + 1
        created = timestamp(reading.unix())
        line = gap_line(
            self._channel, first=first, last=last, reason=reason, created=created, base=reading.rules.base, why=why
        )
        pulled.lines.append(line)
        pulled.lost[reason] += count
        pulled.gaps += 1
        silenced = reading.throttle.allow(("gap", self._channel))
        if silenced is not None:
            reading.log.error(
                "%s: %s record(s) from number %d on are lost: %s%s; keep more of the log (wevtutil sl %s /ms:BYTES), "
                "or see what kept the agent from reading",
                self._channel, "some" if last is None else count, first, why or reason,
                f" ({silenced} more holes since this was last said)" if silenced else "", self._channel,
            )  # fmt: skip

    def cleared(self, last_read: int, unread: int | None, pulled: Pulled) -> None:
        """Somebody cleared the log; `unread` of its records were not read, None if that is not known."""
        reading = self._reading
        created = timestamp(reading.unix())
        line = cleared_line(
            self._channel, last_read=last_read, unread=unread, created=created, base=reading.rules.base
        )
        pulled.lines.append(line)
        if unread:
            pulled.lost[CLEARED] += unread
        if reading.throttle.allow(("cleared", self._channel)) is not None:
            reading.log.warning(
                "%s: the log was cleared after record %d; reading on from its beginning", self._channel, last_read
            )
