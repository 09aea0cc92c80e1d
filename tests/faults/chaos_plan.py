"""Which faults strike what, when and for how long: a pure function of the seed, so that a run can be had again.

Promises: the same seed, seconds and targets give the same plan; a target has one fault at a time, different targets
have theirs at once; the last QUIET_PART begins no fault, so that all have ended when the run ends.
Refuses: carrying any out (chaos_faults.py).
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

QUIET_PART = 0.08
"""Of the run, at its end."""
FAVOURED = {"collector": 5}
"""Drawn so many times as often as the others: it is its word that is put to the test."""
_DRAW_SECONDS = (0.1, 0.6)
_REST_SECONDS = (0.2, 2.0)


class Fault(NamedTuple):
    """One fault of the plan; times in seconds since the run began."""

    at: float
    target: str
    kind: str
    lasts: float

    def __str__(self) -> str:
        return f"{self.at:7.2f}s {self.target}: {self.kind} for {self.lasts:.2f}s"


class Kind(NamedTuple):
    """A fault that a target may have: how often it is drawn, and for how long."""

    name: str
    weight: int
    shortest: float
    longest: float


LINK = (
    Kind("late", 3, 1, 5), Kind("thin", 2, 1, 4), Kind("stalled", 2, 0.5, 5), Kind("blackhole", 2, 0.5, 6),
    Kind("truncated", 3, 0.1, 1), Kind("reset", 4, 0, 0.1), Kind("half_open", 2, 0.5, 5), Kind("refused", 2, 0.3, 4),
)  # fmt: skip
CABLE = (Kind("cut", 3, 0.5, 6), Kind("lossy", 3, 1, 6), Kind("narrow", 2, 1, 5))
AGENT = (Kind("killed", 2, 0, 1.5), Kind("killed_in_sync", 3, 0, 1.5), Kind("frozen", 2, 0.3, 4))
SERVICE = (Kind("killed", 3, 0, 3), Kind("stopped", 2, 0, 2), Kind("frozen", 2, 0.5, 5))
COLLECTOR = (
    Kind("killed", 2, 0, 2), Kind("killed_in_sync", 6, 0, 2), Kind("stopped", 2, 0, 2), Kind("frozen", 2, 0.5, 5),
)  # fmt: skip
SEAM = (
    Kind("no_space", 2, 0.5, 4), Kind("sync_errors", 2, 0.5, 3), Kind("write_errors", 2, 0.5, 3),
    Kind("slow_sync", 3, 1, 5),
)  # fmt: skip
FULL = (Kind("full", 1, 0.5, 4),)
CLOCK = (Kind("an_hour_ahead", 1, 1, 5), Kind("an_hour_behind", 1, 1, 5))
CONFIG = (Kind("reloaded", 3, 0, 0.5), Kind("broken_config", 1, 0.2, 1), Kind("new_certificate", 2, 0, 0.5))


def plan(seed: int, *, seconds: float, targets: dict[str, Sequence[Kind]]) -> list[Fault]:
    """The faults in the order in which they begin."""
    chance = random.Random(seed)
    free_at = dict.fromkeys(targets, 0.0)
    faults: list[Fault] = []
    names = sorted(targets)
    at, end = chance.uniform(*_REST_SECONDS), seconds * (1 - QUIET_PART)
    while at < end:
        [target] = chance.choices(names, [FAVOURED.get(name, 1) for name in names])
        kinds = targets[target]
        [kind] = chance.choices(kinds, [one.weight for one in kinds])
        lasts = min(chance.uniform(kind.shortest, kind.longest), end - at)
        if free_at[target] <= at:
            faults.append(Fault(at, target, kind.name, lasts))
            free_at[target] = at + lasts + chance.uniform(*_REST_SECONDS)
        at += chance.uniform(*_DRAW_SECONDS)
    return faults
