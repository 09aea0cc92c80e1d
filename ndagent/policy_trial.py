"""Whether a new policy stays: it must reach a collector, unless nothing does.

    NEW ──reached──► KEPT                           a policy that works is kept at once
     │ probation over
     ▼
    OLD ──probation over──► NEW, for longer         neither reaches: the collector is down, the new one goes on
     │ reached
     ▼
    NEW AGAIN ──reached──► KEPT                     the collector came back while the old one was tried
     │ confirmation over
     ▼
    OLD AGAIN ──reached──► ROLLED BACK              old reaches, new does not, old reaches: it is the policy
     │ probation over
     └──► NEW, for longer

Promises: `ROLLED_BACK` only after old, new and old were tried in this order with reached, not reached, reached; so one
outage of the collector, however long and whenever it ends, never rolls back a policy that works (asking old once would:
a collector that comes back in that minute would roll back its whole fleet). While neither reaches, the tries of the old
one get rarer, down to one in `longest_seconds`.
Refuses: clocks, applying, asking: time and answers come in, what to do goes out.
"""

from dataclasses import dataclass
from enum import Enum, auto


class Phase(Enum):
    """Where a trial stands; the last two end it."""

    NEW = auto()
    OLD = auto()
    NEW_AGAIN = auto()
    OLD_AGAIN = auto()
    KEPT = auto()
    ROLLED_BACK = auto()


_USES_OLD = (Phase.OLD, Phase.OLD_AGAIN, Phase.ROLLED_BACK)
_AFTER_REACHED = {
    Phase.NEW: Phase.KEPT,
    Phase.OLD: Phase.NEW_AGAIN,
    Phase.NEW_AGAIN: Phase.KEPT,
    Phase.OLD_AGAIN: Phase.ROLLED_BACK,
}
_AFTER_SILENCE = {
    Phase.NEW: Phase.OLD,
    Phase.OLD: Phase.NEW,
    Phase.NEW_AGAIN: Phase.OLD_AGAIN,
    Phase.OLD_AGAIN: Phase.NEW,
}


@dataclass(frozen=True, slots=True)
class TrialTimes:
    """How long each phase waits for a collector; `longest_seconds` bounds the doubling of what NEW gets."""

    probation_seconds: float = 120.0
    confirmation_seconds: float = 60.0
    longest_seconds: float = 3600.0


class Trial:
    """One new policy against the old one. `now` is monotonic seconds."""

    def __init__(self, times: TrialTimes, *, now: float, phase: Phase = Phase.NEW) -> None:
        self._times = times
        self._new_seconds = times.probation_seconds
        self.phase = phase
        self.deadline = now + times.probation_seconds

    @property
    def uses_old(self) -> bool:
        """Which of the two should be applied now."""
        return self.phase in _USES_OLD

    @property
    def is_over(self) -> bool:
        """Whether it was decided."""
        return self.phase in (Phase.KEPT, Phase.ROLLED_BACK)

    def tell(self, *, reached: bool, now: float) -> Phase:
        """Take an answer got with the settings of the present phase; returns the phase from now on."""
        if self.is_over or not (reached or now >= self.deadline):
            return self.phase
        self._enter((_AFTER_REACHED if reached else _AFTER_SILENCE)[self.phase], now)
        return self.phase

    def could_not_switch(self, now: float) -> Phase:
        """What the phase wants could not be applied. Without the old one the new one goes on; without it, the old."""
        self._enter(Phase.NEW if self.uses_old else Phase.ROLLED_BACK, now)
        return self.phase

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        if phase is Phase.NEW:
            self._new_seconds = min(2 * self._new_seconds, self._times.longest_seconds)
        self.deadline = now + self._seconds()

    def _seconds(self) -> float:
        if self.phase is Phase.NEW:
            return self._new_seconds
        return self._times.confirmation_seconds if self.phase is Phase.NEW_AGAIN else self._times.probation_seconds
