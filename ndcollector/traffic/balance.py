"""Which of several endpoints that are well gets the next request.

    round_robin         each in turn, as often as its weight says
    least_outstanding   the one with the fewest requests under way for its weight; then the least recent
    power_of_two        the less busy of two drawn at random: many collectors then do not all run to the same one
    ordered             the first, as written (or by SRV priority and weight)

Only endpoints of the best SRV priority that has any are ever chosen (RFC 2782). Pure: `random` draws from [0, 1).
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeVar

Kind = Literal["round_robin", "least_outstanding", "power_of_two", "ordered"]


class Choice(Protocol):
    """What is known of an endpoint here; `turn` and `credit` are this module's own notes on it."""

    turn: int
    credit: float

    @property
    def priority(self) -> int:
        """SRV priority: the lowest first."""

    @property
    def weight(self) -> float:
        """How much of the load is its share."""

    @property
    def outstanding(self) -> int:
        """Requests under way."""


One = TypeVar("One", bound=Choice)


class Balance:
    """One output's way to choose."""

    def __init__(self, kind: Kind, *, random: Callable[[], float]) -> None:
        self._kind = kind
        self._random = random
        self._turn = 0

    def choose(self, candidates: Sequence[One]) -> One:
        """One of these, which are in the order of the configuration; there must be one."""
        best = min(one.priority for one in candidates)
        equals = [one for one in candidates if one.priority == best]
        chosen = equals[0] if len(equals) == 1 else self._one_of(equals)
        self._turn += 1
        chosen.turn = self._turn
        return chosen

    def _one_of(self, equals: Sequence[One]) -> One:
        if self._kind == "ordered":
            return equals[0]
        if self._kind == "round_robin":
            return _in_turn(equals)
        if self._kind == "power_of_two" and len(equals) > 2:
            first = int(self._random() * len(equals))
            second = (first + 1 + int(self._random() * (len(equals) - 1))) % len(equals)
            equals = [equals[first], equals[second]]
        return min(equals, key=lambda one: ((one.outstanding + 1) / one.weight, one.turn))


def _in_turn(equals: Sequence[One]) -> One:
    """Smooth weighted round robin: heavier ones come more often, but not in a row."""
    for one in equals:
        one.credit += one.weight
    chosen = max(equals, key=lambda one: one.credit)
    chosen.credit -= sum(one.weight for one in equals)
    return chosen
